//! Whether bytes end in a call instruction: what a return address has before it.

/// What bytes end in. They may be read as either call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// A call through a register or memory.
    pub(crate) indirect: bool,
    /// A direct call: how far its target is from the return address.
    pub(crate) direct: Option<i32>,
}

/// Whether the last of these bytes end a call: a direct one (`e8` and four bytes), or one through a register or memory
/// (`ff /2`, of two to seven bytes; prefixes come before and do not matter).
#[inline(always)]
pub(crate) fn before_return(bytes: [u8; 8]) -> Call {
    let [_, b1, b2, b3, b4, b5, b6, b7] = bytes;
    let indirect = |opcode: u8, modrm: u8, sib: u8, len: u32| {
        opcode == 0xff && modrm & 0x38 == 0x10 && length(modrm, sib) == len
    };
    Call {
        indirect: indirect(b6, b7, 0, 2)
            || indirect(b5, b6, b7, 3)
            || indirect(b4, b5, b6, 4)
            || indirect(b3, b4, b5, 5)
            || indirect(b2, b3, b4, 6)
            || indirect(b1, b2, b3, 7),
        direct: (b3 == 0xe8).then_some(i32::from_le_bytes([b4, b5, b6, b7])),
    }
}

/// Length of an instruction of an opcode of one byte with these operand bytes (Intel SDM, volume 2, table 2-2).
fn length(modrm: u8, sib: u8) -> u32 {
    let (mode, memory) = (modrm >> 6, modrm & 7);
    let with_sib = u32::from(mode != 3 && memory == 4);
    let displacement = match mode {
        0 if memory == 5 || (memory == 4 && sib & 7 == 5) => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    2_u32.wrapping_add(with_sib).wrapping_add(displacement)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(tail: &[u8]) -> bool {
        let mut bytes = [0x90; 8];
        bytes[8 - tail.len()..].copy_from_slice(tail);
        let Call { indirect, direct } = before_return(bytes);
        indirect || direct.is_some()
    }

    #[test]
    fn calls_are_known_by_their_bytes() {
        assert!(ends(&[0xe8, 1, 2, 3, 4]));
        assert!(ends(&[0xff, 0xd0])); // call *%rax
        assert!(ends(&[0x41, 0xff, 0xd4])); // call *%r12
        assert!(ends(&[0xff, 0x10])); // call *(%rax)
        assert!(ends(&[0xff, 0x53, 0x18])); // call *0x18(%rbx)
        assert!(ends(&[0xff, 0x14, 0xc3])); // call *(%rbx,%rax,8)
        assert!(ends(&[0xff, 0x54, 0x24, 0x08])); // call *8(%rsp)
        assert!(ends(&[0xff, 0x15, 1, 2, 3, 4])); // call *x(%rip)
        assert!(ends(&[0xff, 0x94, 0x24, 1, 2, 3, 4])); // call *x(%rsp)
    }

    #[test]
    fn target_of_a_direct_call_counts_from_the_return_address() {
        let call = before_return([0x90, 0x90, 0x90, 0xe8, 0xf0, 0xff, 0xff, 0xff]);
        assert_eq!((call.indirect, call.direct), (false, Some(-16)));
    }

    #[test]
    fn other_bytes_are_none() {
        assert!(!ends(&[0xe9, 1, 2, 3, 4]));
        assert!(!ends(&[0xff, 0xe0])); // jmp *%rax
        assert!(!ends(&[0xff, 0x10, 0x90])); // call *(%rax); nop
        assert!(!ends(&[0xc3]));
    }
}
