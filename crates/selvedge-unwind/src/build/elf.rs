//! The parts of an ELF image that unwind tables are made from.

use super::frames::{Form, Section};
use super::{Error, entries, names};
use object::LittleEndian;
use object::elf::{FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use std::ops::Range;

/// A section of code.
#[derive(Clone, Debug)]
pub(super) struct Code<'a> {
    pub(super) name: String,
    pub(super) svma: u64,
    pub(super) bytes: &'a [u8],
}

impl Code<'_> {
    pub(super) fn range(&self) -> Range<u64> {
        self.svma..self.svma.saturating_add(self.bytes.len() as u64)
    }
}

/// An ELF image.
#[derive(Debug)]
pub(super) struct Image<'a> {
    pub(super) eh_frame: Option<Section<'a>>,
    pub(super) debug_frame: Option<Section<'a>>,
    pub(super) code: Vec<Code<'a>>,
    /// Executable memory.
    pub(super) executable: Vec<Range<u64>>,
    pub(super) entry: u64,
    /// Functions that something names: symbols, constructors and destructors, `.init`, `.fini`.
    /// Address and length, 0 if that is not known.
    pub(super) functions: Vec<(u64, u64)>,
    /// Functions that load another stack pointer, and say nothing of it.
    pub(super) swapcontext: Vec<u64>,
    /// Functions that name the outermost frame of what they make.
    pub(super) makecontext: Vec<u64>,
}

impl<'a> Image<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, Error> {
        let header = FileHeader64::<LittleEndian>::parse(data).map_err(Error::not_elf)?;
        let endian = LittleEndian;
        let segments = header
            .program_headers(endian, data)
            .map_err(Error::not_elf)?;
        let executable = segments
            .iter()
            .filter(|s| s.p_type(endian) == PT_LOAD && s.p_flags(endian).0 & PF_X.0 != 0)
            .map(|s| s.p_vaddr(endian)..s.p_vaddr(endian).saturating_add(s.p_memsz(endian)))
            .collect();
        let mut image = Self {
            eh_frame: None,
            debug_frame: None,
            code: Vec::new(),
            executable,
            entry: header.e_entry(endian),
            functions: entries::of(header, segments, data),
            swapcontext: names::of(header, data, "swapcontext"),
            makecontext: names::of(header, data, "makecontext"),
        };
        if let Ok(sections) = header.sections(endian, data) {
            for section in sections.iter() {
                let name = sections.section_name(endian, section).unwrap_or_default();
                let Ok(bytes) = section.data(endian, data) else {
                    continue;
                };
                let svma = section.sh_addr(endian);
                let flags = section.sh_flags(endian).0;
                match name {
                    b".eh_frame" => {
                        image.eh_frame = Some(Section {
                            svma,
                            bytes,
                            text: 0,
                            form: Form::Eh,
                        });
                    }
                    b".debug_frame" if flags & object::elf::SHF_COMPRESSED.0 == 0 => {
                        image.debug_frame = Some(Section {
                            svma,
                            bytes,
                            text: 0,
                            form: Form::Debug,
                        });
                    }
                    _ if flags & object::elf::SHF_EXECINSTR.0 != 0 && svma != 0 => {
                        let name = String::from_utf8_lossy(name).into_owned();
                        image.code.push(Code { name, svma, bytes });
                    }
                    _ => {}
                }
            }
        }
        if image
            .eh_frame
            .is_none_or(|section| section.bytes.is_empty())
        {
            image.eh_frame = eh_frame_by_header(data, segments);
        }
        if image.code.is_empty() {
            image.code.extend(code_by_segments(data, segments));
        }
        let text = image
            .code
            .iter()
            .find(|code| code.name == ".text")
            .map_or(0, |code| code.svma);
        for section in [&mut image.eh_frame, &mut image.debug_frame]
            .into_iter()
            .flatten()
        {
            section.text = text;
        }
        Ok(image)
    }
}

/// Finds `.eh_frame` by its header's segment, where section headers are stripped: from its start to the end of its
/// segment, of which a terminator ends it.
fn eh_frame_by_header<'a>(
    data: &'a [u8],
    segments: &'a [object::elf::ProgramHeader64<LittleEndian>],
) -> Option<Section<'a>> {
    let endian = LittleEndian;
    let header = segments
        .iter()
        .find(|segment| segment.p_type(endian) == PT_GNU_EH_FRAME)?;
    let bytes = header.data(endian, data).ok()?;
    let bases = gimli::BaseAddresses::default().set_eh_frame_hdr(header.p_vaddr(endian));
    let parsed = gimli::EhFrameHdr::new(bytes, gimli::LittleEndian)
        .parse(&bases, 8)
        .ok()?;
    let gimli::Pointer::Direct(svma) = parsed.eh_frame_ptr() else {
        return None;
    };
    segments
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_LOAD)
        .find_map(|segment| {
            let offset = usize::try_from(svma.checked_sub(segment.p_vaddr(endian))?).ok()?;
            let bytes = segment.data(endian, data).ok()?.get(offset..)?;
            Some(Section {
                svma,
                bytes,
                text: 0,
                form: Form::EhAndMore,
            })
        })
}

/// Code, where section headers are stripped.
fn code_by_segments<'a>(
    data: &'a [u8],
    segments: &'a [object::elf::ProgramHeader64<LittleEndian>],
) -> impl Iterator<Item = Code<'a>> {
    let endian = LittleEndian;
    segments
        .iter()
        .filter(move |segment| {
            segment.p_type(endian) == PT_LOAD && segment.p_flags(endian).0 & PF_X.0 != 0
        })
        .filter_map(move |segment| {
            let bytes = segment.data(endian, data).ok()?;
            Some(Code {
                name: String::new(),
                svma: segment.p_vaddr(endian),
                bytes,
            })
        })
}
