//! Walks a program at every instruction that it executes, and compares each walk with the calls that were executed.
//!
//! *exact*: every frame, leaf to root. *marked*: a true prefix, and a reason. *wrong*: anything else; there must be none.
//!
//! `cargo test -p selvedge-unwind --test step -- --nocapture` prints the counts.

mod shadow;
mod tracee;

use selvedge_arch::Registers;
use selvedge_unwind::{End, Memo, Memory, walk, walk_again};
use shadow::{Flow, Shadow, flow};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use tracee::{Modules, Stop, Tracee};

/// A copy of the top of the stack, and the tracee for what lies elsewhere.
struct Copied<'a> {
    tracee: &'a Tracee,
    start: u64,
    bytes: &'a [u8],
}

impl Memory for Copied<'_> {
    fn read(&mut self, address: u64) -> Option<u64> {
        if !address.is_multiple_of(8) {
            return None;
        }
        let offset = address.wrapping_sub(self.start) as usize;
        match self.bytes.get(offset..).and_then(<[u8]>::first_chunk) {
            Some(word) => Some(u64::from_le_bytes(*word)),
            None => self.tracee.word(address),
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    steps: u64,
    exact: u64,
    marked: u64,
    wrong: u64,
    /// Marked walks by reason and place.
    marks: BTreeMap<(String, &'static str), u64>,
    faults: Vec<String>,
    /// Distinct instructions, and how many of them were walked exactly at each of their first [`VISITS`] visits.
    visits: HashMap<u64, (u32, u32)>,
    /// How the program ended, if it did.
    status: Option<i32>,
}

/// Visits of an instruction that a prover would sample.
const VISITS: u32 = 3;

impl Counts {
    /// Exact samples of the first visits to each instruction, and all of those.
    fn sampled(&self) -> (u64, u64) {
        self.visits.values().fold((0, 0), |(exact, all), visits| {
            (exact + u64::from(visits.1), all + u64::from(visits.0))
        })
    }

    fn exact_share(&self) -> f64 {
        self.exact as f64 / (self.exact + self.marked + self.wrong).max(1) as f64
    }
}

/// A fault to plant between the program and the comparison.
struct Plant {
    registers: fn(&mut Registers),
    frames: fn(&mut [u64]),
}

impl Plant {
    const NONE: Self = Self {
        registers: |_| {},
        frames: |_| {},
    };
}

/// Steps through a program to its end, or for `limit` steps.
fn prove(command: &[&Path], environment: &[&str], limit: u64, plant: &Plant) -> Counts {
    let tracee = Tracee::start(command, environment);
    let mut modules = Modules::default();
    modules.refresh(&tracee);
    let mut shadow = Shadow::default();
    let mut counts = Counts::default();
    let mut expected = Vec::new();
    let mut frames = vec![0; 4096];
    let mut frames_again = vec![0; 4096];
    let mut memo = Box::<Memo>::default();
    let mut stack = vec![0; 1 << 15];
    let mut alternate = 0..0;
    let mut pending = 0;
    let mut code_cache: HashMap<u64, Flow> = HashMap::new();
    let (mut registers, mut rax) = tracee.registers();
    while counts.steps < limit {
        counts.steps += 1;
        // Compare.
        let start = registers.sp.wrapping_sub(256) & !7;
        let read = tracee.read(start, &mut stack);
        let read = if read == 0 {
            tracee.read(start, &mut stack[..4096 - (start & 4095) as usize])
        } else {
            read
        };
        let mut memory = Copied {
            tracee: &tracee,
            start,
            bytes: &stack[..read],
        };
        let mut planted = registers;
        (plant.registers)(&mut planted);
        let walked = walk(&modules.view(), planted, &mut memory, &mut frames);
        let again = walk_again(
            &modules.view(),
            planted,
            &mut memory,
            &mut frames_again,
            &mut memo,
        );
        assert_eq!(
            (again, &frames_again[..again.frames]),
            (walked, &frames[..walked.frames]),
            "with and without a memo at {planted:x?}"
        );
        shadow.frames(registers.ip, &mut expected);
        (plant.frames)(&mut frames[..walked.frames]);
        let found = &frames[..walked.frames];
        let visits = counts.visits.entry(registers.ip).or_default();
        if visits.0 < VISITS {
            let exact = walked.end == End::Root && found == expected;
            *visits = (visits.0 + 1, visits.1 + u32::from(exact));
        }
        if walked.end == End::Root && found == expected {
            counts.exact += 1;
        } else if walked.end != End::Root && expected.starts_with(found) && walked.frames > 0 {
            counts.marked += 1;
            *counts
                .marks
                .entry((modules.name(found[found.len() - 1]), walked.end.name()))
                .or_default() += 1;
        } else {
            counts.wrong += 1;
            if counts.faults.len() < 10 {
                let names = |frames: &[u64]| {
                    frames
                        .iter()
                        .map(|a| modules.name(*a))
                        .collect::<Vec<_>>()
                        .join("\n      ")
                };
                counts.faults.push(format!(
                    "{registers:x?} {:?}\n   found {}\n   true  {}",
                    walked.end,
                    names(found),
                    names(&expected)
                ));
            }
        }
        // Step.
        let instruction = *code_cache.entry(registers.ip).or_insert_with(|| {
            let mut code = [0; 16];
            let read = tracee.read(registers.ip, &mut code);
            flow(&code[..read])
        });
        let before = registers;
        let (number, delivered) = (rax, pending);
        pending = 0;
        let stop = tracee.step(delivered);
        if let Stop::Exited(status) = stop {
            counts.status = Some(status);
            break;
        }
        (registers, rax) = tracee.registers();
        if delivered != 0 {
            let restorer = tracee.word(registers.sp).unwrap_or(0);
            if registers.sp > before.sp || before.sp - registers.sp > 16384 {
                alternate = registers.sp - 0x8000..registers.sp + 0x4000;
            }
            shadow.signal(before.ip, before.sp, registers.sp, restorer);
            continue;
        }
        if let Stop::Signal(signal) = stop {
            pending = signal;
        }
        match instruction {
            Flow::Call if registers.sp == before.sp.wrapping_sub(8) => {
                shadow.call(registers.sp, tracee.word(registers.sp).unwrap_or(0));
            }
            Flow::Load => shadow.load(before.sp, registers.sp),
            Flow::Return => {
                shadow.drop_below(registers.sp, alternate.clone());
                shadow.ret(registers.sp, tracee.word(registers.sp).unwrap_or(0));
            }
            Flow::SystemCall if number == libc::SYS_rt_sigreturn as u64 => shadow.signal_return(),
            Flow::SystemCall => {
                let number = number as i64;
                if [libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mprotect].contains(&number) {
                    modules.refresh(&tracee);
                    code_cache.clear();
                }
            }
            _ => {}
        }
        shadow.drop_below(registers.sp, alternate.clone());
    }
    counts
}

fn report(name: &str, counts: &Counts) {
    let Counts {
        steps,
        exact,
        marked,
        wrong,
        ..
    } = counts;
    let (sampled_exact, sampled) = counts.sampled();
    println!(
        "{name}: {steps} steps: exact {exact} ({:.3} %), marked {marked}, wrong {wrong}; of {sampled} first visits to {} \
         instructions, exact {:.3} %",
        100.0 * counts.exact_share(),
        counts.visits.len(),
        100.0 * sampled_exact as f64 / sampled as f64
    );
    let mut marks: Vec<_> = counts.marks.iter().collect();
    marks.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for ((place, end), count) in marks.iter().take(12) {
        println!("  {count} {end} at {place}");
    }
    for fault in &counts.faults {
        println!("  WRONG {fault}");
    }
}

/// Builds a program.
fn build(compiler: &str, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/step/programs")
        .join(source);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let status = Command::new(compiler)
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .status()
        .unwrap_or_else(|error| panic!("cannot run {compiler}: {error}"));
    assert!(
        status.success(),
        "{compiler} failed on {}",
        source.display()
    );
    program
}

/// `least_exact` is of all steps; of the first visits of each instruction, which weigh rare code more, a little less.
fn check(name: &str, command: &[&Path], environment: &[&str], least_exact: f64) {
    let counts = prove(command, environment, 6_000_000, &Plant::NONE);
    report(name, &counts);
    assert_eq!(counts.wrong, 0, "{name}: wrong stacks");
    assert_eq!(counts.status, Some(0), "{name}: did not end well");
    assert!(counts.steps > 10_000, "{name}: only {} steps", counts.steps);
    let share = counts.exact_share();
    assert!(share >= least_exact, "{name}: exact share {share}");
    let (exact, sampled) = counts.sampled();
    assert!(
        exact as f64 / sampled as f64 >= least_exact.min(0.995),
        "{name}: exact at {exact} of {sampled} first visits"
    );
}

#[test]
fn lazily_bound_frameless_program() {
    let flags = [
        "-O2",
        "-fomit-frame-pointer",
        "-fcf-protection",
        "-Wl,-z,lazy",
    ];
    let program = build("cc", "stepped.c", "lazy", &flags);
    check("lazy", &[&program], &[], 0.9998);
}

#[test]
fn static_pie_program() {
    let flags = ["-O2", "-fomit-frame-pointer", "-static-pie"];
    let program = build("cc", "stepped.c", "static-pie", &flags);
    check("static-pie", &[&program], &[], 0.9995);
}

#[test]
fn stripped_program() {
    let program = build("cc", "stepped.c", "stripped", &["-O1", "-s", "-Wl,-z,now"]);
    check("stripped", &[&program], &[], 0.9995);
}

#[test]
fn program_that_throws() {
    let program = build(
        "c++",
        "thrown.cpp",
        "thrown",
        &["-O2", "-fomit-frame-pointer"],
    );
    check("thrown", &[&program], &[], 0.999);
}

#[test]
fn program_that_jumps_and_switches() {
    let frameless = ["-O2", "-fomit-frame-pointer"];
    let program = build("cc", "contexts.c", "contexts", &frameless);
    check("contexts", &[&program], &[], 0.999);
    let program = build("cc", "contexts.c", "contexts-framed", &["-O0"]);
    check("contexts, framed", &[&program], &[], 0.999);
}

#[test]
fn program_of_odd_frames() {
    let flags = [
        "-O2",
        "-fomit-frame-pointer",
        "-fcf-protection",
        "-Wl,-z,lazy",
    ];
    let program = build("cc", "frames.c", "frames", &flags);
    check("frames", &[&program], &[], 0.999);
}

#[test]
fn program_that_panics() {
    let program = build("rustc", "panics.rs", "panics", &["-O", "--edition=2024"]);
    check("panics", &[&program], &[], 0.993);
}

#[test]
fn true_and_ls() {
    check("true", &[Path::new("/bin/true")], &[], 0.9999);
    let ls = [Path::new("/bin/ls"), Path::new("-l"), Path::new("/usr")];
    check("ls", &ls, &["LC_ALL=C.UTF-8"], 0.9999);
}

/// The test itself is tested: each planted fault must be reported.
#[test]
fn planted_faults_are_reported() {
    let program = build(
        "cc",
        "stepped.c",
        "planted",
        &["-O2", "-fomit-frame-pointer"],
    );
    let planted = |plant: Plant| prove(&[&program], &[], 60_000, &plant).wrong;
    assert_eq!(planted(Plant::NONE), 0);
    let dropped = planted(Plant {
        frames: |frames| {
            if frames.len() > 3 {
                frames.copy_within(2.., 1);
            }
        },
        ..Plant::NONE
    });
    let swapped = planted(Plant {
        frames: |frames| {
            if frames.len() > 3 {
                frames.swap(1, 2);
            }
        },
        ..Plant::NONE
    });
    let stack_off = planted(Plant {
        registers: |registers| registers.sp += 8,
        ..Plant::NONE
    });
    let row_off = planted(Plant {
        registers: |registers| registers.ip += 1,
        frames: |frames| frames[0] -= 1,
    });
    for (fault, wrong) in [
        ("dropped frame", dropped),
        ("swapped callers", swapped),
        ("stack pointer off by a word", stack_off),
        ("row off by a byte", row_off),
    ] {
        println!("{fault}: {wrong} wrong");
        assert!(
            wrong > 100,
            "{fault}: only {wrong} of 60,000 walks reported"
        );
    }
}
