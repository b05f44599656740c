//! The unwind table of one module: plain bytes, independent of where they and the module are mapped.
//!
//! | bytes | |
//! |---|---|
//! | 0 | [`MAGIC`], number of rows, of index entries, of rules, of long rules, shift of the index (u32 each) |
//! | 24 | base: the address (svma) that rows count from (u64) |
//! | 32 | rows, ascending: start in bytes from the base, number of its rule (u32 each) |
//! | … | index: the last row that starts at or before `n << shift` bytes from the base (u32 each) |
//! | … | rules ([`RULE_BYTES`] each) |
//! | … | long rules ([`LONG_RULE_BYTES`] each) |
//!
//! A row is valid up to the next one. All numbers are little-endian. A rule is 16 bytes: its kind, a register, whether it
//! is of a signal frame, 0 (u8 each), an offset or the number of a long rule (u32), and for each callee-saved register
//! where it is stored below the CFA, in words (u8; 0: unchanged, 255: lost). Nearly every rule of real code has this form;
//! any other is a long one.
//!
//! A view never trusts the bytes: every access is checked, since shared memory may hold anything.

/// First word of a table.
pub const MAGIC: u32 = u32::from_le_bytes(*b"SvT2");
/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;
/// Bytes of a rule.
pub const RULE_BYTES: usize = 16;
/// Bytes of a long rule: CFA kind, its register, flags, 0 (u8 each), two offsets (i32), eight pairs of kind and register
/// (u8), eight offsets and what is overwritten (i32).
pub const LONG_RULE_BYTES: usize = 64;

/// Registers that a walk keeps, as places in its register file and in rules.
pub mod register {
    /// `rbx`.
    pub const BX: usize = 0;
    /// `rbp`.
    pub const BP: usize = 1;
    /// `r12`; `r13` to `r15` follow.
    pub const R12: usize = 2;
    /// The return address. Those before it are callee-saved.
    pub const IP: usize = 6;
    /// `rsp`.
    pub const SP: usize = 7;
    /// Number of registers that a walk keeps.
    pub const COUNT: usize = 8;
    /// `rax`. It and those that follow (`rdx`, `rcx`, `rsi`, `rdi`, `r8` to `r11`) are known of interrupted frames only;
    /// rules name them, but say nothing of the caller's.
    pub const SCRATCH: usize = COUNT;
    /// Number of registers that rules name.
    pub const NAMED: usize = SCRATCH + selvedge_arch::scratch::COUNT;
}

/// How the canonical frame address is found (DWARF 5, §6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cfa {
    /// There is no rule that is always true: an expression of a form that is not known, or registers that a walk does
    /// not keep.
    None,
    /// There is no unwind information: perhaps `rbp` is a frame pointer.
    Unknown,
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
    /// Stored so many words below the CFA, if what is there is not a copy: of the word whose address is stored at `rbp` plus
    /// offset. Lost otherwise.
    Uncopied(u8, i32),
}

impl Saved {
    /// Where a signal's frame, whose `ucontext` is at the stack pointer, has the interrupted instruction pointer.
    pub(crate) const CONTEXT_IP: Self = Self::At(register::SP as u8, 168);
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
    /// If not 0: the return address right below the address that is stored at `rbp` plus this has been overwritten; what
    /// stood there stands right below the CFA.
    pub overwritten: i32,
}

impl Rule {
    /// Code whose caller cannot be found.
    pub const NONE: Self = Self {
        cfa: Cfa::None,
        signal: false,
        saved: [Saved::Same; register::COUNT],
        overwritten: 0,
    };
    /// Code without unwind information.
    pub const UNKNOWN: Self = Self {
        cfa: Cfa::Unknown,
        ..Self::NONE
    };
    /// The outermost frame.
    pub const ROOT: Self = Self {
        cfa: Cfa::Root,
        ..Self::NONE
    };

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
            overwritten: 0,
        }
    }

    /// From a long rule; `None` where the bytes are none.
    pub(crate) fn decode(bytes: &[u8; LONG_RULE_BYTES]) -> Option<Self> {
        let [kind, base, signal, ..] = *bytes;
        let (first, second) = (signed(bytes, 4)?, signed(bytes, 8)?);
        let cfa = match kind {
            0 => Cfa::None,
            1 => Cfa::Register(base, first),
            2 => Cfa::Stored(base, first, second),
            3 => Cfa::Stub(first),
            4 => Cfa::Root,
            5 => Cfa::Unknown,
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
                6 => Saved::Uncopied(base, offset),
                _ => return None,
            };
        }
        Some(Self {
            cfa,
            signal: signal != 0,
            saved,
            overwritten: signed(bytes, 60)?,
        })
    }
}

/// In the slot of a register: its value is lost.
pub(crate) const LOST: u8 = 255;

/// What a rule of 16 bytes says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    None = 0,
    Register = 1,
    Root = 2,
    Unknown = 3,
    Long = 4,
}

/// A rule of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short {
    pub(crate) kind: Kind,
    pub(crate) base: u8,
    pub(crate) signal: bool,
    /// The offset of the CFA, or the number of the long rule.
    pub(crate) number: u32,
    /// Where each callee-saved register is stored, a byte each: words below the CFA, 0 (unchanged) or [`LOST`].
    pub(crate) slots: u64,
}

impl Short {
    #[inline]
    pub(crate) fn decode(bytes: [u8; RULE_BYTES]) -> Option<Self> {
        let [
            kind,
            base,
            signal,
            _,
            n0,
            n1,
            n2,
            n3,
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            ..,
        ] = bytes;
        let kind = match kind {
            // First: it is nearly all there is.
            1 => Kind::Register,
            0 => Kind::None,
            2 => Kind::Root,
            3 => Kind::Unknown,
            4 => Kind::Long,
            _ => return None,
        };
        let number = u32::from_le_bytes([n0, n1, n2, n3]);
        Some(Self {
            kind,
            base,
            signal: signal != 0,
            number,
            slots: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, 0, 0]),
        })
    }
}

fn unsigned(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn signed(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// So many rows are looked at one by one: branches that are foreseen cost less than a search whose every load waits for
/// the one before.
const LINEAR: usize = 8;

/// A table, looked at in place.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    base: u64,
    shift: u32,
    rows: &'a [[u8; 8]],
    index: &'a [[u8; 4]],
    rules: &'a [[u8; RULE_BYTES]],
    long_rules: &'a [[u8; LONG_RULE_BYTES]],
}

impl<'a> Table<'a> {
    /// Looks at bytes as a table. `None` where they are none.
    #[must_use]
    pub fn view(bytes: &'a [u8]) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        if unsigned(header, 0)? != MAGIC {
            return None;
        }
        let count = |at| unsigned(header, at).and_then(|count| usize::try_from(count).ok());
        let rest = bytes.get(HEADER_BYTES..)?;
        let (rows, rest) = rest.split_at_checked(count(4)?.checked_mul(8)?)?;
        let (index, rest) = rest.split_at_checked(count(8)?.checked_mul(4)?)?;
        let (rules, rest) = rest.split_at_checked(count(12)?.checked_mul(RULE_BYTES)?)?;
        let long_rules = rest.get(..count(16)?.checked_mul(LONG_RULE_BYTES)?)?;
        Some(Self {
            base: u64::from_le_bytes(*header.last_chunk()?),
            shift: unsigned(header, 20)?,
            rows: rows.as_chunks().0,
            index: index.as_chunks().0,
            rules: rules.as_chunks().0,
            long_rules: long_rules.as_chunks().0,
        })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The address (svma) at which a row starts.
    #[must_use]
    pub fn start(&self, row: usize) -> Option<u64> {
        Some(self.base.wrapping_add(u64::from(self.row(row)?.0)))
    }

    /// Start and number of the rule of a row.
    #[inline]
    fn row(&self, row: usize) -> Option<(u32, u32)> {
        let [s0, s1, s2, s3, r0, r1, r2, r3] = *self.rows.get(row)?;
        Some((
            u32::from_le_bytes([s0, s1, s2, s3]),
            u32::from_le_bytes([r0, r1, r2, r3]),
        ))
    }

    /// The last row that starts at or before an offset.
    #[inline]
    fn find(&self, offset: u32) -> Option<(usize, u32, u32)> {
        let slot = usize::try_from(offset.checked_shr(self.shift)?).ok()?;
        let entry = |slot: usize| {
            self.index
                .get(slot)
                .map(|entry| u32::from_le_bytes(*entry) as usize)
        };
        let last = self.rows.len().checked_sub(1)?;
        let mut low = entry(slot.min(self.index.len().wrapping_sub(1)))?;
        let mut high = entry(slot.wrapping_add(1))
            .unwrap_or(last)
            .min(last)
            .max(low);
        // `low` starts at or before `offset`; none behind `high` does.
        while high.wrapping_sub(low) > LINEAR {
            let middle = low.midpoint(high);
            if self.row(middle)?.0 <= offset {
                low = middle;
            } else {
                high = middle.wrapping_sub(1);
            }
        }
        let mut found = self.row(low)?;
        while low < high {
            let next = self.row(low.wrapping_add(1))?;
            if next.0 > offset {
                break;
            }
            low = low.wrapping_add(1);
            found = next;
        }
        let (start, rule) = found;
        (start <= offset).then_some((low, start, rule))
    }

    #[inline]
    fn short(&self, number: u32) -> Option<Short> {
        Short::decode(*self.rules.get(usize::try_from(number).ok()?)?)
    }

    /// The rule of an instruction.
    #[inline]
    pub(crate) fn rule_of_instruction(&self, svma: u64) -> Option<Short> {
        let offset = u32::try_from(svma.checked_sub(self.base)?).ok()?;
        self.short(self.find(offset)?.2)
    }

    /// The rule of the call before a return address; or that of a signal trampoline at the address itself, which nothing
    /// called: handlers only return to it.
    #[inline]
    pub(crate) fn rule_of_return(&self, svma: u64) -> Option<Short> {
        let offset = u32::try_from(svma.checked_sub(self.base)?).ok()?;
        let (row, start, rule) = self.find(offset)?;
        let here = self.short(rule);
        if start != offset || here.is_some_and(|rule| rule.signal) {
            return here;
        }
        self.short(self.row(row.checked_sub(1)?)?.1)
    }

    /// Where the row of an instruction starts (svma).
    pub(crate) fn start_of_row(&self, svma: u64) -> Option<u64> {
        let offset = u32::try_from(svma.checked_sub(self.base)?).ok()?;
        Some(self.base.wrapping_add(u64::from(self.find(offset)?.1)))
    }

    pub(crate) fn long(&self, number: u32) -> Option<Rule> {
        Rule::decode(self.long_rules.get(usize::try_from(number).ok()?)?)
    }

    /// The rule of the instruction at an address (svma). `None` where the table does not reach.
    #[must_use]
    pub fn rule(&self, svma: u64) -> Option<Rule> {
        let short = self.rule_of_instruction(svma)?;
        Some(match short.kind {
            Kind::None => Rule::NONE,
            Kind::Unknown => Rule::UNKNOWN,
            Kind::Root => Rule::ROOT,
            Kind::Long => self.long(short.number)?,
            Kind::Register => {
                let cfa = Cfa::Register(short.base, short.number.cast_signed());
                let mut rule = Rule::with_return_address(cfa);
                for (saved, slot) in rule
                    .saved
                    .iter_mut()
                    .zip(short.slots.to_le_bytes().into_iter().take(register::IP))
                {
                    *saved = match slot {
                        0 => Saved::Same,
                        LOST => Saved::Lost,
                        words => Saved::AtCfa(i32::from(words).wrapping_mul(-8)),
                    };
                }
                rule
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_bytes_are_no_table() {
        assert!(Table::view(&[]).is_none());
        let mut bytes = [0xff_u8; 64];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        assert!(Table::view(&bytes).is_none());
    }
}
