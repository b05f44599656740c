//! Names for addresses: which functions, inlined calls and source lines are at an address of an ELF image.
//!
//! ```
//! use selvedge_symbol::{Module, Options, Symbolizer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let module = Module::open(&std::env::current_exe()?)?;
//! let mut symbolizer = Symbolizer::new(Options::default());
//!
//! // Offset 0x1000 of the file, as a line of /proc/PID/maps gives it, in the image's own addresses.
//! if let Some(svma) = module.svma(0x1000) {
//!     for symbols in symbolizer.symbolize(&module, &[svma]) {
//!         for symbol in symbols {
//!             println!("{} {}:{}", symbol.name, symbol.file.as_deref().unwrap_or("?"), symbol.line);
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Sources
//!
//! 1. DWARF in the file, plain or compressed (zlib, zstd).
//! 2. DWARF in a separate file: found by build id, else by `.gnu_debuglink` with its checksum, below
//!    [`Options::debug_dirs`], beside the file, and in `.debug` beside it.
//! 3. With either, what `dwz` (`.gnu_debugaltlink`) or split DWARF (`.dwo`, `.dwp`) keep elsewhere.
//! 4. The symbol table (`.symtab`) of the file or of its separate debug file, else the dynamic one (`.dynsym`).
//! 5. Stubs of the procedure linkage table, as `name@plt`, from their code and relocations.
//!
//! DWARF says where a function's source is and what was inlined; the symbol table says what the called function is named.
//! Nothing is fetched over a network.
//!
//! # When not to use it
//!
//! - In a signal handler, or in a process that must not allocate: this crate allocates and reads files.
//! - For code without a file: JIT code has no symbols that a file could tell. (The vDSO has an image in memory, see
//!   [`Module::from_bytes`].)
//! - For other formats than 64-bit little-endian ELF.
//! - For untrusted files in a process that must not fail: every offset is checked, but nested inlined calls are read
//!   recursively, and a file made for it can exhaust the stack.
//!
//! # Contents
//!
//! [`Module`] is an image, [`Symbolizer`] finds the [`Symbol`]s of its addresses as [`Options`] say, [`Error`] tells why an
//! image could not be opened. There are no crate features.

mod debugfile;
mod demangle;
mod dwarf;
mod error;
mod image;
mod module;
mod plt;
mod symbolizer;
mod table;

pub use error::Error;
pub use module::Module;
pub use symbolizer::{Options, Symbol, Symbolizer};
