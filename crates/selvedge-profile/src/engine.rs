//! What the kernel offers for producing signals.
//!
//! # Safety
//!
//! This file is `unsafe` because it makes system calls that take structures.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use crate::perf;
use selvedge_sample::region::Engine;

/// An engine as a user names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The best that is permitted: per-thread timers.
    #[default]
    Auto,
    /// Per-thread POSIX CPU-time timers: cheap, unprivileged, at most one signal per kernel tick, exact in weight.
    Timer,
    /// `perf_event` task clocks: any rate that can be asked for, 15 to 22 µs a signal.
    Perf,
    /// `ITIMER_PROF`: one timer per process, which a program then cannot use itself.
    Itimer,
}

impl std::str::FromStr for EngineChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "timer" => Ok(Self::Timer),
            "perf" => Ok(Self::Perf),
            "itimer" => Ok(Self::Itimer),
            _ => Err(Error::setting(format!(
                "cannot use the engine '{name}': choose auto, timer, perf or itimer"
            ))),
        }
    }
}

impl EngineChoice {
    /// The engine to use here.
    ///
    /// # Errors
    ///
    /// `perf` was asked for and the kernel does not permit it.
    pub fn resolve(self) -> Result<Engine> {
        match self {
            Self::Auto | Self::Timer => Ok(Engine::Timer),
            Self::Itimer => Ok(Engine::Itimer),
            Self::Perf => perf::permitted().map(|()| Engine::Perf).map_err(|e| {
                Error::os("use the perf engine (lower kernel.perf_event_paranoid to 2, or use --engine timer)", e)
            }),
        }
    }
}

/// Nanoseconds between two ticks of this kernel, to which CPU-time timers are bound.
///
/// The coarse clock advances once a tick (time(7), "The software clock, HZ, and jiffies").
#[must_use]
pub fn tick_nanos() -> u64 {
    let mut resolution = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes a `timespec`.
    let result = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) };
    let nanos =
        resolution.tv_sec.unsigned_abs() * 1_000_000_000 + resolution.tv_nsec.unsigned_abs();
    if result == 0 && nanos > 0 {
        nanos
    } else {
        4_000_000
    }
}

/// Queues a signal with a value for one thread of another process of the same user.
pub(crate) fn queue_signal(pid: u32, tid: u32, signal: i32, value: u64) {
    #[repr(C)]
    struct Info {
        signal: i32,
        errno: i32,
        code: i32,
        padding: i32,
        pid: u32,
        uid: u32,
        value: u64,
        rest: [u64; 12],
    }
    // SAFETY: takes no arguments.
    let uid = unsafe { libc::getuid() };
    let info = Info {
        signal,
        errno: 0,
        code: libc::SI_QUEUE,
        padding: 0,
        pid: std::process::id(),
        uid,
        value,
        rest: [0; 12],
    };
    // SAFETY: the kernel reads a `siginfo_t` (128 bytes) from `info`. A thread that has ended gets nothing.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            pid,
            tid,
            signal,
            &raw const info,
        )
    };
}
