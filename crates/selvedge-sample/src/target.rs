//! What a target does: attach to a region, start and end its threads, arm their timers.
//!
//! Everything here may be called from a signal handler and from `fork`'s child: no lock, no allocation. A thread record
//! is claimed at one of [`PROBES`] places that its process and thread id lead to, so that a handler that knows nothing
//! else finds it without thread-local storage.
//!
//! # Safety
//!
//! This file is `unsafe` because it gives out the region and fills the shared maps text.
#![allow(unsafe_code)]

use crate::action;
use crate::record::{Head, Kind};
use crate::region::{
    CLAIMING, Engine, FIRST_RAW_BUDGET, MAPS_BYTES, PROCESSES, Process, Region, THREADS, Thread,
    key, process_state, session, unkey,
};
use crate::ring;
use crate::system;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Places in which the record of a thread is looked for: with all but a twentieth of them taken, one of 700 threads finds
/// none.
pub const PROBES: u64 = 128;
/// How often a claim is tried that another claim of the same thread gets in the way of.
const CLAIMS: u32 = 8;

/// The region that this process records into; null before it attaches. Points to memory that is never unmapped.
static REGION: AtomicPtr<Region> = AtomicPtr::new(core::ptr::null_mut());
/// Index of this process's record, plus one; 0 for none.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// This process's session: where it records.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// The shared memory.
    pub region: &'static Region,
    /// Index of the process's record.
    pub process_index: u32,
    /// That record.
    pub process: &'static Process,
}

/// The session of this process, if it has attached.
#[must_use]
pub fn session() -> Option<Session> {
    let region = REGION.load(Ordering::Acquire);
    if region.is_null() {
        return None;
    }
    // SAFETY: `attach` stores only regions that stay mapped for the life of the process.
    let region: &'static Region = unsafe { &*region };
    // Acquire: pairs with `attach`.
    let process_index = PROCESS.load(Ordering::Acquire).checked_sub(1)?;
    Some(Session {
        region,
        process_index,
        process: region.process(process_index)?,
    })
}

/// Attaches this process: claims a process record and notes its mappings, so that its code can be named even if it ends
/// before the reader has looked. `None` where all records are taken (counted).
///
/// A forked child calls this anew: its record is another.
pub fn attach(region: &'static Region) -> Option<Session> {
    let header = &region.header;
    let Some(index) = (0..PROCESSES as u32).find(|&index| {
        region.process(index).is_some_and(|process| {
            let free = process_state::FREE;
            // Acquire: pairs with the reader's release of the record. Its fields are the claimer's from here on.
            process
                .state
                .compare_exchange(
                    free,
                    process_state::CLAIMED,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                )
                .is_ok()
        })
    }) else {
        header.processes_refused.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    header
        .processes_used
        .fetch_max(index + 1, Ordering::Relaxed);
    let process = region.process(index)?;
    // Relaxed: published by the store of `state` below.
    process.pid.store(system::getpid(), Ordering::Relaxed);
    process
        .namespace
        .store(system::pid_namespace(), Ordering::Relaxed);
    let ticket = header.tickets.fetch_add(1, Ordering::Relaxed);
    process.ticket.store(ticket, Ordering::Relaxed);
    process
        .engine
        .store(header.engine.load(Ordering::Relaxed), Ordering::Relaxed);
    process.engine_error.store(0, Ordering::Relaxed);
    process
        .raw_budget
        .store(FIRST_RAW_BUDGET, Ordering::Relaxed);
    for zeroed in [
        &process.unknown_code,
        &process.known_code,
        &process.maps_len,
        &process.signal_shared,
        &process.threads,
        &process.threads_refused,
        &process.orders,
        &process.sandboxed,
    ] {
        zeroed.store(0, Ordering::Relaxed);
    }
    for zeroed in [
        &process.map,
        &process.cpu_end,
        &process.delivered,
        &process.blocked,
        &process.unsampled,
    ] {
        zeroed.store(0, Ordering::Relaxed);
    }
    for tally in process.lost.iter().chain([&process.recorded]) {
        tally.count.store(0, Ordering::Relaxed);
        tally.weight.store(0, Ordering::Relaxed);
    }
    process.cpu_start.store(
        system::clock(system::OWN_PROCESS_CLOCK).unwrap_or(0),
        Ordering::Relaxed,
    );
    note_mappings(region, index);
    // Release: pairs with the reader's Acquire; all fields above are set.
    process.state.store(process_state::LIVE, Ordering::Release);
    REGION.store(core::ptr::from_ref(region).cast_mut(), Ordering::Release);
    PROCESS.store(index + 1, Ordering::Release);
    region.ring_doorbell();
    session()
}

/// Forgets the session: in a forked child, whose parent's record is not its own.
pub fn forget() {
    PROCESS.store(0, Ordering::Release);
}

/// Copies `/proc/self/maps` for the reader, who may come too late to read it.
pub fn note_mappings(region: &Region, process_index: u32) {
    let (Some(process), Some(text)) = (
        region.process(process_index),
        region.maps.get(process_index as usize),
    ) else {
        return;
    };
    process.maps_len.store(0, Ordering::Release);
    // SAFETY: the path is NUL-terminated; the text belongs to this process while its length is zero.
    let len = unsafe { system::read_file(b"/proc/self/maps\0", text.as_ptr().cast(), MAPS_BYTES) };
    // Release: pairs with the reader's Acquire: the text is complete.
    process.maps_len.store(len as u32, Ordering::Release);
}

/// From when on a thread's CPU time is to be accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// From its birth: it began while the session was recording.
    Birth,
    /// From now: it was there before.
    Now,
}

/// Where the record of a thread may be. Steps grow, so that threads whose first places are neighbours part ways; a table
/// whose size is a power of two is covered without repetition (Knuth, TAOCP 6.4, exercise 20).
fn places(key: u64) -> impl Iterator<Item = u32> {
    const { assert!(THREADS.is_power_of_two()) };
    let start = scramble(key);
    (0..PROBES).map(move |probe| {
        let step = probe.wrapping_mul(probe.wrapping_add(1)) / 2;
        (start.wrapping_add(step) % THREADS as u64) as u32
    })
}

/// The places that hold this key, perhaps while it is being claimed: those that were never used are not looked at, since
/// looking would make them cost memory.
fn holders(region: &Region, wanted: u64) -> impl Iterator<Item = u32> {
    places(wanted).filter(move |&index| {
        region.is_thread_used(index)
            && region
                .thread(index)
                .is_some_and(|thread| thread.key.load(Ordering::SeqCst) & !CLAIMING == wanted)
    })
}

/// The index of the record of thread `tid` of process record `process`, if it has one.
#[must_use]
pub fn find_thread(region: &Region, process: u32, tid: u32) -> Option<u32> {
    let wanted = key(process, tid);
    // SeqCst: at least an Acquire, which pairs with the Release in `start_thread` where another thread claimed for us.
    holders(region, wanted).find(|&index| {
        region
            .thread(index)
            .is_some_and(|thread| thread.key.load(Ordering::SeqCst) == wanted)
    })
}

/// Claims a record for a thread of this process and arms its timer. Gives back the record's index; `None` where there is
/// no free record, or where somebody else is just claiming one for the same thread.
///
/// **A thread never gets two records**, whoever claims at the same time (the thread itself, its handler, the reader in a
/// profiled process of its own): a claim is published (its key, marked [`CLAIMING`]) before all places are looked at for
/// another, and one that sees another gives its own back. Both are sequentially consistent, so of two claims at least
/// one sees the other; if both do, both give way and try again. Nothing is armed, and no handler takes the record for its
/// own, before that.
pub fn start_thread(session: Session, tid: u32, base: Base) -> Option<u32> {
    let Session {
        region,
        process_index,
        process,
    } = session;
    let wanted = key(process_index, tid);
    let mut claimed = None;
    for _ in 0..CLAIMS {
        if let Some(index) = find_thread(region, process_index, tid) {
            return Some(index);
        }
        let index = places(wanted).find(|&index| take(region, index, wanted))?;
        if holders(region, wanted).all(|at| at == index) {
            claimed = Some(index);
            break;
        }
        region.thread(index)?.key.store(0, Ordering::SeqCst);
    }
    let index = claimed?;
    let thread = region.thread(index)?;
    // Nothing that was learned of the thread before is taken for this one's: the bounds of its stack are found by these
    // two, so they go before the generation changes.
    thread.stack_hint.store(0, Ordering::Relaxed);
    thread.thread_pointer.store(0, Ordering::Relaxed);
    // Release: pairs with the reader's Acquire. 0 is nobody's generation.
    let generation = thread.generation.load(Ordering::Relaxed).wrapping_add(1);
    thread
        .generation
        .store(generation.max(1), Ordering::Release);
    // A thread that was killed inside its handler has left it odd.
    let sequence = thread.sequence.load(Ordering::Relaxed);
    thread
        .sequence
        .store(sequence.wrapping_add(sequence & 1), Ordering::Relaxed);
    thread.armed.store(0, Ordering::Relaxed);
    thread.bury.store(0, Ordering::Relaxed);
    thread.samples.store(0, Ordering::Relaxed);
    if tid == system::gettid() {
        let pointer = system::thread_pointer();
        thread.thread_pointer.store(pointer, Ordering::Relaxed);
        thread
            .stack_hint
            .store(selvedge_arch::stack_pointer(), Ordering::Relaxed);
    }
    let accounted = match base {
        Base::Birth => 0,
        Base::Now => system::clock(system::thread_clock(tid)).unwrap_or(0),
    };
    thread.accounted.store(accounted, Ordering::Relaxed);
    process.threads.fetch_add(1, Ordering::Relaxed);
    // Release: all of the above is the thread's.
    thread.key.store(wanted, Ordering::SeqCst);
    arm(session, index, thread, tid);
    Some(index)
}

/// Takes a free place.
fn take(region: &Region, index: u32, wanted: u64) -> bool {
    let Some(thread) = region.thread(index) else {
        return false;
    };
    if region.is_thread_used(index) && thread.key.load(Ordering::Relaxed) != 0 {
        return false;
    }
    region.note_thread_used(index);
    thread
        .key
        .compare_exchange(0, wanted | CLAIMING, Ordering::SeqCst, Ordering::Relaxed)
        .is_ok()
}

/// Frees a thread's record, if it is still that thread's.
pub fn free(thread: &Thread, key: u64) {
    // Release: pairs with the next claim's Acquire; the ring and all fields are handed over.
    let _ = thread
        .key
        .compare_exchange(key, 0, Ordering::SeqCst, Ordering::Relaxed);
}

/// Notes that a thread found no free record.
pub fn note_refused(session: Session) {
    session
        .process
        .threads_refused
        .fetch_add(1, Ordering::Relaxed);
}

/// The value that a timer's signal carries: whose session, which thread record.
fn cookie(region: &Region, index: u32) -> u64 {
    region.header.nonce.load(Ordering::Relaxed) ^ u64::from(index)
}

/// The index of the thread record in a timer's value; `None` for another's signal.
#[must_use]
pub fn open_cookie(region: &Region, value: u64) -> Option<u32> {
    let index = value ^ region.header.nonce.load(Ordering::Relaxed);
    u32::try_from(index)
        .ok()
        .filter(|&index| (index as usize) < THREADS)
}

/// Makes signals come to a thread. Where the kernel refuses a timer, the process goes over to `ITIMER_PROF`.
fn arm(session: Session, index: u32, thread: &Thread, tid: u32) {
    let Session {
        region, process, ..
    } = session;
    let header = &region.header;
    let period = header.period.load(Ordering::Relaxed);
    match Engine::from_code(process.engine.load(Ordering::Relaxed)) {
        Some(Engine::Timer) => {
            // A first expiry anywhere in the first period: threads that live shorter than one are then sampled in
            // proportion, and threads that start together are not sampled together.
            let first = 1 + scramble(selvedge_arch::entropy() ^ u64::from(tid)) % period.max(1);
            let armed = system::timer_create(
                tid,
                header.signal.load(Ordering::Relaxed),
                cookie(region, index),
            )
            .and_then(|timer| {
                thread.timer.store(timer, Ordering::Relaxed);
                system::timer_settime(timer, first, period)
                    .inspect_err(|_| system::timer_delete(timer))
            });
            match armed {
                Ok(()) => thread.armed.store(1, Ordering::Release),
                // The thread has ended meanwhile: nothing to arm.
                Err(EINVAL | ESRCH) => {}
                Err(error) => fall_back(session, error, period),
            }
        }
        Some(Engine::Itimer) => {
            let _ = system::setitimer_prof(period);
        }
        // The reader opens the event when it sees the record.
        Some(Engine::Perf) | None => region.ring_doorbell(),
    }
}

const ESRCH: i32 = 3;
const EINVAL: i32 = 22;

fn fall_back(session: Session, error: i32, period: u64) {
    session.process.engine_error.store(error, Ordering::Relaxed);
    if system::setitimer_prof(period).is_ok() {
        session
            .process
            .engine
            .store(Engine::Itimer as u32, Ordering::Relaxed);
    }
    session.region.ring_doorbell();
}

/// Mixes the bits of a number (the finalizer of `SplitMix64`, Steele et al., OOPSLA 2014).
fn scramble(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Deletes a thread's timer, once.
pub fn disarm(thread: &Thread) {
    if thread.armed.swap(0, Ordering::AcqRel) == 1 {
        system::timer_delete(thread.timer.load(Ordering::Relaxed));
    }
}

/// Unblocks the signal in the calling thread, which has just begun, if it inherited a mask that blocks it.
///
/// Who creates worker threads often blocks all signals meanwhile, so that the program's handlers run on other threads
/// (liblzma does): the thread never asked for that, and would have no sample. A program that handles the signal itself is
/// left alone, since its own signals would come to this thread too; so is a thread that blocks the signal later.
pub fn let_signal_through(session: Session) {
    if !action::program_action().is_handled() {
        system::sigprocmask(system::Mask::Unblock, signal_bit(session.region));
    }
}

fn signal_bit(region: &Region) -> u64 {
    1_u64 << region.header.signal.load(Ordering::Relaxed).wrapping_sub(1)
}

/// Ends the calling thread: its timer is deleted, what it used since its last sample is accounted for, its record freed.
///
/// The signal is blocked meanwhile, so that the handler does not see a record that is going away; a signal that arrives
/// later finds no record and is counted as late. Under `ITIMER_PROF` the thread keeps it blocked: the process's other
/// threads get it, and this one does not claim a second record for what has just been accounted for.
pub fn end_this_thread(session: Session) {
    let Session {
        region,
        process_index,
        process,
    } = session;
    let tid = system::gettid();
    let Some(index) = find_thread(region, process_index, tid) else {
        return;
    };
    let Some(thread) = region.thread(index) else {
        return;
    };
    let bit = signal_bit(region);
    let before = system::sigprocmask(system::Mask::Block, bit);
    disarm(thread);
    let now = system::clock(system::OWN_THREAD_CLOCK).unwrap_or(0);
    let rest = now.saturating_sub(thread.accounted.swap(now, Ordering::Relaxed));
    if region.header.state.load(Ordering::Relaxed) == session::RECORDING {
        let left_over = if before & bit == 0 {
            &process.unsampled
        } else {
            &process.blocked
        };
        left_over.fetch_add(rest, Ordering::Relaxed);
    }
    if thread.samples.load(Ordering::Relaxed) > 0 {
        write_name(session, index, tid);
    }
    free(thread, key(process_index, tid));
    if process.engine.load(Ordering::Relaxed) != Engine::Itimer as u32 {
        system::sigprocmask(system::Mask::Set, before);
    }
}

/// Records the calling thread's name.
pub(crate) fn write_name(session: Session, index: u32, tid: u32) {
    let Some(mut place) = ring::reserve(session.region, index, 4) else {
        return;
    };
    let [first, second] = system::thread_name();
    let head = Head {
        len: 4,
        kind: Kind::Name,
        end: 0,
    };
    if let [a, b, c, d] = place.words() {
        (*a, *b, *c, *d) = (
            head.to_word(),
            key(session.process_index, tid),
            first,
            second,
        );
    }
    place.publish(4);
}

/// Carries out the reader's orders about threads of this process.
pub fn obey(session: Session) {
    // Relaxed: seen late, orders are carried out by the handler after this one.
    let orders = &session.process.orders;
    if orders.load(Ordering::Relaxed) == 0 || orders.swap(0, Ordering::AcqRel) == 0 {
        return;
    }
    let threads = session.region.used_threads();
    for thread in threads.filter_map(|index| session.region.thread(index)) {
        let key = thread.key.load(Ordering::Acquire);
        let is_ours = unkey(key).is_some_and(|(process, _)| process == session.process_index);
        let generation = thread.generation.load(Ordering::Relaxed);
        if is_ours && thread.bury.swap(0, Ordering::AcqRel) == generation {
            disarm(thread);
            free(thread, key);
        }
    }
}

/// The process is about to end or to become another program: notes its CPU time and disarms what would survive.
///
/// `ITIMER_PROF` survives `exec` and its signal would kill the next program; per-thread timers do not.
pub fn leave(session: Session) {
    if session.process.engine.load(Ordering::Relaxed) == Engine::Itimer as u32 {
        let _ = system::setitimer_prof(0);
    }
    if session.process.recorded.count.load(Ordering::Relaxed) > 0 {
        note_mappings(session.region, session.process_index);
    }
    account_for_blocked(session);
    session.process.cpu_end.store(
        system::clock(system::OWN_PROCESS_CLOCK).unwrap_or(0),
        Ordering::Relaxed,
    );
}

/// Where the calling thread blocks the signal, what it used since its last sample is accounted for as such: the process ends
/// without its threads' ends.
///
/// The handler, which writes the same fields, cannot come in between: the signal is blocked.
fn account_for_blocked(session: Session) {
    let blocked = system::sigprocmask(system::Mask::Block, 0) & signal_bit(session.region) != 0;
    let thread = find_thread(session.region, session.process_index, system::gettid())
        .and_then(|index| session.region.thread(index));
    let recording = session.region.header.state.load(Ordering::Relaxed) == session::RECORDING;
    if let Some(thread) = thread.filter(|_| blocked && recording) {
        let now = system::clock(system::OWN_THREAD_CLOCK).unwrap_or(0);
        let rest = now.saturating_sub(thread.accounted.swap(now, Ordering::Relaxed));
        session.process.blocked.fetch_add(rest, Ordering::Relaxed);
    }
}

/// An `exec` after [`leave`] has failed: goes on.
pub fn stay(session: Session) {
    session.process.cpu_end.store(0, Ordering::Relaxed);
    if session.process.engine.load(Ordering::Relaxed) == Engine::Itimer as u32 {
        let _ = system::setitimer_prof(session.region.header.period.load(Ordering::Relaxed));
    }
}
