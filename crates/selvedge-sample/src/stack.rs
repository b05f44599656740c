//! Reading the interrupted stack without ever faulting.
//!
//! **Terms.** The *bounds* of a thread are the part of a mapping that its stack lies in, found by the reader (outside the
//! handler): up to the thread's control block, which glibc puts at the top of the stacks of threads, or all of the main
//! thread's. Other stacks have none. A *window* is a copy of other memory.
//!
//! **The one fact.** A thread's own stack is mapped as long as the thread runs, from its stack pointer up to its control
//! block: so an address inside the bounds and not below the stack pointer may be loaded directly, if the stack pointer is
//! inside the bounds too. That is the interrupted stack pointer, or, from an alternate stack, the one that the signal
//! frame leads back to. Everything else (an alternate stack, a fiber's, garbage) goes through `process_vm_readv`, which fails
//! instead of faulting; at most [`COPIES`] times a sample, so that its cost is bounded.
//!
//! **Partial states.** The bounds are published low, high, then generation (Release); the handler reads them only if the
//! generation (Acquire) is that of its own claim. A thread record that was handed to another thread since has another
//! generation, so bounds are never taken for another's.
//!
//! # Safety
//!
//! This file is `unsafe` because it loads through addresses, by the argument above.
#![allow(unsafe_code)]

use crate::region::{SCRATCH_WORDS, Thread};
use crate::system;
use core::sync::atomic::Ordering;
use selvedge_unwind::Memory;

/// Copies of other memory per sample, at most.
pub const COPIES: u32 = 64;
/// Bytes of a window below the address that it was made for: a return address and six saved registers.
const BELOW: u64 = 56;
const PAGE: u64 = 4096;

/// The stack of the interrupted thread.
#[derive(Debug)]
pub struct Stack<'a> {
    thread: &'a Thread,
    low: u64,
    high: u64,
    window_start: u64,
    window_len: u64,
    copies: u32,
}

/// The bounds of a thread's stack; zeros while they are not known.
fn bounds(thread: &Thread) -> (u64, u64) {
    // Acquire: pairs with the reader's Release, after it wrote the bounds.
    let known = thread.stack_generation.load(Ordering::Acquire);
    if known != thread.generation.load(Ordering::Relaxed) {
        return (0, 0);
    }
    let low = thread.stack_low.load(Ordering::Relaxed);
    (low, thread.stack_high.load(Ordering::Relaxed))
}

/// Whether a stack pointer is on the stack of the thread that owns a record: then it is that thread's.
pub(crate) fn is_on(thread: &Thread, sp: u64) -> bool {
    let (low, high) = bounds(thread);
    (low..high).contains(&sp)
}

impl<'a> Stack<'a> {
    /// The stack of the thread that owns `thread`, interrupted with stack pointer `sp`.
    ///
    /// Only that thread's handler may call this: the window is the thread's own memory.
    #[must_use]
    pub fn of(thread: &'a Thread, sp: u64) -> Self {
        let (mut low, mut high) = bounds(thread);
        let known = high != 0;
        if (low..high).contains(&sp) {
            low = sp;
        } else {
            (low, high) = (0, 0);
            // Ask the reader to look again: a grown main stack, or none known yet.
            thread.stack_hint.store(sp, Ordering::Relaxed);
            if !known {
                thread
                    .thread_pointer
                    .store(system::thread_pointer(), Ordering::Relaxed);
            }
        }
        Self {
            thread,
            low,
            high,
            window_start: 0,
            window_len: 0,
            copies: COPIES,
        }
    }

    #[cold]
    #[inline(never)]
    fn read_window(&mut self, address: u64) -> Option<u64> {
        // Saturating: what is below the window is at an offset beyond any length.
        let end = |start: u64| address.wrapping_sub(start).saturating_add(8);
        if end(self.window_start) > self.window_len {
            if self.copies == 0 {
                return None;
            }
            self.copies -= 1;
            let len = SCRATCH_WORDS * 8;
            // A frame is read from its return address down: a little more of the same page saves a copy for each word.
            self.window_start = address
                .wrapping_sub(BELOW)
                .max(address & !(PAGE.wrapping_sub(1)));
            let window = self.thread.scratch.as_ptr().cast::<u8>();
            // SAFETY: the scratch words belong to this thread's handler, which runs once at a time.
            let copied = unsafe { system::copy_memory(window, self.window_start, len) };
            self.window_len = copied as u64;
            if end(self.window_start) > self.window_len {
                return None;
            }
        }
        let word = (address.wrapping_sub(self.window_start) >> 3) as usize;
        // SAFETY: `word * 8 + 8 <= window_len <= SCRATCH_WORDS * 8`, and the address was aligned (checked by `read`), as
        // is the window.
        Some(unsafe { self.thread.scratch.as_ptr().wrapping_add(word).read() })
    }
}

impl Memory for Stack<'_> {
    fn moved_to(&mut self, sp: u64) {
        let (low, high) = bounds(self.thread);
        (self.low, self.high) = if (low..high).contains(&sp) {
            (sp, high)
        } else {
            (0, 0)
        };
    }

    #[inline]
    fn read(&mut self, address: u64) -> Option<u64> {
        if !address.is_multiple_of(8) {
            return None;
        }
        if address >= self.low && address < self.high && self.high.wrapping_sub(address) >= 8 {
            // SAFETY: inside the bounds of this thread's stack and not below its stack pointer: mapped, by the module's
            // argument. The stack may be written by nobody else while its thread is here, in the handler.
            return Some(unsafe { (address as *const u64).read_volatile() });
        }
        self.read_window(address)
    }
}
