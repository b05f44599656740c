//! The program may use the profiling signal as well: what it asks for is remembered and done, by our handler, for the
//! signals that are not ours. The kernel's action stays ours.

use crate::symbols::Next;
use core::ffi::c_int;
use core::sync::atomic::{AtomicUsize, Ordering};
use selvedge_sample::target;

/// `struct sigaction` of glibc on x86-64.
#[repr(C)]
pub struct Action {
    handler: usize,
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
}

/// Flags that the program gave, to be given back.
static FLAGS: AtomicUsize = AtomicUsize::new(0);

fn is_ours(signal: c_int) -> bool {
    target::session().is_some_and(|session| {
        session.region.header.signal.load(Ordering::Relaxed) == signal.cast_unsigned()
    })
}

/// Stands in front of `sigaction`.
///
/// # Safety
///
/// As for `sigaction`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(signal: c_int, new: *const Action, old: *mut Action) -> c_int {
    type SigAction = extern "C" fn(c_int, *const Action, *mut Action) -> c_int;
    static NEXT: Next = Next::new(c"sigaction");
    if !is_ours(signal) {
        let Some(next) = NEXT.address() else { return -1 };
        // SAFETY: the next definition of that name has that type.
        let next: SigAction = unsafe { core::mem::transmute(next) };
        return next(signal, new, old);
    }
    let (handler, mask) = target::program_action();
    let flags = FLAGS.load(Ordering::Relaxed);
    if !new.is_null() {
        // SAFETY: the caller passes a valid action.
        let new = unsafe { &*new };
        let [mask, ..] = new.mask;
        FLAGS.store(new.flags as usize, Ordering::Relaxed);
        target::set_program_action(new.handler, mask);
    }
    if !old.is_null() {
        let mut blocked = [0; 16];
        blocked[0] = mask;
        let before = Action { handler, mask: blocked, flags: flags as c_int, restorer: 0 };
        // SAFETY: the caller passes room for an action.
        unsafe { old.write(before) };
    }
    0
}

/// `signal` and its relatives for the profiling signal; the previous handler.
fn set(handler: usize) -> usize {
    let (before, _) = target::program_action();
    target::set_program_action(handler, 0);
    before
}

/// Passes a call of `signal` or a relative on.
fn pass(next: &Next, signal: c_int, handler: usize) -> usize {
    type Signal = extern "C" fn(c_int, usize) -> usize;
    let Some(next) = next.address() else { return usize::MAX };
    // SAFETY: the next definition of that name has that type.
    let next: Signal = unsafe { core::mem::transmute(next) };
    next(signal, handler)
}

macro_rules! stand_in_front {
    ($($name:ident $text:literal)*) => { $(
        #[doc = concat!("Stands in front of `", stringify!($name), "`.")]
        ///
        /// # Safety
        ///
        /// As for the function itself.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(signal: c_int, handler: usize) -> usize {
            static NEXT: Next = Next::new($text);
            if is_ours(signal) { set(handler) } else { pass(&NEXT, signal, handler) }
        }
    )* };
}

stand_in_front! {
    signal c"signal"
    bsd_signal c"bsd_signal"
    ssignal c"ssignal"
    sysv_signal c"sysv_signal"
    __sysv_signal c"__sysv_signal"
}

