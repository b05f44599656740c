//! CPU profiles of the running program, on stable Rust, without rebuild flags.
//!
//! ```
//! let guard = selvedge_profile::Builder::new().hz(99.0).start()?;
//! // … work …
//! let report = guard.stop();
//! println!("{:.1} samples per CPU second", report.summary.rate());
//! # Ok::<(), selvedge_profile::Error>(())
//! ```
//!
//! - [`Builder`] settings, and [`Builder::start`]
//! - [`Guard`] a profile being taken: snapshot it, stop it
//! - [`Report`] the profile, and the [`Summary`] that says how much of the program it covers
//! - [`init_from_env`] one line in `main` that does nothing unless `SELVEDGE_PROFILE` is set
//! - [`Running`], [`SessionMemory`], [`Setup`] sessions of other processes: what `selvedge record` is made of
//! - [`Membership`] the running program in such a session, without the agent: makes a static program recordable
//!
//! # When not to use it
//!
//! For a program that you cannot change or rebuild, use `selvedge record -- CMD`. For time spent waiting (not on a CPU),
//! this is the wrong kind of profile.
//!
//! # Platforms
//!
//! x86-64 Linux. Rust 1.95 or later.

mod aggregate;
mod arena;
mod assemble;
mod builder;
mod engine;
mod environment;
mod error;
mod image;
mod join;
mod mailbox;
mod maps;
mod memory;
mod modules;
mod perf;
mod reader;
mod running;
mod summary;

pub use builder::{Builder, Guard, Report, period_of};
pub use engine::{EngineChoice, tick_nanos};
pub use environment::init_from_env;
pub use error::{Error, Result};
pub use join::{Membership, ThreadMembership};
pub use memory::SessionMemory;
pub use perf::permitted as perf_permitted;
pub use reader::Setup;
pub use running::Running;
pub use selvedge_sample::region::{Engine, Loss};
pub use summary::{ITIMER_TAKEN, ImageFacts, Summary};
