//! The shadow stack: what executed `call` and `ret` instructions say, without any unwind information.
//!
//! A thread can have several stacks (an alternate signal stack, stacks of coroutines), and a shadow is kept for each range
//! of memory that was one. It ends where the thread, or the coroutine, began; from a signal stack it goes on where the
//! signal interrupted another stack.

use crate::instruction::Flow;
use std::ops::Range;

/// A stack pointer that moves down by more than this, set from a register, is on another stack.
const LARGE_FRAME: u64 = 1 << 16;

#[derive(Clone, Copy, Debug)]
enum Entry {
    /// A return address, and where it is stored.
    Return { slot: u64, address: u64 },
    /// The kernel made a frame for a signal and called a handler.
    Signal {
        interrupted: u64,
        sp: u64,
        /// The stack that was interrupted, if it is another.
        from: Option<usize>,
    },
}

/// One range of memory that is, or was, a stack.
#[derive(Debug)]
struct Stack {
    /// Lowest and highest stack pointer seen.
    low: u64,
    high: u64,
    /// Whether these are its bounds: those of an alternate stack are known.
    is_alternate: bool,
    entries: Vec<Entry>,
}

impl Stack {
    fn starting(sp: u64) -> Self {
        Self {
            low: sp,
            high: sp,
            is_alternate: false,
            entries: Vec::new(),
        }
    }

    fn holds(&self, sp: u64) -> bool {
        (self.low..=self.high).contains(&sp)
    }

    /// Whatever lies below `sp` is gone.
    fn drop_below(&mut self, sp: u64) {
        while let Some(entry) = self.entries.last() {
            let gone = match *entry {
                Entry::Return { slot, .. } => slot < sp,
                Entry::Signal {
                    sp: before, from, ..
                } => from.is_none() && before <= sp,
            };
            if !gone {
                break;
            }
            self.entries.pop();
        }
        if !self.is_alternate {
            self.low = self.low.min(sp);
            self.high = self.high.max(sp);
        }
    }
}

/// Return addresses of all calls of a thread that have not returned.
#[derive(Debug)]
pub struct Shadow {
    stacks: Vec<Stack>,
    /// The stack that the thread is on.
    current: usize,
    /// The entry that the last instruction took away, if it took one.
    taken: Option<(u64, u64)>,
}

impl Shadow {
    /// Of a thread that begins with stack pointer `sp`: nothing has called it.
    #[must_use]
    pub fn starting(sp: u64) -> Self {
        Self {
            stacks: vec![Stack::starting(sp)],
            current: 0,
            taken: None,
        }
    }

    fn current(&mut self) -> &mut Stack {
        // `current` is always the place of a stack.
        &mut self.stacks[self.current]
    }

    /// A call was executed: its return address is stored at `slot`.
    pub fn call(&mut self, slot: u64, address: u64) {
        let stack = self.current();
        stack.drop_below(slot);
        stack.entries.push(Entry::Return { slot, address });
    }

    /// The stack that holds a stack pointer. An alternate stack can lie inside another one, as an array there.
    fn holding(&self, sp: u64) -> Option<usize> {
        let holds = |alternate: bool| {
            let on = |stack: &Stack| stack.is_alternate == alternate && stack.holds(sp);
            self.stacks.iter().position(on)
        };
        holds(true).or_else(|| holds(false))
    }

    /// The return address that was last popped, and where it was stored: `vfork` pops it and pushes it again.
    #[must_use]
    pub fn taken(&self) -> Option<(u64, u64)> {
        self.taken
    }

    /// Another instruction was executed; the stack pointer is `sp`.
    pub fn executed(&mut self, flow: Flow, sp: u64) {
        if let Some(&Entry::Return { slot, address }) = self.current().entries.last()
            && slot.wrapping_add(8) == sp
        {
            self.taken = Some((slot, address));
        }
        let loads = flow == Flow::LoadsStack;
        if (loads || flow == Flow::SetsStack) && !self.current().holds(sp) {
            let Stack { low, high, .. } = *self.current();
            let elsewhere = sp > high || loads || low - sp > LARGE_FRAME;
            if let Some(known) = self.holding(sp) {
                self.current = known;
            } else if elsewhere {
                self.stacks.push(Stack::starting(sp));
                self.current = self.stacks.len() - 1;
            }
        }
        self.current().drop_below(sp);
    }

    /// A signal was delivered: the thread was at `interrupted` with stack pointer `before`, and is at the start of the
    /// handler with stack pointer `after`, where `restorer` is stored. `alternate` is the thread's alternate stack.
    pub fn signal(
        &mut self,
        interrupted: u64,
        before: u64,
        (after, restorer): (u64, u64),
        alternate: Range<u64>,
    ) {
        let interrupted_stack = self.current;
        if alternate.contains(&after) && !alternate.contains(&before) {
            let known = self.stacks.iter().position(|stack| {
                stack.is_alternate && stack.low == alternate.start && stack.high == alternate.end
            });
            // The kernel begins it at its top: whatever was on it is gone.
            let fresh = Stack {
                low: alternate.start,
                high: alternate.end,
                is_alternate: true,
                entries: Vec::new(),
            };
            self.current = known.unwrap_or(self.stacks.len());
            match self.stacks.get_mut(self.current) {
                Some(stack) => *stack = fresh,
                None => self.stacks.push(fresh),
            }
        }
        let from = (self.current != interrupted_stack).then_some(interrupted_stack);
        let stack = self.current();
        stack.drop_below(after);
        stack.entries.push(Entry::Signal {
            interrupted,
            sp: before,
            from,
        });
        stack.entries.push(Entry::Return {
            slot: after,
            address: restorer,
        });
    }

    /// `rt_sigreturn` was executed; the stack pointer is `sp`.
    pub fn signal_return(&mut self, sp: u64) {
        while let Some(entry) = self.current().entries.pop() {
            if let Entry::Signal { from, .. } = entry {
                if let Some(from) = from {
                    self.current = from;
                }
                break;
            }
        }
        self.current().drop_below(sp);
    }

    /// The true stack of the thread at `pc`, leaf first: the instruction, then return addresses and interrupted
    /// instructions.
    pub fn frames(&self, pc: u64, frames: &mut Vec<u64>) {
        frames.clear();
        frames.push(pc);
        let mut next = Some(self.current);
        // Stacks that lead to one another in a circle would mean that one of them is being used twice.
        for _ in 0..self.stacks.len() {
            let Some(stack) = next.take().and_then(|at| self.stacks.get(at)) else {
                break;
            };
            for entry in stack.entries.iter().rev() {
                match *entry {
                    Entry::Return { address, .. } => frames.push(address),
                    Entry::Signal {
                        interrupted, from, ..
                    } => {
                        frames.push(interrupted);
                        if from.is_some() {
                            next = from;
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Whether the thread is on the stack that it began with.
    #[must_use]
    pub fn is_on_first(&self) -> bool {
        self.current == 0
    }

    /// The return address of the innermost call.
    #[must_use]
    pub fn caller(&self) -> u64 {
        match self.stacks[self.current].entries.last() {
            Some(&Entry::Return { address, .. }) => address,
            Some(&Entry::Signal { interrupted, .. }) => interrupted,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(shadow: &Shadow) -> Vec<u64> {
        let mut frames = Vec::new();
        shadow.frames(1, &mut frames);
        frames
    }

    #[test]
    fn returns_and_jumps_drop_entries() {
        let mut shadow = Shadow::starting(0x8000);
        shadow.call(0x7ff8, 10);
        shadow.call(0x7ff0, 11);
        shadow.call(0x7fe8, 12);
        assert_eq!(frames(&shadow), [1, 12, 11, 10]);
        shadow.executed(Flow::Other, 0x7ff0);
        assert_eq!(frames(&shadow), [1, 11, 10]);
        shadow.executed(Flow::SetsStack, 0x8000);
        assert_eq!(frames(&shadow), [1]);
    }

    #[test]
    fn coroutines_keep_their_own_calls() {
        let mut shadow = Shadow::starting(0x80_0000);
        shadow.call(0x7f_fff8, 10);
        shadow.executed(Flow::LoadsStack, 0x10_0000);
        shadow.call(0xf_fff8, 20);
        shadow.call(0xf_fff0, 21);
        assert_eq!(frames(&shadow), [1, 21, 20]);
        shadow.executed(Flow::SetsStack, 0x7f_fff8);
        assert_eq!(frames(&shadow), [1, 10]);
        shadow.executed(Flow::SetsStack, 0xf_fff0);
        assert_eq!(frames(&shadow), [1, 21, 20]);
    }

    #[test]
    fn a_signal_on_another_stack_leads_to_the_one_it_interrupted() {
        let mut shadow = Shadow::starting(0x80_0000);
        shadow.call(0x7f_fff8, 10);
        shadow.signal(5, 0x7f_fff0, (0x2_0000, 6), 0x1_8000..0x2_1000);
        shadow.call(0x1_fff8, 7);
        assert_eq!(frames(&shadow), [1, 7, 6, 5, 10]);
        shadow.executed(Flow::Other, 0x2_0000);
        shadow.executed(Flow::Other, 0x2_0008);
        shadow.signal_return(0x7f_fff0);
        assert_eq!(frames(&shadow), [1, 10]);
        // Left by a jump, and used again.
        shadow.signal(5, 0x7f_fff0, (0x2_0000, 6), 0x1_8000..0x2_1000);
        shadow.executed(Flow::SetsStack, 0x7f_fff8);
        assert_eq!(frames(&shadow), [1, 10]);
        shadow.signal(4, 0x7f_fff0, (0x2_0000, 6), 0x1_8000..0x2_1000);
        assert_eq!(frames(&shadow), [1, 6, 4, 10]);
    }

    #[test]
    fn small_stacks_beside_one_another_are_told_apart() {
        let mut shadow = Shadow::starting(0x80_0000);
        shadow.executed(Flow::LoadsStack, 0x10_4000);
        shadow.call(0x10_3ff8, 10);
        shadow.executed(Flow::LoadsStack, 0x10_0000);
        shadow.call(0xf_fff8, 20);
        assert_eq!(frames(&shadow), [1, 20]);
        shadow.executed(Flow::LoadsStack, 0x10_3ff8);
        assert_eq!(frames(&shadow), [1, 10]);
    }

    #[test]
    fn alternate_stack_inside_another_stack_is_its_own() {
        let mut shadow = Shadow::starting(0x80_0000);
        shadow.call(0x7f_fff8, 10);
        shadow.call(0x7e_0000, 11);
        shadow.signal(5, 0x7e_0000, (0x7f_5000, 6), 0x7f_0000..0x7f_6000);
        shadow.call(0x7f_4ff8, 7);
        assert_eq!(frames(&shadow), [1, 7, 6, 5, 11, 10]);
        shadow.executed(Flow::Other, 0x7f_5008);
        shadow.signal_return(0x7e_0000);
        assert_eq!(frames(&shadow), [1, 11, 10]);
    }
}
