//! Static programs: those with the note that they join recordings by themselves, and those without.

use crate::harness::{Recording, Workshop, best_of_three, skip, within};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Builds the package `programs/joins`, once, and gives back where its programs are. `None` (with the reason printed) where
/// static programs cannot be built.
fn programs() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let package = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/record/programs/joins");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("joins");
    let cargo = |options: &[&str]| {
        let mut cargo = Command::new(env!("CARGO"));
        // In its folder, cargo finds its configuration: the target, and the flags for static linking.
        cargo.current_dir(package).args(options);
        cargo.arg("--target-dir").arg(&target);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            let outer = [
                "CARGO_ENCODED",
                "CARGO_PROFILE_",
                "CARGO_TARGET_",
                "CARGO_BUILD_",
            ];
            if outer.iter().any(|outer| name.starts_with(outer))
                || ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"].contains(&&*name)
            {
                cargo.env_remove(&*name);
            }
        }
        cargo.output().unwrap()
    };
    // What it needs is what the workspace needs, so it is there already; if not, it is fetched.
    let mut output = cargo(&["build", "--locked", "--offline"]);
    if !output.status.success() {
        output = cargo(&["build", "--locked"]);
    }
    if output.status.success() {
        return Some(target.join("x86_64-unknown-linux-gnu/debug"));
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("cannot find -lc") || errors.contains("libc.a"),
        "{errors}"
    );
    skip("static programs that join", "no static C library here");
    None
}

/// The segments of notes of a program, and the names of their notes.
fn notes(program: &Path) -> String {
    let output = Command::new("readelf")
        .args(["--notes", "--segments", "--wide"])
        .arg(program)
        .output()
        .expect("binutils is installed");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn note_is_in_static_programs_that_join_and_in_no_others() {
    let Some(programs) = programs() else { return };
    let (joins, outside) = (
        notes(&programs.join("joins")),
        notes(&programs.join("outside")),
    );
    for facts in [&joins, &outside] {
        assert!(!facts.contains("INTERP"), "{facts}");
    }
    // The second table of `readelf` says which sections are in which segment.
    let loaded = joins.lines().filter(|line| {
        line.contains(".note.selvedge")
            && line
                .trim()
                .starts_with(|first: char| first.is_ascii_digit())
    });
    assert_eq!(loaded.count(), 2, "in PT_LOAD and in PT_NOTE: {joins}");
    assert!(!outside.contains(".note.selvedge"), "{outside}");
}

/// All three threads were recorded, in full.
fn is_recorded(recording: &Recording) {
    let stacks = recording.stacks();
    for name in ["main", "known", "unknown"] {
        let through = stacks.through(&format!("joins::hot_in_{name}_thread"));
        assert!(through.count() > 0, "{name}");
        within(name, through.seconds(), 0.3..=0.75);
    }
    assert_eq!(recording.foreign_messages(), [""; 0]);
    let used = recording.said("used");
    within("total", recording.total() / used, 0.9..=1.1);
}

#[test]
fn static_program_that_joins_is_recorded() {
    let Some(programs) = programs() else { return };
    for engine in ["timer", "itimer", "perf"] {
        best_of_three(|| {
            let workshop = Workshop::new();
            let recording = workshop
                .record()
                .options(&["--engine", engine])
                .run([
                    programs.join("joins").as_os_str(),
                    "burn".as_ref(),
                    "0.5".as_ref(),
                ])
                .exits(7);
            is_recorded(&recording);
        });
    }
}

#[test]
fn static_program_that_joins_is_recorded_as_a_child() {
    let Some(programs) = programs() else { return };
    let program = programs.join("joins");
    // In a process of its own, and in the place of the shell.
    for script in ["\"$1\" burn 0.5; exit $?", "exec \"$1\" burn 0.5"] {
        best_of_three(|| {
            let workshop = Workshop::new();
            let command = ["sh", "-c", script, "sh", program.to_str().unwrap()];
            let recording = workshop.record().run(command).exits(7);
            is_recorded(&recording);
        });
    }
}

#[test]
fn static_program_that_joins_is_given_the_session_only() {
    let Some(programs) = programs() else { return };
    let program = programs.join("joins").display().to_string();
    let told = |options: &[&str], command: &[&str]| {
        let workshop = Workshop::new();
        let recording = workshop.record().options(options).run(command).exits(7);
        assert_eq!(recording.foreign_messages(), [""; 0]);
        recording.stdout.clone()
    };
    let joined = "LD_PRELOAD false\nSELVEDGE_SESSION true\njoined true\n";
    let apart = "LD_PRELOAD false\nSELVEDGE_SESSION false\njoined false\n";
    assert_eq!(told(&[], &[&program, "environment"]), joined);
    let script = format!("{program} environment; exit $?");
    assert_eq!(told(&[], &["sh", "-c", &script]), joined);
    assert_eq!(told(&["--no-children"], &["sh", "-c", &script]), apart);
    // Its own children join by themselves as well, if they are to.
    assert_eq!(told(&[], &[&program, "start"]), joined);
    let alone = told(&["--no-children"], &[&program, "start"]);
    assert!(alone.ends_with("joined false\n"), "{alone}");
    let script = format!("exec {program} environment");
    assert_eq!(told(&["--no-children"], &["sh", "-c", &script]), joined);
    // By way of a script that names it as its interpreter.
    let workshop = Workshop::new();
    let file = workshop.path("environment");
    std::fs::write(&file, format!("#!{program}\n")).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let recording = workshop.record().run([&file]).exits(2);
    assert!(
        !recording.stderr.contains("did not"),
        "{}",
        recording.stderr
    );
}

#[test]
fn static_program_that_does_not_join_is_refused_and_unharmed_as_a_child() {
    let Some(programs) = programs() else { return };
    let program = programs.join("outside").display().to_string();
    let workshop = Workshop::new();
    let recording = workshop.record().run([&program]).exits(2);
    let refusal = format!(
        "selvedge: cannot record {program}: it is statically linked, so no agent can be loaded into it; "
    );
    assert!(
        recording.stderr.starts_with(&refusal),
        "{}",
        recording.stderr
    );
    assert_eq!(recording.stdout, "");
    let script = format!("{program}; exit $?");
    let recording = workshop.record().run(["sh", "-c", &script]).exits(0);
    assert_eq!(
        recording.stdout,
        "LD_PRELOAD false\nSELVEDGE_SESSION false\n"
    );
    assert_eq!(recording.foreign_messages(), [""; 0]);
}

#[test]
fn static_program_of_another_version_is_told_so() {
    let Some(programs) = programs() else { return };
    let mut bytes = std::fs::read(programs.join("joins")).unwrap();
    let name = b"Selvedge\0\0\0\0";
    let at = bytes.windows(name.len()).position(|part| part == name);
    bytes[at.unwrap() + name.len()] ^= 0x40;
    let workshop = Workshop::new();
    let program = workshop.path("joins");
    std::fs::write(&program, bytes).unwrap();
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let recording = workshop.record().run(["./joins", "environment"]).exits(2);
    let said = &recording.stderr;
    assert!(
        said.contains("another version of selvedge") && said.lines().count() == 1,
        "{said}"
    );
    let recording = workshop
        .record()
        .run(["sh", "-c", "./joins environment; exit $?"])
        .exits(7);
    assert!(
        recording.stdout.contains("SELVEDGE_SESSION false"),
        "{}",
        recording.stdout
    );
}
