//! Functions, inlined calls and source lines from DWARF.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use addr2line::{Context, LookupContinuation, LookupResult};
use gimli::{
    AbbreviationsCacheStrategy, AttributeValue, DebugInfoOffset, DwarfPackage, UnitOffset,
};
use object::{Object, ObjectSection};

use crate::image::{Image, Reader};
use crate::module::{Elf, Module};

/// References from one entry to the entry that declares it are followed this far: an out-of-line copy refers to its abstract
/// form, which may refer to the declaration in its class, in another unit. A damaged file can go in circles.
const HOPS: usize = 8;

/// The header of a damaged compressed section can claim any size, and the memory is reserved before the contents are looked
/// at. `deflate` cannot shrink anything to less than a 1032nd; no debug section comes near that.
const LARGEST_RATIO: u64 = 1032;

/// What is decompressed whatever the ratio.
const SMALL: u64 = 1 << 20;

/// One activation of a function, innermost first in a list.
#[derive(Debug)]
pub(crate) struct Frame {
    /// The linker name if there is one, else the plain name.
    pub(crate) name: Option<String>,
    pub(crate) file: Option<String>,
    pub(crate) line: u32,
    pub(crate) column: u32,
    /// Where the function is declared.
    pub(crate) start_line: u32,
}

/// The debug information of one image.
pub(crate) struct Dwarf {
    context: Context<Reader>,
    sections: Arc<gimli::Dwarf<Reader>>,
    split: Split,
    /// Headers of all units, by offset; read when a reference between units is first followed.
    units: Option<Vec<gimli::UnitHeader<Reader>>>,
    /// Headers of all units of the supplementary file.
    supplementary_units: Option<Vec<gimli::UnitHeader<Reader>>>,
    /// Lines of declarations in other units, each of which costs a table of abbreviations to look up.
    declared: HashMap<Declaration, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Declaration {
    Main(usize),
    Supplementary(usize),
}

impl std::fmt::Debug for Dwarf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dwarf").finish_non_exhaustive()
    }
}

impl Dwarf {
    /// Reads the index of `source`. `program` is the image that runs: files of split units are searched beside it.
    pub(crate) fn new(
        source: &Module,
        supplementary: Option<&Module>,
        program: &Module,
    ) -> Option<Self> {
        let mut sections = load(source, |id| Some(id.name()))?;
        if let Some(module) = supplementary
            && let Some(supplementary) = load(module, |id| Some(id.name()))
        {
            sections.set_sup(supplementary);
        }
        sections.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
        let sections = Arc::new(sections);
        Some(Self {
            context: Context::from_arc_dwarf(Arc::clone(&sections)).ok()?,
            sections,
            split: Split::new(source, program),
            units: None,
            supplementary_units: None,
            declared: HashMap::new(),
        })
    }

    /// The functions active at `svma`, innermost first; empty if no unit covers it or its information is damaged.
    pub(crate) fn frames(&mut self, svma: u64) -> Vec<Frame> {
        // The lookup asks for the range up to `svma + 1`.
        if svma == u64::MAX {
            return Vec::new();
        }
        let mut frames = Vec::new();
        let mut entries = Vec::new();
        {
            let Ok(mut found) = self.split.resolve(self.context.find_frames(svma)) else {
                return Vec::new();
            };
            loop {
                match found.next() {
                    Ok(Some(frame)) => {
                        let location = frame.location;
                        entries.push(frame.dw_die_offset);
                        frames.push(Frame {
                            name: frame
                                .function
                                .and_then(|function| Some(function.raw_name().ok()?.into_owned()))
                                .filter(|name| !name.is_empty()),
                            file: location
                                .as_ref()
                                .and_then(|location| location.file)
                                .map(str::to_owned),
                            line: location.as_ref().and_then(|l| l.line).unwrap_or(0),
                            column: location.as_ref().and_then(|l| l.column).unwrap_or(0),
                            start_line: 0,
                        });
                    }
                    Ok(None) => break,
                    // Without its callers an inlined function would look like the one that was called.
                    Err(_) => return Vec::new(),
                }
            }
        }
        if entries.iter().any(Option::is_some)
            && let Some(unit) = self.split.resolve(self.context.find_dwarf_and_unit(svma))
        {
            let mut declarations = Declarations {
                main: &self.sections,
                units: &mut self.units,
                supplementary_units: &mut self.supplementary_units,
                declared: &mut self.declared,
            };
            for (frame, entry) in frames.iter_mut().zip(entries) {
                if let Some(entry) = entry {
                    frame.start_line = declarations.line(unit, entry).unwrap_or(0);
                }
            }
        }
        frames
    }
}

/// Finds the lines on which functions are declared.
struct Declarations<'a> {
    main: &'a gimli::Dwarf<Reader>,
    units: &'a mut Option<Vec<gimli::UnitHeader<Reader>>>,
    supplementary_units: &'a mut Option<Vec<gimli::UnitHeader<Reader>>>,
    declared: &'a mut HashMap<Declaration, u32>,
}

impl Declarations<'_> {
    fn line(&mut self, unit: gimli::UnitRef<'_, Reader>, entry: UnitOffset) -> Option<u32> {
        let abbreviations = &unit.unit.abbreviations;
        match line_in_unit(&unit.unit.header, abbreviations, entry)? {
            Ok(line) => Some(line),
            Err(declaration) => self.elsewhere(declaration),
        }
    }

    fn elsewhere(&mut self, first: Declaration) -> Option<u32> {
        if let Some(&line) = self.declared.get(&first) {
            return Some(line);
        }
        let mut at = first;
        let mut found = None;
        for _ in 0..HOPS {
            let (sections, units, offset) = match at {
                Declaration::Main(offset) => (self.main, &mut *self.units, offset),
                Declaration::Supplementary(offset) => {
                    (self.main.sup()?, &mut *self.supplementary_units, offset)
                }
            };
            let units = units.get_or_insert_with(|| unit_headers(sections));
            let offset = DebugInfoOffset(offset);
            let after = units.partition_point(|unit| unit.debug_info_offset() <= Some(offset));
            let Some(unit) = units[..after].last() else {
                break;
            };
            let Some(entry) = offset.to_unit_offset(unit) else {
                break;
            };
            let Ok(abbreviations) = sections.abbreviations(unit) else {
                break;
            };
            match (at, line_in_unit(unit, &abbreviations, entry)) {
                (_, Some(Ok(line))) => {
                    found = Some(line);
                    break;
                }
                // What a supplementary file calls its main file is itself.
                (Declaration::Supplementary(_), Some(Err(Declaration::Main(offset)))) => {
                    at = Declaration::Supplementary(offset);
                }
                (_, Some(Err(next))) => at = next,
                (_, None) => break,
            }
        }
        self.declared.insert(first, found.unwrap_or(0));
        found
    }
}

/// The line in the entry or in those it refers to within its unit, or the reference that leaves the unit.
fn line_in_unit(
    unit: &gimli::UnitHeader<Reader>,
    abbreviations: &gimli::Abbreviations,
    mut offset: UnitOffset,
) -> Option<Result<u32, Declaration>> {
    for _ in 0..HOPS {
        let entry = unit.entry(abbreviations, offset).ok()?;
        if let Some(line) = entry
            .attr(gimli::DW_AT_decl_line)
            .and_then(|attribute| attribute.udata_value())
        {
            return Some(Ok(u32::try_from(line).unwrap_or(0)));
        }
        let next = entry
            .attr_value(gimli::DW_AT_abstract_origin)
            .or_else(|| entry.attr_value(gimli::DW_AT_specification))?;
        match next {
            AttributeValue::UnitRef(next) => offset = next,
            AttributeValue::DebugInfoRef(next) => return Some(Err(Declaration::Main(next.0))),
            AttributeValue::DebugInfoRefSup(next) => {
                return Some(Err(Declaration::Supplementary(next.0)));
            }
            _ => return None,
        }
    }
    None
}

fn unit_headers(sections: &gimli::Dwarf<Reader>) -> Vec<gimli::UnitHeader<Reader>> {
    let mut headers = Vec::new();
    let mut units = sections.units();
    while let Ok(Some(header)) = units.next() {
        headers.push(header);
    }
    headers
}

/// Units whose entries are in other files: `.dwo` files, or one `.dwp` package of them.
struct Split {
    package: Option<DwarfPackage<Reader>>,
    /// Where a `.dwo` file may have been moved to, together with the program.
    directory: PathBuf,
}

impl Split {
    fn new(source: &Module, program: &Module) -> Self {
        let package = [program, source].into_iter().find_map(|module| {
            let mut path = module.path().as_os_str().to_owned();
            path.push(".dwp");
            let file = Module::open(Path::new(&path)).ok()?;
            let elf = file.elf()?;
            let section = |id: gimli::SectionId| -> Result<Reader, gimli::Error> {
                Ok(section(file.image(), &elf, id.dwo_name()))
            };
            DwarfPackage::load(section, file.image().reader(0..0)).ok()
        });
        let directory = program.path().parent().map(Path::to_path_buf);
        Self {
            package,
            directory: directory.unwrap_or_default(),
        }
    }

    /// Runs a lookup to its end, loading the split units that it asks for.
    fn resolve<L: LookupContinuation<Buf = Reader>>(
        &self,
        mut lookup: LookupResult<L>,
    ) -> L::Output {
        loop {
            match lookup {
                LookupResult::Output(output) => return output,
                LookupResult::Load { load, continuation } => {
                    lookup = continuation.resume(self.load(&load).map(Arc::new));
                }
            }
        }
    }

    fn load(&self, wanted: &addr2line::SplitDwarfLoad<Reader>) -> Option<gimli::Dwarf<Reader>> {
        if let Some(package) = &self.package
            && let Ok(Some(unit)) = package.find_cu(wanted.dwo_id, &wanted.parent)
        {
            return Some(unit);
        }
        let name = path(wanted.path.as_ref()?);
        let directory = wanted.comp_dir.as_ref().map(path).unwrap_or_default();
        let mut candidates = vec![directory.join(&name)];
        candidates.extend(name.file_name().map(|base| self.directory.join(base)));
        candidates.iter().find_map(|candidate| {
            let file = Module::open(candidate).ok()?;
            let mut sections = load(&file, |id| id.dwo_name())?;
            sections.make_dwo(&wanted.parent);
            let header = sections.units().next().ok()??;
            let unit = sections.unit(header).ok()?;
            (unit.dwo_id == Some(wanted.dwo_id)).then_some(sections)
        })
    }
}

fn path(text: &Reader) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(text.bytes()))
}

fn load(
    module: &Module,
    name: impl Fn(gimli::SectionId) -> Option<&'static str>,
) -> Option<gimli::Dwarf<Reader>> {
    let elf = module.elf()?;
    gimli::Dwarf::load(|id| Ok::<_, gimli::Error>(section(module.image(), &elf, name(id)))).ok()
}

/// The contents of a section, decompressed if need be; empty if there is none or it is damaged.
fn section(image: &Image, elf: &Elf<'_>, name: Option<&str>) -> Reader {
    let empty = || image.reader(0..0);
    let Some(section) = name.and_then(|name| elf.section_by_name(name)) else {
        return empty();
    };
    let Ok(range) = section.compressed_file_range() else {
        return empty();
    };
    if range.format == object::CompressionFormat::None {
        let start = usize::try_from(range.offset).ok();
        let end = range.offset.checked_add(range.compressed_size);
        return match (start, end.and_then(|end| usize::try_from(end).ok())) {
            (Some(start), Some(end)) => image.reader(start..end),
            _ => empty(),
        };
    }
    let largest = range.compressed_size.saturating_mul(LARGEST_RATIO);
    if range.uncompressed_size > largest.max(SMALL) {
        return empty();
    }
    match section.uncompressed_data() {
        Ok(bytes) => {
            let length = bytes.len();
            Image::owned(bytes.into_owned()).reader(0..length)
        }
        Err(_) => empty(),
    }
}
