//! Rules of code without unwind information: what its instructions do to the stack, followed from known entries.
//!
//! Compilers' start files (`register_tm_clones`, `__do_global_dtors_aux`, `_init`), linkage stubs of linkers other than
//! GNU's, and hand-written functions have none. A function's entry is known where something says so that cannot be wrong:
//! a symbol, the arrays of constructors and destructors, a direct call. From there every path is followed; where two
//! paths meet with different states, or an instruction moves the stack pointer in a way that cannot be followed, the
//! state is unknown from there on, and such code has no rule.
//!
//! What a jump through a table leads to is not known: a place that other jumps lead to has a rule only if it has the state
//! that the jump through the table has.
//!
//! **Bounds.** Every address changes its state at most twice, so the work is linear in the code; and after
//! [`INSTRUCTIONS`] no more functions are begun.

use super::elf::Code;
use crate::table::{Cfa, Rule, Saved, register};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};
use std::collections::BTreeMap;
use std::ops::Range;

/// Instructions that are followed, at most, before no more functions are begun: about 40 MB of states. Images whose
/// compiler writes no unwind information for all its code have more.
const INSTRUCTIONS: usize = 1 << 18;

/// What is known of the stack before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing.
    Unknown,
    /// Code that has no caller.
    Root,
    /// A frame.
    Frame(Frame),
}

/// Where things are, relative to the canonical frame address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The CFA minus the stack pointer, if the latter can be followed.
    depth: Option<i32>,
    /// The CFA minus `rbp`, where that is a frame pointer.
    frame_pointer: Option<i32>,
    /// The callee-saved registers.
    saved: [Saved; register::COUNT],
}

impl State {
    /// At the entry of a function, `pushed` bytes below a return address.
    pub(super) fn entry(pushed: i32) -> Self {
        let Rule { saved, .. } = Rule::with_return_address(Cfa::Register(register::SP as u8, 8));
        Self::Frame(Frame {
            depth: Some(8 + pushed),
            frame_pointer: None,
            saved,
        })
    }

    fn rule(&self) -> Rule {
        let sp = register::SP as u8;
        let bp = register::BP as u8;
        match self {
            Self::Unknown => Rule::NONE,
            Self::Root => Rule::ROOT,
            Self::Frame(frame) => {
                let cfa = match (frame.depth, frame.frame_pointer) {
                    (Some(depth), _) => Cfa::Register(sp, depth),
                    (None, Some(depth)) => Cfa::Register(bp, depth),
                    (None, None) => return Rule::NONE,
                };
                Rule {
                    cfa,
                    signal: false,
                    saved: frame.saved,
                    overwritten: 0,
                }
            }
        }
    }

    fn join(self, other: Self) -> Self {
        if self == other { self } else { Self::Unknown }
    }
}

/// A register whose caller's value matters.
pub(super) fn place(register: Register) -> Option<usize> {
    Some(match register.full_register() {
        Register::RBX => register::BX,
        Register::RBP => register::BP,
        Register::R12 => register::R12,
        Register::R13 => register::R12 + 1,
        Register::R14 => register::R12 + 2,
        Register::R15 => register::R12 + 3,
        _ => return None,
    })
}

impl Frame {
    fn push(&mut self) {
        self.depth = self.depth.and_then(|depth| depth.checked_add(8));
    }

    fn pop(&mut self) {
        self.depth = self.depth.and_then(|depth| depth.checked_sub(8));
    }

    fn add(&mut self, bytes: i64) {
        self.depth = self
            .depth
            .and_then(|depth| i32::try_from(i64::from(depth) - bytes).ok());
    }

    /// `pop` into a register: the caller's value is back if it came from where that was saved.
    fn pop_into(&mut self, register: Register) {
        let from = self.depth.map(|depth| Saved::AtCfa(-depth));
        self.pop();
        if let Some(place) = place(register) {
            self.saved[place] = if Some(self.saved[place]) == from {
                Saved::Same
            } else {
                self.lose(place)
            };
        }
        if register == Register::RBP {
            self.frame_pointer = None;
        }
    }

    /// What remains known of a register that is overwritten: where it was saved, if it was.
    fn lose(&self, place: usize) -> Saved {
        match self.saved[place] {
            Saved::Same | Saved::Lost => Saved::Lost,
            kept => kept,
        }
    }

    /// Executes an instruction that goes on to the next one. `None`: cannot be followed.
    fn execute(
        mut self,
        instruction: &Instruction,
        info: &mut InstructionInfoFactory,
    ) -> Option<Self> {
        let operand = |at: u32| {
            (instruction.op_count() > at && instruction.op_kind(at) == OpKind::Register)
                .then(|| instruction.op_register(at))
        };
        let to = operand(0);
        let immediate = || instruction.try_immediate(1).ok().map(|value| value as i64);
        match (instruction.mnemonic(), to) {
            (Mnemonic::Push, register) if instruction.stack_pointer_increment() == -8 => {
                self.push();
                if let Some((place, depth)) = register.and_then(place).zip(self.depth)
                    && self.saved[place] == Saved::Same
                {
                    self.saved[place] = Saved::AtCfa(-depth);
                }
            }
            (Mnemonic::Pushfq, _) => self.push(),
            (Mnemonic::Popfq, _) => self.pop(),
            (Mnemonic::Pop, Some(register)) if register != Register::RSP && register.is_gpr64() => {
                self.pop_into(register);
            }
            (Mnemonic::Add, Some(Register::RSP)) => self.add(immediate()?),
            (Mnemonic::Sub, Some(Register::RSP)) => self.add(immediate()?.checked_neg()?),
            (Mnemonic::Lea, Some(Register::RSP))
                if instruction.memory_index() == Register::None =>
            {
                match instruction.memory_base() {
                    Register::RSP => {}
                    Register::RBP => self.depth = Some(self.frame_pointer?),
                    _ => return None,
                }
                self.add(instruction.memory_displacement64() as i64);
            }
            (Mnemonic::Mov, Some(Register::RBP)) if operand(1) == Some(Register::RSP) => {
                self.saved[register::BP] = self.lose(register::BP);
                self.frame_pointer = self.depth;
            }
            (Mnemonic::Mov, Some(Register::RSP)) if operand(1) == Some(Register::RBP) => {
                self.depth = Some(self.frame_pointer?);
            }
            (Mnemonic::And, Some(Register::RSP)) if self.frame_pointer.is_some() => {
                self.depth = None
            }
            (Mnemonic::Leave, _) => {
                self.depth = Some(self.frame_pointer?);
                self.pop_into(Register::RBP);
            }
            _ => {
                for used in info.info(instruction).used_registers() {
                    let written = !matches!(
                        used.access(),
                        OpAccess::None
                            | OpAccess::Read
                            | OpAccess::CondRead
                            | OpAccess::NoMemAccess
                    );
                    if !written {
                        continue;
                    }
                    // A call pushes and its callee pops.
                    if used.register().full_register() == Register::RSP && !is_call(instruction) {
                        return None;
                    }
                    if let Some(place) = place(used.register()) {
                        self.saved[place] = self.lose(place);
                        if place == register::BP {
                            self.frame_pointer = None;
                        }
                    }
                }
            }
        }
        Some(self)
    }
}

fn is_call(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::Call | FlowControl::IndirectCall
    )
}

/// Follows code of sections, except where `covered` says that there is unwind information.
#[derive(Debug)]
pub(super) struct Tracer<'a, F> {
    code: &'a [Code<'a>],
    covered: F,
    states: BTreeMap<u64, (State, u8)>,
    work: Vec<(u64, State)>,
    /// Functions that were seen to be called.
    called: Vec<u64>,
    /// Where jumps of the current function lead, and states at its jumps through tables.
    targets: Vec<u64>,
    tables: Vec<State>,
    info: InstructionInfoFactory,
}

impl<'a, F: Fn(u64) -> bool> Tracer<'a, F> {
    pub(super) fn new(code: &'a [Code<'a>], covered: F) -> Self {
        Self {
            code,
            covered,
            states: BTreeMap::new(),
            work: Vec::new(),
            called: Vec::new(),
            targets: Vec::new(),
            tables: Vec::new(),
            info: InstructionInfoFactory::new(),
        }
    }

    /// The bytes from an address to the end of its section, if it has no unwind information.
    fn at(&self, address: u64) -> Option<&'a [u8]> {
        let code = self
            .code
            .iter()
            .find(|code| code.range().contains(&address))?;
        if (self.covered)(address) {
            return None;
        }
        code.bytes.get(usize::try_from(address - code.svma).ok()?..)
    }

    /// Follows the code from an entry.
    pub(super) fn follow(&mut self, entry: u64, state: State) {
        self.work.push((entry, state));
        self.follow_function();
        while let Some(entry) = self.called.pop() {
            self.work.push((entry, State::entry(0)));
            self.follow_function();
        }
    }

    fn follow_function(&mut self) {
        self.targets.clear();
        self.tables.clear();
        self.follow_work();
        // A table may lead wherever another jump does.
        let mut followed = None;
        loop {
            let mut found = std::mem::take(&mut self.tables).into_iter().chain(followed);
            let Some(first) = found.next() else { break };
            let state = if found.all(|other| other == first) {
                first
            } else {
                State::Unknown
            };
            if followed == Some(state) {
                break;
            }
            followed = Some(state);
            self.work
                .extend(self.targets.iter().map(|target| (*target, state)));
            self.follow_work();
        }
    }

    fn follow_work(&mut self) {
        if self.states.len() >= INSTRUCTIONS {
            self.work.clear();
        }
        while let Some((address, arriving)) = self.work.pop() {
            let Some(bytes) = self.at(address) else {
                continue;
            };
            let state = match self.states.get(&address) {
                Some((known, _)) if *known == known.join(arriving) => continue,
                Some((known, _)) => known.join(arriving),
                None => arriving,
            };
            let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                continue;
            }
            self.states
                .insert(address, (state, instruction.len() as u8));
            self.proceed(&instruction, state);
        }
    }

    /// Follows a linkage stub. Its indirect jump leads, the first time, to its own next instruction.
    pub(super) fn follow_stub(&mut self, entry: u64) {
        self.follow(entry, State::entry(0));
        let Some(bytes) = self.at(entry) else { return };
        let decoder = Decoder::with_ip(64, bytes, entry, DecoderOptions::NONE);
        for instruction in decoder.into_iter().take(2) {
            if instruction.flow_control() == FlowControl::IndirectBranch {
                self.follow(instruction.next_ip(), State::entry(0));
            }
        }
    }

    fn proceed(&mut self, instruction: &Instruction, state: State) {
        let target = matches!(instruction.op_kind(0), OpKind::NearBranch64)
            .then(|| instruction.near_branch_target());
        let after = match state {
            State::Frame(frame) => frame
                .execute(instruction, &mut self.info)
                .map_or(State::Unknown, State::Frame),
            other => other,
        };
        let next = match instruction.flow_control() {
            FlowControl::Next | FlowControl::IndirectCall | FlowControl::XbeginXabortXend => true,
            FlowControl::Call => {
                // A direct call of a near function; a system call has no target.
                if let Some(target) = target {
                    self.called.push(target);
                }
                true
            }
            FlowControl::ConditionalBranch => {
                self.targets.extend(target);
                self.work.extend(target.map(|target| (target, after)));
                true
            }
            FlowControl::UnconditionalBranch => {
                self.targets.extend(target);
                self.work.extend(target.map(|target| (target, after)));
                false
            }
            FlowControl::IndirectBranch => {
                // A tail call is one with nothing on the stack, not through a table of places.
                let is_call = matches!(state, State::Frame(frame) if frame.depth == Some(8))
                    && instruction.memory_index() == Register::None;
                if !is_call && matches!(state, State::Frame(_)) {
                    self.tables.push(state);
                }
                false
            }
            FlowControl::Return | FlowControl::Interrupt | FlowControl::Exception => false,
        };
        if next {
            self.work.push((instruction.next_ip(), after));
        }
    }

    /// The code that was followed: each instruction's start, end and rule, ascending.
    pub(super) fn rows(self) -> Vec<(Range<u64>, Rule)> {
        let mut rows: Vec<(Range<u64>, Rule)> = Vec::new();
        for (address, (state, len)) in self.states {
            let end = address.saturating_add(u64::from(len));
            match rows.last_mut() {
                // Two readings of the same bytes: neither is to be believed.
                Some((range, rule)) if range.end > address => {
                    *rule = Rule::NONE;
                    range.end = range.end.max(end);
                }
                _ => rows.push((address..end, state.rule())),
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules of code at 0x1000, instruction by instruction.
    fn trace(bytes: &[u8]) -> Vec<(u64, Cfa, Saved)> {
        let code = [Code {
            name: ".text".to_owned(),
            svma: 0x1000,
            bytes,
        }];
        let mut tracer = Tracer::new(&code, |_| false);
        tracer.follow(0x1000, State::entry(0));
        tracer
            .rows()
            .into_iter()
            .map(|(at, rule)| (at.start - 0x1000, rule.cfa, rule.saved[register::BP]))
            .collect()
    }

    const SP: u8 = register::SP as u8;

    #[test]
    fn frame_is_followed_through_push_and_leave() {
        // push %rbp; mov %rsp,%rbp; sub $32,%rsp; leave; ret
        let rows = trace(&[0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x20, 0xc9, 0xc3]);
        let saved = Saved::AtCfa(-16);
        let expected = [
            (0, Cfa::Register(SP, 8), Saved::Same),
            (1, Cfa::Register(SP, 16), saved),
            (4, Cfa::Register(SP, 16), saved),
            (8, Cfa::Register(SP, 48), saved),
            (9, Cfa::Register(SP, 8), Saved::Same),
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn paths_that_disagree_leave_no_rule() {
        // test %eax,%eax; je +1; push %rax; ret
        let rows = trace(&[0x85, 0xc0, 0x74, 0x01, 0x50, 0xc3]);
        assert_eq!(rows.last(), Some(&(5, Cfa::None, Saved::Same)));
    }

    #[test]
    fn jump_through_a_table_may_lead_wherever_others_do() {
        // test %eax,%eax; je +4; push %rbx; jmp *%rcx; nop; ret
        let rows = trace(&[0x85, 0xc0, 0x74, 0x04, 0x53, 0xff, 0xe1, 0x90, 0xc3]);
        assert_eq!(rows.last(), Some(&(8, Cfa::None, Saved::Same)));
        // The same, with the stack as it was: perhaps a tail call.
        let rows = trace(&[0x85, 0xc0, 0x74, 0x03, 0xff, 0xe1, 0x90, 0xc3]);
        assert_eq!(rows.last(), Some(&(7, Cfa::Register(SP, 8), Saved::Same)));
    }

    #[test]
    fn aligned_stack_is_found_by_its_frame_pointer() {
        // push %rbp; mov %rsp,%rbp; and $-64,%rsp; nop; leave; ret
        let rows = trace(&[
            0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xe4, 0xc0, 0x90, 0xc9, 0xc3,
        ]);
        assert_eq!(
            rows[3],
            (8, Cfa::Register(register::BP as u8, 16), Saved::AtCfa(-16))
        );
        assert_eq!(rows[5], (10, Cfa::Register(SP, 8), Saved::Same));
    }

    #[test]
    fn stack_pointer_from_elsewhere_ends_what_is_known() {
        // mov %rdi,%rsp; ret
        assert_eq!(
            trace(&[0x48, 0x89, 0xfc, 0xc3]).last().map(|row| row.1),
            Some(Cfa::None)
        );
    }
}
