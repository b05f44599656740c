//! The arena of a region: where unwind tables and module maps are put for the handlers to read.
//!
//! First fit over a list of free pieces: there are few, and a module map is as large as the one before it.
//!
//! # Safety
//!
//! This file is `unsafe` because it writes the shared arena.
#![allow(unsafe_code)]

use selvedge_sample::Region;
use selvedge_sample::region::ARENA;

/// Allocates from the arena. Only the reader has one.
#[derive(Debug)]
pub(crate) struct Arena {
    region: &'static Region,
    /// Free pieces: offset and length, by offset, no two adjacent.
    free: Vec<(u64, u64)>,
    used: u64,
}

/// A piece of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

const ALIGN: u64 = 64;

impl Arena {
    /// All of `region`'s arena but its first bytes: offset 0 means "none".
    pub(crate) fn new(region: &'static Region) -> Self {
        Self {
            region,
            free: vec![(ALIGN, ARENA as u64 - ALIGN)],
            used: 0,
        }
    }

    /// Copies the parts into a new piece, one behind the other. `None` where there is no room.
    pub(crate) fn put(&mut self, parts: &[&[u8]]) -> Option<Piece> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let len = (total as u64).next_multiple_of(ALIGN).max(ALIGN);
        let at = self.free.iter().position(|&(_, room)| room >= len)?;
        let (offset, room) = self.free[at];
        if room == len {
            self.free.remove(at);
        } else {
            self.free[at] = (offset + len, room - len);
        }
        self.used += len;
        let mut target = self
            .region
            .arena
            .as_ptr()
            .cast::<u8>()
            .wrapping_add(offset as usize);
        for part in parts {
            // SAFETY: the piece lies inside the arena and is free: nobody reads it before its offset is published.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), target, part.len()) };
            target = target.wrapping_add(part.len());
        }
        Some(Piece { offset, len })
    }

    /// Takes a piece back. Nobody may read it any more.
    pub(crate) fn release(&mut self, piece: Piece) {
        self.used -= piece.len;
        let at = self
            .free
            .partition_point(|&(offset, _)| offset < piece.offset);
        self.free.insert(at, (piece.offset, piece.len));
        let joins = |a: (u64, u64), b: (u64, u64)| a.0 + a.1 == b.0;
        if at + 1 < self.free.len() && joins(self.free[at], self.free[at + 1]) {
            self.free[at].1 += self.free.remove(at + 1).1;
        }
        if at > 0 && joins(self.free[at - 1], self.free[at]) {
            self.free[at - 1].1 += self.free.remove(at).1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::SessionMemory;

    #[test]
    fn pieces_given_back_in_any_order_become_one_again() {
        let mut arena = Arena::new(SessionMemory::private().unwrap().region);
        let whole = arena.free.clone();
        let pieces: Vec<Piece> = (1..20)
            .map(|n| arena.put(&[&vec![7; n * 100]]).unwrap())
            .collect();
        for at in [3, 1, 2, 0] {
            arena.release(pieces[at]);
        }
        for &piece in pieces[4..].iter().rev() {
            arena.release(piece);
        }
        assert_eq!(arena.free, whole);
        assert_eq!(arena.used, 0);
    }

    #[test]
    fn full_arena_refuses_and_keeps_what_it_has() {
        let mut arena = Arena::new(SessionMemory::private().unwrap().region);
        arena.free = vec![(64, 128)];
        let first = arena.put(&[&[1; 100]]).unwrap();
        assert_eq!(
            first,
            Piece {
                offset: 64,
                len: 128
            }
        );
        assert_eq!(arena.put(&[&[2; 1]]), None);
    }
}
