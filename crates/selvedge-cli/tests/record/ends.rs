//! Ends of programs: whatever ends one loses at most the sample in flight, and its exit status is passed on.

use crate::harness::{Recording, Workshop, best_of_three, within};

/// Records a program that burns 0.3 s and then does `ending`.
fn ended_by(ending: &str, status: i32) {
    let workshop = Workshop::new();
    let recording = workshop
        .record_source(
            &["-F", "250"],
            &format!("BURNER(hot) int main(void) {{ hot(0.3); {ending}; return 0; }}"),
        )
        .exits(status);
    assert_burnt(&recording, "hot", 0.3);
}

/// All but the sample in flight and the start is there: a kernel tick, but a busy host takes whole ticks away.
#[track_caller]
fn assert_burnt(recording: &Recording, function: &str, seconds: f64) {
    within(
        function,
        recording.stacks().through(function).seconds(),
        seconds - 0.06..=seconds + 0.02,
    );
}

#[test]
fn normal_end() {
    best_of_three(|| {
        ended_by("return 0", 0);
    });
}

#[test]
fn exit_status_is_passed_on() {
    best_of_three(|| {
        ended_by("exit(3)", 3);
    });
}

#[test]
fn underscore_exit() {
    best_of_three(|| {
        ended_by("_exit(4)", 4);
    });
}

#[test]
fn exit_group_by_system_call() {
    best_of_three(|| {
        ended_by("syscall(SYS_exit_group, 5)", 5);
    });
}

#[test]
fn abort() {
    best_of_three(|| {
        ended_by("abort()", 128 + 6);
    });
}

#[test]
fn kill_that_cannot_be_caught() {
    best_of_three(|| {
        ended_by("kill(getpid(), SIGKILL)", 128 + 9);
    });
}

#[test]
fn crash() {
    best_of_three(|| {
        ended_by("*(volatile int *)8 = 1", 128 + 11);
    });
}

#[test]
fn crash_of_a_thread() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
            .record_source(
                &["-F", "250"],
                "BURNER(hot) void *run(void *p) { hot(0.3); *(volatile int *)8 = 1; return p; }
             int main(void) { pthread_t t; pthread_create(&t, 0, run, 0); pause(); }",
            )
            .exits(128 + 11);
        assert_burnt(&recording, "hot", 0.3);
    });
}

#[test]
fn exec_of_another_program_while_burning() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let second = workshop.program(
            "second",
            "BURNER(after) int main(void) { after(0.3); return 7; }",
        );
        let first = workshop.program(
        "first",
        "BURNER(before) int main(int n, char **v) { before(0.3); execl(v[1], v[1], (char *)0); return 99; }",
    );
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .run([first, second])
            .exits(7);
        assert_burnt(&recording, "before", 0.3);
        assert_burnt(&recording, "after", 0.3);
        let stacks = recording.stacks();
        assert_eq!(stacks.labels("pid").len(), 1, "one process");
        assert_eq!(
            stacks
                .through("before")
                .labels("process")
                .into_iter()
                .collect::<Vec<_>>(),
            ["first"]
        );
        assert_eq!(
            stacks
                .through("after")
                .labels("process")
                .into_iter()
                .collect::<Vec<_>>(),
            ["second"]
        );
    });
}

#[test]
fn main_program_is_what_the_command_became_by_exec() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let second = workshop.program(
            "second",
            "BURNER(hot) int main(void) { hot(0.3); return 0; }",
        );
        let first = workshop.program(
            "first",
            "int main(int n, char **v) { execl(v[1], v[1], (char *)0); return 99; }",
        );
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .run([&first, &second])
            .exits(0);
        let main = &recording.profile().mappings[0].filename;
        assert_eq!(main, &second.to_string_lossy());
    });
}

#[test]
fn exec_while_other_threads_burn() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let second = workshop.program(
            "second",
            "BURNER(after) int main(void) { after(0.2); return 7; }",
        );
        let first = workshop.program(
            "first",
            "BURNER(before) void *run(void *p) { before(60); return p; }
         int main(int n, char **v) {
           pthread_t t[3]; for (int i = 0; i < 3; i++) pthread_create(&t[i], 0, run, 0);
           while (seconds_of(CLOCK_PROCESS_CPUTIME_ID) < 0.6) usleep(1000);
           execv(v[1], v + 1); return 99; }",
        );
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .run([first, second])
            .exits(7);
        // Three samples in flight.
        within(
            "before",
            recording.stacks().through("before").seconds(),
            0.5..=0.75,
        );
        assert_burnt(&recording, "after", 0.2);
    });
}

#[test]
fn exec_that_fails_goes_on() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
            .record_source(
                &["-F", "250"],
                "BURNER(before) BURNER(after) int main(void) {
               before(0.2); execl(\"/no/such/program\", \"x\", (char *)0);
               int e = errno; after(0.2); return e == ENOENT ? 6 : 99; }",
            )
            .exits(6);
        assert_burnt(&recording, "before", 0.2);
        assert_burnt(&recording, "after", 0.2);
    });
}

#[test]
fn chain_of_a_hundred_execs_with_each_engine_kills_nothing() {
    best_of_three(|| {
        for (engine, rate) in [("timer", "999"), ("itimer", "4000"), ("perf", "4000")] {
            let workshop = Workshop::new();
            let program = workshop.program(
            "program",
            "BURNER(hot) int main(int n, char **v) {
               int left = atoi(v[1]); hot(0.004); if (left == 0) return 8;
               char text[16]; sprintf(text, \"%d\", left - 1); execl(v[0], v[0], text, (char *)0); return 99; }",
        );
            let recording = workshop
                .record()
                .options(&["--engine", engine, "-F", rate])
                .run([program.as_os_str(), "100".as_ref()])
                .exits(8);
            within(
                &format!("CPU seconds of 101 programs with {engine}"),
                recording.total(),
                0.4..=2.0,
            );
        }
    });
}
