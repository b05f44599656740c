//! The signal handler: classify, walk, record.
//!
//! **Terms.** A *signal of ours* carries the session's random number (timers, arming requests), or has a code that only
//! our engine produces (`perf_event`, `ITIMER_PROF`). Any other signal of the same number is the *program's*.
//!
//! **What may be interrupted.** Everything: the handler assumes nothing of the thread but that it has a stack below its
//! stack pointer (or an alternate one). It takes no lock, allocates nothing, uses no thread-local storage, does not
//! touch `errno` (raw system calls), and is itself never interrupted: all signals are blocked in it.
//!
//! **Every partial state of the thread's record that a signal can meet:**
//! 1. no record (the thread was never seen, is being given one, or has just ended): nothing to write to. A request to arm
//!    claims a record and arms it. A timer's or an event's signal is late, and counted so: both are armed only for threads that have a record.
//!    `ITIMER_PROF` reaches threads that were never seen, so its signal claims a record; one that has just ended keeps it
//!    blocked (see [`target::end_this_thread`]).
//! 2. claimed by another thread on our behalf: while its fields are being written, its key is not this thread's yet, so
//!    this is state 1; a signal is then of an engine that signals whole processes, and late. Once it is, it is state 3.
//! 3. claimed and armed: the normal case.
//! 4. being ended by its own thread: the signal is blocked there, so this state is never seen.
//! 5. handed to another thread: state 1. Who runs this is known in one of two ways, the first of which saves a system call:
//!    - The signal is of the very timer that the record is armed with now. The kernel sends a timer's signal to that
//!      timer's thread only, and gives its number to no other timer as long as the process lives (it counts on:
//!      `posix_timer_add`, since Linux 3.10). Before a record is freed, `armed` falls and the timer is deleted: a signal
//!      that was under way then finds the record free, being claimed, not yet armed, or armed with a timer of another
//!      number. The record must be of this process, too: another's timers are counted anew. Children of `fork` and
//!      `vfork` inherit neither timers nor signals under way.
//!    - Otherwise the key is compared with this thread's id, which is asked for, never taken from the signal.
//!
//! **The session** may stop at any instruction: the handler then disarms its own timer and records nothing. The module
//! map may be replaced at any instruction: `sequence` is odd while the handler may read the old one, and the reader
//! waits for that.
//!
//! **Recap.** The thread writes its own record only; the reader's part of it is published by one store each; whatever
//! does not fit is counted.
//!
//! # Safety
//!
//! This file is `unsafe` because it is called by the kernel with raw pointers and reads memory that the reader publishes.
#![allow(unsafe_code)]

use crate::action::pass_on;
use crate::record::{
    HEADER_WORDS, Head, Kind, MAX_FRAMES, RAW_STACKS, REGISTER_WORDS, register_words,
};
use crate::region::{Engine, Loss, Region, Thread, key, session, unkey};
use crate::stack::{self, Stack};
use crate::system;
use crate::target::{self, Base, Session};
use crate::{mailbox, ring, weight};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{Ordering, compiler_fence, fence};
use selvedge_arch::{Interrupted, SignalInfo};
use selvedge_unwind::{EXACT_PC, End, ModuleMap, Walked, walk_again};

/// What a signal is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// A sample of the thread with the record that a timer names, or of whichever record it has.
    Sample(Option<Hint>),
    /// The reader asks this thread to claim a record and arm itself.
    Arm,
    /// Not ours.
    Program,
}

/// What the signal of a timer says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hint {
    /// Index of the thread record that the timer was made for.
    index: u32,
    /// The kernel's number of the timer.
    timer: i32,
}

/// Codes of `siginfo_t` (include/uapi/asm-generic/siginfo.h).
pub(crate) mod code {
    pub(crate) const SI_QUEUE: i32 = -1;
    pub(crate) const SI_TIMER: i32 = -2;
    pub(crate) const SI_KERNEL: i32 = 0x80;
    /// `POLL_IN` to `POLL_HUP`: what `F_SETSIG` produces.
    pub(crate) const POLL: core::ops::RangeInclusive<i32> = 1..=6;
}

pub(crate) fn purpose(session: Session, info: SignalInfo) -> Purpose {
    let engine = Engine::from_code(session.process.engine.load(Ordering::Relaxed));
    match (info.code(), engine) {
        (code::SI_TIMER, _) => match target::open_cookie(session.region, info.value()) {
            Some(index) => Purpose::Sample(Some(Hint {
                index,
                timer: info.timer(),
            })),
            None if mailbox::is_watched() => Purpose::Sample(None),
            None => Purpose::Program,
        },
        (code::SI_QUEUE, _)
            if info.value() == session.region.header.nonce.load(Ordering::Relaxed) =>
        {
            Purpose::Arm
        }
        (code::SI_KERNEL, Some(Engine::Itimer)) => Purpose::Sample(None),
        (sent, Some(Engine::Perf)) if code::POLL.contains(&sent) => Purpose::Sample(None),
        _ if mailbox::is_watched() => Purpose::Sample(None),
        _ => Purpose::Program,
    }
}

/// The handler, as the kernel calls it.
///
/// # Safety
///
/// Only the kernel calls this, for a signal whose action was installed with `SA_SIGINFO`: `info` and `context` are what it
/// gives to such a handler.
pub unsafe extern "C" fn entry(signal: c_int, info: *const c_void, context: *const c_void) {
    // SAFETY: the kernel's, by the contract of `entry`, and used before it returns.
    let signal_info = unsafe { SignalInfo::new(info) };
    let Some(session) = target::session() else {
        return pass_on(signal, info, context);
    };
    match purpose(session, signal_info) {
        Purpose::Program => pass_on(signal, info, context),
        Purpose::Arm => {
            if session.region.header.state.load(Ordering::Relaxed) == session::RECORDING {
                let tid = system::gettid();
                target::start_thread(session, tid, base_of(tid));
                target::obey(session);
            }
        }
        Purpose::Sample(hint) => {
            session.process.delivered.fetch_add(1, Ordering::Relaxed);
            // SAFETY: as for `signal_info`.
            let interrupted = unsafe { Interrupted::new(context) };
            sample(session, hint, interrupted);
            target::obey(session);
        }
    }
}

/// From when on a thread that has not announced itself is accounted for. It began while the session was recording; but not
/// the first thread of a program that has just attached, whose clock goes on from before the `exec`.
fn base_of(tid: u32) -> Base {
    if tid == system::getpid() {
        Base::Now
    } else {
        Base::Birth
    }
}

/// The record that the signal's timer is armed for, and the id of its thread, which is this one: see state 5 above.
fn owner_of_timer(session: Session, hint: Hint, sp: u64) -> Option<(u32, u32)> {
    let thread = session.region.thread(hint.index)?;
    // Acquire: pairs with the end of the claim, where the key is set, and with that of arming.
    let (process, tid) = unkey(thread.key.load(Ordering::Acquire))?;
    let is_armed = thread.armed.load(Ordering::Acquire) == 1
        && thread.timer.load(Ordering::Relaxed) == hint.timer;
    (process == session.process_index && is_armed && stack::is_on(thread, sp))
        .then_some((hint.index, tid))
}

fn sample(session: Session, hint: Option<Hint>, interrupted: Interrupted) {
    let Session {
        region,
        process_index,
        ..
    } = session;
    // Another prover than ours may have taken the signal of another thread's timer for a model.
    let hinted = hint
        .and_then(|hint| owner_of_timer(session, hint, interrupted.sp()))
        .filter(|&(_, tid)| !mailbox::is_watched() || tid == system::gettid());
    let (found, tid) = match hinted {
        Some((index, tid)) => (Some(index), tid),
        None => {
            let tid = system::gettid();
            (target::find_thread(region, process_index, tid), tid)
        }
    };
    let recording = region.header.state.load(Ordering::Relaxed) == session::RECORDING;
    let (index, thread) = match found.and_then(|index| Some((index, region.thread(index)?))) {
        Some(found) => found,
        None => {
            // `ITIMER_PROF` reaches threads that have not announced themselves: they do it here. The other engines arm
            // only threads with a record, so a signal without one comes after its thread's last account: a new record
            // would account for the whole thread again.
            let engine = Engine::from_code(session.process.engine.load(Ordering::Relaxed));
            // A prover's signal comes from nowhere too.
            let from_nowhere = hint.is_none() && engine == Some(Engine::Itimer);
            let outside = recording && (from_nowhere || mailbox::is_watched());
            let claimed = if outside {
                target::start_thread(session, tid, base_of(tid))
            } else {
                None
            };
            match claimed.and_then(|index| Some((index, region.thread(index)?))) {
                Some(claimed) => claimed,
                None => {
                    if !recording {
                        disarm_process(session);
                    }
                    return lose(
                        session,
                        if outside { Loss::NoThread } else { Loss::Late },
                        0,
                    );
                }
            }
        }
    };
    if !recording {
        target::disarm(thread);
        disarm_process(session);
        return lose(session, Loss::Late, 0);
    }
    // Relaxed, then a full fence: the reader that replaced the map and sees an even number afterwards knows that a
    // later entry reads the new map (see `Thread::sequence`).
    let sequence = thread.sequence.load(Ordering::Relaxed);
    thread
        .sequence
        .store(sequence.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::SeqCst);
    record(session, index, tid, thread, interrupted);
    compiler_fence(Ordering::SeqCst);
    // Release: all reads of the map are done.
    thread
        .sequence
        .store(sequence.wrapping_add(2), Ordering::Release);
}

/// The session is over: `ITIMER_PROF` is disarmed too, where it is ours.
fn disarm_process(session: Session) {
    if Engine::from_code(session.process.engine.load(Ordering::Relaxed)) == Some(Engine::Itimer) {
        let _ = system::setitimer_prof(0);
    }
}

fn lose(session: Session, cause: Loss, weight: u64) {
    if let Some(tally) = session.process.lost.get(cause as usize) {
        tally.add(weight);
    }
}

fn record(session: Session, index: u32, tid: u32, thread: &Thread, interrupted: Interrupted) {
    let Session {
        region,
        process_index,
        process,
    } = session;
    let key = key(process_index, tid);
    let ip = interrupted.ip();
    let now = system::clock(system::OWN_THREAD_CLOCK).unwrap_or(0);
    let elapsed = now.saturating_sub(thread.accounted.load(Ordering::Relaxed));
    thread.accounted.store(now, Ordering::Relaxed);
    let samples = thread.samples.load(Ordering::Relaxed);
    thread
        .samples
        .store(samples.wrapping_add(1), Ordering::Relaxed);
    if samples == 0 {
        // A short thread may have ended before the reader can ask for its name.
        target::write_name(session, index, tid);
    }
    let expected = weight::expected(
        region.header.period.load(Ordering::Relaxed),
        region.header.tick.load(Ordering::Relaxed),
    );
    let blocked = weight::is_late(elapsed, expected) && was_blocked(&interrupted, ip, elapsed);
    let parts = weight::split(elapsed, expected, blocked);
    if parts.blocked != 0 {
        process.blocked.fetch_add(parts.blocked, Ordering::Relaxed);
    }

    let Some(mut place) = ring::reserve(region, index, HEADER_WORDS + MAX_FRAMES) else {
        region.ring_doorbell();
        end_if_abandoned(region);
        return lose(session, Loss::RingFull, parts.sample);
    };
    let Some((header, frames)) = place.words().split_at_mut_checked(HEADER_WORDS) else {
        return lose(session, Loss::RingFull, parts.sample);
    };
    let mut walked = walk_now(session, index, thread, interrupted, frames);
    if let Some(request) = mailbox::request() {
        if is_unknown(walked.end) && request.wait_for_reader(region, process) {
            walked = walk_now(session, index, thread, interrupted, frames);
        }
        request.answer(frames.get(..walked.frames).unwrap_or_default(), walked.end);
    }
    process.recorded.add(parts.sample);
    if is_unknown(walked.end) {
        // Code that the reader has not seen yet: it looks, and walks this stack itself, from a copy. If there is no room
        // for a copy, what was walked is recorded, with its mark.
        process.unknown_code.fetch_add(1, Ordering::Relaxed);
        // Copies leave half of the ring to samples that are already walked.
        if ring::is_half_free(thread)
            && process.raw_budget.fetch_sub(1, Ordering::Relaxed) > 0
            && RAW_STACKS
                .iter()
                .any(|&bytes| record_raw(region, index, key, &interrupted, parts, bytes))
        {
            return region.ring_doorbell();
        }
        region.ring_doorbell();
    }
    let len = HEADER_WORDS + walked.frames;
    let head = Head {
        len,
        kind: Kind::Stack,
        end: walked.end as u8,
    };
    fill(header, head, key, parts);
    if place.publish(len) {
        region.ring_doorbell();
    }
}

/// Whether a walk met code that is in no module of the map: the map may be old.
fn is_unknown(end: End) -> bool {
    matches!(end, End::NoModule | End::BadReturn)
}

/// Walks by the module map of this moment.
#[inline(never)]
fn walk_now(
    session: Session,
    index: u32,
    thread: &Thread,
    interrupted: Interrupted,
    frames: &mut [u64],
) -> Walked {
    let Session {
        region, process, ..
    } = session;
    // Acquire: pairs with the reader's Release; the map is complete.
    let map = current_map(region, process.map.load(Ordering::Acquire));
    let mut stack = Stack::of(thread, interrupted.sp());
    match (&map, region.memos.get(index as usize)) {
        (Some(map), Some(memo)) => {
            // SAFETY: the memo belongs to the handler of the thread that has this record, and that is never interrupted.
            // Any bytes are a memo.
            let memo = unsafe { &mut *memo.as_ptr() };
            walk_again(map, interrupted.registers(), &mut stack, frames, memo)
        }
        _ => leaf_only(interrupted.ip(), frames),
    }
}

/// Nanoseconds after which a reader that has not looked is taken for dead.
const ABANDONED: u64 = 60_000_000_000;

/// A full ring that nobody has looked at for a minute: the recorder was killed. The session is over for all.
fn end_if_abandoned(region: &Region) {
    let seen = region.header.seen.load(Ordering::Relaxed);
    let now = system::clock(system::MONOTONIC_CLOCK).unwrap_or(0);
    if now.saturating_sub(seen) > ABANDONED {
        region
            .header
            .state
            .store(session::STOPPED, Ordering::Relaxed);
    }
}

/// What is known of a stack before there is any module map.
fn leaf_only(ip: u64, frames: &mut [u64]) -> Walked {
    let Some(leaf) = frames.first_mut() else {
        return Walked {
            frames: 0,
            end: End::NoModule,
        };
    };
    *leaf = ip | EXACT_PC;
    Walked {
        frames: 1,
        end: End::NoModule,
    }
}

fn fill(header: &mut [u64], head: Head, key: u64, parts: weight::Split) {
    if let [first, who, sample, blocked, labels] = header {
        (*first, *who, *sample, *blocked, *labels) =
            (head.to_word(), key, parts.sample, parts.blocked, 0);
    }
}

/// Records the registers and a copy of the stack. Returns whether there was room.
///
/// It reads the registers again: keeping them beside the walk's would cost the handler's stack.
#[inline(never)]
fn record_raw(
    region: &Region,
    index: u32,
    key: u64,
    interrupted: &Interrupted,
    parts: weight::Split,
    bytes: usize,
) -> bool {
    const START: usize = HEADER_WORDS + REGISTER_WORDS;
    let Some(mut place) = ring::reserve(region, index, START + bytes / 8) else {
        return false;
    };
    let words = place.words();
    let Some((header, rest)) = words.split_at_mut_checked(HEADER_WORDS) else {
        return false;
    };
    let Some((saved, stack)) = rest.split_at_mut_checked(REGISTER_WORDS) else {
        return false;
    };
    let registers = interrupted.registers();
    if let Some(words) = saved.first_chunk_mut() {
        *words = register_words(&registers);
    }
    // `process_vm_readv` copies up to the first page that is not there: the top of a stack ends the copy, not the process.
    // SAFETY: `stack` is ours until it is published.
    let copied =
        unsafe { system::copy_memory(stack.as_mut_ptr().cast(), registers.sp & !7, bytes) };
    let len = START + copied / 8;
    let head = Head {
        len,
        kind: Kind::Raw,
        end: 0,
    };
    fill(header, head, key, parts);
    place.publish(len);
    true
}

/// The module map at `offset` of the arena, whose first word is its length.
fn current_map(region: &Region, offset: u64) -> Option<ModuleMap<'_>> {
    if offset == 0 {
        return None;
    }
    // SAFETY: the reader published the offset (Release; loaded with Acquire), and takes the map back only when this
    // thread's `sequence` has been even since.
    let length = unsafe { region.arena(offset, 8) };
    let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    // SAFETY: as above.
    let bytes = unsafe { region.arena(offset.wrapping_add(8), length) };
    // SAFETY: as above; the tables that the map names live as long as it does.
    let arena = unsafe { region.arena(0, crate::region::ARENA) };
    ModuleMap::view(bytes, arena)
}

/// Whether the thread had the signal blocked until just now. Only asked when much time has passed.
///
/// A signal that waited is delivered on the way back from the system call that unblocked it. Behind `rt_sigprocmask` that
/// is certain; behind any other system call, the time was spent in it. Behind `rt_sigreturn` (the end of a handler that
/// blocked the signal) any instruction can stand, but so it can where a busy host took the processor away for some ticks:
/// there, only what is longer than any such pause is taken for blocked.
fn was_blocked(interrupted: &Interrupted, ip: u64, elapsed: u64) -> bool {
    let mut before = [0_u8; 7];
    // SAFETY: copies into a local; code that cannot be read (execute-only) leaves it zero.
    let copied =
        unsafe { system::copy_memory(before.as_mut_ptr(), ip.wrapping_sub(7), before.len()) };
    if copied < before.len() {
        return false;
    }
    if interrupted.left_sigprocmask(before) {
        return true;
    }
    let [.., s0, s1] = before;
    (s0, s1) != (0x0f, 0x05) && elapsed > weight::LONGEST_PAUSE
}
