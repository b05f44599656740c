//! A proof that fits in a test run, and the proof of the prover.
//!
//! `cargo test -p selvedge-prover --test proof -- --nocapture` prints the counts. docs/PROOF.md has the long one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Runs a command that must succeed.
fn run(command: &mut Command) {
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg("build").arg("--quiet");
    cargo
}

/// The `selvedge` of this build, made if it is not there.
fn selvedge() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        run(cargo().args(["-p", "selvedge-cli", "--bin", "selvedge"]));
        let prover = Path::new(env!("CARGO_BIN_EXE_selvedge-prover"));
        let path = prover.with_file_name("selvedge");
        assert!(path.is_file(), "there is no {}", path.display());
        path
    })
}

/// The library of handlers that are wrong on purpose.
fn handlers() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/handlers/Cargo.toml");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("handlers");
        run(cargo()
            .args(["--release", "--locked", "--no-default-features"])
            .arg("--manifest-path")
            .arg(package)
            .arg("--target-dir")
            .arg(&target));
        target.join("release/libhandlers.so")
    })
}

/// Builds a program.
fn build(compiler: &str, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/proof/programs");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    run(Command::new(compiler)
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(folder.join(source)));
    program
}

/// The last line of the prover's JSON.
#[derive(Debug)]
struct Totals {
    samples: u64,
    exact: u64,
    wrong: u64,
}

fn totals(output: &Output) -> Totals {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().next_back().unwrap_or_default();
    let json: serde_json::Value =
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error} in {output:?}"));
    let number = |key: &str| {
        json[key]
            .as_u64()
            .unwrap_or_else(|| panic!("no {key} in {last}"))
    };
    assert!(number("steps") >= number("pcs") && number("samples") >= number("pcs"));
    let (samples, exact, wrong) = (number("samples"), number("exact"), number("wrong"));
    assert_eq!(samples, exact + number("marked") + wrong);
    Totals {
        samples,
        exact,
        wrong,
    }
}

fn prover(options: &[&str], command: &[&Path]) -> Command {
    let mut prover = Command::new(env!("CARGO_BIN_EXE_selvedge-prover"));
    // A backtrace of a panic would be millions of instructions, none of them ours.
    prover
        .env_remove("RUST_BACKTRACE")
        .env("LC_ALL", "C.UTF-8")
        .args(["--quiet", "--json"])
        .args(options)
        .arg("--")
        .args(command);
    prover
}

/// Bytes of stack that the handler may use: an alternate stack can have 8 KiB in all.
const HANDLER_STACK: u64 = 1536;

/// Proves `selvedge record` on a program.
fn prove(options: &[&str], command: &[&Path]) {
    let selvedge = selvedge().to_str().expect("a path that is text");
    let mut options = options.to_vec();
    options.extend(["--selvedge", selvedge]);
    let output = prover(&options, command).output().expect("the prover runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let found = String::from_utf8_lossy(&output.stdout);
    println!(
        "{command:?}: {}",
        found.lines().next_back().unwrap_or_default()
    );
    assert!(output.status.success(), "{said}{found}");
    assert_eq!(totals(&output).wrong, 0);
    let stack = found.lines().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line["handler_stack_bytes"].as_u64()
    });
    assert!(
        stack.is_some_and(|bytes| (200..=HANDLER_STACK).contains(&bytes)),
        "the handler used {stack:?} bytes of stack"
    );
}

const FRAMELESS: [&str; 4] = [
    "-O2",
    "-fomit-frame-pointer",
    "-fcf-protection",
    "-Wl,-z,lazy",
];

#[test]
fn true_() {
    prove(&[], &[Path::new("/bin/true")]);
}

#[test]
fn lazily_bound_frameless_program() {
    prove(&[], &[&build("cc", "lazy.c", "lazy", &FRAMELESS)]);
}

#[test]
fn clocks_of_the_vdso() {
    let program = build("cc", "clock.c", "clock", &["-O2"]);
    prove(&["--visits", "3"], &[&program]);
}

#[test]
fn exception_through_frames_with_destructors() {
    let program = build("c++", "thrown.cpp", "thrown", &["-O2"]);
    // Of the instructions around the jump to a landing, 6 are marked.
    prove(&["--exact", "99.8"], &[&program, Path::new("12")]);
}

#[test]
fn panic_that_is_caught() {
    // `rust_panic` keeps its frame in `rbp`, which libgcc overwrites before it jumps to a landing: 43 are marked.
    prove(
        &["--exact", "99.3"],
        &[&build("rustc", "panics.rs", "panics", &["-O"])],
    );
}

/// A context that is about to run for the first time has no callers yet, and unwind information of glibc's functions says
/// nothing true of the instructions around a switch: these are marked.
#[test]
fn threads_and_contexts() {
    let program = build("cc", "threads.c", "threads", &["-O2", "-pthread"]);
    prove(&["--visits", "2", "--exact", "99"], &[&program]);
}

#[test]
fn jumps_and_switches_with_frame_pointers() {
    let program = build("cc", "contexts.c", "contexts", &["-O0"]);
    prove(&["--exact", "99"], &[&program]);
}

/// Hand-written code without unwind information, and frames that are aligned.
#[test]
fn odd_frames() {
    let program = build("cc", "frames.c", "frames", &FRAMELESS);
    prove(&["--exact", "99.3"], &[&program]);
}

#[test]
fn stripped_program() {
    let program = build("cc", "lazy.c", "stripped", &["-O1", "-s", "-Wl,-z,now"]);
    prove(&[], &[&program]);
}

/// Every instruction of these functions, each time, not once.
#[test]
fn windows_are_interrupted_always() {
    let program = build("cc", "lazy.c", "windows", &FRAMELESS);
    let selvedge = selvedge().to_str().expect("a path that is text");
    let samples = |options: &[&str]| {
        let mut options = options.to_vec();
        options.extend(["--selvedge", selvedge]);
        totals(
            &prover(&options, &[&program])
                .output()
                .expect("the prover runs"),
        )
        .samples
    };
    let (once, always) = (
        samples(&[]),
        samples(&["--window", "compare", "--window", "realigned"]),
    );
    assert!(
        always > once,
        "{always} samples with windows, {once} without"
    );
}

/// The prover is proved: each planted fault is reported, and without one nothing is.
#[test]
fn planted_faults_are_reported() {
    let program = build(
        "cc",
        "lazy.c",
        "planted",
        &["-O2", "-fno-omit-frame-pointer"],
    );
    let library = handlers().to_str().expect("a path that is text");
    let judged = |fault: &str| {
        let output = prover(&["--preload", library], &[&program])
            .env("HANDLERS_WALKER", format!("planted-{fault}"))
            .output()
            .expect("the prover runs");
        let totals = totals(&output);
        println!("planted-{fault}: {totals:?}");
        (output, totals)
    };
    let (output, none) = judged("none");
    assert!(output.status.success(), "{output:?}");
    assert!(none.samples >= 1000 && none.wrong == 0, "{none:?}");
    for fault in ["row", "dropped", "swapped", "stale-module", "frame-pointer"] {
        let (output, found) = judged(fault);
        assert_eq!(output.status.code(), Some(1), "{fault}: {output:?}");
        assert!(
            found.wrong >= 10 && found.exact < none.exact,
            "{fault}: {found:?}"
        );
    }
}

/// What proves too little is no proof, whatever is in it.
#[test]
fn too_few_samples_and_too_few_exact_ones_fail() {
    let selvedge = selvedge().to_str().expect("a path that is text");
    let program = build("cc", "lazy.c", "inexact", &FRAMELESS);
    let run = |options: &[&str]| {
        let mut options = options.to_vec();
        options.extend(["--selvedge", selvedge]);
        let output = prover(&options, &[&program]).output();
        output.expect("the prover runs")
    };
    let few = run(&["--least", "1000000"]);
    assert_eq!(few.status.code(), Some(1), "{few:?}");
    // Around a long jump, two instructions are marked.
    let inexact = run(&["--exact", "100"]);
    assert_eq!(inexact.status.code(), Some(1), "{inexact:?}");
    assert_eq!(run(&["--exact", "101"]).status.code(), Some(2));
}

/// Bad input is told in a line.
#[test]
fn what_cannot_be_tried_is_told_in_a_line() {
    for (options, program, what) in [
        (
            &["--selvedge", "/nonexistent/selvedge"][..],
            "/bin/true",
            "/nonexistent/selvedge",
        ),
        (&[], "/nonexistent/program", "/nonexistent/program"),
        (
            &["--preload", "/nonexistent/library"],
            "/bin/true",
            "/nonexistent/library",
        ),
        (
            &["--stdin", "/nonexistent/file"],
            "/bin/true",
            "/nonexistent/file",
        ),
    ] {
        let output = prover(options, &[Path::new(program)])
            .output()
            .expect("the prover runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(what) && said.lines().count() == 1, "{said}");
    }
}
