//! The mailbox of a prover: the file that `STEPPER_MAILBOX` names. See `selvedge_sample::mailbox`.
//!
//! # Safety
//!
//! This file is `unsafe` because it maps a file that the environment names.
#![allow(unsafe_code)]

use selvedge_sample::mailbox;
use std::fs::File;
use std::os::fd::AsRawFd;

/// The variable that names the file.
const VARIABLE: &str = "STEPPER_MAILBOX";

/// Uses the mailbox that the environment names, if it names one. What is no mailbox is left alone.
pub(crate) fn open() {
    let Some(path) = std::env::var_os(VARIABLE) else {
        return;
    };
    let Ok(file) = File::options().read(true).write(true).open(path) else {
        return;
    };
    let size = file.metadata().map_or(0, |facts| facts.len());
    let bytes = usize::try_from(size).unwrap_or(0).min(mailbox::BYTES);
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return;
    }
    // SAFETY: so much of the file is mapped, and stays if it is used.
    let used = unsafe { mailbox::open(start.cast(), bytes) };
    if !used {
        // SAFETY: mapped above, and nobody uses it.
        unsafe { libc::munmap(start, bytes) };
    }
}
