//! `selvedge record`, end to end: one named test for each hazard.
//!
//! The programs under test are C, compiled when the test runs (those in `joining` are Rust). CPU time is measured by the programs' own clocks, so that
//! a busy machine makes tests slow and not wrong.

mod children;
mod demo;
mod depth;
mod ends;
mod faults;
mod foreign;
mod harmless;
mod harness;
mod joining;
mod refusals;
mod reports;
mod requests;
mod signals;
mod streams;
mod threads;
mod weights;
