//! Making tables from ELF files, and module maps from tables.
//!
//! # Memory
//!
//! A table takes 2 bytes for every 256 of code, 2 or 3 a row, 2 to 4 more for every 256 bytes of code with rows, and 16 a
//! distinct rule. Making it takes 8 bytes a row and 24 a function more, and 40 MB at most for code without unwind
//! information; whatever the bytes, never more than 128 bytes per byte of the image beyond that.

mod cursor;
mod departure;
mod elf;
mod encode;
mod entries;
mod error;
mod expression;
mod frames;
mod instructions;
mod landing;
mod names;
mod ordinary;
mod rows;
mod trace;

pub use error::Error;

/// Makes the unwind table of an ELF image (its file, or the vDSO's bytes).
///
/// # Errors
///
/// The bytes are no 64-bit little-endian ELF image ([`Error::is_not_elf`]), or it has no unwind information.
pub fn table(elf: &[u8]) -> Result<Vec<u8>, Error> {
    table_and_damage(elf).map(|(bytes, _)| bytes)
}

/// The same, and how many entries of unwind information could not be read: that code has no rules, and is walked without.
///
/// # Errors
///
/// As for [`table`].
pub fn table_and_damage(elf: &[u8]) -> Result<(Vec<u8>, usize), Error> {
    let joined = rows::of(elf)?;
    let unreadable = joined.unreadable;
    Ok((encode::table(joined, elf.len()), unreadable))
}

/// Executable code of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What is known of it.
    pub kind: MapKind,
}

/// What is known of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// It has a table.
    Table {
        /// Where the table is in the arena, in bytes.
        offset: u64,
        /// Its length in bytes, padding allowed.
        len: u64,
        /// Addresses minus svmas.
        bias: u64,
    },
    /// It has none: a JIT's, or a file without unwind information.
    NoCfi,
}

/// Makes a module map. Entries need not be sorted. Maps with the same serial number must say the same: see
/// [`ModuleMap::serial`](crate::ModuleMap::serial).
#[must_use]
pub fn map(entries: &[MapEntry], serial: u64) -> Vec<u8> {
    let mut entries = entries.to_vec();
    entries.sort_by_key(|entry| entry.start);
    let mut bytes = (entries.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&serial.to_le_bytes());
    for MapEntry { start, end, kind } in entries {
        let (bias, offset, len) = match kind {
            MapKind::Table { offset, len, bias } => (bias, offset, len),
            MapKind::NoCfi => (0, 0, 0),
        };
        for word in [start, end, bias, offset, len] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}
