//! The suites.

mod overhead;
mod startup;
mod walk;
mod weight;

use crate::figure::Figures;
use crate::profiler::Profiler;
use clap::ValueEnum;
use std::path::PathBuf;

/// A suite, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// How much slower a profiled program is
    Overhead,
    /// How much of the CPU time is in the profile
    Weight,
    /// How long starting a program takes
    Startup,
    /// What walking a stack costs: a frame, a sample, a table
    Walk,
}

/// What suites need.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) selvedge: PathBuf,
    pub(crate) burner: PathBuf,
    pub(crate) peers: Vec<Profiler>,
    /// The program that walks by selvedge and its peers, if it is built.
    pub(crate) walkers: Option<PathBuf>,
    /// The library to make a table of, if not that of the compiler.
    pub(crate) library: Option<PathBuf>,
    pub(crate) runs: usize,
    pub(crate) seconds: f64,
    pub(crate) threads: usize,
    pub(crate) scratch: PathBuf,
}

impl Settings {
    /// `selvedge record` with an engine.
    fn selvedge(&self, engine: &'static str) -> Profiler {
        Profiler::Selvedge {
            program: self.selvedge.clone(),
            engine,
        }
    }
}

impl Suite {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Overhead, Self::Weight, Self::Startup, Self::Walk];

    /// Whether it runs `selvedge`.
    pub(crate) fn needs_command(self) -> bool {
        self != Self::Walk
    }

    /// Runs the suite.
    pub(crate) fn run(self, settings: &Settings, figures: &mut Figures) -> std::io::Result<()> {
        match self {
            Self::Overhead => overhead::run(settings, figures),
            Self::Weight => weight::run(settings, figures),
            Self::Startup => startup::run(settings, figures),
            Self::Walk => walk::run(settings, figures),
        }
    }
}
