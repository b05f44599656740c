//! `selvedge-bench`: measures selvedge beside its peers, in one run, interleaved, by medians.
//!
//! Every figure is a ratio or a time of this machine on this day: quote ratios, with the command and the date.

mod burn;
mod empty_handler;
mod figure;
mod handled;
mod peer;
mod profiler;
mod suite;
mod weights;

use clap::{Parser, Subcommand, ValueEnum};
use figure::Figures;
use std::io::Write;
use std::path::{Path, PathBuf};
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
    /// List the suites, and what each measures
    #[arg(long)]
    list: bool,
    /// Runs of each figure
    #[arg(long, default_value_t = 15)]
    runs: usize,
    /// CPU seconds of work of each run, per thread
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Threads of the suite `overhead`; where CPUs share a core, as many as CPUs give steadier figures
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The `selvedge` to measure [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    selvedge: Option<PathBuf>,
    /// Build the peers that are libraries (pprof-rs, framehop), which downloads them
    #[arg(long)]
    peers: bool,
    /// The library whose table the suite `walk` makes [default: librustc_driver of the `rustc` on PATH]
    #[arg(long, value_name = "PATH")]
    library: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The program that is profiled: known work, in known shares
    #[command(hide = true)]
    Burn(burn::Burn),
    /// The same, interrupted by signals whose handler does nothing
    #[command(hide = true)]
    Interrupted(empty_handler::Interrupted),
    /// What a sample costs
    #[command(hide = true)]
    Handled(handled::Handled),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Some(Command::Burn(burn)) => {
            burn.run(|| ());
            Ok(())
        }
        Some(Command::Interrupted(interrupted)) => interrupted.run().map_err(Into::into),
        Some(Command::Handled(handled)) => handled.run().map_err(Into::into),
        None if cli.list => {
            list();
            Ok(())
        }
        None => measure(&cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selvedge-bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn list() {
    let mut out = std::io::stdout().lock();
    for suite in Suite::ALL {
        let value = suite.to_possible_value();
        let (name, help) = value.map_or_else(Default::default, |value| {
            let help = value.get_help().map(ToString::to_string);
            (value.get_name().to_owned(), help.unwrap_or_default())
        });
        // A closed pipe is success: the reader has seen enough.
        let _ = writeln!(out, "{name:<10} {help}");
    }
}

fn measure(cli: &Cli) -> Result<(), Box<dyn std::error::Error>> {
    let own = std::env::current_exe()?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let selvedge = cli
        .selvedge
        .clone()
        .unwrap_or_else(|| folder.join("selvedge"));
    let suites = if cli.suites.is_empty() {
        Suite::ALL.to_vec()
    } else {
        cli.suites.clone()
    };
    if !selvedge.is_file() && suites.iter().any(|suite| suite.needs_command()) {
        let path = selvedge.display();
        return Err(format!("there is no {path} to measure: run `cargo build --release --bins -p selvedge-cli`, or name another with --selvedge").into());
    }
    let mut figures = Figures::new(cli.json);
    // Beside the folders of the build: `target/peers`.
    let folder = folder.with_file_name("peers");
    let peers = if suites.iter().any(|suite| suite.needs_command()) {
        peer::find(&folder, cli.peers, &figures)?
    } else {
        Vec::new()
    };
    let walkers = if suites.contains(&Suite::Walk) {
        peer::walkers(&folder, cli.peers, &figures)?
    } else {
        None
    };
    let scratch = std::env::temp_dir().join(format!("selvedge-bench-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let settings = Settings {
        selvedge,
        burner: own,
        peers,
        walkers,
        library: cli.library.clone(),
        runs: cli.runs.max(1),
        seconds: cli.seconds,
        threads: cli.threads.max(1),
        scratch: scratch.clone(),
    };
    figures.machine();
    let measured = suites
        .into_iter()
        .try_for_each(|suite| suite.run(&settings, &mut figures));
    figures.machine();
    std::fs::remove_dir_all(scratch)?;
    Ok(measured?)
}
