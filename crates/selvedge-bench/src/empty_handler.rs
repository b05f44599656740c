//! The least that a signal per period costs: a `perf_event` task clock whose signals go to a handler that does nothing.
//!
//! # Safety
//!
//! This file is `unsafe` because it installs a signal handler and makes system calls that take structures.
#![allow(unsafe_code)]

use crate::burn::Burn;
use clap::Args;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

/// The burner, interrupted by signals that do nothing.
#[derive(Clone, Debug, Args)]
pub(crate) struct Interrupted {
    /// Signals per second of CPU time
    #[arg(long)]
    hz: u32,
    #[command(flatten)]
    burn: Burn,
}

/// `struct perf_event_attr`, its first version.
#[repr(C)]
#[derive(Default)]
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
const EXCLUDE_KERNEL: u64 = 1 << 5;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

/// Signals per second: `Burn::run` takes a plain function. Written before any thread starts.
static HZ: AtomicU32 = AtomicU32::new(0);

extern "C" fn nothing(_signal: libc::c_int) {}

impl Interrupted {
    /// Works, interrupted.
    pub(crate) fn run(&self) -> io::Result<()> {
        // Relaxed: starting a thread orders it.
        HZ.store(self.hz.max(1), Ordering::Relaxed);
        // SAFETY: all zeros are a valid `sigaction`: no flags, nothing blocked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the system reads `action`; the handler does nothing, which is safe at any moment.
        check(unsafe { libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut()) })?;
        // A refusal shows before the work: a burner that is not interrupted would look like a cheap one.
        drop(arm()?);
        self.burn.run(arm);
        Ok(())
    }
}

/// Opens an event for the calling thread that signals it, until dropped.
fn arm() -> io::Result<OwnedFd> {
    let opened = open(0).or_else(|error| match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => open(EXCLUDE_KERNEL),
        _ => Err(error),
    })?;
    // SAFETY: takes no argument, and cannot fail.
    let tid = unsafe { libc::gettid() };
    let owner = [F_OWNER_TID, tid];
    // SAFETY: an integer argument.
    check(unsafe { libc::fcntl(opened.as_raw_fd(), F_SETSIG, libc::SIGPROF) })?;
    // SAFETY: the kernel reads an `f_owner_ex` (two integers) from `owner`.
    check(unsafe { libc::fcntl(opened.as_raw_fd(), F_SETOWN_EX, owner.as_ptr()) })?;
    // SAFETY: an integer argument.
    check(unsafe { libc::fcntl(opened.as_raw_fd(), libc::F_SETFL, libc::O_ASYNC) })?;
    Ok(opened)
}

fn open(flags: u64) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<Attributes>() as u32,
        config: PERF_COUNT_SW_TASK_CLOCK,
        sample_period: 1_000_000_000 / u64::from(HZ.load(Ordering::Relaxed)),
        sample_type: PERF_SAMPLE_IP,
        flags,
        wakeup_events: 1,
        ..Attributes::default()
    };
    let (tid, cpu, group): (libc::c_int, libc::c_int, libc::c_int) = (0, -1, -1);
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
    check(descriptor)?;
    // SAFETY: just opened, owned by nothing else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
