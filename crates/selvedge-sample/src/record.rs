//! The format of a record in a thread's ring: words, a header, then what the kind says.
//!
//! | word | |
//! |---|---|
//! | 0 | length in words (bits 0–31), [`Kind`] (32–39), end of the walk (40–47) |
//! | 1 | process index plus one (32–63), thread id (0–31): [`crate::region::key`] |
//! | 2 | weight: nanoseconds of CPU time that the sample stands for |
//! | 3 | nanoseconds of CPU time since the last account while the thread blocked the signal |
//! | 4 | label set: 0 for none |
//! | 5… | [`Kind::Stack`]: frames, leaf first, `selvedge_unwind::TRUNCATED` where some are left out; [`Kind::Raw`]: [`REGISTER_WORDS`] registers, then a copy of the stack from SP upward |
//!
//! A [`Kind::Name`] has the thread's name in words 2 and 3. A [`Kind::Pad`] fills the end of the ring: its length counts,
//! nothing else.

use selvedge_arch::Registers;

/// Words before a sample's own.
pub const HEADER_WORDS: usize = 5;
/// Words of the registers in a [`Kind::Raw`] record: ip, sp, bp, bx, r12–r15, then those that calls may overwrite.
pub const REGISTER_WORDS: usize = 8 + selvedge_arch::scratch::COUNT;
/// Frames recorded of a stack at most.
pub const MAX_FRAMES: usize = 512;
/// Bytes of stack copied into a [`Kind::Raw`] record at most: as much as there is room for.
pub const RAW_STACKS: [usize; 4] = [32 * 1024, 16 * 1024, 4 * 1024, 1024];

/// Registers as a [`Kind::Raw`] record has them.
#[must_use]
pub fn register_words(registers: &Registers) -> [u64; REGISTER_WORDS] {
    let Registers {
        ip,
        sp,
        bp,
        bx,
        r12,
        r13,
        r14,
        r15,
        scratch: [s0, s1, s2, s3, s4, s5, s6, s7, s8],
    } = *registers;
    [
        ip, sp, bp, bx, r12, r13, r14, r15, s0, s1, s2, s3, s4, s5, s6, s7, s8,
    ]
}

/// Registers of a [`Kind::Raw`] record.
#[must_use]
pub fn registers(words: &[u64; REGISTER_WORDS]) -> Registers {
    let [ip, sp, bp, bx, r12, r13, r14, r15, scratch @ ..] = *words;
    Registers {
        ip,
        sp,
        bp,
        bx,
        r12,
        r13,
        r14,
        r15,
        scratch,
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing: the rest of the ring before it wraps.
    Pad = 1,
    /// A walked stack.
    Stack = 2,
    /// Registers and a copy of the stack, for the reader to walk: its module was not known yet.
    Raw = 3,
    /// The name of a thread that ends.
    Name = 4,
}

impl Kind {
    /// The kind with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Pad),
            2 => Some(Self::Stack),
            3 => Some(Self::Raw),
            4 => Some(Self::Name),
            _ => None,
        }
    }
}

/// The first word of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Words of the record, this one included.
    pub len: usize,
    /// What it is.
    pub kind: Kind,
    /// Why the walk ended: a code of `selvedge_unwind`'s `End`.
    pub end: u8,
}

impl Head {
    /// As a word.
    #[must_use]
    pub fn to_word(self) -> u64 {
        (self.len as u64 & 0xffff_ffff) | ((self.kind as u64) << 32) | (u64::from(self.end) << 40)
    }

    /// From a word; `None` where it is not a record's first.
    #[must_use]
    pub fn from_word(word: u64) -> Option<Self> {
        let kind = Kind::from_code((word >> 32) as u8)?;
        Some(Self {
            len: (word & 0xffff_ffff) as usize,
            kind,
            end: (word >> 40) as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_a_record() {
        let words = core::array::from_fn(|at| at as u64 * 3 + 1);
        assert_eq!(register_words(&registers(&words)), words);
    }
}
