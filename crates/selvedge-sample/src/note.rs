//! The note in a program's file that says that the program joins recordings by itself.
//!
//! No agent can be loaded into a static program, but our library can be linked into it. Whoever starts a program has to
//! know whether that is so *before*: to a program that would not join, no session is named. So a note is in the file of
//! each program that has the code which joins (System V ABI, "Note Section"; words are little-endian):
//!
//! | bytes | |
//! |---|---|
//! | 0 | length of the name (u32): 9 |
//! | 4 | length of the descriptor (u32): 8 |
//! | 8 | type (u32): [`JOINS`] |
//! | 12 | name: `Selvedge`, and zeros up to a multiple of eight |
//! | 24 | descriptor: the [`VERSION`] of the memory that the program can record into (u64) |
//!
//! It is 32 bytes long, so that it is well-formed in a segment of notes with an alignment of four and of eight: there are
//! linkers that put both kinds into one.
//!
//! # Safety
//!
//! This file is `unsafe` because it puts the note into the program by assembly.
#![allow(unsafe_code)]

use crate::region::VERSION;

/// The name, with the NUL that ends it.
const NAME: &[u8; 9] = b"Selvedge\0";
/// Type of the note: the program joins recordings.
pub const JOINS: u32 = 1;
/// Bytes of the note.
pub const BYTES: usize = 32;
/// Bytes of the descriptor.
const DESCRIPTOR: u32 = 8;
/// Bytes of a note before its name.
const HEADER: u64 = 12;
/// Notes of a segment that are looked at. Linkers write a handful.
const MOST: usize = 32;

/// Puts the note into every program that has a call of this.
///
/// It is assembly in the function that calls, and not a static: the linker keeps all notes of an object file that it takes
/// anything from, so a static of this library would be in programs that use another part of it and never join.
#[inline(always)]
pub fn leave() {
    // SAFETY: no instruction; the section is the code's again at the end.
    unsafe {
        core::arch::asm!(
            ".pushsection .note.selvedge, \"a\", @note",
            ".balign 4",
            ".long {name}",
            ".long {descriptor}",
            ".long {kind}",
            ".asciz \"Selvedge\"",
            ".balign 4",
            ".quad {version}",
            ".popsection",
            name = const NAME.len(),
            descriptor = const DESCRIPTOR,
            kind = const JOINS,
            version = const VERSION,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// A segment of notes (`PT_NOTE`), as the program header describes it.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where it is in the file.
    pub offset: u64,
    /// Its bytes in the file.
    pub size: u64,
    /// Its alignment.
    pub alignment: u64,
}

/// Looks for the note in a segment; gives back the version that it names. `read` reads the file from an offset on, and
/// says how many bytes it has read.
///
/// **Signal safety.** Bounded, and as safe as `read`.
pub fn version_in(
    segment: Segment,
    mut read: impl FnMut(&mut [u8; BYTES], u64) -> usize,
) -> Option<u64> {
    let padded = |length: u64| {
        let above = if segment.alignment == 8 { 7 } else { 3 };
        length.wrapping_add(above) & !above
    };
    let mut at = 0_u64;
    for _ in 0..MOST {
        let left = segment.size.saturating_sub(at);
        if left < HEADER {
            return None;
        }
        let mut note = [0; BYTES];
        let read = read(&mut note, segment.offset.wrapping_add(at)) as u64;
        let note = note.as_slice();
        let (name, descriptor) = (word(note, 0)?, word(note, 4)?);
        let is_ours = name as usize == NAME.len()
            && descriptor == DESCRIPTOR
            && word(note, 8)? == JOINS
            && note.get(HEADER as usize..)?.starts_with(NAME);
        let bytes = BYTES as u64;
        if is_ours && left >= bytes && read >= bytes {
            let version = note.last_chunk::<8>()?;
            return Some(u64::from_le_bytes(*version));
        }
        if read < HEADER {
            return None;
        }
        let descriptor_at = padded(HEADER.wrapping_add(u64::from(name)));
        let behind = padded(descriptor_at.wrapping_add(u64::from(descriptor)));
        at = at.wrapping_add(behind);
    }
    None
}

fn word(note: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*note.get(at..)?.first_chunk::<4>()?))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    fn note(name: &[u8], descriptor: &[u8], kind: u32, alignment: usize) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len() as u32, descriptor.len() as u32, kind] {
            note.extend(word.to_le_bytes());
        }
        for part in [name, descriptor] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(alignment), 0);
        }
        note
    }

    fn ours(version: u64, alignment: usize) -> Vec<u8> {
        note(NAME, &version.to_le_bytes(), JOINS, alignment)
    }

    fn version_of(notes: &[u8], size: usize, alignment: usize) -> Option<u64> {
        let (before, behind) = (7, b"something else");
        let mut file = Vec::from([0xff; 7]);
        file.extend(notes);
        file.extend(behind);
        let segment = Segment {
            offset: before,
            size: size as u64,
            alignment: alignment as u64,
        };
        let read = |buffer: &mut [u8; BYTES], offset: u64| {
            let rest = file.get(offset as usize..).unwrap_or_default();
            let bytes = rest.len().min(BYTES);
            buffer[..bytes].copy_from_slice(&rest[..bytes]);
            bytes
        };
        version_in(segment, read)
    }

    #[test]
    fn is_found_among_others() {
        for alignment in [4, 8] {
            let build_id = note(b"GNU\0", &[7; 20], 3, alignment);
            let own = ours(5, alignment);
            assert_eq!(own.len(), BYTES);
            for notes in [
                own.clone(),
                [&*build_id, &own].concat(),
                [&*own, &build_id].concat(),
                [&*build_id, &build_id, &own, &build_id].concat(),
            ] {
                assert_eq!(version_of(&notes, notes.len(), alignment), Some(5));
            }
            assert_eq!(version_of(&build_id, build_id.len(), alignment), None);
        }
    }

    #[test]
    fn others_are_not_taken_for_it() {
        let version = 5_u64.to_le_bytes();
        for other in [
            note(b"Selvages\0", &version, JOINS, 4),
            note(b"Selvedge", &version, JOINS, 4),
            note(NAME, &version, JOINS + 1, 4),
            note(NAME, &version[..4], JOINS, 4),
        ] {
            assert_eq!(version_of(&other, other.len(), 4), None);
        }
    }

    #[test]
    fn segments_that_are_cut_short_end() {
        let own = ours(5, 4);
        for size in 0..BYTES {
            assert_eq!(version_of(&own, size, 4), None);
        }
        // The file ends, whatever its headers say.
        assert_eq!(version_of(&own[..20], 1 << 40, 4), None);
        // Lengths that lead nowhere.
        let mut endless = own;
        endless[..8].fill(0xff);
        assert_eq!(version_of(&endless, usize::MAX, 4), None);
        assert_eq!(version_of(&[0; 4096], 4096, 4), None);
    }
}
