//! Joining another process's session from inside: what the agent does, for a program that no agent can be loaded into.

use crate::error::{Error, Result};
use crate::mailbox;
use crate::memory::{SESSION_NAME, SessionMemory};
use selvedge_sample::action::{self, ProgramAction, SIG_IGN};
use selvedge_sample::handler;
use selvedge_sample::mailbox::get_ready;
use selvedge_sample::note;
use selvedge_sample::region::{MAGIC, Region, VERSION, session};
use selvedge_sample::system;
use selvedge_sample::target::{self, Base, Session};
use std::fs::File;
use std::sync::atomic::Ordering;

/// The running program as a member of the session that `SELVEDGE_SESSION` names; its leave is taken when this is dropped.
///
/// This is for programs that `selvedge record` can load no agent into, since they are linked statically. One that calls
/// [`Self::from_env`] is recorded as any other, by `selvedge record -- PROGRAM`, or as a child of a recorded program:
///
/// ```no_run
/// fn main() -> Result<(), selvedge_profile::Error> {
///     let _member = selvedge_profile::Membership::from_env()?;
///     // … work, in as many threads as you like …
///     Ok(())
/// }
/// ```
///
/// ```sh
/// RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target x86_64-unknown-linux-gnu
/// selvedge record -- target/x86_64-unknown-linux-gnu/release/PROGRAM
/// ```
///
/// A program with this call says so by a note in its file, which recorders look for (`readelf -n PROGRAM`: owner
/// `Selvedge`). Recorder and library have to be of the same version. Where the same program is linked dynamically, it takes
/// the agent, and this does nothing.
///
/// What the agent does and this does not: it does not see the program's children, unless they join by themselves; it hooks
/// neither `exec` (drop this before) nor `sigaction` (the profiling signal is ours from [`Self::from_env`] on); what the
/// program uses before that call is not recorded.
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
    /// `None` where no session is named, or the agent was loaded and has joined it already, or children are not recorded and
    /// this is one (`--no-children`).
    ///
    /// # Errors
    ///
    /// The session cannot be reached, is another version's or over, or the system refuses the handler. The program can go
    /// on without.
    #[inline] // In the program's own code: the note is to be in programs that call this, and in no others.
    pub fn from_env() -> Result<Option<Self>> {
        note::leave();
        Self::join()
    }

    fn join() -> Result<Option<Self>> {
        let Ok(name) = std::env::var("SELVEDGE_SESSION") else {
            return Ok(None);
        };
        let mappings = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        if mappings.contains(SESSION_NAME) {
            return Ok(None);
        }
        let (region, ignored) = open(&name)?;
        // Relaxed: set before the file was given to anyone.
        if region.header.children.load(Ordering::Relaxed) == 0 && !is_child_of_recorder(&name) {
            return Ok(None);
        }
        mailbox::open();
        take_signal(region.header.signal.load(Ordering::Relaxed), ignored)?;
        let session = target::attach(region).ok_or_else(|| {
            Error::setting("cannot join the recording: it has no room for another process")
        })?;
        target::start_thread(session, system::gettid(), Base::Now);
        get_ready(region, session.process);
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

/// Installs the handler; what was there stays for signals that are not ours.
fn take_signal(signal: u32, ignored: bool) -> Result<()> {
    let install = || {
        action::install(signal).map_err(|e| {
            Error::os(
                "install the signal handler",
                std::io::Error::from_raw_os_error(e),
            )
        })
    };
    let before = install()?;
    // Ignored is also how a recorded program leaves the signal to the one that it becomes: it is somebody's wish only where
    // the session's name says so.
    let kept = match before.handler {
        _ if ignored => ProgramAction {
            handler: SIG_IGN,
            ..ProgramAction::default()
        },
        SIG_IGN => return Ok(()),
        // A profile of the program's own has been there, and has kept what was there before.
        ours if ours == handler::entry as *const () as usize => return Ok(()),
        handler => ProgramAction {
            handler,
            mask: before.mask,
            flags: before.flags,
        },
    };
    action::set_program_action(kept);
    if !kept.restarts() {
        install()?;
    }
    Ok(())
}

/// Whether the recorder, whose memory a session's name leads to, has started this process. It may have become any number of
/// programs since.
fn is_child_of_recorder(name: &str) -> bool {
    let mut parts = name.trim_start_matches("/proc/").split('/');
    let recorder = parts.next().and_then(|number| number.parse().ok());
    recorder == Some(std::os::unix::process::parent_id())
}

/// Maps the memory of the session named `PATH:NUMBER`, if that is recording. Also tells whether the program is to find the
/// profiling signal ignored.
fn open(name: &str) -> Result<(&'static Region, bool)> {
    let unusable = |why: &str| {
        Error::setting(format!(
            "cannot join the recording SELVEDGE_SESSION={name}: {why}"
        ))
    };
    let unmarked = name.strip_suffix(action::IGNORED_MARK);
    let (path, number) = unmarked
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
    Ok((region, unmarked.is_some()))
}
