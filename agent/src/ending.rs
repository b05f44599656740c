//! The end of the process.
//!
//! # Safety
//!
//! This file is `unsafe` because it defines functions under the C library's names.
#![allow(unsafe_code)]

use crate::real::{self, Real};
use crate::{kernel, sandbox};
use core::ffi::c_int;
use selvedge_sample::system;
use selvedge_sample::target::{self, Session};

/// Run by `exit`, after the program's own exit handlers and destructors.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;

extern "C" fn at_exit() {
    leave();
}

/// This process's session. A child of `vfork` shares its parent's memory, but not the session found there. In a sandbox,
/// there is none any more.
pub(crate) fn own_session() -> Option<Session> {
    if sandbox::is_entered() {
        return None;
    }
    let session = target::session()?;
    // Relaxed: written before the session could be found.
    let owner = session
        .process
        .pid
        .load(core::sync::atomic::Ordering::Relaxed);
    (owner == system::getpid()).then_some(session)
}

fn leave() {
    if let Some(session) = own_session() {
        target::leave(session);
    }
}

/// Ends the process by the function that comes after ours: another preloaded library's, or the C library's.
fn end(real: &Real, status: c_int) -> ! {
    leave();
    if let Some(address) = real.address() {
        // SAFETY: functions of these names have this type.
        let end =
            unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(c_int) -> !>(address) };
        // SAFETY: the program's own call.
        unsafe { end(status) }
    }
    kernel::exit(status)
}

#[unsafe(no_mangle)]
extern "C" fn _exit(status: c_int) -> ! {
    end(&real::EXIT, status)
}

#[unsafe(no_mangle)]
extern "C" fn _Exit(status: c_int) -> ! {
    end(&real::EXIT_OF_C, status)
}

#[unsafe(no_mangle)]
extern "C" fn quick_exit(status: c_int) -> ! {
    end(&real::QUICK_EXIT, status)
}
