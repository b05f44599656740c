//! Addresses of functions by their names, in an image's symbol tables.

use memchr::memmem;
use object::LittleEndian;
use object::elf::{FileHeader64, SHT_DYNSYM, SHT_SYMTAB, STT_FUNC, Sym64};
use object::read::elf::{FileHeader, SectionHeader, Sym};

/// The defined functions with this name, without duplicates. Fast where there are none: names are looked for before
/// symbols.
pub(super) fn of(header: &FileHeader64<LittleEndian>, data: &[u8], name: &str) -> Vec<u64> {
    let endian = LittleEndian;
    let mut found = Vec::new();
    let Ok(sections) = header.sections(endian, data) else {
        return found;
    };
    let ended = [name.as_bytes(), b"\0"].concat();
    for section in sections.iter() {
        if ![SHT_SYMTAB, SHT_DYNSYM].contains(&section.sh_type(endian)) {
            continue;
        }
        let strings = sections
            .section(section.link(endian))
            .and_then(|strings| strings.data(endian, data))
            .unwrap_or_default();
        // The ends of longer names can be names.
        let places: Vec<usize> = memmem::find_iter(strings, &ended).take(16).collect();
        if places.is_empty() {
            continue;
        }
        let symbols = section
            .data_as_array::<Sym64<LittleEndian>, _>(endian, data)
            .unwrap_or_default();
        found.extend(symbols.iter().filter_map(|symbol| {
            let named = places.contains(&(symbol.st_name(endian) as usize));
            let is_function = symbol.st_type() == STT_FUNC && symbol.st_value(endian) != 0;
            (named && is_function).then(|| symbol.st_value(endian))
        }));
    }
    found.sort_unstable();
    found.dedup();
    found
}
