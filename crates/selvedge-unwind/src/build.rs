//! Making tables from ELF files, and module maps from tables.
//!
//! # Memory
//!
//! A table takes 8 bytes a row and 64 a distinct rule; making it takes about three times that, and never more than 64
//! bytes per byte of `.eh_frame`.

mod elf;
mod entries;
mod error;
mod expression;
mod landing;
mod rows;
mod trace;

pub use error::Error;

use crate::table::{HEADER_BYTES, MAGIC, RULE_BYTES, Rule};
use rustc_hash::FxHashMap;

/// Makes the unwind table of an ELF image (its file, or the vDSO's bytes).
///
/// # Errors
///
/// The bytes are no 64-bit little-endian ELF image ([`Error::is_not_elf`]), or it has no unwind information.
pub fn table(elf: &[u8]) -> Result<Vec<u8>, Error> {
    rows::of(elf).map(|rows| encode(&rows))
}

/// Writes rows (ascending, starting at svmas) as a table.
fn encode(rows: &[(u64, Rule)]) -> Vec<u8> {
    let base = rows.first().map_or(0, |(start, _)| *start);
    let mut numbers: FxHashMap<Rule, u32> = FxHashMap::default();
    let mut last = None;
    let mut rules: Vec<Rule> = Vec::new();
    let mut starts: Vec<u32> = Vec::with_capacity(rows.len());
    let mut rules_of_rows: Vec<u32> = Vec::with_capacity(rows.len());
    for (start, rule) in rows {
        // What lies further from the base than a row can say has no rule.
        let (offset, rule) = match u32::try_from(start - base) {
            Ok(offset) => (offset, *rule),
            Err(_) => (u32::MAX, Rule::NONE),
        };
        if last == Some(rule) {
            continue;
        }
        last = Some(rule);
        let number = *numbers.entry(rule).or_insert_with(|| {
            rules.push(rule);
            (rules.len() - 1) as u32
        });
        starts.push(offset);
        rules_of_rows.push(number);
        if offset == u32::MAX {
            break;
        }
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + starts.len() * 8 + rules.len() * RULE_BYTES);
    for word in [MAGIC, starts.len() as u32, rules.len() as u32, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&base.to_le_bytes());
    for word in starts.iter().chain(&rules_of_rows) {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for rule in &rules {
        bytes.extend_from_slice(&rule.encode());
    }
    bytes
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

/// Makes a module map. Entries need not be sorted.
#[must_use]
pub fn map(entries: &[MapEntry]) -> Vec<u8> {
    let mut entries = entries.to_vec();
    entries.sort_by_key(|entry| entry.start);
    let mut bytes = (entries.len() as u64).to_le_bytes().to_vec();
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
