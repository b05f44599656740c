//! Selecting samples and frames, with the options of pprof.

use regex::Regex;

use super::prune::prune;
use super::tags::{TagFilter, units};
use crate::error::Error;
use crate::frame;
use crate::model::{Line, Location, Profile};

/// Which samples and frames to look at. The fields are called as the options of `go tool pprof`, and mean the same.
///
/// Each is a regular expression; empty means no condition. One for frames matches a frame if it matches its function,
/// source file or mapped file. Together, they apply in the order of the fields.
///
/// # Examples
///
/// ```
/// use selvedge_pprof::collapsed;
/// use selvedge_pprof::report::Filter;
///
/// let profile = collapsed::read(b"main;parse;alloc 3\nmain;run 5\n")?;
/// let filter = Filter { focus: "parse".into(), hide: "alloc".into(), ..Filter::default() };
/// let mut text = Vec::new();
/// collapsed::write(&filter.apply(&profile)?, 0, &mut text)?;
/// assert_eq!(text, b"main;parse 3\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Keep only samples with a frame that matches.
    pub focus: String,
    /// Leave out samples with a frame that matches.
    pub ignore: String,
    /// Leave out frames that match; their value goes to the caller.
    pub hide: String,
    /// Leave out frames that do not match.
    pub show: String,
    /// Keep only samples with a label that matches: `regex`, `key=regex`, or a range of numbers such as `1kb:2mb`.
    ///
    /// Without `key=`, what is matched is `key:value`.
    pub tagfocus: String,
    /// Leave out samples with a label that matches.
    pub tagignore: String,
    /// Attribute inlined functions to the function that they were inlined into.
    pub noinlines: bool,
}

impl Filter {
    /// Returns what this filter leaves of `profile`.
    ///
    /// Frames that the profile itself declares uninteresting ([`drop_frames`](Profile::drop_frames)) are left out too.
    ///
    /// # Errors
    ///
    /// If a regular expression is wrong.
    pub fn apply(&self, profile: &Profile) -> Result<Profile, Error> {
        let mut profile = profile.clone();
        let frames = FrameFilters::compile(self)?;
        let tagfocus = TagFilter::parse("tagfocus", &self.tagfocus)?;
        let tagignore = TagFilter::parse("tagignore", &self.tagignore)?;
        prune(&mut profile);
        let units = units(&profile);
        frames.apply(&mut profile);
        profile.samples.retain(|sample| {
            tagfocus
                .as_ref()
                .is_none_or(|filter| filter.matches(sample, &units))
                && !tagignore
                    .as_ref()
                    .is_some_and(|filter| filter.matches(sample, &units))
        });
        if self.noinlines {
            for location in &mut profile.locations {
                location
                    .lines
                    .drain(..location.lines.len().saturating_sub(1));
            }
        }
        Ok(profile)
    }

    /// The conditions as pprof lists them: `focus=main`.
    pub(super) fn active(&self) -> Vec<String> {
        [
            ("focus", &self.focus),
            ("ignore", &self.ignore),
            ("hide", &self.hide),
            ("show", &self.show),
            ("tagfocus", &self.tagfocus),
            ("tagignore", &self.tagignore),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
    }
}

/// Compiles `regex`, the value of the option called `name`.
pub(super) fn compile(name: &str, regex: &str) -> Result<Regex, Error> {
    Regex::new(regex).map_err(|error| {
        Error::option(format!(
            "reading the option {name}: {regex:?} is not a regular expression; put a backslash before what is meant \
             literally"
        ))
        .caused_by(error)
    })
}

/// The conditions on frames.
struct FrameFilters {
    focus: Option<Regex>,
    ignore: Option<Regex>,
    hide: Option<Regex>,
    show: Option<Regex>,
}

impl FrameFilters {
    fn compile(filter: &Filter) -> Result<Self, Error> {
        let optional = |name: &str, regex: &str| {
            if regex.is_empty() {
                Ok(None)
            } else {
                compile(name, regex).map(Some)
            }
        };
        Ok(Self {
            focus: optional("focus", &filter.focus)?,
            ignore: optional("ignore", &filter.ignore)?,
            hide: optional("hide", &filter.hide)?,
            show: optional("show", &filter.show)?,
        })
    }

    fn apply(&self, profile: &mut Profile) {
        if self.focus.is_none()
            && self.ignore.is_none()
            && self.hide.is_none()
            && self.show.is_none()
        {
            return;
        }
        // An ignored location rules a sample out; without a focused one, it is not ruled in.
        let mut ignored = vec![false; profile.locations.len()];
        let mut focused = vec![false; profile.locations.len()];
        let mut hidden = vec![false; profile.locations.len()];
        let mut lines = Vec::with_capacity(profile.locations.len());
        for (index, location) in profile.locations.iter().enumerate() {
            let names = Names { profile, location };
            ignored[index] = self.ignore.as_ref().is_some_and(|regex| names.any(regex));
            focused[index] =
                !ignored[index] && self.focus.as_ref().is_none_or(|regex| names.any(regex));
            let mut kept = location.lines.clone();
            if let Some(regex) = self.hide.as_ref().filter(|regex| names.any(regex)) {
                kept.retain(|line| !names.of_mapping(regex) && !names.of_line(line, regex));
                hidden[index] = kept.is_empty();
            }
            if let Some(regex) = &self.show {
                kept.retain(|line| names.of_mapping(regex) || names.of_line(line, regex));
                hidden[index] |= kept.is_empty();
            }
            lines.push(kept);
        }
        for (location, lines) in profile.locations.iter_mut().zip(lines) {
            location.lines = lines;
        }
        let any_hidden = hidden.contains(&true);
        profile.samples.retain_mut(|sample| {
            let stack = &mut sample.locations;
            if stack.iter().any(|&index| ignored[index])
                || !stack.iter().any(|&index| focused[index])
            {
                return false;
            }
            if any_hidden {
                stack.retain(|&index| !hidden[index]);
            }
            !stack.is_empty()
        });
    }
}

/// The names that a location goes by.
#[derive(Clone, Copy)]
struct Names<'a> {
    profile: &'a Profile,
    location: &'a Location,
}

impl Names<'_> {
    fn any(self, regex: &Regex) -> bool {
        self.location
            .lines
            .iter()
            .any(|line| self.of_line(line, regex))
            || self.of_mapping(regex)
    }

    fn of_line(self, line: &Line, regex: &Regex) -> bool {
        (self.profile.functions.get(line.function)).is_some_and(|function| {
            regex.is_match(&function.name) || regex.is_match(&function.filename)
        })
    }

    fn of_mapping(self, regex: &Regex) -> bool {
        self.location.mapping.is_some() && regex.is_match(frame::file(self.profile, self.location))
    }
}
