//! Rows of an image: what its unwind information says, what is known without it, and where nothing is.

use super::elf::{Code, Image};
use super::trace::{State, Tracer};
use super::{Error, expression, landing};
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
pub(super) struct Stretch {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) rows: Vec<(u64, Rule)>,
}

impl Stretch {
    /// Takes the rules from a part.
    pub(super) fn erase(&mut self, start: u64, end: u64) {
        let (start, end) = (start.max(self.start), end.min(self.end));
        let first = self.rows.partition_point(|(at, _)| *at < start);
        let after = self.rows.partition_point(|(at, _)| *at <= end);
        let Some(&(_, behind)) = after.checked_sub(1).and_then(|last| self.rows.get(last)) else {
            return;
        };
        let mut rows = vec![(start, Rule::NONE)];
        if end < self.end {
            rows.push((end, behind));
        }
        self.rows.splice(first.min(after)..after, rows);
    }
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
        let mut lands = false;
        let mut reached = start;
        if let Ok(mut table) = fde.rows(section, bases, &mut context) {
            while let Ok(Some(row)) = table.next_row() {
                let saves =
                    |register| matches!(row.register(register), Some(RegisterRule::Offset(_)));
                lands |= saves(X86_64::RAX) && saves(X86_64::RDX);
                rows.push((
                    row.start_address().max(start),
                    rule(section, row, encoding, signal),
                ));
                reached = row.end_address();
                if reached >= end {
                    break;
                }
            }
        }
        // Instructions that cannot be followed to the end: the last row must not hold for what they would have changed.
        if reached < end {
            rows.push((reached.max(start), Rule::NONE));
        }
        // A signal frame's code is only ever returned to, at its very start: gdb, libgcc and glibc extend it by one byte
        // downward, so that a look-up one byte before the return address finds it. Ours looks up exact frames exactly.
        let mut stretch = Stretch { start, end, rows };
        if lands {
            landing::blank(&mut stretch, &image.code);
        }
        stretches.push(stretch);
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
    // The outermost frame says that its return address is undefined (DWARF 5, §6.4.4).
    if row.register(X86_64::RA) == Some(RegisterRule::Undefined) {
        return Rule::ROOT;
    }
    if rule.cfa == Cfa::Register(register::SP as u8, 8) {
        forget_restored(&mut rule);
    }
    rule
}

/// At the `ret` of a function that aligned its stack, GCC still says that registers are stored around `rbp`, which is the
/// caller's again by then. With nothing on the stack but the return address, they are all restored.
fn forget_restored(rule: &mut Rule) {
    for saved in &mut rule.saved {
        if matches!(saved, Saved::At(base, _) if usize::from(*base) == register::BP) {
            *saved = Saved::Same;
        }
    }
}

/// Adds rules for code that usually has no unwind information and whose frame is known all the same.
fn add_known_code(image: &Image<'_>, stretches: &mut Vec<Stretch>) {
    let covered = |at: u64| {
        let next = stretches.partition_point(|stretch| stretch.start <= at);
        let last = next.checked_sub(1).and_then(|last| stretches.get(last));
        last.is_some_and(|stretch| at < stretch.end)
    };
    let mut tracer = Tracer::new(&image.code, covered);
    // Where the kernel, or the loader, jumps to has no caller.
    tracer.follow(image.entry, State::Root);
    for code in &image.code {
        let range = code.range();
        match code.name.as_str() {
            // The first stub is where the others jump to.
            ".plt" => range
                .skip(16)
                .step_by(16)
                .for_each(|stub| tracer.follow_stub(stub)),
            ".plt.sec" | ".iplt" => range.step_by(16).for_each(|stub| tracer.follow_stub(stub)),
            ".plt.got" => range.step_by(8).for_each(|stub| tracer.follow_stub(stub)),
            _ => {}
        }
    }
    for function in &image.functions {
        tracer.follow(*function, State::entry(0));
    }
    let known = tracer.stretches();
    let restorers: Vec<Stretch> = image
        .code
        .iter()
        .flat_map(signal_returns)
        .filter(|stretch| !covered(stretch.start))
        .collect();
    stretches.extend(known);
    stretches.extend(restorers);
    stretches.sort_by_key(|stretch| stretch.start);
}

/// Signal-return trampolines: `mov $15, %rax; syscall` in one of its two encodings. The kernel's frame of a signal is at
/// the stack pointer: a `ucontext`, whose registers start at byte 40 (arch/x86/include/uapi/asm/sigcontext.h).
fn signal_returns(code: &Code<'_>) -> Vec<Stretch> {
    let long: &[u8] = &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
    let short: &[u8] = &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05];
    let sp = register::SP as u8;
    let saved = [128, 120, 72, 80, 88, 96, 168].map(|at| Saved::At(sp, at));
    let [bx, bp, r12, r13, r14, r15, ip] = saved;
    let saved = [bx, bp, r12, r13, r14, r15, ip, Saved::Cfa(0)];
    let rule = Rule {
        cfa: Cfa::Stored(sp, 160, 0),
        signal: true,
        saved,
    };
    [long, short]
        .into_iter()
        .flat_map(|pattern| {
            memchr::memmem::find_iter(code.bytes, pattern).map(|at| {
                let start = code.svma.saturating_add(at as u64);
                Stretch {
                    start,
                    end: start.saturating_add(pattern.len() as u64),
                    rows: vec![(start, rule)],
                }
            })
        })
        .collect()
}

/// Puts stretches one after the other; what lies between has no rule. Where two overlap, the later one holds from its
/// start on.
fn join(stretches: Vec<Stretch>) -> Vec<(u64, Rule)> {
    let mut rows: Vec<(u64, Rule)> = Vec::new();
    let mut end = None;
    for stretch in stretches {
        match end {
            Some(end) if end < stretch.start => rows.push((end, Rule::UNKNOWN)),
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
    rows.extend(end.map(|end| (end, Rule::UNKNOWN)));
    rows
}
