//! The action of the profiling signal: the kernel's is ours, and the program's own is kept beside it.
//!
//! # Safety
//!
//! This file is `unsafe` because it installs a signal handler and calls the program's own.
#![allow(unsafe_code)]

use crate::handler::{Purpose, code, purpose};
use crate::system::{self, Mask, SignalAction};
use crate::target::{self, Session};
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

/// Interrupted system calls go on.
pub const SA_RESTART: usize = 0x1000_0000;
/// The action is the default one as soon as the handler is called.
pub const SA_RESETHAND: usize = 0x8000_0000;

/// Address of the program's own handler for the profiling signal: see [`set_program_action`].
static PROGRAM_HANDLER: AtomicU64 = AtomicU64::new(0);
/// Its mask.
static PROGRAM_MASK: AtomicU64 = AtomicU64::new(0);
/// Its flags.
static PROGRAM_FLAGS: AtomicU64 = AtomicU64::new(0);

/// What a program wants its signals to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgramAction {
    /// Address of the handler, or [`SIG_DFL`], or [`SIG_IGN`].
    pub handler: usize,
    /// Signals blocked meanwhile, signal 1 in bit 0.
    pub mask: u64,
    /// Flags of `sigaction`.
    pub flags: usize,
}

impl ProgramAction {
    /// Whether there is a handler.
    #[must_use]
    pub fn is_handled(&self) -> bool {
        self.handler > SIG_IGN
    }

    /// Whether system calls go on that the program's signals interrupt.
    #[must_use]
    pub fn restarts(&self) -> bool {
        !self.is_handled() || self.flags & SA_RESTART != 0
    }
}

/// Installs the handler of a session's signal. Gives back the action that was there.
///
/// All signals are blocked in the handler: it is never interrupted, so it never re-enters, and nothing can jump out of
/// it. It runs on the thread's alternate stack where it has one (`SA_ONSTACK`), and interrupted system calls go on
/// (`SA_RESTART`), unless the program has a handler of its own that is to interrupt them: whose signal it is, the kernel
/// does not know when it decides. Install it anew after such a change.
///
/// # Errors
///
/// The kernel's error number.
pub fn install(signal: u32) -> Result<SignalAction, i32> {
    const SA_SIGINFO: usize = 4;
    const SA_RESTORER: usize = 0x0400_0000;
    const SA_ONSTACK: usize = 0x0800_0000;
    let restart = if program_action().restarts() {
        SA_RESTART
    } else {
        0
    };
    let action = SignalAction {
        handler: crate::handler::entry as *const () as usize,
        flags: SA_SIGINFO | SA_RESTORER | SA_ONSTACK | restart,
        restorer: selvedge_arch::signal_return(),
        mask: u64::MAX,
    };
    // SAFETY: `entry` is written to run at any instruction of any thread: see `handler`.
    unsafe { system::sigaction(signal, Some(&action)) }
}

/// Sets what happens to signals of the profiling number that are not ours: the program's own action.
pub fn set_program_action(action: ProgramAction) {
    PROGRAM_MASK.store(action.mask, Ordering::Relaxed);
    PROGRAM_FLAGS.store(action.flags as u64, Ordering::Relaxed);
    PROGRAM_HANDLER.store(action.handler as u64, Ordering::Release);
    note_shared(action.is_handled());
}

fn note_shared(shared: bool) {
    if let Some(session) = target::session() {
        session
            .process
            .signal_shared
            .store(u32::from(shared), Ordering::Relaxed);
    }
}

/// The program's own action.
#[must_use]
pub fn program_action() -> ProgramAction {
    ProgramAction {
        // Acquire: pairs with `set_program_action`.
        handler: PROGRAM_HANDLER.load(Ordering::Acquire) as usize,
        mask: PROGRAM_MASK.load(Ordering::Relaxed),
        flags: PROGRAM_FLAGS.load(Ordering::Relaxed) as usize,
    }
}

/// Whether a signal of the profiling number is a session's own.
///
/// # Safety
///
/// `info` is a live `siginfo_t` that the kernel has filled.
#[must_use]
pub unsafe fn is_ours(session: Session, info: *const c_void) -> bool {
    // SAFETY: the caller answers for it.
    let info = unsafe { SignalInfo::new(info) };
    !matches!(purpose(session, info), Purpose::Program)
}

/// Does with a signal that is not ours what the program asked for.
pub(crate) fn pass_on(signal: c_int, info: *const c_void, context: *const c_void) {
    let action = program_action();
    match action.handler {
        SIG_IGN => {}
        SIG_DFL => by_default(signal, info),
        // Another thread has just called it, for the only time: this signal finds the default action.
        handler if action.flags & SA_RESETHAND != 0 && !reset(signal, handler) => {
            by_default(signal, info);
        }
        handler => {
            // SAFETY: `interrupted` is used before this returns.
            let interrupted = unsafe { Interrupted::new(context) };
            let own = 1_u64 << (signal.cast_unsigned().wrapping_sub(1));
            let before = system::sigprocmask(Mask::Set, interrupted.mask() | action.mask | own);
            // SAFETY: the program gave this address to `sigaction` as a handler; three arguments suit both forms, since
            // the one-argument form ignores the registers of the others.
            let handler: extern "C" fn(c_int, *const c_void, *const c_void) =
                unsafe { core::mem::transmute(handler) };
            handler(signal, info, context);
            system::sigprocmask(Mask::Set, before);
        }
    }
}

/// Makes the default action the program's, in place of `handler`. Returns whether this thread is the one to do so.
fn reset(signal: c_int, handler: usize) -> bool {
    let (handler, default) = (handler as u64, SIG_DFL as u64);
    // AcqRel: of the threads that see the handler, one calls it.
    let exchanged =
        PROGRAM_HANDLER.compare_exchange(handler, default, Ordering::AcqRel, Ordering::Relaxed);
    if exchanged.is_ok() {
        note_shared(false);
        // As long as the program had a handler, system calls may not have gone on.
        let _ = install(signal.cast_unsigned());
    }
    exchanged.is_ok()
}

/// The default action of the profiling signal, which ends the process.
fn by_default(signal: c_int, info: *const c_void) {
    // A late signal, after the end of a session, must not kill; nor one of our own kind: another session's timer,
    // `ITIMER_PROF` after a stop, another recorder's request.
    if target::session().is_none() {
        return;
    }
    // SAFETY: `info` is the kernel's, live here.
    let info = unsafe { SignalInfo::new(info) };
    let ours = match info.code() {
        code::SI_KERNEL | code::SI_TIMER => true,
        code::SI_QUEUE => is_nonce(info.value()),
        sent => code::POLL.contains(&sent),
    };
    if ours {
        return;
    }
    let default = SignalAction::default();
    // SAFETY: the default action runs no code.
    let _ = unsafe { system::sigaction(signal.cast_unsigned(), Some(&default)) };
    system::tgkill(system::getpid(), system::gettid(), signal.cast_unsigned());
}

/// Whether a value can be a session's number (`Header::nonce`): 48 random bits, then 16 that are zero. A program that
/// queues such a value to end itself is not ended.
fn is_nonce(value: u64) -> bool {
    value & 0xffff == 0 && value >> 32 != 0
}
