//! Programs that put themselves into a sandbox (seccomp).
//!
//! A filter may kill for system calls that the program does not make, and the handler makes: in strict mode, the first
//! sample is the end. So before a filter comes into force, the process stops being sampled: no timer of it runs, no
//! handler is left at work, and the profiling signal is the program's alone. From then on the agent makes no system call
//! of its own: hooks pass everything through, and children start without the session, as the filter is theirs too.
//!
//! Whether a filter would kill us is not asked: what it does with an argument can depend on anything.
//!
//! # Safety
//!
//! This file is `unsafe` because it defines functions under the C library's names, one of which takes a variable number
//! of arguments.
#![allow(unsafe_code)]

use crate::ending::own_session;
use crate::real::{self, Real};
use crate::{actions, kernel, scratch};
use core::arch::naked_asm;
use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};
use selvedge_arch::syscall6;
use selvedge_sample::region::{Thread, unkey};
use selvedge_sample::system;
use selvedge_sample::target::{self, Session};

/// Whether this process is in a sandbox, or about to be. SeqCst everywhere: a thread that begins arms its timer, and then
/// looks here; [`stop`] sets it, and then looks for timers.
static ENTERED: AtomicU32 = AtomicU32::new(0);

/// Whether system calls of ours may be the end of this process.
pub(crate) fn is_entered() -> bool {
    ENTERED.load(Ordering::SeqCst) != 0
}

const SYS_PRCTL: usize = 157;
const SYS_SECCOMP: usize = 317;
const PR_SET_SECCOMP: usize = 22;

/// Whether a call puts a filter into force: not one that asks what the kernel can do, often by a null pointer.
///
/// Sources: prctl(2), seccomp(2).
fn is_entering(number: usize, arguments: [usize; 3]) -> bool {
    const STRICT: usize = 1;
    const FILTER: usize = 2;
    match (number, arguments) {
        (SYS_PRCTL, [PR_SET_SECCOMP, STRICT, _]) => true,
        (SYS_PRCTL, [PR_SET_SECCOMP, FILTER, filter]) => filter != 0,
        // Its operations count from 0.
        (SYS_SECCOMP, [0, flags, nothing]) => flags == 0 && nothing == 0,
        (SYS_SECCOMP, [1, _, filter]) => filter != 0,
        _ => false,
    }
}

/// Makes the call that enters the sandbox, by `run`, which gives back a negative number where it failed.
fn enter(run: impl FnOnce() -> isize) -> isize {
    // A child of `vfork` enters it alone, and what is in memory is its parent's.
    if is_entered() || !scratch::is_owner() {
        return run();
    }
    let session = own_session();
    ENTERED.store(1, Ordering::SeqCst);
    let signal = session.map(stop);
    let result = run();
    if result < 0 {
        ENTERED.store(0, Ordering::SeqCst);
        if let (Some(session), Some(signal)) = (session, signal) {
            go_on(session, signal);
        }
    }
    result
}

/// Stops sampling. Gives back what [`go_on`] needs.
fn stop(session: Session) -> c_int {
    /// Looks at a handler that is still at work: it takes some microseconds.
    const PATIENCE: u32 = 10_000;
    session.process.sandboxed.store(1, Ordering::Relaxed);
    target::leave(session);
    let signal = actions::give_back();
    set_timers(session, 0);
    for _ in 0..PATIENCE {
        // Acquire: pairs with the handler's end.
        let at_work = |thread: &Thread| thread.sequence.load(Ordering::Acquire) & 1 == 1;
        if !threads_of(session).any(at_work) {
            break;
        }
        kernel::yield_processor();
    }
    signal
}

/// The sandbox refused the program.
fn go_on(session: Session, signal: c_int) {
    actions::own_again(signal);
    session.process.sandboxed.store(0, Ordering::Relaxed);
    set_timers(
        session,
        session.region.header.period.load(Ordering::Relaxed),
    );
    target::stay(session);
}

/// Lets all timers of the process run with a period, or not at all.
fn set_timers(session: Session, period: u64) {
    for thread in threads_of(session) {
        // Acquire: pairs with the arming: the number of the timer is there.
        if thread.armed.load(Ordering::Acquire) == 1 {
            let timer = thread.timer.load(Ordering::Relaxed);
            let _ = system::timer_settime(timer, period, period);
        }
    }
}

fn threads_of(session: Session) -> impl Iterator<Item = &'static Thread> {
    let threads = session.region.used_threads();
    threads
        .filter_map(move |index| session.region.thread(index))
        .filter(move |thread| {
            // SeqCst: see `ENTERED`.
            let owner = unkey(thread.key.load(Ordering::SeqCst));
            owner.is_some_and(|(process, _)| process == session.process_index)
        })
}

#[unsafe(no_mangle)]
extern "C" fn prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int {
    type Control = unsafe extern "C" fn(c_int, usize, usize, usize, usize) -> c_int;
    let run = || match real::PRCTL.address() {
        Some(address) => {
            // SAFETY: the C library's function of this name has this type, as far as registers go.
            let control = unsafe { core::mem::transmute::<usize, Control>(address) };
            // SAFETY: the program's own call.
            unsafe { control(option, a, b, c, d) as isize }
        }
        // SAFETY: the program's own call.
        None => unsafe { call([SYS_PRCTL, option as usize, a, b, c, d, 0]) },
    };
    let entering = is_entering(SYS_PRCTL, [option as u32 as usize, a, b]);
    (if entering { enter(run) } else { run() }) as c_int
}

/// Makes a system call as `syscall` does.
///
/// # Safety
///
/// As for that system call.
unsafe fn call(words: [usize; 7]) -> isize {
    let [number, a, b, c, d, e, f] = words;
    // SAFETY: the caller answers for it.
    let result = unsafe { syscall6(number, [a, b, c, d, e, f]) };
    match -4095..0 {
        errors if errors.contains(&result) => real::fail(result.wrapping_neg() as c_int) as isize,
        _ => result,
    }
}

/// `syscall`, for those numbers that may enter a sandbox.
unsafe extern "C" fn call_that_may_enter(
    number: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> isize {
    type Call = unsafe extern "C" fn(usize, usize, usize, usize, usize, usize, usize) -> isize;
    const TSYNC: usize = 1;
    const NEW_LISTENER: usize = 8;
    let run = || match real::SYSCALL.address() {
        Some(address) => {
            // SAFETY: the C library's function of this name has this type, as far as registers go.
            let call = unsafe { core::mem::transmute::<usize, Call>(address) };
            // SAFETY: the program's own call.
            unsafe { call(number, a, b, c, d, e, f) }
        }
        // SAFETY: the program's own call.
        None => unsafe { call([number, a, b, c, d, e, f]) },
    };
    if !is_entering(number, [a, b, c]) {
        return run();
    }
    let mut result = 0;
    let refused = number == SYS_SECCOMP && b & (TSYNC | NEW_LISTENER) == TSYNC;
    enter(|| {
        result = run();
        // The id of a thread that cannot enter: none does.
        if refused && result > 0 { -1 } else { result }
    });
    result
}

// `syscall`: a jump to the real one, except for the numbers that may enter a sandbox.
//
// On entry: rdi is the number; the arguments are in rsi, rdx, rcx, r8, r9 and at rsp + 8 (AMD64 ABI, §3.2.3). Before the
// jumps, only rax and the flags are changed, which no argument is in; whoever is jumped to returns to our caller. Where the
// real one has not been looked up (another library's constructor runs before the agent's), the call is made here: the
// kernel takes the number in rax, the arguments in rdi, rsi, rdx, r10, r8, r9, and clobbers rcx and r11.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn syscall() -> isize {
    naked_asm!(
        ".cfi_startproc",
        "cmp rdi, {seccomp}",
        "je {enter}",
        "cmp rdi, {prctl}",
        "jne 2f",
        "cmp rsi, {set}",
        "je {enter}",
        "2:",
        "mov rax, qword ptr [rip + {real} + {address}]",
        "cmp rax, 1",
        "jbe 3f",
        "jmp rax",
        "3:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 4f",
        "ret",
        "4:",
        "mov edi, eax",
        "neg edi",
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 8",
        "call {fail}",
        "add rsp, 8",
        ".cfi_adjust_cfa_offset -8",
        "cdqe",
        "ret",
        ".cfi_endproc",
        seccomp = const SYS_SECCOMP,
        prctl = const SYS_PRCTL,
        set = const PR_SET_SECCOMP,
        enter = sym call_that_may_enter,
        real = sym real::SYSCALL,
        address = const Real::ADDRESS,
        fail = sym fail,
    )
}

extern "C" fn fail(error: c_int) -> c_int {
    real::fail(error)
}
