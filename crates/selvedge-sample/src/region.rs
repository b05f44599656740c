//! The memory that a session records into.
//!
//! All of it is valid when zero, holds no pointers, and means the same at any address, so that the recorder and every
//! target map the same file. Sizes are fixed: recording never grows it. It is sparse: pages that nobody touched cost
//! nothing.
//!
//! | part | bytes | written by |
//! |---|---|---|
//! | [`Header`] | 4 KiB | the reader, before any target attaches; counters by targets |
//! | [`Process`] table | [`PROCESSES`] × 512 | the target; `map` and release by the reader |
//! | [`Thread`] table | [`THREADS`] × 2 KiB | the thread; `tail`, stack bounds by the reader |
//! | maps texts | [`PROCESSES`] × 32 KiB | the target |
//! | memos | [`THREADS`] × 32 KiB | the thread's handler |
//! | rings | [`THREADS`] × 256 KiB | the thread |
//! | arena | [`ARENA`] | the reader: unwind tables and module maps |
//!
//! # Safety
//!
//! This file is `unsafe` because it gives out raw parts of shared memory (rings, texts, arena).
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use selvedge_unwind::Memo;

/// Processes that can be profiled at the same time.
pub const PROCESSES: usize = 1024;
/// Threads that can be profiled at the same time, in all processes of a session.
pub const THREADS: usize = 2048;
/// Words of one thread's ring.
pub const RING_WORDS: usize = 32 * 1024;
/// Bytes of a process's copy of `/proc/self/maps`.
pub const MAPS_BYTES: usize = 32 * 1024;
/// Bytes for unwind tables and module maps.
pub const ARENA: usize = 512 << 20;
/// First word of a region: `SELVEDGE`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"SELVEDGE");
/// Version of this layout. The agent inside a command always fits it; a stray one of another version stays away.
pub const VERSION: u32 = 3;

/// State of a session: [`Header::state`].
pub mod session {
    /// Nothing may be recorded yet.
    pub const IDLE: u32 = 0;
    /// Samples are taken.
    pub const RECORDING: u32 = 1;
    /// No more samples: handlers disarm their timers.
    pub const STOPPED: u32 = 2;
}

/// How signals are produced: [`Header::engine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Engine {
    /// A POSIX CPU-time timer per thread.
    Timer = 1,
    /// A `perf_event` task clock per thread, opened by the reader.
    Perf = 2,
    /// `ITIMER_PROF`, one per process.
    Itimer = 3,
}

impl Engine {
    /// The engine with this code.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Timer),
            2 => Some(Self::Perf),
            3 => Some(Self::Itimer),
            _ => None,
        }
    }

    /// Its name, as options and outputs spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Timer => "timer",
            Self::Perf => "perf",
            Self::Itimer => "itimer",
        }
    }
}

/// Stacks that a process may copy before the reader has looked at it.
pub const FIRST_RAW_BUDGET: i32 = 256;

/// Why a delivered sample was not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Loss {
    /// The thread's ring was full.
    RingFull = 0,
    /// There was no free [`Thread`] for the thread.
    NoThread = 1,
    /// The signal arrived after the thread or the session had ended.
    Late = 2,
}

/// Number of [`Loss`] causes.
pub const LOSSES: usize = 3;

impl Loss {
    /// All causes, in the order of their codes.
    pub const ALL: [Self; LOSSES] = [Self::RingFull, Self::NoThread, Self::Late];

    /// Its name, as outputs spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RingFull => "no room",
            Self::NoThread => "too many threads",
            Self::Late => "late",
        }
    }
}

/// A count of samples with the CPU time that they stand for.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Tally {
    /// Samples.
    pub count: AtomicU64,
    /// Nanoseconds of CPU time.
    pub weight: AtomicU64,
}

impl Tally {
    /// Adds a sample. Relaxed: the numbers are read when they no longer change, or as an estimate.
    pub fn add(&self, weight: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.weight.fetch_add(weight, Ordering::Relaxed);
    }
}

/// What all processes of a session share.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Header {
    // Immutable once a target can see the region:
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// Signal number.
    pub signal: AtomicU32,
    /// [`Engine`] asked for.
    pub engine: AtomicU32,
    /// 1 where children are followed.
    pub children: AtomicU32,
    /// Nanoseconds of CPU time between samples, as asked.
    pub period: AtomicU64,
    /// Nanoseconds between two ticks of the kernel.
    pub tick: AtomicU64,
    /// A random number, its low 16 bits zero: tells this session's signals and region from others'.
    pub nonce: AtomicU64,
    // Written by the reader, read by targets:
    /// One of [`session`].
    pub state: AtomicU32,
    // Written by all:
    /// Counts requests to the reader; it sleeps on this word (a futex).
    pub doorbell: AtomicU32,
    /// 1 while the reader sleeps: only then is the system call that wakes it worth making.
    pub asleep: AtomicU32,
    /// Processes that found no free record.
    pub processes_refused: AtomicU32,
    /// One more than the highest index of a process record ever claimed: the reader looks no further.
    pub processes_used: AtomicU32,
    /// Counts processes that attached: see [`Process::ticket`].
    pub tickets: AtomicU64,
    /// When the reader last looked, by the monotonic clock, in nanoseconds.
    pub seen: AtomicU64,
    /// A bit per thread record that was ever claimed: the reader touches no other (looking at one makes it cost a page).
    pub threads_used: [AtomicU64; THREADS / 64],
}

/// States of a [`Process`].
pub mod process_state {
    /// Free.
    pub const FREE: u32 = 0;
    /// Being filled in by its process.
    pub const CLAIMED: u32 = 1;
    /// In use.
    pub const LIVE: u32 = 2;
}

/// One program image being profiled: an `exec` starts another.
#[derive(Debug)]
#[repr(C, align(512))]
pub struct Process {
    /// One of [`process_state`]: claimed by the target, released by the reader.
    pub state: AtomicU32,
    /// Process id as the process itself sees it.
    pub pid: AtomicU32,
    /// The inode of the process's namespace of process ids; 0 where it cannot be known. In another than the reader's, its
    /// ids mean nothing to the reader, or somebody else.
    pub namespace: AtomicU64,
    /// The place of this image among all that have attached: of two with the same process id, the later one is alive.
    pub ticket: AtomicU64,
    /// [`Engine`] in use: differs from the header's after a fallback.
    pub engine: AtomicU32,
    /// Error number of the first timer that the kernel refused; 0 if none.
    pub engine_error: AtomicI32,
    /// Counts samples that met code in no known module: the reader then looks at the process's mappings anew.
    pub unknown_code: AtomicU32,
    /// The value of `unknown_code` for which the reader has looked, and has published all that it found.
    pub known_code: AtomicU32,
    /// Length of the text in the process's maps text; 0 until it is complete.
    pub maps_len: AtomicU32,
    /// Whether the program owns the profiling signal too (its handler is called for signals that are not ours).
    pub signal_shared: AtomicU32,
    /// Threads started.
    pub threads: AtomicU32,
    /// Threads that found no free [`Thread`].
    pub threads_refused: AtomicU32,
    /// How many more stacks may be copied for the reader to walk: it grants more while there is code that it is still
    /// getting to know, so that code that can never be known does not fill the rings.
    pub raw_budget: AtomicI32,
    /// Whether there are orders for whichever thread's handler runs next: see [`Thread::bury`].
    pub orders: AtomicU32,
    /// Offset in the arena of the current module map, whose first word is its length in bytes; 0: none yet.
    pub map: AtomicU64,
    /// CPU time of the process when it attached, in nanoseconds.
    pub cpu_start: AtomicU64,
    /// CPU time of the process when it last left word (exit, exec); 0: never.
    pub cpu_end: AtomicU64,
    /// Signals of ours that reached the handler.
    pub delivered: AtomicU64,
    /// Samples recorded.
    pub recorded: Tally,
    /// CPU time while a thread blocked the signal.
    pub blocked: AtomicU64,
    /// CPU time of ended threads after their last sample.
    pub unsampled: AtomicU64,
    /// Samples lost, by [`Loss`].
    pub lost: [Tally; LOSSES],
    /// 1 once the process has entered a sandbox, in which the handler's system calls might kill it: it is not sampled from
    /// then on, and must be sent no signal.
    pub sandboxed: AtomicU32,
}

/// Words of [`Thread::scratch`].
pub const SCRATCH_WORDS: usize = 128;

/// One thread being profiled.
#[derive(Debug)]
#[repr(C, align(2048))]
pub struct Thread {
    /// Process index (plus one) and thread id: see [`key`]; 0 while free.
    ///
    /// Claimed by compare-and-swap with [`CLAIMING`] set, which falls when all else is written: until then nobody takes it
    /// for the thread's record. Cleared last.
    pub key: AtomicU64,
    /// Counts claims of this record, from 1: what was learned of an earlier thread is told apart by it.
    pub generation: AtomicU32,
    /// 1 once `timer` is armed.
    pub armed: AtomicU32,
    /// Kernel's number of the thread's timer.
    pub timer: AtomicI32,
    /// The generation of a thread that has ended without telling: whichever handler runs next deletes its timer and frees
    /// the record, if that is still the generation.
    pub bury: AtomicU32,
    /// Odd while the thread is in the handler: the reader reclaims a module map only when it has seen every thread of
    /// the process outside the handler since the map was replaced.
    pub sequence: AtomicU32,
    /// The generation for which `stack_low` and `stack_high` are right.
    pub stack_generation: AtomicU32,
    /// Lowest address of the thread's stack.
    pub stack_low: AtomicU64,
    /// One past its highest address.
    pub stack_high: AtomicU64,
    /// A stack pointer of the thread, for the reader to find the bounds by.
    pub stack_hint: AtomicU64,
    /// The thread pointer: where glibc puts the thread's control block, at the top of its stack.
    pub thread_pointer: AtomicU64,
    /// CPU time of the thread that is accounted for, in nanoseconds.
    pub accounted: AtomicU64,
    /// Samples since the claim.
    pub samples: AtomicU64,
    /// Words ever written into the ring: written by the thread.
    pub head: AtomicU64,
    /// Words ever read: written by the reader.
    pub tail: AtomicU64,
    /// Copied stack: owned by the thread's handler.
    pub scratch: Words<SCRATCH_WORDS>,
}

/// Plain memory in the region.
#[repr(transparent)]
pub struct Words<const N: usize>(UnsafeCell<[u64; N]>);

impl<const N: usize> core::fmt::Debug for Words<N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "[{N} words]")
    }
}

// SAFETY: `Words` gives out a raw pointer only; each user of it states who may write when.
unsafe impl<const N: usize> Sync for Words<N> {}

impl<const N: usize> Words<N> {
    /// The first word.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u64 {
        self.0.get().cast()
    }
}

/// What one thread's handler keeps from a sample to the next.
#[repr(transparent)]
pub struct Own<T>(UnsafeCell<T>);

impl<T> core::fmt::Debug for Own<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a thread's own")
    }
}

// SAFETY: as for `Words`.
unsafe impl<T> Sync for Own<T> {}

impl<T> Own<T> {
    /// Where it is.
    #[must_use]
    pub fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}

/// Words of a maps text.
pub const MAPS_WORDS: usize = MAPS_BYTES / 8;
/// Words of the arena.
pub const ARENA_WORDS: usize = ARENA / 8;

/// The whole memory of a session.
#[derive(Debug)]
#[repr(C)]
pub struct Region {
    /// Shared facts.
    pub header: Header,
    /// Processes.
    pub processes: [Process; PROCESSES],
    /// Threads.
    pub threads: [Thread; THREADS],
    /// Copies of `/proc/self/maps`, one per process.
    pub maps: [Words<MAPS_WORDS>; PROCESSES],
    /// What walks have found, one per thread.
    pub memos: [Own<Memo>; THREADS],
    /// Rings, one per thread.
    pub rings: [Words<RING_WORDS>; THREADS],
    /// Unwind tables and module maps.
    pub arena: Words<ARENA_WORDS>,
}

/// The key of a thread: which process record, which thread id.
#[must_use]
pub fn key(process: u32, tid: u32) -> u64 {
    ((u64::from(process) + 1) << 32) | u64::from(tid)
}

/// In a key: the record is being filled in.
pub const CLAIMING: u64 = 1 << 63;

/// Takes a key apart: process index and thread id. `None` for a record that is free or being claimed.
#[must_use]
pub fn unkey(key: u64) -> Option<(u32, u32)> {
    if key & CLAIMING != 0 {
        return None;
    }
    let process = u32::try_from(key >> 32).ok()?.checked_sub(1)?;
    Some((process, (key & 0xffff_ffff) as u32))
}

impl Region {
    /// Bytes to map.
    pub const SIZE: usize = size_of::<Self>();

    /// The process record with this index.
    #[must_use]
    pub fn process(&self, index: u32) -> Option<&Process> {
        self.processes.get(index as usize)
    }

    /// The thread record with this index.
    #[must_use]
    pub fn thread(&self, index: u32) -> Option<&Thread> {
        self.threads.get(index as usize)
    }

    /// Bytes of the arena from `offset` on; empty where the offset is outside.
    ///
    /// # Safety
    ///
    /// The reader published `offset` (so the bytes there no longer change) and has not taken it back since the caller
    /// entered the handler (`Thread::sequence`), or the caller is the reader.
    #[must_use]
    pub unsafe fn arena(&self, offset: u64, len: usize) -> &[u8] {
        let Ok(offset) = usize::try_from(offset) else {
            return &[];
        };
        if offset > ARENA || len > ARENA.wrapping_sub(offset) {
            return &[];
        }
        let start = self.arena.as_ptr().cast::<u8>().wrapping_add(offset);
        // SAFETY: the range lies inside `arena` by the check above; the caller answers for nobody writing it.
        unsafe { core::slice::from_raw_parts(start, len) }
    }

    /// All of the arena, for the reader itself, which is the one that changes it.
    #[must_use]
    pub fn arena_of_reader(&self, len: usize) -> &[u8] {
        // SAFETY: what is published does not change; what is not, only the reader writes, not while it walks.
        unsafe { self.arena(0, len) }
    }

    /// The first `len` bytes of a process's maps text.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn maps_text(&self, index: u32, len: usize) -> std::string::String {
        let Some(text) = self.maps.get(index as usize) else {
            return std::string::String::new();
        };
        // SAFETY: the text is `MAPS_BYTES` long and complete: its length was read with Acquire. A target that changes it
        // meanwhile gets a mixed text, which is parsed with suspicion.
        let bytes =
            unsafe { core::slice::from_raw_parts(text.as_ptr().cast::<u8>(), len.min(MAPS_BYTES)) };
        std::string::String::from_utf8_lossy(bytes).into_owned()
    }

    /// The indices of the thread records that were ever claimed.
    pub fn used_threads(&self) -> impl Iterator<Item = u32> + '_ {
        self.header
            .threads_used
            .iter()
            .zip(0_u32..)
            .flat_map(|(word, block)| {
                // Acquire: pairs with `note_thread_used`.
                let bits = word.load(Ordering::Acquire);
                (0..64_u32)
                    .filter(move |bit| bits >> bit & 1 == 1)
                    .map(move |bit| block.wrapping_mul(64).wrapping_add(bit))
            })
    }

    /// Whether a thread record was ever claimed. One that was not holds nothing.
    #[must_use]
    pub fn is_thread_used(&self, index: u32) -> bool {
        let word = self.header.threads_used.get(index as usize / 64);
        // SeqCst: whoever has published a claim sees that of another: see `target::start_thread`.
        word.is_some_and(|word| word.load(Ordering::SeqCst) >> (index % 64) & 1 == 1)
    }

    /// Notes that a thread record is in use: before its key is set.
    pub fn note_thread_used(&self, index: u32) {
        if let Some(word) = self.header.threads_used.get(index as usize / 64) {
            let bit = 1 << (index % 64);
            // SeqCst: as in `is_thread_used`; includes the Release that pairs with `used_threads`.
            if word.load(Ordering::SeqCst) & bit == 0 {
                word.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }

    /// Asks the reader to look, waking it where it sleeps.
    pub fn ring_doorbell(&self) {
        // SeqCst on both sides (reader: `asleep` = 1, then reads `doorbell`): either we see it asleep, or it sees our
        // ring before it sleeps. The futex compares again, so a ring between its read and its sleep is not lost either.
        self.header.doorbell.fetch_add(1, Ordering::SeqCst);
        if self.header.asleep.load(Ordering::SeqCst) != 0 {
            crate::system::futex_wake(&self.header.doorbell);
        }
    }
}

const _: () = assert!(size_of::<Header>() == 4096);
const _: () = assert!(size_of::<Process>() == 512);
const _: () = assert!(size_of::<Thread>() == 2048);
