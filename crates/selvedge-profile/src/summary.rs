//! What a session recorded, in numbers: nothing is lost without being counted here.

use selvedge_sample::region::{Engine, LOSSES, Loss};
use std::time::Duration;

/// Nanoseconds by which samples may exceed the clocks before it is worth a remark.
const SURPLUS_ALLOWED: u64 = 20_000_000;
/// What a program loses by the itimer engine.
pub const ITIMER_TAKEN: &str = "the itimer engine takes ITIMER_PROF: a program that sets that timer itself gets no signals from it";
/// Outsiders that are named one by one.
const OUTSIDERS_NAMED: usize = 3;

/// Facts about one program image.
#[derive(Clone, Debug)]
pub struct ImageFacts {
    /// Its number in the session.
    pub serial: u32,
    /// Process id.
    pub pid: u32,
    /// Name of the process.
    pub name: String,
    /// Command line, arguments separated by spaces.
    pub command: String,
    /// Engine in use.
    pub engine: Option<Engine>,
    /// Error number of the first timer or event that the kernel refused; 0 for none.
    pub engine_error: i32,
    /// Whether the program handles the profiling signal too.
    pub signal_shared: bool,
    /// Whether the program entered a sandbox (seccomp), which ended its sampling.
    pub sandboxed: bool,
    /// Threads that were profiled.
    pub threads: u32,
    /// Threads that found no room.
    pub threads_refused: u32,
    /// Nanoseconds of CPU time of the process while it was followed.
    pub cpu: u64,
    /// Signals that reached the handler.
    pub delivered: u64,
    /// Samples recorded.
    pub samples: u64,
    /// Nanoseconds that they stand for.
    pub recorded: u64,
    /// Nanoseconds during which threads blocked the signal.
    pub blocked: u64,
    /// Nanoseconds of threads after their last sample, as far as they told.
    pub unsampled_threads: u64,
    /// Samples and nanoseconds lost, by [`Loss`].
    pub lost: [(u64, u64); LOSSES],
}

impl ImageFacts {
    /// Nanoseconds in no sample: threads after their last one, or never sampled; start and end of the process.
    #[must_use]
    pub fn unsampled(&self) -> u64 {
        self.cpu.saturating_sub(self.accounted())
    }

    /// Nanoseconds that the process's own clock does not show. A little is usual: threads go on while the clock is read.
    #[must_use]
    pub fn surplus(&self) -> u64 {
        self.accounted().saturating_sub(self.cpu)
    }

    fn accounted(&self) -> u64 {
        let lost: u64 = self.lost.iter().map(|(_, nanos)| nanos).sum();
        self.recorded + self.blocked + lost
    }
}

/// Numbers of a whole session.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Program images, in the order in which they came.
    pub images: Vec<ImageFacts>,
    /// Nanoseconds of CPU time between samples, as asked.
    pub period: u64,
    /// Engine asked for.
    pub engine: Engine,
    /// Nanoseconds between two ticks of the kernel.
    pub tick: u64,
    /// How long was recorded.
    pub duration: Duration,
    /// Whether time inside the kernel could not be seen.
    pub user_only: bool,
    /// Words found in rings that were no records (a target wrote over shared memory).
    pub damaged_words: u64,
    /// Processes that found no room.
    pub processes_refused: u32,
    /// Processes in other namespaces of process ids.
    pub elsewhere: u32,
    /// Whether targets ended the recording, since the recorder had not looked at them for a minute.
    pub abandoned: bool,
    /// Name and process id of programs that cannot take the agent, in processes that were recorded until then.
    pub outsiders: Vec<String>,
}

impl Summary {
    fn sum(&self, part: impl Fn(&ImageFacts) -> u64) -> u64 {
        self.images.iter().map(part).sum()
    }

    /// Samples recorded.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.sum(|image| image.samples)
    }

    /// Nanoseconds of CPU time that samples stand for.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.sum(|image| image.recorded)
    }

    /// Nanoseconds of CPU time of all processes.
    #[must_use]
    pub fn cpu(&self) -> u64 {
        self.sum(|image| image.cpu)
    }

    /// Nanoseconds in no sample.
    #[must_use]
    pub fn unsampled(&self) -> u64 {
        self.sum(ImageFacts::unsampled)
    }

    /// Nanoseconds during which threads blocked the signal.
    #[must_use]
    pub fn blocked(&self) -> u64 {
        self.sum(|image| image.blocked)
    }

    /// Samples and nanoseconds lost for one cause.
    #[must_use]
    pub fn lost(&self, cause: Loss) -> (u64, u64) {
        self.images
            .iter()
            .map(|image| image.lost[cause as usize])
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    /// Samples per second of CPU time, as achieved.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let cpu = self.cpu();
        if cpu == 0 {
            0.0
        } else {
            self.samples() as f64 * 1e9 / cpu as f64
        }
    }

    /// Samples per second of CPU time, as asked.
    #[must_use]
    pub fn asked_rate(&self) -> f64 {
        // The period is a whole number, so many rates have the same: the roundest of them was asked.
        let period = self.period.max(1) as f64;
        let rate = 1e9 / period;
        [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
            .into_iter()
            .map(|parts| (rate * parts).round() / parts)
            .find(|round| (1e9 / round).round() == period)
            .unwrap_or(rate)
    }

    /// The engines that were really in use.
    #[must_use]
    pub fn engines(&self) -> Vec<Engine> {
        let mut engines: Vec<Engine> = self
            .images
            .iter()
            .filter_map(|image| image.engine)
            .collect();
        engines.sort_by_key(|engine| *engine as u32);
        engines.dedup();
        if engines.is_empty() {
            vec![self.engine]
        } else {
            engines
        }
    }

    /// One line per thing that a user should know, starting with what is missing.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for cause in Loss::ALL {
            let (count, nanos) = self.lost(cause);
            if count > 0 {
                remarks.push(format!(
                    "lost ({}): {count} samples, {:.3} CPU seconds",
                    cause.name(),
                    nanos as f64 / 1e9
                ));
            }
        }
        if self.blocked() > 0 {
            remarks.push(format!(
                "signal blocked by the program for {:.3} CPU seconds",
                self.blocked() as f64 / 1e9
            ));
        }
        let surplus = self.sum(ImageFacts::surplus);
        if surplus > SURPLUS_ALLOWED.max(self.cpu() / 100) {
            remarks.push(format!(
                "{:.3} CPU seconds more in samples than the processes' clocks show: a defect of selvedge, please report it",
                surplus as f64 / 1e9
            ));
        }
        if self.elsewhere > 0 {
            remarks.push(format!(
                "{} processes are in another namespace of process ids: there, only threads that the agent saw begin are sampled, by the timer and itimer engines, and CPU time is what they told",
                self.elsewhere
            ));
        }
        if let Some(image) = self.images.iter().find(|image| image.sandboxed) {
            remarks.push(format!(
                "{} entered a sandbox (seccomp), which may forbid what sampling needs: not sampled from then on",
                image.name
            ));
        }
        if self.abandoned {
            remarks.push(
                "the recorder was stopped for more than a minute: what was recorded ends there"
                    .into(),
            );
        }
        for outsider in self.outsiders.iter().take(OUTSIDERS_NAMED) {
            remarks.push(format!(
                "{outsider} took the place of a recorded program and cannot take the agent (static, setuid, another user's, or of another C library): its time is not in this profile"
            ));
        }
        if let Some(more @ 1..) = self.outsiders.len().checked_sub(OUTSIDERS_NAMED) {
            remarks.push(format!("so did {more} more programs"));
        }
        if self.damaged_words > 0 {
            remarks.push(format!(
                "{} words of the rings were overwritten by a target",
                self.damaged_words
            ));
        }
        if self.processes_refused > 0 {
            remarks.push(format!(
                "{} processes were not profiled: too many at a time",
                self.processes_refused
            ));
        }
        let refused: u32 = self.images.iter().map(|image| image.threads_refused).sum();
        if refused > 0 {
            remarks.push(format!(
                "{refused} threads were not sampled: too many at a time"
            ));
        }
        if let Some(image) = self.images.iter().find(|image| image.engine_error != 0) {
            let why = std::io::Error::from_raw_os_error(image.engine_error);
            let what = match image.engine_error {
                libc::EMFILE | libc::ENFILE => "raise `ulimit -n`",
                libc::EAGAIN => "raise `ulimit -i`",
                _ => "see `selvedge doctor`",
            };
            remarks.push(format!(
                "the {} engine was refused in {} ({why}); {what}",
                self.engine.name(),
                image.name
            ));
        }
        if self.engine != Engine::Itimer && self.engines().contains(&Engine::Itimer) {
            remarks.push(ITIMER_TAKEN.into());
        }
        if self.user_only {
            remarks.push(
                "perf_event_paranoid hides the time inside the kernel from the perf engine; --engine timer sees it".into(),
            );
        }
        if let Some(image) = self.images.iter().find(|image| image.signal_shared) {
            remarks.push(format!(
                "{} has a handler for the profiling signal: it was called for the program's own signals, as ever, and not for samples",
                image.name
            ));
        }
        if self.period < self.tick && self.engines().contains(&Engine::Timer) {
            remarks.push(format!(
                "the kernel ticks {} times a second: more samples need --engine perf (weights are exact all the same)",
                1_000_000_000 / self.tick.max(1)
            ));
        }
        remarks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_shown_as_they_were_asked() {
        for asked in [
            1.0, 99.0, 99.5, 250.0, 999.0, 4000.0, 12.25, 33_333.0, 48_000.0,
        ] {
            let summary = Summary {
                images: Vec::new(),
                period: crate::period_of(asked).unwrap(),
                engine: Engine::Timer,
                tick: 0,
                duration: Duration::ZERO,
                user_only: false,
                damaged_words: 0,
                processes_refused: 0,
                elsewhere: 0,
                abandoned: false,
                outsiders: Vec::new(),
            };
            assert_eq!(summary.asked_rate(), asked);
        }
    }
}
