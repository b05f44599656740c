//! What is mapped where in a process, and what its functions are called.

use crate::tracee::Tracee;
use object::{Object, ObjectSymbol};
use selvedge_symbol::{Module, Options, Symbolizer};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// A mapping of code.
#[derive(Clone, Debug)]
struct Mapping {
    range: Range<u64>,
    offset: u64,
    path: String,
}

/// The code of a process.
#[derive(Debug)]
pub struct Modules {
    mappings: Vec<Mapping>,
    known: HashMap<String, Option<Module>>,
    symbolizer: Symbolizer,
}

impl Default for Modules {
    fn default() -> Self {
        Self {
            mappings: Vec::new(),
            known: HashMap::new(),
            symbolizer: Symbolizer::new(Options::default()),
        }
    }
}

impl Modules {
    /// Looks at the mappings of a process again.
    pub fn refresh(&mut self, tracee: Tracee) {
        let text = std::fs::read_to_string(format!("/proc/{}/maps", tracee.0)).unwrap_or_default();
        // Of one that has just ended, what was known is still the best answer.
        let mappings: Vec<Mapping> = text.lines().filter_map(parse).collect();
        if !mappings.is_empty() {
            self.mappings = mappings;
        }
    }

    fn at(&self, address: u64) -> Option<&Mapping> {
        let at = |mapping: &&Mapping| mapping.range.contains(&address);
        self.mappings.iter().find(at)
    }

    fn module(&mut self, tracee: Tracee, mapping: &Mapping) -> Option<Module> {
        let path = &mapping.path;
        if let Some(known) = self.known.get(path) {
            return known.clone();
        }
        let opened = if path == "[vdso]" {
            let mut image = vec![0; (mapping.range.end - mapping.range.start) as usize];
            let image = tracee.read(mapping.range.start, &mut image).to_vec();
            Module::from_bytes(image, path).ok()
        } else {
            Module::open(Path::new(path)).ok()
        };
        self.known.insert(path.clone(), opened.clone());
        opened
    }

    /// Whether an address is in the code of a file.
    #[must_use]
    pub fn is_in(&self, address: u64, file: &Path) -> bool {
        self.at(address)
            .is_some_and(|mapping| Path::new(&mapping.path) == file)
    }

    /// An address as module and offset, the same in every run.
    #[must_use]
    pub fn place(&self, address: u64) -> String {
        match self.at(address) {
            Some(mapping) => {
                let name = mapping.path.rsplit('/').next().unwrap_or_default();
                let offset = address - mapping.range.start + mapping.offset;
                format!("{name}+{offset:#x}")
            }
            None => format!("{address:#x}"),
        }
    }

    /// The function of an instruction.
    pub fn function(&mut self, tracee: Tracee, address: u64) -> String {
        let Some(mapping) = self.at(address).cloned() else {
            return "[unknown]".into();
        };
        let name = self.module(tracee, &mapping).and_then(|module| {
            let svma = module.svma(address - mapping.range.start + mapping.offset)?;
            let symbols = self.symbolizer.symbolize(&module, &[svma]).pop()?;
            symbols.into_iter().next_back().map(|symbol| symbol.name)
        });
        let file = mapping.path.rsplit('/').next().unwrap_or_default();
        match name {
            Some(name) if !name.is_empty() => format!("{name} ({file})"),
            _ => format!("({file})"),
        }
    }

    /// Where the functions with one of these names are now.
    pub fn ranges(&mut self, tracee: Tracee, names: &[String]) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        for mapping in self.mappings.clone() {
            let Some(module) = self.module(tracee, &mapping) else {
                continue;
            };
            let Ok(file) = object::File::parse(module.bytes()) else {
                continue;
            };
            let Some(svma) = module.mapping_svma(mapping.offset) else {
                continue;
            };
            let bias = mapping.range.start.wrapping_sub(svma);
            let symbols = file.symbols().chain(file.dynamic_symbols());
            ranges.extend(symbols.filter_map(|symbol| {
                let name = symbol.name().ok()?;
                // Versions are part of some names: `name@@VERSION`.
                let name = name.split('@').next().unwrap_or(name);
                let start = symbol.address().wrapping_add(bias);
                let wanted = symbol.address() != 0 && names.iter().any(|wanted| wanted == name);
                (wanted && mapping.range.contains(&start))
                    .then(|| start..start + symbol.size().max(1))
            }));
        }
        ranges.sort_by_key(|range| (range.start, range.end));
        ranges.dedup();
        ranges
    }
}

fn parse(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let executable = fields.next()?.contains('x');
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let path = fields.nth(2).unwrap_or("[anon]").to_owned();
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let range = hex(start)?..hex(end)?;
    (executable && path != "[vsyscall]").then_some(Mapping {
        range,
        offset,
        path,
    })
}
