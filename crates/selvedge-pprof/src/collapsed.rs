//! Collapsed stacks: a line `root;…;leaf value` for each, which flame graph tools read.
//!
//! Values of another type than `samples`/`count` are preceded by a line that keeps their type and unit,
//! `# selvedge: cpu nanoseconds`. It does not end in a number, so other tools leave it out, some with a remark.
//!
//! A name may contain anything but this format has three characters of its own, so in names `;` is written `\x3b`, a
//! line break `\x0a` or `\x0d`, and a backslash `\x5c`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::builder::ProfileBuilder;
use crate::error::Error;
use crate::frame;
use crate::model::{Function, Line, Location, Profile, ValueType};

/// The escaped characters, and how they are written.
const ESCAPES: [(char, &str); 4] = [
    (';', r"\x3b"),
    ('\n', r"\x0a"),
    ('\r', r"\x0d"),
    ('\\', r"\x5c"),
];

/// What the line with the type of the values starts with.
const TYPE_MARK: &str = "# selvedge: ";

/// Writes the values of type `sample_index` as collapsed stacks, sorted by stack.
///
/// Inlined functions are frames like others; equal stacks of functions become one line, and a stack whose value is 0
/// none. Take `sample_index` from [`Profile::sample_index`].
///
/// # Errors
///
/// Those of `out`; and [`InvalidInput`](io::ErrorKind::InvalidInput) if there is no such sample type.
///
/// # Panics
///
/// If a sample names a location that `profile` does not have.
pub fn write(
    profile: &Profile,
    sample_index: usize,
    out: &mut (impl Write + ?Sized),
) -> io::Result<()> {
    if sample_index >= profile.sample_types.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            Error::option(format!(
                "writing collapsed stacks: there is no sample type {sample_index}, only {}; use one of these",
                profile.sample_types.len()
            )),
        ));
    }
    let ValueType { kind, unit } = &profile.sample_types[sample_index];
    let is_word = |text: &str| {
        !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    if (kind.as_str(), unit.as_str()) != ("samples", "count")
        && is_word(kind)
        && is_word(unit)
        && unit.parse::<i64>().is_err()
    {
        writeln!(out, "{TYPE_MARK}{kind} {unit}")?;
    }
    // What each location adds to a stack: its frames from the outermost, each with a separator.
    let frames: Vec<String> = (profile.locations.iter())
        .map(|location| {
            let mut frames = String::new();
            for name in frame::names(profile, location).iter().rev() {
                frames.push(';');
                frames.push_str(&escape(name));
            }
            frames
        })
        .collect();
    let mut stacks: BTreeMap<String, i64> = BTreeMap::new();
    for sample in &profile.samples {
        let stack: String = (sample.locations.iter().rev())
            .map(|&index| frames[index].as_str())
            .collect();
        let value = sample.values.get(sample_index).copied().unwrap_or(0);
        let sum = stacks.entry(stack).or_default();
        *sum = sum.saturating_add(value);
    }
    for (stack, value) in stacks.iter().filter(|(_, value)| **value != 0) {
        writeln!(out, "{} {value}", stack.strip_prefix(';').unwrap_or(stack))?;
    }
    out.flush()
}

/// Reads collapsed stacks, as values of the type that the first line tells, or `samples`/`count`. Equal stacks are added up.
///
/// # Errors
///
/// If a line does not end in a whole number.
pub fn read(bytes: &[u8]) -> Result<Profile, Error> {
    let text = String::from_utf8_lossy(bytes);
    let (kind, unit) = value_type(&text).unwrap_or(("samples", "count"));
    let mut builder = ProfileBuilder::new(vec![ValueType {
        kind: kind.into(),
        unit: unit.into(),
    }]);
    let told = usize::from(value_type(&text).is_some());
    for (number, line) in (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty())
        .skip(told)
    {
        let (stack, value) = stack_and_value(line).ok_or_else(|| {
                Error::malformed(format!(
                    "reading collapsed stacks: line {number} does not end in a space and a whole number; check that \
                     this is `root;…;leaf value`"
                ))
            })?;
        let frames = stack.split(';').rev().filter(|_| !stack.is_empty());
        let locations: Vec<usize> = frames.map(|name| location(&mut builder, name)).collect();
        builder.sample(&locations, &[value], &[]);
    }
    Ok(builder.finish())
}

/// Whether `bytes` look like this format: text (which `profile.proto` is not: its first string is empty, which is written
/// as a byte 0), with a number at the end of the first line that is not empty.
pub(crate) fn is_collapsed(bytes: &[u8]) -> bool {
    let first = bytes
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii_end)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    !bytes.contains(&0) && (stack_and_value(&first).is_some() || value_type(&first).is_some())
}

/// Type and unit of the values, where the first line that is not empty tells them.
fn value_type(text: &str) -> Option<(&str, &str)> {
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    if stack_and_value(line).is_some() {
        return None;
    }
    line.trim_end().strip_prefix(TYPE_MARK)?.split_once(' ')
}

fn stack_and_value(line: &str) -> Option<(&str, i64)> {
    let (stack, value) = line.trim_end().rsplit_once(' ')?;
    Some((stack, value.parse().ok()?))
}

fn location(builder: &mut ProfileBuilder, name: &str) -> usize {
    let name = unescape(name);
    let function = builder.function(Function {
        system_name: name.to_string(),
        name: name.into_owned(),
        ..Function::default()
    });
    builder.location(Location {
        lines: vec![Line {
            function,
            ..Line::default()
        }],
        ..Location::default()
    })
}

fn escape(name: &str) -> Cow<'_, str> {
    if !name.contains(|char| ESCAPES.iter().any(|(special, _)| *special == char)) {
        return Cow::Borrowed(name);
    }
    let mut escaped = String::with_capacity(name.len() + 3);
    for char in name.chars() {
        match ESCAPES.iter().find(|(special, _)| *special == char) {
            Some((_, written)) => escaped.push_str(written),
            None => escaped.push(char),
        }
    }
    Cow::Owned(escaped)
}

/// Undoes [`escape`]; a backslash that it cannot have written stays.
fn unescape(name: &str) -> Cow<'_, str> {
    if !name.contains('\\') {
        return Cow::Borrowed(name);
    }
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let (char, written) = (ESCAPES.iter())
            .find(|(_, written)| rest.starts_with(written))
            .unwrap_or(&('\\', "\\"));
        plain.push(*char);
        rest = &rest[written.len()..];
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(text: &str) -> String {
        let mut out = Vec::new();
        write(&read(text.as_bytes()).unwrap(), 0, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn stacks_are_sorted_and_added_up() {
        assert_eq!(
            rewritten("b 1\na;b c 2\r\n\nb 3\na 0\n 7\n"),
            " 7\na;b c 2\nb 4\n"
        );
    }

    #[test]
    fn names_may_contain_anything() {
        let text = "a\\x3bb;c\\x0ad;e\\x5cx3bf 1\n";
        let profile = read(text.as_bytes()).unwrap();
        let names: Vec<_> = profile
            .functions
            .iter()
            .map(|function| function.name.as_str())
            .collect();
        assert_eq!(names, ["e\\x3bf", "c\nd", "a;b"]);
        assert_eq!(rewritten(text), text);
    }

    #[test]
    fn the_type_of_values_is_kept() {
        let text = "# selvedge: cpu nanoseconds\na;b 3\n";
        assert_eq!(rewritten(text), text);
        let profile = Profile::read(text.as_bytes()).unwrap();
        assert_eq!(profile.sample_types[0].kind, "cpu");
        assert_eq!(profile.sample_types[0].unit, "nanoseconds");
        // A stack that looks almost so.
        assert_eq!(rewritten("# selvedge: cpu 7\n"), "# selvedge: cpu 7\n");
        assert_eq!(
            Profile::read(b"# selvedge: cpu nanoseconds\n")
                .unwrap()
                .samples,
            []
        );
    }

    #[test]
    fn foreign_backslashes_stay() {
        let profile = read(b"C:\\x\\x5 1").unwrap();
        assert_eq!(profile.functions[0].name, "C:\\x\\x5");
    }

    #[test]
    fn a_line_without_number_is_named() {
        for text in ["a 1\nb", "a 1\nb x", "a 1\n7"] {
            let error = read(text.as_bytes()).unwrap_err();
            assert!(error.is_malformed());
            assert!(error.to_string().contains("line 2"), "{error}");
        }
    }

    #[test]
    fn an_unknown_sample_type_is_refused() {
        let error = write(&Profile::default(), 0, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
