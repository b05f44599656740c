//! How much longer a program takes that does nothing: as one of many children, and alone.

use super::Settings;
use crate::figure::Figures;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Programs started by one shell.
const MANY: u32 = 200;

pub(crate) fn run(settings: &Settings, figures: &mut Figures) -> io::Result<()> {
    let script = format!("i=0; while [ $i -lt {MANY} ]; do /bin/true; i=$((i+1)); done");
    let many = ["sh", "-c", &script];
    let output = settings.scratch.join("startup.pb.gz");
    let (mut each, mut once) = (Vec::new(), Vec::new());
    for _ in 0..settings.runs.min(7) {
        each.push((recorded(settings, &output, &many)? - plain(&many)?) / f64::from(MANY));
        once.push(recorded(settings, &output, &["true"])? - plain(&["true"])?);
    }
    figures.add("startup", "startup_ms", "ms", "selvedge", &each);
    figures.add("startup", "startup_once_ms", "ms", "selvedge", &once);
    Ok(())
}

fn recorded(settings: &Settings, output: &Path, command: &[&str]) -> io::Result<f64> {
    let mut record = Command::new(&settings.selvedge);
    record
        .args(["record", "--quiet", "-o"])
        .arg(output)
        .arg("--")
        .args(command);
    time(record)
}

fn plain(command: &[&str]) -> io::Result<f64> {
    let mut plain = Command::new(command[0]);
    plain.args(&command[1..]);
    time(plain)
}

/// Milliseconds from start to end.
fn time(mut command: Command) -> io::Result<f64> {
    let started = Instant::now();
    let status = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!("{command:?} ended with {status}")));
    }
    Ok(started.elapsed().as_secs_f64() * 1e3)
}
