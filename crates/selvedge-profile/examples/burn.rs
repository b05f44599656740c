//! Profiles itself: three functions with shares of 50, 30 and 20 percent.
//!
//! `cargo run --release -p selvedge-profile --example burn`

use selvedge_pprof::report::{Top, TopOptions};
use std::hint::black_box;
use std::time::{Duration, Instant};

fn work(rounds: u64) {
    let mut x = 1_u64;
    for _ in 0..rounds {
        x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

#[inline(never)]
fn burn_a() {
    work(black_box(50_000));
    black_box(());
}

#[inline(never)]
fn burn_b() {
    work(black_box(30_000));
    black_box(());
}

#[inline(never)]
fn burn_c() {
    work(black_box(20_000));
    black_box(());
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let guard = selvedge_profile::Builder::new()
        .hz(999.0)
        .output("burn.pb.gz")
        .start()?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        burn_a();
        burn_b();
        burn_c();
    }
    let (report, written) = guard.finish();
    written?;
    print!("{}", Top::new(&report.profile, &TopOptions::default())?);
    println!("{:#?}", report.summary);
    Ok(())
}
