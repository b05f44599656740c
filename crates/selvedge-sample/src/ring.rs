//! One thread's records: a ring with one producer, the thread (in its handler, or in its last moments), and one
//! consumer, the reader.
//!
//! **Terms.** `head` counts the words ever published, `tail` the words ever consumed; a word's place is its count modulo
//! [`RING_WORDS`]. `tail <= head <= tail + RING_WORDS`, always.
//!
//! **The one ordering fact.** The producer writes words before it publishes them (`head`, Release), and the consumer
//! reads `head` (Acquire) before it reads words; the consumer reads words before it frees them (`tail`, Release), and the
//! producer reads `tail` (Acquire) before it writes words. So nobody reads a word that is being written.
//!
//! **Partial states.** A producer that stops anywhere (`exec`, SIGKILL, the machine) before the store of `head` has
//! published nothing: the record in flight is lost, alone. There is no state between. The producer cannot be
//! interrupted by itself: the handler runs with all signals blocked, and the other producer code runs on the thread with
//! the signal blocked. When a thread ends and another claims the same record, the release of `Thread::key` by the one and
//! its acquisition by the other hand the ring over; `head` goes on counting.
//!
//! **Recap.** Two counters, each written by one side; what lies between them belongs to the consumer, the rest to the
//! producer.
//!
//! # Safety
//!
//! This file is `unsafe` because it turns parts of the shared ring into slices, by the argument above.
#![allow(unsafe_code)]

use crate::record::{Head, Kind};
use crate::region::{RING_WORDS, Region, Thread, Words};
use core::sync::atomic::Ordering;

/// A place in a ring for a record that is being written: dropped without [`Reservation::publish`], nothing happened.
#[derive(Debug)]
pub struct Reservation<'a> {
    thread: &'a Thread,
    ring: &'a Words<RING_WORDS>,
    /// Count of the first word of the record (behind the padding, if any).
    start: u64,
    len: usize,
}

fn place(count: u64) -> usize {
    (count % RING_WORDS as u64) as usize
}

/// Finds room for a record of up to `len` words in the ring of thread record `index`. `None` where it is full.
///
/// Only the thread that owns the record may call this, with the profiling signal blocked.
#[must_use]
pub fn reserve(region: &Region, index: u32, len: usize) -> Option<Reservation<'_>> {
    let thread = region.thread(index)?;
    let ring = region.rings.get(index as usize)?;
    // Relaxed: this thread wrote it. Acquire: pairs with the consumer's Release, its reads of the old words are done.
    let head = thread.head.load(Ordering::Relaxed);
    let tail = thread.tail.load(Ordering::Acquire);
    let room = (RING_WORDS as u64).checked_sub(head.wrapping_sub(tail))?;
    let before_wrap = RING_WORDS.wrapping_sub(place(head));
    let padding = if before_wrap < len { before_wrap } else { 0 };
    if (padding as u64).wrapping_add(len as u64) > room {
        return None;
    }
    if padding > 0 {
        let pad = Head {
            len: padding,
            kind: Kind::Pad,
            end: 0,
        };
        // SAFETY: `place` is below `RING_WORDS`; the word is free (room was checked), so only this producer uses it.
        unsafe { ring.as_ptr().wrapping_add(place(head)).write(pad.to_word()) };
    }
    Some(Reservation {
        thread,
        ring,
        start: head.wrapping_add(padding as u64),
        len,
    })
}

/// Whether at least half of the ring of a thread record is free.
#[must_use]
pub fn is_half_free(thread: &Thread) -> bool {
    let used = thread
        .head
        .load(Ordering::Relaxed)
        .wrapping_sub(thread.tail.load(Ordering::Relaxed));
    used < RING_WORDS as u64 / 2
}

impl Reservation<'_> {
    /// The words of the record.
    pub fn words(&mut self) -> &mut [u64] {
        let start = self.ring.as_ptr().wrapping_add(place(self.start));
        // SAFETY: `reserve` checked that `len` words from `start` on do not wrap and are free: this producer's alone.
        unsafe { core::slice::from_raw_parts_mut(start, self.len) }
    }

    /// Publishes the first `used` words. Returns whether the ring is more than half full.
    pub fn publish(self, used: usize) -> bool {
        let head = self.start.wrapping_add(used.min(self.len) as u64);
        // Release: pairs with the consumer's Acquire; the commit point of the record.
        self.thread.head.store(head, Ordering::Release);
        head.wrapping_sub(self.thread.tail.load(Ordering::Relaxed)) > RING_WORDS as u64 / 2
    }
}

/// Hands every published record of thread record `index` to `take`, and frees them. Returns the number of records.
///
/// Only the reader may call this. A length that makes no sense (a target may write anything into shared memory) drops
/// what is left and is reported as `Err` with the words dropped.
///
/// # Errors
///
/// The number of words that were not records.
pub fn consume(
    region: &Region,
    index: u32,
    mut take: impl FnMut(Head, &[u64]),
) -> Result<usize, u64> {
    let (Some(thread), Some(ring)) = (region.thread(index), region.rings.get(index as usize))
    else {
        return Ok(0);
    };
    // Acquire: pairs with `publish`. Relaxed: only this reader writes it.
    let head = thread.head.load(Ordering::Acquire);
    let mut tail = thread.tail.load(Ordering::Relaxed);
    let mut records = 0;
    while tail != head {
        let at = place(tail);
        // SAFETY: `at` is below `RING_WORDS`, and words before `head` are the consumer's.
        let word = unsafe { ring.as_ptr().wrapping_add(at).read() };
        let fits = |head_: &Head| {
            head_.len > 0
                && head_.len <= RING_WORDS - at
                && head_.len as u64 <= head.wrapping_sub(tail)
        };
        let Some(first) = Head::from_word(word).filter(fits) else {
            thread.tail.store(head, Ordering::Release);
            return Err(head.wrapping_sub(tail));
        };
        if first.kind != Kind::Pad {
            // SAFETY: `fits` checked that the record neither wraps nor passes `head`; those words are the consumer's.
            let words =
                unsafe { core::slice::from_raw_parts(ring.as_ptr().wrapping_add(at), first.len) };
            take(first, words);
            records += 1;
        }
        tail = tail.wrapping_add(first.len as u64);
        // Release: pairs with `reserve`; the words are free.
        thread.tail.store(tail, Ordering::Release);
    }
    Ok(records)
}
