//! A stack of fifty different functions, walked by a walker that has not seen any of them: what it keeps from one walk to
//! the next is made anew before each. Memory is warm.

use crate::deep::{Stack, Walkers, registers};
use crate::peers::{self, Framehop};
use crate::say;
use selvedge_arch::Registers;
use selvedge_unwind::{Memo, Memory, ModuleMap, walk_again};
use std::hint::black_box;
use std::time::Instant;

/// Walks per run and walker.
const WALKS: usize = 200;

/// A function that calls the next one, with a frame of a size of its own.
macro_rules! chain {
    ($last:ident) => {
        #[inline(never)]
        fn $last(leaf: &mut dyn FnMut()) -> u64 {
            leaf();
            black_box(1)
        }
    };
    ($name:ident $next:ident $($rest:ident)*) => {
        #[inline(never)]
        fn $name(leaf: &mut dyn FnMut()) -> u64 {
            let local = black_box([1_u64; 1 + stringify!($($rest)*).len() % 13]);
            black_box($next(leaf)).wrapping_add(local[0])
        }
        chain! { $next $($rest)* }
    };
}

chain! {
    f00 f01 f02 f03 f04 f05 f06 f07 f08 f09 f10 f11 f12 f13 f14 f15 f16 f17 f18 f19 f20 f21 f22 f23 f24
    f25 f26 f27 f28 f29 f30 f31 f32 f33 f34 f35 f36 f37 f38 f39 f40 f41 f42 f43 f44 f45 f46 f47 f48 f49
}

/// One run of each.
pub fn run(walkers: &mut Walkers) {
    let high = crate::deep::end_of_stack();
    let Walkers {
        map,
        arena,
        memo,
        framehop,
    } = walkers;
    let map = ModuleMap::view(map, arena).expect("a map");
    let selvedge = |memo: &mut Box<Memo>, frames: &mut [u64]| {
        let registers = registers();
        let mut memory = Stack {
            low: registers.sp,
            high,
        };
        walk_again(&map, registers, &mut memory, frames, memo).frames
    };
    measure("selvedge", memo, |memo| **memo = Memo::default(), selvedge);
    let by_framehop = |framehop: &mut Framehop, frames: &mut [u64]| {
        let Registers { ip, sp, bp, .. } = registers();
        let mut memory = Stack { low: sp, high };
        framehop.walk((ip, sp, bp), |at| memory.read(at), frames)
    };
    measure("framehop", framehop, Framehop::forget, by_framehop);
    let frame_pointers =
        |(): &mut (), frames: &mut [u64]| peers::frame_pointers(registers().bp, frames);
    measure("frame-pointers", &mut (), |()| (), frame_pointers);
    measure(
        "libgcc",
        &mut (),
        |()| (),
        |(), frames| peers::libgcc(frames),
    );
    if peers::libunwind().is_some() {
        // Half of its cache is the thread's: each walk has a thread of its own.
        let one = |_| std::thread::spawn(by_libunwind).join().expect("a walk");
        report("libunwind", (0..WALKS).map(one).collect());
    }
}

fn by_libunwind() -> f64 {
    let libunwind = peers::libunwind().expect("libunwind, as before");
    let mut frames = [0_u64; 256];
    // The making of the cache is not in the figure; the frames of the thread's start are then known.
    libunwind(&mut frames);
    peers::forget_of_libunwind();
    let (mut took, mut found) = (0.0, 0);
    f00(&mut || (took, found) = time(|| libunwind(&mut frames)));
    took / found as f64
}

fn time(walk: impl FnOnce() -> usize) -> (f64, usize) {
    let start = Instant::now();
    let found = black_box(walk());
    (start.elapsed().as_nanos() as f64, found)
}

/// Walks after `forget`, which is not in the figure.
fn measure<S>(
    peer: &str,
    state: &mut S,
    forget: impl Fn(&mut S),
    walk: impl Fn(&mut S, &mut [u64]) -> usize,
) {
    let mut frames = [0_u64; 256];
    let one = |_| {
        forget(state);
        let (mut took, mut found) = (0.0, 0);
        f00(&mut || (took, found) = time(|| walk(state, &mut frames)));
        assert!(found >= 50, "{peer} found {found} frames of 50");
        took / found as f64
    };
    report(peer, (0..WALKS).map(one).collect());
}

/// The median: now and then another program comes in between.
fn report(peer: &str, mut costs: Vec<f64>) {
    costs.sort_by(f64::total_cmp);
    say("cold_ns_per_frame", peer, costs[costs.len() / 2]);
}
