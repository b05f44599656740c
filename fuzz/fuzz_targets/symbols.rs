//! Names of addresses of whatever an ELF file may hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_symbol::{Module, Options, Symbolizer};

fuzz_target!(|input: (u64, &[u8])| {
    let (address, image) = input;
    let Ok(module) = Module::from_bytes(image.to_vec(), "fuzzed") else {
        return;
    };
    let _ = module.build_id();
    let first = module.svma(address % 4096).unwrap_or(address);
    let addresses = [address, first, first.wrapping_add(64), 0x1000, u64::MAX];
    let found = Symbolizer::new(Options::default()).symbolize(&module, &addresses);
    assert_eq!(found.len(), addresses.len());
});
