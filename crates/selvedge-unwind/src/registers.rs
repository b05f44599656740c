//! Values of registers during a walk. What a frame has saved is loaded only when a rule needs it: most of it never is.

use crate::table::register;
use crate::walk::{End, Memory};
use selvedge_arch::{Registers, scratch};

/// Registers that calls may overwrite. Only an interrupted frame's are known: others have made a call since.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scratch<'a> {
    /// The leaf's.
    Known(&'a [u64; scratch::COUNT]),
    /// In the `ucontext` of a signal's frame, at this address: of the frame that the signal interrupted.
    Saved(u64),
    /// Of a frame that a signal interrupted, whose `ucontext` is not where the kernel puts it.
    Lost,
}

impl Scratch<'_> {
    /// The value of a register, by its number in rules.
    pub(crate) fn get(self, register: usize, memory: &mut impl Memory) -> Result<u64, End> {
        let place = register.checked_sub(register::COUNT).ok_or(End::NoRule)?;
        match self {
            Self::Known(values) => values.get(place).copied().ok_or(End::NoRule),
            Self::Saved(context) => {
                let offset = scratch::IN_CONTEXT.get(place).ok_or(End::NoRule)?;
                let at = context.wrapping_add(*offset);
                memory.read(at).ok_or(End::Unreadable)
            }
            Self::Lost => Err(End::NoRule),
        }
    }
}

/// Where the value of each register is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File {
    /// The value, or the address where it is stored.
    values: [u64; register::COUNT],
    /// Registers whose value is stored: a bit each.
    stored: u8,
    /// Registers whose value is lost: a bit each.
    lost: u8,
}

#[inline]
fn bit(register: usize) -> u8 {
    1_u8.wrapping_shl(register as u32)
}

impl File {
    pub(crate) fn new(registers: &Registers) -> Self {
        let Registers {
            ip,
            sp,
            bp,
            bx,
            r12,
            r13,
            r14,
            r15,
            scratch: _,
        } = *registers;
        Self {
            values: [bx, bp, r12, r13, r14, r15, ip, sp],
            stored: 0,
            lost: 0,
        }
    }

    /// The value of a register.
    #[inline]
    pub(crate) fn get(&mut self, register: usize, memory: &mut impl Memory) -> Result<u64, End> {
        let bit = bit(register);
        let place = self.values.get_mut(register).ok_or(End::NoRule)?;
        if self.lost & bit != 0 {
            return Err(End::NoRule);
        }
        if self.stored & bit != 0 {
            *place = memory.read(*place).ok_or(End::Unreadable)?;
            self.stored &= !bit;
        }
        Ok(*place)
    }

    #[inline]
    fn put(&mut self, register: usize, word: u64, stored: bool, lost: bool) {
        let bit = bit(register);
        if let Some(place) = self.values.get_mut(register) {
            *place = word;
        }
        self.stored = self.stored & !bit | if stored { bit } else { 0 };
        self.lost = self.lost & !bit | if lost { bit } else { 0 };
    }

    #[inline]
    pub(crate) fn set(&mut self, register: usize, value: u64) {
        self.put(register, value, false, false);
    }

    #[inline]
    pub(crate) fn set_stored(&mut self, register: usize, address: u64) {
        self.put(register, address, true, false);
    }

    #[inline]
    pub(crate) fn lose(&mut self, register: usize) {
        self.put(register, 0, false, true);
    }

    /// What `from` is now, `to` is in `caller`, wherever its value is.
    pub(crate) fn copy_to(&self, caller: &mut Self, from: usize, to: usize) {
        let word = self.values.get(from).copied().unwrap_or(0);
        let (stored, lost) = (self.stored & bit(from) != 0, self.lost & bit(from) != 0);
        caller.put(to, word, stored, lost);
    }

    #[inline]
    pub(crate) fn ip(&self) -> u64 {
        let [.., ip, _] = self.values;
        ip
    }

    #[inline]
    pub(crate) fn sp(&self) -> u64 {
        let [.., sp] = self.values;
        sp
    }
}
