//! The burner of `selvedge-bench`, profiling itself with pprof-rs.

#[path = "../../../src/burn.rs"]
mod burn;

use clap::{Parser, Subcommand};
use pprof::protos::Message;
use std::path::PathBuf;

#[derive(Parser)]
struct Cli {
    /// Samples per second; 0: no profiler
    #[arg(long)]
    hz: i32,
    #[arg(long)]
    output: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Burn(burn::Burn),
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cli = Cli::parse();
    let Command::Burn(burn) = &cli.command;
    let guard = (cli.hz > 0)
        .then(|| pprof::ProfilerGuard::new(cli.hz))
        .transpose()?;
    burn.run(|| ());
    if let Some(guard) = guard {
        let profile = guard.report().build()?.pprof()?;
        std::fs::write(&cli.output, profile.encode_to_vec())?;
    }
    Ok(())
}
