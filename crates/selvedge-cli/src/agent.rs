//! The agent: a shared library, built by this crate's build script and carried inside the command.

/// The library's bytes.
pub(crate) const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/selvedge_agent.so"));
