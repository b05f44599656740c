//! Walks by hostile tables and maps, of hostile memory, with and without a memo; a memo of an earlier walk changes nothing
//! of what is found, a hostile one no more than that.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_arch::Registers;
use selvedge_unwind::build::{MapEntry, MapKind, map};
use selvedge_unwind::table::MAGIC;
use selvedge_unwind::{MAX_WALKED, Memo, Memory, ModuleMap, walk, walk_again};

const STACK: u64 = 0x7000_0000;
const CODE: u64 = 0x1000;
const CODE_END: u64 = 0x9000;

/// A table (its bytes behind the header, its counts, the rule behind its end), and a map instead of a well-formed one.
type Code<'a> = (&'a [u8], [u8; 4], u8, Option<&'a [u8]>);
/// Registers, memory, places and values that change in it, a hostile memo, and how many frames there is room for.
type State<'a> = ([u16; 6], [u8; 9], Vec<u8>, [(u8, u8); 4], &'a [u8], u16);

/// A word of memory is made of one byte: nearly all are addresses of code or stack.
struct Stack<'a> {
    bytes: &'a [u8],
    reads: usize,
}

impl Memory for Stack<'_> {
    fn read(&mut self, address: u64) -> Option<u64> {
        self.reads += 1;
        if !address.is_multiple_of(8) {
            return None;
        }
        if (CODE..CODE_END).contains(&address) {
            return Some(address.wrapping_mul(0xd0ff_d0ff_d0ff_d0ff));
        }
        let place = address.checked_sub(STACK)? / 8;
        // Beyond what was given, the stack goes on, up to a bound: deep walks end too.
        if place > 4 * MAX_WALKED as u64 {
            return None;
        }
        let byte = *self.bytes.get(place as usize % self.bytes.len().max(1))?;
        Some(match byte {
            0 => 0,
            1 => u64::MAX,
            2..0x20 => address.wrapping_add(8 * u64::from(byte)),
            0x20..0x30 => address.wrapping_sub(8 * u64::from(byte - 0x20)),
            _ => CODE + u64::from(byte - 0x30) * 0x40,
        })
    }
}

fuzz_target!(|input: (Code<'_>, State<'_>)| {
    let (code, state) = input;
    let (table, counts, behind, raw_map) = code;
    let (registers, scratch, mut stack, changed, memo, room) = state;
    let mut arena = Vec::new();
    arena.extend(MAGIC.to_le_bytes());
    for count in counts {
        arena.extend(u32::from(count).to_le_bytes());
    }
    arena.extend(u32::from(behind).to_le_bytes());
    arena.extend(0_u64.to_le_bytes());
    arena.extend(table);
    let kind = MapKind::Table {
        offset: 0,
        len: arena.len() as u64,
        bias: CODE,
    };
    let entries = [
        MapEntry {
            start: CODE,
            end: CODE + 0x4000,
            kind,
        },
        MapEntry {
            start: CODE + 0x5000,
            end: CODE_END,
            kind: MapKind::NoCfi,
        },
    ];
    let made = map(&entries, 1);
    let Some(view) = ModuleMap::view(raw_map.unwrap_or(&made), &arena) else {
        return;
    };
    let [ip, sp, bp, bx, r12, r13] = registers;
    let at = |word: u16| STACK + u64::from(word) / 8 * 8;
    let registers = Registers {
        ip: CODE + u64::from(ip) % (CODE_END - CODE),
        sp: STACK + u64::from(sp) % 1024,
        bp: at(bp),
        bx: at(bx),
        r12: at(r12),
        r13: u64::from(r13),
        scratch: scratch.map(|byte| STACK + 8 * u64::from(byte)),
        ..Registers::default()
    };
    let room = usize::from(room % 600);
    let mut kept = Box::<Memo>::default();
    let mut check = |stack: &[u8]| {
        let (mut frames, mut again) = (vec![0; room], vec![0; room]);
        let mut memory = Stack {
            bytes: stack,
            reads: 0,
        };
        let walked = walk(&view, registers, &mut memory, &mut frames);
        assert!(walked.frames <= room);
        assert!(memory.reads < 64 * MAX_WALKED, "{} reads", memory.reads);
        let mut memory = Stack {
            bytes: stack,
            reads: 0,
        };
        let same = walk_again(&view, registers, &mut memory, &mut again, &mut kept);
        assert_eq!(
            (walked, &frames[..walked.frames]),
            (same, &again[..same.frames])
        );
    };
    check(&stack);
    check(&stack);
    for (place, byte) in changed {
        if let Some(old) = stack.get_mut(usize::from(place)) {
            *old = byte;
        }
        check(&stack);
    }
    // Any bytes are a memo: nothing but integers.
    let mut hostile = Box::<Memo>::default();
    let bytes = (&raw mut *hostile).cast::<u8>();
    let len = memo.len().min(size_of::<Memo>());
    // SAFETY: `len` is no more than either has.
    unsafe { std::ptr::copy_nonoverlapping(memo.as_ptr(), bytes, len) };
    let mut frames = vec![0; room];
    let mut memory = Stack {
        bytes: &stack,
        reads: 0,
    };
    let walked = walk_again(&view, registers, &mut memory, &mut frames, &mut hostile);
    assert!(walked.frames <= room);
});
