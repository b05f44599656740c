//! The agent as a file: what it needs and what it offers.

use crate::session::AGENT;
use std::process::Command;

fn readelf(option: &str) -> String {
    let output = Command::new("readelf")
        .args([option, "--wide", AGENT])
        .output()
        .expect("binutils is installed");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// Names and kinds of the dynamic symbols: `(name, binding, is defined)`.
fn symbols() -> Vec<(String, String, bool)> {
    let text = readelf("--dyn-syms");
    let mut symbols = Vec::new();
    for line in text.lines() {
        if let [_, _, _, _, binding, _, section, name] =
            line.split_whitespace().collect::<Vec<_>>()[..]
            && binding != "LOCAL"
            && binding != "Bind"
        {
            symbols.push((name.to_owned(), binding.to_owned(), section != "UND"));
        }
    }
    symbols
}

#[test]
fn needs_no_library_and_no_version_of_one() {
    assert!(!readelf("--dynamic").contains("NEEDED"));
    let versions = Command::new("objdump")
        .args(["-T", AGENT])
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&versions.stdout).contains("GLIBC"));
    // Weak: a program that has no C library starts all the same.
    let wanted: Vec<_> = symbols()
        .into_iter()
        .filter(|(_, _, defined)| !defined)
        .collect();
    let weak = |name: &str| (name.to_owned(), "WEAK".to_owned(), false);
    assert_eq!(wanted, [weak("dl_iterate_phdr"), weak("environ")]);
}

#[test]
fn uses_no_thread_local_storage_and_no_executable_stack() {
    let segments = readelf("--segments");
    assert!(!segments.contains("TLS"), "{segments}");
    let stack = segments
        .lines()
        .find(|line| line.contains("GNU_STACK"))
        .unwrap();
    assert!(!stack.contains("RWE"), "{stack}");
    assert!(readelf("--dynamic").contains("BIND_NOW"));
}

#[test]
fn offers_its_hooks_only() {
    let mut offered: Vec<_> = symbols()
        .into_iter()
        .filter(|(_, _, defined)| *defined)
        .map(|(name, ..)| name)
        .collect();
    offered.sort();
    let hooks = [
        "_Exit",
        "_Fork",
        "__sigaction",
        "__sysv_signal",
        "_exit",
        "bsd_signal",
        "execl",
        "execle",
        "execlp",
        "execv",
        "execve",
        "execveat",
        "execvp",
        "execvpe",
        "fexecve",
        "mlockall",
        "posix_spawn",
        "posix_spawnp",
        "prctl",
        "pthread_create",
        "quick_exit",
        "sigaction",
        "sigignore",
        "siginterrupt",
        "signal",
        "sigset",
        "sigtimedwait",
        "sigwait",
        "sigwaitinfo",
        "ssignal",
        "syscall",
        "sysv_signal",
    ];
    assert_eq!(offered, hooks);
}

#[test]
fn cannot_panic_and_is_small() {
    let text = readelf("--symbols");
    assert!(
        text.contains("selvedge_sample"),
        "the symbols are there to be looked at"
    );
    let panics: Vec<&str> = text.lines().filter(|line| line.contains("panic")).collect();
    assert!(panics.is_empty(), "{panics:?}");
    let size = std::fs::metadata(AGENT).unwrap().len();
    println!("the agent is {size} bytes");
    assert!(size < 128 * 1024);
}
