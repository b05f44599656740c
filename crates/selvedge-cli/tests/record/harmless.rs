//! A recorded program computes, prints and sees what it would without us.

use crate::harness::{Workshop, best_of_three, skip, within};
use std::process::Command;

#[test]
fn descriptors_threads_and_signal_mask_are_as_without_us() {
    let workshop = Workshop::new();
    let program = workshop.program(
        "program",
        "#include <dirent.h>
         void list(const char *path) { DIR *d = opendir(path); struct dirent *e; int n = 0; while ((e = readdir(d))) n++; closedir(d); printf(\"%s %d\\n\", path, n - 2); }
         BURNER(hot)
         int main(void) {
           hot(0.1); list(\"/proc/self/fd\"); list(\"/proc/self/task\");
           sigset_t s; sigprocmask(0, 0, &s); printf(\"mask %lx\\n\", *(long *)&s);
           stack_t a; sigaltstack(0, &a); printf(\"alternate stack %d\\n\", a.ss_flags);
           struct itimerval t; getitimer(ITIMER_PROF, &t); printf(\"itimer %ld\\n\", t.it_interval.tv_usec); return 0; }",
    );
    let alone = Command::new(&program)
        .current_dir(&workshop.folder)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    for engine in ["timer", "perf"] {
        let recording = workshop
            .record()
            .options(&["-F", "250", "--engine", engine])
            .run([&program])
            .exits(0);
        assert_eq!(
            recording.stdout,
            String::from_utf8_lossy(&alone.stdout),
            "{engine}"
        );
    }
}

#[test]
fn errno_is_untouched_at_4000_samples_a_second() {
    let workshop = Workshop::new();
    let recording = workshop
        .record_source(
            &["--engine", "perf", "-F", "4000"],
            "int main(void) {
               long wrong = 0, calls = 0;
               while (seconds_of(CLOCK_PROCESS_CPUTIME_ID) < 1.0)
                 for (int i = 0; i < 1000; i++, calls++) { errno = 0; if (close(-1) != -1 || errno != EBADF) wrong++; }
               printf(\"calls %ld wrong %ld\\n\", calls, wrong); return 0; }",
        )
        .exits(0);
    assert_eq!(recording.said("wrong"), 0.0);
    assert!(recording.said("calls") > 100_000.0);
    assert!(
        recording.stacks().count() > 1000,
        "{}",
        recording.stacks().count()
    );
}

#[test]
fn results_of_floating_point_and_vectors_are_untouched() {
    let workshop = Workshop::new();
    let program = workshop.program(
        "program",
        "int main(void) { double x = 0.5, y = 0.25; unsigned long h = 1;
           for (int i = 0; i < 60000000; i++) { x = 3.9 * x * (1 - x); y = y * 1.0000001 + x; h = h * 31 + (unsigned long)(x * 1e9); }
           printf(\"%.17g %.17g %lx\\n\", x, y, h); return 0; }",
    );
    let alone = Command::new(&program).output().unwrap();
    let recording = workshop
        .record()
        .options(&["--engine", "perf", "-F", "4000"])
        .run([&program])
        .exits(0);
    assert_eq!(recording.stdout, String::from_utf8_lossy(&alone.stdout));
    assert!(recording.stacks().count() > 100);
}

#[test]
fn system_calls_that_wait_are_not_interrupted() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "999"],
            "BURNER(hot) void *busy(void *p) { hot(0.5); return p; }
             int main(void) { pthread_t t; pthread_create(&t, 0, busy, 0); int interrupted = 0;
               for (int i = 0; i < 50; i++) { struct timespec s = {0, 10000000}; if (nanosleep(&s, 0)) interrupted++; }
               pthread_join(t, 0); printf(\"interrupted %d\\n\", interrupted); return 0; }",
        )
        .exits(0);
        assert_eq!(recording.said("interrupted"), 0.0);
        within(
            "hot",
            recording.stacks().through("hot").seconds(),
            0.45..=0.55,
        );
    });
}

#[test]
fn output_of_a_pipeline_is_the_same_to_the_byte() {
    // Output of programs of the system, byte for byte.
    let workshop = Workshop::new();
    let script = "seq 1 20000 | sort -n | md5sum; ls /etc | wc -l";
    let alone = Command::new("sh").args(["-c", script]).output().unwrap();
    let recording = workshop.record().run(["sh", "-c", script]).exits(0);
    assert_eq!(recording.stdout, String::from_utf8_lossy(&alone.stdout));
}

#[test]
fn agents_of_other_versions_go_a_month_after_their_last_use() {
    let workshop = Workshop::new();
    let cache = workshop.path("cache/selvedge");
    std::fs::create_dir_all(&cache).unwrap();
    // Its own folder for the agent, whoever runs the test: that of root comes first.
    let script = "touch -d '40 days ago' cache/selvedge/selvedge-agent-1.so cache/selvedge/other; \
                  touch -d '20 days ago' cache/selvedge/selvedge-agent-2.so; \
                  export XDG_CACHE_HOME=$PWD/cache; \
                  if [ $(id -u) = 0 ]; then mount -t tmpfs none /var/cache || exit 77; \
                  mkdir /var/cache/selvedge; mount --bind cache/selvedge /var/cache/selvedge || exit 77; fi; \
                  $S record -q -o a.pb.gz -- true; ls cache/selvedge";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .env("S", env!("CARGO_BIN_EXE_selvedge"))
        .current_dir(&workshop.folder)
        .output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        return skip("old agents", "no mount namespaces here");
    };
    let listed = String::from_utf8(output.stdout).unwrap();
    assert!(!listed.contains("selvedge-agent-1.so"), "{listed}");
    assert!(
        listed.contains("selvedge-agent-2.so") && listed.contains("other"),
        "{listed}"
    );
    assert_eq!(listed.lines().count(), 3, "{listed}");
}

#[test]
fn failing_execs_of_several_threads_leave_the_recording_on() {
    best_of_three(|| {
        let recording = Workshop::new()
            .record_source(
                &["-F", "250"],
                "extern char **environ;
                 void *fails(void *p) { char *a[] = {\"x\", 0};
                   for (int i = 0; i < 2000; i++) execve(\"/no/such/program\", a, environ); return p; }
                 BURNER(afterwards)
                 int main(void) { pthread_t t[4];
                   for (int i = 0; i < 4; i++) pthread_create(t + i, 0, fails, 0);
                   for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
                   afterwards(0.4); return 0; }",
            )
            .exits(0);
        let seconds = recording.stacks().through("afterwards").seconds();
        within("afterwards", seconds, 0.3..=0.45);
    });
}

/// By `raise`: a signal that is not the profiler's.
const RAISES: &str = "int main(int n, char **v) {
    struct sigaction a; sigaction(SIGPROF, 0, &a); printf(\"ignored %d\\n\", a.sa_handler == SIG_IGN); fflush(stdout);
    raise(SIGPROF); return 7; }";

#[test]
fn profiling_signal_that_the_caller_ignores_stays_ignored() {
    let workshop = Workshop::new();
    let program = workshop.program("program", RAISES);
    let recording = workshop
        .record()
        .through(&["sh", "-c", "trap '' PROF; exec \"$@\"", "sh"])
        .run([program])
        .exits(7);
    assert_eq!(recording.stdout, "ignored 1\n");
}

#[test]
fn profiling_signal_is_not_ignored_by_what_a_program_becomes() {
    let workshop = Workshop::new();
    let next = workshop.program("next", RAISES);
    let program = workshop.program(
        "program",
        "int main(int n, char **v) { execv(v[1], v + 1); return 6; }",
    );
    let recording = workshop.record().run([program, next]).exits(128 + 27);
    assert_eq!(recording.stdout, "ignored 0\n");
}

#[test]
fn thread_with_a_small_stack_starts_programs_in_a_large_environment() {
    let workshop = Workshop::new();
    let Ok(child) = workshop.compile("child", "int main(void) { return 7; }", &["-static"]) else {
        return skip("small stack", "no static C library here");
    };
    let program = workshop.program(
        "program",
        "extern char **environ; char **v; int status;
         void *starts(void *p) { int pid = fork(); if (pid == 0) { execve(v[1], v + 1, environ); _exit(99); }
           waitpid(pid, &status, 0); return p; }
         int main(int n, char **arguments) { v = arguments; pthread_attr_t a; pthread_t t; pthread_attr_init(&a);
           pthread_attr_setstacksize(&a, 32768); pthread_create(&t, &a, starts, 0); pthread_join(t, 0);
           return WIFEXITED(status) ? WEXITSTATUS(status) : 100; }",
    );
    let mut setup = workshop.record();
    for number in 0..300 {
        setup = setup.variable(&format!("VARIABLE_{number}"), "1");
    }
    setup.run([program, child]).exits(7);
}
