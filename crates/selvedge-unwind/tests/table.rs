//! Tables against gimli's own look-up and evaluator: both find the caller of an imaginary frame, at every row and at
//! random addresses, and must find the same one.

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EvaluationResult, LittleEndian, Location,
    RegisterRule, UnwindSection, Value, X86_64,
};
use object::{Object, ObjectSection};
use selvedge_unwind::build::table_and_damage;
use selvedge_unwind::table::{Cfa, Rule, Saved, Table, register};
use std::path::{Path, PathBuf};

type Slice<'a> = gimli::EndianSlice<'a, LittleEndian>;

/// Registers of the walk as gimli numbers them, in the walk's order.
const NUMBERS: [gimli::Register; register::COUNT] = [
    X86_64::RBX,
    X86_64::RBP,
    X86_64::R12,
    X86_64::R13,
    X86_64::R14,
    X86_64::R15,
    X86_64::RA,
    X86_64::RSP,
];

/// Registers as rules name them: those of the walk, then `rax`, `rdx`, `rcx`, `rsi`, `rdi`, `r8` to `r11`.
fn named(place: u8) -> usize {
    match usize::from(place) {
        kept @ 0..register::COUNT => usize::from(NUMBERS[kept].0),
        scratch => [0, 1, 2, 4, 5, 8, 9, 10, 11][scratch - register::SCRATCH],
    }
}

/// Mixes bits (the finalizer of splitmix64).
fn mix(mut seed: u64) -> u64 {
    seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}

/// What imaginary memory holds.
fn memory(address: u64) -> u64 {
    mix(address)
}

/// An imaginary frame at an address: registers by DWARF number.
fn frame(address: u64) -> [u64; 17] {
    let mut registers = std::array::from_fn(|at| mix(address ^ ((at as u64) << 48)) >> 16);
    registers[16] = address;
    registers
}

/// The caller's registers, each known or not. `None`: no rule, or the outermost frame.
type Caller = Option<[Option<u64>; register::COUNT]>;

fn by_table(rule: &Rule, registers: &[u64; 17]) -> Caller {
    let own = |at: u8| registers[named(at)];
    let sum = |base: u64, offset: i32| base.wrapping_add_signed(i64::from(offset));
    let cfa = match rule.cfa {
        Cfa::None | Cfa::Unknown | Cfa::Root | Cfa::Planted => return None,
        Cfa::Register(base, offset) => sum(own(base), offset),
        Cfa::Stored(base, offset, after) => sum(memory(sum(own(base), offset)), after),
        Cfa::Stub(from) => registers[7] + 8 + u64::from(registers[16] & 15 >= from as u64) * 8,
    };
    let mut at = 0;
    Some(rule.saved.map(|saved| {
        at += 1;
        match saved {
            Saved::Same => Some(own(at - 1)),
            Saved::Lost => None,
            Saved::AtCfa(offset) => Some(memory(sum(cfa, offset))),
            Saved::Cfa(offset) => Some(sum(cfa, offset)),
            Saved::In(base) => Some(own(base)),
            Saved::At(base, offset) => Some(memory(sum(own(base), offset))),
            Saved::Uncopied(words, _) => Some(memory(cfa - 8 * u64::from(words))),
        }
    }))
}

fn evaluate(
    expression: gimli::Expression<Slice<'_>>,
    encoding: gimli::Encoding,
    initial: Option<u64>,
    registers: &[u64; 17],
) -> Option<u64> {
    let mut evaluation = expression.evaluation(encoding);
    if let Some(initial) = initial {
        evaluation.set_initial_value(initial);
    }
    let mut result = evaluation.evaluate().ok()?;
    loop {
        result = match result {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = *registers.get(usize::from(register.0))?;
                evaluation
                    .resume_with_register(Value::Generic(value))
                    .ok()?
            }
            EvaluationResult::RequiresMemory { address, .. } => evaluation
                .resume_with_memory(Value::Generic(memory(address)))
                .ok()?,
            _ => return None,
        };
    }
    match evaluation.as_result().first()?.location {
        Location::Address { address } => Some(address),
        _ => None,
    }
}

/// What gimli says: `Err` where it has no row.
fn by_gimli(
    section: &EhFrame<Slice<'_>>,
    header: &gimli::ParsedEhFrameHdr<Slice<'_>>,
    bases: &BaseAddresses,
    context: &mut gimli::UnwindContext<usize>,
    address: u64,
    registers: &[u64; 17],
) -> Result<Caller, gimli::Error> {
    let fde = header
        .table()
        .ok_or(gimli::Error::NoUnwindInfoForAddress)?
        .fde_for_address(section, bases, address, EhFrame::cie_from_offset)?;
    let encoding = fde.cie().encoding();
    let row = fde
        .unwind_info_for_address(section, bases, context, address)?
        .clone();
    if row.register(X86_64::RA) == Some(RegisterRule::Undefined) {
        return Ok(None);
    }
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            registers[usize::from(register.0)].wrapping_add_signed(*offset)
        }
        CfaRule::Expression(at) => match evaluate(at.get(section)?, encoding, None, registers) {
            Some(cfa) => cfa,
            None => return Ok(None),
        },
    };
    let caller = NUMBERS.map(|number| {
        let own = registers[usize::from(number.0)];
        match row.register(number) {
            None if number == X86_64::RSP => Some(cfa),
            None if number == X86_64::RA => None,
            None | Some(RegisterRule::SameValue) => Some(own),
            Some(RegisterRule::Offset(offset)) => Some(memory(cfa.wrapping_add_signed(offset))),
            Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add_signed(offset)),
            Some(RegisterRule::Register(from)) => registers.get(usize::from(from.0)).copied(),
            Some(RegisterRule::Expression(at)) => {
                evaluate(at.get(section).ok()?, encoding, Some(cfa), registers).map(memory)
            }
            Some(RegisterRule::ValExpression(at)) => {
                evaluate(at.get(section).ok()?, encoding, Some(cfa), registers)
            }
            _ => None,
        }
    });
    Ok(Some(caller))
}

#[derive(Debug, Default, PartialEq)]
struct Compared {
    /// The same caller.
    equal: usize,
    /// The table knows less: it has no rule, or a register is lost.
    less: usize,
    /// gimli has nothing there.
    alone: usize,
    /// On the way to another stack, or to a landing pad.
    corrected: usize,
    different: Vec<String>,
}

fn is_corrected(
    rule: &Rule,
    found: &[Option<u64>; register::COUNT],
    expected: &[Option<u64>; register::COUNT],
) -> bool {
    let base = register::BP as u8;
    let departs = rule.cfa == Cfa::Register(register::SP as u8, 8)
        && found[register::SP] != expected[register::SP];
    let lands = rule.cfa == Cfa::Register(base, 16)
        && found[register::SP] == expected[register::SP]
        && matches!(rule.saved[register::IP], Saved::At(from, _) if from == base)
        && rule.saved[register::BX] == Saved::Lost;
    departs || lands
}

fn compare(name: &str, image: &[u8]) -> Compared {
    let (bytes, unreadable) = table_and_damage(image).unwrap();
    assert_eq!(unreadable, 0, "{name}: entries that cannot be read");
    let table = Table::view(&bytes).unwrap();
    let file = object::File::parse(image).unwrap();
    let section = |name: &str| {
        let section = file.section_by_name(name).unwrap();
        (section.address(), section.data().unwrap())
    };
    let (frame_at, frame_bytes) = section(".eh_frame");
    let (header_at, header_bytes) = section(".eh_frame_hdr");
    let bases = BaseAddresses::default()
        .set_eh_frame(frame_at)
        .set_eh_frame_hdr(header_at);
    let header = EhFrameHdr::new(header_bytes, LittleEndian)
        .parse(&bases, 8)
        .unwrap();
    let section = EhFrame::new(frame_bytes, LittleEndian);
    let mut context = gimli::UnwindContext::new();
    let mut compared = Compared::default();
    let starts: Vec<u64> = table.starts().collect();
    let (first, last) = (starts[0], starts[starts.len() - 1]);
    // Not every row of a large file: gimli's look-up interprets a whole function each time.
    let rows = starts
        .iter()
        .copied()
        .step_by(starts.len().div_ceil(100_000));
    let random = (0..20_000_u64).map(|seed| first + mix(seed) % (last - first));
    for address in rows.chain(random) {
        let registers = frame(address);
        let rule = table.rule(address).unwrap();
        let Ok(true_caller) =
            by_gimli(&section, &header, &bases, &mut context, address, &registers)
        else {
            compared.alone += 1;
            continue;
        };
        match (by_table(&rule, &registers), true_caller) {
            (found, expected) if found == expected => compared.equal += 1,
            (None, Some(_)) => compared.less += 1,
            (Some(found), Some(expected))
                if found
                    .iter()
                    .zip(&expected)
                    .all(|(f, e)| f.is_none() || f == e) =>
            {
                compared.less += 1;
            }
            // Where the table says where a function came from, and unwind information where it goes.
            (Some(found), Some(expected)) if is_corrected(&rule, &found, &expected) => {
                compared.corrected += 1;
            }
            // GCC's stale rules at the `ret` of functions that align their stack.
            (Some(found), Some(expected))
                if rule.cfa == Cfa::Register(register::SP as u8, 8)
                    && found[register::IP] == expected[register::IP] =>
            {
                compared.less += 1;
            }
            (found, expected) => compared.different.push(format!(
                "{name} {address:#x}: {rule:?} gives {found:x?}, not {expected:x?}"
            )),
        }
    }
    println!(
        "{name}: {} rows; compared: {} equal, {} less, {} without CFI, {} corrected, {} different",
        starts.len(),
        compared.equal,
        compared.less,
        compared.alone,
        compared.corrected,
        compared.different.len()
    );
    compared
}

fn check(name: &str, image: &[u8]) {
    let compared = compare(name, image);
    assert!(
        compared.different.is_empty(),
        "{:#?}",
        &compared.different[..compared.different.len().min(5)]
    );
    assert!(
        (compared.less + compared.corrected) * 100 <= compared.equal,
        "{name}: {compared:?}"
    );
}

fn library(name: &str) -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps
        .lines()
        .find(|line| line.contains(name))
        .unwrap_or_else(|| panic!("no {name} in this process"));
    Path::new(line.split_whitespace().next_back().unwrap()).to_owned()
}

#[test]
fn libc_and_loader_and_libgcc() {
    for name in ["libc.so.6", "ld-linux-x86-64", "libgcc_s.so"] {
        check(name, &std::fs::read(library(name)).unwrap());
    }
}

#[test]
fn own_executable() {
    check("test", &std::fs::read("/proc/self/exe").unwrap());
}

#[test]
fn vdso() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let (start, end) = line
        .split_whitespace()
        .next()
        .unwrap()
        .split_once('-')
        .unwrap();
    let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
    let mut image = vec![0; (end - start) as usize];
    use std::os::unix::fs::FileExt;
    std::fs::File::open("/proc/self/mem")
        .unwrap()
        .read_exact_at(&mut image, start)
        .unwrap();
    check("vdso", &image);
}

#[test]
fn compiler_driver() {
    let sysroot = std::process::Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .unwrap()
        .stdout;
    let libraries = Path::new(String::from_utf8(sysroot).unwrap().trim()).join("lib");
    let driver = std::fs::read_dir(libraries)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("librustc_driver")
        });
    check(
        "librustc_driver",
        &std::fs::read(driver.expect("no librustc_driver")).unwrap(),
    );
}
