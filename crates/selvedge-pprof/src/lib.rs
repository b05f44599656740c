//! Profiles as pprof knows them: the model of `profile.proto`, its file formats, and reports whose numbers agree with
//! `go tool pprof`.
//!
//! # Examples
//!
//! Make a profile, write it as `cpu.pb.gz` would be, and read it back:
//!
//! ```
//! use selvedge_pprof::ProfileBuilder;
//! use selvedge_pprof::model::{Function, Line, Location, Profile, ValueType};
//!
//! let mut builder = ProfileBuilder::new(vec![ValueType { kind: "samples".into(), unit: "count".into() }]);
//! let function = builder.function(Function { name: "main".into(), ..Function::default() });
//! let line = Line { function, line: 7, column: 0 };
//! let location = builder.location(Location { address: 0x1000, lines: vec![line], ..Location::default() });
//! builder.sample(&[location], &[42], &[]);
//! let profile = builder.finish();
//!
//! let mut file = Vec::new();
//! profile.write(&mut file)?;
//! assert_eq!(Profile::read(&file)?, profile);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Contents
//!
//! | to | see |
//! |---|---|
//! | put a profile together | [`ProfileBuilder`] |
//! | read a profile of any format | [`Profile::read`](model::Profile::read) |
//! | add profiles up | [`Profile::merge`](model::Profile::merge) |
//! | write `.pb.gz` | [`Profile::write`](model::Profile::write) |
//! | write the legacy CPU format | [`legacy::write`] |
//! | read and write collapsed stacks | [`collapsed`] |
//! | write for speedscope | [`speedscope::write`] |
//! | draw a flame graph, as an HTML page | [`flamegraph::write`] |
//! | select samples and frames | [`report::Filter`] |
//! | list the functions that weigh most | [`report::Top`] |
//! | tell stacks from what only accounts for lost time | [`is_accounting_row`], [`Profile::accounted`](model::Profile::accounted) |
//!
//! # When not to use it
//!
//! It holds a whole profile in memory, with every name as a string of its own: for profiles of gigabytes, stream the
//! protobuf messages instead. It does not symbolize: addresses without names stay addresses.
//!
//! The crate has no features, and is the same on every platform. It needs Rust 1.95.

mod accounting;
mod builder;
pub mod collapsed;
mod error;
pub mod flamegraph;
mod frame;
pub mod legacy;
mod merge;
pub mod model;
mod proto;
pub mod report;
pub mod speedscope;

pub use accounting::{LOST_PREFIX, SIGNALS_BLOCKED, UNSAMPLED, is_accounting_row};
pub use builder::ProfileBuilder;
pub use error::Error;
