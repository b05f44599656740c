//! Signals to the recorder, as events; children that have ended.
//!
//! # Safety
//!
//! This file is `unsafe` because it makes system calls that take structures.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time passed.
    Nothing,
    /// A child may have ended.
    Child,
    /// A snapshot is wanted.
    Snapshot,
    /// Ctrl-C, or a SIGINT that somebody sent.
    Interrupt {
        /// From the terminal: CMD got it as well.
        from_terminal: bool,
    },
    /// A signal that is for CMD.
    Forward(i32),
}

/// Signals, blocked and read from a descriptor. Threads started later inherit the mask; CMD gets the one from before.
pub(crate) struct Signals {
    descriptor: OwnedFd,
    before: libc::sigset_t,
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals")
            .field("descriptor", &self.descriptor)
            .finish_non_exhaustive()
    }
}

/// Signals that are handed on to CMD.
const FORWARDED: [i32; 6] = [
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGALRM,
    libc::SIGCONT,
];

impl Signals {
    pub(crate) fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: fills the set.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for signal in FORWARDED
            .into_iter()
            .chain([libc::SIGCHLD, libc::SIGINT, libc::SIGUSR2])
        {
            // SAFETY: the set is filled; the signal is a valid one.
            unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
        }
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: reads one set, which is filled, and fills the other.
        let blocked =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: reads the set, which is filled.
        let descriptor =
            unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: just opened, owned by nothing else.
            descriptor: unsafe { OwnedFd::from_raw_fd(descriptor) },
            // SAFETY: filled, since the call succeeded.
            before: unsafe { before.assume_init() },
        })
    }

    /// Makes a program start with the signal mask that was there before: it would inherit ours.
    pub(crate) fn unblock_in(&self, command: &mut Command) {
        let before = self.before;
        let unblock = move || {
            // SAFETY: reads the set, which is filled.
            let result = unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut())
            };
            match result {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        };
        // SAFETY: makes a system call only.
        unsafe { command.pre_exec(unblock) };
    }

    /// The next event, waiting for it at most `pause`.
    pub(crate) fn next(&self, pause: Duration) -> io::Result<Event> {
        let millis = i32::try_from(pause.as_millis().max(1)).unwrap_or(i32::MAX);
        let mut poll = libc::pollfd {
            fd: self.descriptor.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure.
        if unsafe { libc::poll(&raw mut poll, 1, millis) } <= 0 {
            return Ok(Event::Nothing);
        }
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel writes at most `size` bytes.
        let read =
            unsafe { libc::read(self.descriptor.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if read.unsigned_abs() != size {
            return Ok(Event::Nothing);
        }
        // SAFETY: filled, since all bytes were read.
        let info = unsafe { info.assume_init() };
        Ok(match info.ssi_signo.cast_signed() {
            libc::SIGCHLD => Event::Child,
            libc::SIGUSR2 => Event::Snapshot,
            // The terminal's signals come from the kernel.
            libc::SIGINT => Event::Interrupt {
                from_terminal: info.ssi_code == libc::SI_KERNEL,
            },
            libc::SIGQUIT if info.ssi_code == libc::SI_KERNEL => Event::Nothing,
            signal => Event::Forward(signal),
        })
    }
}

/// A child that has ended and still has its process id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndedChild {
    pub(crate) pid: i32,
    pub(crate) status: i32,
    pub(crate) signal: Option<i32>,
}

/// A child that has ended, if there is one.
pub(crate) fn ended_child() -> io::Result<Option<EndedChild>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the kernel fills the structure.
    if unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags) } != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ECHILD) {
            Ok(None)
        } else {
            Err(error)
        };
    }
    // SAFETY: zeroed before, filled by the kernel.
    let info = unsafe { info.assume_init() };
    // SAFETY: zero where no child has ended, else set by `waitid`.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: set by `waitid`.
    let status = unsafe { info.si_status() };
    let signal = (info.si_code != libc::CLD_EXITED).then_some(status);
    Ok(Some(EndedChild {
        pid,
        status,
        signal,
    }))
}

/// Lets an ended child go.
pub(crate) fn reap(pid: i32) {
    // SAFETY: no status is asked for.
    let _ = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}

/// Sends a signal to a process.
pub(crate) fn send(pid: i32, signal: i32) {
    // SAFETY: takes no pointers; the process is our child, not yet reaped.
    let _ = unsafe { libc::kill(pid, signal) };
}
