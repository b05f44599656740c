//! Which instructions are interrupted: every distinct one, some times, from distinct callers; those of named functions always.

use std::collections::HashMap;
use std::ops::Range;

/// Callers from which an instruction was interrupted.
#[derive(Debug, Default)]
struct Visits(Vec<u64>);

/// Chooses instructions.
#[derive(Debug)]
pub struct Choice {
    visits: usize,
    seen: HashMap<u64, Visits>,
    /// Instructions of programs that were there before.
    before: usize,
    windows: Vec<Range<u64>>,
}

impl Choice {
    /// Interrupts each instruction `visits` times.
    #[must_use]
    pub fn new(visits: usize) -> Self {
        Self {
            visits,
            seen: HashMap::new(),
            before: 0,
            windows: Vec::new(),
        }
    }

    /// Always interrupts in these ranges.
    pub fn set_windows(&mut self, windows: Vec<Range<u64>>) {
        self.windows = windows;
    }

    /// Whether the instruction at `pc` is to be interrupted now, in a function that was called from `caller`.
    #[must_use]
    pub fn wants(&self, pc: u64, caller: u64) -> bool {
        match self.seen.get(&pc) {
            None => true,
            Some(Visits(callers)) => {
                (callers.len() < self.visits && !callers.contains(&caller))
                    || self.windows.iter().any(|window| window.contains(&pc))
            }
        }
    }

    /// It was interrupted.
    pub fn note(&mut self, pc: u64, caller: u64) {
        let Visits(callers) = self.seen.entry(pc).or_default();
        if callers.len() < self.visits {
            callers.push(caller);
        }
    }

    /// Another program begins, whose instructions may lie at the same addresses.
    pub fn begin_anew(&mut self) {
        self.before += self.seen.len();
        self.seen.clear();
    }

    /// Distinct instructions that were interrupted.
    #[must_use]
    pub fn instructions(&self) -> usize {
        self.before + self.seen.len()
    }
}
