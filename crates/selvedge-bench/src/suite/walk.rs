//! What walking a stack costs: per frame, in the handler, and for the tables that it needs.

use super::Settings;
use crate::figure::Figures;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Figures of several runs, by row, unit and peer.
type Rows = BTreeMap<(String, &'static str, String), Vec<f64>>;

pub(crate) fn run(settings: &Settings, figures: &mut Figures) -> io::Result<()> {
    let library = settings.library.clone().or_else(compiler_driver);
    let image = library.as_deref().map(std::fs::read).transpose()?;
    match &library {
        Some(library) => figures.note(&format!("tables of {}", library.display())),
        None => figures.note("no library to make a table of: name one with --library"),
    }
    let mut rows = Rows::new();
    for _ in 0..settings.runs {
        if let Some(program) = &settings.walkers {
            walkers(program, library.as_deref(), &mut rows)?;
        }
        match handled(settings) {
            Ok(costs) => {
                for (name, cost) in HANDLED.into_iter().zip(costs) {
                    add(&mut rows, name, "ns", "selvedge", cost);
                }
            }
            Err(error) => figures.note(&format!("handler_ns_depth30: {error}")),
        }
        if let Some(image) = &image {
            let started = Instant::now();
            let table = selvedge_unwind::build::table(image).map_err(io::Error::other)?;
            let took = started.elapsed().as_secs_f64() * 1e3;
            add(&mut rows, "table_build_ms", "ms", "selvedge", took);
            let bytes = table.len() as f64;
            add(&mut rows, "table_bytes", "bytes", "selvedge", bytes);
        }
    }
    for ((name, unit, peer), values) in &rows {
        figures.add("walk", name, unit, peer, values);
    }
    Ok(())
}

fn add(rows: &mut Rows, name: &str, unit: &'static str, peer: &str, value: f64) {
    let row = rows.entry((name.to_owned(), unit, peer.to_owned()));
    row.or_default().push(value);
}

/// The rows of `walkers`, which walks by all walkers in one process.
fn walkers(program: &Path, library: Option<&Path>, rows: &mut Rows) -> io::Result<()> {
    let said = said(Command::new(program).args(library))?;
    for line in said.lines() {
        let [name, peer, value] = line.split(' ').collect::<Vec<_>>()[..] else {
            continue;
        };
        if let Ok(value) = value.parse() {
            add(rows, name, "ns", peer, value);
        }
    }
    Ok(())
}

/// What [`handled`] measures: a sample, a signal whose handler is empty, and the first less the second.
const HANDLED: [&str; 3] = ["signal_ns_sampled", "signal_ns_empty", "handler_ns_depth30"];

fn handled(settings: &Settings) -> io::Result<[f64; 3]> {
    let said = said(Command::new(&settings.burner).arg("handled"))?;
    let costs: Vec<f64> = said
        .split_whitespace()
        .filter_map(|cost| cost.parse().ok())
        .collect();
    costs
        .try_into()
        .map_err(|_| io::Error::other(format!("it said {said:?}")))
}

fn said(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    if output.status.success() {
        return String::from_utf8(output.stdout).map_err(io::Error::other);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let text = format!("{command:?} ended with {}: {words}", output.status);
    Err(io::Error::other(text))
}

/// The library of the compiler that is installed: most rows of any that is on most machines of developers.
fn compiler_driver() -> Option<PathBuf> {
    let sysroot = said(Command::new("rustc").args(["--print", "sysroot"])).ok()?;
    let libraries = std::fs::read_dir(Path::new(sysroot.trim()).join("lib")).ok()?;
    let mut paths = libraries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("librustc_driver") && name.ends_with(".so")
    })
}
