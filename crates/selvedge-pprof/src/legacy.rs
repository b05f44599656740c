//! The binary CPU profile format of gperftools, and of Go before 1.7: words, then the text of `/proc/self/maps`.
//!
//! A header `0, 3, 0, period in µs, 0`; records `count, number of addresses, address…` (leaf first); a trailer
//! `0, 1, 0`; then lines of `/proc/self/maps`. Readers subtract 1 from every address but a leaf's, to get from a return
//! address into the call. Source: <https://gperftools.github.io/gperftools/cpuprofile-fileformat.html>.
//!
//! The format knows no names, labels, or second value, so neither do profiles that were read from it.
//!
//! # Pseudo-frames
//!
//! A location without mapping and address, such as `[unsampled]`, is only a name, which the format cannot express. Each
//! such name is written as a page of its own at or above [`PSEUDO_BASE`], where no code can be, with a line in the maps
//! that gives the name as the file's. [`Profile::read`] turns it back into a function of that name; `go tool pprof`
//! shows it as a frame of an object file of that name, and sums are right in both.
//!
//! # What other readers do
//!
//! `go tool pprof` takes a caller of the leaf that almost all samples share (31 of 32) for a frame of the signal
//! handler, and drops it, twice at most. [`Profile::read`] does not.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write};

use crate::builder::ProfileBuilder;
use crate::error::Error;
use crate::model::{Function, Line, Location, Mapping, Profile, ValueType};

/// Where the addresses of pseudo-frames start: no x86-64 or AArch64 code can have such an address.
pub const PSEUDO_BASE: u64 = 0x8000_0000_0000_0000;

/// The size of the range that one pseudo-frame gets.
const PSEUDO_SIZE: u64 = 0x1000;

/// One past the last address of pseudo-frames.
const PSEUDO_LIMIT: u64 = PSEUDO_BASE + (1 << 40);

/// The longest file that is read, in bytes: a stack is stored once, so real ones are far below.
const MAX_LEN: usize = 128 << 20;

/// Stands for a stack without frames, and for a frame without mapping, address and name.
const UNKNOWN: &str = "[unknown]";

/// Size and order of the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Words {
    size: usize,
    big_endian: bool,
}

impl Words {
    /// Takes one word from the front of `bytes`.
    fn take(self, bytes: &mut &[u8]) -> Option<u64> {
        let (word, rest) = bytes.split_at_checked(self.size)?;
        *bytes = rest;
        let join = |word: u64, byte: &u8| word << 8 | u64::from(*byte);
        Some(if self.big_endian {
            word.iter().fold(0, join)
        } else {
            word.iter().rev().fold(0, join)
        })
    }

    /// The period in microseconds, if `bytes` start with a header of such words, which it then takes.
    fn header(self, bytes: &mut &[u8]) -> Option<u64> {
        let mut rest = *bytes;
        let mut header = [0; 5];
        for word in &mut header {
            *word = self.take(&mut rest)?;
        }
        let [0, 3, 0, period @ (1..), 0] = header else {
            return None;
        };
        *bytes = rest;
        Some(period)
    }
}

/// All the words that writers use. No header of one kind reads as a header of another.
const WORDS: [Words; 4] = [
    Words {
        size: 8,
        big_endian: false,
    },
    Words {
        size: 8,
        big_endian: true,
    },
    Words {
        size: 4,
        big_endian: false,
    },
    Words {
        size: 4,
        big_endian: true,
    },
];

/// Whether `bytes` start with the header of this format.
pub(crate) fn is_legacy(bytes: &[u8]) -> bool {
    WORDS
        .iter()
        .any(|words| words.header(&mut { bytes }).is_some())
}

pub(crate) fn read(mut bytes: &[u8]) -> Result<Profile, Error> {
    if bytes.len() > MAX_LEN {
        return Err(Error::too_large(format!(
            "reading a legacy CPU profile: it is longer than {MAX_LEN} bytes; record for a shorter time"
        )));
    }
    let Some((words, period)) =
        (WORDS.iter()).find_map(|words| words.header(&mut bytes).map(|period| (*words, period)))
    else {
        return Err(damaged("it has no header"));
    };
    let period = i64::try_from(period)
        .ok()
        .and_then(|period| period.checked_mul(1000))
        .ok_or_else(|| damaged(format!("its period of {period} microseconds is absurd")))?;
    let mut stacks = Vec::new();
    while !bytes.is_empty() {
        let (count, stack) =
            record(words, &mut bytes).ok_or_else(|| damaged("it ends inside a record"))?;
        if count == 0 && stack == [0] {
            break;
        }
        let count = i64::try_from(count)
            .map_err(|_| damaged(format!("a record counts {count} samples")))?;
        stacks.push((count, stack));
    }
    let maps = Maps::parse(&String::from_utf8_lossy(bytes));
    let nanoseconds = |kind: &str| ValueType {
        kind: kind.into(),
        unit: "nanoseconds".into(),
    };
    let count = ValueType {
        kind: "samples".into(),
        unit: "count".into(),
    };
    let mut builder = ProfileBuilder::new(vec![count, nanoseconds("cpu")]);
    for mapping in &maps.files {
        builder.mapping(mapping.clone());
    }
    let mut locations = Vec::new();
    for (count, stack) in stacks {
        locations.clear();
        for (depth, &address) in stack.iter().enumerate() {
            let address = address.wrapping_sub(u64::from(depth > 0));
            locations.push(maps.location(address, &mut builder));
        }
        builder.sample(&locations, &[count, count.saturating_mul(period)], &[]);
    }
    Ok(Profile {
        period,
        period_type: nanoseconds("cpu"),
        ..builder.finish()
    })
}

fn record(words: Words, bytes: &mut &[u8]) -> Option<(u64, Vec<u64>)> {
    let count = words.take(bytes)?;
    let len = usize::try_from(words.take(bytes)?).ok()?;
    if len > bytes.len() / words.size {
        return None;
    }
    let stack = (0..len).map(|_| words.take(bytes)).collect::<Option<_>>()?;
    Some((count, stack))
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::malformed(format!(
        "reading a legacy CPU profile: {what}; the program that wrote it may have been killed: record again"
    ))
}

/// The executable mappings of a profile.
struct Maps {
    files: Vec<Mapping>,
    /// Indices of `files`, by start.
    sorted: Vec<usize>,
    /// Names of pseudo-frames, by address.
    pseudo: HashMap<u64, String>,
}

impl Maps {
    fn parse(text: &str) -> Self {
        let mut files = Vec::new();
        let mut pseudo = HashMap::new();
        for mapping in text.lines().filter_map(parse_mapping) {
            if (PSEUDO_BASE..PSEUDO_LIMIT).contains(&mapping.start) {
                pseudo.insert(mapping.start, mapping.filename);
            } else if !files.contains(&mapping) {
                files.push(mapping);
            }
        }
        let mut sorted: Vec<_> = (0..files.len()).collect();
        sorted.sort_by_key(|&index| files[index].start);
        Self {
            files,
            sorted,
            pseudo,
        }
    }

    fn location(&self, address: u64, builder: &mut ProfileBuilder) -> usize {
        if let Some(name) = self.pseudo.get(&address) {
            let function = builder.function(Function {
                name: name.clone(),
                system_name: name.clone(),
                ..Function::default()
            });
            return builder.location(Location {
                lines: vec![Line {
                    function,
                    ..Line::default()
                }],
                ..Location::default()
            });
        }
        let after = self
            .sorted
            .partition_point(|&index| self.files[index].start <= address);
        let mapping = (after.checked_sub(1))
            .map(|last| self.sorted[last])
            .filter(|&index| address < self.files[index].limit)
            .map(|index| builder.mapping(self.files[index].clone()));
        builder.location(Location {
            mapping,
            address,
            ..Location::default()
        })
    }
}

/// Parses a line such as `559a5e8a3000-559a5e8b2000 r-xp 0000a000 fe:01 391 /usr/bin/name`, if it maps code.
fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let (field, after) = rest
            .trim_start()
            .split_once(char::is_whitespace)
            .unwrap_or((rest.trim(), ""));
        rest = after;
        field
    };
    let (start, limit) = field().split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let limit = u64::from_str_radix(limit, 16).ok()?;
    if !field().contains('x') || start >= limit {
        return None;
    }
    let file_offset = u64::from_str_radix(field(), 16).ok()?;
    field();
    field();
    let filename = rest.trim();
    Some(Mapping {
        start,
        limit,
        file_offset,
        filename: filename
            .strip_suffix(" (deleted)")
            .unwrap_or(filename)
            .to_owned(),
        ..Mapping::default()
    })
}

/// Writes `profile` in the legacy format, with the words of this machine.
///
/// Of its values, only the number of samples is written; names, labels and inlined frames are lost, and the period
/// is rounded to microseconds. See the [module](self) for pseudo-frames.
///
/// # Errors
///
/// [`InvalidInput`](io::ErrorKind::InvalidInput) if no sample type of `profile` is `samples` in `count`, or its period
/// is not in nanoseconds or below 500; and those of `out`.
///
/// # Panics
///
/// If a sample names a location that the profile does not have.
pub fn write(profile: &Profile, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    let count = (profile.sample_types.iter())
        .position(|kind| kind.kind == "samples" && kind.unit == "count")
        .ok_or_else(|| unwritable("it has no values of type samples/count"))?;
    let period = u64::try_from(profile.period)
        .unwrap_or(0)
        .saturating_add(500)
        / 1000;
    if period == 0 || profile.period_type.unit != "nanoseconds" {
        return Err(unwritable("its period is not a number of microseconds"));
    }
    let mut pseudo = Pseudo::default();
    let mut words = vec![0, 3, 0, period, 0];
    for sample in &profile.samples {
        let value = sample.values.get(count).copied().unwrap_or(0);
        let Some(value) = u64::try_from(value).ok().filter(|value| *value > 0) else {
            continue;
        };
        words.extend([value, sample.locations.len().max(1) as u64]);
        for (depth, &index) in sample.locations.iter().enumerate() {
            let address = pseudo.address(profile, &profile.locations[index]);
            words.push(address.wrapping_add(u64::from(depth > 0)));
        }
        if sample.locations.is_empty() {
            words.push(pseudo.named(UNKNOWN));
        }
    }
    words.extend([0, 1, 0]);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    out.write_all(&bytes)?;
    out.write_all(maps(profile, &pseudo).as_bytes())?;
    out.flush()
}

fn unwritable(why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        Error::option(format!(
            "writing a profile in the legacy CPU format: {why}; write it as profile.proto"
        )),
    )
}

/// The lines of `/proc/self/maps` that give code its file, and pseudo-frames their name.
fn maps(profile: &Profile, pseudo: &Pseudo<'_>) -> String {
    let mut text = String::new();
    let mut line = |start: u64, limit: u64, offset: u64, name: &str| {
        // A line break in a name would start another line; the kernel writes it so.
        let name = name.replace('\n', "\\012");
        let _ = writeln!(
            text,
            "{start:08x}-{limit:08x} r-xp {offset:08x} 00:00 0 {name}"
        );
    };
    for mapping in &profile.mappings {
        line(
            mapping.start,
            mapping.limit,
            mapping.file_offset,
            &mapping.filename,
        );
    }
    for (index, name) in pseudo.names.iter().enumerate() {
        let start = pseudo_address(index);
        line(start, start + PSEUDO_SIZE, 0, name);
    }
    text
}

/// The pseudo-frames of a profile, in the order in which they got an address.
#[derive(Default)]
struct Pseudo<'a> {
    names: Vec<&'a str>,
    addresses: HashMap<&'a str, u64>,
}

impl<'a> Pseudo<'a> {
    fn address(&mut self, profile: &'a Profile, location: &Location) -> u64 {
        if location.mapping.is_some() || location.address != 0 {
            return location.address;
        }
        let name = (location.lines.first())
            .and_then(|line| profile.functions.get(line.function))
            .map_or("", |function| function.name.as_str());
        self.named(if name.is_empty() { UNKNOWN } else { name })
    }

    fn named(&mut self, name: &'a str) -> u64 {
        *self.addresses.entry(name).or_insert_with(|| {
            self.names.push(name);
            pseudo_address(self.names.len() - 1)
        })
    }
}

fn pseudo_address(index: usize) -> u64 {
    PSEUDO_BASE + index as u64 * PSEUDO_SIZE
}
