//! The burner: threads that work, in three functions with half, three tenths and one fifth of it, and say what it took.
//!
//! # Safety
//!
//! This file is `unsafe` because it reads CPU clocks.
#![allow(unsafe_code)]

use clap::Args;
use std::hint::black_box;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

/// The program that is profiled.
#[derive(Clone, Debug, Args)]
pub(crate) struct Burn {
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// CPU seconds of each thread
    #[arg(long, default_value_t = 2.0, conflicts_with = "rounds")]
    seconds: f64,
    /// Rounds of each thread, instead of a time
    #[arg(long)]
    rounds: Option<u64>,
    /// File to write into: CPU nanoseconds of all threads, CPU and wall nanoseconds of the work, rounds
    #[arg(long)]
    report: Option<PathBuf>,
}

fn clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the system writes a `timespec`.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn work(rounds: u64) {
    let mut x = 1_u64;
    for _ in 0..rounds {
        x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

#[inline(never)]
fn burn_half(unit: u64) {
    work(black_box(5 * unit));
    black_box(());
}

#[inline(never)]
fn burn_three_tenths(unit: u64) {
    work(black_box(3 * unit));
    black_box(());
}

#[inline(never)]
fn burn_one_fifth(unit: u64) {
    work(black_box(2 * unit));
    black_box(());
}

/// Lengths of rounds: 5,000 to 15,000, without a pattern that a sampling period could fall in step with, but the same in
/// every run.
struct Lengths(u64);

impl Lengths {
    const START: Self = Self(0x9e37_79b9_7f4a_7c15);

    /// A step of xorshift64.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        5_000 + self.0 % 10_000
    }
}

impl Burn {
    /// Works; CPU time of a thread: what its own clock says at its end. Each thread calls `begin` first, and drops what it
    /// returns last.
    pub(crate) fn run<T: 'static>(&self, begin: fn() -> T) {
        let limit = (self.seconds * 1e9) as u64;
        let (started, cpu) = (Instant::now(), clock(libc::CLOCK_PROCESS_CPUTIME_ID));
        let threads: Vec<_> = (0..self.threads.max(1))
            .map(|_| {
                let rounds = self.rounds;
                thread::spawn(move || {
                    let _held = begin();
                    let (mut done, mut lengths) = (0, Lengths::START);
                    // Reading the clock costs what would be seen in the shares: not at every round.
                    while rounds.map_or(
                        done % 16 != 0 || clock(libc::CLOCK_THREAD_CPUTIME_ID) < limit,
                        |rounds| done < rounds,
                    ) {
                        let unit = lengths.next();
                        burn_half(unit);
                        burn_three_tenths(unit);
                        burn_one_fifth(unit);
                        done += 1;
                    }
                    (clock(libc::CLOCK_THREAD_CPUTIME_ID), done)
                })
            })
            .collect();
        let (mut nanos, mut rounds) = (0, 0);
        for thread in threads {
            if let Ok((spent, done)) = thread.join() {
                nanos += spent;
                rounds += done;
            }
        }
        let (wall, cpu) = (
            started.elapsed().as_nanos(),
            clock(libc::CLOCK_PROCESS_CPUTIME_ID) - cpu,
        );
        nanos += clock(libc::CLOCK_THREAD_CPUTIME_ID);
        let report = format!("{nanos} {cpu} {wall} {rounds}\n");
        if let Some(path) = &self.report
            && let Err(error) = std::fs::write(path, report)
        {
            eprintln!("selvedge-bench: cannot write {}: {error}", path.display());
        }
    }
}
