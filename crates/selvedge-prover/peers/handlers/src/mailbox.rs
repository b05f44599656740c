//! The profiler's side of the mailbox; `selvedge_prover::mailbox` says what is where.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Frames that there is room for.
pub(crate) const FRAMES: usize = 1024;
const BYTES: usize = 96 + 8 * FRAMES;

pub(crate) struct Mailbox {
    start: usize,
}

impl Mailbox {
    pub(crate) fn open(path: &OsStr) -> Option<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
        if file.metadata().ok()?.len() < BYTES as u64 {
            return None;
        }
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        (start != libc::MAP_FAILED).then(|| Self {
            start: start as usize,
        })
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: inside the mapping, which stays, and aligned.
        unsafe { &*((self.start + offset) as *const AtomicU64) }
    }

    fn half(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { &*((self.start + offset) as *const AtomicU32) }
    }

    pub(crate) fn set_name(&self, name: &str) {
        let mut bytes = [0; 32];
        let len = name.len().min(31);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        for (at, bytes) in bytes.as_chunks().0.iter().enumerate() {
            self.word(48 + 8 * at)
                .store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
    }

    pub(crate) fn get_ready(&self) {
        self.half(16).store(1, Ordering::Release);
    }

    pub(crate) fn answer(&self, frames: &[u64]) {
        let number = self.word(24).load(Ordering::Acquire);
        for (at, &frame) in frames.iter().enumerate() {
            self.word(96 + 8 * at).store(frame, Ordering::Relaxed);
        }
        self.half(88).store(frames.len() as u32, Ordering::Relaxed);
        self.word(80).store(number, Ordering::Release);
    }
}
