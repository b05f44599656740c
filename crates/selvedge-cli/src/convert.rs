//! `selvedge convert` and `selvedge flamegraph`: one format into another.

use crate::arguments::{Convert, Flamegraph, Format};
use crate::failure::{Failure, Result};
use crate::streams::{self, say};
use selvedge_pprof::flamegraph;
use selvedge_pprof::model::Profile;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Reads a profile of any format that can be read.
pub(crate) fn read(path: &Path) -> Result<Profile> {
    let bytes = std::fs::read(path).map_err(|error| Failure::unreadable(path, error))?;
    let name = path.to_string_lossy();
    let read = if name.ends_with(".collapsed") || name.ends_with(".folded") {
        selvedge_pprof::collapsed::read(&bytes)
    } else {
        Profile::read(&bytes)
    };
    read.map_err(|error| Failure::unreadable(path, error))
}

/// Runs `selvedge convert`.
pub(crate) fn run(options: &Convert) -> Result<ExitCode> {
    let format = options.format.or_else(|| format_of(&options.to)).ok_or_else(|| {
        Failure::usage(&format!(
            "cannot tell the format of {} by its name: end it in .pb.gz, .prof, .collapsed, .speedscope.json or .html, or use --format",
            options.to.display()
        ))
    })?;
    let profile = read(&options.from)?;
    let index = profile.sample_index("").map_err(Failure::own)?;
    let mut bytes = Vec::new();
    let name = options
        .from
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let written = match format {
        Format::Pprof if options.to.to_string_lossy().ends_with(".pb") => {
            bytes = profile.encode();
            Ok(())
        }
        Format::Pprof => profile.write(&mut bytes),
        Format::Legacy => selvedge_pprof::legacy::write(&profile, &mut bytes),
        Format::Collapsed => selvedge_pprof::collapsed::write(&profile, index, &mut bytes),
        Format::Speedscope => selvedge_pprof::speedscope::write(&profile, index, &mut bytes),
        Format::Html => flamegraph::write(&profile, &page_options(name), &mut bytes),
    };
    written.map_err(|error| Failure::unwritable(&options.to, error))?;
    store(&options.to, &bytes)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `selvedge flamegraph`.
pub(crate) fn flamegraph(options: &Flamegraph) -> Result<ExitCode> {
    let profile = read(&options.file)?;
    let name = options
        .file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let output = options
        .output
        .clone()
        .unwrap_or_else(|| page_name(&options.file));
    let mut bytes = Vec::new();
    let page = page_options(options.title.clone().unwrap_or(name));
    flamegraph::write(&profile, &page, &mut bytes)
        .map_err(|error| Failure::unwritable(&output, error))?;
    store(&output, &bytes)?;
    if output != Path::new("-") {
        say!("selvedge: wrote {}: open it in a browser", output.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn page_options(title: String) -> flamegraph::Options {
    flamegraph::Options {
        title,
        ..flamegraph::Options::default()
    }
}

/// FILE with the ending .html instead of its own.
fn page_name(file: &Path) -> PathBuf {
    let name = file.to_string_lossy();
    let endings = [".pb.gz", ".pb", ".prof", ".collapsed", ".folded"];
    let stem = endings
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(&name);
    format!("{stem}.html").into()
}

fn format_of(path: &Path) -> Option<Format> {
    let name = path.to_string_lossy();
    let endings = [
        (".pb.gz", Format::Pprof),
        (".pb", Format::Pprof),
        (".prof", Format::Legacy),
        (".collapsed", Format::Collapsed),
        (".folded", Format::Collapsed),
        (".speedscope.json", Format::Speedscope),
        (".html", Format::Html),
    ];
    endings
        .iter()
        .find(|(ending, _)| name.ends_with(ending))
        .map(|(_, format)| *format)
}

fn store(path: &Path, bytes: &[u8]) -> Result<()> {
    if path == Path::new("-") {
        return streams::print(bytes);
    }
    std::fs::write(path, bytes).map_err(|error| Failure::unwritable(path, error))
}
