//! Profiles as files: the formats that are written and read, and what is printed of them.

use crate::harness::Workshop;
use crate::streams::shell;
use std::fs;

/// What a line of shell prints, if it succeeds.
#[track_caller]
fn printed(workshop: &Workshop, script: &str) -> String {
    let output = shell(workshop, script);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line that a line of shell says when it fails with status 2.
#[track_caller]
fn refused(workshop: &Workshop, script: &str) -> String {
    let output = shell(workshop, script);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{script}: {said}");
    assert_eq!(said.lines().count(), 1, "{script}: {said}");
    said
}

#[test]
fn recordings_are_written_in_the_format_of_their_ending_and_read_by_their_contents() {
    let workshop = Workshop::new();
    let program = "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'";
    for (ending, start) in [
        ("pb.gz", &b"\x1f\x8b"[..]),
        ("pb", b"\n"),
        ("prof", &[0; 8]),
        ("collapsed", b""),
        ("speedscope.json", b"{"),
        ("html", b"<!doctype html>"),
        ("unknown", b"\x1f\x8b"),
    ] {
        printed(
            &workshop,
            &format!("$S record -q -o a.{ending} -- {program}"),
        );
        let bytes = fs::read(workshop.path(&format!("a.{ending}"))).unwrap();
        assert!(bytes.starts_with(start), "{ending}");
        // Under a name that says nothing, or something else.
        for name in ["b", "b.collapsed", "b.pb.gz"] {
            let script = format!("cp a.{ending} {name}; $S top {name}");
            match ending {
                "speedscope.json" | "html" => {
                    let said = refused(&workshop, &script);
                    assert!(said.contains("can be written only"), "{said}");
                }
                _ => assert!(printed(&workshop, &script).contains("flat%"), "{ending}"),
            }
        }
    }
}

#[test]
fn several_profiles_are_added_up() {
    let workshop = Workshop::new();
    fs::write(workshop.path("a.collapsed"), "main;hot 3\n").unwrap();
    fs::write(workshop.path("b.collapsed"), "main;hot 4\nmain;cold 5\n").unwrap();
    printed(&workshop, "$S convert a.collapsed a.pb.gz");
    let top = printed(&workshop, "$S top a.pb.gz b.collapsed");
    assert!(top.contains("12 total"), "{top}");
    let sum = printed(
        &workshop,
        "$S convert --format collapsed a.pb.gz b.collapsed -",
    );
    assert_eq!(sum, "main;cold 5\nmain;hot 7\n");
    printed(&workshop, "$S flamegraph a.pb.gz b.collapsed");
    let page = fs::read_to_string(workshop.path("a.html")).unwrap();
    assert!(page.contains("<title>a.pb.gz and 1 more</title>"));
    assert_eq!(
        printed(&workshop, "$S convert --format collapsed - - <a.pb.gz"),
        "main;hot 3\n"
    );
    fs::write(workshop.path("c"), "x").unwrap();
    assert!(refused(&workshop, "$S top a.pb.gz c").contains("cannot read c"));
}

#[test]
fn collapsed_stacks_of_time_are_shown_as_time() {
    let workshop = Workshop::new();
    let text = "# selvedge: cpu nanoseconds\nmain;hot 1500000000\n";
    fs::write(workshop.path("a"), text).unwrap();
    printed(
        &workshop,
        "$S convert a a.pb.gz; $S convert a.pb.gz a.collapsed",
    );
    assert_eq!(
        fs::read_to_string(workshop.path("a.collapsed")).unwrap(),
        text
    );
    let top = printed(&workshop, "$S top a.collapsed");
    assert!(
        top.contains("Type: cpu") && top.contains("1.50s total"),
        "{top}"
    );
}

#[test]
fn profile_without_anything_to_show_says_so() {
    let workshop = Workshop::new();
    fs::write(workshop.path("a"), "# selvedge: cpu nanoseconds\n").unwrap();
    fs::write(workshop.path("b"), "main 0\n").unwrap();
    for (file, words) in [("a", "no samples"), ("b", "add up to 0")] {
        let output = shell(&workshop, &format!("$S top {file}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn what_no_profile_can_be_is_refused_in_a_line() {
    let workshop = Workshop::new();
    fs::File::create(workshop.path("sparse"))
        .unwrap()
        .set_len(3 << 30)
        .unwrap();
    let said = refused(&workshop, "$S top sparse");
    assert!(said.contains("512 MiB"), "{said}");
    fs::write(workshop.path("a"), "main 1\n").unwrap();
    let said = refused(&workshop, "$S convert a a.prof");
    assert!(said.contains("legacy") && !said.contains("-o"), "{said}");
    let said = refused(&workshop, "$S convert a /no/such/folder/a.pb");
    assert!(
        said.contains("/no/such/folder/a.pb") && !said.contains("-o"),
        "{said}"
    );
}

/// `script` gives a command a terminal.
#[test]
fn binary_profile_does_not_go_to_a_terminal() {
    let workshop = Workshop::new();
    fs::write(workshop.path("a"), "main 1\n").unwrap();
    if shell(&workshop, "script -V").status.code() != Some(0) {
        return crate::harness::skip("binary to a terminal", "no script(1) here");
    }
    for command in ["record -o - -- echo ran", "convert --format pprof a -"] {
        let script = format!("script -qec \"$S {command}\" /dev/null");
        let output = shell(&workshop, &script);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("to a terminal") && !said.contains("ran"),
            "{said}"
        );
    }
}
