//! The mailbox of a prover: the file that `STEPPER_MAILBOX` names. See `selvedge_sample::mailbox`.
//!
//! # Safety
//!
//! This file is `unsafe` because it opens a file that the environment names, and maps it.
#![allow(unsafe_code)]

use crate::kernel::{self, AT_FDCWD, Descriptor};
use crate::text::{self, Strings};
use selvedge_sample::mailbox;

/// The variable that names the file.
const VARIABLE: &[u8] = b"STEPPER_MAILBOX";

/// Uses the mailbox that the environment names, if it names one.
///
/// # Safety
///
/// `environment` is an array of strings, and the program has not begun.
pub(crate) unsafe fn open(environment: Strings) {
    // SAFETY: the caller answers for the environment.
    let Some(path) = (unsafe { text::variable(environment, VARIABLE) }) else {
        return;
    };
    // SAFETY: the value of a variable ends where its string does, with a NUL.
    let file = unsafe { Descriptor::open(AT_FDCWD, path.as_ptr().cast(), true) };
    let Some(file) = file else { return };
    let size = file.facts().map_or(0, |facts| facts.size);
    let bytes = usize::try_from(size).unwrap_or(0).min(mailbox::BYTES);
    let Some(start) = file.map(bytes) else { return };
    // SAFETY: so much of the file is mapped, and stays if it is used.
    let used = unsafe { mailbox::open(start, bytes) };
    if !used {
        // SAFETY: nobody uses it.
        unsafe { kernel::unmap(start, bytes) };
    }
}
