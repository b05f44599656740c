//! The unwind table of one module: plain bytes, independent of where they and the module are mapped.
//!
//! | bytes | |
//! |---|---|
//! | 0 | [`MAGIC`] (u32), number of rows (u32), number of rules (u32), 0 (u32) |
//! | 16 | base: the address (svma) that rows count from (u64) |
//! | 24 | starts of rows, ascending, in bytes from the base (u32 each) |
//! | … | rule of each row (u32 each) |
//! | … | rules ([`RULE_BYTES`] each) |
//!
//! A row is valid up to the next one; code that no unwind information covers has rows with a rule of kind
//! [`Cfa::None`]. All numbers are little-endian.
//!
//! A view never trusts the bytes: every access is checked, since shared memory may hold anything.

/// First word of a table.
pub const MAGIC: u32 = u32::from_le_bytes(*b"SvT1");
/// Bytes of the header.
pub const HEADER_BYTES: usize = 24;
/// Bytes of a rule: CFA kind, its register, flags, 0 (u8 each), two offsets (i32), eight pairs of kind and register
/// (u8), eight offsets (i32), 4 bytes of padding.
pub const RULE_BYTES: usize = 64;

/// Registers that a walk keeps, as places in its register file and in rules.
pub mod register {
    /// `rbx`.
    pub const BX: usize = 0;
    /// `rbp`.
    pub const BP: usize = 1;
    /// `r12`; `r13` to `r15` follow.
    pub const R12: usize = 2;
    /// The return address.
    pub const IP: usize = 6;
    /// `rsp`.
    pub const SP: usize = 7;
    /// Number of registers.
    pub const COUNT: usize = 8;
}

/// How the canonical frame address is found (DWARF 5, §6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cfa {
    /// There is no rule: no unwind information, or an expression of a form that is not known.
    None,
    /// Register plus offset.
    Register(u8, i32),
    /// What is stored at register plus offset, plus a second offset.
    Stored(u8, i32, i32),
    /// A stub of the procedure linkage table: `rsp + 8`, and 8 more from byte N of its 16 on.
    Stub(i32),
    /// The outermost frame.
    Root,
}

/// How the caller's value of a register is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Saved {
    /// It has not changed.
    #[default]
    Same,
    /// It is lost.
    Lost,
    /// Stored at the CFA plus offset.
    AtCfa(i32),
    /// The CFA plus offset.
    Cfa(i32),
    /// In a register.
    In(u8),
    /// Stored at a register plus offset.
    At(u8, i32),
}

/// How to get from a frame to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The canonical frame address.
    pub cfa: Cfa,
    /// Whether the frame is one that the kernel made for a signal: its caller was interrupted, it did not call.
    pub signal: bool,
    /// The caller's registers.
    pub saved: [Saved; register::COUNT],
}

impl Rule {
    /// Code without a rule.
    pub const NONE: Self = Self {
        cfa: Cfa::None,
        signal: false,
        saved: [Saved::Same; register::COUNT],
    };
    /// The outermost frame.
    pub const ROOT: Self = Self {
        cfa: Cfa::Root,
        ..Self::NONE
    };

    /// A frame whose CFA is `rsp` plus `offset`, with the return address right below it.
    #[must_use]
    pub const fn stack_only(offset: i32) -> Self {
        Self::with_return_address(Cfa::Register(register::SP as u8, offset))
    }

    /// A frame with this CFA, with the return address right below it.
    #[must_use]
    pub const fn with_return_address(cfa: Cfa) -> Self {
        let mut saved = [Saved::Same; register::COUNT];
        saved[register::IP] = Saved::AtCfa(-8);
        saved[register::SP] = Saved::Cfa(0);
        Self {
            cfa,
            signal: false,
            saved,
        }
    }

    /// As bytes of a table.
    #[must_use]
    pub fn encode(&self) -> [u8; RULE_BYTES] {
        let mut bytes = [0; RULE_BYTES];
        let (kind, base, first, second) = match self.cfa {
            Cfa::None => (0, 0, 0, 0),
            Cfa::Register(base, offset) => (1, base, offset, 0),
            Cfa::Stored(base, offset, after) => (2, base, offset, after),
            Cfa::Stub(from) => (3, 0, from, 0),
            Cfa::Root => (4, 0, 0, 0),
        };
        bytes[..4].copy_from_slice(&[kind, base, u8::from(self.signal), 0]);
        bytes[4..8].copy_from_slice(&i32::to_le_bytes(first));
        bytes[8..12].copy_from_slice(&i32::to_le_bytes(second));
        for (at, saved) in self.saved.iter().enumerate() {
            let (kind, base, offset) = match *saved {
                Saved::Same => (0, 0, 0),
                Saved::Lost => (1, 0, 0),
                Saved::AtCfa(offset) => (2, 0, offset),
                Saved::Cfa(offset) => (3, 0, offset),
                Saved::In(base) => (4, base, 0),
                Saved::At(base, offset) => (5, base, offset),
            };
            bytes[12 + 2 * at..14 + 2 * at].copy_from_slice(&[kind, base]);
            bytes[28 + 4 * at..32 + 4 * at].copy_from_slice(&i32::to_le_bytes(offset));
        }
        bytes
    }

    /// From bytes of a table; `None` where they are no rule.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; RULE_BYTES] = bytes.first_chunk()?;
        let [kind, base, signal, ..] = *bytes;
        let (first, second) = (signed(bytes, 4)?, signed(bytes, 8)?);
        let cfa = match kind {
            0 => Cfa::None,
            1 => Cfa::Register(base, first),
            2 => Cfa::Stored(base, first, second),
            3 => Cfa::Stub(first),
            4 => Cfa::Root,
            _ => return None,
        };
        let mut saved = [Saved::Same; register::COUNT];
        for (at, saved) in saved.iter_mut().enumerate() {
            let [kind, base] = *bytes.get(12 + 2 * at..)?.first_chunk()?;
            let offset = signed(bytes, 28 + 4 * at)?;
            *saved = match kind {
                0 => Saved::Same,
                1 => Saved::Lost,
                2 => Saved::AtCfa(offset),
                3 => Saved::Cfa(offset),
                4 => Saved::In(base),
                5 => Saved::At(base, offset),
                _ => return None,
            };
        }
        Some(Self {
            cfa,
            signal: signal != 0,
            saved,
        })
    }
}

fn unsigned(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn signed(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A table, looked at in place.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    base: u64,
    starts: &'a [u8],
    rules_of_rows: &'a [u8],
    rules: &'a [u8],
}

impl<'a> Table<'a> {
    /// Looks at bytes as a table. `None` where they are none.
    #[must_use]
    pub fn view(bytes: &'a [u8]) -> Option<Self> {
        if unsigned(bytes, 0)? != MAGIC {
            return None;
        }
        let rows = unsigned(bytes, 4)? as usize;
        let rules = unsigned(bytes, 8)? as usize;
        let base = u64::from_le_bytes(*bytes.get(16..)?.first_chunk()?);
        let rest = bytes.get(HEADER_BYTES..)?;
        let (starts, rest) = rest.split_at_checked(rows.checked_mul(4)?)?;
        let (rules_of_rows, rest) = rest.split_at_checked(rows.checked_mul(4)?)?;
        let rules = rest.get(..rules.checked_mul(RULE_BYTES)?)?;
        Some(Self {
            base,
            starts,
            rules_of_rows,
            rules,
        })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.starts.len() / 4
    }

    /// The address (svma) at which a row starts.
    #[must_use]
    pub fn start(&self, row: usize) -> Option<u64> {
        Some(
            self.base
                .wrapping_add(u64::from(unsigned(self.starts, row.checked_mul(4)?)?)),
        )
    }

    /// The rule at an address (svma). `None` where the table does not reach.
    #[must_use]
    pub fn rule(&self, svma: u64) -> Option<Rule> {
        let offset = u32::try_from(svma.checked_sub(self.base)?).ok()?;
        // The last row that starts at or before `offset`: `low` always starts at or before it, `high` never.
        let (mut low, mut high) = (0, self.rows());
        if unsigned(self.starts, 0)? > offset {
            return None;
        }
        while high.wrapping_sub(low) > 1 {
            let middle = low.midpoint(high);
            if unsigned(self.starts, middle.wrapping_mul(4))? <= offset {
                low = middle;
            } else {
                high = middle;
            }
        }
        let rule = unsigned(self.rules_of_rows, low.wrapping_mul(4))? as usize;
        Rule::decode(self.rules.get(rule.checked_mul(RULE_BYTES)?..)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_survive_encoding() {
        let mut saved = [Saved::Same; register::COUNT];
        saved[0] = Saved::At(7, -40);
        saved[1] = Saved::AtCfa(-16);
        saved[2] = Saved::Lost;
        saved[3] = Saved::In(3);
        saved[7] = Saved::Cfa(8);
        let cfas = [
            Cfa::None,
            Cfa::Register(1, 16),
            Cfa::Stored(7, 160, -8),
            Cfa::Stub(11),
            Cfa::Root,
        ];
        for cfa in cfas {
            for signal in [false, true] {
                let rule = Rule { cfa, signal, saved };
                assert_eq!(Rule::decode(&rule.encode()), Some(rule));
            }
        }
    }

    #[test]
    fn hostile_bytes_are_no_table() {
        assert!(Table::view(&[]).is_none());
        let mut bytes = [0xff_u8; 64];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        assert!(Table::view(&bytes).is_none());
    }
}
