//! The program's own use of the profiling signal.
//!
//! The kernel's action for that signal stays ours; what the program sets is kept beside it, and what it asks for is what
//! it set. Signals that are not ours are handled accordingly: see `selvedge_sample::handler`.
//!
//! # Safety
//!
//! This file is `unsafe` because it defines functions under the C library's names, which take raw pointers.
#![allow(unsafe_code)]

use crate::ending::own_session;
use crate::kernel;
use crate::real::{self, Real};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use selvedge_sample::action::{self, ProgramAction, SA_RESETHAND, SA_RESTART, SIG_DFL, SIG_IGN};
use selvedge_sample::region::Engine;
use selvedge_sample::system::{self, Mask, SignalAction};
use selvedge_sample::target::{self, Session};

const SIG_HOLD: usize = 2;
const SIG_ERR: usize = usize::MAX;
const SA_NODEFER: usize = 0x4000_0000;

/// The profiling signal; 0 while the agent has no handler. Relaxed: the rest is read through the session.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// From now on the agent's handler is the kernel's action for `signal`, in place of `before`.
///
/// Called before the program begins, so `before` is the default; or the signal is ignored, which is somebody's wish only
/// where the session's name says so (`ignored`): otherwise it is the work of [`hand_over`].
pub(crate) fn own(signal: c_int, before: &SignalAction, ignored: bool) {
    if ignored {
        keep(SIG_IGN, 0, 0);
    } else if before.handler != SIG_IGN {
        keep(before.handler, before.mask, before.flags);
    }
    SIGNAL.store(signal, Ordering::Relaxed);
}

/// The profiling signal, where its action is kept here.
pub(crate) fn signal_kept() -> Option<c_int> {
    Some(SIGNAL.load(Ordering::Relaxed)).filter(|&signal| is_kept(signal))
}

/// Whether the action of `signal` is kept here. In a child of `vfork`, the kernel's action is the child's own, and what is
/// kept here is its parent's.
fn is_kept(signal: c_int) -> bool {
    let own = SIGNAL.load(Ordering::Relaxed);
    own != 0 && own == signal && (target::session().is_none() || own_session().is_some())
}

/// `struct sigaction` of the C library.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Action {
    handler: usize,
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
}

fn kept() -> Action {
    let own = action::program_action();
    let mut mask = [0; 16];
    let [word, ..] = &mut mask;
    *word = own.mask;
    Action {
        handler: own.handler,
        mask,
        flags: own.flags as c_int,
        restorer: 0,
    }
}

/// Keeps another action and gives back the handler before.
fn keep(handler: usize, mask: u64, flags: usize) -> usize {
    let before = action::program_action();
    let now = ProgramAction {
        handler,
        mask,
        flags,
    };
    action::set_program_action(now);
    // 0: at the start of the program, where the handler has just been installed.
    let signal = SIGNAL.load(Ordering::Relaxed);
    if signal != 0 && before.restarts() != now.restarts() {
        let _ = action::install(signal.cast_unsigned());
    }
    before.handler
}

unsafe fn set_action(signal: c_int, new: *const Action, old: *mut Action) -> c_int {
    type Set = unsafe extern "C" fn(c_int, *const Action, *mut Action) -> c_int;
    if !is_kept(signal) {
        let Some(address) = real::SIGACTION.address() else {
            return real::fail(real::ENOSYS);
        };
        // SAFETY: the C library's function of this name has this type.
        let set = unsafe { core::mem::transmute::<usize, Set>(address) };
        // SAFETY: the program's own call.
        return unsafe { set(signal, new, old) };
    }
    let before = kept();
    if !new.is_null() {
        // SAFETY: the program's pointer, which the function it called reads.
        let Action {
            handler,
            mask: [mask, ..],
            flags,
            ..
        } = unsafe { new.read() };
        keep(handler, mask, flags as u32 as usize);
    }
    if !old.is_null() {
        // SAFETY: the program's pointer, which the function it called writes.
        unsafe { old.write(before) };
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigaction(signal: c_int, new: *const c_void, old: *mut c_void) -> c_int {
    // SAFETY: the program's own call.
    unsafe { set_action(signal, new.cast(), old.cast()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __sigaction(signal: c_int, new: *const c_void, old: *mut c_void) -> c_int {
    // SAFETY: the program's own call.
    unsafe { set_action(signal, new.cast(), old.cast()) }
}

/// What the functions of two arguments have in common: the handler before, or `SIG_ERR`.
fn set_handler(signal: c_int, handler: usize, flags: usize, real: &Real) -> usize {
    type Set = unsafe extern "C" fn(c_int, usize) -> usize;
    if is_kept(signal) {
        return keep(handler, 0, flags);
    }
    let Some(address) = real.address() else {
        real::fail(real::ENOSYS);
        return SIG_ERR;
    };
    // SAFETY: the C library's function of this name has this type.
    let set = unsafe { core::mem::transmute::<usize, Set>(address) };
    // SAFETY: the program's own call.
    unsafe { set(signal, handler) }
}

#[unsafe(no_mangle)]
extern "C" fn signal(signal: c_int, handler: usize) -> usize {
    set_handler(signal, handler, SA_RESTART, &real::SIGNAL)
}

#[unsafe(no_mangle)]
extern "C" fn bsd_signal(signal: c_int, handler: usize) -> usize {
    set_handler(signal, handler, SA_RESTART, &real::SIGNAL)
}

#[unsafe(no_mangle)]
extern "C" fn ssignal(signal: c_int, handler: usize) -> usize {
    set_handler(signal, handler, SA_RESTART, &real::SIGNAL)
}

#[unsafe(no_mangle)]
extern "C" fn sysv_signal(signal: c_int, handler: usize) -> usize {
    set_handler(
        signal,
        handler,
        SA_RESETHAND | SA_NODEFER,
        &real::SYSV_SIGNAL,
    )
}

#[unsafe(no_mangle)]
extern "C" fn __sysv_signal(signal: c_int, handler: usize) -> usize {
    set_handler(
        signal,
        handler,
        SA_RESETHAND | SA_NODEFER,
        &real::SYSV_SIGNAL,
    )
}

#[unsafe(no_mangle)]
extern "C" fn sigset(signal: c_int, handler: usize) -> usize {
    if !is_kept(signal) {
        return set_handler(signal, handler, 0, &real::SIGSET);
    }
    let bit = 1_u64 << signal.wrapping_sub(1);
    let hold = handler == SIG_HOLD;
    let before = action::program_action().handler;
    if !hold {
        keep(handler, 0, 0);
    }
    let mask = system::sigprocmask(if hold { Mask::Block } else { Mask::Unblock }, bit);
    if mask & bit == 0 { before } else { SIG_HOLD }
}

#[unsafe(no_mangle)]
extern "C" fn sigignore(signal: c_int) -> c_int {
    if is_kept(signal) {
        keep(SIG_IGN, 0, 0);
        return 0;
    }
    type Ignore = unsafe extern "C" fn(c_int) -> c_int;
    let Some(address) = real::SIGIGNORE.address() else {
        return real::fail(real::ENOSYS);
    };
    // SAFETY: the C library's function of this name has this type.
    let ignore = unsafe { core::mem::transmute::<usize, Ignore>(address) };
    // SAFETY: the program's own call.
    unsafe { ignore(signal) }
}

#[unsafe(no_mangle)]
extern "C" fn siginterrupt(signal: c_int, interrupt: c_int) -> c_int {
    if is_kept(signal) {
        let own = action::program_action();
        let flags = if interrupt == 0 {
            own.flags | SA_RESTART
        } else {
            own.flags & !SA_RESTART
        };
        keep(own.handler, own.mask, flags);
        return 0;
    }
    type Interrupt = unsafe extern "C" fn(c_int, c_int) -> c_int;
    let Some(address) = real::SIGINTERRUPT.address() else {
        return real::fail(real::ENOSYS);
    };
    // SAFETY: the C library's function of this name has this type.
    let set = unsafe { core::mem::transmute::<usize, Interrupt>(address) };
    // SAFETY: the program's own call.
    unsafe { set(signal, interrupt) }
}

/// Does nothing. In place of the default action, which would end the program if the reader had just sent a signal, but
/// like that, it is what a program finds that is executed later.
extern "C" fn ignore_until_exec(_: c_int) {}

/// Gives the signal back to the program. What is pending is dropped. Gives back what [`own_again`] needs.
pub(crate) fn give_back() -> c_int {
    let signal = SIGNAL.load(Ordering::Relaxed);
    if signal == 0 {
        return 0;
    }
    let own = kept();
    let _ = ignore(signal);
    SIGNAL.store(0, Ordering::Relaxed);
    match own.handler {
        SIG_IGN => {}
        SIG_DFL => {
            const SA_RESTORER: usize = 0x0400_0000;
            let deaf = SignalAction {
                handler: ignore_until_exec as *const () as usize,
                flags: SA_RESTORER | SA_RESTART,
                restorer: selvedge_arch::signal_return(),
                mask: 0,
            };
            // SAFETY: a handler that does nothing may run anywhere.
            let _ = unsafe { system::sigaction(signal.cast_unsigned(), Some(&deaf)) };
        }
        _ => {
            // SAFETY: what the program has set.
            unsafe { set_action(signal, &raw const own, core::ptr::null_mut()) };
        }
    }
    signal
}

/// Takes the signal again after [`give_back`].
pub(crate) fn own_again(signal: c_int) {
    if signal != 0 {
        SIGNAL.store(signal, Ordering::Relaxed);
        let _ = action::install(signal.cast_unsigned());
    }
}

/// Whether a program that this one starts is to find the profiling signal ignored, as it would without us.
pub(crate) fn program_ignores() -> bool {
    let signal = SIGNAL.load(Ordering::Relaxed);
    if signal == 0 {
        return false;
    }
    let kept = action::program_action().handler;
    if is_kept(signal) {
        return kept == SIG_IGN;
    }
    // A child of `vfork`: what it has set itself, or else what its parent keeps.
    match system::signal_handler(signal.cast_unsigned()) {
        Ok(SIG_IGN) => true,
        Ok(SIG_DFL) => false,
        _ => kept == SIG_IGN,
    }
}

/// What [`take_back`] has to undo.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HandedOver {
    /// Nothing.
    Nothing,
    /// The signal was ignored in a process without a session of its own: a child of `vfork`, whose actions are not its
    /// parent's, or one that is not followed.
    Ignored(SignalAction),
    /// The process has taken leave of its session.
    Left(Session),
}

/// Threads between [`hand_over`] and [`take_back`], and [`RESTORING`].
static EXECS: AtomicU32 = AtomicU32::new(0);
/// In [`EXECS`]: the last of them is just undoing what all have done.
const RESTORING: u32 = 1 << 31;

/// Before an `exec` of a program that will be recorded, or not.
///
/// The kernel replaces a handler by the default action as it executes the program, and keeps an ignored signal ignored. So
/// where the program ignores the signal, it is ignored now. Otherwise a program that is not recorded is to find the
/// default action, and the handler stays: the kernel takes back the pending signals of timers that end with this program,
/// and `leave` has disarmed `ITIMER_PROF`, a signal of which may be pending and is dropped here. The two exceptions, in
/// which the signal is ignored all the same, since its default action would end the program:
/// - a program with the agent, or one that joins, which know what it means (see [`own`]): the reader may ask a thread to arm itself that is
///   not there any more;
/// - the perf engine, whose events live on in the reader for a moment, and fire in a program without the agent as well.
///
/// Two threads may do so at the same time, and either may fail: only the last to fail restores, and who begins waits for
/// that, so that a restored `ITIMER_PROF` does not survive another thread's `exec`. It does not wait for ever: a signal
/// handler may have interrupted the restoring thread, and call `exec`.
pub(crate) fn hand_over(session: Option<Session>, is_recorded: bool) -> HandedOver {
    const PATIENCE: u32 = 10_000;
    let signal = SIGNAL.load(Ordering::Relaxed);
    if signal == 0 {
        return HandedOver::Nothing;
    }
    let ignores = program_ignores();
    let Some(session) = session else {
        let before = if ignores { ignore(signal).ok() } else { None };
        return before.map_or(HandedOver::Nothing, HandedOver::Ignored);
    };
    // SeqCst here and below: one order of all beginnings and ends.
    EXECS.fetch_add(1, Ordering::SeqCst);
    for _ in 0..PATIENCE {
        if EXECS.load(Ordering::SeqCst) & RESTORING == 0 {
            break;
        }
        kernel::yield_processor();
    }
    target::leave(session);
    let engine = Engine::from_code(session.process.engine.load(Ordering::Relaxed));
    if ignores || is_recorded || engine == Some(Engine::Perf) {
        let _ = ignore(signal);
    } else if engine == Some(Engine::Itimer) {
        let _ = ignore(signal);
        let _ = action::install(signal.cast_unsigned());
    }
    HandedOver::Left(session)
}

fn ignore(signal: c_int) -> Result<SignalAction, i32> {
    let ignored = SignalAction {
        handler: SIG_IGN,
        ..SignalAction::default()
    };
    // SAFETY: ignoring runs no code.
    unsafe { system::sigaction(signal.cast_unsigned(), Some(&ignored)) }
}

/// After an `exec` that failed.
pub(crate) fn take_back(handed_over: HandedOver) {
    let signal = SIGNAL.load(Ordering::Relaxed);
    match handed_over {
        HandedOver::Nothing => {}
        HandedOver::Ignored(_) if is_kept(signal) => {
            let _ = action::install(signal.cast_unsigned());
        }
        HandedOver::Ignored(before) => {
            // SAFETY: the action that was there.
            let _ = unsafe { system::sigaction(signal.cast_unsigned(), Some(&before)) };
        }
        HandedOver::Left(session) => {
            let end = |execs: u32| match execs.wrapping_sub(1) {
                0 => Some(RESTORING),
                others => Some(others),
            };
            if EXECS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, end) == Ok(1) {
                let _ = action::install(signal.cast_unsigned());
                target::stay(session);
                EXECS.fetch_and(!RESTORING, Ordering::SeqCst);
            }
        }
    }
}

/// In the child of a `fork`: threads that were about to `exec` are the parent's, and what they did to the signal is undone.
pub(crate) fn forget_others() {
    if EXECS.swap(0, Ordering::SeqCst) != 0 {
        let signal = SIGNAL.load(Ordering::Relaxed);
        let _ = action::install(signal.cast_unsigned());
    }
}

const _: () = assert!(size_of::<Action>() == 152);
