//! Threads: all of them, whoever made them, each armed once.

use crate::harness::{Running, Workshop, best_of_three, within};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

#[test]
fn named_threads_are_told_apart() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "250"],
            "BURNER(hot)
             void *run(void *name) { pthread_setname_np(pthread_self(), name); hot(0.3); return 0; }
             int main(void) {
               pthread_t a, b; pthread_create(&a, 0, run, \"first\"); pthread_create(&b, 0, run, \"second\");
               pthread_join(a, 0); pthread_join(b, 0); return 0; }",
        )
        .exits(0);
        let stacks = recording.stacks().through("hot");
        for name in ["first", "second"] {
            let thread = stacks.labelled("thread", name);
            within(name, thread.seconds(), 0.23..=0.33);
            assert_eq!(thread.labels("tid").len(), 1);
            within("reached run", thread.through("run").seconds(), 0.22..=0.33);
        }
    });
}

#[test]
fn thread_made_by_raw_clone_is_found_soon() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "250"],
            "volatile int done;
             BURNER(foreign)
             int run(void *p) { foreign(1.0); done = 1; syscall(SYS_exit, 0); return 0; }
             int main(void) {
               char *stack = malloc(1 << 20);
               clone(run, stack + (1 << 20) - 64, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM, 0);
               while (!done) usleep(1000);
               return 0; }",
        )
        .exits(0);
        within(
            "foreign",
            recording.stacks().through("foreign").seconds(),
            0.6..=1.05,
        );
    });
}

#[test]
fn thread_in_a_call_that_never_returns_is_sampled() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "250"],
            "BURNER(busy) void *run(void *p) { busy(1000); return p; }
             int main(void) { pthread_t t; pthread_create(&t, 0, run, 0); while (seconds_of(CLOCK_PROCESS_CPUTIME_ID) < 0.5) usleep(1000); return 0; }",
        )
        .exits(0);
        within(
            "busy",
            recording.stacks().through("busy").seconds(),
            0.45..=0.6,
        );
    });
}

/// CMD's process id: it prints it first.
fn target(running: &Running) -> Option<u32> {
    running
        .output()
        .lines()
        .next()?
        .strip_prefix("pid ")?
        .parse()
        .ok()
}

/// A process's timers: the kernel's numbers for them, with the threads that they signal.
fn timers(pid: u32) -> BTreeMap<u32, u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/timers")).unwrap_or_default();
    let mut timers = BTreeMap::new();
    let mut number = 0;
    for line in text.lines() {
        if let Some(found) = line.strip_prefix("ID: ") {
            number = found.parse().unwrap();
        } else if let Some((_, tid)) = line
            .strip_prefix("notify: ")
            .and_then(|notify| notify.rsplit_once('.'))
        {
            // The list is read in pieces while it changes: one timer can be in it twice.
            timers.insert(number, tid.parse().unwrap());
        }
    }
    timers
}

/// 20,000 threads unless `SELVEDGE_TEST_THREADS` says how many: a million passes too.
#[test]
fn short_threads_leave_no_timers_and_none_is_armed_twice() {
    best_of_three(|| {
        let number = std::env::var("SELVEDGE_TEST_THREADS").unwrap_or("20000".into());
        let patience = Duration::from_secs(60) + Duration::from_millis(1) * number.parse().unwrap();
        let workshop = Workshop::new();
        let program = workshop.program(
            "program",
            "void *run(void *p) { for (volatile int i = 0; i < 2000; i++); return p; }
         int main(int n, char **v) {
           printf(\"pid %d\\n\", getpid()); fflush(stdout);
           for (int i = atoi(v[1]); i > 0; i -= 4) {
             pthread_t t[4];
             for (int k = 0; k < 4; k++) if (pthread_create(&t[k], 0, run, 0)) return 1;
             for (int k = 0; k < 4; k++) pthread_join(t[k], 0);
           }
           tell_cpu(); printf(\"done\\n\"); fflush(stdout);
           usleep(300000); return 0; }",
        );
        let mut running = workshop
            .record()
            .options(&["-F", "999"])
            .patience(patience)
            .start([program.as_os_str(), number.as_ref()]);
        let mut most = 0;
        let pid = running.until("start", target);
        running.until("end of all threads", |running| {
            let armed = timers(pid);
            most = most.max(armed.len());
            let threads: BTreeSet<u32> = armed.values().copied().collect();
            assert_eq!(
                armed.len(),
                threads.len(),
                "a thread with two timers: {armed:?}"
            );
            running.output().contains("done").then_some(())
        });
        // Main's, four at work, and some whose owners are at their last instructions.
        assert!(most <= 12, "{most} timers at a time");
        assert!(timers(pid).len() <= 1, "{} timers left", timers(pid).len());
        let recording = running.wait().exits(0);
        let cpu = recording.said("cpu");
        within("sum of weights", recording.total() / cpu, 0.97..=1.05);
        assert!(
            !recording.stderr.contains("too many"),
            "{}",
            recording.stderr
        );
    });
}

#[test]
fn every_thread_has_exactly_one_timer() {
    let workshop = Workshop::new();
    let program = workshop.program(
        "program",
        "volatile int stop; BURNER(hot)
         void *run(void *p) { while (!stop) hot(0.01); return p; }
         int raw(void *p) { while (!stop) hot(0.01); syscall(SYS_exit, 0); return 0; }
         int main(void) {
           pthread_t t[5]; for (int i = 0; i < 5; i++) pthread_create(&t[i], 0, run, 0);
           for (int i = 0; i < 2; i++) { char *stack = malloc(1 << 16);
             clone(raw, stack + (1 << 16) - 64, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM, 0); }
           printf(\"pid %d\\n\", getpid()); fflush(stdout);
           usleep(2000000); stop = 1; usleep(50000); return 0; }",
    );
    let mut running = workshop.record().start([program]);
    let pid = running.until("start", target);
    let armed = running.until("a timer for each of 8 threads", |_| {
        Some(timers(pid)).filter(|armed| armed.len() >= 8)
    });
    let threads: BTreeSet<u32> = fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    assert_eq!(armed.values().copied().collect::<BTreeSet<u32>>(), threads);
    assert_eq!(armed.len(), threads.len(), "one each");
    running.wait().exits(0);
}

#[test]
fn thread_destructors_are_sampled() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
            .record_source(
                &["-F", "250"],
                "BURNER(destructor_work) void destroy(void *p) { destructor_work(0.3); }
             pthread_key_t key;
             void *run(void *p) { pthread_setspecific(key, p); return 0; }
             int main(void) { pthread_key_create(&key, destroy); pthread_t t;
               pthread_create(&t, 0, run, &key); pthread_join(t, 0); return 0; }",
            )
            .exits(0);
        within(
            "destructor_work",
            recording.stacks().through("destructor_work").seconds(),
            0.23..=0.33,
        );
    });
}

#[test]
fn threads_that_are_cancelled_or_exit_from_below_are_complete() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
        .record_source(
            &["-F", "250"],
            "BURNER(deep) void leave(void) { deep(0.2); pthread_exit(0); }
             void *run(void *p) { leave(); return 0; }
             void *waits(void *p) { deep(0.2); pause(); return 0; }
             int main(void) { pthread_t t, u; pthread_create(&t, 0, run, 0); pthread_join(t, 0);
               pthread_create(&u, 0, waits, 0); while (seconds_of(CLOCK_PROCESS_CPUTIME_ID) < 0.41) usleep(1000);
               usleep(50000); pthread_cancel(u); pthread_join(u, 0); return 0; }",
        )
        .exits(0);
        within(
            "deep",
            recording.stacks().through("deep").seconds(),
            0.32..=0.44,
        );
    });
}

#[test]
fn sort_of_coreutils_with_its_threads() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let mut number = 1_u64;
        let lines: String = (0..300_000)
            .map(|_| {
                number = number
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                format!("{:016x}\n", number)
            })
            .collect();
        fs::write(workshop.path("lines"), &lines).unwrap();
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .variable("LC_ALL", "C")
            .run(["sort", "--parallel=4", "lines"])
            .exits(0);
        let mut sorted: Vec<&str> = lines.lines().collect();
        sorted.sort_unstable();
        assert!(
            recording.stdout.lines().eq(sorted),
            "sorted as it should be"
        );
        assert!(
            recording.stacks().labels("tid").len() > 1,
            "several threads"
        );
        within(
            "share in samples",
            recording.stacks().seconds() / recording.total(),
            0.8..=1.0,
        );
    });
}
