//! Damaged images, tables and maps: whatever the bytes, nothing panics, nothing loops, nothing takes much memory.

use selvedge_arch::Registers;
use selvedge_unwind::build::{MapEntry, MapKind, map, table};
use selvedge_unwind::table::Table;
use selvedge_unwind::{Memory, ModuleMap, walk};

/// xorshift64*, seeded: a failure names its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Overwrites a few bytes between `from` and `to`, mostly with values that make trouble.
    fn damage(&mut self, bytes: &mut [u8], from: usize, to: usize) {
        for _ in 0..=self.below(12) {
            let at = from + self.below(to.saturating_sub(from));
            let value = [0, 1, 0x7f, 0x80, 0xff, self.next() as u8][self.below(6)];
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
    }
}

/// Memory in which everything can be read, and every other word is an address of code or stack.
struct Anything(Random);

impl Memory for Anything {
    fn read(&mut self, address: u64) -> Option<u64> {
        match self.0.below(8) {
            0 => None,
            1 => Some(self.0.next()),
            2 | 3 => Some(address.wrapping_add(self.0.below(256) as u64 & !7)),
            _ => Some(0x1000 + self.0.below(1 << 20) as u64),
        }
    }
}

fn library() -> Vec<u8> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps
        .lines()
        .find(|line| line.contains("libgcc_s.so"))
        .unwrap();
    std::fs::read(line.split_whitespace().next_back().unwrap()).unwrap()
}

fn walk_anywhere(map: &[u8], arena: &[u8], random: &mut Random) {
    let Some(map) = ModuleMap::view(map, arena) else {
        return;
    };
    let ip = 0x1000 + random.below(1 << 20) as u64;
    let sp = if random.below(8) == 0 {
        random.next()
    } else {
        0x7000_0000
    };
    let registers = Registers {
        ip,
        sp,
        bp: sp.wrapping_add(64),
        bx: random.next(),
        ..Registers::default()
    };
    let mut frames = [0; 64];
    let walked = walk(
        &map,
        registers,
        &mut Anything(Random(random.next())),
        &mut frames,
    );
    assert!(walked.frames <= frames.len());
}

#[test]
fn damaged_images_make_tables_or_errors() {
    let image = library();
    // Where it matters: the headers, and the second half, which holds the unwind information and section headers.
    for seed in 1..400 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut damaged = image.clone();
        let len = damaged.len();
        match seed % 4 {
            0 => random.damage(&mut damaged, 0, 1024),
            1 => random.damage(&mut damaged, len / 2, len),
            2 => random.damage(&mut damaged, 0, len),
            _ => damaged.truncate(random.below(len)),
        }
        if let Ok(bytes) = table(&damaged) {
            assert!(
                bytes.len() <= 64 * image.len(),
                "seed {seed}: {} bytes",
                bytes.len()
            );
            let table = Table::view(&bytes).expect("a table that cannot be read");
            for _ in 0..64 {
                let _ = table.rule(random.next() % (1 << 21));
            }
        }
    }
}

#[test]
fn damaged_tables_and_maps_end_walks() {
    let good = table(&library()).unwrap();
    let kind = MapKind::Table {
        offset: 0,
        len: good.len() as u64,
        bias: 0x1000,
    };
    let entries = [
        MapEntry {
            start: 0x1000,
            end: 0x40000,
            kind,
        },
        MapEntry {
            start: 0x50000,
            end: 0x60000,
            kind: MapKind::NoCfi,
        },
    ];
    let good_map = map(&entries, 1);
    for seed in 1..3000 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let (mut bytes, mut map) = (good.clone(), good_map.clone());
        let (table_len, map_len) = (bytes.len(), map.len());
        match seed % 3 {
            0 => random.damage(&mut bytes, 0, 64),
            1 => random.damage(&mut bytes, 0, table_len),
            _ => random.damage(&mut map, 0, map_len),
        }
        if seed % 7 == 0 {
            bytes.truncate(random.below(table_len));
        }
        if seed % 11 == 0 {
            map.truncate(random.below(map_len));
        }
        for _ in 0..16 {
            walk_anywhere(&map, &bytes, &mut random);
        }
    }
}
