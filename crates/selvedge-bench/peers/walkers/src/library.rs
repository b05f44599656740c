//! A large library: walks over distinct addresses of it.

use crate::peers::Framehop;
use crate::{own_clock, say};
use selvedge_arch::Registers;
use selvedge_unwind::build::{MapEntry, MapKind, map, table};
use selvedge_unwind::table::{Cfa, Table, register};
use selvedge_unwind::{Memory, ModuleMap, walk};
use std::fs::File;
use std::path::Path;

const STACKS: usize = 2_000;
const FRAMES: usize = 50;
const BIAS: u64 = 0x5000_0000_0000;
const STACK: u64 = 0x7000_0000_0000;

/// An imaginary stack in which each frame is as its rule says.
struct Stack {
    ip: u64,
    words: Vec<u64>,
}

impl Memory for &Stack {
    #[inline]
    fn read(&mut self, address: u64) -> Option<u64> {
        let word = usize::try_from(address.wrapping_sub(STACK) / 8).ok()?;
        self.words.get(word).copied()
    }
}

pub struct Large {
    image: memmap2::Mmap,
    framehop: Framehop,
}

impl Large {
    pub fn new(path: &Path) -> Self {
        let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // SAFETY: an installed library is not changed while this runs.
        let image = unsafe { memmap2::Mmap::map(&file) }.expect("the library in memory");
        let mut framehop = Framehop::new();
        framehop.add(&image, BIAS, BIAS..BIAS + (1 << 32));
        Self { image, framehop }
    }

    pub fn run(&mut self) {
        let bytes = table(&self.image).expect("a table");
        let stacks = stacks(&Table::view(&bytes).expect("a table"));
        let kind = MapKind::Table {
            offset: 0,
            len: bytes.len() as u64,
            bias: BIAS,
        };
        let map = map(
            &[MapEntry {
                start: BIAS,
                end: BIAS + (1 << 32),
                kind,
            }],
            1,
        );
        let map = ModuleMap::view(&map, &bytes).expect("a map");
        let mut frames = [0; 64];
        measure("selvedge", &stacks, |mut stack| {
            let registers = Registers {
                ip: stack.ip,
                sp: STACK,
                ..Registers::default()
            };
            walk(&map, registers, &mut stack, &mut frames).frames
        });
        measure("framehop", &stacks, |mut stack| {
            let registers = (stack.ip, STACK, 0);
            self.framehop
                .walk(registers, |at| stack.read(at), &mut frames)
        });
    }
}

fn measure(peer: &str, stacks: &[Stack], mut walk: impl FnMut(&Stack) -> usize) {
    let start = own_clock();
    let frames: usize = stacks.iter().map(&mut walk).sum();
    let took = (own_clock() - start) as f64;
    assert!(
        frames > STACKS * FRAMES / 10 * 9,
        "{peer} found {frames} frames"
    );
    say("memory_cold_ns_per_frame", peer, took / frames as f64);
}

/// Stacks of frames that are found by `rsp`, each at an address of its own.
fn stacks(table: &Table<'_>) -> Vec<Stack> {
    let starts: Vec<u64> = table.starts().collect();
    // A linear congruential generator modulo a power of two visits each row once (Knuth, TAOCP 3.2.1.2).
    let rows = starts.len().next_power_of_two();
    let mut row = 12_345 % rows;
    let mut next = || loop {
        row = (row * 5 + 0x3_2a_d1) % rows;
        let (Some(&start), Some(&end)) = (starts.get(row), starts.get(row + 1)) else {
            continue;
        };
        let rule = table.rule(start);
        if let Some(Cfa::Register(base, offset @ 8..1024)) = rule.map(|rule| rule.cfa)
            && usize::from(base) == register::SP
            && offset % 8 == 0
            && end - start > 1
        {
            // In the middle of what the row covers: neither at its start as a return address, nor behind its end.
            return (BIAS + start + (end - start) / 2, offset as usize / 8);
        }
    };
    let stack = |_| {
        let (ip, mut above) = next();
        let mut words = Vec::new();
        for frame in 1..=FRAMES {
            words.resize(words.len() + above, 0);
            let last = words.len() - 1;
            if frame < FRAMES {
                (words[last], above) = next();
            }
        }
        Stack { ip, words }
    };
    (0..STACKS).map(stack).collect()
}
