//! The mailbox: a file in which a prover sees the stack that the handler has recorded.
//!
//! A *prover* interrupts a program at an instruction of its choice and compares the stack that the handler records with
//! one that it knows to be true. All words are little-endian:
//!
//! | bytes | | written by |
//! |---|---|---|
//! | 0 | [`MAGIC`] | the prover, or the agent where there is none |
//! | 16 | 1 (u32) once signals may arrive | the agent |
//! | 24 | number of the sample in flight (u64); 0: none | the prover |
//! | 48 | name and version of the agent (24 bytes), and the process (u64) | the agent |
//! | 80 | that number again (u64), written last | the handler |
//! | 88 | number of frames (u32) | the handler |
//! | 96 | frames (u64 each, at most [`FRAMES`]), leaf first | the handler |
//!
//! The first frame is the interrupted instruction; the others are return addresses, and what signals interrupted. A frame
//! below 4,096 is a mark: the code of the [`End`] of a walk that did not come to its root. Other bytes are the prover's.
//!
//! A mailbox is of the first process that takes it, and of the programs that this one becomes: its children leave it alone, so
//! that no sample of theirs is an answer.
//!
//! **With a number in flight**, a signal of the session's number is a sample, whatever its
//! `siginfo` says: provers that do not know ours can use it too. If the number is answered already, it is a sample like others.
//! The handler then waits for the reader where it meets unknown code: what it records without a prover is a copy of the
//! stack, which the reader walks once it knows the code, and a copy is not seen in a mailbox.
//!
//! **Signal safety.** Without a mailbox the handler does one load. With one, it writes only to the file, which stays
//! mapped; the number is read again by nobody else, so that a half-written answer is never taken for one.
//!
//! # Safety
//!
//! This file is `unsafe` because it writes to a mapping that another program shares.
#![allow(unsafe_code)]

use crate::region::{Process, Region};
use crate::system;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use selvedge_unwind::{EXACT_PC, End};

/// The first eight bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"STEPBOX1");
/// Frames that there is room for, at most.
pub const FRAMES: usize = 1024;
/// Bytes of a mailbox: a smaller file is none.
pub const BYTES: usize = size_of::<Mailbox>();
/// How long the reader may take to get to know new code.
const PATIENCE: u64 = 5_000_000_000;

/// The file, as the module's documentation lays it out.
#[derive(Debug)]
#[repr(C)]
struct Mailbox {
    magic: AtomicU64,
    prover_1: AtomicU64,
    ready: AtomicU32,
    prover_2: AtomicU32,
    in_flight: AtomicU64,
    prover_3: [AtomicU64; 2],
    name: [AtomicU64; 3],
    process: AtomicU64,
    answered: AtomicU64,
    count: AtomicU32,
    prover_4: AtomicU32,
    frames: [AtomicU64; FRAMES],
}

/// Address of the mailbox; 0: there is none. Relaxed everywhere: a signal that finds it or not is the same to a prover that
/// was not told yet that signals may arrive.
static ADDRESS: AtomicUsize = AtomicUsize::new(0);

fn mailbox() -> Option<&'static Mailbox> {
    let address = ADDRESS.load(Ordering::Relaxed) as *const Mailbox;
    // SAFETY: null, or the mapping that `open` was given, which has all of it and is never taken back. All fields are atomic:
    // another process writes them too.
    unsafe { address.as_ref() }
}

/// Uses the file that is mapped at `start`. Returns whether it is a mailbox.
///
/// # Safety
///
/// `bytes` of a file are mapped there, shared, for reading and writing, for as long as the process lives.
pub unsafe fn open(start: *mut u8, bytes: usize) -> bool {
    if bytes < BYTES {
        return false;
    }
    // SAFETY: at least eight bytes are mapped, by the contract.
    let magic = unsafe { &*start.cast::<AtomicU64>() };
    let there = magic.load(Ordering::Relaxed);
    if there != MAGIC && there != 0 {
        return false;
    }
    // SAFETY: `BYTES` are mapped, by the contract, and all fields are atomic.
    let mailbox = unsafe { &*start.cast::<Mailbox>() };
    let own = u64::from(system::getpid());
    if mailbox.ready.load(Ordering::Acquire) != 0 && mailbox.process.load(Ordering::Relaxed) != own
    {
        return false;
    }
    mailbox.process.store(own, Ordering::Relaxed);
    ADDRESS.store(start.addr(), Ordering::Relaxed);
    magic.store(MAGIC, Ordering::Relaxed);
    true
}

/// Leaves the mailbox to the parent: this is the child of a `fork`.
pub fn leave() {
    ADDRESS.store(0, Ordering::Relaxed);
}

/// Waits until the reader knows the program's code, and says that signals may arrive.
pub fn get_ready(region: &Region, process: &Process) {
    let Some(mailbox) = mailbox() else { return };
    wait_for_reader(region, process);
    let mut name = [0_u8; 24];
    let own = concat!("selvedge ", env!("CARGO_PKG_VERSION")).as_bytes();
    for (place, byte) in name.iter_mut().zip(own) {
        *place = *byte;
    }
    for (place, bytes) in mailbox.name.iter().zip(name.as_chunks().0) {
        place.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
    }
    // Release: the name is complete.
    mailbox.ready.store(1, Ordering::Release);
}

/// Asks the reader to look at the program's mappings, and waits until it knows the code that is in them. Returns whether it
/// has answered.
fn wait_for_reader(region: &Region, process: &Process) -> bool {
    const PAUSE: u64 = 500_000;
    let asked = process
        .unknown_code
        .fetch_add(1, Ordering::Relaxed)
        .wrapping_add(1);
    region.ring_doorbell();
    let now = || system::clock(system::MONOTONIC_CLOCK).unwrap_or(u64::MAX);
    let end = now().saturating_add(PATIENCE);
    // Acquire: pairs with the reader's Release; the map is published.
    while process
        .known_code
        .load(Ordering::Acquire)
        .wrapping_sub(asked)
        .cast_signed()
        < 0
    {
        if now() > end {
            return false;
        }
        system::sleep(PAUSE);
    }
    true
}

/// The number of a sample that a prover waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    number: u64,
    mailbox: &'static Mailbox,
}

/// Whether a prover has asked for a sample, answered or not.
#[inline]
pub(crate) fn is_watched() -> bool {
    mailbox().is_some_and(|mailbox| mailbox.in_flight.load(Ordering::Acquire) != 0)
}

/// Whether a prover waits for a sample.
#[inline]
pub(crate) fn request() -> Option<Request> {
    let mailbox = mailbox()?;
    let number = mailbox.in_flight.load(Ordering::Acquire);
    (number != 0 && number != mailbox.answered.load(Ordering::Relaxed))
        .then_some(Request { number, mailbox })
}

impl Request {
    /// Waits until the reader knows the code that a walk did not. Returns whether it does.
    pub(crate) fn wait_for_reader(self, region: &Region, process: &Process) -> bool {
        wait_for_reader(region, process)
    }

    /// Answers with what was recorded.
    pub(crate) fn answer(self, frames: &[u64], end: End) {
        let mark = (end != End::Root).then_some(end as u64);
        let places = self.mailbox.frames.iter();
        let mut count = 0_u32;
        for (place, frame) in places.zip(frames.iter().copied().chain(mark)) {
            place.store(frame & !EXACT_PC, Ordering::Relaxed);
            count = count.wrapping_add(1);
        }
        self.mailbox.count.store(count, Ordering::Relaxed);
        // Release: pairs with the prover's Acquire; the answer is complete.
        self.mailbox.answered.store(self.number, Ordering::Release);
    }
}
