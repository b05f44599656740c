//! The DWARF expressions that real unwind information uses, each as an exact rule; any other has none.

use super::instructions::place;
use crate::table::{Cfa, Saved};
use gimli::{EndianSlice, Expression, LittleEndian, Operation};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// The operations of an expression; `None` if it is not well formed or long.
fn operations<'a>(
    expression: Expression<Slice<'a>>,
    encoding: gimli::Encoding,
) -> Option<Vec<Operation<Slice<'a>>>> {
    let mut reader = expression.operations(encoding);
    let mut operations = Vec::new();
    while let Some(operation) = reader.next().ok()? {
        if operations.len() == 16 {
            return None;
        }
        operations.push(operation);
    }
    Some(operations)
}

fn number(register: gimli::Register) -> Option<u8> {
    place(u64::from(register.0))
}

fn offset(value: i64) -> Option<i32> {
    i32::try_from(value).ok()
}

/// The rule that a CFA expression stands for.
pub(super) fn cfa(expression: Expression<Slice<'_>>, encoding: gimli::Encoding) -> Cfa {
    operations(expression, encoding)
        .and_then(|operations| known_cfa(&operations))
        .unwrap_or(Cfa::None)
}

fn known_cfa(operations: &[Operation<Slice<'_>>]) -> Option<Cfa> {
    use Operation::{And, Deref, Ge, Plus, PlusConstant, RegisterOffset, Shl, UnsignedConstant};
    let sp = gimli::X86_64::RSP;
    let ip = gimli::X86_64::RA;
    match *operations {
        [
            RegisterOffset {
                register,
                offset: at,
                ..
            },
        ] => Some(Cfa::Register(number(register)?, offset(at)?)),
        [
            RegisterOffset {
                register,
                offset: at,
                ..
            },
            Deref {
                size: 8,
                space: false,
                ..
            },
        ] => Some(Cfa::Stored(number(register)?, offset(at)?, 0)),
        [
            RegisterOffset {
                register,
                offset: at,
                ..
            },
            Deref {
                size: 8,
                space: false,
                ..
            },
            PlusConstant { value },
        ]
        | [
            RegisterOffset {
                register,
                offset: at,
                ..
            },
            Deref {
                size: 8,
                space: false,
                ..
            },
            UnsignedConstant { value },
            Plus,
        ] => Some(Cfa::Stored(
            number(register)?,
            offset(at)?,
            i32::try_from(value).ok()?,
        )),
        // What GNU ld writes for .plt: rsp + 8 + ((rip & 15) >= N) * 8.
        [
            RegisterOffset {
                register: base,
                offset: 8,
                ..
            },
            RegisterOffset {
                register: pc,
                offset: 0,
                ..
            },
            ref mask,
            And,
            ref from,
            Ge,
            ref shift,
            Shl,
            Plus,
        ] if base == sp && pc == ip && constant(mask) == Some(15) && constant(shift) == Some(3) => {
            Some(Cfa::Stub(i32::try_from(constant(from)?).ok()?))
        }
        _ => None,
    }
}

fn constant(operation: &Operation<Slice<'_>>) -> Option<u64> {
    match *operation {
        Operation::UnsignedConstant { value } => Some(value),
        Operation::SignedConstant { value } => u64::try_from(value).ok(),
        _ => None,
    }
}

/// The rule that a register's location expression stands for.
pub(super) fn location(expression: Expression<Slice<'_>>, encoding: gimli::Encoding) -> Saved {
    match operations(expression, encoding).as_deref() {
        Some(
            [
                Operation::RegisterOffset {
                    register,
                    offset: at,
                    ..
                },
            ],
        ) => number(*register)
            .zip(offset(*at))
            .map_or(Saved::Lost, |(base, at)| Saved::At(base, at)),
        _ => Saved::Lost,
    }
}

/// The rule that a register's value expression stands for.
pub(super) fn value(expression: Expression<Slice<'_>>, encoding: gimli::Encoding) -> Saved {
    match operations(expression, encoding).as_deref() {
        Some(
            [
                Operation::RegisterOffset {
                    register,
                    offset: 0,
                    ..
                },
            ],
        ) => number(*register).map_or(Saved::Lost, Saved::In),
        _ => Saved::Lost,
    }
}
