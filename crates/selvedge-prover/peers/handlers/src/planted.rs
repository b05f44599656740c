//! Our own walk with a fault in it, as it might have come about by a mistake: the prover must report each.

use crate::{Walker, memory, modules};
use selvedge_unwind::build::{MapEntry, MapKind, map, table};
use selvedge_unwind::{EXACT_PC, End, Memory, ModuleMap, walk};

/// This process's memory.
struct Own;

impl Memory for Own {
    fn read(&mut self, address: u64) -> Option<u64> {
        memory::word(address)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Rules begin a byte early.
    Row,
    /// The second frame is left out.
    Dropped,
    /// The second and the third are swapped.
    Swapped,
    /// Every module has the table of another, as if it had been replaced at the same address.
    StaleModule,
    /// `rbp` has the value of the caller's.
    FramePointer,
}

impl Fault {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Self::None,
            "row" => Self::Row,
            "dropped" => Self::Dropped,
            "swapped" => Self::Swapped,
            "stale-module" => Self::StaleModule,
            "frame-pointer" => Self::FramePointer,
            _ => return None,
        })
    }
}

pub(crate) fn walker(fault: &str) -> Option<Walker> {
    let fault = Fault::named(fault)?;
    let (map, arena) = maps(fault == Fault::StaleModule);
    Some(Box::new(move |interrupted, frames| {
        let Some(map) = ModuleMap::view(&map, &arena) else {
            return 0;
        };
        let mut registers = interrupted.registers();
        match fault {
            Fault::Row => registers.ip += 1,
            Fault::FramePointer => registers.bp = memory::word(registers.bp).unwrap_or(0),
            _ => {}
        }
        let walked = walk(&map, registers, &mut Own, frames);
        let mut count = walked.frames;
        for frame in &mut frames[..count] {
            *frame &= !EXACT_PC;
        }
        match fault {
            Fault::Row => frames[0] = interrupted.ip(),
            Fault::Dropped if count > 3 => {
                frames.copy_within(2..count, 1);
                count -= 1;
            }
            Fault::Swapped if count > 3 => frames.swap(1, 2),
            _ => {}
        }
        if walked.end != End::Root {
            match frames.get_mut(count) {
                Some(place) => *place = walked.end as u64,
                None => return frames.len(),
            }
            count += 1;
        }
        count
    }))
}

/// The module map of this process, and the tables that it names.
fn maps(rotated: bool) -> (Vec<u8>, Vec<u8>) {
    let mut arena = Vec::new();
    let code = modules::code();
    let mut kinds: Vec<MapKind> = code
        .iter()
        .map(|code| match table(&code.image) {
            Ok(bytes) => {
                let offset = arena.len() as u64;
                arena.extend_from_slice(&bytes);
                arena.resize(arena.len().next_multiple_of(8), 0);
                MapKind::Table {
                    offset,
                    len: bytes.len() as u64,
                    bias: code.bias,
                }
            }
            Err(_) => MapKind::NoCfi,
        })
        .collect();
    if rotated {
        // The bias stays the module's own.
        kinds.rotate_left(1);
        for (kind, code) in kinds.iter_mut().zip(&code) {
            if let MapKind::Table { bias, .. } = kind {
                *bias = code.bias;
            }
        }
    }
    let entries: Vec<MapEntry> = code
        .iter()
        .zip(kinds)
        .map(|(code, kind)| MapEntry {
            start: code.range.start,
            end: code.range.end,
            kind,
        })
        .collect();
    (map(&entries, 1), arena)
}
