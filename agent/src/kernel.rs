//! System calls that only the agent makes. None touches `errno`.
//!
//! # Safety
//!
//! This file is `unsafe` because it makes raw system calls.
#![allow(unsafe_code)]

use core::ffi::{c_char, c_int};
use core::ops::Range;
use core::sync::atomic::AtomicU32;
use selvedge_arch::{number, syscall4, syscall6};

/// Numbers of system calls that only the agent makes (arch/x86/entry/syscalls/syscall_64.tbl).
mod own {
    pub(super) const FSTAT: usize = 5;
    pub(super) const PREAD64: usize = 17;
    pub(super) const SCHED_YIELD: usize = 24;
    pub(super) const MADVISE: usize = 28;
    pub(super) const FGETXATTR: usize = 193;
    pub(super) const MLOCK: usize = 149;
    pub(super) const MLOCK2: usize = 325;
    pub(super) const CAPGET: usize = 125;
    pub(super) const SET_TID_ADDRESS: usize = 218;
    pub(super) const EXIT_GROUP: usize = 231;
    pub(super) const OPENAT: usize = 257;
    pub(super) const FACCESSAT: usize = 269;
    pub(super) const PRLIMIT64: usize = 302;
}

/// "Relative to the working directory" (include/uapi/linux/fcntl.h).
pub(crate) const AT_FDCWD: c_int = -100;
/// May be read.
pub(crate) const R_OK: usize = 4;
/// May be executed.
pub(crate) const X_OK: usize = 1;

/// A descriptor that is open for a moment.
#[derive(Debug)]
pub(crate) struct Descriptor(usize);

/// What [`Descriptor::facts`] tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Type and permissions.
    pub(crate) mode: u32,
    /// Length in bytes.
    pub(crate) size: u64,
}

impl Descriptor {
    /// Opens a file, for writing as well if `write`.
    ///
    /// # Safety
    ///
    /// `path` is a NUL-terminated string.
    pub(crate) unsafe fn open(folder: c_int, path: *const c_char, write: bool) -> Option<Self> {
        const O_CLOEXEC: usize = 0o2_000_000;
        const O_NONBLOCK: usize = 0o4_000;
        // Not blocking: a path may name a pipe.
        let flags = O_CLOEXEC | O_NONBLOCK | if write { 2 } else { 0 };
        // SAFETY: the caller answers for the path.
        let opened = unsafe { syscall4(own::OPENAT, [folder as usize, path as usize, flags, 0]) };
        usize::try_from(opened).ok().map(Self)
    }

    /// Reads from `offset` on. Gives back what was read; nothing on failure.
    pub(crate) fn read<'a>(&self, buffer: &'a mut [u8], offset: u64) -> &'a [u8] {
        let arguments = [
            self.0,
            buffer.as_mut_ptr() as usize,
            buffer.len(),
            offset as usize,
        ];
        // SAFETY: the kernel writes at most the buffer's length into it.
        let read = unsafe { syscall4(own::PREAD64, arguments) };
        buffer
            .get(..usize::try_from(read).unwrap_or(0))
            .unwrap_or(&[])
    }

    /// Mode and size.
    pub(crate) fn facts(&self) -> Option<Facts> {
        // `struct stat` is 144 bytes: the mode is the 32 bits at 24, the size the 64 bits at 48.
        let mut stat = [0_u64; 18];
        // SAFETY: the kernel writes a `struct stat` into `stat`.
        let result = unsafe { syscall4(own::FSTAT, [self.0, stat.as_mut_ptr() as usize, 0, 0]) };
        let [_, _, _, mode, _, _, size, ..] = stat;
        (result == 0).then_some(Facts {
            mode: mode as u32,
            size,
        })
    }

    /// Whether executing the file gives capabilities.
    pub(crate) fn has_capabilities(&self) -> bool {
        let name = c"security.capability";
        // SAFETY: reads a NUL-terminated name; asks for the attribute's length only.
        let length = unsafe { syscall4(own::FGETXATTR, [self.0, name.as_ptr() as usize, 0, 0]) };
        length > 0
    }

    /// Maps `length` bytes of the file, shared, for reading and writing.
    pub(crate) fn map(&self, length: usize) -> Option<*mut u8> {
        const PROT_READ_WRITE: usize = 3;
        const MAP_SHARED: usize = 1;
        const MAP_NORESERVE: usize = 0x4000;
        let arguments = [
            0,
            length,
            PROT_READ_WRITE,
            MAP_SHARED | MAP_NORESERVE,
            self.0,
            0,
        ];
        // SAFETY: a new mapping at an address that the kernel chooses takes nothing away.
        let mapped = unsafe { syscall6(number::MMAP, arguments) };
        usize::try_from(mapped)
            .ok()
            .map(|address| address as *mut u8)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: opened by us, known to nobody else.
        let _ = unsafe { syscall4(number::CLOSE, [self.0, 0, 0, 0]) };
    }
}

/// Takes back a mapping of [`Descriptor::map`].
///
/// # Safety
///
/// Nothing refers to it any more.
pub(crate) unsafe fn unmap(start: *mut u8, length: usize) {
    // SAFETY: the caller answers for it.
    let _ = unsafe { syscall4(number::MUNMAP, [start as usize, length, 0, 0]) };
}

/// Maps memory, private and zero, for reading and writing.
pub(crate) fn map_memory(length: usize) -> Option<usize> {
    const PROT_READ_WRITE: usize = 3;
    const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
    let none = usize::MAX;
    let arguments = [0, length, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, none, 0];
    // SAFETY: a new mapping at an address that the kernel chooses takes nothing away.
    let mapped = unsafe { syscall6(number::MMAP, arguments) };
    usize::try_from(mapped).ok()
}

/// Has the kernel clear a word when the calling thread gives up its memory and others still use it; or no word any more.
pub(crate) fn clear_at_end(word: Option<&'static AtomicU32>) {
    let address = word.map_or(0, |word| core::ptr::from_ref(word).addr());
    // SAFETY: the word lives as long as the process, and is atomic.
    let _ = unsafe { syscall4(own::SET_TID_ADDRESS, [address, 0, 0, 0]) };
}

/// Leaves a mapping out of core dumps.
pub(crate) fn keep_out_of_dumps(start: *const u8, length: usize) {
    const MADV_DONTDUMP: usize = 16;
    // SAFETY: changes neither contents nor access.
    let _ = unsafe { syscall4(own::MADVISE, [start as usize, length, MADV_DONTDUMP, 0]) };
}

/// How much address space the process may have.
pub(crate) fn address_space_limit() -> u64 {
    const RLIMIT_AS: usize = 9;
    limit(RLIMIT_AS)
}

/// How much memory the process may lock.
pub(crate) fn locked_memory_limit() -> u64 {
    const RLIMIT_MEMLOCK: usize = 8;
    limit(RLIMIT_MEMLOCK)
}

fn limit(resource: usize) -> u64 {
    let mut limits = [u64::MAX; 2];
    // SAFETY: the kernel writes an `rlimit64` (current, maximum) into `limits`.
    let _ = unsafe {
        syscall4(
            own::PRLIMIT64,
            [0, resource, 0, limits.as_mut_ptr() as usize],
        )
    };
    let [current, _] = limits;
    current
}

/// Whether the limit of locked memory is not for this process.
pub(crate) fn may_lock_memory() -> bool {
    const VERSION: u32 = 0x2008_0522;
    const CAP_IPC_LOCK: u32 = 14;
    let header = [VERSION, 0];
    // Twice effective, permitted, inheritable: the low halves, then the high ones.
    let mut sets = [0_u32; 6];
    let arguments = [header.as_ptr() as usize, sets.as_mut_ptr() as usize, 0, 0];
    // SAFETY: the kernel reads a header and writes two `cap_user_data_t`.
    let _ = unsafe { syscall4(own::CAPGET, arguments) };
    let [effective, ..] = sets;
    effective >> CAP_IPC_LOCK & 1 == 1
}

/// Locks a part of memory, or what of it is touched from now on. Errors are passed over.
pub(crate) fn lock_memory(part: Range<usize>, on_fault: bool) {
    const MLOCK_ONFAULT: usize = 1;
    let (number, flag) = if on_fault {
        (own::MLOCK2, MLOCK_ONFAULT)
    } else {
        (own::MLOCK, 0)
    };
    // SAFETY: changes neither contents nor access.
    let _ = unsafe { syscall4(number, [part.start, part.len(), flag, 0]) };
}

/// Whether this process may do `how` with a file.
///
/// # Safety
///
/// `path` is a NUL-terminated string.
pub(crate) unsafe fn may(path: *const c_char, how: usize) -> bool {
    // SAFETY: the caller answers for the path.
    let result = unsafe { syscall4(own::FACCESSAT, [AT_FDCWD as usize, path as usize, how, 0]) };
    result == 0
}

/// Executes a program: the system call itself, for C libraries without the function. Returns the error number.
///
/// # Safety
///
/// As for `execveat`.
pub(crate) unsafe fn execveat(arguments: [usize; 5]) -> c_int {
    let [folder, path, argv, envp, flags] = arguments;
    // SAFETY: the caller answers for the arguments.
    let result = unsafe { syscall6(number::EXECVEAT, [folder, path, argv, envp, flags, 0]) };
    (result as c_int).wrapping_neg()
}

/// Lets other threads run.
pub(crate) fn yield_processor() {
    // SAFETY: takes no pointers.
    let _ = unsafe { syscall4(own::SCHED_YIELD, [0; 4]) };
}

/// Ends the process.
pub(crate) fn exit(status: c_int) -> ! {
    loop {
        // SAFETY: ends all threads; takes no pointers.
        let _ = unsafe { syscall4(own::EXIT_GROUP, [status as usize, 0, 0, 0]) };
    }
}
