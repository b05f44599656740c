//! The error of this crate.

use std::error::Error as StdError;
use std::fmt;

/// Why a profile could not be read, or a report could not be made.
///
/// Its message says what was tried, on what, why it failed and what to do next.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Malformed,
    TooLarge,
    Option,
}

impl Error {
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Malformed,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::TooLarge,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn option(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Option,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the bytes are not a profile, or contradict themselves.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        self.kind == Kind::Malformed
    }

    /// Whether the profile would need more memory than this crate spends on one.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.kind == Kind::TooLarge
    }

    /// Whether an option of a report is wrong: a bad regular expression, an unknown sample type.
    #[must_use]
    pub fn is_option(&self) -> bool {
        self.kind == Kind::Option
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
