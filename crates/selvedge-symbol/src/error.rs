//! The one error type of the crate.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why an ELF image could not be opened.
///
/// Only opening fails with an error. Missing or damaged debug information is not one: the names that can still be found
/// are returned, and an address without any name gives an empty list.
#[derive(Debug)]
pub struct Error {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Open(io::Error),
    Map(io::Error),
    NotAFile,
    NotElf,
}

impl Error {
    #[cold]
    pub(crate) fn open(path: &Path, source: io::Error) -> Self {
        Self::new(path, Kind::Open(source))
    }

    #[cold]
    pub(crate) fn map(path: &Path, source: io::Error) -> Self {
        Self::new(path, Kind::Map(source))
    }

    #[cold]
    pub(crate) fn not_a_file(path: &Path) -> Self {
        Self::new(path, Kind::NotAFile)
    }

    #[cold]
    pub(crate) fn not_elf(path: &Path) -> Self {
        Self::new(path, Kind::NotElf)
    }

    fn new(path: &Path, kind: Kind) -> Self {
        Self {
            path: path.to_path_buf(),
            kind,
        }
    }

    /// True if the file does not exist (any more).
    pub fn is_not_found(&self) -> bool {
        matches!(&self.kind, Kind::Open(source) if source.kind() == io::ErrorKind::NotFound)
    }

    /// True if the contents are not a 64-bit little-endian ELF image.
    pub fn is_not_elf(&self) -> bool {
        matches!(self.kind, Kind::NotElf)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.kind {
            Kind::Open(source) => write!(
                f,
                "cannot open {path} to read its symbols: {source}; check that it exists and is readable by this user"
            ),
            Kind::Map(source) => write!(
                f,
                "cannot map {path} to read its symbols: {source}; check that it is a readable regular file"
            ),
            Kind::NotAFile => write!(
                f,
                "cannot read symbols of {path}: not a regular file with contents; pass an executable or a shared library"
            ),
            Kind::NotElf => write!(
                f,
                "cannot read symbols of {path}: not a 64-bit little-endian elf image; pass an executable or a shared library"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            Kind::Open(source) | Kind::Map(source) => Some(source),
            Kind::NotAFile | Kind::NotElf => None,
        }
    }
}
