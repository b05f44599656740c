//! Call frame instructions (DWARF 5, §6.4.2), interpreted into rules.

use super::cursor::Cursor;
use super::expression;
use super::frames::{Common, Entry, Section};
use crate::table::{Cfa, Rule, Saved, register};
use gimli::{EndianSlice, Expression, LittleEndian};

/// States that may be remembered at a time.
const REMEMBERED: usize = 64;

const RAX: u64 = 0;
const RDX: u64 = 1;

const ENCODING: gimli::Encoding = gimli::Encoding {
    address_size: 8,
    format: gimli::Format::Dwarf32,
    version: 4,
};

/// The place of a DWARF register among those that rules name (System V ABI, AMD64 supplement, figure 3.36).
pub(super) fn place(register: u64) -> Option<u8> {
    let place = match register {
        0..=2 => register::SCRATCH + register as usize,
        4..=5 => register::SCRATCH + register as usize - 1,
        8..=11 => register::SCRATCH + register as usize - 3,
        3 => register::BX,
        6 => register::BP,
        7 => register::SP,
        12..=15 => register::R12 + (register - 12) as usize,
        16 => register::IP,
        _ => return None,
    };
    Some(place as u8)
}

/// The same among those that a walk keeps.
fn kept(register: u64) -> Option<usize> {
    place(register)
        .map(usize::from)
        .filter(|place| *place < register::COUNT)
}

/// The canonical frame address, as instructions describe it.
#[derive(Clone, Copy, Debug)]
enum Frame {
    Register(u64, i64),
    Expression(Cfa),
}

/// What instructions have said up to some point.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    frame: Frame,
    saved: [Saved; register::COUNT],
    /// The return address is said to be undefined: the outermost frame (DWARF 5, §6.4.4).
    outermost: bool,
    /// `rax` and `rdx` are saved.
    exception_registers: (bool, bool),
}

impl State {
    /// What holds before any instruction.
    fn new() -> Self {
        let mut saved = [Saved::Same; register::COUNT];
        saved[register::SP] = Saved::Cfa(0);
        saved[register::IP] = Saved::Lost;
        Self {
            frame: Frame::Expression(Cfa::None),
            saved,
            outermost: false,
            exception_registers: (false, false),
        }
    }

    /// What a shared entry says at the start of each function.
    pub(super) fn initial(section: &Section<'_>, common: &Common<'_>) -> Option<Self> {
        // x86-64 has no other (ABI, figure 3.36).
        if common.return_register != 16 {
            return None;
        }
        let mut state = Self::new();
        let start = state;
        let mut run = Run {
            section,
            common,
            state: &mut state,
            initial: &start,
            remembered: Vec::new(),
        };
        let mut at = common.instructions;
        while !at.is_empty() {
            if run.execute(&mut at)? != Advance::No {
                return None;
            }
        }
        Some(state)
    }

    pub(super) fn rule(&self, signal: bool) -> Rule {
        if self.outermost {
            return Rule::ROOT;
        }
        let cfa = match self.frame {
            Frame::Expression(cfa) => cfa,
            Frame::Register(base, offset) => match (place(base), i32::try_from(offset)) {
                (Some(base), Ok(offset)) => Cfa::Register(base, offset),
                _ => Cfa::None,
            },
        };
        let mut rule = Rule {
            cfa,
            signal,
            saved: self.saved,
            overwritten: 0,
        };
        if cfa == Cfa::Register(register::SP as u8, 8) {
            forget_restored(&mut rule);
        }
        rule
    }

    fn set(&mut self, register: u64, saved: Saved) {
        if let Some(place) = kept(register) {
            self.saved[place] = saved;
            if place == register::IP {
                self.outermost = false;
            }
        }
    }

    fn set_stored(&mut self, register: u64, offset: Option<i64>) {
        let offset = offset.and_then(|offset| i32::try_from(offset).ok());
        self.set(register, offset.map_or(Saved::Lost, Saved::AtCfa));
        match register {
            RAX => self.exception_registers.0 = true,
            RDX => self.exception_registers.1 = true,
            _ => {}
        }
    }

    fn restore(&mut self, register: u64, initial: &Self) {
        if let Some(place) = kept(register) {
            self.saved[place] = initial.saved[place];
            if place == register::IP {
                self.outermost = initial.outermost;
            }
        }
    }
}

/// At the `ret` of a function that aligned its stack, GCC still says that registers are stored around `rbp`, which is the
/// caller's again by then. With nothing on the stack but the return address, they are all restored.
pub(super) fn forget_restored(rule: &mut Rule) {
    for saved in &mut rule.saved {
        if matches!(saved, Saved::At(base, _) if usize::from(*base) == register::BP) {
            *saved = Saved::Same;
        }
    }
}

/// Where an instruction leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Advance {
    No,
    By(u64),
    To(u64),
}

#[derive(Debug)]
struct Run<'s, 'a> {
    section: &'s Section<'a>,
    common: &'s Common<'a>,
    state: &'s mut State,
    initial: &'s State,
    remembered: Vec<State>,
}

impl<'a> Run<'_, 'a> {
    fn factored(&self, value: u64) -> Option<i64> {
        i64::try_from(value)
            .ok()?
            .checked_mul(self.common.data_factor)
    }

    fn factored_signed(&self, value: i64) -> Option<i64> {
        value.checked_mul(self.common.data_factor)
    }

    fn define(&mut self, register: Option<u64>, offset: Option<i64>) -> Option<()> {
        let (old_register, old_offset) = match self.state.frame {
            Frame::Register(register, offset) => (Some(register), Some(offset)),
            Frame::Expression(_) => (None, None),
        };
        self.state.frame = Frame::Register(register.or(old_register)?, offset.or(old_offset)?);
        Some(())
    }

    fn expression(at: &mut Cursor<'a>) -> Option<Expression<EndianSlice<'a, LittleEndian>>> {
        let len = at.unsigned()?;
        Some(Expression(EndianSlice::new(
            at.take(len)?.rest(),
            LittleEndian,
        )))
    }

    /// Executes the next instruction. `None`: it cannot be.
    #[inline]
    fn execute(&mut self, at: &mut Cursor<'a>) -> Option<Advance> {
        let byte = at.u8()?;
        let low = u64::from(byte & 0x3f);
        match byte >> 6 {
            1 => return Some(self.by(low)),
            2 => {
                let offset = self.factored(at.unsigned()?);
                self.state.set_stored(low, offset);
                return Some(Advance::No);
            }
            3 => {
                self.state.restore(low, self.initial);
                return Some(Advance::No);
            }
            _ => {}
        }
        match byte {
            // DW_CFA_nop
            0x00 => {}
            // DW_CFA_set_loc, advance_loc1, 2, 4
            0x01 => {
                return self
                    .section
                    .address(at, self.common.encoding)
                    .map(Advance::To);
            }
            0x02 => return at.u8().map(|delta| self.by(u64::from(delta))),
            0x03 => return at.u16().map(|delta| self.by(u64::from(delta))),
            0x04 => return at.u32().map(|delta| self.by(u64::from(delta))),
            // DW_CFA_offset_extended
            0x05 => {
                let register = at.unsigned()?;
                let offset = self.factored(at.unsigned()?);
                self.state.set_stored(register, offset);
            }
            // DW_CFA_restore_extended
            0x06 => {
                let register = at.unsigned()?;
                self.state.restore(register, self.initial);
            }
            // DW_CFA_undefined
            0x07 => {
                let register = at.unsigned()?;
                self.state.set(register, Saved::Lost);
                self.state.outermost |= register == self.common.return_register;
            }
            // DW_CFA_same_value
            0x08 => self.state.set(at.unsigned()?, Saved::Same),
            // DW_CFA_register
            0x09 => {
                let register = at.unsigned()?;
                self.state.set(
                    register,
                    place(at.unsigned()?).map_or(Saved::Lost, Saved::In),
                );
            }
            // DW_CFA_remember_state, restore_state
            0x0a if self.remembered.len() < REMEMBERED => self.remembered.push(*self.state),
            0x0b => *self.state = self.remembered.pop()?,
            // DW_CFA_def_cfa, def_cfa_register, def_cfa_offset
            0x0c => {
                let register = at.unsigned()?;
                self.define(Some(register), Some(i64::try_from(at.unsigned()?).ok()?))?;
            }
            0x0d => self.define(Some(at.unsigned()?), None)?,
            0x0e => self.define(None, Some(i64::try_from(at.unsigned()?).ok()?))?,
            // DW_CFA_def_cfa_expression
            0x0f => {
                self.state.frame =
                    Frame::Expression(expression::cfa(Self::expression(at)?, ENCODING))
            }
            // DW_CFA_expression
            0x10 => {
                let register = at.unsigned()?;
                self.state.set(
                    register,
                    expression::location(Self::expression(at)?, ENCODING),
                );
            }
            // DW_CFA_offset_extended_sf
            0x11 => {
                let register = at.unsigned()?;
                let offset = self.factored_signed(at.signed()?);
                self.state.set_stored(register, offset);
            }
            // DW_CFA_def_cfa_sf, def_cfa_offset_sf
            0x12 => {
                let register = at.unsigned()?;
                let offset = self.factored_signed(at.signed()?)?;
                self.define(Some(register), Some(offset))?;
            }
            0x13 => {
                let offset = self.factored_signed(at.signed()?)?;
                self.define(None, Some(offset))?;
            }
            // DW_CFA_val_offset, val_offset_sf
            0x14 | 0x15 => {
                let register = at.unsigned()?;
                let offset = if byte == 0x14 {
                    self.factored(at.unsigned()?)
                } else {
                    self.factored_signed(at.signed()?)
                };
                let offset = offset.and_then(|offset| i32::try_from(offset).ok());
                self.state
                    .set(register, offset.map_or(Saved::Lost, Saved::Cfa));
            }
            // DW_CFA_val_expression
            0x16 => {
                let register = at.unsigned()?;
                self.state
                    .set(register, expression::value(Self::expression(at)?, ENCODING));
            }
            // DW_CFA_GNU_args_size: of no use to a walk.
            0x2e => _ = at.unsigned()?,
            // DW_CFA_GNU_negative_offset_extended
            0x2f => {
                let register = at.unsigned()?;
                let offset = self.factored(at.unsigned()?).and_then(i64::checked_neg);
                self.state.set_stored(register, offset);
            }
            _ => return None,
        }
        Some(Advance::No)
    }

    fn by(&self, delta: u64) -> Advance {
        Advance::By(delta.wrapping_mul(self.common.code_factor))
    }
}

/// What the instructions of an entry were.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    /// They save the registers that pass an exception on, as functions that jump to landing pads do.
    pub(super) lands: bool,
    /// Not all of them could be read.
    pub(super) is_damaged: bool,
}

/// Interprets the instructions of an entry: calls `row` with the start of each row and its rule, ascending.
pub(super) fn rows<'a>(
    section: &Section<'a>,
    common: &Common<'a>,
    initial: &State,
    entry: &Entry<'a>,
    mut row: impl FnMut(u64, &Rule),
) -> Read {
    let mut state = *initial;
    let mut run = Run {
        section,
        common,
        state: &mut state,
        initial,
        remembered: Vec::new(),
    };
    let mut at = entry.instructions;
    let mut start = entry.start;
    let mut lands = false;
    let whole = |lands| Read {
        lands,
        is_damaged: false,
    };
    let damaged = |lands| Read {
        lands,
        is_damaged: true,
    };
    while !at.is_empty() {
        let Some(advance) = run.execute(&mut at) else {
            // The row before this instruction does not hold behind it.
            row(start, &Rule::NONE);
            return damaged(lands);
        };
        let next = match advance {
            Advance::No => continue,
            Advance::By(delta) => start.saturating_add(delta),
            Advance::To(address) => address,
        };
        if next < start {
            row(start, &Rule::NONE);
            return damaged(lands);
        }
        if next > start {
            lands |= run.state.exception_registers == (true, true);
            row(start, &run.state.rule(common.signal));
        }
        start = next;
        if start >= entry.end {
            return whole(lands);
        }
    }
    lands |= run.state.exception_registers == (true, true);
    row(start, &run.state.rule(common.signal));
    whole(lands)
}
