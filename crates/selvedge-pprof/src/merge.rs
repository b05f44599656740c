//! Adding profiles up, as pprof does.
//!
//! Source: <https://github.com/google/pprof/blob/main/profile/merge.go>.

use std::collections::HashMap;

use crate::builder::ProfileBuilder;
use crate::error::Error;
use crate::model::{Line, Location, Mapping, Profile, ValueType};

/// What makes mappings of different processes the same one: everything but where they are. Length (in whole pages),
/// offset, and build id or else file.
type Key = (u64, u64, String);

impl Profile {
    /// Adds profiles up: samples with the same stack and labels become one.
    ///
    /// A file that was mapped at different addresses is one mapping, and addresses in it are as in the profile that
    /// has it first. The result starts when the first profile started, and lasts as long as all of them together. What
    /// of a profile as a whole cannot be added up (the frames to drop, the default type) is the first one's.
    ///
    /// # Errors
    ///
    /// If `profiles` is empty, or their sample types or period types are not all the same.
    ///
    /// # Panics
    ///
    /// If a profile names something that it does not have.
    pub fn merge(mut profiles: Vec<Self>) -> Result<Self, Error> {
        if profiles.len() == 1 {
            return Ok(profiles.remove(0));
        }
        let Some(first) = profiles.first() else {
            return Err(Error::option("merging profiles: there is none; name one"));
        };
        for other in &profiles {
            if other.sample_types != first.sample_types || other.period_type != first.period_type {
                return Err(Error::option(format!(
                    "merging profiles: one has values of [{}], another of [{}]; merge only profiles of the same kind",
                    types(first),
                    types(other)
                )));
            }
        }
        let mut builder = ProfileBuilder::new(first.sample_types.clone());
        let mut mappings = HashMap::new();
        for profile in &profiles {
            add(profile, &mut builder, &mut mappings);
        }
        let mut merged = builder.finish();
        merged
            .default_sample_type
            .clone_from(&first.default_sample_type);
        merged.period_type.clone_from(&first.period_type);
        merged.drop_frames.clone_from(&first.drop_frames);
        merged.keep_frames.clone_from(&first.keep_frames);
        let started = profiles.iter().map(|profile| profile.time_nanos);
        merged.time_nanos = started.filter(|time| *time != 0).min().unwrap_or(0);
        for profile in profiles {
            merged.period = merged.period.max(profile.period);
            merged.duration_nanos = merged.duration_nanos.saturating_add(profile.duration_nanos);
            if merged.doc_url.is_empty() {
                merged.doc_url = profile.doc_url;
            }
            for comment in profile.comments {
                if !merged.comments.contains(&comment) {
                    merged.comments.push(comment);
                }
            }
        }
        Ok(merged)
    }
}

fn types(profile: &Profile) -> String {
    let names = |kind: &ValueType| format!("{}/{}", kind.kind, kind.unit);
    let types: Vec<_> = profile.sample_types.iter().map(names).collect();
    types.join(" ")
}

fn add(profile: &Profile, builder: &mut ProfileBuilder, known: &mut HashMap<Key, (usize, u64)>) {
    // For each mapping: its index in the sum, and how far it is moved.
    let mappings: Vec<(usize, u64)> = (profile.mappings.iter())
        .map(|mapping| {
            let (index, start) = *known
                .entry(key(mapping))
                .or_insert_with(|| (builder.mapping(mapping.clone()), mapping.start));
            (index, start.wrapping_sub(mapping.start))
        })
        .collect();
    let functions: Vec<usize> = (profile.functions.iter())
        .map(|function| builder.function(function.clone()))
        .collect();
    let locations: Vec<usize> = (profile.locations.iter())
        .map(|location| {
            let mapping = location.mapping.map(|index| mappings[index]);
            let moved = mapping.map_or(0, |(_, moved)| moved);
            let lines = location.lines.iter().map(|line| Line {
                function: functions[line.function],
                ..*line
            });
            builder.location(Location {
                mapping: mapping.map(|(index, _)| index),
                address: location.address.wrapping_add(moved),
                lines: lines.collect(),
                is_folded: location.is_folded,
            })
        })
        .collect();
    let mut stack = Vec::new();
    for sample in &profile.samples {
        stack.clear();
        stack.extend(sample.locations.iter().map(|&index| locations[index]));
        builder.sample(&stack, &sample.values, &sample.labels);
    }
}

fn key(mapping: &Mapping) -> Key {
    const PAGE: u64 = 0x1000;
    let length = mapping.limit.wrapping_sub(mapping.start);
    let name = if mapping.build_id.is_empty() {
        &mapping.filename
    } else {
        &mapping.build_id
    };
    (length.div_ceil(PAGE), mapping.file_offset, name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collapsed;

    fn stacks(text: &str) -> Profile {
        collapsed::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn equal_stacks_are_added_up() {
        let merged = Profile::merge(vec![stacks("a;b 1\nc 2\n"), stacks("c 3\nd 4\n")]).unwrap();
        let mut text = Vec::new();
        collapsed::write(&merged, 0, &mut text).unwrap();
        assert_eq!(text, b"a;b 1\nc 5\nd 4\n");
    }

    #[test]
    fn a_file_at_two_addresses_is_one_mapping() {
        let at = |start: u64| {
            let mut builder = ProfileBuilder::new(vec![ValueType::default()]);
            let mapping = builder.mapping(Mapping {
                start,
                limit: start + 0x1800,
                build_id: "ab".into(),
                ..Mapping::default()
            });
            let location = builder.location(Location {
                mapping: Some(mapping),
                address: start + 0x10,
                ..Location::default()
            });
            builder.sample(&[location], &[1], &[]);
            builder.finish()
        };
        let merged = Profile::merge(vec![at(0x7f00_0000), at(0x5500_0000)]).unwrap();
        assert_eq!(merged.mappings.len(), 1);
        assert_eq!(merged.locations[0].address, 0x7f00_0010);
        assert_eq!(merged.samples[0].values, [2]);
    }

    #[test]
    fn facts_of_the_whole_are_united() {
        let mut first = stacks("a 1\n");
        (first.time_nanos, first.duration_nanos, first.period) = (9, 20, 5);
        first.comments = vec!["x".into()];
        let mut second = stacks("a 1\n");
        (second.time_nanos, second.duration_nanos, second.period) = (7, 30, 6);
        second.comments = vec!["x".into(), "y".into()];
        let merged = Profile::merge(vec![first, second]).unwrap();
        let numbers = (merged.time_nanos, merged.duration_nanos, merged.period);
        assert_eq!(numbers, (7, 50, 6));
        assert_eq!(merged.comments, ["x", "y"]);
    }

    #[test]
    fn values_that_cannot_be_added_are_refused() {
        let mut cpu = stacks("a 1\n");
        cpu.sample_types[0].unit = "nanoseconds".into();
        let error = Profile::merge(vec![stacks("a 1\n"), cpu]).unwrap_err();
        assert!(error.to_string().contains("samples/nanoseconds"), "{error}");
        assert!(Profile::merge(Vec::new()).unwrap_err().is_option());
    }
}
