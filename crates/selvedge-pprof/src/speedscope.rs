//! The file format of <https://www.speedscope.app>: a flame graph for each thread.
//!
//! Schema: <https://www.speedscope.app/file-format-schema.json>.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use serde::Serialize;

use crate::error::Error;
use crate::frame;
use crate::model::{LabelValue, Profile, Sample};

const SCHEMA: &str = "https://www.speedscope.app/file-format-schema.json";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    name: &'a str,
    exporter: &'static str,
    shared: Shared,
    profiles: Vec<Thread>,
}

#[derive(Serialize)]
struct Shared {
    frames: Vec<Frame>,
}

#[derive(Serialize, PartialEq, Eq, Hash, Clone)]
struct Frame {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    col: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Thread {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    unit: &'static str,
    start_value: i64,
    end_value: i64,
    /// Indices of frames, root first.
    samples: Vec<Vec<usize>>,
    weights: Vec<i64>,
}

/// Writes the values of type `sample_index` for speedscope.
///
/// There is one flame graph for each thread if samples have a label `thread` (text) or `tid` (number), else one in all.
/// Samples carry no time, so their order means nothing: look at *Left Heavy*. The format has no negative values;
/// samples with one, or with 0, are left out. Take `sample_index` from [`Profile::sample_index`].
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
    let sample_type = profile.sample_types.get(sample_index).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            Error::option(format!(
                "writing a profile for speedscope: there is no sample type {sample_index}, only {}; use one of these",
                profile.sample_types.len()
            )),
        )
    })?;
    let unit = match sample_type.unit.as_str() {
        "nanoseconds" => "nanoseconds",
        "microseconds" => "microseconds",
        "milliseconds" => "milliseconds",
        "seconds" => "seconds",
        "bytes" => "bytes",
        _ => "none",
    };
    let program = profile
        .mappings
        .first()
        .map_or("", |mapping| frame::base(&mapping.filename));
    let (frames, of_location) = frames(profile);
    let mut threads: BTreeMap<(Option<&str>, Option<i64>), Thread> = BTreeMap::new();
    for sample in &profile.samples {
        let value = sample.values.get(sample_index).copied().unwrap_or(0);
        if value <= 0 {
            continue;
        }
        let key = (text(sample, "thread"), number(sample, "tid"));
        let thread = threads.entry(key).or_insert_with(|| Thread {
            kind: "sampled",
            name: thread_name(key, program),
            unit,
            start_value: 0,
            end_value: 0,
            samples: Vec::new(),
            weights: Vec::new(),
        });
        let stack = sample
            .locations
            .iter()
            .rev()
            .flat_map(|&index| of_location[index].iter().rev());
        thread.samples.push(stack.copied().collect());
        thread.weights.push(value);
        thread.end_value = thread.end_value.saturating_add(value);
    }
    let file = File {
        schema: SCHEMA,
        name: program,
        exporter: concat!("selvedge@", env!("CARGO_PKG_VERSION")),
        shared: Shared { frames },
        profiles: threads.into_values().collect(),
    };
    serde_json::to_writer(&mut *out, &file)?;
    out.flush()
}

/// All frames, and the indices of those at each location, innermost first.
fn frames(profile: &Profile) -> (Vec<Frame>, Vec<Vec<usize>>) {
    let mut indices: HashMap<Frame, usize> = HashMap::new();
    let mut frames = Vec::new();
    let of_location = (profile.locations.iter())
        .map(|location| {
            let positions = location.lines.iter().map(Some).chain([None]);
            (frame::names(profile, location).into_iter().zip(positions))
                .map(|(name, line)| {
                    let function = line.and_then(|line| profile.functions.get(line.function));
                    let frame = Frame {
                        name,
                        file: function
                            .map(|function| function.filename.clone())
                            .filter(|file| !file.is_empty()),
                        line: line.map(|line| line.line).filter(|line| *line > 0),
                        col: line.map(|line| line.column).filter(|column| *column > 0),
                    };
                    *indices.entry(frame).or_insert_with_key(|frame| {
                        frames.push(frame.clone());
                        frames.len() - 1
                    })
                })
                .collect()
        })
        .collect();
    (frames, of_location)
}

fn thread_name(thread: (Option<&str>, Option<i64>), program: &str) -> String {
    match thread {
        (Some(name), Some(tid)) => format!("{name} ({tid})"),
        (Some(name), None) => name.to_owned(),
        (None, Some(tid)) => format!("thread {tid}"),
        (None, None) => program.to_owned(),
    }
}

fn text<'a>(sample: &'a Sample, key: &str) -> Option<&'a str> {
    sample.labels.iter().find_map(|label| match &label.value {
        LabelValue::Text(text) if label.key == key => Some(text.as_str()),
        _ => None,
    })
}

fn number(sample: &Sample, key: &str) -> Option<i64> {
    sample.labels.iter().find_map(|label| match label.value {
        LabelValue::Number(number, _) if label.key == key => Some(number),
        _ => None,
    })
}
