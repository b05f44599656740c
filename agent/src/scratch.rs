//! Memory for a moment, where the caller's stack may not have room: a thread can have 16 KiB in all.
//!
//! **A child of `vfork`** shares its parent's memory, and what it maps to hand it to `exec` nobody would take back: the
//! child is another program by then, and the parent does not know. So such children are lent one of a few [`Area`]s,
//! which are never taken back and used again. That an area is free again, the kernel says: when a thread gives up its
//! memory, by `exec` or at its end, the kernel clears the word that `set_tid_address` named, if others still use the memory
//! (kernel/fork.c, `mm_release`; before the parent goes on). A child of `vfork` has no such word of its own. The test
//! `children_of_vfork_leave_nothing_behind` fails without.
//!
//! # Safety
//!
//! This file is `unsafe` because it makes slices of memory from the kernel.
#![allow(unsafe_code)]

use crate::{kernel, sandbox};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use selvedge_sample::system;

/// The process that this memory is of. Relaxed everywhere: a process reads what it wrote itself, or its parent before it
/// was there.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Notes that this process has this memory to itself: at its start, and in the child of a `fork`.
pub(crate) fn own() {
    OWNER.store(system::getpid(), Ordering::Relaxed);
    for area in &AREAS {
        area.busy.store(0, Ordering::Relaxed);
    }
}

/// Whether this process has this memory to itself: it is no child of `vfork`.
pub(crate) fn is_owner() -> bool {
    OWNER.load(Ordering::Relaxed) == system::getpid()
}

/// Memory that is taken back when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    start: usize,
    length: usize,
    /// The area that it is, in a child of `vfork`.
    lent: Option<&'static Area>,
}

/// Memory for children of `vfork`.
#[derive(Debug)]
struct Area {
    /// Not 0 while a child has it. SeqCst everywhere: the kernel's store has no weaker order than that.
    busy: AtomicU32,
    /// Owned by who has set `busy`.
    start: AtomicUsize,
    length: AtomicUsize,
}

/// As many as threads that are likely to start a program at the same time. Where all are lent, a mapping is made that stays.
static AREAS: [Area; 8] = [const {
    Area {
        busy: AtomicU32::new(0),
        start: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
    }
}; 8];

impl Scratch {
    /// At least `length` bytes, until they are dropped or the process becomes another program.
    pub(crate) fn until_exec(length: usize) -> Option<Self> {
        let length = length.next_multiple_of(4096);
        // In a sandbox, asking for the process's id may be the end of it; a child of `vfork` leaves this behind then.
        if sandbox::is_entered() || is_owner() {
            return Self::new(length);
        }
        let free = |area: &&Area| {
            let taken = area
                .busy
                .compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst);
            taken.is_ok()
        };
        let Some(area) = AREAS.iter().find(free) else {
            return Self::new(length);
        };
        let lent = area.enlarge(length);
        if lent.is_some() {
            kernel::clear_at_end(Some(&area.busy));
        } else {
            area.busy.store(0, Ordering::SeqCst);
        }
        lent
    }

    /// At least `length` bytes, for use before the process becomes another program.
    pub(crate) fn new(length: usize) -> Option<Self> {
        let start = kernel::map_memory(length)?;
        Some(Self {
            start,
            length,
            lent: None,
        })
    }

    /// The memory, as words of any value.
    pub(crate) fn words(&mut self) -> &mut [usize] {
        // SAFETY: the mapping is of this length, aligned to a page, and nobody else's while this lives.
        unsafe {
            core::slice::from_raw_parts_mut(
                self.start as *mut usize,
                self.length / size_of::<usize>(),
            )
        }
    }
}

impl Area {
    fn enlarge(&'static self, length: usize) -> Option<Scratch> {
        let (start, before) = (
            self.start.load(Ordering::SeqCst),
            self.length.load(Ordering::SeqCst),
        );
        if before < length {
            let new = kernel::map_memory(length)?;
            self.start.store(new, Ordering::SeqCst);
            self.length.store(length, Ordering::SeqCst);
            if before > 0 {
                // SAFETY: the area is lent to this thread, which does not use it yet.
                unsafe { kernel::unmap(start as *mut u8, before) };
            }
        }
        Some(Scratch {
            start: self.start.load(Ordering::SeqCst),
            length: self.length.load(Ordering::SeqCst),
            lent: Some(self),
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match self.lent {
            Some(area) => {
                kernel::clear_at_end(None);
                area.busy.store(0, Ordering::SeqCst);
            }
            // SAFETY: mapped by `new`, and nothing refers to it any more.
            None => unsafe { kernel::unmap(self.start as *mut u8, self.length) },
        }
    }
}
