//! The memory of a session, as the reader maps it: a file without a name for other processes, or plain private memory.
//!
//! # Safety
//!
//! This file is `unsafe` because it maps memory and hands it out for the life of the process.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use selvedge_sample::Region;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

/// What the shared memory of a session is called in `/proc/PID/maps`.
pub(crate) const SESSION_NAME: &str = "selvedge-session";

/// A region that stays mapped until the process ends, and its file where it has one.
#[derive(Debug)]
pub struct SessionMemory {
    /// The region.
    pub region: &'static Region,
    /// The file that other processes map it from.
    pub file: Option<File>,
}

impl SessionMemory {
    /// Memory that other processes can map, by its descriptor.
    pub fn shared() -> Result<Self> {
        let name = CString::new(SESSION_NAME).unwrap_or_default();
        // SAFETY: the name is NUL-terminated.
        let descriptor = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(Error::last_os("create the shared memory of the session"));
        }
        // SAFETY: just created, owned by nothing else.
        let file = unsafe { File::from_raw_fd(descriptor) };
        file.set_len(Region::SIZE as u64).map_err(|e| {
            Error::os(
                "size the shared memory of the session (raise `ulimit -f`)",
                e,
            )
        })?;
        Self::of(file)
    }

    /// The memory in a file of at least [`Region::SIZE`] bytes.
    pub(crate) fn of(file: File) -> Result<Self> {
        let region = map(libc::MAP_SHARED | libc::MAP_NORESERVE, file.as_raw_fd())?;
        Ok(Self {
            region,
            file: Some(file),
        })
    }

    /// Memory of this process only.
    pub fn private() -> Result<Self> {
        let region = map(
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
        )?;
        Ok(Self { region, file: None })
    }
}

fn map(flags: libc::c_int, descriptor: libc::c_int) -> Result<&'static Region> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            Region::SIZE,
            access,
            flags,
            descriptor,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(Error::last_os(
            "map the memory of the session (is the address space limited? see ulimit -v)",
        ));
    }
    // SAFETY: page-aligned, `Region::SIZE` bytes, zero, for which a `Region` is valid; it is never unmapped.
    Ok(unsafe { &*start.cast::<Region>() })
}
