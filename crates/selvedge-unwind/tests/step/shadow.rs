//! The shadow stack: what executed `call` and `ret` instructions say, without any unwind information.

/// What an executed instruction does to the stack of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Call,
    /// `rt_sigreturn`, if `rax` says so, or any other system call.
    SystemCall,
    Return,
    /// The stack pointer is loaded from memory: perhaps another stack's.
    Load,
    Other,
}

/// Decodes just enough of an instruction.
pub(crate) fn flow(code: &[u8]) -> Flow {
    let mut at = 0;
    let mut wide = false;
    while let Some(byte) = code.get(at) {
        match byte {
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => at += 1,
            0x40..=0x4f => {
                wide = byte & 0xc == 8;
                at += 1;
            }
            _ => break,
        }
    }
    match (code.get(at), code.get(at + 1)) {
        (Some(0xe8), _) => Flow::Call,
        (Some(0xff), Some(modrm)) if matches!((modrm >> 3) & 7, 2 | 3) => Flow::Call,
        (Some(0x0f), Some(0x05)) => Flow::SystemCall,
        (Some(0xc2 | 0xc3), _) => Flow::Return,
        // mov (…), %rsp
        (Some(0x8b), Some(modrm)) if wide && modrm & 0x38 == 0x20 && *modrm < 0xc0 => Flow::Load,
        _ => Flow::Other,
    }
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    /// A return address, and where it is stored.
    Return { slot: u64, address: u64 },
    /// The kernel made a frame for a signal and called a handler.
    Signal {
        interrupted: u64,
        sp: u64,
        other_stack: bool,
    },
}

/// A context that a thread has left, or not yet entered: what `swapcontext` goes back to.
#[derive(Debug)]
struct Context {
    /// Where its stack pointer was last seen.
    sp: u64,
    entries: Vec<Entry>,
}

/// Return addresses of all calls that have not returned, outermost first.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    entries: Vec<Entry>,
    others: Vec<Context>,
    /// The context has just begun: a `ret` leads to its first function, which returns to what lies above.
    is_new: bool,
}

/// A context's stack pointer is never further from where it was when it was left.
const CONTEXT_BYTES: u64 = 1 << 15;

impl Shadow {
    /// A call was executed: its return address is stored at `slot`.
    pub(crate) fn call(&mut self, slot: u64, address: u64) {
        self.entries.push(Entry::Return { slot, address });
    }

    /// A signal was delivered: the thread was at `interrupted` with stack pointer `before`, and is at the start of the
    /// handler with stack pointer `after`, where `restorer` is stored.
    pub(crate) fn signal(&mut self, interrupted: u64, before: u64, after: u64, restorer: u64) {
        let other_stack = after > before || before - after > 16384;
        self.entries.push(Entry::Signal {
            interrupted,
            sp: before,
            other_stack,
        });
        self.entries.push(Entry::Return {
            slot: after,
            address: restorer,
        });
    }

    /// The stack pointer was loaded: `before` it was, `sp` it is. Perhaps of another context.
    pub(crate) fn load(&mut self, before: u64, sp: u64) {
        if before.abs_diff(sp) < CONTEXT_BYTES {
            return;
        }
        let known = self
            .others
            .iter()
            .position(|other| other.sp.abs_diff(sp) < CONTEXT_BYTES);
        let entered = known.map(|at| self.others.swap_remove(at).entries);
        self.is_new = entered.is_none();
        let entries = std::mem::replace(&mut self.entries, entered.unwrap_or_default());
        self.others.push(Context {
            sp: before,
            entries,
        });
    }

    /// A `ret` was executed; the stack pointer is `sp`, and `word` is stored there.
    pub(crate) fn ret(&mut self, sp: u64, word: u64) {
        if std::mem::take(&mut self.is_new) {
            self.call(sp, word);
        }
    }

    /// `rt_sigreturn` was executed.
    pub(crate) fn signal_return(&mut self) {
        while let Some(entry) = self.entries.pop() {
            if matches!(entry, Entry::Signal { .. }) {
                break;
            }
        }
    }

    /// The stack pointer is now `sp`: whatever was below is gone (returns, non-local jumps).
    pub(crate) fn drop_below(&mut self, sp: u64, alternate: std::ops::Range<u64>) {
        while let Some(entry) = self.entries.last() {
            match *entry {
                Entry::Return { slot, .. }
                    if slot < sp && alternate.contains(&slot) == alternate.contains(&sp) => {}
                // A jump out of a handler on the alternate stack.
                Entry::Return { slot, .. }
                    if alternate.contains(&slot) && !alternate.contains(&sp) => {}
                Entry::Signal {
                    sp: before,
                    other_stack,
                    ..
                } if before <= sp && !other_stack => {}
                Entry::Signal {
                    other_stack: true, ..
                } if !alternate.contains(&sp) => {}
                _ => break,
            }
            self.entries.pop();
        }
    }

    /// The true stack of a thread at `pc`, leaf first, as a walk reports it.
    pub(crate) fn frames(&self, pc: u64, frames: &mut Vec<u64>) {
        use selvedge_unwind::EXACT_PC;
        frames.clear();
        frames.push(pc | EXACT_PC);
        frames.extend(self.entries.iter().rev().map(|entry| match *entry {
            Entry::Return { address, .. } => address,
            Entry::Signal { interrupted, .. } => interrupted | EXACT_PC,
        }));
    }
}
