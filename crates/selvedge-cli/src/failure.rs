//! Failures of the command: one line that says what to do, and an exit status.

use crate::program::Obstacle;
use std::fmt;
use std::io;
use std::path::Path;

/// A failure.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    /// Exit status: 2 for our own, 126 and 127 as the shell's.
    pub(crate) status: u8,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    fn new(status: u8, message: String) -> Self {
        Self { message, status }
    }

    /// The command line cannot be used.
    pub(crate) fn usage(message: &str) -> Self {
        Self::new(2, message.into())
    }

    /// An error of one of our libraries.
    pub(crate) fn own(error: impl std::error::Error) -> Self {
        Self::new(2, error.to_string())
    }

    /// The system refused.
    pub(crate) fn system(what: &str, error: io::Error) -> Self {
        Self::new(2, format!("cannot {what}: {error}"))
    }

    /// No `/proc`, or one of another PID namespace.
    pub(crate) fn no_proc() -> Self {
        let message =
            "cannot record: /proc does not show this process; mount it (mount -t proc proc /proc)";
        Self::new(2, message.into())
    }

    pub(crate) fn not_found(name: &str) -> Self {
        Self::new(127, format!("{name}: command not found"))
    }

    pub(crate) fn not_executable(name: &str) -> Self {
        Self::new(
            126,
            format!("{name}: not executable; check its permissions"),
        )
    }

    pub(crate) fn cannot_run(name: &str, error: io::Error) -> Self {
        Self::new(126, format!("{name}: cannot be run: {error}"))
    }

    pub(crate) fn cannot_load(path: &Path, obstacle: &Obstacle) -> Self {
        Self::new(
            2,
            format!(
                "cannot record {}: {obstacle}; {}",
                path.display(),
                obstacle.advice()
            ),
        )
    }

    pub(crate) fn unwritable(path: &Path, error: io::Error, advice: &str) -> Self {
        Self::new(
            2,
            format!("cannot write {}: {error}; {advice}", path.display()),
        )
    }

    pub(crate) fn unreadable(path: &Path, error: impl fmt::Display) -> Self {
        Self::new(2, format!("cannot read {}: {error}", path.display()))
    }
}
