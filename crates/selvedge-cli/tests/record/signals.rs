//! The program's own use of signals, of the profiling signal above all.

use crate::harness::{Workshop, best_of_three, within};

#[test]
fn time_with_the_signal_blocked_is_not_charged_to_who_unblocks_it() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "250"],
            "BURNER(blocked) BURNER(after)
             __attribute__((noinline)) void unblock(sigset_t *s) { pthread_sigmask(SIG_UNBLOCK, s, 0); }
             int main(void) {
               sigset_t s; sigemptyset(&s); sigaddset(&s, SIGPROF);
               pthread_sigmask(SIG_BLOCK, &s, 0);
               blocked(1.0);
               unblock(&s);
               after(0.2);
               return 0; }",
        )
        .exits(0);
        within(
            "[signals blocked]",
            recording.row("[signals blocked]"),
            0.8..=1.05,
        );
        let stacks = recording.stacks();
        within("unblock", stacks.through("unblock").seconds(), 0.0..=0.1);
        within("after", stacks.through("after").seconds(), 0.14..=0.25);
    });
}

#[test]
fn thread_that_blocks_the_signal_for_all_its_life_is_accounted_as_blocked() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "250"],
            "BURNER(blocked)
             void *run(void *p) { sigset_t s; sigfillset(&s); pthread_sigmask(SIG_BLOCK, &s, 0); blocked(0.5); return p; }
             int main(void) { pthread_t t; pthread_create(&t, 0, run, 0); pthread_join(t, 0); return 0; }",
        )
        .exits(0);
        within(
            "[signals blocked]",
            recording.row("[signals blocked]"),
            0.45..=0.55,
        );
    });
}

#[test]
fn process_that_ends_with_the_signal_blocked_is_accounted_as_blocked() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "250"],
            "BURNER(blocked)
             int main(void) { sigset_t s; sigfillset(&s); sigprocmask(SIG_BLOCK, &s, 0); blocked(0.5); return 0; }",
        )
        .exits(0);
        within(
            "[signals blocked]",
            recording.row("[signals blocked]"),
            0.45..=0.55,
        );
    });
}

#[test]
fn thread_that_inherits_a_mask_of_all_signals_is_sampled() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
            .record_source(
                &["-F", "250"],
                "BURNER(hot)
             void *run(void *p) { hot(0.5); return p; }
             int main(void) {
               pthread_t t; sigset_t all, before; sigfillset(&all);
               pthread_sigmask(SIG_SETMASK, &all, &before);
               pthread_create(&t, 0, run, 0);
               pthread_sigmask(SIG_SETMASK, &before, 0);
               pthread_join(t, 0);
               return 0; }",
            )
            .exits(0);
        within(
            "hot",
            recording.stacks().through("hot").seconds(),
            0.4..=0.55,
        );
    });
}

/// Installs a handler in some way, sends itself 10 signals by `kill` while burning, and says how many came.
fn own_handler(install: &str) {
    let workshop = Workshop::new();
    let recording = workshop
        .record_source(
            &["-F", "250"],
            &format!(
                "volatile int calls; void count(int s) {{ calls++; }}
                 BURNER(hot)
                 int main(void) {{
                   {install};
                   for (int i = 0; i < 10; i++) {{ hot(0.04); kill(getpid(), SIGPROF); }}
                   printf(\"calls %d\\n\", calls); return 0; }}"
            ),
        )
        .exits(0);
    assert_eq!(
        recording.said("calls"),
        10.0,
        "its own signals, and no other"
    );
    within(
        "hot",
        recording.stacks().through("hot").seconds(),
        0.33..=0.44,
    );
    assert!(
        recording
            .stderr
            .contains("has a handler for the profiling signal"),
        "{}",
        recording.stderr
    );
}

#[test]
fn program_with_a_handler_by_sigaction() {
    best_of_three(|| {
        own_handler("struct sigaction a = {0}; a.sa_handler = count; sigaction(SIGPROF, &a, 0)");
    });
}

#[test]
fn program_with_a_handler_by_signal() {
    best_of_three(|| {
        own_handler("signal(SIGPROF, count)");
    });
}

#[test]
fn program_reads_back_the_handler_that_it_set() {
    let workshop = Workshop::new();
    let recording = workshop
        .record_source(
            &[],
            "void mine(int s) {}
             int main(void) {
               struct sigaction a;
               sigaction(SIGPROF, 0, &a); int first = a.sa_handler == SIG_DFL;
               int second = signal(SIGPROF, mine) == SIG_DFL;
               sigaction(SIGPROF, 0, &a); int third = a.sa_handler == mine && (a.sa_flags & SA_RESTART);
               int fourth = signal(SIGPROF, SIG_IGN) == mine;
               printf(\"%d%d%d%d\\n\", first, second, third, fourth); return 0; }",
        )
        .exits(0);
    assert_eq!(recording.stdout, "1111\n");
}

#[test]
fn program_that_resets_the_signal_to_its_default_is_profiled_and_lives() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
            .record_source(
                &["-F", "250"],
                "BURNER(hot) int main(void) { signal(SIGPROF, SIG_DFL); hot(0.3); return 0; }",
            )
            .exits(0);
        within(
            "hot",
            recording.stacks().through("hot").seconds(),
            0.24..=0.33,
        );
    });
}

#[test]
fn kill_by_the_profiling_signal_still_ends_a_program_that_does_not_handle_it() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "250"],
            "BURNER(hot) int main(void) { hot(0.3); kill(getpid(), SIGPROF); hot(0.1); return 0; }",
        )
        .exits(128 + 27);
        within(
            "hot",
            recording.stacks().through("hot").seconds(),
            0.24..=0.33,
        );
    });
}

#[test]
fn program_with_its_own_itimer_gets_its_signals() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "250"],
            "volatile int calls; void count(int s) { calls++; }
             BURNER(hot)
             int main(void) {
               struct sigaction a = {0}; a.sa_handler = count; a.sa_flags = SA_RESTART; sigaction(SIGPROF, &a, 0);
               struct itimerval t = {{0, 20000}, {0, 20000}}; setitimer(ITIMER_PROF, &t, 0);
               hot(0.6);
               printf(\"calls %d\\n\", calls); return 0; }",
        )
        .exits(0);
        // 30 by the clock; the kernel counts whole ticks for this timer, and a busy host takes ticks. With ours (150) it would be 180.
        within("calls", recording.said("calls"), 2.0..=75.0);
        within(
            "hot",
            recording.stacks().through("hot").seconds(),
            0.55..=0.65,
        );
    });
}

#[test]
fn another_signal_can_be_used() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "250", "--signal", "SIGRTMIN+3"],
            "volatile int calls; void count(int s) { calls++; }
             BURNER(hot)
             int main(void) { signal(SIGPROF, count); hot(0.3); raise(SIGPROF); printf(\"calls %d\\n\", calls); return 0; }",
        )
        .exits(0);
        assert_eq!(recording.said("calls"), 1.0);
        within(
            "hot",
            recording.stacks().through("hot").seconds(),
            0.24..=0.33,
        );
    });
}

#[test]
fn signals_in_alternate_stacks_and_nested_handlers_are_sampled() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "250"],
            // What is recorded before the unwind tables are there is walked from a copy of one stack.
            "BURNER(warm) BURNER(in_handler) void handle(int s) { in_handler(0.3); }
             int main(void) {
               stack_t s = {malloc(8192), 0, 8192}; sigaltstack(&s, 0);
               struct sigaction a = {0}; a.sa_handler = handle; a.sa_flags = SA_ONSTACK; sigaction(SIGUSR1, &a, 0);
               warm(0.4); raise(SIGUSR1); return 0; }",
        )
        .exits(0);
        let inside = recording.stacks().through("in_handler");
        within("in_handler", inside.seconds(), 0.24..=0.33);
        within(
            "reached main",
            inside.through("main").seconds(),
            0.22..=0.33,
        );
    });
}

#[test]
fn itimer_engine_warns_that_it_takes_the_programs_own() {
    let workshop = Workshop::new();
    for (engine, warnings) in [("itimer", 1), ("timer", 0)] {
        let options = ["--engine", engine, "-F", "99.5"];
        let recording = workshop.record().options(&options).run(["true"]).exits(0);
        let said = &recording.stderr;
        assert_eq!(
            said.matches("takes ITIMER_PROF").count(),
            warnings,
            "{said}"
        );
        assert!(said.contains("of 99.5 asked"), "{said}");
    }
    let doctor = crate::streams::shell(&workshop, "$S doctor; $S record --help");
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(said.matches("ITIMER_PROF").count(), 2, "{said}");
}

#[test]
fn signal_that_the_caller_ignores_stays_ignored() {
    let workshop = Workshop::new();
    let program = workshop.program(
        "sender",
        "BURNER(hot) int main(void) { raise(SIGPROF); hot(0.1); return 7; }",
    );
    let caller = ["sh", "-c", "trap '' PROF; exec \"$0\" \"$@\""];
    workshop.record().through(&caller).run([&program]).exits(7);
    workshop.record().run([&program]).exits(128 + 27);
}
