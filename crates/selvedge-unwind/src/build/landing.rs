//! Where an unwinder is about to jump to a landing pad: code whose unwind information is not true.
//!
//! `_Unwind_RaiseException`, `_Unwind_Resume` and their like, in libgcc, end in `__builtin_eh_return`. Before it they copy
//! the registers of the frame that catches over their own saved ones, return address included: their caller is lost, and
//! what stands in its place is a frame of the past. All code from that copy to the jump has no rule, so that a walk ends
//! there with a mark. Such functions are known by their saving `rax` and `rdx`, which pass the exception on.

use super::elf::Code;
use iced_x86::{Code as Form, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use std::ops::Range;

/// Those instructions of a function, from its start to its end.
pub(super) fn jumps(start: u64, end: u64, code: &[Code<'_>]) -> Vec<Range<u64>> {
    let instructions = decode(code, start, end);
    let mut jumps = Vec::new();
    for (at, instruction) in instructions.iter().enumerate() {
        if !moves_to_caught(instruction) {
            continue;
        }
        let before = instructions.get(..at).unwrap_or_default();
        let after = instructions.get(at..).unwrap_or_default();
        let from = copies_registers(before, code).map_or(start, Instruction::ip);
        let to = after
            .iter()
            .find(|instruction| leaves(instruction))
            .map_or(end, Instruction::next_ip);
        jumps.push(from.max(start)..to.min(end));
    }
    jumps
}

fn decode(code: &[Code<'_>], start: u64, end: u64) -> Vec<Instruction> {
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
