//! Walks the same stacks by selvedge-unwind and by its peers, once. Prints a line for each figure: name, peer, value.
//!
//! - *warm*: the stack of 50 calls of one function, again and again
//! - *changed*: the same, and nothing is kept from one walk to the next
//! - *cold*: the stack of 50 different functions, by walkers whose caches are empty; memory is warm
//! - *memory cold*: stacks of 50 frames at distinct addresses of a large library, each walked once
//!
//! The suite `walk` of `selvedge-bench` builds it (with frame pointers, which are one of the peers) and runs it.

mod cold;
mod deep;
mod library;
mod peers;

use std::path::PathBuf;

fn main() {
    let library = std::env::args_os().nth(1).map(PathBuf::from);
    let mut walkers = deep::Walkers::new();
    walkers.run(50);
    cold::run(&mut walkers);
    if let Some(library) = library {
        library::Large::new(&library).run();
    }
}

/// Nanoseconds of this thread's CPU time: what other programs take meanwhile does not count.
fn own_clock() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes to a local.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Prints a figure.
fn say(name: &str, peer: &str, value: f64) {
    println!("{name} {peer} {value}");
}
