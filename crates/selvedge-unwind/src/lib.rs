//! The walk: from the registers of an interrupted thread to its stack, by compact unwind tables.
//!
//! Walking is `no_std`, allocates nothing, takes no lock, cannot panic, reads nothing but tables and the stack that it is
//! given, and is bounded: it may run in a signal handler. Making tables (feature `build`) needs files, memory and `std`.
//!
//! - [`walk`] and [`Memory`]: the walk
//! - [`ModuleMap`]: which code is where in a process
//! - [`table`]: the unwind table of one module, independent of where it is mapped
//! - `build`: tables from ELF files, maps from tables (feature `build`)
//!
//! # When not to use it
//!
//! To unwind (run destructors, catch exceptions), or to walk stacks of code that has neither `.eh_frame` nor frame
//! pointers.
#![cfg_attr(not(feature = "build"), no_std)]

#[cfg(feature = "build")]
pub mod build;
mod call;
mod map;
pub mod table;
mod walk;

pub use map::ModuleMap;
pub use walk::{EXACT_PC, End, Memory, Walked, walk};
