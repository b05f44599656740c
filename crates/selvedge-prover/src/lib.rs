//! Steps through any program and proves that a profiler records true stacks at every instruction.
//!
//! The truth is kept from the instructions that are executed ([`shadow`]), without any unwind information and without any
//! code of the profiler. The profiler is a black box: it is started as a user would start it, interrupted by the signals
//! that its own timers would send, and shows what it has recorded in a file ([`mailbox`]).
//!
//! - [`arguments`] the command line
//! - [`launch`] starts the program under the profiler, and stops it before its first instruction
//! - [`tracee`] a thread under `ptrace`
//! - [`instruction`] what an instruction does to the stack of calls
//! - [`shadow`] the stack of calls, from executed instructions
//! - [`choice`] which instructions are interrupted
//! - [`injection`] interrupts one
//! - [`depth`] how much stack a handler uses
//! - [`verdict`] compares what was recorded with the truth
//! - [`stepper`] steps through all threads of a program and does the above
//! - [`modules`] names for addresses
//! - [`report`] what is printed

pub mod arguments;
pub mod choice;
pub mod depth;
pub mod injection;
pub mod instruction;
pub mod launch;
pub mod mailbox;
pub mod modules;
pub mod report;
pub mod shadow;
pub mod stepper;
pub mod tracee;
pub mod verdict;
