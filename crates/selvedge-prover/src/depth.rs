//! How much stack a handler uses: memory below the interrupted stack is painted before, and looked at afterwards.
//!
//! The part that the kernel uses itself (the signal frame) is not counted: it is found by the registers that are in it.

use crate::tracee::{Registers, Tracee};

/// What the ABI keeps below the stack pointer (System V ABI, AMD64 supplement, §3.2.2).
const RED_ZONE: u64 = 128;
/// Bytes that are painted: a signal frame of any CPU, and much more than a handler should use.
const PAINTED: usize = 32 * 1024;
const PAINT: [u8; 8] = *b"unpaint!";

/// Stack that was painted.
#[derive(Debug)]
pub struct Painted {
    start: u64,
    before: Vec<u8>,
}

/// Paints what is below the stack pointer of a thread that is on its first stack: below another there may be anything.
/// `None` where so much is not there.
#[must_use]
pub fn paint(tracee: Tracee, registers: &Registers) -> Option<Painted> {
    let end = registers.rsp.checked_sub(RED_ZONE)? & !7;
    let start = end.checked_sub(PAINTED as u64)?;
    let mut before = vec![0; PAINTED];
    if tracee.read(start, &mut before).len() < PAINTED {
        return None;
    }
    let painted = Painted { start, before };
    if !tracee.write(start, &PAINT.repeat(PAINTED / PAINT.len())) {
        painted.restore(tracee);
        return None;
    }
    Some(painted)
}

impl Painted {
    /// Bytes that the handler has used at most; `None` where it ran on another stack. What was there before is there again.
    #[must_use]
    pub fn used(&self, tracee: Tracee, registers: &Registers) -> Option<u64> {
        /// Of `rsp` in a `ucontext`, which lies above the restorer; `rip` follows.
        const SP: u64 = 160 + 8;
        let mut bytes = vec![0; PAINTED];
        let words: Vec<[u8; 8]> = tracee.read(self.start, &mut bytes).as_chunks().0.to_vec();
        self.restore(tracee);
        let interrupted = [registers.rsp.to_le_bytes(), registers.rip.to_le_bytes()];
        let saved = words.windows(2).rposition(|pair| pair == interrupted)? as u64;
        let entry = self.start + 8 * saved - SP;
        let lowest = words.iter().position(|word| *word != PAINT)? as u64;
        entry.checked_sub(self.start + 8 * lowest)
    }

    fn restore(&self, tracee: Tracee) {
        // Of a thread that has just ended, there is nothing to restore.
        let _ = tracee.write(self.start, &self.before);
    }
}
