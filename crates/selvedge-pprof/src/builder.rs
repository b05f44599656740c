//! Putting a profile together: equal mappings, functions, locations and samples are stored once.

use std::collections::HashMap;
use std::hash::Hash;

use crate::model::{Function, Label, Location, Mapping, Profile, Sample, ValueType};

/// Collects a [`Profile`], storing equal things once.
///
/// Everything keeps the order in which it was first added, so equal calls make equal profiles. The first mapping added
/// should be the main program's: readers of `profile.proto` take it for that. What describes the profile as a whole
/// (period, times, comments) is set on the [`Profile`] that [`finish`](Self::finish) returns.
///
/// # Examples
///
/// ```
/// use selvedge_pprof::model::{Function, Line, Location, ValueType};
/// use selvedge_pprof::ProfileBuilder;
///
/// let samples = ValueType { kind: "samples".into(), unit: "count".into() };
/// let mut builder = ProfileBuilder::new(vec![samples]);
/// let function = builder.function(Function { name: "main".into(), ..Function::default() });
/// let location = builder.location(Location {
///     address: 0x1000,
///     lines: vec![Line { function, line: 3, column: 0 }],
///     ..Location::default()
/// });
/// builder.sample(&[location], &[1], &[]);
/// builder.sample(&[location], &[2], &[]);
/// let profile = builder.finish();
/// assert_eq!(profile.samples.len(), 1);
/// assert_eq!(profile.samples[0].values, [3]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct ProfileBuilder {
    profile: Profile,
    mappings: HashMap<MappingKey, usize>,
    functions: HashMap<Function, usize>,
    locations: HashMap<Location, usize>,
    samples: HashMap<(Vec<usize>, Vec<Label>), usize>,
}

/// What makes two mappings the same one: all but what is known about its symbols.
type MappingKey = (u64, u64, u64, String, String);

impl ProfileBuilder {
    /// Starts an empty profile whose samples have one value for each of `sample_types`.
    #[must_use]
    pub fn new(sample_types: Vec<ValueType>) -> Self {
        Self {
            profile: Profile {
                sample_types,
                ..Profile::default()
            },
            ..Self::default()
        }
    }

    /// Adds a mapping and returns its index.
    ///
    /// Two mappings are the same if their range, offset, file and build id are. The `has_*` flags of all of them are
    /// united, so they may be told later than the mapping itself, by adding it again.
    pub fn mapping(&mut self, mapping: Mapping) -> usize {
        let key = (
            mapping.start,
            mapping.limit,
            mapping.file_offset,
            mapping.filename.clone(),
            mapping.build_id.clone(),
        );
        if let Some(&index) = self.mappings.get(&key) {
            let known = &mut self.profile.mappings[index];
            known.has_functions |= mapping.has_functions;
            known.has_filenames |= mapping.has_filenames;
            known.has_line_numbers |= mapping.has_line_numbers;
            known.has_inline_frames |= mapping.has_inline_frames;
            return index;
        }
        let index = self.profile.mappings.len();
        self.profile.mappings.push(mapping);
        self.mappings.insert(key, index);
        index
    }

    /// Adds a function and returns its index.
    pub fn function(&mut self, function: Function) -> usize {
        intern(&mut self.functions, &mut self.profile.functions, function)
    }

    /// Adds a location and returns its index.
    ///
    /// # Panics
    ///
    /// If it names a mapping or a function that was not added.
    pub fn location(&mut self, location: Location) -> usize {
        assert!(
            location
                .mapping
                .is_none_or(|mapping| mapping < self.profile.mappings.len()),
            "a location names mapping {:?} of {}",
            location.mapping,
            self.profile.mappings.len()
        );
        for line in &location.lines {
            assert!(
                line.function < self.profile.functions.len(),
                "a location names function {} of {}",
                line.function,
                self.profile.functions.len()
            );
        }
        intern(&mut self.locations, &mut self.profile.locations, location)
    }

    /// Adds `values` to the sample with these `locations` (leaf first) and `labels`, in any order of the labels.
    ///
    /// Sums saturate.
    ///
    /// # Panics
    ///
    /// If there is not one value for each sample type, or a location was not added.
    pub fn sample(&mut self, locations: &[usize], values: &[i64], labels: &[Label]) {
        assert_eq!(
            values.len(),
            self.profile.sample_types.len(),
            "a sample needs one value for each sample type"
        );
        for &location in locations {
            assert!(
                location < self.profile.locations.len(),
                "a sample names location {location} of {}",
                self.profile.locations.len()
            );
        }
        let mut labels = labels.to_vec();
        labels.sort_by(|a, b| a.key.cmp(&b.key));
        let key = (locations.to_vec(), labels);
        if let Some(&index) = self.samples.get(&key) {
            for (sum, value) in self.profile.samples[index].values.iter_mut().zip(values) {
                *sum = sum.saturating_add(*value);
            }
            return;
        }
        let index = self.profile.samples.len();
        self.profile.samples.push(Sample {
            locations: key.0.clone(),
            values: values.to_vec(),
            labels: key.1.clone(),
        });
        self.samples.insert(key, index);
    }

    /// Returns the profile.
    #[must_use]
    pub fn finish(self) -> Profile {
        self.profile
    }
}

fn intern<T: Clone + Eq + Hash>(
    indices: &mut HashMap<T, usize>,
    table: &mut Vec<T>,
    item: T,
) -> usize {
    *indices.entry(item).or_insert_with_key(|item| {
        table.push(item.clone());
        table.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LabelValue, Line};

    fn count() -> Vec<ValueType> {
        vec![ValueType {
            kind: "samples".into(),
            unit: "count".into(),
        }]
    }

    fn number(key: &str, value: i64) -> Label {
        Label {
            key: key.into(),
            value: LabelValue::Number(value, String::new()),
        }
    }

    #[test]
    fn equal_things_are_stored_once() {
        let mut builder = ProfileBuilder::new(count());
        let function = |name: &str| Function {
            name: name.into(),
            ..Function::default()
        };
        let a = builder.function(function("a"));
        let b = builder.function(function("b"));
        assert_eq!(builder.function(function("a")), a);
        let location = |address, function| Location {
            address,
            lines: vec![Line {
                function,
                ..Line::default()
            }],
            ..Location::default()
        };
        let first = builder.location(location(1, a));
        let second = builder.location(location(1, b));
        assert_ne!(first, second);
        assert_eq!(builder.location(location(1, a)), first);
        assert_eq!(builder.finish().locations.len(), 2);
    }

    #[test]
    fn samples_differ_by_stack_and_labels_but_not_by_the_order_of_labels() {
        let mut builder = ProfileBuilder::new(count());
        let location = builder.location(Location::default());
        builder.sample(&[location], &[1], &[number("a", 1), number("b", 2)]);
        builder.sample(&[location], &[2], &[number("b", 2), number("a", 1)]);
        builder.sample(&[location], &[4], &[]);
        builder.sample(&[location, location], &[8], &[]);
        let values: Vec<_> = builder
            .finish()
            .samples
            .into_iter()
            .map(|s| s.values[0])
            .collect();
        assert_eq!(values, [3, 4, 8]);
    }

    #[test]
    fn sums_saturate() {
        let mut builder = ProfileBuilder::new(count());
        builder.sample(&[], &[i64::MAX], &[]);
        builder.sample(&[], &[1], &[]);
        assert_eq!(builder.finish().samples[0].values, [i64::MAX]);
    }

    #[test]
    fn flags_of_a_mapping_are_united() {
        let mut builder = ProfileBuilder::new(count());
        let plain = Mapping {
            start: 1,
            limit: 2,
            ..Mapping::default()
        };
        let named = Mapping {
            has_functions: true,
            ..plain.clone()
        };
        assert_eq!(builder.mapping(plain), builder.mapping(named));
        assert!(builder.finish().mappings[0].has_functions);
    }
}
