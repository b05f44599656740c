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
    /// File to write into: CPU nanoseconds of all threads, CPU and wall nanoseconds of the work, rounds, and CPU nanoseconds
    /// of a piece of the work that three quarters of all pieces exceeded
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
fn burn_half() {
    work(black_box(50_000));
    black_box(());
}

#[inline(never)]
fn burn_three_tenths() {
    work(black_box(30_000));
    black_box(());
}

#[inline(never)]
fn burn_one_fifth() {
    work(black_box(20_000));
    black_box(());
}

/// Rounds of a piece of work: some 40 ms, so that each has about four samples even at 99 Hz.
const PIECE: u64 = 256;

/// What only a quarter of the pieces is below: they met the least of what other programs and machines do to this one.
fn lower_quartile(mut pieces: Vec<u64>) -> u64 {
    pieces.sort_unstable();
    pieces.get(pieces.len() / 4).copied().unwrap_or(0)
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
                    let (mut done, mut pieces) = (0, Vec::new());
                    let mut piece_started = clock(libc::CLOCK_THREAD_CPUTIME_ID);
                    // Reading the clock costs what would be seen in the shares: not at every round.
                    while rounds.map_or(
                        done % 16 != 0 || clock(libc::CLOCK_THREAD_CPUTIME_ID) < limit,
                        |rounds| done < rounds,
                    ) {
                        burn_half();
                        burn_three_tenths();
                        burn_one_fifth();
                        done += 1;
                        if done % PIECE == 0 {
                            let now = clock(libc::CLOCK_THREAD_CPUTIME_ID);
                            pieces.push(now - piece_started);
                            piece_started = now;
                        }
                    }
                    (clock(libc::CLOCK_THREAD_CPUTIME_ID), done, pieces)
                })
            })
            .collect();
        let (mut nanos, mut rounds, mut pieces) = (0, 0, Vec::new());
        for thread in threads {
            if let Ok((spent, done, of_thread)) = thread.join() {
                nanos += spent;
                rounds += done;
                pieces.extend(of_thread);
            }
        }
        let (wall, cpu) = (
            started.elapsed().as_nanos(),
            clock(libc::CLOCK_PROCESS_CPUTIME_ID) - cpu,
        );
        nanos += clock(libc::CLOCK_THREAD_CPUTIME_ID);
        let piece = lower_quartile(pieces);
        let report = format!("{nanos} {cpu} {wall} {rounds} {piece}\n");
        if let Some(path) = &self.report
            && let Err(error) = std::fs::write(path, report)
        {
            eprintln!("selvedge-bench: cannot write {}: {error}", path.display());
        }
    }
}
