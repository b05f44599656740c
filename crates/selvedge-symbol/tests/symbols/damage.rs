//! Damaged images never make the symbolizer panic, whatever byte is wrong or missing.

use std::time::{Duration, Instant};

use crate::build::{Dir, functions};
use selvedge_symbol::{Module, Options, Symbolizer};

/// The longest time that one program is damaged.
const TIME: Duration = Duration::from_millis(1200);

/// xorshift64*: the same damage in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

fn try_all(bytes: Vec<u8>, svmas: &[u64]) {
    let Ok(module) = Module::from_bytes(bytes, "damaged") else {
        return;
    };
    let options = Options {
        debug_dirs: Vec::new(),
        ..Options::default()
    };
    let symbols = Symbolizer::new(options).symbolize(&module, svmas);
    assert_eq!(symbols.len(), svmas.len());
    module.build_id();
    module.svma(0x1000);
}

fn damage(name: &str, flags: &[&str], after: &[&[&str]]) {
    let dir = Dir::new();
    let path = dir.compile("inlined.c", name, flags);
    let mut svmas: Vec<u64> = functions(&path)
        .iter()
        .flat_map(|&(_, start, size)| [start, start + size / 2, start + size])
        .collect();
    svmas.extend([
        0,
        1,
        0x1020,
        0x1030,
        0x7fff_ffff_ffff,
        u64::MAX - 1,
        u64::MAX,
    ]);
    for arguments in after {
        dir.tool(arguments[0], &arguments[1..]);
    }
    let image = std::fs::read(&path).expect("read the program");
    let sections: Vec<(usize, usize)> = dir
        .tool("readelf", &["-SW", name])
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(']').nth(1)?.split_whitespace().collect();
            let interesting = [
                ".debug", ".symtab", ".strtab", ".dyn", ".rela", ".plt", ".note",
            ];
            let wanted = interesting.iter().any(|start| fields[0].starts_with(start));
            let number = |text| usize::from_str_radix(text, 16).ok();
            wanted.then_some((number(fields.get(3)?)?, number(fields.get(4)?)?))
        })
        .filter(|&(_, size)| size > 0)
        .collect();
    assert!(sections.len() > 5);

    let mut random = Random(0x5e1f_ed9e);
    let started = Instant::now();
    let mut round = 0_u32;
    while started.elapsed() < TIME {
        let mut bytes = image.clone();
        match round % 4 {
            // The header, the segments and the section headers.
            0 => {
                let headers = [0..0x400, bytes.len() - 0xa00..bytes.len()];
                let part = headers[random.below(2)].clone();
                let at = part.start + random.below(part.len());
                bytes[at] = random.below(256) as u8;
            }
            1 => bytes.truncate(random.below(image.len())),
            _ => {
                for _ in 0..=random.below(6) {
                    let (start, size) = sections[random.below(sections.len())];
                    let at = start + random.below(size);
                    bytes[at] = [0, 1, 0x7f, 0x80, 0xff, random.below(256) as u8][random.below(6)];
                }
            }
        }
        try_all(bytes, &svmas);
        round += 1;
    }
    assert!(round > 20, "only {round} rounds");
}

#[test]
fn with_debug_information() {
    damage("dwarf-5", &["-O2", "-gdwarf-5"], &[]);
    damage("dwarf-4", &["-O2", "-gdwarf-4"], &[]);
}

#[test]
fn compressed() {
    let compress = ["objcopy", "--compress-debug-sections=zstd", "program"];
    damage("program", &["-O2", "-g"], &[&compress]);
}

#[test]
fn stripped() {
    damage(
        "program",
        &["-O2", "-rdynamic", "-fcf-protection", "-Wl,-z,ibtplt"],
        &[&["strip", "program"]],
    );
}
