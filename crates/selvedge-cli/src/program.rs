//! Programs as files: where they are, and how they come to be recorded, if they can be.

use crate::failure::{Failure, Result, shown};
use object::LittleEndian;
use object::elf::{
    DT_NEEDED, DT_STRSZ, DT_STRTAB, DynamicTag, FileHeader64, PT_DYNAMIC, PT_INTERP, PT_LOAD,
    PT_NOTE, ProgramHeader64,
};
use object::read::elf::{FileHeader, ProgramHeader};
use selvedge_sample::note;
use selvedge_sample::region::VERSION;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How a program comes to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The agent is loaded into it.
    Agent,
    /// It joins the recording by itself: a note in its file says so.
    Itself,
}

/// Why a program cannot be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// It cannot be executed.
    NotExecutable,
    /// The program that is to run it is missing.
    NoInterpreter(PathBuf),
    /// The program that is to run it cannot be executed.
    InterpreterNotExecutable(PathBuf),
    /// It cannot be read.
    Unreadable(String),
    /// No dynamic loader, and no note that it joins.
    Static,
    /// No dynamic loader, and it joins recordings of another version.
    OtherVersion,
    /// Another C library's loader.
    OtherLibc(String),
    /// Not a 64-bit x86 program.
    OtherMachine,
    /// The loader ignores `LD_PRELOAD` for it.
    Privileged,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotExecutable => f.write_str("it is not executable"),
            Self::NoInterpreter(path) => {
                write!(f, "its interpreter {} is missing", shown(path))
            }
            Self::InterpreterNotExecutable(path) => {
                write!(f, "its interpreter {} is not executable", shown(path))
            }
            Self::Unreadable(why) => write!(f, "it cannot be read ({why})"),
            Self::Static => {
                f.write_str("it is statically linked, so no agent can be loaded into it")
            }
            Self::OtherVersion => f.write_str(
                "it is statically linked, and joins only recordings of another version of selvedge",
            ),
            Self::OtherLibc(loader) => write!(
                f,
                "it uses another C library than glibc (its loader is {})",
                shown(loader)
            ),
            Self::OtherMachine => f.write_str("it is not a 64-bit x86 program"),
            Self::Privileged => {
                f.write_str("it is set-user-id or set-group-id, and the loader gives it no agent")
            }
        }
    }
}

impl Obstacle {
    /// What to do about it.
    pub(crate) fn advice(&self) -> &'static str {
        match self {
            Self::Static | Self::OtherLibc(_) => {
                "if it is a Rust program, profile it from inside with our library:\n  \
                 cargo add selvedge-profile\n  \
                 let _profile = selvedge_profile::init_from_env()?;   // then run it with SELVEDGE_PROFILE=out.pb.gz"
            }
            Self::OtherVersion => {
                concat!(
                    "build it with version ",
                    env!("CARGO_PKG_VERSION"),
                    " of selvedge-profile"
                )
            }
            Self::Privileged => "run it as its owner, from a copy without those bits",
            Self::OtherMachine => "record a 64-bit build of it",
            Self::NotExecutable | Self::Unreadable(_) => "check its permissions",
            Self::NoInterpreter(_) => "install it, or correct the program's first line",
            Self::InterpreterNotExecutable(_) => "check the permissions of that",
        }
    }
}

/// Finds a program as the shell does.
pub(crate) fn find(program: &OsStr) -> Result<PathBuf> {
    let path = PathBuf::from(program);
    let is_path = program.as_bytes().contains(&b'/') || path.file_name().is_none();
    if is_path && !program.is_empty() {
        return match path.metadata() {
            Ok(facts) if facts.is_dir() => Err(Failure::folder(program)),
            Ok(_) => Ok(path),
            Err(error) => Err(Failure::cannot_run(program, &error)),
        };
    }
    search(program).ok_or_else(|| Failure::not_found(program))
}

fn search(program: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let mut found = std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .filter(|file| file.is_file());
    let first = found.next()?;
    if is_executable(&first) {
        return Some(first);
    }
    found.find(|file| is_executable(file)).or(Some(first))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|facts| facts.is_file() && facts.mode() & 0o111 != 0)
}

/// How the program at `path` comes to be recorded, or why it cannot. Scripts are judged by their interpreter.
pub(crate) fn way(path: &Path) -> std::result::Result<Way, Obstacle> {
    let mut path = path.to_path_buf();
    for depth in 0..5 {
        if !is_executable(&path) {
            return Err(match (depth, path.exists()) {
                (0, _) => Obstacle::NotExecutable,
                (_, true) => Obstacle::InterpreterNotExecutable(path),
                (_, false) => Obstacle::NoInterpreter(path),
            });
        }
        let unreadable = |error: std::io::Error| Obstacle::Unreadable(error.to_string());
        let file = File::open(&path).map_err(unreadable)?;
        let mut head = Vec::new();
        (&file)
            .take(256 * 1024)
            .read_to_end(&mut head)
            .map_err(unreadable)?;
        if !head.starts_with(b"#!") {
            return elf_way(&file, &head);
        }
        match interpreter(&head) {
            Some(next) => path = next,
            None => break,
        }
    }
    Ok(Way::Agent)
}

/// The interpreter of a script that starts like this.
///
/// `#!/usr/bin/env NAME`: env is a program that can be recorded, and so is judged like any other.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?;
    let line = line.split(|&byte| byte == b'\n').next()?;
    let mut words = line
        .split(|&byte| byte == b' ' || byte == b'\t')
        .filter(|word| !word.is_empty());
    words
        .next()
        .map(|word| PathBuf::from(OsStr::from_bytes(word)))
}

/// Whether the program at `path` is linked against the runtime of AddressSanitizer as a library.
pub(crate) fn needs_asan(path: &Path) -> bool {
    let mut path = path.to_path_buf();
    for _ in 0..5 {
        let Ok(file) = File::open(&path) else {
            return false;
        };
        let mut head = Vec::new();
        if (&file).take(64 * 1024).read_to_end(&mut head).is_err() {
            return false;
        }
        match interpreter(&head) {
            Some(next) => path = next,
            None => return elf_needs_asan(&file, &head).unwrap_or(false),
        }
    }
    false
}

fn elf_needs_asan(file: &File, head: &[u8]) -> Option<bool> {
    /// What is read of a section at most.
    const LONGEST: u64 = 1 << 20;
    let endian = LittleEndian;
    let header = FileHeader64::<LittleEndian>::parse(head).ok()?;
    let segments = header.program_headers(endian, head).ok()?;
    let read = |offset: u64, size: u64| {
        let mut bytes = vec![0; usize::try_from(size.min(LONGEST)).ok()?];
        let read = file.read_at(&mut bytes, offset).ok()?;
        bytes.truncate(read);
        Some(bytes)
    };
    let dynamic = segments
        .iter()
        .find(|segment| segment.p_type(endian) == PT_DYNAMIC)?;
    let dynamic = read(dynamic.p_offset(endian), dynamic.p_filesz(endian))?;
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    let entries = || {
        let (entries, _) = dynamic.as_chunks::<16>();
        let entries = entries
            .iter()
            .map(|entry| (number(&entry[..8]), number(&entry[8..])));
        entries.take_while(|&(tag, _)| tag != 0)
    };
    let value_of = |wanted: DynamicTag| {
        let found = entries().find(|&(tag, _)| DynamicTag(tag.cast_signed()) == wanted);
        found.map(|(_, value)| value)
    };
    let (names, size) = (value_of(DT_STRTAB)?, value_of(DT_STRSZ)?);
    let loaded = segments.iter().find(|segment| {
        let inside = names.wrapping_sub(segment.p_vaddr(endian));
        segment.p_type(endian) == PT_LOAD && inside < segment.p_filesz(endian)
    })?;
    let names = names.wrapping_sub(loaded.p_vaddr(endian)) + loaded.p_offset(endian);
    let names = read(names, size)?;
    let mut needed = entries().filter(|&(tag, _)| DynamicTag(tag.cast_signed()) == DT_NEEDED);
    Some(needed.any(|(_, at)| {
        let name = names.get(usize::try_from(at).unwrap_or(usize::MAX)..);
        // GCC's, and Clang's.
        name.is_some_and(|name| {
            name.starts_with(b"libasan.so") || name.starts_with(b"libclang_rt.asan")
        })
    }))
}

fn elf_way(file: &File, head: &[u8]) -> std::result::Result<Way, Obstacle> {
    if !head.starts_with(b"\x7fELF") {
        // No ELF and no script: the shell would run it as a script of its own.
        return Ok(Way::Agent);
    }
    let Ok(header) = FileHeader64::<LittleEndian>::parse(head) else {
        return Err(Obstacle::OtherMachine);
    };
    let endian = LittleEndian;
    if header.e_machine(endian) != object::elf::EM_X86_64 {
        return Err(Obstacle::OtherMachine);
    }
    if file
        .metadata()
        .is_ok_and(|facts| facts.mode() & 0o6000 != 0)
    {
        return Err(Obstacle::Privileged);
    }
    let headers = header.program_headers(endian, head).unwrap_or_default();
    let Some(interpreter) = headers
        .iter()
        .find(|header| header.p_type(endian) == PT_INTERP)
    else {
        return match noted_version(file, headers) {
            Some(version) if version == u64::from(VERSION) => Ok(Way::Itself),
            Some(_) => Err(Obstacle::OtherVersion),
            None => Err(Obstacle::Static),
        };
    };
    let loader = interpreter.data(endian, head).unwrap_or_default();
    let loader = String::from_utf8_lossy(loader)
        .trim_end_matches('\0')
        .to_string();
    if !loader.contains("ld-linux-x86-64") {
        return Err(Obstacle::OtherLibc(loader));
    }
    if !Path::new(&loader).exists() {
        return Err(Obstacle::NoInterpreter(loader.into()));
    }
    Ok(Way::Agent)
}

/// The version of recordings that a program joins by itself, if it does.
fn noted_version(file: &File, headers: &[ProgramHeader64<LittleEndian>]) -> Option<u64> {
    let endian = LittleEndian;
    let mut notes = headers
        .iter()
        .filter(|header| header.p_type(endian) == PT_NOTE);
    notes.find_map(|header| {
        let segment = note::Segment {
            offset: header.p_offset(endian),
            size: header.p_filesz(endian),
            alignment: header.p_align(endian),
        };
        note::version_in(segment, |buffer, offset| {
            file.read_at(buffer, offset).unwrap_or(0)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_can_be_recorded() {
        assert_eq!(way(&find(OsStr::new("sh")).unwrap()), Ok(Way::Agent));
    }

    #[test]
    fn missing_program_is_not_found() {
        for program in ["no-such-program-here", "/no/such/program", ""] {
            assert_eq!(find(OsStr::new(program)).unwrap_err().status, 127);
        }
    }

    #[test]
    fn file_without_the_executable_bit_is_said_so() {
        assert_eq!(way(Path::new("/etc/passwd")), Err(Obstacle::NotExecutable));
    }
}
