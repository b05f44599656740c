//! Threads that the program makes: each begins and ends its own record.
//!
//! # Safety
//!
//! This file is `unsafe` because it defines `pthread_create`, and because a new thread begins in assembly.
#![allow(unsafe_code)]

use crate::ending::own_session;
use crate::{real, sandbox};
use core::arch::naked_asm;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use selvedge_sample::system;
use selvedge_sample::target::{self, Base};

/// What a thread is to run, on its way from its creator to itself.
///
/// Nothing may be allocated for it: the program's allocator may be what creates the thread. There are only as many as
/// threads that have been created and have not begun; where all are taken, the thread begins without us, and the
/// recorder finds it.
#[derive(Debug)]
struct Order {
    /// Address of the routine; 0 while free.
    routine: AtomicUsize,
    argument: AtomicUsize,
}

static ORDERS: [Order; 256] = [const {
    Order {
        routine: AtomicUsize::new(0),
        argument: AtomicUsize::new(0),
    }
}; 256];

fn place_order(routine: usize, argument: usize) -> Option<&'static Order> {
    let order = ORDERS.iter().find(|order| {
        order.routine.load(Ordering::Relaxed) == 0
            // Acquire: pairs with the release of the order by the thread that had it before.
            && order.routine.compare_exchange(0, routine, Ordering::Acquire, Ordering::Relaxed).is_ok()
    })?;
    // Relaxed: the creation of the thread is what publishes it.
    order.argument.store(argument, Ordering::Relaxed);
    Some(order)
}

/// In the child of a `fork`: the threads that were about to begin are the parent's.
pub(crate) fn forget_others() {
    for order in &ORDERS {
        order.routine.store(0, Ordering::Relaxed);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut usize,
    attributes: *const c_void,
    routine: usize,
    argument: usize,
) -> c_int {
    type Create = unsafe extern "C" fn(*mut usize, *const c_void, usize, usize) -> c_int;
    let Some(address) = real::PTHREAD_CREATE.address_now() else {
        return real::EAGAIN;
    };
    // SAFETY: the C library's function of this name has this type.
    let create = unsafe { core::mem::transmute::<usize, Create>(address) };
    let order = if own_session().is_some() {
        place_order(routine, argument)
    } else {
        None
    };
    let Some(order) = order else {
        // SAFETY: the program's own call.
        return unsafe { create(thread, attributes, routine, argument) };
    };
    let beginning = first_instructions as *const () as usize;
    // SAFETY: the program's own call, except that the thread begins in `first_instructions`, which expects an order.
    let error = unsafe {
        create(
            thread,
            attributes,
            beginning,
            core::ptr::from_ref(order).addr(),
        )
    };
    if error != 0 {
        order.routine.store(0, Ordering::Release);
    }
    error
}

/// Where a new thread begins. It calls [`begin`] and then *jumps* to the routine that the program asked for, so that the
/// thread's stack is what it would be without the agent.
///
/// On entry, as for any function of one argument: rdi is the order, the stack is 8 bytes off alignment. `begin` returns
/// its two words in rax and rdx (AMD64 ABI, §3.2.3). On exit: the state on entry, with rdi the program's argument.
#[unsafe(naked)]
unsafe extern "C" fn first_instructions(order: *const Order) -> *mut c_void {
    naked_asm!(
        ".cfi_startproc",
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 8",
        "call {begin}",
        "add rsp, 8",
        ".cfi_adjust_cfa_offset -8",
        "mov rdi, rdx",
        "jmp rax",
        ".cfi_endproc",
        begin = sym begin,
    )
}

/// What a thread runs.
#[derive(Debug)]
#[repr(C)]
struct Routine {
    address: usize,
    argument: usize,
}

unsafe extern "C" fn begin(order: *const Order) -> Routine {
    // SAFETY: `pthread_create` passes a reference to one of `ORDERS`.
    let order = unsafe { &*order };
    let routine = Routine {
        address: order.routine.load(Ordering::Relaxed),
        argument: order.argument.load(Ordering::Relaxed),
    };
    // Release: the next one to take it sees that we have read it.
    order.routine.store(0, Ordering::Release);
    if let Some(session) = own_session() {
        if target::start_thread(session, system::gettid(), Base::Birth).is_none() {
            target::note_refused(session);
        }
        if sandbox::is_entered() {
            // Too late to be stopped with the others.
            target::end_this_thread(session);
            return routine;
        }
        target::let_signal_through(session);
        watch_end_of_this_one(true);
    }
    routine
}

/// The thread-specific key whose destructor ends a thread's record, plus 2; 0: none yet; 1: being made, or refused.
static KEY: AtomicU32 = AtomicU32::new(0);

/// Rounds in which the C library runs the destructors of a thread's keys (`PTHREAD_DESTRUCTOR_ITERATIONS`).
const ROUNDS: usize = 4;

/// Sees to it that the calling thread's record ends when the thread does. `threaded` where the program has threads: one
/// that has none yet may still be without the functions for it.
pub(crate) fn watch_end_of_this_one(threaded: bool) {
    let make = if threaded {
        real::PTHREAD_KEY_CREATE.address_now()
    } else {
        real::PTHREAD_KEY_CREATE.address()
    };
    // Acquire: pairs with the store below.
    if KEY.load(Ordering::Acquire) == 0
        && let Some(make) = make
        && KEY
            .compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    {
        type Make = unsafe extern "C" fn(*mut u32, unsafe extern "C" fn(*mut c_void)) -> c_int;
        let mut key = 0;
        // SAFETY: the C library's function of this name has this type.
        let make = unsafe { core::mem::transmute::<usize, Make>(make) };
        // SAFETY: the destructor stays loaded as long as the process lives.
        if unsafe { make(&raw mut key, at_end) } == 0 {
            // Release: the key is usable.
            KEY.store(key.saturating_add(2), Ordering::Release);
        }
    }
    set_round(1);
}

fn set_round(round: usize) {
    type Set = unsafe extern "C" fn(u32, usize) -> c_int;
    let Some(key) = KEY.load(Ordering::Acquire).checked_sub(2) else {
        return;
    };
    let Some(set) = real::PTHREAD_SETSPECIFIC.address_now() else {
        return;
    };
    // SAFETY: the C library's function of this name has this type.
    let set = unsafe { core::mem::transmute::<usize, Set>(set) };
    // SAFETY: a key of ours, whose values are numbers.
    unsafe { set(key, round) };
}

/// Run at the end of a thread. In rounds before the last one, other keys' destructors may still have work to do, which is
/// to be recorded.
unsafe extern "C" fn at_end(round: *mut c_void) {
    if round.addr() < ROUNDS {
        return set_round(round.addr() + 1);
    }
    if let Some(session) = own_session() {
        target::end_this_thread(session);
    }
}
