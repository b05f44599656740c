//! `selvedge record`: runs a program with the agent, follows it to its end, writes the profile.

mod agent_file;
mod launch;
mod output;
mod progress;
mod signals;

use crate::arguments::{self, Record};
use crate::dispositions;
use crate::failure::{Failure, Result, shown};
use crate::streams::say;
use launch::Launch;
use output::Output;
use progress::Progress;
use selvedge_pprof::model::Profile;
use selvedge_profile::{
    EngineChoice, ITIMER_TAKEN, Running, SessionMemory, Setup, Summary, period_of,
};
use selvedge_sample::action::IGNORED_MARK;
use signals::{Event, Signals};
use std::fs::Metadata;
use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// After a request to end, CMD has this long before the profile is written without it: within 5 s in all.
const GRACE: Duration = Duration::from_millis(2500);

/// Files that a recording has open at a time, with some to spare; the perf engine needs one more for each thread.
const DESCRIPTORS: usize = 12;

impl From<arguments::Engine> for EngineChoice {
    fn from(engine: arguments::Engine) -> Self {
        match engine {
            arguments::Engine::Auto => Self::Auto,
            arguments::Engine::Timer => Self::Timer,
            arguments::Engine::Perf => Self::Perf,
            arguments::Engine::Itimer => Self::Itimer,
        }
    }
}

/// Runs the command.
pub(crate) fn run(options: &Record) -> Result<ExitCode> {
    let period = period_of(options.frequency).map_err(Failure::own)?;
    check_descriptors()?;
    let mut warnings = Vec::new();
    let engine = EngineChoice::from(options.engine)
        .resolve()
        .or_else(|error| {
            warnings.push(format!("{error}; going on with the timer engine"));
            EngineChoice::Timer.resolve()
        });
    let engine = engine.map_err(Failure::own)?;
    if options.engine == arguments::Engine::Itimer {
        warnings.push(ITIMER_TAKEN.to_string());
    }
    let memory = SessionMemory::shared().map_err(Failure::own)?;
    let place = place_in_proc(&memory)?;
    let launch = if options.command.is_empty() {
        Launch::demo()?
    } else {
        Launch::prepare(&options.command)?
    };
    let output = Output::prepare(options.output.as_deref(), &launch.name)?;
    let agent = agent_file::install()?;
    let setup = Setup {
        period,
        engine,
        signal: options.signal,
        children: !options.no_children,
    };
    // Before the reader's thread is started, so that it inherits the blocked signals.
    let signals = Signals::block().map_err(|e| Failure::system("block signals", e))?;
    let running = Running::start(memory, setup).map_err(Failure::own)?;
    // What CMD inherits it is to keep, and an agent cannot tell it from a program that became another one.
    let ignored = if dispositions::is_ignored(options.signal) {
        IGNORED_MARK
    } else {
        ""
    };
    let session = format!("{place}:{:016x}{ignored}", running.nonce());
    for warning in &warnings {
        if !options.quiet {
            say!("selvedge: {warning}");
        }
    }
    let pid = launch.start(&agent.path, &session, &signals)?;
    let mut watch = Watch {
        options,
        launch: &launch,
        running: Some(running),
        output: &output,
        signals: &signals,
        pid,
        progress: Progress::new(options.quiet),
        written: false,
        failed: None,
    };
    let ended = watch.wait()?;
    if ended != Ended::Aborted {
        watch.finish();
    }
    drop(agent);
    Ok(watch.failed.map_or(ended.code(), ExitCode::from))
}

/// Makes sure that as many files can be open as a recording needs: what fails without, and how, would say little.
fn check_descriptors() -> Result<()> {
    let spare: std::io::Result<Vec<OwnedFd>> = (0..DESCRIPTORS)
        .map(|_| std::io::stderr().as_fd().try_clone_to_owned())
        .collect();
    match spare {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::system("record (raise `ulimit -n`)", error)),
    }
}

/// Where targets find the session's memory; refused where they would not find it there.
fn place_in_proc(memory: &SessionMemory) -> Result<String> {
    let descriptor = memory.file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    let place = format!("/proc/{}/fd/{descriptor}", std::process::id());
    let identity = |facts: Metadata| (facts.dev(), facts.ino());
    let found = std::fs::metadata(&place).ok().map(identity);
    let own = memory.file.as_ref().and_then(|file| file.metadata().ok());
    // In a PID namespace with the /proc of another, the number is another process's.
    if found.is_none() || found != own.map(identity) {
        return Err(Failure::no_proc());
    }
    Ok(place)
}

/// How the wait for CMD ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// CMD exited.
    Exited(u8),
    /// A signal ended CMD.
    Killed(i32),
    /// We were asked to end and CMD did not.
    Asked(i32),
    /// Ctrl-C, twice.
    Aborted,
}

impl Ended {
    fn code(self) -> ExitCode {
        match self {
            Self::Exited(status) => ExitCode::from(status),
            Self::Killed(signal) | Self::Asked(signal) => {
                ExitCode::from(128_u8.wrapping_add(signal as u8))
            }
            Self::Aborted => ExitCode::from(130),
        }
    }
}

/// Everything that happens while CMD runs.
struct Watch<'a> {
    options: &'a Record,
    launch: &'a Launch,
    /// Until the profile is written.
    running: Option<Running>,
    output: &'a Output,
    signals: &'a Signals,
    pid: i32,
    progress: Progress,
    /// Whether a profile or a snapshot was written.
    written: bool,
    /// The status that says that the profile could not be written.
    failed: Option<u8>,
}

impl Watch<'_> {
    fn wait(&mut self) -> Result<Ended> {
        let started = Instant::now();
        let mut stop_at = self.options.duration.map(|after| started + after);
        let mut snapshot_at = self.options.every.map(|every| started + every);
        let mut give_up: Option<(Instant, i32)> = None;
        let mut interrupts = 0;
        loop {
            let now = Instant::now();
            if stop_at.is_some_and(|at| at <= now) {
                self.finish();
                if !self.options.quiet && self.failed.is_none() {
                    say!("selvedge: recorded for the time asked; CMD runs on");
                }
                (stop_at, snapshot_at) = (None, None);
            }
            if let (Some(at), Some(every)) = (snapshot_at, self.options.every)
                && at <= now
            {
                self.snapshot();
                snapshot_at = Some((at + every).max(Instant::now()));
            }
            if let Some((at, signal)) = give_up
                && at <= now
            {
                self.progress.clear();
                return Ok(Ended::Asked(signal));
            }
            if let Some(running) = &self.running {
                self.progress.show(running);
            }
            let next = [stop_at, snapshot_at, give_up.map(|(at, _)| at)]
                .into_iter()
                .flatten()
                .min();
            let pause = next.map_or(self.progress.pause(), |at| {
                at.saturating_duration_since(now).min(self.progress.pause())
            });
            match self
                .signals
                .next(pause)
                .map_err(|e| Failure::system("wait for signals", e))?
            {
                Event::Nothing => {}
                Event::Child => {
                    if let Some(ended) = self.reap()? {
                        self.progress.clear();
                        return Ok(ended);
                    }
                }
                Event::Snapshot => self.snapshot(),
                Event::Interrupt { from_terminal } => {
                    interrupts += 1;
                    if interrupts > 1 {
                        self.progress.clear();
                        signals::send(self.pid, libc::SIGKILL);
                        if !self.options.quiet {
                            let lost = if self.written {
                                "nothing more written"
                            } else {
                                "nothing written"
                            };
                            say!("selvedge: aborted, {lost}");
                        }
                        return Ok(Ended::Aborted);
                    }
                    // From the terminal, CMD got it too.
                    if !from_terminal {
                        signals::send(self.pid, libc::SIGINT);
                    }
                    if !self.options.quiet && self.running.is_some() {
                        self.progress.clear();
                        say!(
                            "selvedge: interrupted; waiting for CMD, then writing (again to abort and lose it)"
                        );
                    }
                }
                Event::Forward(signal) => {
                    signals::send(self.pid, signal);
                    if [libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT].contains(&signal)
                        && give_up.is_none()
                    {
                        give_up = Some((Instant::now() + GRACE, signal));
                    }
                }
            }
        }
    }

    /// Looks at children that have ended: reads their exact CPU time, then lets them go.
    fn reap(&self) -> Result<Option<Ended>> {
        while let Some(dead) =
            signals::ended_child().map_err(|e| Failure::system("wait for CMD", e))?
        {
            let clock = selvedge_sample::system::process_clock(dead.pid.cast_unsigned());
            if let Some(running) = &self.running {
                running.process_ended(
                    dead.pid.cast_unsigned(),
                    selvedge_sample::system::clock(clock),
                );
            }
            signals::reap(dead.pid);
            if dead.pid == self.pid {
                return Ok(Some(match dead.signal {
                    Some(signal) => Ended::Killed(signal),
                    None => Ended::Exited(dead.status as u8),
                }));
            }
        }
        Ok(None)
    }

    /// Ends the recording and writes the profile, once.
    fn finish(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        self.progress.clear();
        let (profile, summary) = running.finish();
        match self.output.write(&profile) {
            Ok(()) => {
                self.written = true;
                report(self.options, self.launch, self.output, &profile, &summary);
            }
            Err(failure) => {
                say!("selvedge: {failure}");
                self.failed = Some(failure.status);
            }
        }
    }

    fn snapshot(&mut self) {
        let Some(running) = &self.running else {
            return;
        };
        let (profile, summary) = running.snapshot();
        self.progress.clear();
        let stored = self.output.write(&profile);
        self.written |= stored.is_ok();
        match stored {
            Ok(()) if self.options.quiet => {}
            Ok(()) => say!(
                "selvedge: snapshot with {} samples written to {}",
                summary.samples(),
                self.output.name()
            ),
            Err(failure) => say!("selvedge: {failure}"),
        }
    }
}

fn report(
    options: &Record,
    launch: &Launch,
    output: &Output,
    profile: &Profile,
    summary: &Summary,
) {
    if options.quiet {
        return;
    }
    let rows = options.top.unwrap_or(
        if std::io::stderr().is_terminal() || options.command.is_empty() {
            10
        } else {
            0
        },
    );
    if rows > 0 && summary.samples() > 0 {
        match crate::top::table(profile, rows) {
            Ok(table) => say!("{table}"),
            Err(failure) => say!("selvedge: {failure}"),
        }
    }
    let engines: Vec<&str> = summary
        .engines()
        .into_iter()
        .map(selvedge_profile::Engine::name)
        .collect();
    say!(
        "selvedge: {} samples cover {:.2} of {:.2} CPU seconds ({:.1} Hz of {} asked, {} engine)",
        summary.samples(),
        summary.recorded() as f64 / 1e9,
        summary.cpu() as f64 / 1e9,
        summary.rate(),
        options.frequency,
        engines.join("+"),
    );
    for remark in summary.remarks() {
        say!("selvedge: {remark}");
    }
    if summary.images.is_empty() {
        say!(
            "selvedge: the agent did not start in {}: {}",
            launch.name,
            launch.why_not()
        );
    }
    if let Some(path) = output.path() {
        let page = shown(path);
        say!(
            "selvedge: wrote {page}  (selvedge top {page}; selvedge flamegraph {page}; go tool pprof -http=: {page})"
        );
    }
}
