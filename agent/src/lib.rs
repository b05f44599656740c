//! The agent: a library that `selvedge record` preloads into the programs that it records.
//!
//! It is a guest in other people's processes: it starts no thread, allocates nothing, prints nothing, needs no library
//! and no thread-local storage, and where anything is not as it expects, it does nothing. All that happens at a sample
//! is in `selvedge-sample`; here is what makes it happen at the right moments:
//!
//! - `start` attaches the process when the loader starts the agent, and again in the child of a `fork`
//! - `threads` announces threads that the program makes, and their ends
//! - `execute` carries the recording over an `exec`, with `environment` and `program`
//! - `ending` notes the end of the process
//! - `actions` lets the program use the profiling signal as if it were its own
//! - `waiting` keeps our signals from programs that wait for any
//! - `sandbox` stops before the program forbids itself the handler's system calls
//! - `mailbox` lets a prover see what is recorded
//! - `locking` keeps the session's memory out of what the program locks
//! - `real` finds the functions that the hooks stand in front of, with `object`
//! - `scratch` memory where the stack may have no room
//! - `kernel` system calls, `memory` the memory functions that the compiler asks for
//!
//! It should not be linked to or loaded by hand: it speaks to the recorder of its own version only.
//!
//! # What the recorder sets
//!
//! | variable | value |
//! |---|---|
//! | `LD_PRELOAD` | the agent's absolute path, then whatever was there |
//! | `SELVEDGE_SESSION` | path of the region's file, a colon, the session's number as 16 hexadecimal digits; then `:ignored` where the program is to find the profiling signal ignored |
//! | `STEPPER_MAILBOX` | set by a prover only: the file in which it sees what is recorded |
#![no_std]

mod actions;
mod ending;
mod environment;
mod execute;
mod kernel;
mod locking;
mod mailbox;
mod memory;
mod object;
mod program;
mod real;
mod sandbox;
mod scratch;
mod start;
mod text;
mod threads;
mod waiting;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Not reached: the test of the built file finds no caller. Ends the process, since going on would be worse.
    kernel::exit(134)
}
