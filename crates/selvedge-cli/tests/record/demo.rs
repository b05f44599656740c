//! The demo, as a program that the agent is loaded into and as one that joins the recording by itself.

use crate::harness::{Recording, Workshop, best_of_three, skip, within};

/// The demo's threads, and what it says of its shares.
fn is_recorded(recording: &Recording) {
    for thread in ["hash", "sort", "count", "shares"] {
        let seconds = recording.stacks().labelled("thread", thread).seconds();
        assert!(seconds > 0.05, "{thread}: {seconds}");
    }
    let through = |name: &str| recording.stacks().through(name).seconds();
    within(
        "half",
        through("selvedge::demo::half") / through("selvedge::demo::shares"),
        0.4..=0.6,
    );
    // All that the threads used is in a sample, or in the row for what they used since their last one.
    let sampled = recording.stacks().seconds();
    within("sampled", sampled / recording.total(), 0.75..=1.0);
}

const DEMO: [&str; 4] = [env!("CARGO_BIN_EXE_selvedge"), "demo", "--seconds", "2"];

#[test]
fn demo_with_the_agent() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop.record().options(&["-F", "250"]).run(DEMO).exits(0);
        is_recorded(&recording);
    });
}

/// The recorder of a static build gives its demo no agent. Here a static program starts the demo of this build so: what
/// it starts is not followed.
#[test]
fn demo_without_the_agent_joins_by_itself() {
    let workshop = Workshop::new();
    let Ok(launcher) = workshop.compile(
        "launcher",
        "int main(int n, char **v) {
           unsetenv(\"LD_PRELOAD\"); setenv(\"SELVEDGE_SESSION\", v[1], 1); execv(v[2], v + 2); return 99; }",
        &["-static"],
    ) else {
        return skip("demo without the agent", "no static C library here");
    };
    for engine in ["timer", "itimer", "perf"] {
        best_of_three(|| {
            let script = "launcher=$1; shift; \"$launcher\" \"$SELVEDGE_SESSION\" \"$@\"; exit $?";
            let launcher = launcher.to_str().unwrap();
            let recording = workshop
                .record()
                .options(&["-F", "250", "--engine", engine])
                .run(["sh", "-c", script, "sh", launcher].into_iter().chain(DEMO))
                .exits(0);
            is_recorded(&recording);
        });
    }
}

#[test]
fn demo_of_a_recording_that_is_over_says_so_and_runs() {
    let workshop = Workshop::new();
    let output = std::process::Command::new(DEMO[0])
        .args(["demo", "--seconds", "0.1"])
        .env("SELVEDGE_SESSION", "/proc/no/such/fd:0123456789abcdef")
        .current_dir(&workshop.folder)
        .output()
        .unwrap();
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("cannot join the recording") && said.lines().count() == 1,
        "{said}"
    );
}
