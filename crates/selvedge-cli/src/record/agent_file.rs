//! The agent as a file that the dynamic loader can map.
//!
//! It is kept under a name made from its contents, in a folder that programs of other users can read too where we may
//! write one, and not removed: a program that outlives the recording starts others with the same `LD_PRELOAD`, and the
//! loader would complain of a missing file. A version that was not used for a month goes when another one is stored. Where no folder can be written (a read-only system) or mapped from
//! (`noexec`), it lives in memory, and is reached through `/proc`.
//!
//! # Safety
//!
//! This file is `unsafe` because it asks the system about a file system and makes a file in memory.
#![allow(unsafe_code)]

use crate::agent::AGENT;
use crate::failure::{Failure, Result};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How the names of agents start.
const PREFIX: &str = "selvedge-agent-";
/// How long an agent of another version is kept after its last use.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where the agent is, for as long as this lives.
#[derive(Debug)]
pub(crate) struct AgentFile {
    /// Its path, without colons or spaces (the loader separates by them).
    pub(crate) path: PathBuf,
    /// The file in memory, where it is one.
    _memory: Option<File>,
}

/// Puts the agent where programs can load it from.
pub(crate) fn install() -> Result<AgentFile> {
    let name = format!("{PREFIX}{:016x}.so", digest(AGENT));
    let found = folders().into_iter().find_map(|folder| {
        let path = folder.join(&name);
        let plain = path
            .as_os_str()
            .as_bytes()
            .iter()
            .all(|byte| !b": ;\n".contains(byte));
        (plain && place(&folder, &path).is_ok()).then_some(path)
    });
    match found {
        Some(path) => Ok(AgentFile {
            path,
            _memory: None,
        }),
        None => in_memory().map_err(|e| {
            Failure::system(
                "store the agent (set TMPDIR to a folder that can be written)",
                e,
            )
        }),
    }
}

/// Folders to try, the most durable first.
fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let mut folders = Vec::new();
    if user() == 0 {
        folders.push(PathBuf::from("/var/cache/selvedge"));
    }
    folders.extend(variable("XDG_CACHE_HOME").map(|cache| cache.join("selvedge")));
    folders.extend(variable("HOME").map(|home| home.join(".cache/selvedge")));
    let private = format!("selvedge-{}", user());
    folders.extend(variable("TMPDIR").map(|folder| folder.join(&private)));
    folders.extend(["/tmp", "/dev/shm"].map(|folder| Path::new(folder).join(&private)));
    folders.retain(|folder| folder.is_absolute());
    folders
}

fn user() -> u32 {
    // SAFETY: takes no arguments.
    unsafe { libc::getuid() }
}

fn place(folder: &Path, path: &Path) -> io::Result<()> {
    if !folder.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)?;
    }
    let owner = fs::symlink_metadata(folder)?;
    // In a folder like /tmp somebody else could have made it first, and put another agent there.
    if !owner.is_dir() || owner.uid() != user() || owner.mode() & 0o022 != 0 || is_noexec(folder)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    if fs::read(path).is_ok_and(|there| there == AGENT) {
        // It is in use: other versions, when they come, are to leave it.
        let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
        return Ok(());
    }
    let unfinished = path.with_extension(format!("{}", std::process::id()));
    let _ = fs::remove_file(&unfinished);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(&unfinished)
        .and_then(|mut file| {
            file.write_all(AGENT)
                .and_then(|()| file.set_permissions(Permissions::from_mode(0o755)))
        })
        .and_then(|()| fs::rename(&unfinished, path));
    match written {
        Ok(()) => remove_old(folder, path),
        Err(_) => {
            let _ = fs::remove_file(&unfinished);
        }
    }
    written
}

/// Removes agents of other versions that nobody has used for a month: each new version adds one.
fn remove_old(folder: &Path, current: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_agent = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
        let age = (entry.metadata().and_then(|facts| facts.modified()).ok())
            .and_then(|used| used.elapsed().ok());
        if is_agent && path != current && age > Some(KEPT) {
            let _ = fs::remove_file(path);
        }
    }
}

fn is_noexec(folder: &Path) -> io::Result<bool> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let mut facts = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is NUL-terminated; the system fills the structure.
    if unsafe { libc::statvfs(path.as_ptr(), facts.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled, since the call succeeded.
    Ok(unsafe { facts.assume_init() }.f_flag & libc::ST_NOEXEC != 0)
}

fn in_memory() -> io::Result<AgentFile> {
    // SAFETY: the name is a NUL-terminated literal.
    let descriptor = unsafe { libc::memfd_create(c"selvedge-agent".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, owned by nothing else.
    let mut file = unsafe { File::from_raw_fd(descriptor) };
    file.write_all(AGENT)?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into();
    Ok(AgentFile {
        path,
        _memory: Some(file),
    })
}

/// FNV-1a, 64 bits: tells versions of the agent apart; the contents are compared as well.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
