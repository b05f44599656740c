//! Walks a program at every instruction that it executes, and compares each walk with the calls that were executed.
//!
//! *exact*: every frame, leaf to root. *marked*: a true prefix, and a reason. *wrong*: anything else; there must be none.
//!
//! `cargo test -p selvedge-unwind --test step -- --nocapture` prints the counts.

mod shadow;
mod tracee;

use selvedge_unwind::{End, Memory, walk};
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
}

impl Counts {
    fn exact_share(&self) -> f64 {
        self.exact as f64 / (self.exact + self.marked + self.wrong).max(1) as f64
    }
}

/// Steps through a program to its end.
fn prove(command: &[&Path], environment: &[&str], limit: u64) -> Counts {
    let tracee = Tracee::start(command, environment);
    let mut modules = Modules::default();
    modules.refresh(&tracee);
    let mut shadow = Shadow::default();
    let mut counts = Counts::default();
    let mut expected = Vec::new();
    let mut frames = vec![0; 4096];
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
        let walked = walk(&modules.view(), registers, &mut memory, &mut frames);
        shadow.frames(registers.ip, &mut expected);
        let found = &frames[..walked.frames];
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
        if let Stop::Exited(_) = stop {
            break;
        }
        (registers, rax) = tracee.registers();
        if delivered != 0 {
            let restorer = tracee.word(registers.sp).unwrap_or(0);
            if registers.sp > before.sp || before.sp - registers.sp > 16384 {
                alternate = registers.sp & !0xffff..registers.sp + 0x4000;
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
    println!(
        "{name}: {steps} steps: exact {exact} ({:.3} %), marked {marked}, wrong {wrong}",
        100.0 * counts.exact_share()
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

/// Builds the C program.
fn build(name: &str, flags: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/step/programs/stepped.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let status = Command::new("cc")
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(source)
        .status()
        .expect("cannot run cc");
    assert!(status.success(), "cc failed on stepped.c");
    program
}

fn check(name: &str, command: &[&Path], environment: &[&str]) {
    let counts = prove(command, environment, 3_000_000);
    report(name, &counts);
    assert_eq!(counts.wrong, 0, "{name}: wrong stacks");
    assert!(
        counts.exact_share() >= 0.999,
        "{name}: exact share {}",
        counts.exact_share()
    );
}

#[test]
fn lazily_bound_frameless_program() {
    let program = build(
        "lazy",
        &[
            "-O2",
            "-fomit-frame-pointer",
            "-fcf-protection",
            "-Wl,-z,lazy",
        ],
    );
    check("lazy", &[&program], &[]);
}

#[test]
fn static_pie_program() {
    let program = build(
        "static-pie",
        &["-O2", "-fomit-frame-pointer", "-static-pie"],
    );
    check("static-pie", &[&program], &[]);
}

#[test]
fn stripped_program() {
    let program = build("stripped", &["-O1", "-s", "-Wl,-z,now"]);
    check("stripped", &[&program], &[]);
}

#[test]
fn true_and_ls() {
    check("true", &[Path::new("/bin/true")], &[]);
    check(
        "ls",
        &[Path::new("/bin/ls"), Path::new("-l"), Path::new("/usr")],
        &["LC_ALL=C.UTF-8"],
    );
}
