//! Walks of imaginary stacks: code without unwind information, and stacks that lead nowhere.

use selvedge_arch::Registers;
use selvedge_unwind::build::{MapEntry, MapKind, map};
use selvedge_unwind::{
    EXACT_PC, End, MAX_WALKED, Memo, Memory, ModuleMap, TRUNCATED, Walked, walk, walk_again,
};
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
        if let Some(word) = self.words.get(&address) {
            return Some(*word);
        }
        if (0x10000..0x20000).contains(&address) {
            return Some(if self.calls {
                0xd0ff_d0ff_d0ff_d0ff
            } else {
                0x9090_9090_9090_9090
            });
        }
        None
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

/// The eight bytes before an address end in a direct call of `target`.
fn direct_call(from: u64, target: u64) -> [(u64, u64); 2] {
    assert!(from.is_multiple_of(8));
    let distance = u64::from(target.wrapping_sub(from) as u32);
    [
        (from - 8, 0x90_9090 | 0xe8 << 24 | distance << 32),
        (from, 0),
    ]
}

#[test]
fn direct_call_of_another_function_is_a_mark() {
    for (target, end) in [
        (LEAF - 0x80, End::Root),
        (LEAF, End::Root),
        (LEAF + 0x10, End::NoRule),
        (0x8000, End::NoRule),
    ] {
        let mut memory =
            Imaginary::new(&[(0x7000, 0x7010), (0x7008, CALLER), (0x7010, 0), (0x7018, 0)]);
        memory.words.extend(direct_call(CALLER, target));
        let (walked, frames) = memory.walk(registers(0x7000, 0x7000));
        let expected = if end == End::Root { 2 } else { 1 };
        assert_eq!((walked.end, frames.len()), (end, expected), "{target:#x}");
    }
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

/// A stack of so many frames with frame pointers only: return addresses count from the root.
fn deep(callers: u64) -> Imaginary {
    let mut words = Vec::new();
    for at in 0..callers {
        let frame = 0x7000_0000 + 16 * at;
        let is_last = at + 1 == callers;
        words.push((frame, if is_last { 0 } else { frame + 16 }));
        words.push((frame + 8, 0x10100 + 2 * ((callers - at) & 0x7fff)));
    }
    let last = 0x7000_0000 + 16 * callers;
    words.push((last, 0));
    words.push((last + 8, 0));
    let outermost = (2 * callers as usize).checked_sub(2);
    if let Some((_, frame)) = outermost.and_then(|at| words.get_mut(at)) {
        *frame = last;
    }
    Imaginary::new(&words)
}

fn walk_deep(memory: &mut Imaginary, room: usize) -> (Walked, Vec<u64>) {
    let entry = MapEntry {
        start: 0x10000,
        end: 0x20000,
        kind: MapKind::NoCfi,
    };
    let bytes = map(&[entry], 1);
    let map = ModuleMap::view(&bytes, &[]).unwrap();
    let start = registers(0x7000_0000, 0x7000_0000);
    let mut frames = vec![0; room];
    let walked = walk(&map, start, memory, &mut frames);
    frames.truncate(walked.frames);
    let mut again = vec![0; room];
    let mut memo = Box::<Memo>::default();
    for _ in 0..2 {
        let walked_again = walk_again(&map, start, memory, &mut again, &mut memo);
        assert_eq!((walked_again, &again[..walked.frames]), (walked, &*frames));
    }
    (walked, frames)
}

#[test]
fn deep_stack_keeps_its_leaf_and_its_root() {
    for (callers, room) in [
        (512, 512),
        (1000, 512),
        (5000, 512),
        (8000, 512),
        (17, 16),
        (900, 16),
    ] {
        let (walked, frames) = walk_deep(&mut deep(callers), room);
        assert_eq!((walked.end, frames.len()), (End::Root, room), "{callers}");
        let leaf = room - room / 8 - 1;
        assert_eq!(frames[0], LEAF | EXACT_PC);
        assert_eq!(frames[leaf], TRUNCATED);
        for (at, frame) in frames.iter().enumerate().take(leaf).skip(1) {
            assert_eq!(
                *frame,
                0x10100 + 2 * (callers - at as u64 + 1),
                "{callers}: {at}"
            );
        }
        for (at, frame) in frames.iter().rev().take(room / 8).enumerate() {
            assert_eq!(*frame, 0x10100 + 2 * (at as u64 + 1), "{callers}: {at}");
        }
    }
}

#[test]
fn stack_that_fits_is_whole() {
    for room in [1, 2, 8, 9, 64, 512] {
        let (walked, frames) = walk_deep(&mut deep(room - 1), room as usize);
        assert_eq!((walked.end, frames.len() as u64), (End::Root, room));
        assert!(!frames.contains(&TRUNCATED));
    }
}

#[test]
fn deeper_stack_keeps_its_leaf() {
    let (walked, frames) = walk_deep(&mut deep(MAX_WALKED as u64 + 1), 512);
    assert_eq!((walked.end, frames.len()), (End::Limit, 447));
    assert!(!frames.contains(&TRUNCATED));
}

#[test]
fn deep_stack_without_a_root_keeps_its_leaf() {
    let mut memory = deep(2000);
    memory.words.insert(0x7000_0000 + 16 * 1000 + 8, 0x5000);
    let (walked, frames) = walk_deep(&mut memory, 512);
    assert_eq!((walked.end, frames.len()), (End::NoRule, 448));
    assert_eq!(frames[447], TRUNCATED);
}
