//! Tables of hostile unwind information and code, in an ELF file that is well formed otherwise.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_unwind::build::table;
use selvedge_unwind::table::Table;

/// Where the code is.
const TEXT: u64 = 0x1000;
/// Where the unwind information is.
const FRAMES: u64 = 0x10_0000;

/// A file of a section of code and one of unwind information. The symbols of a third are functions in that code.
fn image(code: &[u8], frames: &[u8], symbols: &[u8]) -> Vec<u8> {
    let names = b"\0.text\0.eh_frame\0.symtab\0.strtab\0swapcontext\0makecontext\0";
    let mut file = Vec::new();
    let half = |file: &mut Vec<u8>, words: &[u16]| {
        words
            .iter()
            .for_each(|word| file.extend(word.to_le_bytes()))
    };
    let word = |file: &mut Vec<u8>, words: &[u32]| {
        words
            .iter()
            .for_each(|word| file.extend(word.to_le_bytes()))
    };
    let long = |file: &mut Vec<u8>, words: &[u64]| {
        words
            .iter()
            .for_each(|word| file.extend(word.to_le_bytes()))
    };
    let symbol_bytes = symbols.len() / 4 * 24;
    let (code_at, len) = (120, |bytes: &[u8]| bytes.len() as u64);
    let frames_at = code_at + len(code);
    let symbols_at = frames_at + len(frames);
    let names_at = symbols_at + symbol_bytes as u64;
    let sections_at = names_at + len(names);
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    half(&mut file, &[3, 62]);
    word(&mut file, &[1]);
    long(&mut file, &[TEXT, 64, sections_at]);
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 1, 64, 5, 4]);
    word(&mut file, &[1, 5]);
    long(
        &mut file,
        &[code_at, TEXT, TEXT, len(code), len(code), 4096],
    );
    file.extend(code);
    file.extend(frames);
    for bytes in symbols.as_chunks::<4>().0 {
        let [name, kind, low, high] = *bytes;
        word(&mut file, &[u32::from(name) % names.len() as u32]);
        file.extend([kind, 0]);
        half(&mut file, &[1]);
        long(
            &mut file,
            &[
                TEXT + u64::from(u16::from_le_bytes([low, high])),
                u64::from(kind),
            ],
        );
    }
    file.extend(names);
    let mut section = |name: u32,
                       kind: u32,
                       flags: u64,
                       address: u64,
                       at: u64,
                       len: u64,
                       link: u32,
                       entry: u64| {
        word(&mut file, &[name, kind]);
        long(&mut file, &[flags, address, at, len]);
        word(&mut file, &[link, 0]);
        long(&mut file, &[1, entry]);
    };
    section(0, 0, 0, 0, 0, 0, 0, 0);
    section(1, 1, 6, TEXT, code_at, len(code), 0, 0);
    section(7, 1, 2, FRAMES, frames_at, len(frames), 0, 0);
    section(17, 2, 0, 0, symbols_at, symbol_bytes as u64, 4, 24);
    section(25, 3, 0, 0, names_at, len(names), 0, 0);
    file
}

fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let (code, symbols, frames) = input;
    let image = image(code, frames, &symbols[..symbols.len().min(256)]);
    let Ok(bytes) = table(&image) else { return };
    assert!(bytes.len() <= 128 * image.len() + 4096);
    let table = Table::view(&bytes).expect("a table that can be read");
    for address in TEXT..TEXT + code.len().min(512) as u64 {
        let _ = table.rule(address);
    }
});
