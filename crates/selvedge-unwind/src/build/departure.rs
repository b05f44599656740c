//! Where a thread goes over to another stack: `longjmp`, `setcontext`, `swapcontext`, and what they lead to.
//!
//! Unwind information of such functions describes where they go, from some instruction on, or nothing at all. Before the
//! stack pointer changes, the callers of the function are still active: its return address is at the stack pointer, and
//! only what it loads into callee-saved registers is lost. From the change on to the jump, no return address leads to
//! what runs next: there is no rule, and a walk ends there with a mark.
//!
//! And the last instructions of functions that align their stack, by `r10`.

use super::elf::Code;
use super::instructions::forget_restored;
use super::landing::decode;
use super::trace::place;
use crate::table::{Cfa, Rule, Saved, register};
use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register};
use std::ops::Range;

/// Bytes looked at behind the end of a function's unwind information: its last instructions may have some of their own.
const BEYOND: u64 = 64;

/// Instructions of a function with the rules that hold instead of its own: from `from` on, where `rule` held until then.
pub(super) fn rules(
    from: u64,
    end: u64,
    rule: &Rule,
    code: &[Code<'_>],
) -> Vec<(Range<u64>, Rule)> {
    let instructions = decode(code, from, end.saturating_add(BEYOND));
    let mut info = InstructionInfoFactory::new();
    let mut rules = Vec::new();
    let mut rule = match rule.cfa {
        Cfa::Register(base, _) if usize::from(base) == register::SP => *rule,
        _ => Rule::NONE,
    };
    let mut left = false;
    for instruction in &instructions {
        if left
            && instruction.ip() >= end
            && rules.last().is_some_and(|(_, last)| *last != Rule::NONE)
        {
            break;
        }
        rules.push((instruction.ip()..instruction.next_ip(), rule));
        left |= !execute(instruction, &mut rule, &mut info);
        if left {
            rule = Rule::NONE;
        }
        if leaves(instruction) || (!left && instruction.next_ip() >= end) {
            break;
        }
    }
    rules
}

fn leaves(instruction: &Instruction) -> bool {
    use FlowControl::{Exception, IndirectBranch, Interrupt, Return, UnconditionalBranch};
    matches!(
        instruction.flow_control(),
        Exception | IndirectBranch | Interrupt | Return | UnconditionalBranch
    )
}

/// Changes the rule as an instruction does. Returns whether the stack pointer is what it was.
fn execute(instruction: &Instruction, rule: &mut Rule, info: &mut InstructionInfoFactory) -> bool {
    for used in info.info(instruction).used_registers() {
        if matches!(
            used.access(),
            OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
        ) {
            continue;
        }
        if used.register().full_register() == Register::RSP {
            return false;
        }
        if let Some(place) = place(used.register())
            && rule.saved[place] == Saved::Same
        {
            rule.saved[place] = Saved::Lost;
        }
    }
    instruction.flow_control() == FlowControl::Next
}

/// Whether a rule says that registers are stored around `rbp`, and counts from a register that only the last instructions
/// of functions that align their stack count from: GCC still says so where `rbp` is the caller's again.
pub(super) fn may_be_stale(rule: &Rule) -> bool {
    matches!(rule.cfa, Cfa::Register(base, _) if usize::from(base) >= register::SCRATCH)
        && matches!(rule.saved[register::BP], Saved::At(base, _) if usize::from(base) == register::BP)
}

/// What holds in the part of a row with such a rule where `rbp` is the caller's, and with it all the others.
pub(super) fn restored(row: Range<u64>, rule: &Rule, code: &[Code<'_>]) -> Vec<(Range<u64>, Rule)> {
    let restores = |instruction: &&Instruction| match instruction.mnemonic() {
        Mnemonic::Leave => true,
        Mnemonic::Pop => instruction.op0_register() == Register::RBP,
        _ => false,
    };
    let instructions = decode(code, row.start, row.end);
    let Some(from) = instructions.iter().find(restores) else {
        return Vec::new();
    };
    let mut rule = *rule;
    forget_restored(&mut rule);
    vec![(from.next_ip()..row.end, rule)]
}

/// The first instruction of a function that loads the stack pointer from memory that is not its frame's.
pub(super) fn load(start: u64, end: u64, code: &[Code<'_>]) -> Option<u64> {
    decode(code, start, end)
        .iter()
        .find(|instruction| {
            instruction.mnemonic() == Mnemonic::Mov
                && instruction.op0_register() == Register::RSP
                && !matches!(
                    instruction.memory_base(),
                    Register::None | Register::RSP | Register::RBP
                )
        })
        .map(Instruction::ip)
}

/// Where functions lead that `makecontext` (at `start` to `end`) makes contexts for: glibc's `__start_context`, which
/// begins by taking its stack pointer from `rbx`. No function calls it, so it is the outermost frame.
pub(super) fn outermost(start: u64, end: u64, code: &[Code<'_>]) -> Option<u64> {
    decode(code, start, end).iter().find_map(|instruction| {
        let is_address =
            instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand();
        let target = is_address.then(|| instruction.ip_rel_memory_address())?;
        let first = decode(code, target, target.saturating_add(1));
        first
            .first()
            .is_some_and(|first| {
                first.mnemonic() == Mnemonic::Mov
                    && first.op0_register() == Register::RSP
                    && first.op1_register() == Register::RBX
            })
            .then_some(target)
    })
}
