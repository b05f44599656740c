//! Symbol tables of an image, merged into one sorted list of address ranges.
//!
//! A large binary has a million symbols, so an entry holds ranges and offsets, and a name is read from the string table of
//! the mapped file when it is asked for.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;

use object::LittleEndian;
use object::elf;
use object::read::elf::{SectionHeader, Sym, SymbolTable};

use crate::image::Image;
use crate::module::{Elf, Module};
use crate::plt::{self, Target};

type ElfSymbols<'a> = SymbolTable<'a, elf::FileHeader64<LittleEndian>>;

/// Which function of an image covers an address.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Where names are read from; [`Entry::names`] is an index into it.
    names: Vec<Names>,
    /// By start address, and best first among those with the same one.
    entries: Vec<Entry>,
    /// Disjoint, by start address.
    segments: Vec<Segment>,
}

/// A string table inside an image.
#[derive(Debug)]
struct Names {
    image: Image,
    start: usize,
    end: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u64,
    /// Zero if the symbol has no size.
    size: u64,
    /// Offset in its string table.
    name: u32,
    names: u16,
    /// Where the section ends that holds a symbol without a size, as an index into the section ends.
    section: u16,
    bind: Bind,
    function: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Bind {
    Local,
    /// Weak too: libraries export most of their documented names weakly.
    Exported,
}

/// From `start` to the start of the next segment.
#[derive(Clone, Copy, Debug)]
struct Segment {
    start: u64,
    entry: Option<u32>,
}

/// A symbol that covers an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    table: &'a Table,
    entry: &'a Entry,
}

impl Found<'_> {
    /// The linker name, without the version that the linker appends.
    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(self.table.name(self.entry)).into_owned()
    }

    /// True if the symbol states its size; false if its end is a guess.
    pub(crate) fn is_sized(&self) -> bool {
        self.entry.size != 0
    }

    /// True if a symbol of that linker name starts at the same address.
    pub(crate) fn has_alias(&self, name: &str) -> bool {
        let entries = &self.table.entries;
        let first = entries.partition_point(|entry| entry.start < self.entry.start);
        entries[first..]
            .iter()
            .take_while(|entry| entry.start == self.entry.start)
            .any(|entry| self.table.name(entry) == name.as_bytes())
    }
}

impl Table {
    /// Reads the symbols of `modules`, which are one image and the files split from it, and the stubs of the first.
    pub(crate) fn new(modules: &[&Module]) -> Self {
        let mut builder = Builder::default();
        let mut full = false;
        for module in modules {
            let Some(elf) = module.elf() else { continue };
            // `.dynsym` is a subset of `.symtab`, so it is read only where there is nothing better.
            if !full && !elf.elf_symbol_table().is_empty() {
                full = true;
                builder.read(module, &elf, elf.elf_symbol_table());
            }
        }
        if let Some((module, elf)) = modules.first().and_then(|m| Some((m, m.elf()?))) {
            if !full {
                builder.read(module, &elf, elf.elf_dynamic_symbol_table());
            }
            builder.stubs(&elf);
        }
        builder.finish()
    }

    /// The symbol that covers `svma`.
    pub(crate) fn find(&self, svma: u64) -> Option<Found<'_>> {
        let after = self
            .segments
            .partition_point(|segment| segment.start <= svma);
        let entry = self.segments[..after].last()?.entry?;
        Some(Found {
            table: self,
            entry: self.entries.get(entry as usize)?,
        })
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        name_in(&self.names, entry)
    }
}

fn name_in<'a>(names: &'a [Names], entry: &Entry) -> &'a [u8] {
    let Some(names) = names.get(usize::from(entry.names)) else {
        return &[];
    };
    let start = names.start.saturating_add(entry.name as usize);
    let text = names.image.get(start..names.end).unwrap_or_default();
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    // `name@VERSION` and `name@@VERSION`, but not `name@plt`.
    match text.iter().position(|&byte| byte == b'@') {
        Some(at) if at > 0 && &text[at..] != b"@plt" => &text[..at],
        _ => text,
    }
}

#[derive(Debug, Default)]
struct Builder {
    names: Vec<Names>,
    entries: Vec<Entry>,
    /// Ends of the executable sections seen so far.
    ends: Vec<u64>,
}

impl Builder {
    fn read(&mut self, module: &Module, elf: &Elf<'_>, symbols: &ElfSymbols<'_>) {
        let endian = LittleEndian;
        let sections = elf.elf_section_table();
        let Some((start, end)) = sections
            .section(symbols.string_section())
            .ok()
            .and_then(|section| section.file_range(endian))
            .and_then(|(offset, size)| {
                let start = usize::try_from(offset).ok()?;
                let end = start.checked_add(usize::try_from(size).ok()?)?;
                (end <= module.bytes().len()).then_some((start, end))
            })
        else {
            return;
        };
        let Ok(names) = u16::try_from(self.names.len()) else {
            return;
        };
        self.names.push(Names {
            image: module.image().clone(),
            start,
            end,
        });

        // Index in `self.ends` of each executable section.
        let mut ends = Vec::new();
        for section in sections.iter() {
            let executable = section.sh_flags(endian).contains(elf::SHF_EXECINSTR);
            let index = u16::try_from(self.ends.len()).ok().filter(|_| executable);
            if index.is_some() {
                let end = section
                    .sh_addr(endian)
                    .saturating_add(section.sh_size(endian));
                self.ends.push(end);
            }
            ends.push(index);
        }

        for (index, symbol) in symbols.enumerate() {
            let function = match symbol.st_type() {
                elf::STT_FUNC | elf::STT_GNU_IFUNC => true,
                elf::STT_NOTYPE => false,
                _ => continue,
            };
            let Ok(Some(section)) = symbols.symbol_section(endian, symbol, index) else {
                continue;
            };
            let Some(&Some(section)) = ends.get(section.0) else {
                continue;
            };
            let name = symbol.st_name(endian);
            if name == 0 {
                continue;
            }
            self.entries.push(Entry {
                start: symbol.st_value(endian),
                size: symbol.st_size(endian),
                name,
                names,
                section,
                bind: if symbol.st_bind() == elf::STB_LOCAL {
                    Bind::Local
                } else {
                    Bind::Exported
                },
                function,
            });
        }
    }

    /// Adds `name@plt` for each stub. Comes after the symbols, which name the resolvers.
    fn stubs(&mut self, elf: &Elf<'_>) {
        let stubs = plt::stubs(elf);
        let Ok(names) = u16::try_from(self.names.len()) else {
            return;
        };
        let mut resolvers: HashMap<u64, Vec<u8>> = stubs
            .iter()
            .filter_map(|stub| match stub.target {
                Target::Resolver(address) => Some((address, Vec::new())),
                Target::Name(_) => None,
            })
            .collect();
        if !resolvers.is_empty() {
            self.sort();
            for entry in self.entries.iter().rev() {
                if let Some(name) = resolvers.get_mut(&entry.start) {
                    *name = name_in(&self.names, entry).to_vec();
                }
            }
        }
        let mut text = Vec::new();
        for stub in stubs {
            let Ok(name) = u32::try_from(text.len()) else {
                break;
            };
            match &stub.target {
                Target::Name(target) => text.extend(target),
                Target::Resolver(address) => match resolvers.get(address) {
                    Some(target) if !target.is_empty() => text.extend(target),
                    _ => text.extend(format!("*ABS*+{address:#x}").as_bytes()),
                },
            }
            text.extend(b"@plt\0");
            self.entries.push(Entry {
                start: stub.address,
                size: stub.size,
                name,
                names,
                section: 0,
                bind: Bind::Local,
                function: true,
            });
        }
        self.names.push(Names {
            end: text.len(),
            image: Image::owned(text),
            start: 0,
        });
    }

    /// Sorts by start address, and best first among those with the same one.
    fn sort(&mut self) {
        let names = &self.names;
        self.entries
            .sort_unstable_by(|a, b| a.start.cmp(&b.start).then_with(|| better(names, a, b)));
    }

    fn finish(mut self) -> Table {
        self.sort();
        self.entries.shrink_to_fit();
        let segments = segments(&self.entries, &self.ends);
        Table {
            names: self.names,
            entries: self.entries,
            segments,
        }
    }
}

/// `Less` if `a` is the better name for their common address.
///
/// A stated size, then a function, then an exported name, then fewer leading underscores, then the longer name. This is
/// the order of `perf`, except that a weak name counts as exported: `write` is a better name than `__write`. The last
/// comparison makes the choice independent of the order in the file.
fn better(names: &[Names], a: &Entry, b: &Entry) -> Ordering {
    let coarse = |entry: &Entry| Reverse((entry.size != 0, entry.function, entry.bind));
    coarse(a).cmp(&coarse(b)).then_with(|| {
        let (a_name, b_name) = (name_in(names, a), name_in(names, b));
        underscores(a_name)
            .cmp(&underscores(b_name))
            .then_with(|| b_name.len().cmp(&a_name.len()))
            .then_with(|| a_name.cmp(b_name))
            .then_with(|| b.size.cmp(&a.size))
    })
}

/// Leading underscores that a programmer wrote; those of a mangled name do not count.
fn underscores(name: &[u8]) -> usize {
    if name.starts_with(b"_Z") || name.starts_with(b"_R") {
        0
    } else {
        name.iter().take_while(|&&byte| byte == b'_').count()
    }
}

/// Cuts the address space so that each piece belongs to one symbol: the one that starts last among those that cover it.
///
/// A symbol without a size reaches to the next symbol or to the end of its section, but gives way inside one with a size:
/// there it is a label.
fn segments(entries: &[Entry], ends: &[u64]) -> Vec<Segment> {
    let mut sweep = Sweep::default();
    let mut index = 0;
    while index < entries.len() {
        let start = entries[index].start;
        let group = entries[index..]
            .iter()
            .take_while(|entry| entry.start == start)
            .count();
        // Aliases differ in size rarely; then the best name covers its own size, and the longest one the rest.
        let best = &entries[index];
        let longest = (index..index + group)
            .max_by_key(|&i| (entries[i].size, Reverse(i)))
            .unwrap_or(index);
        sweep.advance(start);
        if best.size != 0 {
            if entries[longest].size > best.size {
                sweep.push(start, start.saturating_add(entries[longest].size), longest);
            }
            sweep.push(start, start.saturating_add(best.size), index);
        } else if !sweep.inside_sized() {
            let end = ends
                .get(usize::from(best.section))
                .copied()
                .unwrap_or(start);
            sweep.label(start, end, index);
        }
        index += group;
    }
    sweep.finish()
}

#[derive(Debug, Default)]
struct Sweep {
    /// Symbols that cover the current position, by start; `(end, entry)`.
    open: Vec<(u64, u32)>,
    /// The symbol without a size that reaches to here; `(end, entry)`.
    label: Option<(u64, u32)>,
    segments: Vec<Segment>,
}

impl Sweep {
    fn emit(&mut self, start: u64, entry: Option<u32>) {
        match self.segments.last_mut() {
            Some(last) if last.start == start => last.entry = entry,
            Some(last) if last.entry == entry => {}
            _ => self.segments.push(Segment { start, entry }),
        }
    }

    /// Closes what ends at or before `position`.
    fn advance(&mut self, position: u64) {
        if let Some((end, _)) = self.label.take()
            && end <= position
        {
            self.emit(end, None);
        }
        while let Some(&(end, _)) = self.open.last() {
            if end > position {
                break;
            }
            self.open.pop();
            // Those below that ended before it cover nothing after it.
            while self.open.last().is_some_and(|&(below, _)| below <= end) {
                self.open.pop();
            }
            let below = self.open.last().map(|&(_, entry)| entry);
            self.emit(end, below);
        }
    }

    fn inside_sized(&self) -> bool {
        !self.open.is_empty()
    }

    fn push(&mut self, start: u64, end: u64, entry: usize) {
        if let Ok(entry) = u32::try_from(entry)
            && end > start
        {
            self.open.push((end, entry));
            self.emit(start, Some(entry));
        }
    }

    fn label(&mut self, start: u64, end: u64, entry: usize) {
        if let Ok(entry) = u32::try_from(entry)
            && end > start
        {
            self.label = Some((end, entry));
            self.emit(start, Some(entry));
        }
    }

    fn finish(mut self) -> Vec<Segment> {
        self.advance(u64::MAX);
        self.segments.shrink_to_fit();
        self.segments
    }
}
