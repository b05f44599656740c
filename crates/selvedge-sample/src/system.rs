//! The system calls of this crate, typed. None touches `errno`, none allocates.
//!
//! # Safety
//!
//! This file is `unsafe` because it makes raw system calls: the only place of the crate that does.
#![allow(unsafe_code)]

use core::sync::atomic::AtomicU32;
use selvedge_arch::{number, syscall4, syscall6};

/// `struct timespec`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct TimeSpec {
    seconds: i64,
    nanoseconds: i64,
}

impl TimeSpec {
    fn from_nanos(nanos: u64) -> Self {
        Self {
            seconds: (nanos / 1_000_000_000).cast_signed(),
            nanoseconds: (nanos % 1_000_000_000).cast_signed(),
        }
    }
}

fn address<T>(value: &T) -> usize {
    core::ptr::from_ref(value) as usize
}

fn address_mut<T>(value: &mut T) -> usize {
    core::ptr::from_mut(value) as usize
}

/// The error number of a failed call, or `Ok` of its result.
fn check(result: isize) -> Result<usize, i32> {
    if result < 0 {
        Err(-(result as i32))
    } else {
        Ok(result.unsigned_abs())
    }
}

/// This thread's id.
#[must_use]
pub fn gettid() -> u32 {
    // SAFETY: takes no pointers, changes nothing.
    (unsafe { syscall4(number::GETTID, [0; 4]) }) as u32
}

/// This process's id.
#[must_use]
pub fn getpid() -> u32 {
    // SAFETY: takes no pointers, changes nothing.
    (unsafe { syscall4(number::GETPID, [0; 4]) }) as u32
}

/// The clock of a thread's CPU time, usable from any thread of its process.
///
/// Source: `CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED`, include/linux/posix-timers.h.
#[must_use]
pub fn thread_clock(tid: u32) -> i32 {
    ((!tid).cast_signed() << 3) | 6
}

/// The clock of a process's CPU time, readable from any process.
#[must_use]
pub fn process_clock(pid: u32) -> i32 {
    ((!pid).cast_signed() << 3) | 2
}

/// The calling thread's own CPU clock.
pub const OWN_THREAD_CLOCK: i32 = 3;
/// The calling process's own CPU clock.
pub const OWN_PROCESS_CLOCK: i32 = 2;

/// Nanoseconds of a clock; `None` where its thread or process is gone.
#[must_use]
pub fn clock(id: i32) -> Option<u64> {
    let mut time = TimeSpec::default();
    // SAFETY: the kernel writes a `timespec` into `time`.
    let result = unsafe {
        syscall4(
            number::CLOCK_GETTIME,
            [id as usize, address_mut(&mut time), 0, 0],
        )
    };
    check(result).ok()?;
    Some(
        time.seconds
            .cast_unsigned()
            .wrapping_mul(1_000_000_000)
            .wrapping_add(time.nanoseconds.cast_unsigned()),
    )
}

/// Waits, for so many nanoseconds at least unless a signal comes.
pub fn sleep(nanos: u64) {
    let time = TimeSpec::from_nanos(nanos);
    // SAFETY: the kernel reads a `timespec`; what is left of the time is not asked for.
    let _ = unsafe { syscall4(number::NANOSLEEP, [address(&time), 0, 0, 0]) };
}

/// `struct sigevent`, with `SIGEV_THREAD_ID`.
#[repr(C)]
struct SignalEvent {
    value: u64,
    signal: u32,
    notify: u32,
    tid: u32,
    reserved: [u32; 11],
}

/// Creates a timer on a thread's CPU clock that signals exactly that thread.
///
/// # Errors
///
/// The kernel's error number: `EAGAIN` at `RLIMIT_SIGPENDING`, `EPERM` or `ENOSYS` under a seccomp filter, `EINVAL`
/// where the thread has ended.
pub fn timer_create(tid: u32, signal: u32, value: u64) -> Result<i32, i32> {
    const SIGEV_THREAD_ID: u32 = 4;
    let event = SignalEvent {
        value,
        signal,
        notify: SIGEV_THREAD_ID,
        tid,
        reserved: [0; 11],
    };
    let mut timer: i32 = 0;
    let arguments = [
        thread_clock(tid) as usize,
        address(&event),
        address_mut(&mut timer),
        0,
    ];
    // SAFETY: the kernel reads a `sigevent` from `event` and writes an `int` into `timer`.
    let result = unsafe { syscall4(number::TIMER_CREATE, arguments) };
    check(result).map(|_| timer)
}

/// Arms a timer: first after `first` nanoseconds of CPU time, then every `interval`.
///
/// # Errors
///
/// The kernel's error number.
pub fn timer_settime(timer: i32, first: u64, interval: u64) -> Result<(), i32> {
    let times = [TimeSpec::from_nanos(interval), TimeSpec::from_nanos(first)];
    // SAFETY: the kernel reads an `itimerspec` (interval, value) from `times`.
    let result = unsafe {
        syscall4(
            number::TIMER_SETTIME,
            [timer as usize, 0, address(&times), 0],
        )
    };
    check(result).map(|_| ())
}

/// Deletes a timer.
pub fn timer_delete(timer: i32) {
    // SAFETY: takes no pointers; the timer is ours. An unknown number is refused by the kernel.
    let _ = unsafe { syscall4(number::TIMER_DELETE, [timer as usize, 0, 0, 0]) };
}

/// Arms `ITIMER_PROF` of this process with an interval in nanoseconds; 0 disarms it.
///
/// # Errors
///
/// The kernel's error number.
pub fn setitimer_prof(interval: u64) -> Result<(), i32> {
    const ITIMER_PROF: usize = 2;
    // A `timeval` counts microseconds; below one it would disarm the timer.
    let micros = if interval == 0 {
        0
    } else {
        (interval / 1000).max(1)
    };
    let half = TimeSpec {
        seconds: (micros / 1_000_000).cast_signed(),
        nanoseconds: (micros % 1_000_000).cast_signed(),
    };
    let times = [half, half];
    // SAFETY: the kernel reads an `itimerval` (two pairs of words) from `times`.
    let result = unsafe { syscall4(number::SETITIMER, [ITIMER_PROF, address(&times), 0, 0]) };
    check(result).map(|_| ())
}

/// Wakes the reader that sleeps on `word`, in whichever process it is.
pub fn futex_wake(word: &AtomicU32) {
    const FUTEX_WAKE: usize = 1;
    // SAFETY: waking reads nothing through the pointer but its address.
    let _ = unsafe { syscall4(number::FUTEX, [address(word), FUTEX_WAKE, 1, 0]) };
}

/// Copies this process's own memory from `source` without ever faulting. Returns the bytes copied.
///
/// # Safety
///
/// `destination` is valid for writes of `len` bytes that nobody else reads or writes meanwhile.
pub unsafe fn copy_memory(destination: *mut u8, source: u64, len: usize) -> usize {
    let local = [destination as usize, len];
    let remote = [source as usize, len];
    let arguments = [
        getpid() as usize,
        address(&local),
        1,
        address(&remote),
        1,
        0,
    ];
    // SAFETY: the kernel reads two `iovec`s and writes at most `len` bytes to `destination`, which the caller owns; a
    // `source` that is not readable ends the copy, not the process.
    let result = unsafe { syscall6(number::PROCESS_VM_READV, arguments) };
    check(result).unwrap_or(0)
}

/// `struct sigaction` of the kernel.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SignalAction {
    /// Address of the handler, or 0 (default), or 1 (ignore).
    pub handler: usize,
    /// Flags.
    pub flags: usize,
    /// Where the handler returns to.
    pub restorer: usize,
    /// Signals blocked meanwhile, signal 1 in bit 0.
    pub mask: u64,
}

/// Sets a signal's action and gives back the one before.
///
/// # Errors
///
/// The kernel's error number.
///
/// # Safety
///
/// `action.handler` may run on any thread at any instruction from now on.
pub unsafe fn sigaction(signal: u32, action: Option<&SignalAction>) -> Result<SignalAction, i32> {
    let mut old = SignalAction::default();
    let new = action.map_or(0, address);
    // SAFETY: the kernel reads a `sigaction` from `new` where not null and writes one into `old`; the caller answers
    // for the handler.
    let result = unsafe {
        syscall4(
            number::RT_SIGACTION,
            [signal as usize, new, address_mut(&mut old), 8],
        )
    };
    check(result).map(|_| old)
}

/// The address of a signal's handler, or 0 (default), or 1 (ignored).
///
/// # Errors
///
/// The kernel's error number.
pub fn signal_handler(signal: u32) -> Result<usize, i32> {
    // SAFETY: changes nothing.
    unsafe { sigaction(signal, None) }.map(|action| action.handler)
}

/// Operations of [`sigprocmask`].
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum Mask {
    /// Block these too.
    Block = 0,
    /// Unblock these.
    Unblock = 1,
    /// Block exactly these.
    Set = 2,
}

/// Changes this thread's signal mask and gives back the one before.
pub fn sigprocmask(how: Mask, mask: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: the kernel reads eight bytes from `mask` and writes eight into `old`.
    let _ = unsafe {
        syscall4(
            number::RT_SIGPROCMASK,
            [how as usize, address(&mask), address_mut(&mut old), 8],
        )
    };
    old
}

/// Sends a signal to a thread of this process.
pub fn tgkill(pid: u32, tid: u32, signal: u32) {
    // SAFETY: takes no pointers.
    let _ = unsafe {
        syscall4(
            number::TGKILL,
            [pid as usize, tid as usize, signal as usize, 0],
        )
    };
}

/// This thread's name, NUL-padded.
#[must_use]
pub fn thread_name() -> [u64; 2] {
    const PR_GET_NAME: usize = 16;
    let mut name = [0_u64; 2];
    // SAFETY: the kernel writes 16 bytes into `name`.
    let _ = unsafe { syscall4(number::PRCTL, [PR_GET_NAME, address_mut(&mut name), 0, 0]) };
    name
}

/// This thread's pointer (the base of `fs`); 0 where unknown.
///
/// A system call rather than a load through `fs:0`: a thread made without a control block has none to read.
#[must_use]
pub fn thread_pointer() -> u64 {
    const ARCH_GET_FS: usize = 0x1003;
    let mut base = 0_u64;
    // SAFETY: the kernel writes eight bytes into `base`.
    let _ = unsafe {
        syscall4(
            number::ARCH_PRCTL,
            [ARCH_GET_FS, address_mut(&mut base), 0, 0],
        )
    };
    base
}

/// The inode of this process's namespace of process ids; 0 where `/proc` does not tell.
#[must_use]
pub fn pid_namespace() -> u64 {
    /// `struct stat`, of which the second word is the inode number.
    const STAT_WORDS: usize = 18;
    const AT_FDCWD: usize = -100_isize as usize;
    let path = b"/proc/self/ns/pid\0";
    let mut stat = [0_u64; STAT_WORDS];
    // SAFETY: the path is NUL-terminated; the kernel writes a `struct stat` (144 bytes) into `stat`.
    let result = unsafe {
        syscall4(
            number::NEWFSTATAT,
            [AT_FDCWD, path.as_ptr() as usize, address_mut(&mut stat), 0],
        )
    };
    let [_, inode, ..] = stat;
    if check(result).is_ok() { inode } else { 0 }
}

/// The monotonic clock, which all processes of a machine share.
pub const MONOTONIC_CLOCK: i32 = 1;

/// Reads a file into `buffer` and returns the bytes read; 0 on any failure.
///
/// # Safety
///
/// `path` ends with a NUL; `buffer` is valid for writes of `len` bytes that nobody else uses meanwhile.
pub unsafe fn read_file(path: &[u8], buffer: *mut u8, len: usize) -> usize {
    const O_CLOEXEC: usize = 0o2_000_000;
    debug_assert!(path.last() == Some(&0));
    // SAFETY: the path is NUL-terminated.
    let opened = unsafe { syscall4(number::OPEN, [path.as_ptr() as usize, O_CLOEXEC, 0, 0]) };
    let Ok(descriptor) = check(opened) else {
        return 0;
    };
    let mut filled = 0;
    while filled < len {
        let rest = [descriptor, buffer as usize + filled, len - filled, 0];
        // SAFETY: the kernel writes at most the rest of the buffer.
        match check(unsafe { syscall4(number::READ, rest) }) {
            Ok(0) | Err(_) => break,
            Ok(read) => filled += read,
        }
    }
    // SAFETY: closes the descriptor opened above, which nothing else knows.
    let _ = unsafe { syscall4(number::CLOSE, [descriptor, 0, 0, 0]) };
    filled
}
