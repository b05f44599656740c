//! Programs that handle their own faults: our signals arrive in their handlers, and change nothing of what they say.

use crate::harness::{Workshop, best_of_three, within};
use std::process::Command;

#[test]
fn handlers_of_the_programs_own_faults_are_sampled() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let recording = workshop
            .record_source(
                &["-F", "250"],
                "#include <setjmp.h>
                 sigjmp_buf back; BURNER(warm) BURNER(in_handler)
                 void handle(int s) { in_handler(0.3); siglongjmp(back, 1); }
                 __attribute__((noinline)) void fault(volatile int *at) { *at = 1; puts(\"not reached\"); }
                 int main(void) {
                   stack_t s = {malloc(16384), 0, 16384}; sigaltstack(&s, 0);
                   struct sigaction a = {0}; a.sa_handler = handle; a.sa_flags = SA_ONSTACK; sigaction(SIGSEGV, &a, 0);
                   warm(0.4);
                   if (!sigsetjmp(back, 1)) fault(0);
                   puts(\"back\"); return 3; }",
            )
            .exits(3);
        assert_eq!(recording.stdout, "back\n");
        let inside = recording.stacks().through("in_handler");
        within("in_handler", inside.seconds(), 0.24..=0.33);
        within(
            "reached what faulted, and main",
            inside.through("fault").through("main").seconds(),
            0.22..=0.33,
        );
    });
}

/// std's handler has an alternate stack of 8 KiB at least, and so does ours then.
#[test]
fn overflow_of_a_rust_stack_says_what_it_says_without_us() {
    let workshop = Workshop::new();
    let (source, program) = (workshop.path("overflow.rs"), workshop.path("overflow"));
    std::fs::write(
        &source,
        "#[inline(never)] fn down(n: u64) -> u64 { let here = std::hint::black_box([n; 64]); if n == 0 { 0 } else { down(n + 1) + here[3] } }
         fn work() { let mut sum = 0_u64; for i in 0..400_000_000_u64 { sum = sum.wrapping_add(std::hint::black_box(i)); } std::hint::black_box(sum); }
         fn main() { if std::env::args().len() > 1 { work(); println!(\"{}\", down(1)); }
             std::thread::Builder::new().name(\"deep\".into()).spawn(|| { work(); down(1) }).unwrap().join().unwrap(); }",
    )
    .unwrap();
    let built = Command::new("rustc")
        .args(["-Copt-level=1", "-o"])
        .args([&program, &source])
        .status();
    assert!(built.unwrap().success());
    // A thread's number is part of the message.
    let without_numbers = |text: &str| -> Vec<String> {
        let ours = |line: &&str| line.contains("overflow");
        let words = |line: &str| line.chars().filter(|c| !c.is_ascii_digit()).collect();
        text.lines().filter(ours).map(words).collect()
    };
    for in_main in [&["main"][..], &[]] {
        let alone = Command::new(&program).args(in_main).output().unwrap();
        let alone = without_numbers(&String::from_utf8_lossy(&alone.stderr));
        assert!(
            alone.iter().any(|line| line.contains("has overflowed")),
            "{alone:?}"
        );
        let mut command = vec![program.to_str().unwrap()];
        command.extend(in_main);
        let recording = workshop
            .record()
            .options(&["-F", "4000"])
            .run(command)
            .exits(128 + 6);
        assert_eq!(without_numbers(&recording.stderr), alone);
        let samples = recording.stacks().count();
        assert!(samples > 20, "{samples} samples");
    }
}
