//! C programs under test, compiled when a test needs them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of this test run's own.
pub(crate) fn folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "agent-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// What all programs begin with: headers, and `burn`, which uses so many milliseconds of its thread's CPU time.
const PRELUDE: &str = r"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
extern char **environ;
static void burn(int milliseconds) {
    struct timespec from, now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
    do {
        for (volatile int i = 0; i < 100000; i++) { }
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    } while ((now.tv_sec - from.tv_sec) * 1000 + (now.tv_nsec - from.tv_nsec) / 1000000 < milliseconds);
}
";

/// Compiles a program; `None` (with the reason printed) where the compiler cannot do it with these `flags`.
#[track_caller]
pub(crate) fn try_compile(name: &str, body: &str, flags: &[&str]) -> Option<PathBuf> {
    let folder = folder();
    let (source, program) = (folder.join(format!("{name}.c")), folder.join(name));
    let freestanding = flags.contains(&"-ffreestanding");
    std::fs::write(
        &source,
        if freestanding {
            body.to_owned()
        } else {
            format!("{PRELUDE}{body}")
        },
    )
    .unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-g", "-O1", "-pthread", "-Wno-deprecated-declarations"]);
    let output = compiler
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .args(flags)
        .output()
        .unwrap();
    if output.status.success() {
        return Some(program);
    }
    eprintln!(
        "cc cannot make {name} with {flags:?}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    None
}

/// Compiles a program.
#[track_caller]
pub(crate) fn compile(name: &str, body: &str) -> PathBuf {
    try_compile(name, body, &[]).expect("the program can be compiled")
}
