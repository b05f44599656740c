//! What the walk before has read, so that the part of the stack that has not changed is compared instead of walked.
//!
//! **Terms.** A frame is *plain* if it was left by a rule of 16 bytes whose CFA counts from `rsp` or `rbp`: nearly all are.
//! The *chain* is the outermost plain frames of an earlier walk, from the last frame inward. A walk *joins* the chain at a
//! frame that both have.
//!
//! **Proof.** From a frame on, a walk is a function of the module map, of the frame (its address and stack pointer, and
//! whether it was interrupted), of the registers that are used as a CFA's base before they are loaded anew, and of the
//! words that it reads. (Registers that calls may overwrite are used by rules of more than 16 bytes only.) Behind a plain
//! frame that is only `rbp`, and the words are return addresses, which lie right below
//! the stack pointer of the frame that they lead to, and saved values of `rbp` that are used. So if the map is the same,
//! the frame is, `rbp` is (where the chain says that it is used), and each of those words further out has the value that it
//! had, then the rest of the walk is what it was, and ends as it ended. All of them are compared; nothing is assumed of
//! what ran since, or of which thread it was.
//!
//! Comparing costs a third of a walk, since loads of known addresses do not wait for one another.

use crate::walk::{End, Memory};

/// Frames kept, at most. A walk with more is not kept, nor one that did not come to its root.
const FRAMES: usize = 512;

/// A frame of the chain.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Entry {
    /// As a walk writes it: see [`EXACT_PC`](crate::EXACT_PC).
    frame: u64,
    /// Its stack pointer, and in the lowest bits [`NEEDS_BP`] and [`NOT_PLAIN`].
    sp: u64,
    /// The value of `rbp` in this frame, if it needs it.
    bp: u64,
    /// Where the frame that it called has saved that; 0: that frame left `rbp` alone.
    bp_at: u64,
}

/// `rbp` is used further out, before it is loaded anew.
const NEEDS_BP: u64 = 1;
/// The frame was left by another rule.
const NOT_PLAIN: u64 = 2;
const FLAGS: u64 = 7;

/// The chain of the walk before, and the frames of the one that is going on. Valid if all bytes are zero, whatever was in
/// it before: a wrong one costs time, since each word is compared.
#[derive(Debug)]
#[repr(C)]
pub struct Memo {
    /// The serial number of the module map.
    map: u64,
    /// Where the walk read a zero for a return address; 0: it ended at a frame that has no caller by its rule.
    zero_at: u64,
    len: u64,
    chain: [Entry; FRAMES],
    fresh: [Entry; FRAMES],
}

impl Default for Memo {
    fn default() -> Self {
        Self {
            map: 0,
            zero_at: 0,
            len: 0,
            chain: [Entry::default(); FRAMES],
            fresh: [Entry::default(); FRAMES],
        }
    }
}

/// A walk that keeps what it finds in a [`Memo`].
#[derive(Debug)]
pub(crate) struct Keeper<'a> {
    memo: &'a mut Memo,
    /// Entries of the chain that lie inward of this are behind us.
    next: usize,
    /// Frames of this walk; the first are in `fresh`.
    fresh: usize,
    zero_at: u64,
    map: u64,
}

impl<'a> Keeper<'a> {
    pub(crate) fn new(memo: &'a mut Memo, map: u64) -> Self {
        let len = (memo.len as usize).min(FRAMES);
        let next = if memo.map == map { len } else { 0 };
        Self {
            memo,
            next,
            fresh: 0,
            zero_at: 0,
            map,
        }
    }

    /// Notes a frame. `bp_at` is where the one before has saved `rbp`, or 0.
    #[inline]
    pub(crate) fn arrive(&mut self, frame: u64, sp: u64, bp_at: u64) {
        if let Some(entry) = self.memo.fresh.get_mut(self.fresh) {
            (entry.frame, entry.sp, entry.bp_at) = (frame, sp & !FLAGS, bp_at);
        }
        self.fresh = self.fresh.wrapping_add(1);
    }

    /// Notes that the last frame was left with `rbp` as the base.
    #[inline]
    pub(crate) fn use_bp(&mut self, value: u64) {
        for entry in self.fresh_entries().iter_mut().rev() {
            if entry.sp & NEEDS_BP != 0 {
                return;
            }
            entry.sp |= NEEDS_BP;
            entry.bp = value;
            if entry.bp_at != 0 {
                return;
            }
        }
    }

    /// Notes that the last frame is left by a rule that is not plain.
    #[inline]
    pub(crate) fn leave_otherwise(&mut self) {
        if let Some(entry) = self.fresh_entries().last_mut() {
            entry.sp |= NOT_PLAIN;
        }
    }

    /// The rest of the walk depends on more than the words that a memo compares: it must not be taken from there. What it
    /// finds may be kept, since a word that is not what the walk took for it is found to differ.
    pub(crate) fn join_no_more(&mut self) {
        self.next = 0;
    }

    /// The last frame was none. The one before ends the walk in a way that is not kept.
    pub(crate) fn take_back(&mut self) {
        self.fresh = self.fresh.wrapping_sub(1);
        self.leave_otherwise();
    }

    /// Notes where a zero was read for a return address.
    #[inline]
    pub(crate) fn arrive_at_zero(&mut self, at: u64) {
        self.zero_at = at;
    }

    #[inline]
    fn fresh_entries(&mut self) -> &mut [Entry] {
        self.memo.fresh.get_mut(..self.fresh).unwrap_or_default()
    }

    /// Looks for the frame in the chain. Then it is the last one before `next`.
    #[inline]
    fn find(&mut self, frame: u64, sp: u64) -> bool {
        while let Some(last) = self.next.checked_sub(1) {
            let Some(entry) = self.memo.chain.get(last) else {
                return false;
            };
            let at = entry.sp & !FLAGS;
            if at > sp {
                return false;
            }
            if at == sp && entry.frame == frame {
                return true;
            }
            self.next = last;
        }
        false
    }

    /// If the walk has come to a frame from where on the stack is as it was: writes the frames behind it to `rest`. Gives
    /// back their number and how the walk ends.
    ///
    /// `bp` gives the value of `rbp` in this frame, if it is to be had.
    #[inline]
    pub(crate) fn join<M: Memory>(
        &mut self,
        frame: u64,
        sp: u64,
        memory: &mut M,
        bp: impl FnOnce(&mut M) -> Option<u64>,
        rest: &mut [u64],
    ) -> Option<(usize, End)> {
        if !self.find(frame, sp) {
            return None;
        }
        let (here, outer) = self.memo.chain.get(..self.next)?.split_last()?;
        if outer.len() > rest.len() {
            // What does not fit is walked: the outermost frames go elsewhere.
            self.next = 0;
            return None;
        }
        let (needs_bp, known_bp) = (here.sp & NEEDS_BP != 0, here.bp);
        if needs_bp && bp(memory) != Some(known_bp) {
            // Perhaps another frame with this stack pointer; none further in.
            self.next = self.next.wrapping_sub(1);
            return None;
        }
        let zero_at = self.memo.zero_at;
        if zero_at != 0 && memory.read(zero_at) != Some(0) {
            self.next = 0;
            return None;
        }
        let mut same = 0_usize;
        for (entry, place) in outer.iter().rev().zip(rest.iter_mut()) {
            let ip_at = (entry.sp & !FLAGS).wrapping_sub(8);
            if memory.read(ip_at) != Some(entry.frame) {
                break;
            }
            if entry.sp & NEEDS_BP != 0
                && entry.bp_at != 0
                && memory.read(entry.bp_at) != Some(entry.bp)
            {
                break;
            }
            *place = entry.frame;
            same = same.wrapping_add(1);
        }
        let whole = same == outer.len();
        if !whole {
            // Nothing that is inward of the difference can be joined.
            self.next = self.next.wrapping_sub(same).wrapping_sub(1);
            return None;
        }
        if needs_bp {
            self.use_bp(known_bp);
        }
        self.zero_at = zero_at;
        // The frame itself is kept as it is now: another one may have called it, and saved its `rbp` elsewhere.
        self.keep(self.next.wrapping_sub(1));
        Some((same, End::Root))
    }

    /// Keeps the frames of a walk that has come to its end by itself.
    pub(crate) fn finish(&mut self, end: End) {
        if end == End::Root && self.fresh <= FRAMES {
            self.keep(0);
        } else {
            self.memo.len = 0;
        }
    }

    /// Puts the plain frames of this walk before the first `kept` of the chain.
    fn keep(&mut self, kept: usize) {
        let Memo { chain, fresh, .. } = &mut *self.memo;
        let fresh = fresh.get(..self.fresh).unwrap_or_default();
        let mut len = kept;
        let room = chain.get_mut(kept..).unwrap_or_default();
        for (place, entry) in room.iter_mut().zip(fresh.iter().rev()) {
            if entry.sp & NOT_PLAIN != 0 {
                break;
            }
            *place = *entry;
            len = len.wrapping_add(1);
        }
        self.memo.len = len as u64;
        self.memo.zero_at = self.zero_at;
        self.memo.map = self.map;
    }
}
