//! Why a table could not be made.

use std::fmt;

/// An image has no usable unwind information.
#[derive(Debug)]
pub struct Error(Kind);

#[derive(Debug)]
enum Kind {
    NotElf(object::Error),
    NoUnwindInformation,
    Damaged,
}

impl Error {
    pub(crate) fn not_elf(source: object::Error) -> Self {
        Self(Kind::NotElf(source))
    }

    pub(crate) fn no_unwind_information() -> Self {
        Self(Kind::NoUnwindInformation)
    }

    pub(crate) fn damaged() -> Self {
        Self(Kind::Damaged)
    }

    /// The bytes are no 64-bit little-endian ELF image.
    #[must_use]
    pub fn is_not_elf(&self) -> bool {
        matches!(self.0, Kind::NotElf(_))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::NotElf(_) => f.write_str("cannot read unwind information: not a 64-bit ELF image"),
            Kind::Damaged => f.write_str("none of its unwind information can be read: it is damaged"),
            Kind::NoUnwindInformation => {
                f.write_str("there is no unwind information (.eh_frame) in it: build it with -fasynchronous-unwind-tables")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            Kind::NotElf(source) => Some(source),
            Kind::NoUnwindInformation | Kind::Damaged => None,
        }
    }
}
