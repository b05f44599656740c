//! Profilers to be measured, each as a way to run the burner.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A way to run the burner.
#[derive(Clone, Debug)]
pub(crate) enum Profiler {
    /// As it is.
    None,
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
    /// CPU nanoseconds of the working threads, by their own clocks.
    pub(crate) threads: f64,
    /// CPU nanoseconds of the whole process while it worked.
    pub(crate) cpu: f64,
    /// Rounds done.
    pub(crate) rounds: f64,
}

impl Profiler {
    /// Its name in tables.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Selvedge { engine: "perf", .. } => "selvedge-perf",
            Self::Selvedge { .. } => "selvedge",
            Self::PprofRs { .. } => "pprof-rs",
            Self::Gperftools { .. } => "gperftools",
            Self::Perf => "perf",
        }
    }

    /// The peers that are on this machine.
    pub(crate) fn peers(pprof_rs: Option<&Path>) -> Vec<Self> {
        let mut peers = Vec::new();
        if let Some(program) = pprof_rs {
            peers.push(Self::PprofRs {
                program: program.to_path_buf(),
            });
        }
        let library = PathBuf::from("/usr/lib/x86_64-linux-gnu/libprofiler.so.0");
        if library.exists() {
            peers.push(Self::Gperftools { library });
        }
        let perf = Command::new("perf")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if perf.is_ok_and(|status| status.success()) {
            peers.push(Self::Perf);
        }
        peers
    }

    /// Runs the burner with these arguments at `hz`; its profile goes to `output`.
    pub(crate) fn run(
        &self,
        burner: &Path,
        arguments: &[String],
        hz: u32,
        scratch: &Path,
        output: &Path,
    ) -> io::Result<Report> {
        let report = scratch.join("report");
        let _ = std::fs::remove_file(&report);
        let hz = hz.to_string();
        let mut command = match self {
            Self::None | Self::Gperftools { .. } => Command::new(burner),
            Self::PprofRs { program } => {
                let mut command = Command::new(program);
                command.args(["--hz", &hz, "--output"]).arg(output);
                command
            }
            Self::Selvedge { program, engine } => {
                let mut command = Command::new(program);
                command
                    .args(["record", "--quiet", "--engine", engine, "-F", &hz, "-o"])
                    .arg(output)
                    .arg("--")
                    .arg(burner);
                command
            }
            Self::Perf => {
                let mut command = Command::new("perf");
                command
                    .args(["record", "-q", "-e", "task-clock", "-g", "-F", &hz, "-o"])
                    .arg(output)
                    .arg("--")
                    .arg(burner);
                command
            }
        };
        if let Self::Gperftools { library } = self {
            command
                .env("LD_PRELOAD", library)
                .env("CPUPROFILE", output)
                .env("CPUPROFILE_FREQUENCY", &hz);
        }
        command
            .arg("burn")
            .args(arguments)
            .arg("--report")
            .arg(&report);
        let status = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(io::Error::other(format!(
                "the burner under {} ended with {status}",
                self.name()
            )));
        }
        let text = std::fs::read_to_string(&report)?;
        let numbers: Vec<f64> = text
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        match *numbers {
            [threads, cpu, _, rounds] => Ok(Report {
                threads,
                cpu,
                rounds,
            }),
            _ => Err(io::Error::other(format!(
                "the burner under {} gave no report",
                self.name()
            ))),
        }
    }
}
