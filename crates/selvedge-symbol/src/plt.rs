//! Names for the stubs of the procedure linkage table (x86-64).
//!
//! No symbol covers a stub. Which function it leads to follows from its code: it jumps through a slot of the global offset
//! table, and the relocation of that slot names the function. Decoding the jump, instead of counting stubs, holds for the
//! layouts of every linker: with or without a header, with `endbr64`, with the second table `.plt.sec`, with `.plt.got`.

use std::collections::HashMap;

use object::elf;
use object::read::elf::{FileHeader, SectionHeader, Sym};
use object::{LittleEndian, SectionIndex};

use crate::module::Elf;

/// A stub: where it is, and the function it leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stub {
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) target: Target,
}

/// What a stub leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The function of this name.
    Name(Vec<u8>),
    /// The function chosen at load time by the resolver at this address.
    Resolver(u64),
}

/// What the relocations say about the stubs' targets.
#[derive(Debug, Default)]
struct Relocations {
    /// By the address of the slot.
    by_slot: HashMap<u64, Target>,
    /// By position among the relocations for lazy binding, for stubs that push their position.
    by_position: Vec<Option<Target>>,
}

/// All stubs of an image, in order of address within each section.
pub(crate) fn stubs(elf: &Elf<'_>) -> Vec<Stub> {
    let endian = LittleEndian;
    if elf.elf_header().e_machine(endian) != elf::EM_X86_64 {
        return Vec::new();
    }
    let relocations = relocations(elf);
    let mut stubs = Vec::new();
    for section in elf.elf_section_table().iter() {
        let Ok(name) = elf.elf_section_table().section_name(endian, section) else {
            continue;
        };
        if !matches!(
            name,
            b".plt" | b".plt.sec" | b".plt.got" | b".plt.bnd" | b".iplt"
        ) {
            continue;
        }
        if let Ok(code) = section.data(endian, elf.data()) {
            let entry = match section.sh_entsize(endian) {
                size @ (8 | 16 | 32) => size,
                _ if name == b".plt.got" => 8,
                _ => 16,
            };
            decode(
                section.sh_addr(endian),
                code,
                entry,
                &relocations,
                &mut stubs,
            );
        }
    }
    stubs
}

fn relocations(elf: &Elf<'_>) -> Relocations {
    let endian = LittleEndian;
    let sections = elf.elf_section_table();
    let mut found = Relocations::default();
    for section in sections.iter() {
        let Ok(Some((entries, link))) = section.rela(endian, elf.data()) else {
            continue;
        };
        let lazy = sections.section_name(endian, section) == Ok(b".rela.plt");
        let symbols = (link != SectionIndex(0))
            .then(|| {
                sections
                    .symbol_table_by_index(endian, elf.data(), link)
                    .ok()
            })
            .flatten();
        for entry in entries {
            let target = match entry.r_type(endian, false) {
                elf::R_X86_64_JUMP_SLOT | elf::R_X86_64_GLOB_DAT => symbols
                    .as_ref()
                    .and_then(|table| {
                        let index = object::SymbolIndex(entry.r_sym(endian, false) as usize);
                        let symbol = table.symbol(index).ok()?;
                        symbol.name(endian, table.strings()).ok()
                    })
                    .filter(|name| !name.is_empty())
                    .map(|name| Target::Name(name.to_vec())),
                elf::R_X86_64_IRELATIVE => {
                    Some(Target::Resolver(entry.r_addend.get(endian) as u64))
                }
                _ => None,
            };
            if let Some(target) = &target {
                found
                    .by_slot
                    .insert(entry.r_offset.get(endian), target.clone());
            }
            if lazy {
                found.by_position.push(target);
            }
        }
    }
    found
}

/// Finds the stubs in the `code` of one section, cut into entries of `size` bytes.
fn decode(start: u64, code: &[u8], size: u64, relocations: &Relocations, stubs: &mut Vec<Stub>) {
    for (index, entry) in code.chunks_exact(size as usize).enumerate() {
        let Some(address) = start.checked_add(index as u64 * size) else {
            return;
        };
        let target = jump_slot(address, entry)
            .and_then(|slot| relocations.by_slot.get(&slot))
            .or_else(|| {
                relocations
                    .by_position
                    .get(pushed_position(entry)?)?
                    .as_ref()
            });
        if let Some(target) = target {
            stubs.push(Stub {
                address,
                size,
                target: target.clone(),
            });
        }
    }
}

/// The slot through which an entry jumps: `jmp *disp32(%rip)` is `ff 25 disp32`.
fn jump_slot(address: u64, entry: &[u8]) -> Option<u64> {
    let at = entry
        .windows(6)
        .position(|bytes| bytes[..2] == [0xff, 0x25])?;
    let displacement = i32::from_le_bytes(entry.get(at + 2..at + 6)?.try_into().ok()?);
    Some(
        address
            .wrapping_add(at as u64 + 6)
            .wrapping_add_signed(i64::from(displacement)),
    )
}

/// The position that an entry pushes before it jumps to the header, after an optional `endbr64`: `68 imm32`.
fn pushed_position(entry: &[u8]) -> Option<usize> {
    let push = entry
        .strip_prefix(&[0xf3, 0x0f, 0x1e, 0xfa])
        .unwrap_or(entry);
    let position = push.strip_prefix(&[0x68])?.get(..4)?;
    Some(u32::from_le_bytes(position.try_into().ok()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Target {
        Target::Name(text.as_bytes().to_vec())
    }

    fn decoded(start: u64, code: &[u8], size: u64) -> Vec<(u64, Target)> {
        let relocations = Relocations {
            by_slot: HashMap::from([(0x4018, name("puts")), (0x4020, name("exit"))]),
            by_position: vec![Some(name("puts")), Some(name("exit"))],
        };
        let mut stubs = Vec::new();
        decode(start, code, size, &relocations, &mut stubs);
        stubs
            .into_iter()
            .map(|stub| (stub.address, stub.target))
            .collect()
    }

    #[test]
    fn lazy_table_with_header() {
        let mut code = vec![
            0xff, 0x35, 0xe2, 0x2f, 0, 0, 0xff, 0x25, 0xe4, 0x2f, 0, 0, 0x0f, 0x1f, 0x40, 0,
        ];
        // At 0x1030: jmp *0x2fe2(%rip) -> 0x4018.
        code.extend([
            0xff, 0x25, 0xe2, 0x2f, 0, 0, 0x68, 0, 0, 0, 0, 0xe9, 0xe0, 0xff, 0xff, 0xff,
        ]);
        assert_eq!(decoded(0x1020, &code, 16), [(0x1030, name("puts"))]);
    }

    #[test]
    fn branch_protected_pair_of_tables() {
        // endbr64; push $1; bnd jmp header
        let first = [
            0xf3, 0x0f, 0x1e, 0xfa, 0x68, 1, 0, 0, 0, 0xf2, 0xe9, 0xe1, 0xff, 0xff, 0xff, 0x90,
        ];
        assert_eq!(decoded(0x1030, &first, 16), [(0x1030, name("exit"))]);
        // endbr64; bnd jmp *0x2fc5(%rip) at 0x1050 -> 0x105b + 0x2fc5 = 0x4020
        let second = [
            0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 0xc5, 0x2f, 0, 0, 0x0f, 0x1f, 0x44, 0, 0,
        ];
        assert_eq!(decoded(0x1050, &second, 16), [(0x1050, name("exit"))]);
    }

    #[test]
    fn eight_byte_stubs_and_a_cut_off_one() {
        let code = [0xff, 0x25, 0x12, 0x30, 0, 0, 0x66, 0x90, 0xff, 0x25, 0x12];
        assert_eq!(decoded(0x1000, &code, 8), [(0x1000, name("puts"))]);
    }
}
