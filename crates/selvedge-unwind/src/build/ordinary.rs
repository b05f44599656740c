//! Call frame instructions of ordinary functions, interpreted straight into rules of 16 bytes.
//!
//! Nearly all code pushes callee-saved registers, counts its CFA from `rsp` or `rbp` and does nothing else: for that, the
//! general interpreter ([`instructions`](super::instructions)) spends most of its time on what could have been but is
//! not. Whatever is not in the list here, the general one interprets from the function's start. Where both can, they must
//! agree: `quick_and_general_interpreters_agree` in `rows.rs` fails if they do not.

use super::encode::Key;
use super::frames::{Common, Entry};
use crate::table::{Kind, Short, register};

/// States that may be remembered at a time: compilers need one.
const REMEMBERED: usize = 4;

/// What instructions have said up to some point: a rule of kind [`Kind::Register`], as its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    key: Key,
}

impl State {
    /// What a shared entry says at the start of each function, if it is ordinary.
    pub(super) fn initial(common: &Common<'_>, rule: Option<Short>) -> Option<Self> {
        let rule = rule.filter(|rule| rule.kind == Kind::Register)?;
        // x86-64 has no other factors (ABI, section 3.7); then an offset counts words below the CFA.
        let ordinary = common.code_factor == 1 && common.data_factor == -8 && !common.signal;
        ordinary.then_some(Self {
            key: Key::of(&rule),
        })
    }

    #[inline]
    fn set_base(&mut self, base: u8) {
        self.key.first = self.key.first & !0xff00 | u64::from(base) << 8;
    }

    #[inline]
    fn set_offset(&mut self, offset: u32) {
        self.key.first = self.key.first & 0xffff_ffff | u64::from(offset) << 32;
    }

    #[inline]
    fn set_slot(&mut self, shift: u32, words: u64) {
        self.key.slots = self.key.slots & !(0xff << shift) | words << shift;
    }
}

/// Where a callee-saved register's slot is, in bits, by DWARF number; [`NO_SLOT`]: it has none.
const SHIFTS: [u8; 64] = {
    let mut shifts = [NO_SLOT; 64];
    shifts[3] = 8 * register::BX as u8;
    shifts[6] = 8 * register::BP as u8;
    let mut r = 0;
    while r < 4 {
        shifts[12 + r] = 8 * (register::R12 + r) as u8;
        r += 1;
    }
    shifts
};
const NO_SLOT: u8 = 255;

#[inline]
fn shift(register: u64) -> Option<u32> {
    let shift = *SHIFTS.get(usize::try_from(register).ok()?)?;
    (shift != NO_SLOT).then_some(u32::from(shift))
}

/// A register that CFAs count from.
#[inline]
fn base(register: u64) -> Option<u8> {
    match register {
        7 => Some(register::SP as u8),
        6 => Some(register::BP as u8),
        _ => None,
    }
}

/// An unsigned number in LEB128, of a size that real code needs.
#[inline]
fn unsigned(bytes: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = bytes.split_first()?;
    *bytes = rest;
    if first < 0x80 {
        return Some(u64::from(first));
    }
    let (mut value, mut shift) = (u64::from(first & 0x7f), 7);
    loop {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return Some(value);
        }
        if shift > 28 {
            return None;
        }
    }
}

#[inline]
fn number<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*number)
}

/// Interprets the instructions of an entry: calls `row` with the start of each row, from that of the entry, and its rule's
/// bytes, ascending. `None`: the function is not ordinary, and the rows so far are to be forgotten.
pub(super) fn rows(
    initial: &State,
    entry: &Entry<'_>,
    mut row: impl FnMut(u32, Key),
) -> Option<()> {
    let mut state = *initial;
    let mut remembered = [*initial; REMEMBERED];
    let mut depth = 0_usize;
    let mut bytes = entry.instructions.rest();
    let len = u32::try_from(entry.end.checked_sub(entry.start)?).ok()?;
    let mut start = 0_u32;
    while let Some((&byte, rest)) = bytes.split_first() {
        bytes = rest;
        let low = u64::from(byte & 0x3f);
        let delta = match byte {
            // DW_CFA_advance_loc
            0x40..=0x7f => low as u32,
            // DW_CFA_offset
            0x80..=0xbf => {
                let words = unsigned(&mut bytes)?;
                if !(1..255).contains(&words) {
                    return None;
                }
                state.set_slot(shift(low)?, words);
                continue;
            }
            // DW_CFA_restore
            0xc0..=0xff => {
                let shift = shift(low)?;
                state.set_slot(shift, initial.key.slots >> shift & 0xff);
                continue;
            }
            // DW_CFA_def_cfa_offset
            0x0e => {
                state.set_offset(offset(unsigned(&mut bytes)?)?);
                continue;
            }
            // DW_CFA_advance_loc1, 2, 4
            0x02 => u32::from_le_bytes([number::<1>(&mut bytes)?[0], 0, 0, 0]),
            0x03 => u32::from(u16::from_le_bytes(number(&mut bytes)?)),
            0x04 => u32::from_le_bytes(number(&mut bytes)?),
            // DW_CFA_nop
            0x00 => continue,
            // DW_CFA_remember_state, restore_state
            0x0a => {
                *remembered.get_mut(depth)? = state;
                depth += 1;
                continue;
            }
            0x0b => {
                depth = depth.checked_sub(1)?;
                state = *remembered.get(depth)?;
                continue;
            }
            // DW_CFA_def_cfa, def_cfa_register
            0x0c => {
                state.set_base(base(unsigned(&mut bytes)?)?);
                state.set_offset(offset(unsigned(&mut bytes)?)?);
                continue;
            }
            0x0d => {
                state.set_base(base(unsigned(&mut bytes)?)?);
                continue;
            }
            // DW_CFA_GNU_args_size: of no use to a walk.
            0x2e => {
                unsigned(&mut bytes)?;
                continue;
            }
            _ => return None,
        };
        let next = start.checked_add(delta)?;
        if next > start {
            row(start, state.key);
        }
        start = next;
        if start >= len {
            return Some(());
        }
    }
    row(start, state.key);
    Some(())
}

#[inline]
fn offset(value: u64) -> Option<u32> {
    i32::try_from(value).ok().map(i32::cast_unsigned)
}
