//! The walk: from the registers of an interrupted thread to its stack, by compact unwind tables.
//!
//! Walking is `no_std`, allocates nothing, takes no lock, cannot panic, reads nothing but tables and the stack that it is
//! given, and is bounded: it may run in a signal handler. Making tables (feature `build`) needs files, memory and `std`.
//!
//! - [`walk`] and [`Memory`]: the walk; [`walk_again`] and [`Memo`]: one that need not walk twice what has not changed
//! - [`ModuleMap`]: which code is where in a process
//! - [`table`]: the unwind table of one module, independent of where it is mapped
//! - `build`: tables from ELF files, maps from tables (feature `build`)
//!
//! # Example
//!
//! One frame of code without unwind information, which has stored its caller's frame pointer and return address:
//!
//! ```
//! # #[cfg(feature = "build")] {
//! use selvedge_arch::Registers;
//! use selvedge_unwind::build::{MapEntry, MapKind, map};
//! use selvedge_unwind::{EXACT_PC, End, Memory, ModuleMap, walk};
//!
//! struct Stack([u64; 2]);
//!
//! impl Memory for Stack {
//!     fn read(&mut self, address: u64) -> Option<u64> {
//!         self.0.get(usize::try_from(address.checked_sub(0x7000)? / 8).ok()?).copied()
//!     }
//! }
//!
//! let code = MapEntry { start: 0x1000, end: 0x2000, kind: MapKind::NoCfi };
//! let bytes = map(&[code], 1);
//! let map = ModuleMap::view(&bytes, &[]).expect("bytes of a map");
//! let registers = Registers { ip: 0x1234, sp: 0x7000, bp: 0x7000, ..Registers::default() };
//! let mut frames = [0; 64];
//! let walked = walk(&map, registers, &mut Stack([0, 0]), &mut frames);
//! assert_eq!((walked.frames, walked.end), (1, End::Root));
//! assert_eq!(frames[0], 0x1234 | EXACT_PC);
//! # }
//! ```
//!
//! # When not to use it
//!
//! To unwind (run destructors, catch exceptions), or to walk stacks of code that has neither `.eh_frame` nor frame
//! pointers.
//!
//! # Features
//!
//! `build` (off by default): the module `build`, which needs `std`.
#![cfg_attr(not(feature = "build"), no_std)]

#[cfg(feature = "build")]
pub mod build;
mod call;
mod map;
mod memo;
mod registers;
pub mod table;
mod walk;

pub use map::ModuleMap;
pub use memo::Memo;
pub use walk::{EXACT_PC, End, MAX_WALKED, Memory, TRUNCATED, Walked, walk, walk_again};
