//! Standard output and error that cannot be written: words are lost, data is not lost silently, nothing panics.

use crate::harness::Workshop;
use std::process::{Command, Output};

/// Runs a line of shell in which `$S` is the command.
pub(crate) fn shell(workshop: &Workshop, script: &str) -> Output {
    Command::new("bash")
        .args(["-c", script])
        .env("S", env!("CARGO_BIN_EXE_selvedge"))
        .current_dir(&workshop.folder)
        .output()
        .unwrap()
}

#[track_caller]
fn status_and_lines(workshop: &Workshop, script: &str) -> (Option<i32>, usize) {
    let output = shell(workshop, script);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{script}: {said}");
    (output.status.code(), said.lines().count())
}

#[test]
fn full_standard_error_keeps_the_status_of_the_program_and_the_profile() {
    let workshop = Workshop::new();
    let script = "$S record -o a.pb.gz -- sh -c 'exit 7' 2>/dev/full";
    assert_eq!(status_and_lines(&workshop, script).0, Some(7));
    assert!(workshop.path("a.pb.gz").exists());
    let script = "$S record -- no-such-program-here 2>/dev/full";
    assert_eq!(status_and_lines(&workshop, script).0, Some(127));
}

#[test]
fn full_standard_output_is_one_line_and_status_2() {
    let workshop = Workshop::new();
    std::fs::write(workshop.path("a.collapsed"), "main;hot 3\n").unwrap();
    for command in [
        "completions bash",
        "top a.collapsed",
        "doctor",
        "flamegraph -o - a.collapsed",
        "convert --format collapsed a.collapsed -",
        "record -q -o - -- true",
        "--help",
    ] {
        let script = format!("$S {command} >/dev/full");
        assert_eq!(
            status_and_lines(&workshop, &script),
            (Some(2), 1),
            "{command}"
        );
    }
}

#[test]
fn closed_pipe_is_success() {
    let workshop = Workshop::new();
    std::fs::write(workshop.path("a.collapsed"), "main;hot 3\n").unwrap();
    for command in ["completions bash", "top a.collapsed", "doctor"] {
        // Written after the reader is gone.
        let script = format!("(sleep 0.2; $S {command}; echo $? >status) | true; cat status >&2");
        let output = shell(&workshop, &script);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "0\n", "{command}");
    }
}

#[test]
fn signals_that_the_caller_ignores_are_ignored_by_the_program_and_no_others() {
    let workshop = Workshop::new();
    for (trap, ignored) in [
        (":", [0, 0]),
        ("trap '' PIPE", [1, 0]),
        ("trap '' XFSZ", [0, 1]),
        ("trap '' PIPE XFSZ", [1, 1]),
    ] {
        let mask = |before: &str| {
            let script = format!("{trap}; {before} grep SigIgn /proc/self/status");
            let line = String::from_utf8(shell(&workshop, &script).stdout).unwrap();
            let mask = line.trim_start_matches("SigIgn:").trim();
            let mask = u64::from_str_radix(mask, 16).unwrap();
            [13, 25].map(|signal| mask >> (signal - 1) & 1)
        };
        let (alone, recorded) = (mask(""), mask("$S record -q -o a.pb.gz --"));
        assert_eq!((alone, recorded), (ignored, ignored), "{trap}");
    }
}

#[test]
fn limit_of_file_sizes_is_an_error_and_no_death() {
    let workshop = Workshop::new();
    let script = "ulimit -f 8; $S record -q -o a.pb.gz -- true";
    assert_eq!(status_and_lines(&workshop, script), (Some(2), 1));
    let output = shell(&workshop, script);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("ulimit -f"), "{said}");
    // More than the limit, once the recording is over.
    let long = "main;x 1\n".repeat(5000);
    std::fs::write(
        workshop.path("a.collapsed"),
        long.replace('x', &"y".repeat(9)),
    )
    .unwrap();
    let script = "ulimit -f 8; $S convert a.collapsed a.html";
    assert_eq!(status_and_lines(&workshop, script), (Some(2), 1));
}

#[test]
fn recordings_of_one_program_in_one_second_keep_their_files() {
    let workshop = Workshop::new();
    // More than fit into two seconds' worth of names.
    let script = "for i in 1 2 3 4 5 6; do $S record -q --every 50ms -- sleep 0.2 & done; wait";
    assert_eq!(status_and_lines(&workshop, script), (Some(0), 0));
    let files: Vec<_> = std::fs::read_dir(&workshop.folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files.len(), 6, "{files:?}");
    for file in &files {
        assert!(file.ends_with(".pb.gz"), "{file}");
        let bytes = std::fs::read(workshop.path(file)).unwrap();
        selvedge_pprof::model::Profile::read(&bytes).unwrap();
    }
}
