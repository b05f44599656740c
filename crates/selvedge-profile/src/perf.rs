//! The `perf` engine: a `perf_event` task clock per thread, opened by the reader, so the target has no descriptor of ours.
//!
//! # Safety
//!
//! This file is `unsafe` because it makes system calls that take structures.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct perf_event_attr`, its first version (`PERF_ATTR_SIZE_VER0`): all that a software clock needs.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_TASK_CLOCK: u64 = 1;
const PERF_SAMPLE_IP: u64 = 1;
const DISABLED: u64 = 1;
const EXCLUDE_KERNEL: u64 = 1 << 5;
/// The event ends with the program image (Linux 5.13): its signal must not meet the next one without a handler.
const REMOVE_ON_EXEC: u64 = 1 << 36;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

/// A thread: its id, and the claim of its record, since ids come again.
pub(crate) type ThreadClaim = (u32, u32);

/// The events of a session, by thread; `None` where the kernel refused one.
#[derive(Debug, Default)]
pub(crate) struct Events {
    open: HashMap<ThreadClaim, Option<OwnedFd>>,
    /// Whether the kernel shows us no time in the kernel (`perf_event_paranoid` above 1).
    pub(crate) user_only: bool,
}

impl Events {
    /// Whether a thread has an event, or was refused one.
    pub(crate) fn has(&self, thread: ThreadClaim) -> bool {
        self.open.contains_key(&thread)
    }

    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Opens an event for a thread that signals that thread every `period` nanoseconds of its CPU time.
    pub(crate) fn add(&mut self, thread: ThreadClaim, period: u64, signal: i32) -> io::Result<()> {
        let (tid, _) = thread;
        let opened = open(tid, period, signal, 0).or_else(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => {
                let opened = open(tid, period, signal, EXCLUDE_KERNEL)?;
                self.user_only = true;
                Ok(opened)
            }
            _ => Err(error),
        });
        let (event, result) = match opened {
            Ok(event) => (Some(event), Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.open.insert(thread, event);
        result
    }

    /// Closes the events of threads that are not among these.
    pub(crate) fn keep(&mut self, alive: &HashSet<ThreadClaim>) {
        self.open.retain(|thread, _| alive.contains(thread));
    }

    /// Closes all.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }
}

/// Whether this kernel lets this user open such an event, for itself.
///
/// # Errors
///
/// The kernel's refusal.
pub fn permitted() -> io::Result<()> {
    let period = 1_000_000_000;
    open(0, period, 0, 0)
        .or_else(|_| open(0, period, 0, EXCLUDE_KERNEL))
        .map(|_| ())
}

fn open(tid: u32, period: u64, signal: i32, flags: u64) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<Attributes>() as u32,
        config: PERF_COUNT_SW_TASK_CLOCK,
        sample_period: period,
        sample_type: PERF_SAMPLE_IP,
        flags: DISABLED | REMOVE_ON_EXEC | flags,
        wakeup_events: 1,
        ..Attributes::default()
    };
    let cpu: libc::c_int = -1;
    let group: libc::c_int = -1;
    // SAFETY: the kernel reads `size` bytes of attributes, which are all of them.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            tid,
            cpu,
            group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let descriptor =
        libc::c_int::try_from(descriptor).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nothing else.
    let event = unsafe { OwnedFd::from_raw_fd(descriptor) };
    if signal == 0 {
        return Ok(event);
    }
    let owner = [F_OWNER_TID, tid.cast_signed()];
    // SAFETY: an integer argument.
    check(unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, libc::O_ASYNC) })?;
    // SAFETY: an integer argument.
    check(unsafe { libc::fcntl(event.as_raw_fd(), F_SETSIG, signal) })?;
    // SAFETY: the kernel reads an `f_owner_ex` (two integers) from `owner`.
    check(unsafe { libc::fcntl(event.as_raw_fd(), F_SETOWN_EX, owner.as_ptr()) })?;
    // SAFETY: an integer argument.
    check(unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_ENABLE, 0) })?;
    Ok(event)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
