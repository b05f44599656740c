//! Starting the program: under the profiler, stopped before its first instruction, or as it is.
//!
//! The profiler starts this program again (see [`become_program`]), which waits until it is traced and then becomes the
//! program to be proved. So the profiler is used as anybody would use it, and is not traced itself.
//!
//! # Safety
//!
//! This file is `unsafe` because it asks the kernel not to randomize addresses.
#![allow(unsafe_code)]

use crate::arguments::Arguments;
use crate::mailbox::{self, Mailbox};
use crate::tracee::Tracee;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The first argument of the program that becomes the one to be proved.
pub const BECOME: &str = "__become";

/// Files of one proof, removed at its end.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes a folder.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn new() -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("selvedge-prover-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What is in a file of it, as text.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        let bytes = std::fs::read(self.file(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How a run of the program ended: its status as `waitpid` gives it, what it wrote, and to where.
#[derive(Debug, PartialEq, Eq)]
pub struct Ending {
    status: i32,
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Ending {
    /// Of the run whose output went to files with this name.
    #[must_use]
    pub fn new(scratch: &Scratch, name: &str, pid: u32, status: i32) -> Self {
        let read = |kind: &str| {
            let bytes = std::fs::read(scratch.file(&format!("{name}.{kind}")));
            without_number(&bytes.unwrap_or_default(), pid)
        };
        Self {
            status,
            output: read("out"),
            errors: read("err"),
        }
    }

    /// What is different in another run, in words.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self.status != other.status {
            let [one, other] = [self.status, other.status].map(std::process::ExitStatus::from_raw);
            return Some(format!("{other} with signals, {one} without"));
        }
        if self.output != other.output {
            return Some("its standard output is different".into());
        }
        (self.errors != other.errors).then(|| "its standard error is different".into())
    }
}

/// Replaces a process's number, which two runs never share.
fn without_number(bytes: &[u8], pid: u32) -> Vec<u8> {
    let digits = pid.to_string();
    let mut rest = bytes;
    let mut replaced = Vec::with_capacity(bytes.len());
    while let Some((&first, behind)) = rest.split_first() {
        match rest.strip_prefix(digits.as_bytes()) {
            Some(after) => {
                replaced.extend_from_slice(b"PID");
                rest = after;
            }
            None => {
                replaced.push(first);
                rest = behind;
            }
        }
    }
    replaced
}

/// Arguments that make this program become another.
fn becoming(
    scratch: &Scratch,
    name: &str,
    arguments: &Arguments,
    traced: bool,
) -> io::Result<Vec<OsString>> {
    let mut all: Vec<OsString> = vec![std::env::current_exe()?.into(), BECOME.into()];
    let nothing = PathBuf::from("/dev/null");
    let mailbox = if traced {
        scratch.file("mailbox")
    } else {
        PathBuf::new()
    };
    let preload = arguments
        .preload
        .clone()
        .filter(|_| traced)
        .unwrap_or_default();
    for path in [
        mailbox,
        preload,
        arguments.stdin.clone().unwrap_or(nothing),
        scratch.file(&format!("{name}.out")),
        scratch.file(&format!("{name}.err")),
    ] {
        all.push(path.into());
    }
    all.extend(arguments.command.iter().cloned());
    Ok(all)
}

/// Becomes the program that the arguments name, as [`start`] has made them.
///
/// # Errors
///
/// It cannot; it writes to where the program's standard error goes, too.
pub fn become_program(arguments: &[OsString]) -> io::Error {
    match try_to_become(arguments) {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

fn try_to_become(arguments: &[OsString]) -> io::Result<std::convert::Infallible> {
    let [mailbox, preload, input, output, errors, program, rest @ ..] = arguments else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // SAFETY: changes only how programs that this one becomes are laid out.
    unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) };
    let mut command = Command::new(program);
    command
        .args(rest)
        .stdin(File::open(input)?)
        .stdout(File::create(output)?)
        .stderr(File::create(errors)?);
    if !mailbox.is_empty() {
        if !Mailbox::open(Path::new(mailbox))?.ask_to_be_traced() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        command.env(mailbox::VARIABLE, mailbox);
    }
    if !preload.is_empty() {
        command.env("LD_PRELOAD", preload);
    }
    Err(command.exec())
}

/// Finds a program as a shell does.
///
/// # Errors
///
/// There is none of this name, or it is not executable.
pub fn find(program: &OsStr) -> io::Result<PathBuf> {
    let is_executable = |path: &PathBuf| {
        let facts = std::fs::metadata(path);
        facts.is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
    };
    let folders = match program.as_encoded_bytes().contains(&b'/') {
        true => OsString::from(""),
        false => std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into()),
    };
    std::env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(is_executable)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such program"))
}

/// Runs the program as it is.
///
/// # Errors
///
/// It cannot be run.
pub fn run_alone(scratch: &Scratch, arguments: &Arguments) -> io::Result<Ending> {
    let all = becoming(scratch, "alone", arguments, false)?;
    let (program, rest) = split(&all)?;
    let mut alone = Command::new(program).args(rest).spawn()?;
    let status = alone.wait()?;
    Ok(Ending::new(scratch, "alone", alone.id(), status.into_raw()))
}

fn split(all: &[OsString]) -> io::Result<(&OsStr, &[OsString])> {
    let (program, rest) = all.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((program, rest))
}

/// A program that is about to begin.
#[derive(Debug)]
pub struct Launched {
    /// It stops when it has become the program.
    pub tracee: Tracee,
    /// The process that was started: the profiler, or the program itself.
    pub first: Child,
    /// Where the profiler shows what it records.
    pub mailbox: Mailbox,
}

/// Starts the program under the profiler, or with the library that is proved instead.
///
/// # Errors
///
/// The profiler cannot be started, or the program not be traced.
pub fn start(scratch: &Scratch, arguments: &Arguments) -> io::Result<Launched> {
    let mailbox = Mailbox::create(&scratch.file("mailbox"))?;
    let mut all = becoming(scratch, "stepped", arguments, true)?;
    if arguments.preload.is_none() {
        let record: [OsString; 7] = [
            selvedge(arguments).into(),
            "record".into(),
            "--quiet".into(),
            // As few signals of its own as there can be.
            "--frequency=1".into(),
            "--output".into(),
            scratch.file("profile.pb.gz").into(),
            "--".into(),
        ];
        all.splice(0..0, record);
    }
    let (program, rest) = split(&all)?;
    let messages = File::create(scratch.file("messages"))?;
    let mut first = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(messages.try_clone()?)
        .stderr(messages)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
    let pid = loop {
        if let Some(pid) = mailbox.asks_to_be_traced() {
            break pid;
        }
        if let Some(status) = first.try_wait()? {
            let messages = scratch.text("messages");
            let message = messages
                .lines()
                .next_back()
                .unwrap_or("no message")
                .to_owned();
            return Err(io::Error::other(format!(
                "it ended with {status}: {message}"
            )));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let tracee = match Tracee::seize(pid) {
        Ok(tracee) => tracee,
        Err(error) => {
            // It waits to be traced: it ends, and the profiler with it.
            mailbox.give_up();
            let _ = first.wait();
            let advice =
                "is it traced already, or ptrace forbidden (/proc/sys/kernel/yama/ptrace_scope)?";
            return Err(io::Error::new(
                error.kind(),
                format!("cannot trace CMD: {error}; {advice}"),
            ));
        }
    };
    mailbox.let_go();
    Ok(Launched {
        tracee,
        first,
        mailbox,
    })
}

/// The `selvedge` to be proved.
fn selvedge(arguments: &Arguments) -> PathBuf {
    if let Some(path) = &arguments.selvedge {
        return path.clone();
    }
    std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name("selvedge"))
        .filter(|path| path.is_file())
        .unwrap_or_else(|| "selvedge".into())
}
