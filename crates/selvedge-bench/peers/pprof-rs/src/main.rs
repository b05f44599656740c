//! The burner of `selvedge-bench`, profiling itself with pprof-rs.

#[path = "../../../src/burn.rs"]
mod burn;

use clap::{Parser, Subcommand};
use pprof::protos::Message;
use std::path::PathBuf;

#[derive(Parser)]
struct Cli {
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
    let guard = pprof::ProfilerGuard::new(cli.hz)?;
    let Command::Burn(burn) = &cli.command;
    burn.run(|| ());
    let profile = guard.report().build()?.pprof()?;
    std::fs::write(&cli.output, profile.encode_to_vec())?;
    Ok(())
}
