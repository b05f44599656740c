//! Joining another process's session from inside: what the agent does, for a program that no agent can be loaded into.

use crate::error::{Error, Result};
use crate::memory::{SESSION_NAME, SessionMemory};
use selvedge_sample::action;
use selvedge_sample::region::{MAGIC, Region, VERSION, session};
use selvedge_sample::system;
use selvedge_sample::target::{self, Base, Session};
use std::fs::File;
use std::sync::atomic::Ordering;

/// The running program as a member of the session that `SELVEDGE_SESSION` names; its leave is taken when this is dropped.
#[derive(Debug)]
#[must_use = "the program leaves the session when its membership is dropped"]
pub struct Membership {
    session: Session,
}

/// A thread of a member, recorded from its start on, until this is dropped.
#[derive(Debug)]
#[must_use = "the thread's record ends when this is dropped"]
pub struct ThreadMembership {
    session: Session,
    /// Only the thread itself can end its record.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Membership {
    /// Joins the session that `selvedge record` has named in the environment. The calling thread is recorded from now
    /// on; others are when they call [`Self::thread`], or else when the recorder has seen them use the CPU.
    ///
    /// `None` where no session is named, or the agent was loaded and has joined it already.
    ///
    /// # Errors
    ///
    /// The session cannot be reached, is another version's or over, or the system refuses the handler.
    pub fn from_env() -> Result<Option<Self>> {
        let Ok(name) = std::env::var("SELVEDGE_SESSION") else {
            return Ok(None);
        };
        let mappings = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        if mappings.contains(SESSION_NAME) {
            return Ok(None);
        }
        let region = open(&name)?;
        action::install(region.header.signal.load(Ordering::Relaxed)).map_err(|e| {
            Error::os(
                "install the signal handler",
                std::io::Error::from_raw_os_error(e),
            )
        })?;
        let session = target::attach(region).ok_or_else(|| {
            Error::setting("cannot join the recording: it has no room for another process")
        })?;
        target::start_thread(session, system::gettid(), Base::Now);
        Ok(Some(Self { session }))
    }

    /// Records the calling thread, with all that it has used since its birth.
    pub fn thread(&self) -> ThreadMembership {
        target::start_thread(self.session, system::gettid(), Base::Birth);
        ThreadMembership {
            session: self.session,
            not_send: std::marker::PhantomData,
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        target::leave(self.session);
    }
}

impl Drop for ThreadMembership {
    fn drop(&mut self) {
        target::end_this_thread(self.session);
    }
}

/// Maps the memory of the session named `PATH:NUMBER`, if that is recording.
fn open(name: &str) -> Result<&'static Region> {
    let unusable = |why: &str| {
        Error::setting(format!(
            "cannot join the recording SELVEDGE_SESSION={name}: {why}"
        ))
    };
    let (path, number) = name
        .strip_suffix(action::IGNORED_MARK)
        .unwrap_or(name)
        .rsplit_once(':')
        .and_then(|(path, number)| Some((path, u64::from_str_radix(number, 16).ok()?)))
        .ok_or_else(|| unusable("it is not PATH:NUMBER"))?;
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| unusable(&e.to_string()))?;
    let size = file.metadata().map_err(|e| unusable(&e.to_string()))?.len();
    if size < Region::SIZE as u64 {
        return Err(unusable("it is not a session's memory"));
    }
    let region = SessionMemory::of(file)?.region;
    // Relaxed: set before the file was given to anyone.
    let header = &region.header;
    if header.magic.load(Ordering::Relaxed) != MAGIC
        || header.version.load(Ordering::Relaxed) != VERSION
        || header.nonce.load(Ordering::Relaxed) != number
    {
        return Err(unusable("it is another version's"));
    }
    if header.state.load(Ordering::Relaxed) != session::RECORDING {
        return Err(unusable("it is over"));
    }
    Ok(region)
}
