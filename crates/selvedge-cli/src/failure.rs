//! Failures of the command: one line that says what to do, and an exit status.

use crate::program::Obstacle;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A name for a message: what could change a terminal, or is no text, is escaped.
pub(crate) fn shown(name: impl AsRef<OsStr>) -> String {
    let mut text = String::new();
    for chunk in name.as_ref().as_bytes().utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() {
                text.extend(char.escape_default());
            } else {
                text.push(char);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

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

    pub(crate) fn not_found(program: &OsStr) -> Self {
        Self::new(127, format!("{}: command not found", shown(program)))
    }

    pub(crate) fn folder(program: &OsStr) -> Self {
        let words = format!("{}: is a folder; name a program", shown(program));
        Self::new(126, words)
    }

    /// The system does not find or run the program.
    pub(crate) fn cannot_run(program: &OsStr, error: &io::Error) -> Self {
        let status = if error.kind() == io::ErrorKind::NotFound {
            127
        } else {
            126
        };
        let words = format!("{}: cannot be run: {error}", shown(program));
        Self::new(status, words)
    }

    /// The program cannot be run, or the agent cannot be loaded into it.
    pub(crate) fn cannot_load(program: &OsStr, obstacle: &Obstacle) -> Self {
        let (status, what) = match obstacle {
            Obstacle::NoInterpreter(_) => (127, "run"),
            Obstacle::NotExecutable | Obstacle::InterpreterNotExecutable(_) => (126, "run"),
            _ => (2, "record"),
        };
        let (program, advice) = (shown(program), obstacle.advice());
        let words = format!("cannot {what} {program}: {obstacle}; {advice}");
        Self::new(status, words)
    }

    pub(crate) fn unwritable(path: &Path, error: io::Error, advice: &str) -> Self {
        Self::new(
            2,
            format!("cannot write {}: {error}; {advice}", shown(path)),
        )
    }

    pub(crate) fn unreadable(path: &Path, error: impl fmt::Display) -> Self {
        Self::new(2, format!("cannot read {}: {error}", shown(path)))
    }
}
