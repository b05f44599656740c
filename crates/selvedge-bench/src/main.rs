//! `selvedge-bench`: measures selvedge beside its peers, in one run, interleaved, by medians.
//!
//! Every figure is a ratio or a time of this machine on this day: quote ratios, with the command and the date.

mod burn;
mod figure;
mod profiler;
mod suite;

use clap::{Parser, Subcommand};
use figure::Figures;
use std::path::PathBuf;
use std::process::ExitCode;
use suite::{Settings, Suite};

/// Measures selvedge beside its peers.
#[derive(Debug, Parser)]
#[command(
    name = "selvedge-bench",
    version,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Suites to run [default: all]
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Print one JSON object a line: suite, name, value, unit, peer
    #[arg(long)]
    json: bool,
    /// Runs of each figure
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// CPU seconds of work of each run, per thread
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The `selvedge` to measure [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    selvedge: Option<PathBuf>,
    /// A program that profiles the burner with pprof-rs: see peers/pprof-rs
    #[arg(long, value_name = "PATH")]
    pprof_rs: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The program that is profiled: known work, in known shares
    #[command(hide = true)]
    Burn(burn::Burn),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Burn(burn)) = &cli.command {
        burn.run();
        return ExitCode::SUCCESS;
    }
    match measure(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selvedge-bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn measure(cli: &Cli) -> Result<(), Box<dyn std::error::Error>> {
    let own = std::env::current_exe()?;
    let beside = || own.parent().map(|folder| folder.join("selvedge"));
    let selvedge = cli
        .selvedge
        .clone()
        .or_else(beside)
        .filter(|path| path.is_file());
    let selvedge = selvedge
        .ok_or("there is no selvedge beside this program: build it, or name it with --selvedge")?;
    let scratch = std::env::temp_dir().join(format!("selvedge-bench-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let settings = Settings {
        selvedge,
        burner: own,
        pprof_rs: cli.pprof_rs.clone(),
        runs: cli.runs.max(1),
        seconds: cli.seconds,
        scratch: scratch.clone(),
    };
    let suites = if cli.suites.is_empty() {
        Suite::ALL.to_vec()
    } else {
        cli.suites.clone()
    };
    let mut figures = Figures::new(cli.json);
    for suite in suites {
        suite.run(&settings, &mut figures)?;
    }
    let _ = std::fs::remove_dir_all(scratch);
    Ok(())
}
