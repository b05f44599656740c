//! The entries of `.eh_frame` and `.debug_frame` (LSB Core, §10.6; DWARF 5, §6.4.1).
//!
//! Read here rather than with gimli, as its rows are too slow for the million of them in a compiler: a table is made
//! while a program waits. The tests compare each row with gimli's.

use super::cursor::Cursor;
use rustc_hash::FxHashMap;
use std::rc::Rc;

/// A section of entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section<'a> {
    pub(super) svma: u64,
    pub(super) bytes: &'a [u8],
    /// Address of `.text`, which some encodings count from.
    pub(super) text: u64,
    pub(super) form: Form,
}

/// How a section is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `.eh_frame`.
    Eh,
    /// `.eh_frame`, followed by something else: it ends at its terminator.
    EhAndMore,
    /// `.debug_frame`.
    Debug,
}

/// What the entries of many functions share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common<'a> {
    pub(super) code_factor: u64,
    pub(super) data_factor: i64,
    pub(super) return_register: u64,
    /// How addresses are written (`DW_EH_PE_*`).
    pub(super) encoding: u8,
    augmented: bool,
    pub(super) signal: bool,
    pub(super) instructions: Cursor<'a>,
}

/// The entry of one piece of code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) instructions: Cursor<'a>,
}

/// An entry's start: where its id stands, what it is, and what follows.
#[derive(Clone, Copy, Debug)]
struct Head<'a> {
    id_at: u64,
    id: u64,
    wide: bool,
    body: Cursor<'a>,
}

impl<'a> Section<'a> {
    /// Calls `visit` with every entry that can be read, until one cannot be delimited.
    ///
    /// `prepare` makes of each shared entry what `visit` gets with the entries that share it. Returns how many entries
    /// could not be read.
    pub(super) fn visit<T>(
        &self,
        prepare: impl Fn(&Common<'a>) -> T,
        mut visit: impl FnMut(&Common<'a>, &T, Entry<'a>),
    ) -> usize {
        let mut commons: FxHashMap<u64, Option<Rc<(Common<'a>, T)>>> = FxHashMap::default();
        let mut last: Option<(u64, Rc<(Common<'a>, T)>)> = None;
        let mut unreadable = 0;
        let Some(mut rest) = Cursor::new(self.bytes, 0) else {
            return unreadable;
        };
        while let Some(head) = self.next(&mut rest) {
            let Some(common_at) = self.common_of(&head) else {
                continue;
            };
            if last.as_ref().is_none_or(|(at, _)| *at != common_at) {
                let common = commons.entry(common_at).or_insert_with(|| {
                    self.common(common_at)
                        .map(|common| Rc::new((common, prepare(&common))))
                });
                let Some(common) = common else {
                    unreadable += 1;
                    continue;
                };
                last = Some((common_at, Rc::clone(common)));
            }
            if let Some((_, shared)) = &last
                && let Some(entry) = self.entry(&shared.0, head.body)
            {
                visit(&shared.0, &shared.1, entry);
            } else {
                unreadable += 1;
            }
        }
        // The last one could not be delimited, unless that is how the section ends.
        let ended = rest.is_empty() || self.form == Form::EhAndMore;
        unreadable + usize::from(!ended)
    }

    /// The next entry.
    fn next(&self, rest: &mut Cursor<'a>) -> Option<Head<'a>> {
        loop {
            let (len, wide) = match rest.u32()? {
                // Where linkers joined sections, terminators can be in the middle.
                0 if self.form == Form::EhAndMore => return None,
                0 => continue,
                0xffff_ffff => (rest.u64()?, true),
                len => (u64::from(len), false),
            };
            let mut body = rest.take(len)?;
            let id_at = body.at();
            let wide = wide && self.form == Form::Debug;
            let id = if wide {
                body.u64()
            } else {
                body.u32().map(u64::from)
            };
            if let Some(id) = id {
                return Some(Head {
                    id_at,
                    id,
                    wide,
                    body,
                });
            }
        }
    }

    /// Offset of the shared entry that an entry names; `None` if it is a shared one itself.
    fn common_of(&self, head: &Head<'_>) -> Option<u64> {
        match (self.form, head.id) {
            (Form::Debug, u64::MAX) if head.wide => None,
            (Form::Debug, 0xffff_ffff) if !head.wide => None,
            (Form::Debug, at) => Some(at),
            (_, 0) => None,
            (_, back) => head.id_at.checked_sub(back),
        }
    }

    fn common(&self, at: u64) -> Option<Common<'a>> {
        let head = self.next(&mut Cursor::new(self.bytes, at)?)?;
        if self.common_of(&head).is_some() {
            return None;
        }
        let mut body = head.body;
        let version = body.u8()?;
        let letters = body.rest().iter().position(|byte| *byte == 0)?;
        let letters = body.take(letters as u64)?.rest();
        body.u8()?;
        if version >= 4 && (body.u8()? != 8 || body.u8()? != 0) {
            return None;
        }
        let code_factor = body.unsigned()?;
        let data_factor = body.signed()?;
        let return_register = if version == 1 {
            u64::from(body.u8()?)
        } else {
            body.unsigned()?
        };
        let (mut encoding, mut augmented, mut signal) = (0, false, false);
        match letters.split_first() {
            None => {}
            Some((b'z', letters)) => {
                augmented = true;
                let len = body.unsigned()?;
                let mut data = body.take(len)?;
                for letter in letters {
                    match letter {
                        b'R' => encoding = data.u8()?,
                        b'L' => _ = data.u8()?,
                        b'P' => {
                            let encoding = data.u8()?;
                            // A personality may be found through memory; here it is only passed over.
                            value(&mut data, encoding & 0x0f)?;
                        }
                        b'S' => signal = true,
                        // Data is in the order of the letters: what is behind an unknown one cannot be read.
                        _ => break,
                    }
                }
            }
            Some(_) => return None,
        }
        let instructions = body;
        Some(Common {
            code_factor,
            data_factor,
            return_register,
            encoding,
            augmented,
            signal,
            instructions,
        })
    }

    fn entry(&self, common: &Common<'a>, mut body: Cursor<'a>) -> Option<Entry<'a>> {
        let start = self.address(&mut body, common.encoding)?;
        // The length has the same form, but counts from nothing.
        let len = value(&mut body, common.encoding & 0x0f)?;
        if common.augmented {
            let len = body.unsigned()?;
            body.take(len)?;
        }
        Some(Entry {
            start,
            end: start.checked_add(len)?,
            instructions: body,
        })
    }

    /// Reads an address. One that is to be looked up in memory cannot be known.
    pub(super) fn address(&self, at: &mut Cursor<'a>, encoding: u8) -> Option<u64> {
        let base = match encoding & 0xf0 {
            0x00 => 0,
            0x10 => self.svma.wrapping_add(at.at()),
            0x20 => self.text,
            _ => return None,
        };
        Some(base.wrapping_add(value(at, encoding & 0x0f)?))
    }
}

/// Reads a number in one of the forms of `DW_EH_PE_*`.
fn value(at: &mut Cursor<'_>, form: u8) -> Option<u64> {
    match form {
        0x00 | 0x04 | 0x0c => at.u64(),
        0x01 => at.unsigned(),
        0x02 => at.u16().map(u64::from),
        0x03 => at.u32().map(u64::from),
        0x09 => at.signed().map(i64::cast_unsigned),
        0x0a => at
            .u16()
            .map(|value| i64::from(value.cast_signed()).cast_unsigned()),
        0x0b => at
            .u32()
            .map(|value| i64::from(value.cast_signed()).cast_unsigned()),
        _ => None,
    }
}
