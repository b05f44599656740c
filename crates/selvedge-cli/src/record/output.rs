//! The file that the profile is written to: checked before CMD runs, replaced in one step. One that nobody named replaces
//! nothing: it gets a number where its name is taken.

use crate::arguments::Format;
use crate::failure::{Failure, Result, shown};
use crate::{format, streams};
use selvedge_pprof::model::Profile;
use std::cell::OnceCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How the names that we choose end.
const ENDING: &str = ".pb.gz";
const ADVICE: &str = "choose another file with -o";

/// Where to write.
#[derive(Debug)]
pub(crate) enum Output {
    /// Standard output.
    Standard,
    /// A file that is replaced whole.
    File(PathBuf),
    /// A file whose name we chose, and what it is really called once it is written.
    Chosen(PathBuf, OnceCell<PathBuf>),
    /// Something that cannot be replaced: a pipe, a device.
    Special(PathBuf),
}

impl Output {
    /// Decides on the file and makes sure that it can be written.
    pub(crate) fn prepare(asked: Option<&Path>, program: &str) -> Result<Self> {
        let path = match asked {
            Some(path) if path == Path::new("-") => {
                streams::refuse_terminal()?;
                return Ok(Self::Standard);
            }
            Some(path) => path.to_path_buf(),
            None => default_name(program),
        };
        if path.is_dir() {
            return Err(Failure::usage(&format!(
                "cannot write to {}: it is a folder; name a file",
                shown(&path)
            )));
        }
        if path.metadata().is_ok_and(|facts| !facts.is_file()) {
            return Ok(Self::Special(path));
        }
        let trial = unfinished(&path);
        let written = File::create(&trial).map(|_| ());
        let _ = fs::remove_file(&trial);
        written.map_err(|error| Failure::unwritable(&path, error, ADVICE))?;
        Ok(match asked {
            Some(_) => Self::File(path),
            None => Self::Chosen(path, OnceCell::new()),
        })
    }

    /// Writes the profile.
    pub(crate) fn write(&self, profile: &Profile) -> Result<()> {
        let path = self.path().unwrap_or(Path::new("-"));
        let format = Format::of(path).unwrap_or(Format::Pprof);
        let title = path.file_name().unwrap_or_default().to_string_lossy();
        let bytes = format::encode(profile, format, path, &title).map_err(Failure::own)?;
        let unwritable = |error| Failure::unwritable(path, error, ADVICE);
        match self {
            Self::Standard => streams::print(&bytes),
            Self::Special(path) => File::create(path)
                .and_then(|mut file| file.write_all(&bytes))
                .map_err(unwritable),
            Self::File(path) => replace(path, &bytes).map_err(unwritable),
            Self::Chosen(wanted, claimed) => {
                if let Some(path) = claimed.get() {
                    return replace(path, &bytes).map_err(unwritable);
                }
                let path = claim(wanted).map_err(unwritable)?;
                replace(&path, &bytes).map_err(|error| {
                    let _ = fs::remove_file(&path);
                    unwritable(error)
                })?;
                let _ = claimed.set(path);
                Ok(())
            }
        }
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        self.path().map_or("standard output".into(), shown)
    }

    /// The file, where it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Standard => None,
            Self::File(path) | Self::Special(path) => Some(path),
            Self::Chosen(wanted, claimed) => Some(claimed.get().unwrap_or(wanted)),
        }
    }
}

/// Writes a file beside `path` and puts it in its place.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = unfinished(path);
    let written = File::create(&unfinished)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// Makes an empty file of a name that nobody has: `wanted`, or with `-2`, `-3`, … before the ending.
fn claim(wanted: &Path) -> io::Result<PathBuf> {
    let name = wanted.to_string_lossy();
    let stem = name.strip_suffix(ENDING).unwrap_or(&name);
    let mut number = 1;
    loop {
        let path = match number {
            1 => wanted.to_path_buf(),
            _ => format!("{stem}-{number}{ENDING}").into(),
        };
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    name.into()
}

/// `selvedge-NAME-YYYYMMDD-HHMMSS.pb.gz`, in UTC.
fn default_name(program: &str) -> PathBuf {
    let seconds = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let program: String = program
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || "._+-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    format!("selvedge-{program}-{}{ENDING}", timestamp(seconds)).into()
}

/// Days to a date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}{month:02}{day:02}-{:02}{:02}{:02}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_of_known_instants() {
        assert_eq!(timestamp(0), "19700101-000000");
        assert_eq!(timestamp(951_782_400), "20000229-000000");
        assert_eq!(timestamp(1_795_550_399), "20261124-195959");
    }

    #[test]
    fn names_that_are_taken_are_numbered() {
        let folder = std::env::temp_dir().join(format!("selvedge-claim-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let wanted = folder.join("selvedge-a-TIME.pb.gz");
        let claimed: Vec<_> = (0..3).map(|_| claim(&wanted).unwrap()).collect();
        let names = ["a-TIME", "a-TIME-2", "a-TIME-3"];
        assert_eq!(
            claimed,
            names.map(|name| folder.join(format!("selvedge-{name}.pb.gz")))
        );
        fs::remove_dir_all(&folder).unwrap();
    }
}
