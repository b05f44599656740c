//! The stack of one function that calls itself, walked again and again.

use crate::{own_clock, peers, say};
use peers::Framehop;
use selvedge_arch::Registers;
use selvedge_unwind::build::{MapEntry, MapKind, map, table};
use selvedge_unwind::{Memo, Memory, ModuleMap, walk, walk_again};
use std::arch::asm;
use std::hint::black_box;

/// Walks per run.
const WALKS: u32 = 20_000;
/// The same for those that take much longer.
const SLOW_WALKS: u32 = 500;

pub struct Walkers {
    pub map: Vec<u8>,
    pub arena: Vec<u8>,
    pub memo: Box<Memo>,
    pub framehop: Framehop,
}

/// This thread's stack, above the walker's frame.
pub struct Stack {
    pub low: u64,
    pub high: u64,
}

impl Memory for Stack {
    #[inline]
    fn read(&mut self, address: u64) -> Option<u64> {
        // SAFETY: aligned and inside this thread's stack.
        (address >= self.low && address < self.high && address % 8 == 0)
            .then(|| unsafe { (address as *const u64).read_volatile() })
    }
}

/// Address, length of name and so on of this process's code, from `/proc/self/maps`.
fn mappings() -> Vec<(u64, u64, u64, String, bool)> {
    let text = std::fs::read_to_string("/proc/self/maps").expect("maps of this process");
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("a number");
    text.lines()
        .map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words
                .next()
                .and_then(|w| w.split_once('-'))
                .expect("a range");
            let executable = words.next().is_some_and(|access| access.contains('x'));
            let offset = hex(words.next().expect("an offset"));
            let name = words.nth(2).unwrap_or_default().to_owned();
            (hex(start), hex(end), offset, name, executable)
        })
        .collect()
}

/// The end of this thread's stack.
pub fn end_of_stack() -> u64 {
    let sp = registers().sp;
    let stack = mappings().into_iter().find(|m| (m.0..m.1).contains(&sp));
    stack.expect("a stack").1
}

#[inline(always)]
pub fn registers() -> Registers {
    let (ip, sp, bp, bx, r12, r13, r14, r15): (u64, u64, u64, u64, u64, u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("lea {0}, [rip]", "mov {1}, rsp", "mov {2}, rbp", "mov {3}, rbx",
            out(reg) ip, out(reg) sp, out(reg) bp, out(reg) bx);
        asm!("mov {0}, r12", "mov {1}, r13", "mov {2}, r14", "mov {3}, r15",
            out(reg) r12, out(reg) r13, out(reg) r14, out(reg) r15);
    }
    Registers {
        ip,
        sp,
        bp,
        bx,
        r12,
        r13,
        r14,
        r15,
        ..Registers::default()
    }
}

impl Walkers {
    pub fn new() -> Self {
        let mut arena = Vec::new();
        let mut entries = Vec::new();
        let mut framehop = Framehop::new();
        for (start, end, offset, name, executable) in mappings() {
            let image = std::fs::read(&name).unwrap_or_default();
            if !executable || !name.starts_with('/') {
                continue;
            }
            let Some(bias) = bias(&image, start, offset) else {
                continue;
            };
            framehop.add(&image, bias, start..end);
            let table = table(&image).expect("a table");
            let at = arena.len() as u64;
            let kind = MapKind::Table {
                offset: at,
                len: table.len() as u64,
                bias,
            };
            arena.extend(table);
            entries.push(MapEntry { start, end, kind });
        }
        Self {
            map: map(&entries, 1),
            arena,
            memo: Box::default(),
            framehop,
        }
    }

    /// One run of each, with `depth` calls on the stack.
    #[inline(never)]
    pub fn run(&mut self, depth: u32) -> u64 {
        if depth > 0 {
            return black_box(self.run(depth - 1)).wrapping_add(1);
        }
        let mut frames = [0_u64; 256];
        let registers = registers();
        let (ip, sp, bp) = (registers.ip, registers.sp, registers.bp);
        let mut memory = Stack {
            low: sp,
            high: end_of_stack(),
        };
        let Self {
            map,
            arena,
            memo,
            framehop,
        } = self;
        let map = ModuleMap::view(map, arena).expect("a map");
        measure("warm_ns_per_frame", "selvedge", WALKS, || {
            walk_again(&map, registers, &mut memory, &mut frames, memo).frames
        });
        measure("changed_ns_per_frame", "selvedge", WALKS, || {
            walk(&map, registers, &mut memory, &mut frames).frames
        });
        measure("warm_ns_per_frame", "framehop", WALKS, || {
            framehop.walk((ip, sp, bp), |at| memory.read(at), &mut frames)
        });
        measure("warm_ns_per_frame", "frame-pointers", WALKS, || {
            peers::frame_pointers(bp, &mut frames)
        });
        measure("warm_ns_per_frame", "libgcc", SLOW_WALKS, || {
            peers::libgcc(&mut frames)
        });
        if let Some(libunwind) = peers::libunwind() {
            measure("warm_ns_per_frame", "libunwind", WALKS, || {
                libunwind(&mut frames)
            });
        }
        sp
    }
}

/// Addresses minus those of the file, of an executable mapping.
fn bias(image: &[u8], start: u64, offset: u64) -> Option<u64> {
    use object::{Object, ObjectSegment};
    let file = object::File::parse(image).ok()?;
    file.segments().find_map(|segment| {
        let (at, len) = segment.file_range();
        let page = at & !4095;
        let object::SegmentFlags::Elf { p_flags, .. } = segment.flags() else {
            return None;
        };
        (p_flags.0 & 1 != 0 && page <= offset && offset < at + len)
            .then(|| start.wrapping_sub((segment.address() & !4095) + (offset - page)))
    })
}

fn measure(name: &str, peer: &str, walks: u32, mut walk: impl FnMut() -> usize) {
    walk();
    let start = own_clock();
    let mut frames = 0;
    for _ in 0..walks {
        frames += black_box(walk());
    }
    let took = (own_clock() - start) as f64;
    assert!(
        frames >= 50 * walks as usize,
        "{peer} found {frames} frames in {walks} walks of 50"
    );
    say(name, peer, took / frames as f64);
}
