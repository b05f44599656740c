//! Standard output for data, standard error for words. Either may be full, closed or a broken pipe.

use crate::failure::{Failure, Result, shown};
use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Prints a line for people, as `eprintln!` does, but ignores errors.
macro_rules! say {
    ($($words:tt)*) => { $crate::streams::line(format_args!($($words)*)) };
}
pub(crate) use say;

/// Writes a line to standard error. If it cannot be written, nobody reads it: what CMD does and how it ends matter more.
/// Control characters, which names of programs and functions may have, are escaped.
pub(crate) fn line(words: fmt::Arguments<'_>) {
    let lines = words.to_string();
    let lines: Vec<String> = lines.split('\n').map(shown).collect();
    let _ = writeln!(io::stderr().lock(), "{}", lines.join("\n"));
}

/// Whether binary data would go to a terminal: it could change how that behaves, and nobody can read it.
pub(crate) fn refuse_terminal() -> Result<()> {
    if io::stdout().is_terminal() {
        return Err(Failure::usage(
            "cannot write a binary profile to a terminal; name a file, or send standard output elsewhere",
        ));
    }
    Ok(())
}

/// Writes data to standard output. A closed pipe is success: the reader has seen enough.
pub(crate) fn print(data: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::system("write standard output", error))
        }
        _ => Ok(()),
    }
}
