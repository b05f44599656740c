//! Weights: they add up to the threads' CPU clocks, at any rate and any number of threads.

use crate::harness::{Recording, Workshop, best_of_three, skip, within};
use std::fs;

const BURNERS: &str = "BURNER(hot) void *run(void *p) { hot(*(double *)p); return 0; }
  int main(int n, char **v) {
    int threads = atoi(v[1]); double seconds = atof(v[2]); pthread_t t[16];
    for (int i = 1; i < threads; i++) pthread_create(&t[i], 0, run, &seconds);
    run(&seconds);
    for (int i = 1; i < threads; i++) pthread_join(t[i], 0);
    tell_cpu(); return 0; }";

fn burn(options: &[&str], threads: &str, seconds: &str) -> Recording {
    let workshop = Workshop::new();
    let program = workshop.program("program", BURNERS);
    workshop
        .record()
        .options(options)
        .run([program.as_os_str(), threads.as_ref(), seconds.as_ref()])
        .exits(0)
}

/// The sum of all weights is within 1 % of the program's own clock, and that of samples within 3 %. A pause of the host
/// at a thread's end can cost more: the best of three runs counts.
fn adds_up(threads: &str, rate: &str, seconds: &str) {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let recording = burn(&["-F", rate], threads, seconds);
        let cpu = recording.said("cpu");
        let all = recording.total() / cpu - 1.0;
        let sampled = recording.stacks().seconds() / cpu - 1.0;
        if all.abs() <= 0.01 && sampled.abs() <= 0.03 {
            return;
        }
        seen.push((all, sampled));
    }
    panic!("{threads} threads at {rate} Hz: {seen:?} (all, in samples) off the clock");
}

#[test]
fn one_thread_at_99_hz_adds_up() {
    adds_up("1", "99", "1.0");
}

#[test]
fn one_thread_at_999_hz_adds_up() {
    adds_up("1", "999", "0.8");
}

#[test]
fn two_threads_at_99_hz_add_up() {
    adds_up("2", "99", "0.8");
}

#[test]
fn two_threads_at_999_hz_add_up() {
    adds_up("2", "999", "0.6");
}

#[test]
fn eight_threads_at_99_hz_add_up() {
    adds_up("8", "99", "0.5");
}

#[test]
fn eight_threads_at_999_hz_add_up() {
    adds_up("8", "999", "0.4");
}

#[test]
fn known_split_is_found_within_three_sigma() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
            .record_source(
                &["-F", "250"],
                "BURNER(half) BURNER(third) BURNER(fifth)
             int main(void) {
               // Rounds of no simple ratio to the kernel's tick.
               for (int i = 0; i < 173; i++) { half(0.00615); third(0.00369); fifth(0.00246); }
               return 0; }",
            )
            .exits(0);
        let stacks = recording.stacks();
        let count = stacks.count() as f64;
        assert!(count > 150.0, "{count} samples");
        for (function, share) in [("half", 0.5), ("third", 0.3), ("fifth", 0.2)] {
            let sigma = (share * (1.0 - share) / count).sqrt();
            let found = stacks.through(function).seconds() / stacks.seconds();
            within(function, found, share - 3.0 * sigma..=share + 3.0 * sigma);
        }
    });
}

fn has_perf() -> bool {
    let level = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let allowed = level.trim().parse::<i32>().is_ok_and(|level| level <= 2);
    if !allowed {
        skip("perf engine", "perf_event_paranoid does not permit it");
    }
    allowed
}

#[test]
fn perf_engine_delivers_the_rate_asked_for() {
    if !has_perf() {
        return;
    }
    // 4000 Hz is 0.25 ms; a busy host takes pauses: the best of three runs counts.
    let mut seen = Vec::new();
    for _ in 0..3 {
        let recording = burn(&["--engine", "perf", "-F", "4000"], "2", "0.5");
        let cpu = recording.said("cpu");
        within("sum of weights", recording.total() / cpu, 0.97..=1.03);
        let rate = recording.stacks().count() as f64 / cpu;
        if rate >= 3600.0 {
            assert!(rate <= 4100.0, "{rate}");
            return;
        }
        seen.push(rate);
    }
    panic!("rates {seen:?}");
}

/// An event's signal can arrive after the last account of its thread: it must not begin another account of it, from its
/// birth.
#[test]
fn thread_that_ends_under_the_perf_engine_is_counted_once() {
    if has_perf() {
        assert!(ended_threads_are_counted_once("perf", "20000") > 1000);
    }
}

/// An event costs the recorder a descriptor: as long as its thread lives.
#[test]
fn perf_engine_follows_more_threads_than_files_can_be_open() {
    if !has_perf() {
        return;
    }
    let workshop = Workshop::new();
    let program = workshop.program(
        "program",
        "BURNER(hot) void *run(void *p) { hot(0.01); return p; }
         int main(void) {
           for (int i = 0; i < 200; i++) {
             pthread_t t; pthread_create(&t, 0, run, 0); pthread_join(t, 0); }
           tell_cpu(); return 0; }",
    );
    let recording = workshop
        .record()
        .options(&["--engine", "perf", "-F", "1000"])
        .through(&["bash", "-c", "ulimit -n 100; exec \"$@\"", "bash"])
        .run([program])
        .exits(0);
    let cpu = recording.said("cpu");
    within("sum of weights", recording.total() / cpu, 0.97..=1.03);
    within("in samples", recording.stacks().seconds() / cpu, 0.8..=1.01);
}

/// So can one of `ITIMER_PROF`, which is any thread's.
#[test]
fn thread_that_ends_under_the_itimer_engine_is_counted_once() {
    assert!(ended_threads_are_counted_once("itimer", "1000") > 100);
}

/// Returns the number of samples.
fn ended_threads_are_counted_once(engine: &str, rate: &str) -> i64 {
    let recording = Workshop::new()
        .record_source(
            &["--engine", engine, "-F", rate],
            "BURNER(hot) void *run(void *p) { hot(0.01); return p; }
             int main(void) {
               for (int i = 0; i < 75; i++) {
                 pthread_t a, b; pthread_create(&a, 0, run, 0); pthread_create(&b, 0, run, 0);
                 pthread_join(a, 0); pthread_join(b, 0); }
               tell_cpu(); return 0; }",
        )
        .exits(0);
    let cpu = recording.said("cpu");
    within("sum of weights", recording.total() / cpu, 0.99..=1.01);
    recording.stacks().count()
}

#[test]
fn itimer_engine_covers_all_threads() {
    best_of_three(|| {
        let recording = burn(&["--engine", "itimer", "-F", "250"], "4", "0.5");
        let cpu = recording.said("cpu");
        within("sum of weights", recording.total() / cpu, 0.97..=1.03);
        within(
            "in samples",
            recording.stacks().seconds() / cpu,
            0.85..=1.03,
        );
        assert_eq!(recording.stacks().through("hot").labels("tid").len(), 4);
        let comments = recording.profile().comments.join("\n");
        assert!(comments.contains("engine itimer"), "{comments}");
    });
}

#[test]
fn rate_beyond_the_tick_is_explained_and_weights_stay_exact() {
    best_of_three(|| {
        let recording = burn(&["-F", "4000"], "1", "0.5");
        let cpu = recording.said("cpu");
        within(
            "in samples",
            recording.stacks().seconds() / cpu,
            0.97..=1.01,
        );
        assert!(
            recording.stderr.contains("--engine perf"),
            "{}",
            recording.stderr
        );
    });
}

#[test]
fn leaf_is_the_function_that_burns_and_its_callers_follow() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
            .record_source(
                &["-F", "250"],
                "BURNER(leaf)
             __attribute__((noinline)) void inner(void) { leaf(0.5); __asm__ volatile(\"\"); }
             __attribute__((noinline)) void outer(void) { inner(); __asm__ volatile(\"\"); }
             int main(void) { outer(); return 0; }",
            )
            .exits(0);
        let stacks = recording.stacks();
        let all = stacks.through("leaf");
        within("leaf", all.seconds(), 0.47..=0.52);
        let complete = all.through("inner").through("outer").through("main");
        assert_eq!(complete.count(), all.count(), "every stack reaches main");
        assert_eq!(
            complete.through("_start").count(),
            all.count(),
            "and the root"
        );
    });
}
