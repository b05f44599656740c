//! What the caller wants signals to do, where this process needs something else: it is restored for CMD.
//!
//! Rust's start-up ignores `SIGPIPE`, and `Command` makes it the default in what it starts, whatever the caller had. And a
//! write beyond `ulimit -f` must be an error here, not the end by `SIGXFSZ`.
//!
//! # Safety
//!
//! This file is `unsafe` because it asks for actions of signals before Rust's start-up, and sets them.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// The signals whose action differs, and whether the caller ignores them.
static IGNORED: [(i32, AtomicBool); 2] = [
    (libc::SIGPIPE, AtomicBool::new(false)),
    (libc::SIGXFSZ, AtomicBool::new(false)),
];

/// Called by the loader before `main`, and so before Rust's start-up: the tests of both kinds of caller fail without it.
// SAFETY: the section holds pointers to functions, which are called one after the other, on the only thread; the
// function needs nothing that is set up later.
#[unsafe(link_section = ".init_array")]
#[used]
static AT_START: extern "C" fn() = remember;

extern "C" fn remember() {
    for (signal, ignored) in &IGNORED {
        // Relaxed: there is one thread.
        ignored.store(is_ignored(*signal), Ordering::Relaxed);
    }
}

/// Whether a signal is ignored now.
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: zero is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, and changes nothing.
    unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    action.sa_sigaction == libc::SIG_IGN
}

/// Makes a write beyond `ulimit -f` an error.
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Makes a program start with the actions that our caller gave us.
pub(crate) fn restore_in(command: &mut Command) {
    let restore = || {
        for (signal, ignored) in &IGNORED {
            // Relaxed: written before there was a second thread.
            let action = if ignored.load(Ordering::Relaxed) {
                libc::SIG_IGN
            } else {
                libc::SIG_DFL
            };
            // SAFETY: no handler is installed.
            if unsafe { libc::signal(*signal, action) } == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: makes system calls only.
    unsafe { command.pre_exec(restore) };
}
