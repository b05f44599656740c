//! What a frame is called: as pprof calls it.

use crate::model::{Location, Profile};

/// Returns the names of the frames at `location`, innermost first.
///
/// A frame without function is called by its file in brackets, or `<unknown>`.
pub(crate) fn names<'a>(profile: &'a Profile, location: &'a Location) -> Vec<String> {
    if location.lines.is_empty() {
        return vec![object(profile, location)];
    }
    (location.lines.iter())
        .map(|line| match profile.functions.get(line.function) {
            Some(function) if !function.name.is_empty() => function.name.clone(),
            _ => object(profile, location),
        })
        .collect()
}

fn object(profile: &Profile, location: &Location) -> String {
    object_name(file(profile, location))
}

/// The file that is mapped at `location`; empty where unknown.
pub(crate) fn file<'a>(profile: &'a Profile, location: &Location) -> &'a str {
    (location.mapping)
        .and_then(|index| profile.mappings.get(index))
        .map_or("", |mapping| mapping.filename.as_str())
}

/// What stands for a function in `file`.
pub(crate) fn object_name(file: &str) -> String {
    if file.is_empty() {
        "<unknown>".to_owned()
    } else {
        format!("[{}]", base(file))
    }
}

/// The last element of a path; the path `/` has the name `/`.
pub(crate) fn base(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return if path.is_empty() { "." } else { "/" };
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_of_a_path_is_its_last_element() {
        assert_eq!(base("/usr/bin/name"), "name");
        assert_eq!(base("name"), "name");
        assert_eq!(base("dir/"), "dir");
        assert_eq!(base("//"), "/");
        assert_eq!(base("[vdso]"), "[vdso]");
    }
}
