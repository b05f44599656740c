//! Tables of whatever an ELF file may hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_unwind::build::table;
use selvedge_unwind::table::Table;

fuzz_target!(|image: &[u8]| {
    let Ok(bytes) = table(image) else { return };
    assert!(bytes.len() <= 128 * image.len() + 4096);
    let table = Table::view(&bytes).expect("a table that can be read");
    let mut last = None;
    for start in table.starts() {
        assert!(last.is_none_or(|last| last < start), "rows ascend");
        last = Some(start);
        assert!(table.rule(start).is_some(), "{start:#x} has a rule");
    }
});
