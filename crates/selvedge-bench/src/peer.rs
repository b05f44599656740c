//! Peers: found on this machine, or built.

use crate::figure::Figures;
use crate::profiler::Profiler;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where Debian's `libgoogle-perftools4`, other distributions and a build of one's own put the library.
const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/libprofiler.so.0",
    "/usr/lib64/libprofiler.so.0",
    "/usr/local/lib/libprofiler.so.0",
];

/// The peers that are on this machine; those that are not are named in one line.
///
/// pprof-rs is a library: its burner is a package of its own, built into `folder` if `build` says so.
pub(crate) fn find(folder: &Path, build: bool, figures: &Figures) -> io::Result<Vec<Profiler>> {
    let mut peers = Vec::new();
    let mut missing = Vec::new();
    if build {
        compile("pprof-rs", folder, "")?;
    }
    let program = folder.join("release/pprof-rs-burn");
    if program.is_file() {
        peers.push(Profiler::PprofRs { program });
    } else {
        missing.push("pprof-rs (--peers builds it)");
    }
    match LIBRARIES
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
    {
        Some(library) => peers.push(Profiler::Gperftools { library }),
        None => missing.push("gperftools (Debian: libgoogle-perftools4)"),
    }
    let perf = Command::new("perf")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if perf.is_ok_and(|status| status.success()) {
        peers.push(Profiler::Perf);
    } else {
        missing.push("perf (Debian: linux-perf)");
    }
    if !missing.is_empty() {
        figures.note(&format!("peers not measured: {}", missing.join(", ")));
    }
    Ok(peers)
}

/// The program that walks by selvedge and by framehop, libgcc, libunwind and frame pointers, if it is built.
pub(crate) fn walkers(
    folder: &Path,
    build: bool,
    figures: &Figures,
) -> io::Result<Option<PathBuf>> {
    // Other flags than for the other peer: in one folder, each would build it all anew.
    let folder = folder.join("walkers");
    if build {
        compile("walkers", &folder, "-Cforce-frame-pointers=yes")?;
    }
    let program = folder.join("release/walkers");
    if program.is_file() {
        return Ok(Some(program));
    }
    figures.note("frames not measured: --peers builds the program that walks them");
    Ok(None)
}

/// Builds a package of `peers` into `folder`.
fn compile(package: &str, folder: &Path, flags: &str) -> io::Result<()> {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let manifest = peers.join(package).join("Cargo.toml");
    let mut cargo = Command::new("cargo");
    if !flags.is_empty() {
        cargo.env("RUSTFLAGS", flags);
    }
    let status = cargo
        .args(["build", "--quiet", "--release", "--locked"])
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target-dir")
        .arg(folder)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "building {} ended with {status}: run without --peers to measure without it",
            manifest.display()
        )))
    }
}
