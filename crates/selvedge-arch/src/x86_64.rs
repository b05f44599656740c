//! x86-64 Linux.
//!
//! # Safety
//!
//! This file is `unsafe` because it contains the `syscall` instruction and reads the kernel's signal frame. Nothing
//! else of the workspace does either.
#![allow(unsafe_code)]

use core::arch::asm;

/// The registers that a walk needs: the program counter, the stack pointer, and every callee-saved register.
///
/// Unwind rules of real code name all of them (the dynamic loader's `_dl_runtime_resolve_*` computes its frame from
/// `rbx`), so a walk that keeps only `rsp` and `rbp` loses such frames. Source: System V ABI, AMD64 supplement, §3.2.1
/// (callee-saved registers) and figure 3.36 (DWARF register numbers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// `rbp`: the frame pointer where code keeps one.
    pub bp: u64,
    /// `rbx`.
    pub bx: u64,
    /// `r12`.
    pub r12: u64,
    /// `r13`.
    pub r13: u64,
    /// `r14`.
    pub r14: u64,
    /// `r15`.
    pub r15: u64,
}
