//! The CPU: registers of an interrupted thread and raw system calls, one file per CPU.
//!
//! Everything that depends on the processor lives in a file named after it; every such file exports the same names.
//! This crate is `no_std`, allocates nothing and panics nowhere: all of it may run in a signal handler.
//!
//! It should not be used directly: it is the ground floor of the other `selvedge` crates.
#![no_std]

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[path = "x86_64.rs"]
mod cpu;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("selvedge runs on x86-64 Linux only, for now: add a file per CPU beside x86_64.rs");

pub use cpu::*;
