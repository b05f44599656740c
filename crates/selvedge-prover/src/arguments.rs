//! The command line.

use clap::{Parser, ValueHint};
use std::ffi::OsString;
use std::path::PathBuf;

/// Steps through a program and interrupts it by a real profiling signal at every distinct instruction: is each recorded
/// stack true?
#[derive(Clone, Debug, Parser)]
#[command(
    name = "selvedge-prover",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "CMD runs twice: as it is, and stepped; its output must be the same. A step takes about\n\
20 microseconds, and the start of a program a few hundred thousand of them.\n\
exact: every frame, leaf to root. marked: true frames, and a visible mark where some are missing. wrong: anything else.\n\n\
Exit status: 0 if nothing is wrong and enough is exact; 1 if not, or with fewer samples than --least;\n\
2 if it could not be tried.\n\n\
Other profilers are proved with --preload: a library whose handler shows what it recorded in the file that\n\
STEPPER_MAILBOX names (docs/PROOF.md says how)."
)]
pub struct Arguments {
    /// Interrupt each instruction so many times, each from another caller
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub visits: u16,
    /// Interrupt every execution of the instructions of this function (may be repeated)
    #[arg(long, value_name = "SYMBOL")]
    pub window: Vec<String>,
    /// Stop after so many instructions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_steps: Option<u64>,
    /// Least share of exact stacks, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 99.9, value_parser = percent)]
    pub exact: f64,
    /// Least number of samples
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub least: u64,
    /// File that CMD reads as its standard input [default: nothing]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub stdin: Option<PathBuf>,
    /// Do not run CMD a second time to compare its output
    #[arg(long)]
    pub once: bool,
    /// Print JSON: a line for each kind of finding, and at the end one with the totals
    #[arg(long)]
    pub json: bool,
    /// Print no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// The `selvedge` to prove [default: the one beside this program, else the one on PATH]
    #[arg(long, value_name = "PATH", conflicts_with = "preload", value_hint = ValueHint::ExecutablePath)]
    pub selvedge: Option<PathBuf>,
    /// Prove this library instead, loaded into CMD
    #[arg(long, value_name = "LIBRARY", value_hint = ValueHint::FilePath)]
    pub preload: Option<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

fn percent(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=100.0).contains(share))
        .ok_or_else(|| "it must be from 0 to 100".into())
}
