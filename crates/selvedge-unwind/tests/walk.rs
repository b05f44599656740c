//! Walks of imaginary stacks: code without unwind information, and stacks that lead nowhere.

use selvedge_arch::Registers;
use selvedge_unwind::build::{MapEntry, MapKind, map};
use selvedge_unwind::{EXACT_PC, End, Memory, ModuleMap, Walked, walk};
use std::collections::HashMap;

/// Code without unwind information, from 0x10000 to 0x20000. All of its bytes are `ff d0`, `call *%rax`, or all are not.
struct Imaginary {
    words: HashMap<u64, u64>,
    calls: bool,
}

impl Imaginary {
    fn new(words: &[(u64, u64)]) -> Self {
        Self {
            words: words.iter().copied().collect(),
            calls: true,
        }
    }

    fn walk(&mut self, registers: Registers) -> (Walked, Vec<u64>) {
        let entry = MapEntry {
            start: 0x10000,
            end: 0x20000,
            kind: MapKind::NoCfi,
        };
        let bytes = map(&[entry], 1);
        let map = ModuleMap::view(&bytes, &[]).unwrap();
        let mut frames = [0; 16];
        let walked = walk(&map, registers, self, &mut frames);
        (walked, frames[..walked.frames].to_vec())
    }
}

impl Memory for Imaginary {
    fn read(&mut self, address: u64) -> Option<u64> {
        if (0x10000..0x20000).contains(&address) {
            return Some(if self.calls {
                0xd0ff_d0ff_d0ff_d0ff
            } else {
                0x9090_9090_9090_9090
            });
        }
        self.words.get(&address).copied()
    }
}

const LEAF: u64 = 0x10100;
const CALLER: u64 = 0x11000;
const OUTER: u64 = 0x12000;

fn registers(sp: u64, bp: u64) -> Registers {
    Registers {
        ip: LEAF,
        sp,
        bp,
        ..Registers::default()
    }
}

#[test]
fn own_frame_pointer_is_followed() {
    let mut memory = Imaginary::new(&[
        (0x7000, 1),
        (0x7008, 0x10),
        (0x7010, 0x7030),
        (0x7018, CALLER),
        (0x7020, 3),
        (0x7028, 4),
        (0x7030, 0),
        (0x7038, 0),
    ]);
    let (walked, frames) = memory.walk(registers(0x7000, 0x7010));
    assert_eq!(walked.end, End::Root);
    assert_eq!(frames, [LEAF | EXACT_PC, CALLER]);
}

#[test]
fn callers_frame_pointer_is_a_mark() {
    // The leaf keeps no frame: its return address lies below the frame that `rbp` points to.
    let mut memory = Imaginary::new(&[
        (0x7000, CALLER),
        (0x7008, 2),
        (0x7010, 0x7030),
        (0x7018, OUTER),
    ]);
    let (walked, frames) = memory.walk(registers(0x7000, 0x7010));
    assert_eq!((walked.end, frames), (End::NoRule, vec![LEAF | EXACT_PC]));
}

#[test]
fn word_that_no_call_precedes_is_no_return_address() {
    let mut memory =
        Imaginary::new(&[(0x7000, 0x7020), (0x7008, CALLER), (0x7020, 0), (0x7028, 0)]);
    memory.calls = false;
    let (walked, frames) = memory.walk(registers(0x7000, 0x7000));
    assert_eq!((walked.end, frames.len()), (End::NoRule, 1));
}

#[test]
fn frame_pointers_that_lead_nowhere_are_marks() {
    for (sp, bp) in [
        (0x7000, 0x6ff8),
        (0x7000, 0x7004),
        (0x7000, u64::MAX - 7),
        (0x7001, 0x7010),
        (0x7000, 0x7000 + (1 << 20)),
        (0, 0),
    ] {
        let (walked, frames) = Imaginary::new(&[]).walk(registers(sp, bp));
        assert_eq!(
            (walked.end, frames.len()),
            (End::NoRule, 1),
            "{sp:#x} {bp:#x}"
        );
    }
}

#[test]
fn loop_of_frame_pointers_ends() {
    let mut memory = Imaginary::new(&[(0x7000, 0x7000), (0x7008, CALLER)]);
    let (walked, frames) = memory.walk(registers(0x7000, 0x7000));
    assert_eq!((walked.end, frames.len()), (End::NoRule, 2));
}

#[test]
fn unknown_code_is_shown_and_marked() {
    let start = Registers {
        ip: 0x5000,
        sp: 0x7000,
        ..Registers::default()
    };
    let (walked, frames) = Imaginary::new(&[]).walk(start);
    assert_eq!(
        (walked.end, frames),
        (End::NoModule, vec![0x5000 | EXACT_PC])
    );
}
