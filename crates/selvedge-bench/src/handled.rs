//! What a sample costs beside a signal whose handler does nothing: this process profiles itself, and a thread of it sends
//! itself signals, which the kernel delivers as each call returns.
//!
//! Half of them look as those of the thread's own timer do, so that the session's real handler records a sample for each;
//! half are another signal's, whose handler is empty and installed with the same flags. Both come in batches, by turns:
//! one batch of samples is well below what the thread's ring holds, and it is emptied before the next.
//!
//! # Safety
//!
//! This file is `unsafe` because it installs a signal handler and sends signals with contents of its own.
#![allow(unsafe_code)]

use crate::figure::median;
use clap::Args;
use selvedge_profile::{Builder, EngineChoice};
use selvedge_sample::target::{self, Session};
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Prints nanoseconds of CPU time: of a sample, of an empty handler, and the first less the second.
#[derive(Clone, Debug, Args)]
pub(crate) struct Handled {
    /// Frames of the sampled stack
    #[arg(long, default_value_t = 30)]
    depth: usize,
    /// Batches of signals
    #[arg(long, default_value_t = 100)]
    batches: usize,
}

/// Signals of a batch: at 30 frames, 7,000 words of a ring's 32,768.
const BATCH: u32 = 200;
/// The other signal.
const OTHER: c_int = libc::SIGUSR2;

/// `siginfo_t` of a timer's signal (include/uapi/asm-generic/siginfo.h).
#[repr(C)]
struct Information {
    signal: c_int,
    error: c_int,
    code: c_int,
    padding: c_int,
    timer: c_int,
    overrun: c_int,
    value: u64,
    rest: [u64; 12],
}

const _: () = assert!(size_of::<Information>() == size_of::<libc::siginfo_t>());

extern "C" fn nothing(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

impl Handled {
    pub(crate) fn run(&self) -> io::Result<()> {
        // SAFETY: all zeros are a valid `sigaction`.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: the set is ours.
        unsafe { libc::sigfillset(&raw mut action.sa_mask) };
        // SAFETY: the system reads `action`; the handler does nothing, which is safe at any moment.
        if unsafe { libc::sigaction(OTHER, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The period hardly matters: a signal now and then of the real timer.
        let guard = Builder::new()
            .hz(20.0)
            .engine(EngineChoice::Timer)
            .start()
            .map_err(io::Error::other)?;
        let session = target::session().ok_or_else(|| io::Error::other("no session"))?;
        let below = depth_here();
        let figures = self.deeper(self.depth.saturating_sub(below), session)?;
        drop(guard);
        println!("{} {} {}", figures[0], figures[1], figures[2]);
        Ok(())
    }

    /// Measures below so many more calls.
    #[inline(never)]
    fn deeper(&self, calls: usize, session: Session) -> io::Result<[f64; 3]> {
        if calls > 0 {
            return black_box(self.deeper(calls - 1, session));
        }
        let thread = Signaller::new(session)?;
        let mut costs = [const { Vec::new() }; 3];
        // First, the reader learns this thread's stack and the module map.
        for turn in 0..self.batches + 20 {
            thread.wait_for_reader();
            let before = session.process.recorded.count.load(Ordering::Relaxed);
            let sample = thread.batch(libc::SIGPROF)?;
            let recorded = session.process.recorded.count.load(Ordering::Relaxed) - before;
            if recorded < u64::from(BATCH) {
                let text = format!("of {BATCH} samples {recorded} were recorded");
                return Err(io::Error::other(text));
            }
            let empty = thread.batch(OTHER)?;
            if turn >= 20 {
                for (costs, cost) in costs.iter_mut().zip([sample, empty, sample - empty]) {
                    costs.push(cost);
                }
            }
        }
        Ok(costs.map(|costs| median(&costs)))
    }
}

/// The calling thread, as it signals itself.
struct Signaller {
    session: Session,
    tid: u32,
    index: u32,
    /// The kernel's number of the thread's timer.
    timer: c_int,
}

impl Signaller {
    fn new(session: Session) -> io::Result<Self> {
        let tid = selvedge_sample::system::gettid();
        let index = target::find_thread(session.region, session.process_index, tid)
            .ok_or_else(|| io::Error::other("this thread is not profiled"))?;
        let thread = session.region.thread(index);
        let timer = thread.map_or(0, |thread| thread.timer.load(Ordering::Relaxed));
        Ok(Self {
            session,
            tid,
            index,
            timer,
        })
    }

    /// Waits until the thread's ring is empty.
    fn wait_for_reader(&self) {
        let thread = self.session.region.thread(self.index);
        while thread.is_some_and(|thread| {
            thread.head.load(Ordering::Relaxed) != thread.tail.load(Ordering::Relaxed)
        }) {
            self.session.region.ring_doorbell();
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Sends a batch. Nanoseconds of CPU time per signal.
    fn batch(&self, signal: c_int) -> io::Result<f64> {
        let nonce = self.session.region.header.nonce.load(Ordering::Relaxed);
        let information = Information {
            signal,
            error: 0,
            code: libc::SI_TIMER,
            padding: 0,
            timer: self.timer,
            overrun: 0,
            value: nonce ^ u64::from(self.index),
            rest: [0; 12],
        };
        let started = own_clock();
        for _ in 0..BATCH {
            // SAFETY: the kernel reads a `siginfo_t` from `information`; what the signal does is its handler's matter.
            let sent = unsafe {
                libc::syscall(
                    libc::SYS_rt_tgsigqueueinfo,
                    libc::c_long::from(std::process::id().cast_signed()),
                    libc::c_long::from(self.tid),
                    libc::c_long::from(signal),
                    &raw const information,
                )
            };
            if sent != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok((own_clock() - started) as f64 / f64::from(BATCH))
    }
}

/// Nanoseconds of the calling thread's CPU time.
fn own_clock() -> u64 {
    selvedge_sample::system::clock(selvedge_sample::system::OWN_THREAD_CLOCK).unwrap_or(0)
}

unsafe extern "C" {
    fn _Unwind_Backtrace(
        visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        to: *mut c_void,
    ) -> c_int;
}

/// Frames of the calling function's stack, up to the two that the measurement adds: its own, and the system call's.
#[inline(never)]
fn depth_here() -> usize {
    extern "C" fn count(_: *mut c_void, to: *mut c_void) -> c_int {
        // SAFETY: `_Unwind_Backtrace` gives back what it was given below.
        let frames = unsafe { &mut *to.cast::<usize>() };
        *frames += 1;
        0
    }
    let mut frames = 0_usize;
    // SAFETY: `frames` outlives the call.
    unsafe { _Unwind_Backtrace(count, (&raw mut frames).cast()) };
    // Less this function's own.
    frames + 1
}
