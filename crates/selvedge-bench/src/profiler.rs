//! Profilers to be measured, each as a way to run the burner.
//!
//! # Safety
//!
//! This file is `unsafe` because it asks the system what children took.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A way to run the burner, or (but for two of them) any other program.
#[derive(Clone, Debug)]
pub(crate) enum Profiler {
    /// As it is.
    None,
    /// As it is, with a `perf_event` signal to an empty handler per period: what the kernel alone costs.
    EmptyHandler,
    /// `selvedge record`, with an engine.
    Selvedge {
        program: PathBuf,
        engine: &'static str,
    },
    /// A burner that profiles itself with pprof-rs.
    PprofRs { program: PathBuf },
    /// gperftools' CPU profiler, preloaded.
    Gperftools { library: PathBuf },
    /// `perf record`, frame pointers.
    Perf,
}

/// What the burner said of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    /// CPU nanoseconds of its threads, by their own clocks.
    pub(crate) threads: f64,
    /// CPU nanoseconds of its process while it worked.
    pub(crate) cpu: f64,
    /// Nanoseconds that the work took.
    pub(crate) wall: f64,
    /// Rounds done.
    pub(crate) rounds: f64,
    /// CPU nanoseconds of all processes of the run: burner and profiler, from start to end.
    pub(crate) everything: f64,
}

impl Profiler {
    /// Its name in tables.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::EmptyHandler => "empty handler",
            Self::Selvedge { engine: "perf", .. } => "selvedge-perf",
            Self::Selvedge { .. } => "selvedge",
            Self::PprofRs { .. } => "pprof-rs",
            Self::Gperftools { .. } => "gperftools",
            Self::Perf => "perf",
        }
    }

    /// `program` under this profiler at `hz`, its profile going to `output`; none if it can only run the burner.
    pub(crate) fn command(&self, program: &OsStr, hz: u32, output: &Path) -> Option<Command> {
        let hz = hz.to_string();
        let mut command = match self {
            Self::None => Command::new(program),
            Self::EmptyHandler | Self::PprofRs { .. } => return None,
            Self::Gperftools { library } => {
                let mut command = Command::new(program);
                command
                    .env("LD_PRELOAD", library)
                    .env("CPUPROFILE", output)
                    .env("CPUPROFILE_FREQUENCY", &hz);
                command
            }
            Self::Selvedge {
                program: selvedge,
                engine,
            } => {
                let mut command = Command::new(selvedge);
                command
                    .args(["record", "--quiet", "--engine", engine, "-F", &hz, "-o"])
                    .arg(output)
                    .arg("--")
                    .arg(program);
                command
            }
            Self::Perf => {
                let mut command = Command::new("perf");
                command
                    .args(["record", "-q", "-e", "task-clock", "-g", "-F", &hz, "-o"])
                    .arg(output)
                    .arg("--")
                    .arg(program);
                command
            }
        };
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Some(command)
    }

    /// The same burner at the same rate without the profiler. pprof-rs is part of its program, whose code lies elsewhere than
    /// ours: it is compared with itself, at a rate of 0.
    pub(crate) fn without(&self, hz: u32) -> (Self, u32) {
        match self {
            Self::PprofRs { .. } => (self.clone(), 0),
            _ => (Self::None, hz),
        }
    }

    fn burner(&self, burner: &Path, hz: u32, output: &Path) -> Command {
        if let Some(mut command) = self.command(burner.as_os_str(), hz, output) {
            command.arg("burn");
            return command;
        }
        let (program, before): (&Path, &[&str]) = match self {
            Self::PprofRs { program } => (program, &["--output"]),
            _ => (burner, &["interrupted"]),
        };
        let mut command = Command::new(program);
        command.args(before);
        if let Self::PprofRs { .. } = self {
            command.arg(output);
        }
        command.arg("--hz").arg(hz.to_string());
        if let Self::PprofRs { .. } = self {
            command.arg("burn");
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs the burner with these arguments at `hz`; its profile goes to `output`.
    pub(crate) fn run(
        &self,
        burner: &Path,
        arguments: &[String],
        hz: u32,
        output: &Path,
    ) -> io::Result<Report> {
        let report = output.with_extension("report");
        for old in [&report, output] {
            let _ = std::fs::remove_file(old);
        }
        let mut command = self.burner(burner, hz, output);
        command.args(arguments).arg("--report").arg(&report);
        let before = children();
        let status = command.status()?;
        let everything = children() - before;
        if !status.success() {
            return Err(io::Error::other(format!(
                "the burner under {} ended with {status}: run {command:?}",
                self.name()
            )));
        }
        let text = std::fs::read_to_string(&report)?;
        let numbers: Vec<f64> = text
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        match *numbers {
            [threads, cpu, wall, rounds] => Ok(Report {
                threads,
                cpu,
                wall,
                rounds,
                everything,
            }),
            _ => Err(io::Error::other(format!(
                "the burner under {} gave no report",
                self.name()
            ))),
        }
    }
}

/// CPU nanoseconds of all children that have ended.
fn children() -> f64 {
    // SAFETY: all zeros are a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the system writes a `rusage`.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    [usage.ru_utime, usage.ru_stime]
        .iter()
        .map(|time| time.tv_sec as f64 * 1e9 + time.tv_usec as f64 * 1e3)
        .sum()
}
