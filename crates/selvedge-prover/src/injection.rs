//! Interrupting a thread by a real profiling signal, and seeing that its handler leaves no trace.
//!
//! The signal is delivered by the kernel, as any other; the thread then runs at full speed until it stands at the same
//! instruction with the same stack pointer again: a hardware breakpoint says when.

use crate::depth;
use crate::mailbox::Mailbox;
use crate::tracee::{Event, Going, Registers, SignalInfo, Tracee};
use std::io;

/// What came of a signal.
#[derive(Debug)]
pub struct Outcome {
    /// What was recorded; `None`: nothing.
    pub recorded: Option<Vec<u64>>,
    /// Bytes of stack that the handler has used; `None` where that cannot be told.
    pub stack: Option<u64>,
    /// What the handler has changed, in words.
    pub changed: Option<&'static str>,
    /// A signal of the program's own that is about to be delivered.
    pub pending: Option<i32>,
    /// The thread has ended meanwhile, with this status.
    pub ended: Option<i32>,
}

/// Bytes of thread-local storage below the thread pointer that are compared, and of the control block above it.
const BELOW: u64 = 4096;
const ABOVE: u64 = 0x300;

/// What a handler must leave as it was.
#[derive(Debug)]
struct State {
    registers: Registers,
    vectors: Vec<u8>,
    locals: Vec<u8>,
}

impl State {
    fn of(tracee: Tracee, registers: Registers) -> io::Result<Self> {
        let mut start = registers.fs_base.wrapping_sub(BELOW);
        let end = registers.fs_base.wrapping_add(ABOVE);
        // They can lie right above the stack.
        if (start..end).contains(&registers.rsp) {
            start = registers.rsp;
        }
        let mut locals = vec![0; end.wrapping_sub(start) as usize];
        let read = tracee.read(start, &mut locals).len();
        locals.truncate(read);
        Ok(Self {
            registers,
            vectors: tracee.vector_registers()?,
            locals,
        })
    }

    /// What is different now.
    fn difference(&self, now: &Self) -> Option<&'static str> {
        if general(&self.registers) != general(&now.registers) {
            return Some("general registers");
        }
        // Control and status words, MXCSR, the x87 and SSE registers; then, behind the header, the upper halves. Pointers
        // to the last x87 instruction are not kept by every CPU.
        let parts = [0..6, 24..28, 32..416];
        let legacy = |state: &Self| {
            parts
                .clone()
                .map(|part| state.vectors.get(part).map(<[u8]>::to_vec))
        };
        if legacy(self) != legacy(now) || self.vectors.get(576..) != now.vectors.get(576..) {
            return Some("vector registers");
        }
        if self.locals != now.locals {
            return Some("thread-local storage (errno)");
        }
        None
    }
}

/// Flag of an instruction that is not to stop at a breakpoint: set by the CPU at one, and between the rounds of a repeated
/// instruction. No program sees it.
const RESUME: u64 = 1 << 16;

/// The registers that a program sees.
fn general(registers: &Registers) -> [u64; 25] {
    let Registers {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        rip,
        cs,
        eflags,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
        ..
    } = *registers;
    [
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        rip,
        cs,
        eflags & !RESUME,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
    ]
}

/// Delivers `signal` with `info` to a thread that stands after a step, and waits until its handler has returned. If
/// `paints`, sees how much stack that uses.
///
/// # Errors
///
/// The kernel refuses.
pub fn inject(
    tracee: Tracee,
    registers: Registers,
    signal: i32,
    info: &SignalInfo,
    mailbox: &Mailbox,
    number: u64,
    paints: bool,
) -> io::Result<Outcome> {
    let before = State::of(tracee, registers)?;
    let mut outcome = Outcome {
        recorded: None,
        stack: None,
        changed: None,
        pending: None,
        ended: None,
    };
    if registers.eflags & RESUME != 0 {
        // The handler's return would bring it back, and the thread run past the breakpoint.
        tracee.set_registers(&Registers {
            eflags: registers.eflags & !RESUME,
            ..registers
        })?;
    }
    let painted = match paints {
        true => depth::paint(tracee, &registers),
        false => None,
    };
    mailbox.announce(number);
    tracee.set_signal_info(info)?;
    tracee.set_breakpoint(Some(registers.rip))?;
    let mut delivered = signal;
    let mut going = Going::On;
    let now = loop {
        tracee.go(going, delivered)?;
        delivered = 0;
        going = Going::On;
        match tracee.wait()? {
            Event::Ended(status) => {
                outcome.ended = Some(status);
                mailbox.withdraw();
                return Ok(outcome);
            }
            // Its number is of interest to whoever waits for all threads: none is made in a handler.
            Event::Cloned(_) | Event::Executed | Event::Stopped => continue,
            event => {
                let now = tracee.registers()?;
                let returned = (now.rip, now.rsp) == (registers.rip, registers.rsp);
                match event {
                    Event::Signal(own) if returned => {
                        outcome.pending = Some(own);
                        break now;
                    }
                    Event::Signal(other) => delivered = other,
                    _ if returned => break now,
                    // The handler itself executes that instruction: past it.
                    _ => going = Going::Step,
                }
            }
        }
    };
    tracee.set_breakpoint(None)?;
    mailbox.withdraw();
    outcome.recorded = mailbox.recorded(number);
    outcome.stack = painted.and_then(|painted| painted.used(tracee, &registers));
    outcome.changed = before.difference(&State::of(tracee, now)?);
    Ok(outcome)
}
