//! The agent by itself: the file that the command carries, and what it does in programs, seen in the shared memory.

mod actions;
mod attach;
mod environment;
mod file;
mod locking;
mod programs;
mod sandbox;
mod session;
mod threads;
