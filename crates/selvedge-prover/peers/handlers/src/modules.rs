//! The code that is mapped in this process.

use object::{Object, ObjectSegment};
use std::ops::Range;

/// A mapping of code of a file, or of the vDSO.
pub(crate) struct Code {
    pub(crate) range: Range<u64>,
    /// What is added to the image's addresses.
    pub(crate) bias: u64,
    pub(crate) image: Vec<u8>,
}

/// All of it.
pub(crate) fn code() -> Vec<Code> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter_map(mapped).collect()
}

fn mapped(line: &str) -> Option<Code> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let range = hex(start)?..hex(end)?;
    if !fields.next()?.contains('x') {
        return None;
    }
    let offset = hex(fields.next()?)?;
    let path = fields.nth(2)?;
    let image = if path == "[vdso]" {
        // SAFETY: the vDSO stays mapped.
        unsafe {
            std::slice::from_raw_parts(range.start as *const u8, (range.end - range.start) as usize)
        }
        .to_vec()
    } else {
        std::fs::read(path).ok()?
    };
    let file = object::File::parse(&*image).ok()?;
    let svma = file.segments().find_map(|segment| {
        let object::SegmentFlags::Elf { p_flags, .. } = segment.flags() else {
            return None;
        };
        let (at, len) = segment.file_range();
        let page = at & !4095;
        let executable = p_flags.0 & object::elf::PF_X.0 != 0;
        (executable && page <= offset && offset < at + len)
            .then(|| (segment.address() & !4095) + (offset - page))
    })?;
    Some(Code {
        bias: range.start - svma,
        range,
        image,
    })
}
