//! Entries of functions that an image names.

use object::LittleEndian;
use object::elf::{
    DT_FINI, DT_INIT, FileHeader64, PT_DYNAMIC, PT_LOAD, ProgramHeader64, R_X86_64_RELATIVE,
    SHT_DYNSYM, SHT_FINI_ARRAY, SHT_INIT_ARRAY, SHT_PREINIT_ARRAY, SHT_RELA, SHT_SYMTAB, STT_FUNC,
};
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Rela, SectionHeader, Sym};
use std::ops::Range;

type Header = FileHeader64<LittleEndian>;

/// All of them, unordered, with duplicates: address and length, 0 if that is not known.
pub(super) fn of(
    header: &Header,
    segments: &[ProgramHeader64<LittleEndian>],
    data: &[u8],
) -> Vec<(u64, u64)> {
    let endian = LittleEndian;
    let mut functions = Vec::new();
    for segment in segments
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_DYNAMIC)
    {
        if let Ok(Some(entries)) = segment.dynamic(endian, data) {
            let named = entries
                .iter()
                .filter(|entry| [DT_INIT, DT_FINI].contains(&entry.d_tag(endian)));
            functions.extend(named.map(|entry| (entry.d_val(endian), 0)));
        }
    }
    let Ok(sections) = header.sections(endian, data) else {
        return functions;
    };
    let mut arrays: Vec<Range<u64>> = Vec::new();
    for section in sections.iter() {
        match section.sh_type(endian) {
            SHT_INIT_ARRAY | SHT_FINI_ARRAY | SHT_PREINIT_ARRAY => {
                let start = section.sh_addr(endian);
                arrays.push(start..start.saturating_add(section.sh_size(endian)));
                if let Ok(words) =
                    section.data_as_array::<object::U64<LittleEndian>, _>(endian, data)
                {
                    functions.extend(words.iter().map(|word| (word.get(endian), 0)));
                }
            }
            _ => {}
        }
        if matches!(
            sections.section_name(endian, section),
            Ok(b".init" | b".fini")
        ) {
            functions.push((section.sh_addr(endian), 0));
        }
    }
    for section in sections.iter() {
        match section.sh_type(endian) {
            // Where the arrays are filled by the loader.
            SHT_RELA => {
                let Ok(Some((entries, _))) = section.rela(endian, data) else {
                    continue;
                };
                functions.extend(entries.iter().filter_map(|entry| {
                    let at = entry.r_offset(endian);
                    let fills = entry.r_type(endian, false) == R_X86_64_RELATIVE
                        && arrays.iter().any(|array| array.contains(&at));
                    fills.then(|| (entry.r_addend(endian) as u64, 0))
                }));
            }
            SHT_SYMTAB | SHT_DYNSYM => {
                let Ok(symbols) =
                    section.data_as_array::<object::elf::Sym64<LittleEndian>, _>(endian, data)
                else {
                    continue;
                };
                let functions_of = symbols.iter().filter(|symbol| symbol.st_type() == STT_FUNC);
                functions.extend(functions_of.map(|symbol| {
                    let len = symbol.st_size(endian);
                    (symbol.st_value(endian), len)
                }));
            }
            _ => {}
        }
    }
    let loaded = |at: &u64| {
        segments.iter().any(|segment| {
            let start = segment.p_vaddr(endian);
            segment.p_type(endian) == PT_LOAD
                && start <= *at
                && *at - start < segment.p_memsz(endian)
        })
    };
    functions.retain(|(at, _)| *at != 0 && loaded(at));
    functions
}
