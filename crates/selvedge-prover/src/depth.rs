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
    words: usize,
}

/// Paints what is below the stack pointer; `None` where so much cannot be written.
#[must_use]
pub fn paint(tracee: Tracee, registers: &Registers) -> Option<Painted> {
    let end = registers.rsp.checked_sub(RED_ZONE)? & !7;
    let bytes = PAINT.repeat(PAINTED / 8);
    let start = end.checked_sub(PAINTED as u64)?;
    tracee.write(start, &bytes).then_some(Painted {
        start,
        words: PAINTED / 8,
    })
}

impl Painted {
    /// Bytes that the handler has used at most; `None` where it ran on another stack.
    #[must_use]
    pub fn used(&self, tracee: Tracee, registers: &Registers) -> Option<u64> {
        /// Of `rsp` in a `ucontext`, which lies above the restorer; `rip` follows.
        const SP: u64 = 160 + 8;
        let mut bytes = vec![0; 8 * self.words];
        let words: Vec<[u8; 8]> = tracee.read(self.start, &mut bytes).as_chunks().0.to_vec();
        let interrupted = [registers.rsp.to_le_bytes(), registers.rip.to_le_bytes()];
        let saved = words.windows(2).rposition(|pair| pair == interrupted)? as u64;
        let entry = self.start + 8 * saved - SP;
        let lowest = words.iter().position(|word| *word != PAINT)? as u64;
        entry.checked_sub(self.start + 8 * lowest)
    }
}
