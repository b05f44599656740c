//! The action of the profiling signal: the kernel's is ours, and the program's own is kept beside it.
//!
//! # Safety
//!
//! This file is `unsafe` because it installs a signal handler and calls the program's own.
#![allow(unsafe_code)]

use crate::handler::code;
use crate::system::{self, Mask, SignalAction};
use crate::target;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU64, Ordering};
use selvedge_arch::{Interrupted, SignalInfo};

/// The default action (include/uapi/asm-generic/signal-defs.h).
pub const SIG_DFL: usize = 0;
/// To be ignored.
pub const SIG_IGN: usize = 1;

/// Behind the session's name in a program's environment: the profiling signal is ignored, and not only by a recorded
/// program that became this one. From the outside both look alike.
pub const IGNORED_MARK: &str = ":ignored";

/// Address of the program's own handler for the profiling signal: see [`set_program_action`].
static PROGRAM_HANDLER: AtomicU64 = AtomicU64::new(0);
/// Its mask.
static PROGRAM_MASK: AtomicU64 = AtomicU64::new(0);

/// Installs the handler of a session's signal. Gives back the action that was there.
///
/// All signals are blocked in the handler: it is never interrupted, so it never re-enters, and nothing can jump out of
/// it. It runs on the thread's alternate stack where it has one (`SA_ONSTACK`), and interrupted system calls go on
/// (`SA_RESTART`).
///
/// # Errors
///
/// The kernel's error number.
pub fn install(signal: u32) -> Result<SignalAction, i32> {
    const SA_SIGINFO: usize = 4;
    const SA_RESTORER: usize = 0x0400_0000;
    const SA_ONSTACK: usize = 0x0800_0000;
    const SA_RESTART: usize = 0x1000_0000;
    let action = SignalAction {
        handler: crate::handler::entry as *const () as usize,
        flags: SA_SIGINFO | SA_RESTORER | SA_ONSTACK | SA_RESTART,
        restorer: selvedge_arch::signal_return(),
        mask: u64::MAX,
    };
    // SAFETY: `entry` is written to run at any instruction of any thread: see `handler`.
    unsafe { system::sigaction(signal, Some(&action)) }
}

/// Sets what happens to signals of the profiling number that are not ours: the program's own action.
pub fn set_program_action(handler: usize, mask: u64) {
    PROGRAM_MASK.store(mask, Ordering::Relaxed);
    PROGRAM_HANDLER.store(handler as u64, Ordering::Release);
    if let Some(session) = target::session() {
        session
            .process
            .signal_shared
            .store(u32::from(handler > 1), Ordering::Relaxed);
    }
}

/// The program's own handler and mask.
#[must_use]
pub fn program_action() -> (usize, u64) {
    (
        PROGRAM_HANDLER.load(Ordering::Acquire) as usize,
        PROGRAM_MASK.load(Ordering::Relaxed),
    )
}

/// Does with a signal that is not ours what the program asked for.
pub(crate) fn pass_on(signal: c_int, info: *const c_void, context: *const c_void) {
    let (handler, mask) = program_action();
    match handler {
        // Ignored; or the default action of the profiling signal, which ends the process.
        1 => {}
        0 => {
            // A late signal, after the end of a session, must not kill; nor one of our own kind (another session's timer,
            // `ITIMER_PROF` after a stop).
            if target::session().is_none() {
                return;
            }
            // SAFETY: `info` is the kernel's, live here.
            let sent = unsafe { SignalInfo::new(info) }.code();
            if sent == code::SI_KERNEL
                || sent == code::SI_TIMER
                || code::POLL.contains(&sent)
                || sent == code::SI_QUEUE
            {
                return;
            }
            let default = SignalAction::default();
            // SAFETY: the default action runs no code.
            let _ = unsafe { system::sigaction(signal.cast_unsigned(), Some(&default)) };
            system::tgkill(system::getpid(), system::gettid(), signal.cast_unsigned());
        }
        handler => {
            // SAFETY: `interrupted` is used before this returns.
            let interrupted = unsafe { Interrupted::new(context) };
            let own = 1_u64 << (signal.cast_unsigned().wrapping_sub(1));
            let before = system::sigprocmask(Mask::Set, interrupted.mask() | mask | own);
            // SAFETY: the program gave this address to `sigaction` as a handler; three arguments suit both forms, since
            // the one-argument form ignores the registers of the others.
            let handler: extern "C" fn(c_int, *const c_void, *const c_void) =
                unsafe { core::mem::transmute(handler) };
            handler(signal, info, context);
            system::sigprocmask(Mask::Set, before);
        }
    }
}
