//! New threads: armed before their first instruction of their own, accounted for at their end.

use crate::own_session;
use crate::symbols::Next;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use selvedge_sample::target::{self, Base};
use selvedge_sample::system;

type Routine = extern "C" fn(*mut c_void) -> *mut c_void;
type Create = extern "C" fn(*mut usize, *const c_void, Routine, *mut c_void) -> c_int;

/// What a thread that is being created is to run. There are few: each is free again when its thread begins.
struct Parcel {
    /// Address of the routine; 0: free.
    routine: AtomicUsize,
    argument: AtomicUsize,
}

static PARCELS: [Parcel; 256] = [const { Parcel { routine: AtomicUsize::new(0), argument: AtomicUsize::new(0) } }; 256];

/// The key whose destructor ends threads, plus one; 0: not made yet.
static KEY: AtomicU32 = AtomicU32::new(0);

/// Stands in front of `pthread_create`.
///
/// # Safety
///
/// As for `pthread_create`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_create(
    thread: *mut usize,
    attributes: *const c_void,
    routine: Routine,
    argument: *mut c_void,
) -> c_int {
    const EAGAIN: c_int = 11;
    static NEXT: Next = Next::new(c"pthread_create");
    let Some(next) = NEXT.address() else { return EAGAIN };
    // SAFETY: the next definition of that name has that type.
    let create: Create = unsafe { core::mem::transmute(next) };
    let parcel = own_session().and_then(|_| {
        PARCELS.iter().find(|parcel| {
            let free = parcel.routine.compare_exchange(0, routine as usize, Ordering::Acquire, Ordering::Relaxed);
            free.is_ok()
        })
    });
    // Without a parcel the thread runs as it is: the recorder finds it a little later.
    let Some(parcel) = parcel else { return create(thread, attributes, routine, argument) };
    make_key();
    parcel.argument.store(argument as usize, Ordering::Release);
    let result = create(thread, attributes, run, core::ptr::from_ref(parcel).cast_mut().cast());
    if result != 0 {
        parcel.routine.store(0, Ordering::Release);
    }
    result
}

/// What a new thread runs first.
extern "C" fn run(parcel: *mut c_void) -> *mut c_void {
    // SAFETY: `pthread_create` passed one of `PARCELS`.
    let parcel = unsafe { &*parcel.cast::<Parcel>() };
    let argument = parcel.argument.load(Ordering::Acquire) as *mut c_void;
    // The parcel is free again: its contents are copied.
    let routine = parcel.routine.swap(0, Ordering::AcqRel);
    // SAFETY: the address of the routine that was passed to `pthread_create`.
    let routine: Routine = unsafe { core::mem::transmute(routine) };
    if let Some(session) = own_session() {
        target::start_thread(session, system::gettid(), Base::Birth);
        mark(1);
    }
    routine(argument)
}

fn make_key() {
    type MakeKey = extern "C" fn(*mut u32, extern "C" fn(*mut c_void)) -> c_int;
    static MAKE: Next = Next::new(c"pthread_key_create");
    if KEY.load(Ordering::Acquire) != 0 {
        return;
    }
    let Some(make) = MAKE.address() else { return };
    // SAFETY: the function of that name.
    let make: MakeKey = unsafe { core::mem::transmute(make) };
    let mut key = 0;
    if make(&raw mut key, ending) == 0 {
        // Two threads can make one each: the second is never used.
        let _ = KEY.compare_exchange(0, key.wrapping_add(1), Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Has `ending` called when this thread ends, with this round.
fn mark(round: usize) {
    type SetSpecific = extern "C" fn(u32, usize) -> c_int;
    static SET: Next = Next::new(c"pthread_setspecific");
    let Some(key) = KEY.load(Ordering::Acquire).checked_sub(1) else { return };
    let Some(set) = SET.address() else { return };
    // SAFETY: the function of that name.
    let set: SetSpecific = unsafe { core::mem::transmute(set) };
    set(key, round);
}

/// The destructor of our key: whether the thread returns, exits or is cancelled.
///
/// Destructors run in up to four rounds (`PTHREAD_DESTRUCTOR_ITERATIONS`); ours waits for the third, so that the others'
/// time is sampled too.
extern "C" fn ending(round: *mut c_void) {
    let round = round as usize;
    if round < 3 {
        mark(round + 1);
    } else if let Some(session) = own_session() {
        target::end_this_thread(session);
    }
}
