//! The walk itself.
//!
//! **Terms.** The *leaf* is what was interrupted. An *exact* frame is one that was interrupted (the leaf, and what a
//! signal frame returns to); any other is known by its *return address*, which is behind its call: rules are looked up
//! one byte before it, since a call can be the last instruction of its function.
//!
//! **What is believed.** Each step uses the rule of exactly that instruction. A frame lies above the one that it called:
//! a CFA that does not grow (other than from the leaf, or across a signal frame, which may lead to another stack) ends
//! the walk with a mark. A caller that lies in no known code ends it too: either the map is old, or the value is no
//! return address. Where a module has no unwind information at all (code of a JIT), a frame pointer is followed if it is
//! aligned, above the stack pointer, and leads to known code. Elsewhere, code without a rule ends the walk with a mark:
//! a guess there drops a caller silently.

use crate::map::{ModuleMap, Place};
use crate::table::{Cfa, Rule, Saved, register};
use selvedge_arch::Registers;

/// Set in a frame whose value is the interrupted instruction itself, not a return address. No user address has this bit.
pub const EXACT_PC: u64 = 1 << 63;

/// What the walk reads of the stack.
pub trait Memory {
    /// The word at an address; `None` where it cannot be read.
    fn read(&mut self, address: u64) -> Option<u64>;
}

/// Why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// At the outermost frame: the stack is whole.
    Root = 1,
    /// There were more frames than fit.
    Limit = 2,
    /// The stack could not be read.
    Unreadable = 3,
    /// In code that is in no known module.
    NoModule = 4,
    /// In code without a rule, or with one of an unknown form.
    NoRule = 5,
    /// The rule led to a frame that is not above the one before: the stack or the rule is wrong.
    BadFrame = 6,
    /// A return address that is not in any known code.
    BadReturn = 7,
}

impl End {
    /// The reason with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [
            Self::Root,
            Self::Limit,
            Self::Unreadable,
            Self::NoModule,
            Self::NoRule,
            Self::BadFrame,
            Self::BadReturn,
        ]
        .into_iter()
        .find(|end| *end as u8 == code)
    }

    /// In words, as pseudo-frames show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Limit => "too deep",
            Self::Unreadable => "stack unreadable",
            Self::NoModule => "unknown code",
            Self::NoRule => "no unwind information",
            Self::BadFrame => "bad frame",
            Self::BadReturn => "bad return address",
        }
    }
}

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Frames written.
    pub frames: usize,
    /// Why it ended.
    pub end: End,
}

/// Values of the registers that a walk keeps; `None`: lost.
#[derive(Clone, Copy, Debug)]
struct File([Option<u64>; register::COUNT]);

impl File {
    fn new(registers: Registers) -> Self {
        let Registers {
            ip,
            sp,
            bp,
            bx,
            r12,
            r13,
            r14,
            r15,
        } = registers;
        Self([bx, bp, r12, r13, r14, r15, ip, sp].map(Some))
    }

    fn get(&self, register: usize) -> Option<u64> {
        self.0.get(register).copied().flatten()
    }
}

/// Walks from `registers` outward and writes the frames, leaf first: see [`EXACT_PC`].
pub fn walk(
    map: &ModuleMap<'_>,
    registers: Registers,
    memory: &mut impl Memory,
    frames: &mut [u64],
) -> Walked {
    let mut file = File::new(registers);
    let mut exact = true;
    let mut written = 0;
    // The lowest CFA that the next frame may have.
    let mut floor = registers.sp;
    for slot in frames.iter_mut() {
        let Some(ip) = file.get(register::IP) else {
            return Walked {
                frames: written,
                end: End::NoRule,
            };
        };
        let address = if exact { ip } else { ip.wrapping_sub(1) };
        let place = map.find(address);
        if place.is_none() && written > 0 {
            return Walked {
                frames: written,
                end: End::BadReturn,
            };
        }
        *slot = if exact { ip | EXACT_PC } else { ip };
        written = written.wrapping_add(1);
        let rule = match place {
            None => {
                return Walked {
                    frames: written,
                    end: End::NoModule,
                };
            }
            Some(Place::Table(table, svma)) => table.rule(svma).unwrap_or(Rule::NONE),
            Some(Place::NoTable) => match frame_pointer_rule(map, &file, memory) {
                Ok(rule) => rule,
                Err(end) => {
                    return Walked {
                        frames: written,
                        end,
                    };
                }
            },
        };
        match step(&rule, &file, memory, &mut floor) {
            Ok(caller) => file = caller,
            Err(end) => {
                return Walked {
                    frames: written,
                    end,
                };
            }
        }
        // Some entry code (of threads, of languages' runtimes) puts a zero where a return address would be.
        if file.get(register::IP) == Some(0) {
            return Walked {
                frames: written,
                end: End::Root,
            };
        }
        exact = rule.signal;
    }
    Walked {
        frames: written,
        end: End::Limit,
    }
}

/// The CFA of a frame, before it is checked.
fn cfa(rule: Cfa, file: &File, memory: &mut impl Memory) -> Result<u64, End> {
    let sum = |base: u8, offset: i32| {
        file.get(usize::from(base))
            .map(|value| value.wrapping_add_signed(i64::from(offset)))
            .ok_or(End::NoRule)
    };
    match rule {
        Cfa::None => Err(End::NoRule),
        Cfa::Root => Err(End::Root),
        Cfa::Register(base, offset) => sum(base, offset),
        Cfa::Stored(base, offset, after) => {
            let stored = memory.read(sum(base, offset)?).ok_or(End::Unreadable)?;
            Ok(stored.wrapping_add_signed(i64::from(after)))
        }
        Cfa::Stub(from) => {
            let (Some(sp), Some(ip)) = (file.get(register::SP), file.get(register::IP)) else {
                return Err(End::NoRule);
            };
            let pushed = (ip & 15) >= u64::from(from.unsigned_abs());
            Ok(sp.wrapping_add(if pushed { 16 } else { 8 }))
        }
    }
}

fn step(rule: &Rule, file: &File, memory: &mut impl Memory, floor: &mut u64) -> Result<File, End> {
    let cfa = cfa(rule.cfa, file, memory)?;
    if !rule.signal {
        // The return address lies below the CFA and not below the stack pointer: the CFA is above it.
        if cfa <= *floor || !cfa.is_multiple_of(8) {
            return Err(End::BadFrame);
        }
    }
    let mut caller = [None; register::COUNT];
    for (at, (value, saved)) in caller.iter_mut().zip(&rule.saved).enumerate() {
        let at_address = |base: Option<u64>, offset: i32| {
            base.map(|base| base.wrapping_add_signed(i64::from(offset)))
        };
        *value = match *saved {
            Saved::Same => file.get(at),
            Saved::Lost => None,
            Saved::Cfa(offset) => at_address(Some(cfa), offset),
            Saved::In(base) => file.get(usize::from(base)),
            Saved::AtCfa(offset) => Some(read(memory, at_address(Some(cfa), offset))?),
            Saved::At(base, offset) => Some(read(
                memory,
                at_address(file.get(usize::from(base)), offset),
            )?),
        };
    }
    // A signal frame leads back to whichever stack was interrupted: it may be lower.
    *floor = caller
        .get(register::SP)
        .copied()
        .flatten()
        .ok_or(End::NoRule)?;
    Ok(File(caller))
}

fn read(memory: &mut impl Memory, address: Option<u64>) -> Result<u64, End> {
    memory
        .read(address.ok_or(End::NoRule)?)
        .ok_or(End::Unreadable)
}

/// The rule of code that keeps `rbp` as a frame pointer, if everything says that this code does.
fn frame_pointer_rule(
    map: &ModuleMap<'_>,
    file: &File,
    memory: &mut impl Memory,
) -> Result<Rule, End> {
    let (Some(bp), Some(sp)) = (file.get(register::BP), file.get(register::SP)) else {
        return Err(End::NoRule);
    };
    if bp < sp || !bp.is_multiple_of(8) || bp.wrapping_sub(sp) > 1 << 20 {
        return Err(End::NoRule);
    }
    let back = memory.read(bp.wrapping_add(8)).ok_or(End::NoRule)?;
    if !map.is_code(back.wrapping_sub(1)) {
        return Err(End::NoRule);
    }
    let mut rule = Rule::with_return_address(Cfa::Register(register::BP as u8, 16));
    rule.saved = rule.saved.map(|saved| {
        if saved == Saved::Same {
            Saved::Lost
        } else {
            saved
        }
    });
    if let Some(saved) = rule.saved.get_mut(register::BP) {
        *saved = Saved::AtCfa(-16);
    }
    Ok(rule)
}
