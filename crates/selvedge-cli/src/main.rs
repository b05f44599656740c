//! `selvedge`: record a true CPU profile of any program, and look at it.

mod agent;
mod arguments;
mod convert;
mod demo;
mod dispositions;
mod doctor;
mod failure;
mod format;
mod input;
mod program;
mod record;
mod streams;
mod top;

use arguments::{Cli, Command};
use clap::{CommandFactory, Parser};
use failure::Result;
use std::io::IsTerminal;
use std::process::ExitCode;
use streams::say;

fn main() -> ExitCode {
    dispositions::ignore_file_size_signal();
    run().unwrap_or_else(|failure| {
        say!("selvedge: {failure}");
        ExitCode::from(failure.status)
    })
}

fn run() -> Result<ExitCode> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are data, and may be asked for by a script.
        Err(help) if !help.use_stderr() => {
            let text = help.render();
            let styled = std::io::stdout().is_terminal();
            let text = if styled {
                text.ansi().to_string()
            } else {
                text.to_string()
            };
            streams::print(text.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => error.exit(),
    };
    match &cli.command {
        Command::Record(options) => record::run(options),
        Command::Top(options) => top::run(options),
        Command::Flamegraph(options) => convert::flamegraph(options),
        Command::Convert(options) => convert::run(options),
        Command::Doctor(options) => doctor::run(options),
        Command::Completions(options) => {
            let mut script = Vec::new();
            clap_complete::generate(options.shell, &mut Cli::command(), "selvedge", &mut script);
            streams::print(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo(options) => {
            demo::run(options.seconds);
            Ok(ExitCode::SUCCESS)
        }
    }
}
