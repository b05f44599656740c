//! Waiting for signals (`sigwait` and its relatives): ours are not what the program waits for.
//!
//! A program that blocks the signal and waits for any would be given those of our timers. They are dropped, and it waits
//! on: what they stood for is accounted for as blocked, as for any thread that blocks the signal. A program that reads
//! signals from a `signalfd` sees them: they cannot be taken out of what `read` gives back.
//!
//! # Safety
//!
//! This file is `unsafe` because it defines functions under the C library's names, which take raw pointers.
#![allow(unsafe_code)]

use crate::actions;
use crate::ending::own_session;
use crate::real;
use core::ffi::{c_int, c_void};
use selvedge_sample::target::Session;
use selvedge_sample::{action, system};

/// Words of a `siginfo_t`.
const INFO_WORDS: usize = 16;

/// `struct timespec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct TimeSpec {
    seconds: i64,
    nanoseconds: i64,
}

type Wait = unsafe extern "C" fn(*const u64, *mut c_void, *const TimeSpec) -> c_int;
type WaitInfo = unsafe extern "C" fn(*const u64, *mut c_void) -> c_int;
type WaitPlain = unsafe extern "C" fn(*const u64, *mut c_int) -> c_int;

/// The session, the signal and the function to wait with, where `set` has the profiling signal.
///
/// # Safety
///
/// `set` is a signal set of the C library, or null.
unsafe fn ours_in(set: *const u64) -> Option<(Session, c_int, Wait)> {
    let signal = actions::signal_kept()?;
    if set.is_null() {
        return None;
    }
    // SAFETY: the caller answers for the set, the first word of which has the signals that the kernel has.
    let word = unsafe { set.read() };
    if word >> signal.wrapping_sub(1) & 1 == 0 {
        return None;
    }
    let address = real::SIGTIMEDWAIT.address()?;
    // SAFETY: the C library's function of this name has this type.
    let wait = unsafe { core::mem::transmute::<usize, Wait>(address) };
    Some((own_session()?, signal, wait))
}

/// Waits until a signal of the set comes that is not ours. `timeout` and `info` may be null.
///
/// # Safety
///
/// As for `sigtimedwait`.
unsafe fn wait_for_others(
    (session, ours, wait): (Session, c_int, Wait),
    set: *const u64,
    info: *mut c_void,
    timeout: *const TimeSpec,
) -> c_int {
    const BILLION: u64 = 1_000_000_000;
    let now = || system::clock(system::MONOTONIC_CLOCK).unwrap_or(0);
    let mut own_info = [0_u64; INFO_WORDS];
    let place = if info.is_null() {
        own_info.as_mut_ptr().cast()
    } else {
        info
    };
    let mut left;
    let mut next = timeout;
    let start = now();
    loop {
        // SAFETY: the caller answers for set and timeout; `place` has room for a `siginfo_t`.
        let signal = unsafe { wait(set, place, next) };
        // SAFETY: the kernel has just filled it.
        if signal != ours || !unsafe { action::is_ours(session, place) } {
            return signal;
        }
        if timeout.is_null() {
            continue;
        }
        // SAFETY: the caller answers for the timeout.
        let whole = unsafe { timeout.read() };
        let whole = whole
            .seconds
            .cast_unsigned()
            .saturating_mul(BILLION)
            .saturating_add(whole.nanoseconds.cast_unsigned());
        let rest = whole.saturating_sub(now().saturating_sub(start));
        left = TimeSpec {
            seconds: (rest / BILLION).cast_signed(),
            nanoseconds: (rest % BILLION).cast_signed(),
        };
        next = &raw const left;
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigtimedwait(
    set: *const u64,
    info: *mut c_void,
    timeout: *const TimeSpec,
) -> c_int {
    // SAFETY: the program's own call.
    if let Some(ours) = unsafe { ours_in(set) } {
        // SAFETY: as above.
        return unsafe { wait_for_others(ours, set, info, timeout) };
    }
    let Some(address) = real::SIGTIMEDWAIT.address() else {
        return real::fail(real::ENOSYS);
    };
    // SAFETY: the C library's function of this name has this type.
    let wait = unsafe { core::mem::transmute::<usize, Wait>(address) };
    // SAFETY: the program's own call.
    unsafe { wait(set, info, timeout) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigwaitinfo(set: *const u64, info: *mut c_void) -> c_int {
    // SAFETY: the program's own call.
    if let Some(ours) = unsafe { ours_in(set) } {
        // SAFETY: as above.
        return unsafe { wait_for_others(ours, set, info, core::ptr::null()) };
    }
    let Some(address) = real::SIGWAITINFO.address() else {
        return real::fail(real::ENOSYS);
    };
    // SAFETY: the C library's function of this name has this type.
    let wait = unsafe { core::mem::transmute::<usize, WaitInfo>(address) };
    // SAFETY: the program's own call.
    unsafe { wait(set, info) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigwait(set: *const u64, signal: *mut c_int) -> c_int {
    const EINTR: c_int = 4;
    // SAFETY: the program's own call.
    if let Some(ours) = unsafe { ours_in(set) } {
        loop {
            let (none, never) = (core::ptr::null_mut(), core::ptr::null());
            // SAFETY: as above.
            let found = unsafe { wait_for_others(ours, set, none, never) };
            if found > 0 {
                // SAFETY: the program's pointer, which the function it called writes.
                unsafe { signal.write(found) };
                return 0;
            }
            // Handlers of other signals do not end it.
            match real::error() {
                EINTR => {}
                error => return error,
            }
        }
    }
    let Some(address) = real::SIGWAIT.address() else {
        return real::ENOSYS;
    };
    // SAFETY: the C library's function of this name has this type.
    let wait = unsafe { core::mem::transmute::<usize, WaitPlain>(address) };
    // SAFETY: the program's own call.
    unsafe { wait(set, signal) }
}
