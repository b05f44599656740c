//! Bytes that are read from front to back.

/// What is left of a section. Every read is `None` at its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    /// Offset in the section of the next byte.
    at: u64,
}

impl<'a> Cursor<'a> {
    /// From an offset to the end.
    pub(super) fn new(section: &'a [u8], at: u64) -> Option<Self> {
        let rest = section.get(usize::try_from(at).ok()?..)?;
        Some(Self { rest, at })
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes as a cursor of their own; this one goes on behind them.
    pub(super) fn take(&mut self, len: u64) -> Option<Self> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(len).ok()?)?;
        let at = self.at;
        self.rest = rest;
        self.at = at.wrapping_add(len);
        Some(Self { rest: taken, at })
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        self.at = self.at.wrapping_add(N as u64);
        Some(*taken)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// An unsigned number in LEB128.
    #[inline]
    pub(super) fn unsigned(&mut self) -> Option<u64> {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.u8()?;
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            shift += 7;
            if byte < 0x80 {
                return Some(value);
            }
        }
    }

    /// A signed number in LEB128.
    #[inline]
    pub(super) fn signed(&mut self) -> Option<i64> {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.u8()?;
            if shift < 64 {
                value |= i64::from(byte & 0x7f) << shift;
            }
            shift += 7;
            if byte < 0x80 {
                let negative = shift < 64 && byte & 0x40 != 0;
                return Some(if negative {
                    value | (-1 << shift)
                } else {
                    value
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_dwarf_writes_them() {
        // DWARF 5, tables 7.1 and 7.2.
        let read = |bytes: &[u8]| Cursor::new(bytes, 0).and_then(|mut at| at.unsigned());
        assert_eq!(read(&[0x7f]), Some(127));
        assert_eq!(read(&[0x80, 0x7f]), Some(16256));
        assert_eq!(read(&[0x80]), None);
        let read = |bytes: &[u8]| Cursor::new(bytes, 0).and_then(|mut at| at.signed());
        assert_eq!(read(&[0x7e]), Some(-2));
        assert_eq!(read(&[0xff, 0]), Some(127));
        assert_eq!(read(&[0x80, 0x7f]), Some(-128));
    }
}
