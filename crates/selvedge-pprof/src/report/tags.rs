//! Selecting samples by their labels, in the language of pprof's `tagfocus` and `tagignore`.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use super::filter::compile;
use super::measurement::scale;
use crate::error::Error;
use crate::model::{LabelValue, Profile, Sample};

/// A condition on labels.
#[derive(Debug)]
pub(super) struct TagFilter {
    /// The key that a label must have; `None`: any.
    key: Option<String>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    /// The bounds, both included, and their unit.
    Range(Option<f64>, Option<f64>, String),
    Regexes(Vec<Regex>),
}

/// The units of numeric labels: of each key, the first that a sample names.
pub(super) type Units = HashMap<String, String>;

/// Finds the units of all numeric labels of `profile`.
pub(super) fn units(profile: &Profile) -> Units {
    let mut units = Units::new();
    for label in profile.samples.iter().flat_map(|sample| &sample.labels) {
        if let LabelValue::Number(_, unit) = &label.value {
            let known = units.entry(label.key.clone()).or_default();
            if known.is_empty() {
                known.clone_from(unit);
            }
        }
    }
    for (key, unit) in &mut units {
        if unit.is_empty() {
            let bytes = key == "alignment" || key == "request";
            *unit = if bytes {
                "bytes".to_owned()
            } else {
                key.clone()
            };
        }
    }
    units
}

impl TagFilter {
    /// Parses `option`, the value of the option called `name`; empty means no condition.
    pub(super) fn parse(name: &str, option: &str) -> Result<Option<Self>, Error> {
        if option.is_empty() {
            return Ok(None);
        }
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (Some(key.to_owned()).filter(|key| !key.is_empty()), value),
            None => (None, option),
        };
        let values = match range(name, value)? {
            Some(range) => range,
            None => Values::Regexes(
                (value.split(','))
                    .map(|regex| compile(name, regex))
                    .collect::<Result<_, _>>()?,
            ),
        };
        Ok(Some(Self { key, values }))
    }

    pub(super) fn matches(&self, sample: &Sample, units: &Units) -> bool {
        let of_key = |key: &str| self.key.as_deref().is_none_or(|wanted| wanted == key);
        match &self.values {
            Values::Range(low, high, unit) => sample.labels.iter().any(|label| match label.value {
                LabelValue::Number(value, _) if of_key(&label.key) => {
                    let (value, scaled_unit) =
                        scale(value, units.get(&label.key).map_or("", |unit| unit), unit);
                    scaled_unit == *unit
                        && low.is_none_or(|low| value >= low)
                        && high.is_none_or(|high| value <= high)
                }
                _ => false,
            }),
            Values::Regexes(regexes) => {
                let any = |regex: &Regex| {
                    sample.labels.iter().any(|label| match &label.value {
                        LabelValue::Text(text) if self.key.is_some() => {
                            of_key(&label.key) && regex.is_match(text)
                        }
                        LabelValue::Text(text) => regex.is_match(&format!("{}:{text}", label.key)),
                        LabelValue::Number(..) => false,
                    })
                };
                // With a key, one of the expressions is enough; without, each must match.
                if self.key.is_some() {
                    regexes.iter().any(any)
                } else {
                    regexes.iter().all(any)
                }
            }
        }
    }
}

/// Parses `32kb`, `:64kb`, `4mb:` or `12kb:64mb`; `None` if `text` is something else.
fn range(name: &str, text: &str) -> Result<Option<Values>, Error> {
    static BOUND: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new("^(?:([+-]?[0-9]+)([A-Za-z]+)?)?(:)?(?:([+-]?[0-9]+)([A-Za-z]+)?)?$").ok()
    });
    let Some(found) = BOUND.as_ref().and_then(|regex| regex.captures(text)) else {
        return Ok(None);
    };
    let number = |group: usize| {
        let parse = |digits: &str| {
            digits.parse::<i64>().map_err(|error| {
                Error::option(format!(
                    "reading the option {name}: the number {digits} is out of range; use a larger unit"
                ))
                .caused_by(error)
            })
        };
        found
            .get(group)
            .map(|digits| parse(digits.as_str()))
            .transpose()
    };
    let unit = |group: usize| found.get(group).map_or("", |unit| unit.as_str());
    let exact = found.get(3).is_none();
    Ok(match (number(1)?, number(4)?) {
        (Some(low), None) => {
            let (value, unit) = scale(low, unit(2), unit(2));
            Some(Values::Range(Some(value), exact.then_some(value), unit))
        }
        (None, Some(high)) if !exact => {
            let (value, unit) = scale(high, unit(5), unit(5));
            Some(Values::Range(None, Some(value), unit))
        }
        (Some(low), Some(high)) if !exact => {
            let (low, low_unit) = scale(low, unit(2), unit(2));
            let (high, high_unit) = scale(high, unit(5), &low_unit);
            (low_unit == high_unit).then_some(Values::Range(Some(low), Some(high), low_unit))
        }
        _ => None,
    })
}
