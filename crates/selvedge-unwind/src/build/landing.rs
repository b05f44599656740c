//! Where an unwinder is about to jump to a landing pad: code whose unwind information is not true.
//!
//! `_Unwind_RaiseException`, `_Unwind_Resume` and their like, in libgcc, end in `__builtin_eh_return`. Before it they copy
//! the registers of the frame that catches over their own saved ones, return address included. Then they write the address
//! of the landing pad over a return address further out, restore what they copied, and jump. Such functions are known by
//! their saving `rax` and `rdx`, which pass the exception on.
//!
//! While they copy, their own return address is still in the `_Unwind_Context` that they filled first, with
//! `uw_init_context_1(&context, cfa, return_address)`: their caller is found there. Its `rbp` is where they saved it as
//! long as that differs from what is copied there: a second context points to that. What the caller had in its other
//! callee-saved registers is lost. What the second write destroys, the first one has copied over their own return address. When
//! they have restored `rbp`, there is no rule any more: a walk ends there with a mark.

use super::elf::Code;
use super::trace::place;
use crate::table::{Cfa, Rule, Saved, register};
use iced_x86::{Code as Form, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use std::ops::Range;

/// Where the return address is in libgcc's `_Unwind_Context` (unwind-dw2.c): behind the addresses of 18 registers and the
/// CFA.
const RETURN_ADDRESS: i32 = 19 * 8;

/// Where the CFA is in it.
const CFA: i32 = 18 * 8;
/// Where the address of the saved `rbp` is in it.
const FRAME_POINTER: i32 = 6 * 8;

/// Those instructions of a function, from its start to its end, with the rule that holds instead.
pub(super) fn jumps(start: u64, end: u64, code: &[Code<'_>]) -> Vec<(Range<u64>, Rule)> {
    let instructions = decode(code, start, end);
    let mut jumps = Vec::new();
    for (at, instruction) in instructions.iter().enumerate() {
        if !moves_to_caught(instruction) {
            continue;
        }
        let before = instructions.get(..at).unwrap_or_default();
        let after = instructions.get(at..).unwrap_or_default();
        let to = after
            .iter()
            .find(|instruction| leaves(instruction))
            .map_or(end, Instruction::next_ip)
            .min(end);
        let copy = copies_registers(before, code);
        let from = copy.map_or(start, |copy| copy.ip().max(start));
        let kept = copy.and_then(|copy| {
            let contexts = contexts(before, copy)?;
            let changed = changes_return_address(before, copy)?;
            Some((copy, changed, contexts))
        });
        match kept {
            Some((copy, changed, contexts)) => {
                // The call itself is still to be executed; its return address is behind its last byte.
                let rule = by_contexts(contexts);
                jumps.push((copy.next_ip() - 1..changed, rule));
                let mut behind = changed;
                if let Some(copied) = contexts.1 {
                    let last = before
                        .iter()
                        .find(|other| other.ip() >= changed && sets(other, Register::RBP));
                    behind = last.map_or(changed, Instruction::next_ip);
                    let overwritten = copied.wrapping_add(CFA);
                    let rule = Rule {
                        overwritten,
                        ..rule
                    };
                    jumps.push((changed..behind, rule));
                }
                jumps.push((behind..to, Rule::NONE));
            }
            None => jumps.push((from..to, Rule::NONE)),
        }
    }
    jumps
}

/// The rule of a function whose contexts, its own and what it copies from, are at these offsets from `rbp`, and whose CFA
/// is `rbp + 16`.
fn by_contexts((own, copied): (i32, Option<i32>)) -> Rule {
    let base = register::BP as u8;
    let mut rule = Rule::with_return_address(Cfa::Register(base, 16));
    for saved in &mut rule.saved[..register::IP] {
        *saved = Saved::Lost;
    }
    if let Some(copied) = copied {
        rule.saved[register::BP] = Saved::Uncopied(2, copied.wrapping_add(FRAME_POINTER));
    }
    rule.saved[register::IP] = Saved::At(base, own.wrapping_add(RETURN_ADDRESS));
    rule
}

/// The offsets from `rbp` of the context that a copy is made over, if it was filled with the function's own CFA and return
/// address, and of the one that it is made from.
fn contexts(before: &[Instruction], copy: &Instruction) -> Option<(i32, Option<i32>)> {
    let at = before.iter().position(|other| other.ip() == copy.ip())?;
    let own = argument(before, at, Register::RDI)?;
    let direct = |call: &Instruction| {
        call.flow_control() == FlowControl::Call && call.op0_kind() == OpKind::NearBranch64
    };
    let is_of_frame = |other: &Instruction, form, offset| {
        other.code() == form && is_frame(other) && other.memory_displacement64() == offset
    };
    let fills = |(call, _): &(usize, &Instruction)| {
        let arguments = before.get(..*call).unwrap_or_default();
        let last = |register| arguments.iter().rev().find(|other| sets(other, register));
        argument(before, *call, Register::RDI) == Some(own)
            && last(Register::RSI).is_some_and(|cfa| is_of_frame(cfa, Form::Lea_r64_m, 16))
            && last(Register::RDX).is_some_and(|ip| is_of_frame(ip, Form::Mov_r64_rm64, 8))
    };
    // The first calls of a function: looking at them all would take a time that grows with the square of a hostile one.
    let calls = before.iter().enumerate().take(at);
    let mut calls = calls.filter(|(_, call)| direct(call)).take(4);
    let given = calls.any(|call| fills(&call));
    given.then(|| (own, argument(before, at, Register::RSI)))
}

/// The offset from `rbp` of what an argument of a call points to.
fn argument(before: &[Instruction], call: usize, register: Register) -> Option<i32> {
    let before = before.get(..call)?;
    let set = before
        .iter()
        .rev()
        .take(16)
        .find(|other| sets(other, register))?;
    if set.code() == Form::Lea_r64_m {
        return frame_offset(set);
    }
    let moved = matches!(set.code(), Form::Mov_r64_rm64 | Form::Mov_rm64_r64)
        && set.op1_kind() == OpKind::Register;
    let from = set.op1_register();
    if !moved || place(from).is_none() {
        return None;
    }
    // A register that calls keep, and that is set once, other than to return.
    let mut setting = before
        .iter()
        .enumerate()
        .filter(|(at, other)| sets(other, from) && !is_before_return(before, *at));
    match (setting.next(), setting.next()) {
        (Some((_, only)), None) if only.code() == Form::Lea_r64_m => frame_offset(only),
        _ => None,
    }
}

/// Whether a return follows, and nothing else that leads elsewhere.
fn is_before_return(instructions: &[Instruction], at: usize) -> bool {
    let mut behind = instructions.iter().skip(at).take(16);
    behind
        .find(|other| other.flow_control() != FlowControl::Next)
        .is_some_and(|other| other.flow_control() == FlowControl::Return)
}

fn frame_offset(instruction: &Instruction) -> Option<i32> {
    let offset = instruction.memory_displacement64() as i64;
    is_frame(instruction).then(|| i32::try_from(offset).ok())?
}

/// Whether the memory operand is relative to `rbp` alone.
fn is_frame(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::RBP && instruction.memory_index() == Register::None
}

/// Whether a register is the first operand, of an instruction that does not only look at it, save or restore it.
fn sets(instruction: &Instruction, register: Register) -> bool {
    use iced_x86::Mnemonic::{Cmp, Pop, Push, Test};
    instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().full_register() == register
        && !matches!(instruction.mnemonic(), Cmp | Pop | Push | Test)
}

/// The end of the instruction that writes the address of the landing pad: the first one behind the copy that stores to the
/// frame at a distance that is not constant.
fn changes_return_address(before: &[Instruction], copy: &Instruction) -> Option<u64> {
    before
        .iter()
        .filter(|other| other.ip() > copy.ip())
        .find(|other| {
            other.op0_kind() == OpKind::Memory
                && other.memory_index() != Register::None
                && matches!(other.code(), Form::Mov_rm64_r64)
        })
        .map(Instruction::next_ip)
}

pub(super) fn decode(code: &[Code<'_>], start: u64, end: u64) -> Vec<Instruction> {
    let Some(bytes) = bytes(code, start) else {
        return Vec::new();
    };
    let decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
    decoder
        .into_iter()
        .take_while(|instruction| instruction.ip() < end)
        .collect()
}

fn bytes<'a>(code: &[Code<'a>], at: u64) -> Option<&'a [u8]> {
    let section = code.iter().find(|code| code.range().contains(&at))?;
    section
        .bytes
        .get(usize::try_from(at - section.svma).ok()?..)
}

/// `mov %rcx, %rsp`: the stack pointer becomes that of the frame that catches.
fn moves_to_caught(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Form::Mov_r64_rm64 | Form::Mov_rm64_r64)
        && instruction.op0_register() == Register::RSP
        && instruction.op1_kind() == OpKind::Register
        && instruction.op1_register() == Register::RCX
}

fn leaves(instruction: &Instruction) -> bool {
    use FlowControl::{Exception, IndirectBranch, Interrupt, Return, UnconditionalBranch};
    matches!(
        instruction.flow_control(),
        Exception | IndirectBranch | Interrupt | Return | UnconditionalBranch
    )
}

/// The call that copies the registers: the last one before the jump, other than that of the empty function that debuggers
/// stop at (`_Unwind_DebugHook`).
fn copies_registers<'a>(before: &'a [Instruction], code: &[Code<'_>]) -> Option<&'a Instruction> {
    before.iter().rev().find(|instruction| {
        instruction.flow_control() == FlowControl::Call
            && instruction.op0_kind() == OpKind::NearBranch64
            && !is_empty(instruction.near_branch_target(), code)
    })
}

fn is_empty(function: u64, code: &[Code<'_>]) -> bool {
    let Some(bytes) = bytes(code, function) else {
        return false;
    };
    let mut decoder = Decoder::with_ip(64, bytes, function, DecoderOptions::NONE);
    let first = decoder.decode();
    let body = if first.code() == Form::Endbr64 {
        decoder.decode()
    } else {
        first
    };
    body.flow_control() == FlowControl::Return
}
