//! The library's way in: profile the running program.

use crate::engine::EngineChoice;
use crate::error::{Error, Result};
use crate::memory::SessionMemory;
use crate::reader::Setup;
use crate::running::Running;
use crate::summary::Summary;
use selvedge_pprof::model::Profile;
use selvedge_sample::action;
use selvedge_sample::region::Region;
use selvedge_sample::system;
use selvedge_sample::target::{self, Base};
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a guard is alive.
static RUNNING: AtomicBool = AtomicBool::new(false);
/// The memory of this process's sessions, one after the other. It is kept: a late signal may still look at it.
static MEMORY: OnceLock<&'static Region> = OnceLock::new();

/// Settings of a profile of the running program.
///
/// # Examples
///
/// ```
/// let guard = selvedge_profile::Builder::new().hz(99.0).start()?;
/// let sum: u64 = (0..1_000_000_u64).sum();
/// let profile = guard.stop();
/// println!("{sum}: {} samples", profile.summary.samples());
/// # Ok::<(), selvedge_profile::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `start`"]
pub struct Builder {
    hz: f64,
    engine: EngineChoice,
    signal: i32,
    output: Option<PathBuf>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            hz: 99.0,
            engine: EngineChoice::Auto,
            signal: libc::SIGPROF,
            output: None,
        }
    }
}

impl Builder {
    /// 99 samples per second of CPU time, the best engine, `SIGPROF`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Samples per second of CPU time: 1 to 50,000.
    pub fn hz(mut self, hz: f64) -> Self {
        self.hz = hz;
        self
    }

    /// What produces signals.
    pub fn engine(mut self, engine: EngineChoice) -> Self {
        self.engine = engine;
        self
    }

    /// The signal number to use, where the program owns `SIGPROF`.
    pub fn signal(mut self, signal: i32) -> Self {
        self.signal = signal;
        self
    }

    /// A file to write the profile into (gzipped `profile.proto`) when the guard ends.
    pub fn output(mut self, path: impl Into<PathBuf>) -> Self {
        self.output = Some(path.into());
        self
    }

    /// Starts profiling all threads of this process, those that exist and those that come.
    ///
    /// # Errors
    ///
    /// A profile is being taken already ([`Error::is_already_running`]), the program handles the signal itself
    /// ([`Error::is_signal_taken`]), a setting is out of range ([`Error::is_setting`]), or the system refuses memory or
    /// threads.
    pub fn start(self) -> Result<Guard> {
        let period = period_of(self.hz)?;
        if !(1..=64).contains(&self.signal) || [libc::SIGKILL, libc::SIGSTOP].contains(&self.signal)
        {
            return Err(Error::setting(format!(
                "cannot use signal {}: choose SIGPROF (27) or a free one",
                self.signal
            )));
        }
        let engine = self.engine.resolve()?;
        if RUNNING.swap(true, Ordering::AcqRel) {
            return Err(Error::already_running());
        }
        let started = start(Setup {
            period,
            engine,
            signal: self.signal,
            children: false,
        });
        match started {
            Ok(running) => Ok(Guard {
                running: Some(running),
                output: self.output,
            }),
            Err(error) => {
                RUNNING.store(false, Ordering::Release);
                Err(error)
            }
        }
    }
}

/// Nanoseconds between samples at a rate.
///
/// # Errors
///
/// The rate is not between 1 and 50,000 ([`Error::is_setting`]): at more, a thread does little but take signals.
pub fn period_of(hz: f64) -> Result<u64> {
    if !(1.0..=50_000.0).contains(&hz) {
        return Err(Error::setting(format!(
            "cannot sample {hz} times a second: choose a rate from 1 to 50000"
        )));
    }
    Ok((1e9 / hz).round() as u64)
}

fn start(setup: Setup) -> Result<Running> {
    let region = match MEMORY.get() {
        Some(region) => *region,
        None => {
            let region = SessionMemory::private()?.region;
            *MEMORY.get_or_init(|| region)
        }
    };
    let signal = setup.signal;
    let previous = current_handler(signal)?;
    if previous != selvedge_sample::handler::entry as *const () as usize {
        if previous > 1 {
            return Err(Error::signal_taken(signal));
        }
        // Default or ignored: so it stays for signals that are not ours.
        action::set_program_action(action::ProgramAction {
            handler: previous,
            ..Default::default()
        });
    }
    let running = Running::start(SessionMemory { region, file: None }, setup)?;
    action::install(region.header.signal.load(Ordering::Relaxed)).map_err(|e| {
        Error::os(
            "install the signal handler",
            std::io::Error::from_raw_os_error(e),
        )
    })?;
    let session = target::attach(region)
        .ok_or_else(|| Error::setting("cannot start a profile: no room for the process"))?;
    for tid in own_threads() {
        if !running.is_own_thread(tid) {
            let found_room = target::start_thread(session, tid, Base::Now).is_some();
            if !found_room {
                target::note_refused(session);
            }
        }
    }
    Ok(running)
}

fn current_handler(signal: i32) -> Result<usize> {
    selvedge_sample::system::signal_handler(signal.cast_unsigned()).map_err(|e| {
        Error::os(
            "read the action of the profiling signal",
            std::io::Error::from_raw_os_error(e),
        )
    })
}

fn own_threads() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let threads: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    if threads.is_empty() {
        vec![system::gettid()]
    } else {
        threads
    }
}

/// A profile being taken; it ends with the guard.
#[derive(Debug)]
#[must_use = "the profile ends when the guard is dropped"]
pub struct Guard {
    running: Option<Running>,
    output: Option<PathBuf>,
}

/// A profile with the numbers that say how much of the program it covers.
#[derive(Clone, Debug)]
pub struct Report {
    /// The profile.
    pub profile: Profile,
    /// What was recorded and what was lost.
    pub summary: Summary,
}

impl Report {
    /// Writes the profile as gzipped `profile.proto`.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write_pprof(&self, path: impl AsRef<std::path::Path>) -> std::io::Result<()> {
        self.profile.write(&mut std::fs::File::create(path)?)
    }
}

impl Guard {
    /// What has been recorded so far; recording goes on.
    #[must_use]
    pub fn snapshot(&self) -> Option<Report> {
        let (profile, summary) = self.running.as_ref()?.snapshot();
        Some(Report { profile, summary })
    }

    /// The numbers of what has been recorded so far: cheap, nothing is named.
    #[must_use]
    pub fn summary(&self) -> Option<Summary> {
        Some(self.running.as_ref()?.summary())
    }

    /// Stops, and gives the profile. Also writes it where [`Builder::output`] said; see [`Guard::finish`] for errors.
    #[must_use]
    pub fn stop(self) -> Report {
        self.finish().0
    }

    /// Stops: the profile, and whether it could be written where [`Builder::output`] said.
    pub fn finish(mut self) -> (Report, std::io::Result<()>) {
        let output = self.output.take();
        let report = match self.running.take() {
            Some(running) => end(running),
            // Only `finish` and `drop` take it, and both consume the guard.
            None => unreachable!("a guard ends once"),
        };
        let written = output.map_or(Ok(()), |path| report.write_pprof(path));
        (report, written)
    }
}

fn end(running: Running) -> Report {
    let (profile, summary) = running.finish();
    ended();
    Report { profile, summary }
}

/// The session is over: another may begin.
fn ended() {
    target::forget();
    RUNNING.store(false, Ordering::Release);
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        let Some(path) = self.output.take() else {
            // Nobody will see the profile: it is not made.
            drop(running);
            return ended();
        };
        let report = end(running);
        if let Err(error) = report.write_pprof(&path) {
            // Where standard error cannot be written either, a panic would help nobody.
            let _ = writeln!(
                std::io::stderr(),
                "selvedge: cannot write the profile to {}: {error}",
                path.display()
            );
        }
    }
}
