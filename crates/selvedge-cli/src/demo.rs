//! A program to profile: four threads, each with its own kind of work; in one of them, known shares.

use crate::streams::say;
use selvedge_profile::Membership;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

/// What a thread does, again and again, with the number of the round.
type Work = fn(u64);

/// Works for some seconds.
///
/// Recorded, it is a program like any other where this command is linked dynamically. Where it is static, no agent is
/// loaded into it, and it joins the recording by itself.
pub(crate) fn run(seconds: f64) {
    let member = Membership::from_env().unwrap_or_else(|error| {
        say!("selvedge: {error}");
        None
    });
    let member = member.as_ref();
    let end = Instant::now() + Duration::from_secs_f64(seconds.clamp(0.1, 3600.0));
    let threads: [(&str, Work); 4] = [
        ("hash", hash),
        ("sort", sort),
        ("count", count_words),
        ("shares", shares),
    ];
    thread::scope(|scope| {
        for (name, work) in threads {
            let spawned = thread::Builder::new()
                .name(name.into())
                .spawn_scoped(scope, move || {
                    let _recorded = member.map(Membership::thread);
                    let mut round = 0;
                    while Instant::now() < end {
                        work(round);
                        round += 1;
                    }
                });
            if let Err(error) = spawned {
                say!("selvedge: cannot start the thread {name}: {error}");
            }
        }
    });
}

fn mix(rounds: u64) -> u64 {
    (0..rounds).fold(1, |x, y| {
        black_box(x ^ y)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(31)
    })
}

#[inline(never)]
fn hash(round: u64) {
    let bytes: Vec<u8> = (0..50_000_u64).map(|n| (n ^ round) as u8).collect();
    black_box(bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, &b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    }));
}

#[inline(never)]
fn sort(round: u64) {
    let mut numbers: Vec<u64> = (0..20_000)
        .map(|n| (n ^ round).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect();
    numbers.sort_unstable();
    black_box(numbers);
}

#[inline(never)]
fn count_words(round: u64) {
    let mut counts = BTreeMap::new();
    for n in 0..3_000_u64 {
        *counts
            .entry(format!("word{}", (n ^ round) % 500))
            .or_insert(0_u64) += 1;
    }
    black_box(counts);
}

/// Half, three tenths, one fifth.
#[inline(never)]
fn shares(_round: u64) {
    half();
    three_tenths();
    one_fifth();
}

#[inline(never)]
fn half() {
    black_box(mix(black_box(500_000)));
}

#[inline(never)]
fn three_tenths() {
    black_box(mix(black_box(300_000)));
}

#[inline(never)]
fn one_fifth() {
    black_box(mix(black_box(200_000)));
}
