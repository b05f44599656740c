//! `selvedge`: record a true CPU profile of any program, and look at it.

mod agent;
mod arguments;
mod convert;
mod demo;
mod doctor;
mod failure;
mod program;
mod record;
mod top;

use arguments::{Cli, Command};
use clap::{CommandFactory, Parser};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Record(options) => record::run(options),
        Command::Top(options) => top::run(options),
        Command::Flamegraph(options) => convert::flamegraph(options),
        Command::Convert(options) => convert::run(options),
        Command::Doctor(options) => doctor::run(options),
        Command::Completions(options) => {
            clap_complete::generate(
                options.shell,
                &mut Cli::command(),
                "selvedge",
                &mut std::io::stdout(),
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo(options) => {
            demo::run(options.seconds);
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|failure| {
        eprintln!("selvedge: {failure}");
        ExitCode::from(failure.status)
    })
}
