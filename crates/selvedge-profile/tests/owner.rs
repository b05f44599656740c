//! Whose sample a signal is: the thread's that it came to, whatever it says of itself.
//!
//! # Safety
//!
//! This file is `unsafe` because it sends signals with contents of its own.
#![allow(unsafe_code)]

use selvedge_profile::{Builder, EngineChoice};
use selvedge_sample::region::Thread;
use selvedge_sample::system::gettid;
use selvedge_sample::target::{self, Session};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// `siginfo_t` of a timer's signal (include/uapi/asm-generic/siginfo.h).
#[repr(C)]
struct Information {
    signal: i32,
    error: i32,
    code: i32,
    padding: i32,
    timer: i32,
    overrun: i32,
    value: u64,
    rest: [u64; 12],
}

/// Sends the calling thread a signal like that of a timer of record `index` with the number `timer`.
fn send(session: Session, index: u32, timer: i32) {
    let information = Information {
        signal: libc::SIGPROF,
        error: 0,
        code: libc::SI_TIMER,
        padding: 0,
        timer,
        overrun: 0,
        value: session.region.header.nonce.load(Relaxed) ^ u64::from(index),
        rest: [0; 12],
    };
    let (pid, tid) = (std::process::id() as i32, gettid() as i32);
    let number = libc::SYS_rt_tgsigqueueinfo;
    // SAFETY: the kernel reads a `siginfo_t` from `information`; the handler is the session's.
    let sent = unsafe { libc::syscall(number, pid, tid, libc::SIGPROF, &raw const information) };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
}

fn record_of(session: Session, tid: u32) -> (u32, &'static Thread) {
    let started = Instant::now();
    loop {
        if let Some(index) = target::find_thread(session.region, session.process_index, tid) {
            let thread = session.region.thread(index).expect("a record");
            if thread.armed.load(Relaxed) == 1 {
                return (index, thread);
            }
        }
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "no record of {tid}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn signal_that_names_another_record_is_its_threads_own() {
    let builder = Builder::new().hz(1.0).engine(EngineChoice::Timer);
    let guard = builder.start().expect("a profile");
    let session = target::session().expect("a session");
    let (sender, other_tid) = channel();
    let (end, ended) = channel::<()>();
    let other = std::thread::spawn(move || {
        sender.send(gettid()).expect("a listener");
        // Sleeps: has no sample of its own.
        let _ = ended.recv();
    });
    let (other_index, others) = record_of(session, other_tid.recv().expect("a thread"));
    let (own_index, own) = record_of(session, gettid());
    let samples = || (own.samples.load(Relaxed), others.samples.load(Relaxed));
    let (own_timer, other_timer) = (own.timer.load(Relaxed), others.timer.load(Relaxed));
    assert_ne!(own_timer, other_timer);
    // Its own, as the kernel sends it; of a timer that it no longer has; of a record that is another's now; of none.
    let before = samples();
    let unused = (0..2048).find(|&index| {
        let thread = session.region.thread(index);
        !session.region.is_thread_used(index) && thread.is_some()
    });
    let signals = [
        (own_index, own_timer),
        (own_index, i32::MAX),
        (other_index, own_timer),
        (other_index, other_timer),
        (unused.expect("a free record"), own_timer),
    ];
    for (sent, (index, timer)) in (1..).zip(signals) {
        send(session, index, timer);
        // The thread's own timer may have come in between.
        assert!(
            samples().0 >= before.0 + sent,
            "record {index}, timer {timer}"
        );
        assert_eq!(samples().1, before.1, "record {index}, timer {timer}");
    }
    end.send(()).expect("a thread");
    other.join().expect("a thread");
    drop(guard);
}
