//! The module map of a process: which code is where, and where its table is. Immutable plain bytes, published whole.
//!
//! | bytes | |
//! |---|---|
//! | 0 | number of entries (u64) |
//! | 8 | serial number: no two maps that a thread meets have the same (u64) |
//! | 16 | entries by address, [`ENTRY_BYTES`] each: start, end, bias (address minus svma), offset and length of the table in the arena (u64 each); length 0: no table |

use crate::table::Table;

/// Bytes of an entry.
pub(crate) const ENTRY_BYTES: usize = 40;

/// A module map, looked at in place.
#[derive(Clone, Copy, Debug)]
pub struct ModuleMap<'a> {
    entries: &'a [u8],
    serial: u64,
    arena: &'a [u8],
}

/// A module, as a walk meets it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Module<'a> {
    start: u64,
    end: u64,
    bias: u64,
    /// `None`: there is no unwind information.
    pub(crate) table: Option<Table<'a>>,
}

impl<'a> Module<'a> {
    /// No module: it holds no address.
    pub(crate) const NOWHERE: Self = Self {
        start: 0,
        end: 0,
        bias: 0,
        table: None,
    };

    #[inline]
    pub(crate) fn contains(&self, address: u64) -> bool {
        address >= self.start && address < self.end
    }

    /// The start of the stretch of code without unwind information that an address of the module lies in; `None` where it
    /// is too far away to be looked for.
    pub(crate) fn stretch_start(&self, address: u64) -> Option<u64> {
        let Some(table) = &self.table else {
            return Some(self.start);
        };
        let start = table.start_of_row(self.svma(address))?;
        Some(start.wrapping_add(self.bias).max(self.start))
    }

    /// An address as the module counts.
    #[inline]
    pub(crate) fn svma(&self, address: u64) -> u64 {
        address.wrapping_sub(self.bias)
    }
}

impl<'a> ModuleMap<'a> {
    /// Looks at bytes as a module map whose tables are in `arena`. `None` where they are none.
    #[must_use]
    pub fn view(bytes: &'a [u8], arena: &'a [u8]) -> Option<Self> {
        let count = usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?;
        let serial = u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
        let entries = bytes.get(16..)?.get(..count.checked_mul(ENTRY_BYTES)?)?;
        Some(Self {
            entries,
            serial,
            arena,
        })
    }

    /// The serial number that it was made with.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    fn entry(&self, at: usize) -> Option<[u64; 5]> {
        let bytes: &[u8; ENTRY_BYTES] = self
            .entries
            .get(at.checked_mul(ENTRY_BYTES)?..)?
            .first_chunk()?;
        let mut words = [0; 5];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(*chunk.first_chunk()?);
        }
        Some(words)
    }

    /// Whether an address is in known code.
    #[inline(never)]
    pub(crate) fn holds(&self, address: u64) -> bool {
        self.entry_at(address).is_some()
    }

    /// The entry of an address.
    fn entry_at(&self, address: u64) -> Option<[u64; 5]> {
        // The first entry that ends behind the address.
        let (mut low, mut high) = (0, self.entries.len() / ENTRY_BYTES);
        while low < high {
            let middle = low.midpoint(high);
            let [_, end, ..] = self.entry(middle)?;
            if end <= address {
                low = middle.wrapping_add(1);
            } else {
                high = middle;
            }
        }
        self.entry(low).filter(|[start, ..]| address >= *start)
    }

    /// The module at an address. `None` where no known code is.
    ///
    /// Not inlined: it is rarely called, and its callers' stack is scarce.
    #[inline(never)]
    pub(crate) fn find(&self, address: u64) -> Option<Module<'a>> {
        let [start, end, bias, offset, length] = self.entry_at(address)?;
        let bytes = || {
            let from = self.arena.get(usize::try_from(offset).ok()?..)?;
            from.get(..usize::try_from(length).ok()?)
        };
        let table = if length == 0 {
            None
        } else {
            bytes().and_then(Table::view)
        };
        Some(Module {
            start,
            end,
            bias,
            table,
        })
    }
}
