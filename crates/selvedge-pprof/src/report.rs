//! Reports for people, in the words and with the numbers of `go tool pprof`.

mod filter;
mod graph;
mod measurement;
mod prune;
mod tags;
mod top;

pub use filter::Filter;
pub use top::{Inline, Row, Sort, Top, TopOptions};
