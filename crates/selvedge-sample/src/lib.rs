//! The profiling signal handler, and the memory that it records into.
//!
//! A *session* records into one [`Region`]: memory that the reader shares, either with other processes
//! (`selvedge record`) or with its own threads (the library). Everything that a target does while it is profiled is
//! here: claim a [`Process`](region::Process), claim a [`Thread`](region::Thread) per thread, arm a timer for it, and
//! write a record into that thread's [`ring`] at every signal. Everything else (naming, aggregating, building unwind
//! tables, finding threads) is the reader's work, in `selvedge-profile`.
//!
//! This crate is `no_std` and has no allocator: what would allocate in the handler does not compile.
//!
//! - [`region`] the layout of the shared memory, and who may write which field
//! - [`ring`] one thread's records: single producer, single consumer
//! - [`record`] the format of a record
//! - [`target`] what a target does: attach, start and end a thread, arm timers
//! - [`handler`] the signal handler
//! - [`action`] the signal's action: ours, and the program's own beside it
//! - [`mailbox`] shows a prover what the handler has recorded
//! - [`note`] says of a program's file that the program joins recordings by itself
//! - [`stack`] reading the interrupted stack without ever faulting
//! - [`weight`] how much CPU time a sample stands for
//! - [`system`] the system calls of this crate, typed
//!
//! It should not be used directly: use `selvedge-profile` in a Rust program, `selvedge record` on any other.
#![no_std]

#[cfg(feature = "std")]
extern crate std;

pub mod action;
pub mod handler;
pub mod mailbox;
pub mod note;
pub mod record;
pub mod region;
pub mod ring;
pub mod stack;
pub mod system;
pub mod target;
pub mod weight;

pub use region::Region;
