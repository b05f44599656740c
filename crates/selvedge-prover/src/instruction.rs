//! What an executed instruction can do to the stack of calls: just enough decoding of x86-64.

/// What an instruction can do to the stack of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It pushes a return address.
    Call,
    /// `rt_sigreturn`, if `rax` says so, or any other system call.
    SystemCall,
    /// It gives the stack pointer a value from memory or exchanges it, as a switch of stacks does.
    LoadsStack,
    /// It may give the stack pointer any value otherwise: from another register, by `lea`, or `leave`.
    SetsStack,
    /// It pushes a register.
    Push,
    /// Anything else: it moves the stack pointer by a little, or not at all.
    Other,
}

/// Bytes that are enough for any instruction.
pub const LONGEST: usize = 15;

/// Decodes the instruction at the start of `code`.
#[must_use]
pub fn flow(code: &[u8]) -> Flow {
    let mut at = 0;
    let mut rex = 0;
    while let Some(&byte) = code.get(at) {
        match byte {
            // Legacy prefixes end the effect of an earlier REX.
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => rex = 0,
            0x40..=0x4f => rex = byte,
            _ => break,
        }
        at += 1;
    }
    let next = code.get(at + 1).copied().unwrap_or(0);
    let (reg, rm) = ((next >> 3) & 7, next & 7);
    // Register 4 without the extension bit (REX.R for `reg`, REX.B for `rm`) is `rsp`.
    let sets_reg = reg == 4 && rex & 4 == 0;
    let sets_rm = next >> 6 == 3 && rm == 4 && rex & 1 == 0;
    match code.get(at) {
        Some(0xe8) => Flow::Call,
        Some(0xff) if matches!(reg, 2 | 3) => Flow::Call,
        Some(0x0f) if next == 0x05 => Flow::SystemCall,
        Some(0x8b) if sets_reg && next >> 6 != 3 => Flow::LoadsStack,
        Some(0x8b | 0x8d) if sets_reg => Flow::SetsStack,
        Some(0x89) if sets_rm => Flow::SetsStack,
        Some(0x87) if sets_reg || sets_rm => Flow::LoadsStack,
        Some(0x94) if rex & 1 == 0 => Flow::LoadsStack,
        Some(0x5c) if rex & 1 == 0 => Flow::LoadsStack,
        Some(0x50..=0x57) => Flow::Push,
        Some(0xc9) => Flow::SetsStack,
        // `add` and `sub` of a register: a jump out of frames, by as much as it likes.
        Some(0x01 | 0x29) if sets_rm => Flow::SetsStack,
        Some(0x03 | 0x2b) if sets_reg => Flow::SetsStack,
        _ => Flow::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_from_jumps() {
        assert_eq!(flow(&[0xe8, 1, 2, 3, 4]), Flow::Call);
        assert_eq!(flow(&[0x3e, 0xff, 0xd0]), Flow::Call);
        assert_eq!(flow(&[0x41, 0xff, 0xd4]), Flow::Call);
        assert_eq!(flow(&[0xff, 0x25, 0, 0, 0, 0]), Flow::Other);
        assert_eq!(flow(&[0xf2, 0xff, 0x15, 0, 0, 0, 0]), Flow::Call);
        assert_eq!(flow(&[0x0f, 0x05]), Flow::SystemCall);
    }

    #[test]
    fn writes_to_the_stack_pointer_are_seen() {
        for code in [
            &[0x48, 0x89, 0xec][..],      // mov %rbp,%rsp
            &[0x4c, 0x89, 0xc4],          // mov %r8,%rsp
            &[0x48, 0x8d, 0x65, 0xd8],    // lea -40(%rbp),%rsp
            &[0x48, 0x8d, 0x64, 0x24, 8], // lea 8(%rsp),%rsp
            &[0xc9],                      // leave
            &[0x48, 0x01, 0xcc],          // add %rcx,%rsp
        ] {
            assert_eq!(flow(code), Flow::SetsStack, "{code:x?}");
        }
        for code in [
            &[0x48, 0x8b, 0x27][..], // mov (%rdi),%rsp
            &[0x5c],                 // pop %rsp
            &[0x48, 0x87, 0xe0],     // xchg %rsp,%rax
        ] {
            assert_eq!(flow(code), Flow::LoadsStack, "{code:x?}");
        }
        for code in [
            &[0x48, 0x89, 0xe5][..], // mov %rsp,%rbp
            &[0x49, 0x89, 0xe4],     // mov %rsp,%r12
            &[0x4c, 0x8b, 0x27],     // mov (%rdi),%r12
            &[0x41, 0x5c],           // pop %r12
            &[0x48, 0x83, 0xec, 8],  // sub $8,%rsp
        ] {
            assert_eq!(flow(code), Flow::Other, "{code:x?}");
        }
    }
}
