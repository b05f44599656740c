//! A line that says how the recording goes: on a terminal only.

use selvedge_profile::Running;
use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// The line.
#[derive(Debug)]
pub(crate) struct Progress {
    enabled: bool,
    started: Instant,
    shown: Cell<bool>,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let enabled = !quiet && std::io::stderr().is_terminal();
        Self {
            enabled,
            started: Instant::now(),
            shown: Cell::new(false),
        }
    }

    /// How long to wait between two looks.
    pub(crate) fn pause(&self) -> Duration {
        if self.enabled {
            Duration::from_millis(500)
        } else {
            Duration::from_secs(3600)
        }
    }

    /// Shows the line anew.
    pub(crate) fn show(&mut self, running: &Running) {
        let elapsed = self.started.elapsed().as_secs_f64();
        if !self.enabled || elapsed < 1.0 {
            return;
        }
        self.shown.set(true);
        let _ = write!(
            std::io::stderr(),
            "\r\x1b[Kselvedge: recording, {elapsed:.0} s, {} samples (Ctrl-C to stop)",
            running.samples()
        );
    }

    /// Takes the line away.
    pub(crate) fn clear(&self) {
        if self.shown.replace(false) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
