//! The distinct frames of a profile, in columns.

use std::collections::HashMap;

use serde::Serialize;

use super::package;
use crate::frame;
use crate::model::Profile;

/// What a frame stands for. The numbers are known to `page.js`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(super) enum Kind {
    /// An activation of a function.
    Call = 0,
    /// A function inlined into the frame below which it stands.
    Inlined = 1,
    /// A stand-in for what could not be recorded.
    Pseudo = 2,
    /// Not a frame but a label that stacks are grouped by, or the root.
    Group = 3,
}

/// A frame, and the line in it; 0 where unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) frame: u32,
    pub(super) line: i64,
}

/// The frames, by columns: `name`, `file` and `package` are indices into `strings`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Frames {
    strings: Vec<String>,
    name: Vec<u32>,
    file: Vec<u32>,
    package: Vec<u32>,
    kind: Vec<u8>,
    #[serde(skip)]
    string_index: HashMap<String, u32>,
    #[serde(skip)]
    frame_index: HashMap<(u32, u32, u32, Kind), u32>,
}

impl Frames {
    /// Returns the frames of `profile`, and those at each location, outermost first.
    pub(super) fn new(profile: &Profile) -> (Self, Vec<Vec<Step>>) {
        let mut frames = Self::default();
        let of_location = (profile.locations.iter())
            .map(|location| {
                let object = frame::file(profile, location);
                let names = frame::names(profile, location);
                let last = names.len() - 1;
                let mut steps: Vec<Step> = (names.iter().enumerate())
                    .map(|(index, name)| {
                        let line = location.lines.get(index);
                        let function = line.and_then(|line| profile.functions.get(line.function));
                        let named = function.filter(|function| !function.name.is_empty());
                        let file = function.map_or("", |function| function.filename.as_str());
                        let kind = match named {
                            Some(_) if is_pseudo(name) => Kind::Pseudo,
                            _ if index < last => Kind::Inlined,
                            _ => Kind::Call,
                        };
                        let package = match kind {
                            Kind::Pseudo => String::new(),
                            _ => package::of(named.map_or("", |_| name.as_str()), file, object),
                        };
                        Step {
                            frame: frames.add(name, file, &package, kind),
                            line: line.map_or(0, |line| line.line.max(0)),
                        }
                    })
                    .collect();
                steps.reverse();
                steps
            })
            .collect();
        (frames, of_location)
    }

    /// Returns the frame of the group called `name`.
    pub(super) fn group(&mut self, name: &str) -> u32 {
        self.add(name, "", "", Kind::Group)
    }

    /// The name of `frame`.
    pub(super) fn name(&self, frame: u32) -> &str {
        &self.strings[self.name[frame as usize] as usize]
    }

    fn add(&mut self, name: &str, file: &str, package: &str, kind: Kind) -> u32 {
        let [name, file, package] = [name, file, package].map(|text| self.string(text));
        let next = index(self.name.len());
        let frame = *(self.frame_index)
            .entry((name, file, package, kind))
            .or_insert(next);
        if frame == next {
            self.name.push(name);
            self.file.push(file);
            self.package.push(package);
            self.kind.push(kind as u8);
        }
        frame
    }

    fn string(&mut self, text: &str) -> u32 {
        if let Some(&known) = self.string_index.get(text) {
            return known;
        }
        let next = index(self.strings.len());
        self.strings.push(text.to_owned());
        self.string_index.insert(text.to_owned(), next);
        next
    }
}

fn is_pseudo(name: &str) -> bool {
    name.starts_with('[') && name.ends_with(']')
}

/// A position in a column. Four billion of them would not fit into memory, nor into a browser.
fn index(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Function, Line, Location, Mapping};

    #[test]
    fn frames_are_outermost_first_and_know_what_they_are() {
        let function = |name: &str| Function {
            name: name.into(),
            ..Function::default()
        };
        let line = |function, line| Line {
            function,
            line,
            column: 0,
        };
        let profile = Profile {
            mappings: vec![Mapping {
                filename: "/usr/lib/libz.so".into(),
                ..Mapping::default()
            }],
            functions: ["serde::inner", "outer", "[truncated]", ""]
                .map(function)
                .into(),
            locations: vec![
                Location {
                    mapping: Some(0),
                    lines: vec![line(0, 3), line(1, 8)],
                    ..Location::default()
                },
                Location {
                    lines: vec![line(2, 0)],
                    ..Location::default()
                },
                Location {
                    mapping: Some(0),
                    ..Location::default()
                },
            ],
            ..Profile::default()
        };
        let (frames, of_location) = Frames::new(&profile);
        let described: Vec<_> = (of_location.iter().flatten())
            .map(|step| {
                let index = step.frame as usize;
                let package = frames.strings[frames.package[index] as usize].as_str();
                (
                    frames.name(step.frame),
                    package,
                    frames.kind[index],
                    step.line,
                )
            })
            .collect();
        assert_eq!(
            described,
            [
                ("outer", "libz.so", Kind::Call as u8, 8),
                ("serde::inner", "serde", Kind::Inlined as u8, 3),
                ("[truncated]", "", Kind::Pseudo as u8, 0),
                ("[libz.so]", "libz.so", Kind::Call as u8, 0),
            ]
        );
    }
}
