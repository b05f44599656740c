//! The `profile.proto` format: what `go tool pprof` and its relatives read and write.

mod wire;

use std::collections::HashMap;
use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::error::Error;
use crate::model::{
    Function, Label, LabelValue, Line, Location, Mapping, Profile, Sample, ValueType,
};
use crate::{collapsed, legacy};

/// The longest profile that is decompressed, in bytes.
const MAX_DECOMPRESSED: u64 = 512 << 20;

/// The memory that decoded messages, and then the strings of the model, may each take, in bytes.
const MAX_DECODED: usize = 2 << 30;

impl Profile {
    /// Reads a profile: `profile.proto`, the legacy binary CPU format or collapsed stacks, each of them gzipped or not.
    ///
    /// Nothing in `bytes` can make this panic. A file that would need more than a few gigabytes of memory is refused.
    /// Text that is not UTF-8 gets U+FFFD in the place of what is wrong.
    ///
    /// # Errors
    ///
    /// If `bytes` is of no such format, contradicts itself, or is too large.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        if !bytes.starts_with(&[0x1f, 0x8b]) {
            return read_plain(bytes);
        }
        let plain = decompress(bytes, MAX_DECOMPRESSED)?;
        read_plain(&plain)
    }

    /// Writes the profile as gzipped `profile.proto`, the usual `.pb.gz`.
    ///
    /// Equal profiles make equal bytes.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write(&self, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let mut gzip = GzEncoder::new(out, Compression::default());
        gzip.write_all(&self.encode())?;
        gzip.finish()?.flush()
    }

    /// Returns the profile as plain `profile.proto`, without gzip.
    ///
    /// The format cannot tell a text label that is empty from a number that is 0.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Encoder::default().profile(self).encode_to_vec()
    }
}

/// Returns what `bytes` decompress to, if it is no longer than `limit`.
fn decompress(bytes: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
    let mut plain = Vec::new();
    MultiGzDecoder::new(bytes)
        .take(limit + 1)
        .read_to_end(&mut plain)
        .map_err(|error| {
            Error::malformed(
                "reading a profile: its gzip data is damaged or cut off; fetch the file again",
            )
            .caused_by(error)
        })?;
    if plain.len() as u64 > limit {
        return Err(Error::too_large(format!(
            "reading a profile: it decompresses to more than {limit} bytes; record for a shorter time"
        )));
    }
    Ok(plain)
}

fn read_plain(bytes: &[u8]) -> Result<Profile, Error> {
    if bytes.is_empty() {
        return Err(Error::malformed(
            "reading a profile: it is empty; was the program that wrote it stopped too early?",
        ));
    }
    if legacy::is_legacy(bytes) {
        return legacy::read(bytes);
    }
    if collapsed::is_collapsed(bytes) {
        return collapsed::read(bytes);
    }
    for (mark, name) in [("{", "JSON"), ("<", "HTML")] {
        if bytes.trim_ascii_start().starts_with(mark.as_bytes()) {
            return Err(Error::malformed(format!(
                "reading a profile: it is {name}, which can be written only; read the profile that it was made from"
            )));
        }
    }
    check_decoded_size(bytes, MAX_DECODED).map_err(|()| {
        Error::too_large(format!(
            "reading a profile: decoded, it would take more than {MAX_DECODED} bytes; record for a shorter time"
        ))
    })?;
    let message = wire::Profile::decode(bytes).map_err(|error| {
        Error::malformed(
            "reading a profile: it is neither profile.proto, the legacy CPU format nor collapsed stacks; check that this is a profile",
        )
        .caused_by(error)
    })?;
    Decoder::new(&message).profile(&message)
}

/// Walks the outermost fields and adds up what decoding them can allocate at most, without allocating.
///
/// Two bytes on the wire can be an empty message, whose struct is the largest factor by far. Malformed bytes end the
/// walk: decoding stops there too, with a better message.
fn check_decoded_size(mut bytes: &[u8], limit: usize) -> Result<(), ()> {
    const OUTER: usize = size_of::<wire::Sample>();
    const _: () =
        assert!(OUTER >= size_of::<wire::Mapping>() && OUTER >= size_of::<wire::Location>());
    /// The label is the largest message inside a message: 2 bytes to 32.
    const INNER_FACTOR: usize = size_of::<wire::Label>() / 2;
    let mut left = limit;
    while !bytes.is_empty() {
        let Ok((tag, wire_type)) = decode_key(&mut bytes) else {
            return Ok(());
        };
        let cost = if wire_type == WireType::LengthDelimited {
            let Ok(len) = decode_varint(&mut bytes) else {
                return Ok(());
            };
            let Some((field, rest)) = usize::try_from(len)
                .ok()
                .and_then(|len| bytes.split_at_checked(len))
            else {
                return Ok(());
            };
            bytes = rest;
            OUTER.saturating_add(field.len().saturating_mul(INNER_FACTOR))
        } else {
            if skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).is_err() {
                return Ok(());
            }
            size_of::<i64>()
        };
        left = left.checked_sub(cost).ok_or(())?;
    }
    Ok(())
}

/// From messages to the model.
struct Decoder<'a> {
    strings: &'a [Vec<u8>],
    /// Bytes of text that may still be copied: one long string can be named by each of many messages.
    left: usize,
}

impl<'a> Decoder<'a> {
    fn new(message: &'a wire::Profile) -> Self {
        Self {
            strings: &message.string_table,
            left: MAX_DECODED,
        }
    }

    fn profile(&mut self, message: &wire::Profile) -> Result<Profile, Error> {
        if self.strings.first().is_some_and(|first| !first.is_empty()) {
            return Err(contradiction("string 0 is not empty"));
        }
        let mut profile = Profile {
            sample_types: (message.sample_type.iter())
                .map(|message| self.value_type(message))
                .collect::<Result<_, _>>()?,
            default_sample_type: self.string(message.default_sample_type)?,
            period_type: self.value_type(&message.period_type.unwrap_or_default())?,
            period: message.period,
            time_nanos: message.time_nanos,
            duration_nanos: message.duration_nanos,
            comments: (message.comment.iter())
                .map(|&index| self.string(index))
                .collect::<Result<_, _>>()?,
            drop_frames: self.string(message.drop_frames)?,
            keep_frames: self.string(message.keep_frames)?,
            doc_url: self.string(message.doc_url)?,
            ..Profile::default()
        };
        if profile.sample_types.is_empty() && !message.sample.is_empty() {
            return Err(contradiction("it has samples but no sample types"));
        }
        let mut mappings = Ids::new("mapping");
        for message in &message.mapping {
            mappings.add(message.id)?;
            profile.mappings.push(self.mapping(message)?);
        }
        let mut functions = Ids::new("function");
        for message in &message.function {
            functions.add(message.id)?;
            profile.functions.push(self.function(message)?);
        }
        let mut locations = Ids::new("location");
        for message in &message.location {
            locations.add(message.id)?;
            let location = location(message, &mappings, &functions, &mut profile.functions)?;
            profile.locations.push(location);
        }
        for message in &message.sample {
            let sample = self.sample(message, &locations, profile.sample_types.len())?;
            profile.samples.push(sample);
        }
        Ok(profile)
    }

    fn string(&mut self, index: i64) -> Result<String, Error> {
        if index == 0 {
            return Ok(String::new());
        }
        let bytes = (usize::try_from(index)
            .ok()
            .and_then(|index| self.strings.get(index)))
        .ok_or_else(|| {
            contradiction(format!("it names string {index} of {}", self.strings.len()))
        })?;
        self.left = self.left.checked_sub(bytes.len()).ok_or_else(|| {
            Error::too_large(format!(
                "reading a profile: its names would take more than {MAX_DECODED} bytes; record for a shorter time"
            ))
        })?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn value_type(&mut self, message: &wire::ValueType) -> Result<ValueType, Error> {
        Ok(ValueType {
            kind: self.string(message.kind)?,
            unit: self.string(message.unit)?,
        })
    }

    fn mapping(&mut self, message: &wire::Mapping) -> Result<Mapping, Error> {
        Ok(Mapping {
            start: message.memory_start,
            limit: message.memory_limit,
            file_offset: message.file_offset,
            filename: self.string(message.filename)?,
            build_id: self.string(message.build_id)?,
            has_functions: message.has_functions,
            has_filenames: message.has_filenames,
            has_line_numbers: message.has_line_numbers,
            has_inline_frames: message.has_inline_frames,
        })
    }

    fn function(&mut self, message: &wire::Function) -> Result<Function, Error> {
        Ok(Function {
            name: self.string(message.name)?,
            system_name: self.string(message.system_name)?,
            filename: self.string(message.filename)?,
            start_line: message.start_line,
        })
    }

    fn sample(
        &mut self,
        message: &wire::Sample,
        locations: &Ids,
        values: usize,
    ) -> Result<Sample, Error> {
        if message.value.len() != values {
            return Err(contradiction(format!(
                "a sample has {} values for {values} sample types",
                message.value.len()
            )));
        }
        Ok(Sample {
            locations: (message.location_id.iter())
                .map(|&id| locations.index(id))
                .collect::<Result<_, _>>()?,
            values: message.value.clone(),
            labels: (message.label.iter())
                .map(|message| self.label(message))
                .collect::<Result<_, _>>()?,
        })
    }

    fn label(&mut self, message: &wire::Label) -> Result<Label, Error> {
        Ok(Label {
            key: self.string(message.key)?,
            value: if message.text != 0 {
                LabelValue::Text(self.string(message.text)?)
            } else {
                LabelValue::Number(message.number, self.string(message.unit)?)
            },
        })
    }
}

fn location(
    message: &wire::Location,
    mappings: &Ids,
    functions: &Ids,
    table: &mut Vec<Function>,
) -> Result<Location, Error> {
    let mut lines = Vec::with_capacity(message.line.len());
    for line in &message.line {
        let function = if line.function_id == 0 {
            // A line of no function: it gets one without a name, which is what other readers show.
            nameless(table, functions.len())
        } else {
            functions.index(line.function_id)?
        };
        lines.push(Line {
            function,
            line: line.line,
            column: line.column,
        });
    }
    Ok(Location {
        mapping: match message.mapping_id {
            0 => None,
            id => Some(mappings.index(id)?),
        },
        address: message.address,
        lines,
        is_folded: message.is_folded,
    })
}

/// The function without a name that follows the `known` ones.
fn nameless(table: &mut Vec<Function>, known: usize) -> usize {
    if table.len() == known {
        table.push(Function::default());
    }
    known
}

/// Ids of one kind of message, to indices in the order in which they came.
struct Ids {
    what: &'static str,
    indices: HashMap<u64, usize>,
}

impl Ids {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            indices: HashMap::new(),
        }
    }

    fn len(&self) -> usize {
        self.indices.len()
    }

    fn add(&mut self, id: u64) -> Result<(), Error> {
        if id == 0 {
            return Err(contradiction(format!("a {} has the id 0", self.what)));
        }
        let index = self.indices.len();
        match self.indices.insert(id, index) {
            None => Ok(()),
            Some(_) => Err(contradiction(format!(
                "two {}s have the id {id}",
                self.what
            ))),
        }
    }

    fn index(&self, id: u64) -> Result<usize, Error> {
        (self.indices.get(&id).copied()).ok_or_else(|| {
            contradiction(format!(
                "it names {} {id}, which it does not contain",
                self.what
            ))
        })
    }
}

fn contradiction(what: impl std::fmt::Display) -> Error {
    Error::malformed(format!(
        "reading a profile: {what}; the file is damaged, or the program that wrote it is faulty"
    ))
}

/// From the model to messages.
#[derive(Default)]
struct Encoder<'a> {
    strings: Vec<&'a str>,
    indices: HashMap<&'a str, i64>,
}

impl<'a> Encoder<'a> {
    fn string(&mut self, string: &'a str) -> i64 {
        if string.is_empty() {
            return 0;
        }
        *self.indices.entry(string).or_insert_with(|| {
            self.strings.push(string);
            self.strings.len() as i64
        })
    }

    fn profile(mut self, profile: &'a Profile) -> wire::Profile {
        let mut message = wire::Profile {
            sample_type: (profile.sample_types.iter())
                .map(|kind| self.value_type(kind))
                .collect(),
            period_type: Some(self.value_type(&profile.period_type))
                .filter(|kind| *kind != wire::ValueType::default()),
            sample: (profile.samples.iter())
                .map(|sample| self.sample(sample))
                .collect(),
            mapping: (1..)
                .zip(&profile.mappings)
                .map(|(id, mapping)| self.mapping(id, mapping))
                .collect(),
            location: (1..)
                .zip(&profile.locations)
                .map(|(id, location)| location_message(id, location))
                .collect(),
            function: (1..)
                .zip(&profile.functions)
                .map(|(id, function)| self.function(id, function))
                .collect(),
            string_table: Vec::new(),
            drop_frames: self.string(&profile.drop_frames),
            keep_frames: self.string(&profile.keep_frames),
            time_nanos: profile.time_nanos,
            duration_nanos: profile.duration_nanos,
            period: profile.period,
            comment: (profile.comments.iter())
                .map(|comment| self.string(comment))
                .collect(),
            default_sample_type: self.string(&profile.default_sample_type),
            doc_url: self.string(&profile.doc_url),
        };
        message.string_table.push(Vec::new());
        message
            .string_table
            .extend(self.strings.iter().map(|string| string.as_bytes().to_vec()));
        message
    }

    fn value_type(&mut self, kind: &'a ValueType) -> wire::ValueType {
        wire::ValueType {
            kind: self.string(&kind.kind),
            unit: self.string(&kind.unit),
        }
    }

    fn sample(&mut self, sample: &'a Sample) -> wire::Sample {
        wire::Sample {
            location_id: sample.locations.iter().map(|&index| id(index)).collect(),
            value: sample.values.clone(),
            label: sample
                .labels
                .iter()
                .map(|label| self.label(label))
                .collect(),
        }
    }

    fn label(&mut self, label: &'a Label) -> wire::Label {
        let key = self.string(&label.key);
        match &label.value {
            LabelValue::Text(text) => wire::Label {
                key,
                text: self.string(text),
                ..wire::Label::default()
            },
            LabelValue::Number(number, unit) => wire::Label {
                key,
                number: *number,
                unit: self.string(unit),
                ..wire::Label::default()
            },
        }
    }

    fn mapping(&mut self, id: u64, mapping: &'a Mapping) -> wire::Mapping {
        wire::Mapping {
            id,
            memory_start: mapping.start,
            memory_limit: mapping.limit,
            file_offset: mapping.file_offset,
            filename: self.string(&mapping.filename),
            build_id: self.string(&mapping.build_id),
            has_functions: mapping.has_functions,
            has_filenames: mapping.has_filenames,
            has_line_numbers: mapping.has_line_numbers,
            has_inline_frames: mapping.has_inline_frames,
        }
    }

    fn function(&mut self, id: u64, function: &'a Function) -> wire::Function {
        wire::Function {
            id,
            name: self.string(&function.name),
            system_name: self.string(&function.system_name),
            filename: self.string(&function.filename),
            start_line: function.start_line,
        }
    }
}

fn location_message(location_id: u64, location: &Location) -> wire::Location {
    wire::Location {
        id: location_id,
        mapping_id: location.mapping.map_or(0, id),
        address: location.address,
        line: (location.lines.iter())
            .map(|line| wire::Line {
                function_id: id(line.function),
                line: line.line,
                column: line.column,
            })
            .collect(),
        is_folded: location.is_folded,
    }
}

/// The id of the thing at `index`; ids are 1-based.
fn id(index: usize) -> u64 {
    index as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> wire::Profile {
        wire::Profile {
            sample_type: vec![wire::ValueType { kind: 1, unit: 2 }],
            string_table: ["", "samples", "count"].map(Into::into).to_vec(),
            ..wire::Profile::default()
        }
    }

    fn error(message: &wire::Profile) -> String {
        Profile::read(&message.encode_to_vec())
            .unwrap_err()
            .to_string()
    }

    fn location(id: u64) -> wire::Location {
        wire::Location {
            id,
            ..wire::Location::default()
        }
    }

    fn sample(location_id: Vec<u64>, value: Vec<i64>) -> wire::Sample {
        wire::Sample {
            location_id,
            value,
            label: Vec::new(),
        }
    }

    #[test]
    fn contradictions_are_named() {
        let mut bad = message();
        bad.string_table[0] = b"x".to_vec();
        assert!(error(&bad).contains("string 0 is not empty"));

        let mut bad = message();
        bad.doc_url = 3;
        assert!(error(&bad).contains("string 3 of 3"));
        bad.doc_url = -1;
        assert!(error(&bad).contains("string -1 of 3"));

        let mut bad = message();
        bad.location = vec![location(5), location(5)];
        assert!(error(&bad).contains("two locations have the id 5"));
        bad.location = vec![location(0)];
        assert!(error(&bad).contains("a location has the id 0"));

        let mut bad = message();
        bad.sample = vec![sample(vec![9], vec![1])];
        assert!(error(&bad).contains("location 9"));
        bad.sample = vec![sample(vec![], vec![1, 2])];
        assert!(error(&bad).contains("2 values for 1 sample types"));
        bad.sample_type.clear();
        assert!(error(&bad).contains("no sample types"));
    }

    #[test]
    fn ids_may_be_any_numbers_in_any_order() {
        let mut message = message();
        message.location = vec![location(u64::MAX), location(7)];
        message.sample = vec![sample(vec![7, u64::MAX], vec![1])];
        let profile = Profile::read(&message.encode_to_vec()).unwrap();
        assert_eq!(profile.samples[0].locations, [1, 0]);
    }

    #[test]
    fn a_line_without_function_gets_a_nameless_one() {
        let mut message = message();
        message.location = vec![location(1), location(2)];
        for location in &mut message.location {
            location.line.push(wire::Line {
                line: 3,
                ..wire::Line::default()
            });
        }
        let profile = Profile::read(&message.encode_to_vec()).unwrap();
        assert_eq!(profile.functions, [Function::default()]);
        assert_eq!(profile.locations[1].lines[0].function, 0);
    }

    #[test]
    fn names_that_are_not_utf8_are_kept_as_far_as_possible() {
        let mut message = message();
        message.string_table.push(b"/tmp/\xff".to_vec());
        message.mapping = vec![wire::Mapping {
            id: 1,
            filename: 3,
            ..wire::Mapping::default()
        }];
        let profile = Profile::read(&message.encode_to_vec()).unwrap();
        assert_eq!(profile.mappings[0].filename, "/tmp/\u{fffd}");
    }

    #[test]
    fn one_long_name_used_often_is_refused() {
        let mut message = message();
        message.string_table.push(vec![b'x'; 1000]);
        message.comment = vec![3; 11];
        let mut decoder = Decoder::new(&message);
        decoder.left = 10_999;
        assert!(decoder.profile(&message).unwrap_err().is_too_large());
    }

    #[test]
    fn many_empty_messages_are_refused_before_they_are_decoded() {
        let bytes = [0x12, 0].repeat(1000);
        let decoded = 1000 * size_of::<wire::Sample>();
        assert!(check_decoded_size(&bytes, decoded).is_ok());
        assert!(check_decoded_size(&bytes, decoded - 1).is_err());
    }

    #[test]
    fn a_gzip_bomb_is_refused() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&[0; 1000]).unwrap();
        let bomb = gzip.finish().unwrap();
        assert_eq!(decompress(&bomb, 1000).unwrap(), [0; 1000]);
        assert!(decompress(&bomb, 999).unwrap_err().is_too_large());
    }

    #[test]
    fn what_is_not_a_profile_is_refused() {
        for bytes in [&b""[..], b"hello", b"\x1f\x8b", b"\x1f\x8bhello", &[0; 64]] {
            assert!(
                Profile::read(bytes).unwrap_err().is_malformed(),
                "{bytes:?}"
            );
        }
    }
}
