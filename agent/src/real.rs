//! The functions that the agent's hooks stand in front of, and a few others of the C library.
//!
//! All are looked up when the agent starts: a look-up takes the loader's lock, which nobody releases any more in the
//! child of a `fork` of a thread while another one held it.
//!
//! # Safety
//!
//! This file is `unsafe` because it reads the program's environment pointer and calls functions found by name.
#![allow(unsafe_code)]

use crate::object;
use crate::text::{Kept, Strings};
use core::arch::asm;
use core::ffi::c_int;
use core::sync::atomic::{AtomicUsize, Ordering};

/// A function that comes after the agent in the order in which the loader searches.
#[derive(Debug)]
pub(crate) struct Real {
    name: &'static str,
    /// Its address; [`UNKNOWN`] or [`ABSENT`]. Relaxed everywhere: an address is all there is to know, and two threads
    /// that look it up find the same.
    address: AtomicUsize,
}

const UNKNOWN: usize = 0;
const ABSENT: usize = 1;

impl Real {
    /// Where the address is in a `Real`, for assembly.
    pub(crate) const ADDRESS: usize = core::mem::offset_of!(Self, address);

    const fn new(name: &'static str) -> Self {
        Self {
            name,
            address: AtomicUsize::new(UNKNOWN),
        }
    }

    /// The function's address, if the program has it.
    pub(crate) fn address(&self) -> Option<usize> {
        match self.address.load(Ordering::Relaxed) {
            UNKNOWN => self.look_up(),
            ABSENT => None,
            address => Some(address),
        }
    }

    /// As [`address`](Self::address), for functions that may come later, with a library that is opened.
    pub(crate) fn address_now(&self) -> Option<usize> {
        self.address().or_else(|| self.look_up())
    }

    fn look_up(&self) -> Option<usize> {
        let mut found = None;
        let mut behind_agent = false;
        object::each(|object| {
            if behind_agent {
                found = object.function(self.name.as_bytes());
            }
            behind_agent |= object.is_agent;
            found.is_none()
        });
        self.address
            .store(found.unwrap_or(ABSENT), Ordering::Relaxed);
        found
    }
}

pub(crate) static PTHREAD_CREATE: Real = Real::new("pthread_create");
pub(crate) static PTHREAD_KEY_CREATE: Real = Real::new("pthread_key_create");
pub(crate) static PTHREAD_SETSPECIFIC: Real = Real::new("pthread_setspecific");
pub(crate) static REGISTER_ATFORK: Real = Real::new("__register_atfork");
pub(crate) static ERRNO_LOCATION: Real = Real::new("__errno_location");
pub(crate) static EXECVE: Real = Real::new("execve");
pub(crate) static EXECVPE: Real = Real::new("execvpe");
pub(crate) static FEXECVE: Real = Real::new("fexecve");
pub(crate) static EXECVEAT: Real = Real::new("execveat");
pub(crate) static POSIX_SPAWN: Real = Real::new("posix_spawn");
pub(crate) static POSIX_SPAWNP: Real = Real::new("posix_spawnp");
pub(crate) static SIGACTION: Real = Real::new("sigaction");
pub(crate) static SIGNAL: Real = Real::new("signal");
pub(crate) static SYSV_SIGNAL: Real = Real::new("__sysv_signal");
pub(crate) static SIGSET: Real = Real::new("sigset");
pub(crate) static SIGIGNORE: Real = Real::new("sigignore");
pub(crate) static SIGINTERRUPT: Real = Real::new("siginterrupt");
pub(crate) static EXIT: Real = Real::new("_exit");
pub(crate) static EXIT_OF_C: Real = Real::new("_Exit");
pub(crate) static QUICK_EXIT: Real = Real::new("quick_exit");
pub(crate) static SIGWAIT: Real = Real::new("sigwait");
pub(crate) static SIGWAITINFO: Real = Real::new("sigwaitinfo");
pub(crate) static SIGTIMEDWAIT: Real = Real::new("sigtimedwait");
pub(crate) static FORK: Real = Real::new("_Fork");
pub(crate) static MLOCKALL: Real = Real::new("mlockall");
pub(crate) static PRCTL: Real = Real::new("prctl");
pub(crate) static SYSCALL: Real = Real::new("syscall");

/// Whether the program's C library is glibc, wherever in the loader's order it is.
pub(crate) fn is_glibc() -> bool {
    let mut found = false;
    object::each(|object| {
        found = object.function(b"gnu_get_libc_version").is_some();
        !found
    });
    found
}

/// Looks all of them up.
pub(crate) fn look_up_all() {
    for real in [
        &PTHREAD_CREATE,
        &PTHREAD_KEY_CREATE,
        &PTHREAD_SETSPECIFIC,
        &REGISTER_ATFORK,
        &ERRNO_LOCATION,
        &EXECVE,
        &EXECVPE,
        &FEXECVE,
        &EXECVEAT,
        &POSIX_SPAWN,
        &POSIX_SPAWNP,
        &SIGACTION,
        &SIGNAL,
        &SYSV_SIGNAL,
        &SIGSET,
        &SIGIGNORE,
        &SIGINTERRUPT,
        &EXIT,
        &EXIT_OF_C,
        &QUICK_EXIT,
        &SIGWAIT,
        &SIGWAITINFO,
        &SIGTIMEDWAIT,
        &FORK,
        &MLOCKALL,
        &PRCTL,
        &SYSCALL,
    ] {
        let _ = real.address();
    }
}

/// The agent's own path, as the loader was given it; not kept unless it is absolute.
pub(crate) static AGENT: Kept = Kept::new();

/// An address inside the agent.
pub(crate) fn address_of_agent() -> usize {
    (&raw const AGENT).addr()
}

/// Finds and keeps the agent's own path.
///
/// # Safety
///
/// Called once, when the agent starts.
pub(crate) unsafe fn keep_own_path() {
    object::each(|object| {
        if object.is_agent && object.path.starts_with(b"/") {
            // SAFETY: called once.
            unsafe { AGENT.set(object.path) };
        }
        !object.is_agent
    });
}

/// The program's `environ`, now.
pub(crate) fn environment() -> Strings {
    let address: *const Strings;
    // Weak, so that a program without it starts nevertheless.
    // SAFETY: loads an entry of the global offset table, which the loader has filled in.
    unsafe {
        asm!(
            ".weak environ",
            "mov {}, qword ptr [rip + environ@GOTPCREL]",
            out(reg) address,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    if address.is_null() {
        return core::ptr::null();
    }
    // SAFETY: the C library's variable. A program that changes it while another thread calls `exec` has a race of its own.
    unsafe { address.read() }
}

/// No such function (include/uapi/asm-generic/errno.h).
pub(crate) const ENOSYS: c_int = 38;
/// Try again.
pub(crate) const EAGAIN: c_int = 11;

/// Where the calling thread's `errno` is.
fn errno() -> Option<*mut c_int> {
    let address = ERRNO_LOCATION.address()?;
    // SAFETY: the C library's function of this name has this type.
    let location =
        unsafe { core::mem::transmute::<usize, unsafe extern "C" fn() -> *mut c_int>(address) };
    // SAFETY: takes nothing.
    Some(unsafe { location() })
}

/// The error number of a function of the C library that has just failed.
pub(crate) fn error() -> c_int {
    // SAFETY: this thread's `errno`.
    errno().map_or(ENOSYS, |errno| unsafe { errno.read() })
}

/// Sets the program's `errno` and gives back -1, for a function that the program turns out not to have.
pub(crate) fn fail(error: c_int) -> c_int {
    if let Some(errno) = errno() {
        // SAFETY: this thread's `errno`.
        unsafe { errno.write(error) };
    }
    -1
}
