//! The library as a Rust program uses it. One profile at a time per process: the tests take turns.

use selvedge_pprof::model::{LabelValue, Profile};
use selvedge_profile::{Builder, EngineChoice, Report};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn thread_cpu() -> Duration {
    let nanos = selvedge_sample::system::clock(selvedge_sample::system::OWN_THREAD_CLOCK);
    Duration::from_nanos(nanos.expect("the thread's clock"))
}

#[inline(never)]
fn burn_cpu(time: Duration) {
    let end = thread_cpu() + time;
    let mut x = 1_u64;
    while thread_cpu() < end {
        for _ in 0..10_000 {
            x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

/// CPU seconds of the samples with a frame of this function.
fn seconds_in(profile: &Profile, function: &str) -> f64 {
    let is_in = |location: &usize| {
        let lines = &profile.locations[*location].lines;
        lines
            .iter()
            .any(|line| profile.functions[line.function].name.contains(function))
    };
    let nanos: i64 = profile
        .samples
        .iter()
        .filter(|sample| sample.locations.iter().any(is_in))
        .map(|sample| sample.values[1])
        .sum();
    nanos as f64 / 1e9
}

/// CPU seconds that whole stacks (to their root) stand for, as a share of all samples.
fn share_of_whole_stacks(report: &Report) -> f64 {
    let truncated = seconds_in(&report.profile, "[truncated");
    1.0 - truncated / (report.summary.recorded() as f64 / 1e9)
}

#[test]
fn work_of_the_calling_thread_is_in_the_profile() {
    let _turn = turn();
    let guard = Builder::new().hz(999.0).start().unwrap();
    burn_cpu(Duration::from_millis(600));
    let report = guard.stop();
    // A busy host takes ticks away: how many samples there are is the host's affair, what they weigh is ours.
    assert!(report.summary.samples() >= 20, "{:?}", report.summary);
    let seconds = seconds_in(&report.profile, "burn_cpu");
    assert!(
        (0.55..0.75).contains(&seconds),
        "{seconds} s: {:?}",
        report.summary
    );
    assert!(
        share_of_whole_stacks(&report) > 0.98,
        "{}",
        share_of_whole_stacks(&report)
    );
}

#[test]
fn second_start_is_a_typed_error_and_a_later_one_works() {
    let _turn = turn();
    let guard = Builder::new().start().unwrap();
    let error = Builder::new().start().unwrap_err();
    assert!(error.is_already_running(), "{error}");
    drop(guard);
    let guard = Builder::new().hz(999.0).start().unwrap();
    burn_cpu(Duration::from_millis(300));
    assert!(guard.stop().summary.samples() >= 10);
}

#[test]
fn threads_from_before_the_start_and_from_after_it_are_sampled() {
    let _turn = turn();
    let go = AtomicBool::new(false);
    thread::scope(|scope| {
        let wait_and_burn = || {
            while !go.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(1));
            }
            burn_cpu(Duration::from_millis(400));
        };
        let named = |name: &str| thread::Builder::new().name(name.into());
        let before = named("born-before")
            .spawn_scoped(scope, wait_and_burn)
            .unwrap();
        thread::sleep(Duration::from_millis(20));
        let guard = Builder::new().hz(500.0).start().unwrap();
        go.store(true, Ordering::Release);
        let burn = || burn_cpu(Duration::from_millis(400));
        let after = named("born-after").spawn_scoped(scope, burn).unwrap();
        before.join().unwrap();
        after.join().unwrap();
        let report = guard.stop();
        for name in ["born-before", "born-after"] {
            let is_of_thread = |label: &selvedge_pprof::model::Label| {
                label.key == "thread" && label.value == LabelValue::Text(name.into())
            };
            let nanos: i64 = report
                .profile
                .samples
                .iter()
                .filter(|sample| sample.labels.iter().any(is_of_thread))
                .map(|sample| sample.values[1])
                .sum();
            assert!(nanos > 250_000_000, "{name}: {nanos} ns of 400 ms");
        }
    });
}

#[test]
fn snapshot_grows_and_recording_goes_on() {
    let _turn = turn();
    let guard = Builder::new().hz(999.0).start().unwrap();
    burn_cpu(Duration::from_millis(200));
    let first = guard.snapshot().unwrap().summary.samples();
    burn_cpu(Duration::from_millis(200));
    let whole = guard.stop().summary.samples();
    assert!(first >= 5 && whole >= first + 5, "{first}, then {whole}");
}

#[test]
fn weights_add_up_to_the_cpu_clock() {
    let _turn = turn();
    let guard = Builder::new().hz(4000.0).start().unwrap();
    let start = thread_cpu();
    burn_cpu(Duration::from_millis(800));
    let spent = (thread_cpu() - start).as_secs_f64();
    let summary = guard.stop().summary;
    let covered = (summary.recorded() + summary.blocked()) as f64 / 1e9;
    assert!(
        (covered / spent - 1.0).abs() < 0.05,
        "{covered} of {spent} s: {summary:?}"
    );
    let delivered: u64 = summary.images.iter().map(|image| image.delivered).sum();
    let lost: u64 = selvedge_profile::Loss::ALL
        .iter()
        .map(|&cause| summary.lost(cause).0)
        .sum();
    assert_eq!(delivered, summary.samples() + lost, "{summary:?}");
}

#[test]
fn perf_engine_reaches_the_rate_where_it_is_permitted() {
    let _turn = turn();
    if let Err(error) = selvedge_profile::perf_permitted() {
        println!("skipped: perf_event_open is not permitted here: {error}");
        return;
    }
    let guard = Builder::new()
        .hz(2000.0)
        .engine(EngineChoice::Perf)
        .start()
        .unwrap();
    burn_cpu(Duration::from_millis(500));
    let summary = guard.stop().summary;
    assert!(summary.samples() > 500, "{summary:?}");
}

#[test]
fn start_and_stop_again_and_again_under_load_neither_kills_nor_hangs() {
    let _turn = turn();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    burn_cpu(Duration::from_millis(5));
                }
            });
        }
        let started = Instant::now();
        let mut samples = 0;
        let mut rounds = 0;
        while started.elapsed() < Duration::from_secs(3) {
            let guard = Builder::new().hz(4000.0).start().unwrap();
            burn_cpu(Duration::from_millis(6));
            samples += guard.summary().unwrap().samples();
            drop(guard);
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(
            rounds >= 3 && samples >= 3,
            "{samples} samples in {rounds} rounds"
        );
    });
}

#[test]
fn signal_that_the_program_handles_itself_is_refused() {
    let _turn = turn();
    extern "C" fn handler(_: libc::c_int) {}
    let signal = libc::SIGRTMIN() + 5;
    let address = handler as *const () as libc::sighandler_t;
    #[allow(unsafe_code)]
    // SAFETY: installs a handler that does nothing, for a signal that nothing else here uses.
    let before = unsafe { libc::signal(signal, address) };
    assert_ne!(before, libc::SIG_ERR);
    let error = Builder::new().signal(signal).start().unwrap_err();
    assert!(error.is_signal_taken(), "{error}");
}

#[test]
fn settings_out_of_range_are_refused() {
    let _turn = turn();
    for hz in [0.0, -1.0, f64::NAN, 1e9] {
        assert!(Builder::new().hz(hz).start().unwrap_err().is_setting());
    }
    assert!(Builder::new().signal(9).start().unwrap_err().is_setting());
    assert!("fast".parse::<EngineChoice>().unwrap_err().is_setting());
}

#[test]
fn output_is_a_profile_that_can_be_read() {
    let _turn = turn();
    let path = std::env::temp_dir().join(format!("selvedge-library-{}.pb.gz", std::process::id()));
    let guard = Builder::new().hz(999.0).output(&path).start().unwrap();
    burn_cpu(Duration::from_millis(100));
    let (report, written) = guard.finish();
    written.unwrap();
    let read = Profile::read(&std::fs::read(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(read.samples.len(), report.profile.samples.len());
    assert!(
        read.mappings
            .iter()
            .any(|mapping| !mapping.build_id.is_empty())
    );
}
