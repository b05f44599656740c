//! A session with its reader's thread.
//!
//! # Safety
//!
//! This file is `unsafe` because it makes the system call that sleeps on shared memory.
#![allow(unsafe_code)]

use crate::assemble::{self, Material};
use crate::error::{Error, Result};
use crate::memory::SessionMemory;
use crate::reader::{Reader, Setup};
use crate::summary::Summary;
use selvedge_pprof::model::Profile;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// The reader looks at least this often.
const PAUSE: Duration = Duration::from_millis(50);

/// A session being recorded, by a reader on a thread of its own.
#[derive(Debug)]
pub struct Running {
    memory: SessionMemory,
    reader: Arc<Mutex<Reader>>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts a session in `memory`.
    ///
    /// # Errors
    ///
    /// Its threads cannot be started.
    pub fn start(memory: SessionMemory, setup: Setup) -> Result<Self> {
        let nonce = random();
        let reader = Arc::new(Mutex::new(Reader::start(&memory, setup, nonce)?));
        let done = Arc::new(AtomicBool::new(false));
        let thread = {
            let shared = Arc::clone(&reader);
            let (reader, done) = (Arc::clone(&reader), Arc::clone(&done));
            let header = &memory.region.header;
            let (ready, tid) = std::sync::mpsc::channel();
            let spawned = std::thread::Builder::new()
                .name("selvedge-reader".into())
                .spawn(move || {
                    let _ = ready.send(selvedge_sample::system::gettid());
                    while !done.load(Ordering::Acquire) {
                        // SeqCst: pairs with `Region::ring_doorbell`.
                        let rung = header.doorbell.load(Ordering::SeqCst);
                        lock(&reader).turn();
                        header.asleep.store(1, Ordering::SeqCst);
                        if header.doorbell.load(Ordering::SeqCst) == rung {
                            futex_wait(&header.doorbell, rung, PAUSE);
                        }
                        header.asleep.store(0, Ordering::SeqCst);
                    }
                });
            let spawned = spawned.map_err(|e| Error::os("start the reader's thread", e))?;
            // Known before any thread is armed: the profiler does not profile itself.
            lock(&shared).note_own_thread(tid.recv().unwrap_or(0));
            spawned
        };
        Ok(Self {
            memory,
            reader,
            done,
            thread: Some(thread),
        })
    }

    /// The memory that targets record into.
    #[must_use]
    pub fn memory(&self) -> &SessionMemory {
        &self.memory
    }

    /// The session's random number.
    #[must_use]
    pub fn nonce(&self) -> u64 {
        self.memory.region.header.nonce.load(Ordering::Relaxed)
    }

    /// Whether a thread of this process is the profiler's own.
    pub(crate) fn is_own_thread(&self, tid: u32) -> bool {
        lock(&self.reader).is_own_thread(tid)
    }

    /// Tells the reader that a process has ended, and with how much CPU time where that is known: exact totals need it
    /// before the process is reaped.
    pub fn process_ended(&self, pid: u32, cpu: Option<u64>) {
        lock(&self.reader).process_ended(pid, cpu);
    }

    /// Samples so far.
    #[must_use]
    pub fn samples(&self) -> u64 {
        lock(&self.reader).samples()
    }

    /// The numbers of what has been recorded so far: cheap, nothing is named.
    #[must_use]
    pub fn summary(&self) -> Summary {
        lock(&self.reader).summary()
    }

    /// The profile of what has been recorded so far, with its numbers; recording goes on.
    #[must_use]
    pub fn snapshot(&self) -> (Profile, Summary) {
        let material = material(&mut lock(&self.reader));
        (assemble::profile(&material), material.summary)
    }

    /// Stops recording: no more samples are taken, targets run on.
    pub fn stop(&self) {
        lock(&self.reader).stop();
    }

    /// Ends the session: the whole profile, with its numbers.
    #[must_use]
    pub fn finish(mut self) -> (Profile, Summary) {
        self.end_thread();
        let mut reader = lock(&self.reader);
        reader.stop();
        reader.finish_all();
        reader.settle();
        let material = material(&mut reader);
        drop(reader);
        (assemble::profile(&material), material.summary)
    }

    fn end_thread(&mut self) {
        self.done.store(true, Ordering::Release);
        self.memory.region.ring_doorbell();
        if let Some(thread) = self.thread.take() {
            // The reader's thread holds no data that its panic could lose: what was counted is in the mutex.
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end_thread();
        let mut reader = lock(&self.reader);
        reader.stop();
        reader.finish_all();
    }
}

fn material(reader: &mut Reader) -> Material {
    let summary = reader.summary();
    let counts = reader.counts.clone();
    let ids = counts.segments.iter().filter_map(|segment| segment.module);
    let images = ids
        .filter_map(|id| Some((id, Arc::clone(reader.modules.get(id).image.as_ref()?))))
        .collect();
    Material {
        counts,
        images,
        summary,
        problems: reader.modules.problems.clone(),
        started: reader.started,
    }
}

fn lock(reader: &Mutex<Reader>) -> MutexGuard<'_, Reader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sleeps until the word is no longer `value`, somebody wakes it, or the time is over.
fn futex_wait(word: &AtomicU32, value: u32, time: Duration) {
    let timeout = libc::timespec {
        tv_sec: 0,
        tv_nsec: libc::c_long::from(time.subsec_nanos()),
    };
    // SAFETY: the kernel compares the word, which lives as long as the process, and reads the timeout.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            &raw const timeout,
        )
    };
}

/// A number that other sessions do not have.
fn random() -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos() as u64;
    let mut bytes = [0_u8; 8];
    // SAFETY: the kernel writes at most eight bytes.
    let filled =
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    if filled == 8 {
        u64::from_ne_bytes(bytes)
    } else {
        now.rotate_left(32) ^ u64::from(std::process::id())
    }
}
