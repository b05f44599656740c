//! Formats that profiles are written in, chosen by the endings of names.

use crate::arguments::Format;
use selvedge_pprof::model::Profile;
use selvedge_pprof::{collapsed, flamegraph, legacy, speedscope};
use std::io;
use std::path::Path;

const ENDINGS: [(&str, Format); 7] = [
    (".pb.gz", Format::Pprof),
    (".pb", Format::Pprof),
    (".prof", Format::Legacy),
    (".collapsed", Format::Collapsed),
    (".folded", Format::Collapsed),
    (".speedscope.json", Format::Speedscope),
    (".html", Format::Html),
];

impl Format {
    /// The format that a name's ending stands for.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let name = path.to_string_lossy();
        (ENDINGS.iter())
            .find(|(ending, _)| name.ends_with(ending))
            .map(|(_, format)| *format)
    }
}

/// A file's name without the ending of a format.
pub(crate) fn stem(name: &str) -> &str {
    (ENDINGS.iter())
        .find_map(|(ending, _)| name.strip_suffix(ending))
        .unwrap_or(name)
}

/// The bytes of `profile` in `format`, for a file at `path`; `title` is for people.
pub(crate) fn encode(
    profile: &Profile,
    format: Format,
    path: &Path,
    title: &str,
) -> io::Result<Vec<u8>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let index = || profile.sample_index("").map_err(invalid);
    let mut bytes = Vec::new();
    match format {
        Format::Pprof if path.to_string_lossy().ends_with(".pb") => bytes = profile.encode(),
        Format::Pprof => profile.write(&mut bytes)?,
        Format::Legacy => legacy::write(profile, &mut bytes)?,
        Format::Collapsed => collapsed::write(profile, index()?, &mut bytes)?,
        Format::Speedscope => speedscope::write(profile, index()?, &mut bytes)?,
        Format::Html => {
            let options = flamegraph::Options {
                title: title.to_string(),
                ..flamegraph::Options::default()
            };
            flamegraph::write(profile, &options, &mut bytes)?;
        }
    }
    Ok(bytes)
}
