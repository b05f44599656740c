//! Addresses in, symbols out.

use std::path::PathBuf;

use crate::debugfile;
use crate::demangle::{demangle, is_mangled};
use crate::dwarf::{Dwarf, Frame};
use crate::module::{Identity, Module};
use crate::table::{Found, Table};

/// Where to look for names, and how many to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Roots of the trees of separate debug files. Default: `/usr/lib/debug`.
    pub debug_dirs: Vec<PathBuf>,
    /// Whether calls that the compiler inlined get symbols of their own. Default: true. If false, an address has at most one
    /// symbol, of the function that was really called, at the line of its own source that led to the address.
    pub inlines: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            debug_dirs: vec![PathBuf::from("/usr/lib/debug")],
            inlines: true,
        }
    }
}

/// One function that is active at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbol {
    /// The name as in the source, demangled: `space::foo(int)`, `core::fmt::Formatter::pad`, `memcpy@plt`. Parts and copies
    /// that the compiler made of one function (`foo.cold`, `foo.constprop.0`) all have the function's name here. `??` for an
    /// inlined function whose name is not recorded.
    pub name: String,
    /// The name as the linker knows it; the plain name where no other is recorded.
    pub system_name: String,
    /// The source file, as the compiler recorded it: absolute, or relative where the recorded working directory is (as in
    /// the debug files of some distributions).
    pub file: Option<String>,
    /// The source line, counted from 1; 0 if unknown. For all but the innermost function, the line of the inlined call.
    pub line: u32,
    /// The column, counted from 1; 0 if unknown.
    pub column: u32,
    /// The line on which the function is declared, counted from 1; 0 if unknown.
    pub start_line: u32,
    /// True if the function was inlined into the next one of the list.
    pub inlined: bool,
}

/// Finds names for addresses, and keeps what it has read of each module for the next batch.
///
/// What is kept for a module is dropped at the first call after the last clone of that [`Module`] is gone.
#[derive(Debug)]
pub struct Symbolizer {
    options: Options,
    known: Vec<Known>,
}

/// What was read of one module.
#[derive(Debug)]
struct Known {
    module: Identity,
    table: Table,
    dwarf: Option<Dwarf>,
}

impl Symbolizer {
    /// A symbolizer that has read nothing yet.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            known: Vec::new(),
        }
    }

    /// The functions active at each of `svmas` in `module`, innermost first, in the order of `svmas`.
    ///
    /// An address is an image's own virtual address, see [`Module::svma`]. For a caller's frame pass the return address
    /// minus one: the return address itself may belong to the next line or function. An empty list means that nothing is
    /// known about the address.
    ///
    /// All addresses of a module in one call are cheaper than one call for each. The first call for a module reads its
    /// symbol tables and the index of its debug information; more of the latter is read only where an address needs it.
    pub fn symbolize(&mut self, module: &Module, svmas: &[u64]) -> Vec<Vec<Symbol>> {
        let mut results = vec![Vec::new(); svmas.len()];
        if svmas.is_empty() {
            return results;
        }
        let inlines = self.options.inlines;
        let known = self.known(module);

        // In order of address, neighbours share a unit; and equal ones are looked up once.
        let mut order: Vec<usize> = (0..svmas.len()).collect();
        order.sort_unstable_by_key(|&index| svmas[index]);
        let mut previous: Option<usize> = None;
        for index in order {
            results[index] = match previous {
                Some(previous) if svmas[previous] == svmas[index] => results[previous].clone(),
                _ => known.symbols(svmas[index], inlines),
            };
            previous = Some(index);
        }
        results
    }

    fn known(&mut self, module: &Module) -> &mut Known {
        self.known.retain(|known| known.module.is_alive());
        let at = self.known.iter().position(|known| known.module.is(module));
        let at = at.unwrap_or_else(|| {
            self.known.push(Known::read(module, &self.options));
            self.known.len() - 1
        });
        &mut self.known[at]
    }
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl Known {
    fn read(module: &Module, options: &Options) -> Self {
        let separate = if debugfile::has_debug_info(module) {
            None
        } else {
            debugfile::separate(module, &options.debug_dirs)
        };
        let source = separate.as_ref().unwrap_or(module);
        let supplementary = debugfile::supplementary(source, &options.debug_dirs);
        let dwarf = debugfile::has_debug_info(source)
            .then(|| Dwarf::new(source, supplementary.as_ref(), module))
            .flatten();
        let mut tables = vec![module];
        tables.extend(separate.as_ref());
        Self {
            module: module.identity(),
            table: Table::new(&tables),
            dwarf,
        }
    }

    fn symbols(&mut self, svma: u64, inlines: bool) -> Vec<Symbol> {
        let frames = self
            .dwarf
            .as_mut()
            .map(|dwarf| dwarf.frames(svma))
            .unwrap_or_default();
        let found = self.table.find(svma);
        let Some(outermost) = frames.len().checked_sub(1) else {
            return found
                .map(|found| plain(&found.name()))
                .into_iter()
                .collect();
        };
        let skipped = if inlines { 0 } else { outermost };
        frames
            .into_iter()
            .enumerate()
            .skip(skipped)
            .map(|(index, frame)| {
                if index < outermost {
                    inlined(frame)
                } else {
                    called(frame, found)
                }
            })
            .collect()
    }
}

/// A symbol without a place in the source.
fn plain(system_name: &str) -> Symbol {
    Symbol {
        name: demangle(system_name),
        system_name: system_name.to_owned(),
        ..Symbol::default()
    }
}

fn located(symbol: Symbol, frame: Frame) -> Symbol {
    Symbol {
        file: frame.file,
        line: frame.line,
        column: frame.column,
        start_line: frame.start_line,
        ..symbol
    }
}

fn inlined(frame: Frame) -> Symbol {
    let symbol = plain(frame.name.as_deref().unwrap_or("??"));
    Symbol {
        inlined: true,
        ..located(symbol, frame)
    }
}

/// The function that was really called: the only one that the symbol table knows too.
fn called(frame: Frame, found: Option<Found<'_>>) -> Symbol {
    let symbol = match (&frame.name, found) {
        (Some(name), None) => plain(name),
        (Some(name), Some(found)) if !found.is_sized() || fits(name, found) => plain(name),
        (_, Some(found)) => plain(&found.name()),
        (None, None) => plain("??"),
    };
    located(symbol, frame)
}

/// True if the debug information's name is as good as that of the symbol table.
///
/// Functions with equal code are merged and keep all their names: the one that fits the source lines is right. But a
/// library's internal name (`__GI___libc_write`) is worse than the one it is called by.
fn fits(name: &str, found: Found<'_>) -> bool {
    (is_mangled(name) || !name.starts_with('_')) && found.has_alias(name)
}
