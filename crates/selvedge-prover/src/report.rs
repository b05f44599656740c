//! What a proof has found, and how it is printed.

use crate::modules::Modules;
use crate::tracee::{Registers, Tracee};
use crate::verdict::Verdict;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

/// Wrong stacks that are shown whole.
const SHOWN: usize = 20;
/// Of these, in each function.
const SHOWN_OF_EACH: usize = 3;
/// Rows of the tables of functions.
const ROWS: usize = 12;

/// One sample.
#[derive(Debug)]
pub struct Finding {
    /// What the recorded stack is.
    pub verdict: Verdict,
    /// The thread's registers.
    pub registers: Registers,
    /// What was recorded, leaf first.
    pub recorded: Vec<u64>,
    /// What was true.
    pub truth: Vec<u64>,
    /// What the handler has changed.
    pub changed: Option<&'static str>,
}

/// All samples of a proof.
#[derive(Debug, Default)]
pub struct Findings {
    /// What the profiler calls itself.
    pub profiler: String,
    /// Executed instructions.
    pub steps: u64,
    /// Distinct instructions that were interrupted.
    pub instructions: usize,
    /// Signals delivered.
    pub samples: u64,
    /// Times that an instruction was chosen while the thread blocked the signal: it was tried again later.
    pub blocked: u64,
    /// Functions found for windows.
    pub windows: usize,
    /// Bytes of stack that a handler has used, at most.
    pub stack: u64,
    /// Whether the program was stopped before its end.
    pub cut: bool,
    /// Samples in the profile that was written; `None`: there is none.
    pub in_profile: Option<u64>,
    /// Exact stacks.
    pub exact: u64,
    /// Marked stacks.
    pub marked: u64,
    /// Wrong stacks, and samples of which nothing was recorded.
    pub wrong: u64,
    /// Of these, true stacks that end too early with nothing to say so.
    pub short: u64,
    /// Samples whose handler changed something.
    pub changed: u64,
    /// Number of each kind of finding by instruction: mark (0: wrong) and the instruction that it stands at.
    places: HashMap<(Verdict, u64, u64), u64>,
    functions: BTreeMap<(Verdict, u64, String), u64>,
    details: Vec<String>,
    /// Details by function.
    shown: HashMap<String, usize>,
}

impl Findings {
    /// Counts a sample.
    pub fn note(&mut self, finding: Finding, tracee: Tracee, modules: &mut Modules) {
        let Finding {
            verdict, recorded, ..
        } = &finding;
        match verdict {
            Verdict::Exact => self.exact += 1,
            Verdict::Marked => self.marked += 1,
            Verdict::Short => {
                self.short += 1;
                self.wrong += 1;
            }
            Verdict::Wrong => self.wrong += 1,
        }
        if *verdict != Verdict::Exact {
            let mark = recorded
                .iter()
                .position(|&frame| frame < crate::mailbox::FIRST_ADDRESS);
            // A mark stands behind the frame whose caller is missing.
            let (mark, place) = match (verdict, mark) {
                (Verdict::Marked, Some(at)) => (recorded[at], recorded[at.saturating_sub(1)]),
                _ => (0, finding.registers.rip),
            };
            *self.places.entry((*verdict, mark, place)).or_default() += 1;
        }
        self.changed += u64::from(finding.changed.is_some());
        if (*verdict > Verdict::Marked || finding.changed.is_some()) && self.details.len() < SHOWN {
            let function = modules.function(tracee, finding.registers.rip);
            let shown = self.shown.entry(function).or_default();
            *shown += 1;
            if *shown <= SHOWN_OF_EACH {
                self.details.push(detail(&finding, tracee, modules));
            }
        }
    }

    /// Finds the names of functions, once.
    pub fn name_functions(&mut self, tracee: Tracee, modules: &mut Modules) {
        for ((verdict, mark, place), count) in self.places.drain() {
            let function = modules.function(tracee, place);
            *self.functions.entry((verdict, mark, function)).or_default() += count;
        }
    }

    /// Share of exact stacks, in percent.
    #[must_use]
    pub fn exact_share(&self) -> f64 {
        100.0 * self.exact as f64 / self.samples.max(1) as f64
    }

    fn rows(&self) -> Vec<(&(Verdict, u64, String), u64)> {
        let mut rows: Vec<_> = self
            .functions
            .iter()
            .map(|(row, &count)| (row, count))
            .collect();
        rows.sort_by_key(|&(row, count)| (std::cmp::Reverse(row.0), std::cmp::Reverse(count)));
        rows
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for detail in &self.details {
            let _ = writeln!(text, "{detail}");
        }
        let rows = self.rows();
        for ((verdict, mark, function), count) in rows.iter().take(ROWS) {
            let _ = match verdict {
                Verdict::Wrong => writeln!(text, "wrong  {count:>8}            {function}"),
                Verdict::Short => writeln!(text, "short  {count:>8}            {function}"),
                _ => writeln!(text, "marked {count:>8} mark {mark:<4}  {function}"),
            };
        }
        if rows.len() > ROWS {
            let _ = writeln!(text, "… and {} more functions", rows.len() - ROWS);
        }
        let share = |part: u64| 100.0 * part as f64 / self.samples.max(1) as f64;
        let _ = writeln!(
            text,
            "{}: {} steps, {} distinct instructions, {} samples: exact {} ({:.3} %), marked {} ({:.3} %), wrong {} ({:.3} %; {} of them only short)",
            if self.profiler.is_empty() {
                "no profiler"
            } else {
                &self.profiler
            },
            self.steps,
            self.instructions,
            self.samples,
            self.exact,
            share(self.exact),
            self.marked,
            share(self.marked),
            self.wrong,
            share(self.wrong),
            self.short,
        );
        let _ = writeln!(
            text,
            "the handler used {} bytes of stack at most",
            self.stack
        );
        text
    }

    /// For programs: a line for each kind of finding, then the totals.
    #[must_use]
    pub fn json(&self) -> String {
        let mut text = String::new();
        for detail in &self.details {
            let _ = writeln!(text, "{}", json!({ "detail": detail }));
        }
        for ((verdict, mark, function), count) in self.rows() {
            let kind = match verdict {
                Verdict::Wrong => "wrong",
                Verdict::Short => "short",
                _ => "marked",
            };
            let line =
                json!({ "kind": kind, "mark": mark, "function": function, "samples": count });
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(text, "{}", json!({ "handler_stack_bytes": self.stack }));
        // In the order in which it is documented: `json!` would sort the keys.
        let _ = writeln!(
            text,
            "{{\"steps\":{},\"pcs\":{},\"samples\":{},\"exact\":{},\"marked\":{},\"wrong\":{}}}",
            self.steps, self.instructions, self.samples, self.exact, self.marked, self.wrong
        );
        text
    }
}

fn detail(finding: &Finding, tracee: Tracee, modules: &mut Modules) -> String {
    let Finding {
        registers,
        recorded,
        truth,
        changed,
        verdict,
    } = finding;
    let mut text = match changed {
        Some(what) => format!("CHANGED {what}"),
        None => format!("{verdict:?}").to_uppercase(),
    };
    let mut code = [0_u8; 16];
    let bytes = tracee.read(registers.rip, &mut code);
    let _ = write!(text, " at {}\n  code", modules.place(registers.rip));
    for byte in bytes {
        let _ = write!(text, " {byte:02x}");
    }
    let Registers {
        rsp,
        rbp,
        rbx,
        r12,
        r13,
        r14,
        r15,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        ..
    } = registers;
    let _ = write!(
        text,
        "\n  rsp {rsp:#x} rbp {rbp:#x} rbx {rbx:#x} r12 {r12:#x} r13 {r13:#x} r14 {r14:#x} r15 {r15:#x}\n  \
         rax {rax:#x} rcx {rcx:#x} rdx {rdx:#x} rsi {rsi:#x} rdi {rdi:#x} r8 {r8:#x} r9 {r9:#x} r10 {r10:#x} r11 {r11:#x}"
    );
    for (name, frames) in [("recorded", recorded), ("true", truth)] {
        let _ = write!(text, "\n  {name}:");
        for (at, &frame) in frames.iter().enumerate().take(40) {
            if frame < crate::mailbox::FIRST_ADDRESS {
                let _ = write!(text, "\n    mark {frame}");
                continue;
            }
            let inside = if at == 0 { frame } else { frame - 1 };
            let function = modules.function(tracee, inside);
            let _ = write!(text, "\n    {} {function}", modules.place(frame));
        }
    }
    text
}
