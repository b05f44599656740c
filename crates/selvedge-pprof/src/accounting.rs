//! What of a profile is stacks, and what only accounts for time in which none could be recorded.

use crate::error::Error;
use crate::model::{Profile, Sample};

/// The value that a thread had left when it ended: less than a period of each thread.
pub const UNSAMPLED: &str = "[unsampled]";

/// The value of time in which a thread had the profiling signal blocked.
pub const SIGNALS_BLOCKED: &str = "[signals blocked]";

/// How the names of rows for samples that were lost begin; what follows says why.
pub const LOST_PREFIX: &str = "[lost";

/// Whether `function` names a row that accounts for values without a stack.
#[must_use]
pub fn is_accounting_row(function: &str) -> bool {
    function == UNSAMPLED || function == SIGNALS_BLOCKED || function.starts_with(LOST_PREFIX)
}

impl Profile {
    /// Returns the sum of all values of type `index`, and the same without [accounting rows](is_accounting_row).
    ///
    /// As in pprof, a negative value counts as its magnitude. Both are 0 if there is no such type.
    #[must_use]
    pub fn accounted(&self, index: usize) -> (i64, i64) {
        let mut total = 0_i64;
        let mut sampled = 0_i64;
        for sample in &self.samples {
            let value = sample
                .values
                .get(index)
                .map_or(0, |value| value.saturating_abs());
            total = total.saturating_add(value);
            if !self.leaf_name(sample).is_some_and(is_accounting_row) {
                sampled = sampled.saturating_add(value);
            }
        }
        (total, sampled)
    }

    fn leaf_name(&self, sample: &Sample) -> Option<&str> {
        let location = self.locations.get(*sample.locations.first()?)?;
        let function = self.functions.get(location.lines.first()?.function)?;
        Some(&function.name)
    }

    /// Returns the index of the sample type called `name`, or numbered so.
    ///
    /// An empty name stands for the default: [`default_sample_type`](Self::default_sample_type), or the last.
    ///
    /// # Errors
    ///
    /// If there is no such sample type, or none at all.
    pub fn sample_index(&self, name: &str) -> Result<usize, Error> {
        let named = |name: &str| self.sample_types.iter().position(|kind| kind.kind == name);
        let found = if name.is_empty() {
            named(&self.default_sample_type).or_else(|| self.sample_types.len().checked_sub(1))
        } else if let Ok(index) = name.parse() {
            Some(index).filter(|index| *index < self.sample_types.len())
        } else {
            named(name)
        };
        found.ok_or_else(|| {
            let known: Vec<_> = self.sample_types.iter().map(|kind| kind.kind.as_str()).collect();
            Error::option(format!(
                "selecting the sample type {name:?}: the profile has [{}]; use one of these, or its number from 0",
                known.join(" ")
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProfileBuilder;
    use crate::model::{Function, Line, Location, ValueType};

    fn profile() -> Profile {
        let kind = |kind: &str| ValueType {
            kind: kind.into(),
            unit: String::new(),
        };
        let mut builder = ProfileBuilder::new(vec![kind("samples"), kind("cpu")]);
        for (name, value) in [
            ("main", 100),
            (UNSAMPLED, 20),
            (SIGNALS_BLOCKED, 3),
            ("[lost: table full]", -4),
        ] {
            let function = builder.function(Function {
                name: name.into(),
                ..Function::default()
            });
            let location = builder.location(Location {
                lines: vec![Line {
                    function,
                    ..Line::default()
                }],
                ..Location::default()
            });
            builder.sample(&[location], &[1, value], &[]);
        }
        builder.sample(&[], &[1, 1000], &[]);
        builder.finish()
    }

    #[test]
    fn totals_are_given_with_and_without_accounting_rows() {
        assert_eq!(profile().accounted(1), (1127, 1100));
        assert_eq!(profile().accounted(0), (5, 2));
        assert_eq!(profile().accounted(2), (0, 0));
    }

    #[test]
    fn sample_types_are_found_by_name_and_number() {
        let mut profile = profile();
        assert_eq!(profile.sample_index("").unwrap(), 1);
        profile.default_sample_type = "samples".into();
        assert_eq!(profile.sample_index("").unwrap(), 0);
        profile.default_sample_type = "gone".into();
        assert_eq!(profile.sample_index("").unwrap(), 1);
        assert_eq!(profile.sample_index("samples").unwrap(), 0);
        assert_eq!(profile.sample_index("1").unwrap(), 1);
        for wrong in ["2", "-1", "wall"] {
            let error = profile.sample_index(wrong).unwrap_err();
            assert!(error.is_option());
            assert!(error.to_string().contains("[samples cpu]"), "{error}");
        }
        assert!(Profile::default().sample_index("").is_err());
    }
}
