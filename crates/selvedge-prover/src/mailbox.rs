//! The prover's side of the mailbox: a file in which a profiler's handler shows which stack it has recorded.
//!
//! All words are little-endian. The profiler finds the file by the variable `STEPPER_MAILBOX`.
//!
//! | bytes | | written by |
//! |---|---|---|
//! | 0 | the magic `STEPBOX1` | the prover |
//! | 16 | 1 (u32) once signals may arrive | the profiler |
//! | 24 | number of the sample in flight (u64) | the prover |
//! | 32 | process to be traced (u32), 1 once it is (u32) | the prover's own |
//! | 48 | name of the profiler (32 bytes) | the profiler |
//! | 80 | that number again (u64), written last | the profiler |
//! | 88 | number of frames (u32) | the profiler |
//! | 96 | frames (u64 each, at most 1,024), leaf first; below 4,096: a mark | the profiler |
//!
//! # Safety
//!
//! This file is `unsafe` because it maps a file that other programs write to.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The variable that names the file.
pub const VARIABLE: &str = "STEPPER_MAILBOX";

const MAGIC: u64 = u64::from_le_bytes(*b"STEPBOX1");
const FRAMES: usize = 1024;
const GO: u32 = 1;
const GIVE_UP: u32 = 2;
/// A frame below this is a mark.
pub const FIRST_ADDRESS: u64 = 4096;

#[derive(Debug)]
#[repr(C)]
struct Words {
    magic: AtomicU64,
    free: AtomicU64,
    ready: AtomicU32,
    free_2: AtomicU32,
    in_flight: AtomicU64,
    traced: AtomicU32,
    go: AtomicU32,
    free_3: AtomicU64,
    name: [AtomicU64; 4],
    answered: AtomicU64,
    count: AtomicU32,
    free_4: AtomicU32,
    frames: [AtomicU64; FRAMES],
}

/// A mailbox.
#[derive(Debug)]
pub struct Mailbox {
    path: PathBuf,
    words: &'static Words,
    owned: bool,
}

impl Mailbox {
    /// Makes a mailbox at `path`.
    ///
    /// # Errors
    ///
    /// The file cannot be written or mapped.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        file.set_len(size_of::<Words>() as u64)?;
        let this = Self::map(&file, path, true)?;
        this.words.magic.store(MAGIC, Ordering::Relaxed);
        Ok(this)
    }

    /// Opens one that another program has made.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or mapped, or is no mailbox.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < size_of::<Words>() as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let this = Self::map(&file, path, false)?;
        if this.words.magic.load(Ordering::Relaxed) != MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(this)
    }

    fn map(file: &File, path: &Path, owned: bool) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses takes nothing away.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Words>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: mapped above, for as long as this process lives, and any bytes are such words.
        let words = unsafe { &*start.cast::<Words>() };
        Ok(Self {
            path: path.to_path_buf(),
            words,
            owned,
        })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether signals may arrive.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.words.ready.load(Ordering::Acquire) == 1
    }

    /// The program has begun anew.
    pub fn forget_ready(&self) {
        self.words.ready.store(0, Ordering::Relaxed);
    }

    /// What the profiler calls itself.
    #[must_use]
    pub fn name(&self) -> String {
        let bytes: Vec<u8> = self
            .words
            .name
            .iter()
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .take_while(|&byte| byte != 0)
            .take(24)
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Says which process is to be traced, and waits until it is. Returns whether it is.
    #[must_use]
    pub fn ask_to_be_traced(&self) -> bool {
        self.words
            .traced
            .store(std::process::id(), Ordering::Release);
        loop {
            match self.words.go.load(Ordering::Acquire) {
                0 => std::thread::sleep(std::time::Duration::from_millis(1)),
                answer => return answer == GO,
            }
        }
    }

    /// The process that asks to be traced.
    #[must_use]
    pub fn asks_to_be_traced(&self) -> Option<i32> {
        let pid = self.words.traced.load(Ordering::Acquire);
        i32::try_from(pid).ok().filter(|&pid| pid != 0)
    }

    /// Lets it go on.
    pub fn let_go(&self) {
        self.words.go.store(GO, Ordering::Release);
    }

    /// Lets it end.
    pub fn give_up(&self) {
        self.words.go.store(GIVE_UP, Ordering::Release);
    }

    /// Announces a sample. Its number is not 0, and no other's.
    pub fn announce(&self, number: u64) {
        self.words.in_flight.store(number, Ordering::Release);
    }

    /// Takes the announcement back.
    pub fn withdraw(&self) {
        self.words.in_flight.store(0, Ordering::Release);
    }

    /// What was recorded for the sample of this number; `None` where nothing was.
    #[must_use]
    pub fn recorded(&self, number: u64) -> Option<Vec<u64>> {
        if self.words.answered.load(Ordering::Acquire) != number {
            return None;
        }
        let count = self.words.count.load(Ordering::Relaxed) as usize;
        let frames = self.words.frames.iter().take(count);
        Some(frames.map(|frame| frame.load(Ordering::Relaxed)).collect())
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        if self.owned {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
