//! Rows of an image: what its unwind information says, what is known without it, and where nothing is.

use super::elf::{Code, Image};
use super::{Error, expression};
use crate::table::{Cfa, Rule, Saved, register};
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, DebugFrame, EhFrame, EndianSlice, LittleEndian, Register,
    RegisterRule, UnwindContext, UnwindSection, X86_64,
};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// The place of a DWARF register among those that a walk keeps (System V ABI, AMD64 supplement, figure 3.36).
pub(super) fn number(register: Register) -> Option<u8> {
    let place = match register {
        X86_64::RBX => register::BX,
        X86_64::RBP => register::BP,
        X86_64::R12 => register::R12,
        X86_64::R13 => register::R12 + 1,
        X86_64::R14 => register::R12 + 2,
        X86_64::R15 => register::R12 + 3,
        X86_64::RA => register::IP,
        X86_64::RSP => register::SP,
        _ => return None,
    };
    u8::try_from(place).ok()
}

/// Code from `start` to `end` with rows that start inside it.
#[derive(Debug)]
struct Stretch {
    start: u64,
    end: u64,
    rows: Vec<(u64, Rule)>,
}

/// All rows of an image, ascending.
pub(super) fn of(elf: &[u8]) -> Result<Vec<(u64, Rule)>, Error> {
    let image = Image::parse(elf)?;
    let mut bases = BaseAddresses::default();
    if let Some(text) = image.code.iter().find(|code| code.name == ".text") {
        bases = bases.set_text(text.svma);
    }
    let mut stretches = Vec::new();
    if let Some(part) = image.eh_frame {
        let section = EhFrame::new(part.bytes, LittleEndian);
        collect(
            &section,
            &bases.clone().set_eh_frame(part.svma),
            &image,
            &mut stretches,
        );
    }
    if stretches.is_empty()
        && let Some(bytes) = image.debug_frame
    {
        collect(
            &DebugFrame::new(bytes, LittleEndian),
            &bases,
            &image,
            &mut stretches,
        );
    }
    if stretches.is_empty() {
        return Err(Error::no_unwind_information());
    }
    stretches.sort_by_key(|stretch| stretch.start);
    add_known_code(&image, &mut stretches);
    Ok(join(stretches))
}

fn collect<'a, S>(
    section: &S,
    bases: &BaseAddresses,
    image: &Image<'_>,
    stretches: &mut Vec<Stretch>,
) where
    S: UnwindSection<Slice<'a>>,
    S::Offset: gimli::UnwindOffset<usize>,
{
    let mut context = UnwindContext::new();
    let mut entries = section.entries(bases);
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let Ok(fde) = partial.parse(S::cie_from_offset) else {
            continue;
        };
        let (start, end) = (fde.initial_address(), fde.end_address());
        // The linker leaves entries of functions that it discarded, at zero; damaged ones may be anywhere.
        let inside = |range: &std::ops::Range<u64>| range.start <= start && end <= range.end;
        if start >= end || !image.executable.iter().any(inside) {
            continue;
        }
        let encoding = fde.cie().encoding();
        let signal = fde.is_signal_trampoline();
        let mut rows = Vec::new();
        if let Ok(mut table) = fde.rows(section, bases, &mut context) {
            while let Ok(Some(row)) = table.next_row() {
                rows.push((
                    row.start_address().max(start),
                    rule(section, row, encoding, signal),
                ));
                if row.end_address() >= end {
                    break;
                }
            }
        }
        if rows.is_empty() {
            rows.push((start, Rule::NONE));
        }
        // A signal frame's code is only ever returned to, at its very start: gdb, libgcc and glibc extend it by one byte
        // downward, so that a look-up one byte before the return address finds it. Ours looks up exact frames exactly.
        stretches.push(Stretch { start, end, rows });
    }
}

fn rule<'a, S>(
    section: &S,
    row: &gimli::UnwindTableRow<usize>,
    encoding: gimli::Encoding,
    signal: bool,
) -> Rule
where
    S: UnwindSection<Slice<'a>>,
{
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            match (number(*register), i32::try_from(*offset)) {
                (Some(register), Ok(offset)) => Cfa::Register(register, offset),
                _ => Cfa::None,
            }
        }
        CfaRule::Expression(expression) => {
            expression.get(section).map_or(Cfa::None, |expression| {
                expression::cfa(expression, encoding)
            })
        }
    };
    let mut rule = Rule {
        cfa,
        signal,
        saved: [Saved::Same; register::COUNT],
    };
    rule.saved[register::SP] = Saved::Cfa(0);
    rule.saved[register::IP] = Saved::Lost;
    for (register, from) in row.registers() {
        let Some(place) = number(*register) else {
            continue;
        };
        rule.saved[usize::from(place)] = match from {
            RegisterRule::Undefined => Saved::Lost,
            RegisterRule::SameValue => Saved::Same,
            RegisterRule::Offset(offset) => {
                i32::try_from(*offset).map_or(Saved::Lost, Saved::AtCfa)
            }
            RegisterRule::ValOffset(offset) => {
                i32::try_from(*offset).map_or(Saved::Lost, Saved::Cfa)
            }
            RegisterRule::Register(register) => number(*register).map_or(Saved::Lost, Saved::In),
            RegisterRule::Expression(at) => at.get(section).map_or(Saved::Lost, |expression| {
                expression::location(expression, encoding)
            }),
            RegisterRule::ValExpression(at) => at.get(section).map_or(Saved::Lost, |expression| {
                expression::value(expression, encoding)
            }),
            _ => Saved::Lost,
        };
    }
    let undefined = row
        .register(X86_64::RA)
        .is_none_or(|from| from == RegisterRule::Undefined);
    // The outermost frame says that its return address is undefined (DWARF 5, §6.4.4).
    if undefined { Rule::ROOT } else { rule }
}

/// Adds rules for code that usually has no unwind information and whose frame is known all the same.
fn add_known_code(image: &Image<'_>, stretches: &mut Vec<Stretch>) {
    let covers = |stretches: &[Stretch], at: u64| {
        let next = stretches.partition_point(|stretch| stretch.start <= at);
        next.checked_sub(1)
            .and_then(|last| stretches.get(last))
            .is_some_and(|stretch| at < stretch.end)
    };
    let mut known = Vec::new();
    for code in &image.code {
        let range = code.range();
        if range.is_empty() || covers(stretches, range.start) {
            continue;
        }
        let rows = match code.name.as_str() {
            // The first stub pushes once and jumps; the others push once, from byte 11 on (GNU ld, lld).
            ".plt" => vec![(range.start, Rule::with_return_address(Cfa::Stub(11)))],
            ".plt.got" | ".plt.sec" | ".iplt" => vec![(range.start, Rule::stack_only(8))],
            ".init" | ".fini" => init_rows(code),
            _ => continue,
        };
        known.push(Stretch {
            start: range.start,
            end: range.end,
            rows,
        });
    }
    if image.entry != 0 && !covers(stretches, image.entry) {
        // Where the kernel, or the loader, jumps to has no caller. It ends where the next function begins.
        let next = stretches.partition_point(|stretch| stretch.start <= image.entry);
        let end = stretches.get(next).map_or(image.entry + 64, |stretch| {
            stretch.start.min(image.entry + 64)
        });
        known.push(Stretch {
            start: image.entry,
            end,
            rows: vec![(image.entry, Rule::ROOT)],
        });
    }
    stretches.extend(known);
    stretches.sort_by_key(|stretch| stretch.start);
}

/// `.init` and `.fini` are put together from pieces: `sub $8, %rsp`, calls, `add $8, %rsp; ret`.
fn init_rows(code: &Code<'_>) -> Vec<(u64, Rule)> {
    let find = |pattern: &[u8]| code.bytes.windows(4).position(|window| window == pattern);
    let mut rows = vec![(code.svma, Rule::stack_only(8))];
    if let Some(down) = find(&[0x48, 0x83, 0xec, 0x08]) {
        rows.push((code.svma + down as u64 + 4, Rule::stack_only(16)));
        let up = code
            .bytes
            .windows(4)
            .rposition(|window| window == [0x48, 0x83, 0xc4, 0x08]);
        if let Some(up) = up.filter(|up| *up > down) {
            rows.push((code.svma + up as u64 + 4, Rule::stack_only(8)));
        }
    }
    rows
}

/// Puts stretches one after the other; what lies between has no rule. Where two overlap, the later one holds from its
/// start on.
fn join(stretches: Vec<Stretch>) -> Vec<(u64, Rule)> {
    let mut rows: Vec<(u64, Rule)> = Vec::new();
    let mut end = None;
    for stretch in stretches {
        match end {
            Some(end) if end < stretch.start => rows.push((end, Rule::NONE)),
            Some(end) if end > stretch.start => {
                while rows
                    .last()
                    .is_some_and(|(start, _)| *start >= stretch.start)
                {
                    rows.pop();
                }
            }
            _ => {}
        }
        let mut last = stretch.start;
        for (start, rule) in stretch.rows {
            if start >= last && start < stretch.end {
                rows.push((start, rule));
                last = start;
            }
        }
        end = Some(stretch.end);
    }
    rows.extend(end.map(|end| (end, Rule::NONE)));
    rows
}
