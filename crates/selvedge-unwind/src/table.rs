//! The unwind table of one module: plain bytes, independent of where they and the module are mapped.
//!
//! | bytes | |
//! |---|---|
//! | 0 | [`MAGIC`], number of slots, bytes of chunks, number of rules, of long rules, and of the rule behind the last slot (u32 each) |
//! | 24 | base: the address (svma) that slots count from (u64) |
//! | 32 | where the chunks of each [`BLOCK`] slots start (u32 each) |
//! | … | slots: one for each [`SPAN`] bytes of code (u16 each) |
//! | … | rules ([`RULE_BYTES`] each), what most code has first |
//! | … | long rules ([`LONG_RULE_BYTES`] each) |
//! | … | chunks |
//!
//! A slot of at least [`INLINE`] says that all its code has the rule of that number above it. Any other is where its chunk
//! is, behind the start of its block. A chunk is N as below, then the number of the rule of the byte before the slot's
//! code, then N rows, ascending: the last byte of the address where each starts, and the number of its rule.
//!
//! | first byte | N | numbers |
//! |---|---|---|
//! | 0 to 126 | 1 more | bytes |
//! | 127 to 253 | 126 less | u16 |
//! | 255 | 1 more than the next byte | u16 |
//!
//! A row is valid up to the next one. That a chunk knows what was before it is for return addresses: their rule is that of
//! the byte before, except where a signal frame starts.
//!
//! **Why so.** Code that is looked up for the first time costs what its bytes take to come from memory: here a slot, which
//! shares its cache line with those of 8 KiB of code, and a chunk, of 26 bytes on average. What most code has are a few
//! dozen rules, which stay in the cache. Rejected: rows of 8 bytes with an index (4.4 times the bytes and twice the time
//! where code is cold; the same where it is not); chunks with all starts first (where a rule's number stands then depends
//! on N: 4 ns more where code is warm); slots of 128 bytes, and chunks that never cross a
//! cache line (a fifth more bytes each, no faster).
//!
//! All numbers are little-endian. A rule is 16 bytes: its kind, a register, whether it is of a signal frame, 0 (u8 each),
//! an offset or the number of a long rule (u32), and for each callee-saved register where it is stored below the CFA, in
//! words (u8; 0: unchanged, 255: lost). Nearly every rule of real code has this form; any other is a long one.
//!
//! A view never trusts the bytes: every access is checked, since shared memory may hold anything.

/// First word of a table.
pub const MAGIC: u32 = u32::from_le_bytes(*b"SvT3");
/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;
/// Bytes of code that share a slot, as a power of two.
const SPAN_SHIFT: u32 = 8;
/// Bytes of code that share a slot.
pub const SPAN: u32 = 1 << SPAN_SHIFT;
/// Slots of a block: no more than their chunks can be told apart by a u16.
pub const BLOCK: usize = 64;
/// Bytes of a chunk, at most: a row for every byte of code.
const CHUNK_BYTES: usize = 2 + SPAN as usize + 2 * (SPAN as usize + 1);
/// The least value of a slot without a chunk.
pub const INLINE: u16 = ((BLOCK - 1) * CHUNK_BYTES + 1) as u16;
const _: () = assert!((BLOCK - 1) * CHUNK_BYTES < 0xffff);
/// First byte of a chunk whose N does not fit into it.
#[cfg(feature = "build")]
pub(crate) const BIG: u8 = 255;
/// Rows of a chunk, at most, whose N is in its first byte.
pub(crate) const SMALL: usize = 127;
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
    /// The first instruction of what the first functions of contexts return to: no frame, since nothing was called from
    /// there. Interrupted itself, it is the outermost frame.
    Planted,
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

    /// What first functions of contexts return to.
    pub const PLANTED: Self = Self {
        cfa: Cfa::Planted,
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
}

/// A long rule, decoded a part at a time: a handler's stack has no room for all of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Long<'a>(pub(crate) &'a [u8; LONG_RULE_BYTES]);

impl Long<'_> {
    /// `None` where the bytes are no rule's.
    pub(crate) fn cfa(self) -> Option<Cfa> {
        let [kind, base, ..] = *self.0;
        let (first, second) = (signed(self.0, 4)?, signed(self.0, 8)?);
        Some(match kind {
            0 => Cfa::None,
            1 => Cfa::Register(base, first),
            2 => Cfa::Stored(base, first, second),
            3 => Cfa::Stub(first),
            4 => Cfa::Root,
            5 => Cfa::Unknown,
            6 => Cfa::Planted,
            _ => return None,
        })
    }

    pub(crate) fn is_signal(self) -> bool {
        let [_, _, signal, ..] = *self.0;
        signal != 0
    }

    /// The caller's value of a register.
    pub(crate) fn saved(self, register: usize) -> Option<Saved> {
        let at = register.checked_mul(2)?.checked_add(12)?;
        let [kind, base] = *self.0.get(at..)?.first_chunk()?;
        let offset = signed(self.0, register.checked_mul(4)?.checked_add(28)?)?;
        Some(match kind {
            0 => Saved::Same,
            1 => Saved::Lost,
            2 => Saved::AtCfa(offset),
            3 => Saved::Cfa(offset),
            4 => Saved::In(base),
            5 => Saved::At(base, offset),
            6 => Saved::Uncopied(base, offset),
            _ => return None,
        })
    }

    pub(crate) fn overwritten(self) -> i32 {
        signed(self.0, 60).unwrap_or(0)
    }

    pub(crate) fn whole(self) -> Option<Rule> {
        let mut saved = [Saved::Same; register::COUNT];
        for (register, saved) in saved.iter_mut().enumerate() {
            *saved = self.saved(register)?;
        }
        Some(Rule {
            cfa: self.cfa()?,
            signal: self.is_signal(),
            saved,
            overwritten: self.overwritten(),
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
    Planted = 5,
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
            5 => Kind::Planted,
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

/// A table, looked at in place.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    base: u64,
    behind: u32,
    blocks: &'a [[u8; 4]],
    slots: &'a [[u8; 2]],
    rules: &'a [[u8; RULE_BYTES]],
    long_rules: &'a [[u8; LONG_RULE_BYTES]],
    chunks: &'a [u8],
}

/// What a slot says.
#[derive(Clone, Copy, Debug)]
enum Slot<'a> {
    /// All its code has this rule.
    Rule(u32),
    Chunk(Chunk<'a>),
}

/// The rows of a slot.
#[derive(Clone, Copy, Debug)]
enum Chunk<'a> {
    /// Numbers are bytes.
    Narrow {
        before: u8,
        rows: &'a [[u8; 2]],
    },
    Wide {
        before: u16,
        rows: &'a [[u8; 3]],
    },
}

impl<'a> Chunk<'a> {
    #[inline]
    fn view(bytes: &'a [u8]) -> Option<Self> {
        let (&first, rest) = bytes.split_first()?;
        let first = usize::from(first);
        if first < SMALL {
            let (&before, rest) = rest.split_first()?;
            let rows = rest.as_chunks().0.get(..first.wrapping_add(1))?;
            return Some(Self::Narrow { before, rows });
        }
        let (count, rest) = if first < 2 * SMALL {
            (first.wrapping_sub(SMALL - 1), rest)
        } else {
            let (&count, rest) = rest.split_first()?;
            (usize::from(count).wrapping_add(1), rest)
        };
        let (&before, rest) = rest.split_first_chunk()?;
        Some(Self::Wide {
            before: u16::from_le_bytes(before),
            rows: rest.as_chunks().0.get(..count)?,
        })
    }

    /// The rule of the byte before the chunk's code.
    #[inline]
    fn before(&self) -> u32 {
        match *self {
            Self::Narrow { before, .. } => u32::from(before),
            Self::Wide { before, .. } => u32::from(before),
        }
    }

    /// Where row `row` starts, and the number of its rule.
    #[inline]
    fn row(&self, row: usize) -> Option<(u8, u32)> {
        match self {
            Self::Narrow { rows, .. } => {
                let [start, number] = *rows.get(row)?;
                Some((start, u32::from(number)))
            }
            Self::Wide { rows, .. } => {
                let [start, n0, n1] = *rows.get(row)?;
                Some((start, u32::from(u16::from_le_bytes([n0, n1]))))
            }
        }
    }

    fn rows(self) -> impl Iterator<Item = (u8, u32)> {
        (0..).map_while(move |row| self.row(row))
    }

    /// The last rule from before `low` on, and that of the row that starts right there.
    ///
    /// A loop with a branch for each row: where it is foreseen, what follows does not wait for the rows.
    #[inline]
    fn find(&self, low: u8) -> (u32, Option<u32>) {
        let mut number = self.before();
        let mut row = 0_usize;
        while let Some((start, next)) = self.row(row) {
            if start >= low {
                return (number, (start == low).then_some(next));
            }
            number = next;
            row = row.wrapping_add(1);
        }
        (number, None)
    }
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
        let slots = count(4)?;
        let rest = bytes.get(HEADER_BYTES..)?;
        let (blocks, rest) = rest.split_at_checked(slots.div_ceil(BLOCK).checked_mul(4)?)?;
        let (slots, rest) = rest.split_at_checked(slots.checked_mul(2)?)?;
        let (rules, rest) = rest.split_at_checked(count(12)?.checked_mul(RULE_BYTES)?)?;
        let (long_rules, rest) = rest.split_at_checked(count(16)?.checked_mul(LONG_RULE_BYTES)?)?;
        Some(Self {
            base: u64::from_le_bytes(*header.last_chunk()?),
            behind: unsigned(header, 20)?,
            blocks: blocks.as_chunks().0,
            slots: slots.as_chunks().0,
            rules: rules.as_chunks().0,
            long_rules: long_rules.as_chunks().0,
            chunks: rest.get(..count(8)?)?,
        })
    }

    /// The addresses (svmas) at which rows start, ascending.
    pub fn starts(&self) -> impl Iterator<Item = u64> {
        (0..self.slots.len()).flat_map(|slot| {
            let base = self.base.wrapping_add((slot as u64) << SPAN_SHIFT);
            let chunk = match self.slot(slot) {
                Some(Slot::Chunk(chunk)) => Some(chunk),
                _ => None,
            };
            let rows = chunk.into_iter().flat_map(Chunk::rows);
            rows.map(move |(start, _)| base.wrapping_add(u64::from(start)))
        })
    }

    #[inline]
    fn slot(&self, at: usize) -> Option<Slot<'a>> {
        let Some(slot) = self.slots.get(at) else {
            return Some(Slot::Rule(self.behind));
        };
        let slot = u16::from_le_bytes(*slot);
        if let Some(number) = slot.checked_sub(INLINE) {
            return Some(Slot::Rule(u32::from(number)));
        }
        let block = u32::from_le_bytes(*self.blocks.get(at / BLOCK)?);
        let at = usize::try_from(block)
            .ok()?
            .checked_add(usize::from(slot))?;
        Chunk::view(self.chunks.get(at..)?).map(Slot::Chunk)
    }

    /// The slot of an address, and its distance from the base.
    #[inline]
    fn find(&self, svma: u64) -> Option<(Slot<'a>, u32)> {
        let offset = u32::try_from(svma.checked_sub(self.base)?).ok()?;
        let slot = self.slot(usize::try_from(offset >> SPAN_SHIFT).ok()?)?;
        Some((slot, offset))
    }

    #[inline]
    fn short(&self, number: u32) -> Option<Short> {
        Short::decode(*self.rules.get(usize::try_from(number).ok()?)?)
    }

    /// The rule of an instruction.
    #[inline]
    pub(crate) fn rule_of_instruction(&self, svma: u64) -> Option<Short> {
        let (slot, offset) = self.find(svma)?;
        self.short(match slot {
            Slot::Rule(number) => number,
            Slot::Chunk(chunk) => {
                let (before, here) = chunk.find(offset as u8);
                here.unwrap_or(before)
            }
        })
    }

    /// The rule of the call before a return address; or that of the address itself, if that is a signal trampoline, which
    /// nothing called (handlers only return to it), or [`Cfa::Planted`].
    #[inline]
    pub(crate) fn rule_of_return(&self, svma: u64) -> Option<Short> {
        let (slot, offset) = self.find(svma)?;
        let (before, here) = match slot {
            Slot::Rule(number) => (number, None),
            Slot::Chunk(chunk) => chunk.find(offset as u8),
        };
        let here = here.and_then(|number| self.short(number));
        if here.is_some_and(|rule| rule.signal || rule.kind == Kind::Planted) {
            return here;
        }
        self.short(before)
    }

    /// Where the code with the rule of an instruction starts (svma), if that is not far away.
    pub(crate) fn start_of_row(&self, svma: u64) -> Option<u64> {
        /// Slots that are looked at: 64 KiB of code.
        const NEAR: usize = 256;
        let offset = u32::try_from(svma.checked_sub(self.base)?).ok()?;
        let last = usize::try_from(offset >> SPAN_SHIFT).ok()?;
        let mut limit = offset as u8;
        let mut number = None;
        for at in (0..=last).rev().take(NEAR) {
            let start_of = |byte: u64| {
                let slot = (at as u64) << SPAN_SHIFT;
                Some(self.base.wrapping_add(slot).wrapping_add(byte))
            };
            match self.slot(at)? {
                Slot::Rule(rule) if number.is_none_or(|number| number == rule) => {
                    number = Some(rule);
                }
                Slot::Rule(_) => return start_of(SPAN.into()),
                Slot::Chunk(chunk) => {
                    let rows = chunk.rows();
                    if let Some((start, _)) = rows.take_while(|&(start, _)| start <= limit).last() {
                        return start_of(start.into());
                    }
                    number = Some(chunk.find(0).0);
                }
            }
            limit = u8::MAX;
        }
        (last < NEAR).then_some(self.base)
    }

    pub(crate) fn long(&self, number: u32) -> Option<Long<'a>> {
        Some(Long(self.long_rules.get(usize::try_from(number).ok()?)?))
    }

    /// The rule of the instruction at an address (svma). `None` where the table does not reach.
    #[must_use]
    pub fn rule(&self, svma: u64) -> Option<Rule> {
        self.rule_from(self.rule_of_instruction(svma)?)
    }

    /// What a rule of 16 bytes says.
    pub(crate) fn rule_from(&self, short: Short) -> Option<Rule> {
        Some(match short.kind {
            Kind::None => Rule::NONE,
            Kind::Unknown => Rule::UNKNOWN,
            Kind::Root => Rule::ROOT,
            Kind::Planted => Rule::PLANTED,
            Kind::Long => self.long(short.number)?.whole()?,
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
