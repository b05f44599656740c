//! `selvedge convert` and `selvedge flamegraph`: one format into another.

use crate::arguments::{Convert, Flamegraph, Format};
use crate::failure::{Failure, Result, shown};
use crate::streams::{self, say};
use crate::{format, input};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs `selvedge convert`.
pub(crate) fn run(options: &Convert) -> Result<ExitCode> {
    let format = options.format.or_else(|| Format::of(&options.to)).ok_or_else(|| {
        Failure::usage(&format!(
            "cannot tell the format of {} by its name: end it in .pb.gz, .prof, .collapsed, .speedscope.json or .html, or use --format",
            shown(&options.to)
        ))
    })?;
    if options.to == Path::new("-") && matches!(format, Format::Pprof | Format::Legacy) {
        streams::refuse_terminal()?;
    }
    let profile = input::read(&options.from)?;
    let bytes = format::encode(&profile, format, &options.to, &title(&options.from))
        .map_err(Failure::own)?;
    store(&options.to, &bytes, "choose another file")?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `selvedge flamegraph`.
pub(crate) fn flamegraph(options: &Flamegraph) -> Result<ExitCode> {
    let profile = input::read(&options.files)?;
    let output = options
        .output
        .clone()
        .unwrap_or_else(|| page_name(&options.files));
    let title = (options.title.clone()).unwrap_or_else(|| title(&options.files));
    let bytes = format::encode(&profile, Format::Html, &output, &title).map_err(Failure::own)?;
    store(&output, &bytes, "choose another file with -o")?;
    if output != Path::new("-") {
        say!("selvedge: wrote {}: open it in a browser", shown(&output));
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of the first file, and how many more there are.
fn title(files: &[PathBuf]) -> String {
    let name = |file: &PathBuf| {
        file.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let first = files.first().map(name).unwrap_or_default();
    match files.len() {
        0 | 1 => first,
        several => format!("{first} and {} more", several - 1),
    }
}

/// The first file with the ending .html instead of its own; standard output for standard input.
fn page_name(files: &[PathBuf]) -> PathBuf {
    match files.first() {
        Some(file) if file != Path::new("-") => {
            format!("{}.html", format::stem(&file.to_string_lossy())).into()
        }
        _ => "-".into(),
    }
}

fn store(path: &Path, bytes: &[u8], advice: &str) -> Result<()> {
    if path == Path::new("-") {
        return streams::print(bytes);
    }
    std::fs::write(path, bytes).map_err(|error| Failure::unwritable(path, error, advice))
}
