//! How much longer a program takes that does nothing: as one of many children, and alone.

use super::Settings;
use crate::figure::Figures;
use crate::profiler::Profiler;
use std::ffi::OsStr;
use std::io;
use std::time::Instant;

/// Programs started by one shell.
const MANY: u32 = 200;

/// Rate asked of every profiler.
const HZ: u32 = 99;

pub(crate) fn run(settings: &Settings, figures: &mut Figures) -> io::Result<()> {
    let script = format!("i=0; while [ $i -lt {MANY} ]; do /bin/true; i=$((i+1)); done");
    let shell = ["sh", "-c", &script];
    let mut profilers = vec![settings.selvedge("auto")];
    profilers.extend_from_slice(&settings.peers);
    // pprof-rs profiles nothing but the program that contains it.
    profilers.retain(|profiler| !matches!(profiler, Profiler::PprofRs { .. }));
    let mut many = vec![Vec::new(); profilers.len()];
    let mut once = vec![Vec::new(); profilers.len()];
    for _ in 0..settings.runs.min(7) {
        let plain = time(settings, &Profiler::None, &shell)?;
        for (profiler, many) in profilers.iter().zip(&mut many) {
            many.push((time(settings, profiler, &shell)? - plain) / f64::from(MANY));
        }
    }
    for _ in 0..settings.runs.max(20) {
        let plain = time(settings, &Profiler::None, &["true"])?;
        for (profiler, once) in profilers.iter().zip(&mut once) {
            once.push(time(settings, profiler, &["true"])? - plain);
        }
    }
    for ((profiler, many), once) in profilers.iter().zip(&many).zip(&once) {
        figures.add("startup", "startup_ms", "ms", profiler.name(), many);
        figures.add("startup", "startup_once_ms", "ms", profiler.name(), once);
    }
    Ok(())
}

/// Milliseconds from start to end.
fn time(settings: &Settings, profiler: &Profiler, program: &[&str]) -> io::Result<f64> {
    let output = settings.scratch.join("startup.pb.gz");
    let mut command = profiler
        .command(OsStr::new(program[0]), HZ, &output)
        .ok_or_else(|| io::Error::other(format!("{} cannot run a program", profiler.name())))?;
    command.args(&program[1..]);
    let started = Instant::now();
    let status = command.status()?;
    let taken = started.elapsed().as_secs_f64() * 1e3;
    if !status.success() {
        return Err(io::Error::other(format!("{command:?} ended with {status}")));
    }
    Ok(taken)
}
