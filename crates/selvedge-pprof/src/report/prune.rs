//! Leaving out frames that the profile itself declares uninteresting.

use regex::Regex;

use crate::model::{Location, Profile};

/// Removes all frames below one that `drop_frames` matches and `keep_frames` does not, with that frame itself.
///
/// Frames next to the root stay if nothing else is left. A wrong expression removes nothing, as in pprof.
pub(super) fn prune(profile: &mut Profile) {
    if profile.drop_frames.is_empty() {
        return;
    }
    let whole = |regex: &str| Regex::new(&format!("^(?:{regex})$"));
    let Ok(drop) = whole(&profile.drop_frames) else {
        return;
    };
    let keep = if profile.keep_frames.is_empty() {
        None
    } else {
        match whole(&profile.keep_frames) {
            Ok(keep) => Some(keep),
            Err(_) => return,
        }
    };
    let dropped: Vec<bool> = (profile.functions.iter())
        .map(|function| {
            let name = simplified(&function.name);
            !name.is_empty()
                && drop.is_match(name)
                && !keep.as_ref().is_some_and(|keep| keep.is_match(name))
        })
        .collect();
    let cuts: Vec<Cut> = (profile.locations.iter_mut())
        .map(|location| cut(location, &dropped))
        .collect();
    for sample in &mut profile.samples {
        let mut in_program = false;
        for depth in (0..sample.locations.len()).rev() {
            match cuts.get(sample.locations[depth]).unwrap_or(&Cut::Nothing) {
                Cut::Nothing => in_program = true,
                Cut::Whole if in_program => {
                    sample.locations.drain(..=depth);
                    break;
                }
                Cut::Below if in_program => {
                    sample.locations.drain(..depth);
                    break;
                }
                Cut::Whole | Cut::Below => {}
            }
        }
    }
}

/// What goes where a location is in a stack.
#[derive(Clone, Copy)]
enum Cut {
    Nothing,
    /// The location, and all below.
    Whole,
    /// All below; of the location, its inner lines are gone already.
    Below,
}

fn cut(location: &mut Location, dropped: &[bool]) -> Cut {
    let last = (location.lines.iter())
        .rposition(|line| dropped.get(line.function).copied().unwrap_or(false));
    match last {
        None => Cut::Nothing,
        Some(index) if index + 1 == location.lines.len() => Cut::Whole,
        Some(index) => {
            location.lines.drain(..=index);
            Cut::Below
        }
    }
}

/// The name without its parameters.
fn simplified(name: &str) -> &str {
    const RESERVED: [&str; 2] = ["(anonymous namespace)", "operator()"];
    let name = name.strip_prefix('.').unwrap_or(name);
    let mut from = 0;
    while let Some(found) = name[from..].find('(') {
        let at = from + found;
        let reserved = RESERVED.iter().find_map(|word| {
            let start = at.checked_sub(word.find('(')?)?;
            (name.as_bytes().get(start..)?.starts_with(word.as_bytes()))
                .then_some(start + word.len())
        });
        match reserved {
            Some(end) => from = end,
            None => return &name[..at],
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_not_part_of_a_name() {
        assert_eq!(simplified("malloc(unsigned long)"), "malloc");
        assert_eq!(
            simplified("(anonymous namespace)::f(int)"),
            "(anonymous namespace)::f"
        );
        assert_eq!(simplified("F::operator()(int)"), "F::operator()");
        assert_eq!(simplified(".plain"), "plain");
        assert_eq!(simplified("é(x)"), "é");
    }
}
