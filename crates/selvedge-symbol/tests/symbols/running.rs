//! The program that runs: Rust names and inlined calls of this test itself, and the vDSO.

use std::hint::black_box;
use std::os::unix::fs::FileExt;

use selvedge_symbol::{Module, Symbol, Symbolizer};

/// A line of `/proc/self/maps`: start, end, file offset, name.
fn maps() -> Vec<(u64, u64, u64, String)> {
    std::fs::read_to_string("/proc/self/maps")
        .expect("read the mappings")
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (start, end) = fields[0].split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            let name = fields.get(5)?.to_string();
            Some((number(start)?, number(end)?, number(fields[2])?, name))
        })
        .collect()
}

/// What is known about the first `length` bytes at an address of this process.
fn symbols_at(address: usize, length: u64) -> Vec<Vec<Symbol>> {
    let address = address as u64;
    let (start, _, offset, path) = maps()
        .into_iter()
        .find(|&(start, end, ..)| start <= address && address < end)
        .expect("the address is mapped");
    let module = Module::open(path.as_ref()).expect("open the file of the mapping");
    let svma = module
        .svma(address - start + offset)
        .expect("the address is loaded");
    let svmas: Vec<u64> = (svma..svma + length).collect();
    Symbolizer::default().symbolize(&module, &svmas)
}

struct Shape<T>(T);

impl<T: Copy + Into<u64>> Shape<T> {
    #[inline(never)]
    fn area(&self) -> u64 {
        black_box(self.0).into()
    }
}

trait Named {
    fn name_of(&self) -> usize;
}

impl Named for Shape<u8> {
    #[inline(never)]
    fn name_of(&self) -> usize {
        black_box(usize::from(self.0))
    }
}

#[inline(always)]
fn inlined(value: u64) -> u64 {
    black_box(value) * 3
}

#[inline(never)]
fn around(value: u64) -> u64 {
    inlined(value) + 1
}

#[test]
fn rust_names_have_no_hash() {
    let area = symbols_at(Shape::<u32>::area as fn(&Shape<u32>) -> u64 as usize, 1);
    let outer = area[0].last().expect("has a symbol");
    assert!(
        outer.name.contains("Shape<") && outer.name.ends_with("::area"),
        "{outer:?}"
    );
    assert_ne!(outer.name, outer.system_name);
    let file = outer.file.as_deref().expect("has a file");
    assert!(file.ends_with("tests/symbols/running.rs"), "{file}");
    let name_of = <Shape<u8> as Named>::name_of as fn(&Shape<u8>) -> usize as usize;
    let name_of = symbols_at(name_of, 1);
    let outer = name_of[0].last().expect("has a symbol");
    let expected = "<symbols::running::Shape<u8> as symbols::running::Named>::name_of";
    assert_eq!(outer.name, expected);
}

#[test]
fn rust_calls_that_were_inlined() {
    let start = around as fn(u64) -> u64 as usize;
    let found = symbols_at(start, 64);
    let seen = found
        .iter()
        .filter(|symbols| {
            symbols
                .last()
                .is_some_and(|outer| outer.name == "symbols::running::around" && !outer.inlined)
        })
        .flatten()
        .any(|symbol| {
            symbol.name == "symbols::running::inlined" && symbol.inlined && symbol.start_line != 0
        });
    assert!(seen, "{found:#?}");
    assert_eq!(around(2), 7);
    assert_eq!(Shape(3_u32).area() as usize + Shape(4_u8).name_of(), 7);
}

#[test]
fn the_vdso() {
    let Some((start, end, ..)) = maps().into_iter().find(|map| map.3 == "[vdso]") else {
        return; // Booted with vdso=0.
    };
    let mut image = vec![0; (end - start) as usize];
    std::fs::File::open("/proc/self/mem")
        .and_then(|memory| memory.read_exact_at(&mut image, start))
        .expect("read the vDSO");
    let module = Module::from_bytes(image, "[vdso]").expect("an image");
    assert!(module.build_id().is_some());
    let svmas: Vec<u64> = (0..end - start)
        .filter_map(|offset| module.svma(offset))
        .collect();
    let symbols = Symbolizer::default().symbolize(&module, &svmas);
    let named = |name: &str| symbols.iter().flatten().any(|symbol| symbol.name == name);
    assert!(named("clock_gettime") || named("__vdso_clock_gettime"));
}
