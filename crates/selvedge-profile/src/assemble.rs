//! From counts to a profile: names for addresses, pseudo-frames for what has no stack.

use crate::aggregate::{Counts, Frame, Owner};
use crate::modules::ModuleId;
use crate::summary::{ImageFacts, Summary};
use selvedge_pprof::model::{
    Function, Label, LabelValue, Line, Location, Mapping, Profile, ValueType,
};
use selvedge_pprof::{LOST_PREFIX, ProfileBuilder, SIGNALS_BLOCKED, UNSAMPLED};
use selvedge_sample::region::Loss;
use selvedge_symbol::{Module as ModuleImage, Options, Symbol, Symbolizer};
use selvedge_unwind::End;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

/// Everything that a profile is made from: a copy, so that recording goes on meanwhile.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) counts: Counts,
    pub(crate) images: HashMap<ModuleId, Arc<ModuleImage>>,
    pub(crate) summary: Summary,
    pub(crate) problems: Vec<String>,
    pub(crate) started: SystemTime,
}

/// Names of frames, by index into [`Counts::frames`].
type Names = HashMap<u32, Vec<Symbol>>;

/// Makes the profile.
pub(crate) fn profile(material: &Material) -> Profile {
    let Material {
        counts, summary, ..
    } = material;
    let names = symbolize(material);
    let value = |kind: &str, unit: &str| ValueType {
        kind: kind.into(),
        unit: unit.into(),
    };
    let mut builder =
        ProfileBuilder::new(vec![value("samples", "count"), value("cpu", "nanoseconds")]);
    let mapping_ids = add_mappings(material, &names, &mut builder);

    let facts: HashMap<u32, &ImageFacts> = summary
        .images
        .iter()
        .map(|image| (image.serial, image))
        .collect();
    let mut locations: HashMap<u32, usize> = HashMap::new();
    let mut stacks: Vec<_> = counts.stacks.iter().collect();
    stacks.sort_by(|(a, _), (b, _)| (a.owner, &a.frames, a.end).cmp(&(b.owner, &b.frames, b.end)));
    for (stack, count) in stacks {
        let mut path: Vec<usize> = stack
            .frames
            .iter()
            .map(|&index| {
                *locations.entry(index).or_insert_with(|| {
                    let frame = counts.frames[index as usize];
                    let symbols = names.get(&index).map_or(&[][..], Vec::as_slice);
                    add_location(counts, frame, symbols, &mapping_ids, &mut builder)
                })
            })
            .collect();
        if let Some(mark) = mark(stack.end) {
            path.push(pseudo(&mut builder, &mark));
        }
        let labels = thread_labels(counts, facts.get(&stack.owner.image).copied(), stack.owner);
        builder.sample(
            &path,
            &[as_value(count.samples), as_value(count.nanos)],
            &labels,
        );
    }
    for image in &summary.images {
        let labels = process_labels(image);
        let mut row = |name: &str, samples: u64, nanos: u64| {
            if samples > 0 || nanos > 0 {
                let path = [pseudo(&mut builder, name)];
                builder.sample(&path, &[as_value(samples), as_value(nanos)], &labels);
            }
        };
        row(UNSAMPLED, 0, image.unsampled());
        row(SIGNALS_BLOCKED, 0, image.blocked);
        for cause in Loss::ALL {
            let (samples, nanos) = image.lost[cause as usize];
            row(&format!("{LOST_PREFIX}: {}]", cause.name()), samples, nanos);
        }
    }

    let mut profile = builder.finish();
    profile.default_sample_type = "cpu".into();
    profile.period_type = value("cpu", "nanoseconds");
    profile.period = as_value(summary.period);
    let since_epoch = material
        .started
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    profile.time_nanos = i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX);
    profile.duration_nanos = i64::try_from(summary.duration.as_nanos()).unwrap_or(i64::MAX);
    profile.comments = comments(material);
    profile
}

fn as_value(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The pseudo-frame at the root of a stack that could not be followed to its root.
fn mark(end: u8) -> Option<String> {
    match End::from_code(end) {
        Some(End::Root) => None,
        Some(end) => Some(format!("[truncated: {}]", end.name())),
        None => Some(LEFT_OUT.into()),
    }
}

fn pseudo(builder: &mut ProfileBuilder, name: &str) -> usize {
    let function = builder.function(Function {
        name: name.into(),
        system_name: name.into(),
        ..Function::default()
    });
    let lines = vec![Line {
        function,
        line: 0,
        column: 0,
    }];
    builder.location(Location {
        mapping: None,
        address: 0,
        lines,
        is_folded: false,
    })
}

/// Asks the symbolizer for all frames of a module at once: it then reads each part of the debug information once.
fn symbolize(material: &Material) -> Names {
    let counts = &material.counts;
    let mut by_module: BTreeMap<ModuleId, Vec<(u32, u64)>> = BTreeMap::new();
    for (frame, index) in counts.frames.iter().zip(0_u32..) {
        let Some(segment) = frame.segment.map(|id| &counts.segments[id as usize]) else {
            continue;
        };
        let Some(id) = segment.module else { continue };
        let Some(image) = material.images.get(&id) else {
            continue;
        };
        if let Some(svma) = image.svma(segment.file_offset + frame.offset) {
            by_module.entry(id).or_default().push((index, svma));
        }
    }
    let mut symbolizer = Symbolizer::new(Options::default());
    let mut names = Names::new();
    for (id, frames) in by_module {
        let svmas: Vec<u64> = frames.iter().map(|&(_, svma)| svma).collect();
        let symbols = symbolizer.symbolize(&material.images[&id], &svmas);
        names.extend(frames.iter().map(|&(index, _)| index).zip(symbols));
    }
    names
}

/// Adds the mappings that have samples, the main program's first. Gives back the index of each segment's.
fn add_mappings(
    material: &Material,
    names: &Names,
    builder: &mut ProfileBuilder,
) -> HashMap<u32, usize> {
    let Material {
        counts, summary, ..
    } = material;
    let mut used: BTreeSet<u32> = counts
        .frames
        .iter()
        .filter_map(|frame| frame.segment)
        .collect();
    // A program that only starts another, such as a wrapper script, may be in no sample: the next one is then the main one.
    let main = summary.images.iter().find_map(|image| {
        let starts = |name: &str| {
            image
                .name
                .starts_with(name.chars().take(15).collect::<String>().as_str())
        };
        let base = |id: &u32| {
            counts.segments[*id as usize]
                .name
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_string()
        };
        used.iter()
            .copied()
            .find(|id| starts(&base(id)) && counts.segments[*id as usize].name.starts_with('/'))
    });
    let mut order: Vec<u32> = main.into_iter().collect();
    if let Some(main) = main {
        used.remove(&main);
    }
    order.extend(used);
    let mut ids = HashMap::new();
    for id in order {
        let segment = &counts.segments[id as usize];
        let symbols = || {
            let frames = counts
                .frames
                .iter()
                .zip(0_u32..)
                .filter(move |(frame, _)| frame.segment == Some(id));
            frames.filter_map(|(_, index)| names.get(&index)).flatten()
        };
        let build_id = segment
            .module
            .and_then(|m| material.images.get(&m)?.build_id())
            .unwrap_or_default();
        let mapping = Mapping {
            start: segment.start,
            limit: segment.limit,
            file_offset: segment.file_offset,
            filename: segment.name.clone(),
            build_id,
            has_functions: symbols().next().is_some(),
            has_filenames: symbols().any(|symbol| symbol.file.is_some()),
            has_line_numbers: symbols().any(|symbol| symbol.line != 0),
            has_inline_frames: symbols().any(|symbol| symbol.inlined),
        };
        ids.insert(id, builder.mapping(mapping));
    }
    ids
}

/// The pseudo-frame of frames that are left out in the middle of a stack.
const LEFT_OUT: &str = "[truncated]";

fn add_location(
    counts: &Counts,
    frame: Frame,
    symbols: &[Symbol],
    mappings: &HashMap<u32, usize>,
    builder: &mut ProfileBuilder,
) -> usize {
    if frame == Frame::TRUNCATED {
        return pseudo(builder, LEFT_OUT);
    }
    let lines = symbols
        .iter()
        .map(|symbol| {
            let function = builder.function(Function {
                name: symbol.name.clone(),
                system_name: symbol.system_name.clone(),
                filename: symbol.file.clone().unwrap_or_default(),
                start_line: i64::from(symbol.start_line),
            });
            Line {
                function,
                line: i64::from(symbol.line),
                column: i64::from(symbol.column),
            }
        })
        .collect();
    let start = frame
        .segment
        .map_or(0, |id| counts.segments[id as usize].start);
    let mapping = frame.segment.and_then(|id| mappings.get(&id).copied());
    builder.location(Location {
        mapping,
        address: start.wrapping_add(frame.offset),
        lines,
        is_folded: false,
    })
}

fn text(key: &str, value: &str) -> Label {
    Label {
        key: key.into(),
        value: LabelValue::Text(value.into()),
    }
}

fn number(key: &str, value: u32) -> Label {
    Label {
        key: key.into(),
        value: LabelValue::Number(i64::from(value), String::new()),
    }
}

fn process_labels(image: &ImageFacts) -> Vec<Label> {
    vec![number("pid", image.pid), text("process", &image.name)]
}

fn thread_labels(counts: &Counts, image: Option<&ImageFacts>, owner: Owner) -> Vec<Label> {
    let mut labels = image.map(process_labels).unwrap_or_default();
    labels.push(number("tid", owner.tid));
    let process_name = image.map_or("", |image| image.name.as_str());
    labels.push(text(
        "thread",
        counts
            .thread_names
            .get(&owner)
            .map_or(process_name, String::as_str),
    ));
    labels
}

fn comments(material: &Material) -> Vec<String> {
    let summary = &material.summary;
    let engines: Vec<&str> = summary
        .engines()
        .into_iter()
        .map(selvedge_sample::region::Engine::name)
        .collect();
    let mut comments = vec![
        format!("recorded by selvedge {}", env!("CARGO_PKG_VERSION")),
        format!(
            "engine {}, asked {} Hz, achieved {:.1} Hz",
            engines.join("+"),
            summary.asked_rate(),
            summary.rate()
        ),
        format!(
            "{} samples cover {:.3} of {:.3} CPU seconds; {:.3} [unsampled], {:.3} [signals blocked]",
            summary.samples(),
            summary.recorded() as f64 / 1e9,
            summary.cpu() as f64 / 1e9,
            summary.unsampled() as f64 / 1e9,
            summary.blocked() as f64 / 1e9,
        ),
    ];
    if let Some(image) = summary
        .images
        .first()
        .filter(|image| !image.command.is_empty())
    {
        comments.push(format!("command: {}", image.command));
    }
    comments.extend(summary.remarks());
    comments.extend(material.problems.iter().cloned());
    comments
}
