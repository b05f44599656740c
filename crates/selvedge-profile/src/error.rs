//! What can go wrong.

use std::fmt;
use std::io;

/// A profile could not be taken.
pub struct Error {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    AlreadyRunning,
    SignalTaken(i32),
    Setting(String),
    System {
        what: &'static str,
        source: io::Error,
    },
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn already_running() -> Self {
        Self {
            kind: Kind::AlreadyRunning,
        }
    }

    pub(crate) fn signal_taken(signal: i32) -> Self {
        Self {
            kind: Kind::SignalTaken(signal),
        }
    }

    pub(crate) fn setting(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Setting(message.into()),
        }
    }

    pub(crate) fn os(what: &'static str, source: io::Error) -> Self {
        Self {
            kind: Kind::System { what, source },
        }
    }

    pub(crate) fn last_os(what: &'static str) -> Self {
        Self::os(what, io::Error::last_os_error())
    }

    /// A profile is being taken in this process already.
    #[must_use]
    pub fn is_already_running(&self) -> bool {
        matches!(self.kind, Kind::AlreadyRunning)
    }

    /// The program has its own handler for the profiling signal.
    #[must_use]
    pub fn is_signal_taken(&self) -> bool {
        matches!(self.kind, Kind::SignalTaken(_))
    }

    /// A setting cannot be used.
    #[must_use]
    pub fn is_setting(&self) -> bool {
        matches!(self.kind, Kind::Setting(_))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::AlreadyRunning => {
                write!(
                    f,
                    "cannot start a profile: one is being taken in this process already; stop it first"
                )
            }
            Kind::SignalTaken(signal) => write!(
                f,
                "cannot start a profile: the program handles signal {signal} itself; choose another with the `signal` setting"
            ),
            Kind::Setting(message) => f.write_str(message),
            Kind::System { what, source } => write!(f, "cannot {what}: {source}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            Kind::System { source, .. } => Some(source),
            _ => None,
        }
    }
}
