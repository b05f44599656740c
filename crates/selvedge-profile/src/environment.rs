//! Profiling by environment variables: one line in `main`, nothing at all unless a variable asks for it.

use crate::builder::{Builder, Guard};
use crate::error::{Error, Result};

/// Starts a profile if `SELVEDGE_PROFILE` names a file to write it to.
///
/// | variable | |
/// |---|---|
/// | `SELVEDGE_PROFILE` | file to write; unset or empty: nothing happens |
/// | `SELVEDGE_HZ` | samples per second of CPU time, 1 to 50,000, 99 by default |
/// | `SELVEDGE_ENGINE` | `auto`, `timer`, `perf`, `itimer` |
/// | `SELVEDGE_SIGNAL` | signal number |
///
/// # Errors
///
/// A variable has a value that cannot be used, or as [`Builder::start`].
///
/// # Examples
///
/// ```
/// let _profile = selvedge_profile::init_from_env()?;
/// # Ok::<(), selvedge_profile::Error>(())
/// ```
pub fn init_from_env() -> Result<Option<Guard>> {
    let Some(path) = std::env::var_os("SELVEDGE_PROFILE").filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let mut builder = Builder::new().output(path);
    if let Some(hz) = number("SELVEDGE_HZ")? {
        builder = builder.hz(hz);
    }
    if let Ok(engine) = std::env::var("SELVEDGE_ENGINE") {
        builder = builder.engine(engine.parse()?);
    }
    if let Some(signal) = number("SELVEDGE_SIGNAL")? {
        builder = builder.signal(signal);
    }
    builder.start().map(Some)
}

fn number<T: std::str::FromStr>(name: &str) -> Result<Option<T>> {
    let Ok(text) = std::env::var(name) else {
        return Ok(None);
    };
    text.parse()
        .map(Some)
        .map_err(|_| Error::setting(format!("cannot use {name}={text}: it is not a number")))
}
