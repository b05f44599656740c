//! What is asked of the recorder while it runs: to stop, to write a snapshot, to end.

use crate::harness::{Recording, Running, Workshop, best_of_three, kill, skip, within};
use selvedge_pprof::model::Profile;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

const BURN: &str = r#"BURNER(hot) int main(int n, char **v) {
  for (double left = atof(v[1]); left > 0.05; left -= 0.1) { hot(0.1); printf("burnt\n"); fflush(stdout); }
  printf("finished\n"); return 5; }"#;

/// The program above, recorded until it has used 0.3 s.
fn started(workshop: &Workshop, options: &[&str], seconds: &str) -> Running {
    let program = workshop.program("program", BURN);
    let mut running = workshop
        .record()
        .options(options)
        // A shell that starts the tests in the background has them ignore Ctrl-C.
        .through(&["env", "--default-signal=INT,QUIT"])
        .start([program.as_os_str(), seconds.as_ref()]);
    running.until("start of the program", |running| {
        (running.output().lines().count() >= 3).then_some(())
    });
    running
}

fn hot(recording: &Recording) -> f64 {
    recording.stacks().through("hot").seconds()
}

#[test]
fn duration_ends_the_recording_and_not_the_program() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let mut running = started(&workshop, &["-F", "250", "-d", "0.5s"], "1.5");
        running.until("profile, before the end of the program", |running| {
            running.profile.exists().then_some(())
        });
        assert!(!running.output().contains("finished"), "written at its end");
        let recording = running.wait().exits(5);
        assert!(
            recording.stderr.contains("CMD runs on"),
            "{}",
            recording.stderr
        );
        assert!(recording.stdout.ends_with("finished\n"), "ran to its end");
        assert!(
            recording.took > Duration::from_millis(1400),
            "{:?}",
            recording.took
        );
        // It may have had less than the whole of a processor.
        within("recorded", recording.total(), 0.02..=0.58);
        within("recorded in samples", hot(&recording), 0.01..=0.55);
        let length = recording.profile().duration_nanos as f64 / 1e9;
        within("length of the profile", length, 0.5..=0.7);
    });
}

#[test]
fn snapshots_at_an_interval_are_whole_profiles() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let mut running = started(&workshop, &["-F", "250", "--every", "200ms"], "4");
        let mut sizes = Vec::new();
        running.until("three snapshots", |running| {
            if let Ok(bytes) = fs::read(&running.profile) {
                let profile = Profile::read(&bytes).expect("a snapshot is a profile");
                let count: i64 = profile.samples.iter().map(|sample| sample.values[0]).sum();
                if count > *sizes.last().unwrap_or(&0) {
                    sizes.push(count);
                }
            }
            (sizes.len() >= 3).then_some(())
        });
        let recording = running.wait().exits(5);
        within("hot", hot(&recording), 3.6..=4.1);
        assert!(
            recording.stacks().count() > *sizes.last().unwrap(),
            "goes on after a snapshot"
        );
    });
}

#[test]
fn snapshot_on_request() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let mut running = started(&workshop, &["-F", "250"], "1.5");
        running.signal("USR2");
        running.until("snapshot", |running| {
            running.messages().contains("snapshot").then_some(())
        });
        let profile = Profile::read(&fs::read(&running.profile).unwrap()).unwrap();
        assert!(!profile.samples.is_empty(), "a snapshot has samples");
        within("hot", hot(&running.wait().exits(5)), 1.35..=1.55);
    });
}

#[test]
fn interrupt_from_a_terminal_keeps_the_data() {
    let workshop = Workshop::new();
    let running = started(&workshop, &["-F", "250"], "60");
    // A terminal signals the whole group. That `kill` is not a terminal is seen: the program gets it twice, and ends.
    kill("INT", &format!("-{}", running.pid()));
    let recording = running.wait().exits(128 + 2);
    within("hot", hot(&recording), 0.24..=2.0);
}

#[test]
fn interrupt_sent_to_the_recorder_only_reaches_the_program() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let running = started(&workshop, &["-F", "250"], "60");
        running.signal("INT");
        within("hot", hot(&running.wait().exits(128 + 2)), 0.24..=2.0);
    });
}

const STUBBORN: &str = "BURNER(hot) int main(void) {
  signal(SIGINT, SIG_IGN); signal(SIGTERM, SIG_IGN);
  printf(\"started %d\\n\", getpid()); fflush(stdout); hot(60); return 5; }";

fn stubborn(workshop: &Workshop) -> (Running, String) {
    let program = workshop.program("program", STUBBORN);
    let mut running = workshop.record().options(&["-F", "250"]).start([program]);
    let pid = running.until("start of the program", |running| {
        Some(
            running
                .output()
                .trim_end()
                .strip_prefix("started ")?
                .to_string(),
        )
    });
    (running, pid)
}

#[test]
fn second_interrupt_aborts() {
    let workshop = Workshop::new();
    let (mut running, pid) = stubborn(&workshop);
    running.signal("INT");
    running.until("word of the first", |running| {
        running.messages().contains("again to abort").then_some(())
    });
    std::thread::sleep(Duration::from_millis(200));
    running.signal("INT");
    let recording = running.wait().exits(130);
    assert!(recording.profile.is_none(), "aborted: nothing is written");
    let said = &recording.stderr;
    assert!(
        said.ends_with("selvedge: aborted, nothing written\n"),
        "{said}"
    );
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(
        state.is_empty() || state.contains(") Z"),
        "the program still runs: {state}"
    );
}

#[test]
fn termination_is_forwarded() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let running = started(&workshop, &["-F", "250"], "60");
        running.signal("TERM");
        within("hot", hot(&running.wait().exits(128 + 15)), 0.24..=2.0);
    });
}

/// Naming the frames takes its time on a busy machine: the best of three runs counts.
#[test]
fn termination_writes_within_five_seconds_though_the_program_ignores_it() {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let workshop = Workshop::new();
        let (running, pid) = stubborn(&workshop);
        let before = Instant::now();
        running.signal("TERM");
        let recording = running.wait().exits(128 + 15);
        seen.push(before.elapsed());
        kill("KILL", &pid);
        within("hot", hot(&recording), 0.2..=6.5);
        if seen.last() < Some(&Duration::from_secs(5)) {
            return;
        }
    }
    panic!("{seen:?}");
}

#[test]
fn first_process_of_a_container_reaps_forwards_and_writes() {
    best_of_three(|| {
        let possible = Command::new("unshare")
            .args(["-pf", "--mount-proc", "true"])
            .output();
        if !possible.is_ok_and(|output| output.status.success()) {
            return skip("first process of a container", "no process namespaces here");
        }
        let workshop = Workshop::new();
        let program = workshop.program(
            "program",
            // An orphan, which the first process inherits and must reap.
            "BURNER(hot) BURNER(orphan) int main(void) {
           if (fork() == 0) { if (fork() == 0) { orphan(0.2); _exit(0); } _exit(0); }
           wait(0); hot(0.5); return 5; }",
        );
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .through(&["unshare", "-pf", "--mount-proc"])
            .run([program])
            .exits(5);
        within("hot", hot(&recording), 0.45..=0.55);
        within(
            "orphan",
            recording.stacks().through("orphan").seconds(),
            0.15..=0.25,
        );
    });
}

#[test]
fn profile_goes_to_standard_output_on_request() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let program = workshop.program(
            "program",
            "BURNER(hot) int main(void) { hot(0.2); return 0; }",
        );
        let pipe = format!(
            "'{}' record -F 250 -o - -- '{}' > piped",
            env!("CARGO_BIN_EXE_selvedge"),
            program.display()
        );
        let output = Command::new("sh")
            .args(["-c", &pipe])
            .current_dir(&workshop.folder)
            .output()
            .unwrap();
        assert!(output.status.success());
        let profile = Profile::read(&fs::read(workshop.path("piped")).unwrap()).unwrap();
        let nanos: i64 = profile.samples.iter().map(|sample| sample.values[1]).sum();
        within("seconds", nanos as f64 / 1e9, 0.19..=0.25);
    });
}

#[test]
fn children_started_after_the_duration_run_as_ever() {
    let workshop = Workshop::new();
    let recording = workshop
        .record()
        .options(&["-d", "200ms"])
        .run(["sh", "-c", "sleep 0.8; ls / >/dev/null; seq 3; exit 6"])
        .exits(6);
    assert_eq!(recording.stdout, "1\n2\n3\n");
    assert_eq!(recording.foreign_messages(), Vec::<&str>::new());
}
