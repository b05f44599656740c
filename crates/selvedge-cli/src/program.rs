//! Programs as files: where they are, and whether the agent can be loaded into them.

use crate::failure::{Failure, Result, shown};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why the agent cannot be loaded into a program.
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
    /// No dynamic loader.
    Static,
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

/// Why the agent cannot be loaded into the program at `path`; `None` if it can. Scripts are judged by their interpreter.
pub(crate) fn obstacle(path: &Path) -> Option<Obstacle> {
    let mut path = path.to_path_buf();
    for depth in 0..5 {
        if !is_executable(&path) {
            return Some(match (depth, path.exists()) {
                (0, _) => Obstacle::NotExecutable,
                (_, true) => Obstacle::InterpreterNotExecutable(path),
                (_, false) => Obstacle::NoInterpreter(path),
            });
        }
        let mut head = Vec::new();
        if let Err(error) =
            File::open(&path).and_then(|file| file.take(256 * 1024).read_to_end(&mut head))
        {
            return Some(Obstacle::Unreadable(error.to_string()));
        }
        let Some(line) = head.strip_prefix(b"#!") else {
            return elf_obstacle(&path, &head);
        };
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let words: Vec<&[u8]> = line
            .split(|&byte| byte == b' ' || byte == b'\t')
            .filter(|word| !word.is_empty())
            .collect();
        let interpreter = *words.first()?;
        // `#!/usr/bin/env NAME`: env is a program that can be recorded, and so is judged like any other.
        path = PathBuf::from(OsStr::from_bytes(interpreter));
    }
    None
}

fn elf_obstacle(path: &Path, head: &[u8]) -> Option<Obstacle> {
    if !head.starts_with(b"\x7fELF") {
        // No ELF and no script: the shell would run it as a script of its own.
        return None;
    }
    let Ok(header) = FileHeader64::<LittleEndian>::parse(head) else {
        return Some(Obstacle::OtherMachine);
    };
    let endian = LittleEndian;
    if header.e_machine(endian) != object::elf::EM_X86_64 {
        return Some(Obstacle::OtherMachine);
    }
    if path
        .metadata()
        .is_ok_and(|facts| facts.mode() & 0o6000 != 0)
    {
        return Some(Obstacle::Privileged);
    }
    let headers = header.program_headers(endian, head).unwrap_or_default();
    let Some(interpreter) = headers
        .iter()
        .find(|header| header.p_type(endian) == PT_INTERP)
    else {
        return Some(Obstacle::Static);
    };
    let loader = interpreter.data(endian, head).unwrap_or_default();
    let loader = String::from_utf8_lossy(loader)
        .trim_end_matches('\0')
        .to_string();
    if !loader.contains("ld-linux-x86-64") {
        return Some(Obstacle::OtherLibc(loader));
    }
    let missing = !Path::new(&loader).exists();
    missing.then(|| Obstacle::NoInterpreter(loader.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_can_be_recorded() {
        assert_eq!(obstacle(&find(OsStr::new("sh")).unwrap()), None);
    }

    #[test]
    fn missing_program_is_not_found() {
        for program in ["no-such-program-here", "/no/such/program", ""] {
            assert_eq!(find(OsStr::new(program)).unwrap_err().status, 127);
        }
    }

    #[test]
    fn file_without_the_executable_bit_is_said_so() {
        assert_eq!(
            obstacle(Path::new("/etc/passwd")),
            Some(Obstacle::NotExecutable)
        );
    }
}
