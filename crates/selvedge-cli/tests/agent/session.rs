//! A session without a recorder: a region that the test reads, and programs started with the agent.
//!
//! # Safety
//!
//! This file is `unsafe` because it makes and maps a file in memory.
#![allow(unsafe_code)]

use selvedge_sample::Region;
use selvedge_sample::region::{Engine, MAGIC, Process, VERSION, process_state, session};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::Ordering::SeqCst;

/// The agent, as the build script made it.
pub(crate) const AGENT: &str = env!("SELVEDGE_AGENT_FILE");

const NONCE: u64 = 0x1234_5678_9abc_0000;

/// A region and its file.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) region: &'static Region,
    file: File,
}

impl Session {
    /// Recording, with the timer engine at 500 Hz.
    pub(crate) fn new(children: bool) -> Self {
        // SAFETY: the name is a NUL-terminated literal.
        let descriptor = unsafe { libc::memfd_create(c"session".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(
            descriptor >= 0,
            "memfd_create: {}",
            std::io::Error::last_os_error()
        );
        // SAFETY: just created, owned by nothing else.
        let file = unsafe { File::from_raw_fd(descriptor) };
        file.set_len(Region::SIZE as u64).unwrap();
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        );
        // SAFETY: a new mapping, which is never taken back.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Region::SIZE,
                access,
                kind,
                descriptor,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: the size of a region, valid whatever it holds.
        let region = unsafe { &*start.cast::<Region>() };
        let header = &region.header;
        header.magic.store(MAGIC, SeqCst);
        header.version.store(VERSION, SeqCst);
        header.signal.store(libc::SIGPROF.cast_unsigned(), SeqCst);
        header.engine.store(Engine::Timer as u32, SeqCst);
        header.children.store(u32::from(children), SeqCst);
        header.period.store(2_000_000, SeqCst);
        header.tick.store(4_000_000, SeqCst);
        header.nonce.store(NONCE, SeqCst);
        header.state.store(session::RECORDING, SeqCst);
        Self { region, file }
    }

    /// The value of `SELVEDGE_SESSION`.
    pub(crate) fn name(&self) -> String {
        format!(
            "/proc/{}/fd/{}:{NONCE:016x}",
            std::process::id(),
            self.file.as_raw_fd()
        )
    }

    /// A program to be started with the agent.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("LD_PRELOAD", AGENT)
            .env("SELVEDGE_SESSION", self.name())
            // Set by cargo for tests: its value would be taken for the agent's in lists of files.
            .env_remove("SELVEDGE_AGENT_FILE");
        command
    }

    /// Process records in use, in the order of their claims.
    pub(crate) fn processes(&self) -> Vec<&'static Process> {
        let live = |process: &&Process| process.state.load(SeqCst) == process_state::LIVE;
        self.region.processes.iter().filter(live).collect()
    }

    /// Thread records in use.
    pub(crate) fn threads(&self) -> usize {
        self.region
            .used_threads()
            .filter(|&at| self.region.threads[at as usize].key.load(SeqCst) != 0)
            .count()
    }
}

/// Runs a program to its end; it must succeed and write nothing to standard error. Gives back its standard output.
#[track_caller]
pub(crate) fn quiet(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr),
    );
    assert!(
        status.success() && stderr.is_empty(),
        "{command:?}: {status}\n{stdout}\n{stderr}"
    );
    stdout.into_owned()
}

/// Samples taken of a process, also those that found no room: nobody empties the rings here.
///
/// Whether there is one is the kernel's affair: see [`is_sampled_in_three`].
pub(crate) fn samples(process: &Process) -> u64 {
    process.delivered.load(SeqCst)
}

/// Whether the agent is loaded in a process with this text of `/proc/PID/maps`.
pub(crate) fn has_agent(text: &str) -> bool {
    let name = Path::new(AGENT).file_name().unwrap().to_str().unwrap();
    text.contains(name)
}

/// The retry rule of all tests that want a program to have been sampled: of three attempts, each with its number of
/// samples, one must have some. Everything else that an attempt asserts holds in each.
///
/// CPU-time timers fire at ticks of the kernel. Beside four busy loops on two processors, a timer of 2 ms that has nothing
/// to do with us did not fire once in 400 ms of its thread's CPU time in 2 of 40 runs.
#[track_caller]
pub(crate) fn is_sampled_in_three(mut attempt: impl FnMut() -> u64) {
    assert!(
        (0..3).any(|_| attempt() > 0),
        "no sample in any of three attempts"
    );
}
