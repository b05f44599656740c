//! The file that the profile is written to: checked before CMD runs, replaced in one step.

use crate::failure::{Failure, Result};
use crate::streams;
use selvedge_pprof::model::Profile;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where to write.
#[derive(Debug)]
pub(crate) enum Output {
    /// Standard output.
    Standard,
    /// A file that is replaced whole.
    File(PathBuf),
    /// Something that cannot be replaced: a pipe, a device.
    Special(PathBuf),
}

impl Output {
    /// Decides on the file and makes sure that it can be written.
    pub(crate) fn prepare(asked: Option<&Path>, program: &str) -> Result<Self> {
        let path = match asked {
            Some(path) if path == Path::new("-") => return Ok(Self::Standard),
            Some(path) => path.to_path_buf(),
            None => default_name(program),
        };
        if path.is_dir() {
            return Err(Failure::usage(&format!(
                "cannot write to {}: it is a folder; name a file",
                path.display()
            )));
        }
        if path.metadata().is_ok_and(|facts| !facts.is_file()) {
            return Ok(Self::Special(path));
        }
        let trial = unfinished(&path);
        let written = File::create(&trial).map(|_| ());
        let _ = fs::remove_file(&trial);
        written.map_err(|error| Failure::unwritable(&path, error))?;
        Ok(Self::File(path))
    }

    /// Writes the profile.
    pub(crate) fn write(&self, profile: &Profile) -> Result<()> {
        match self {
            Self::Standard => {
                let mut bytes = Vec::new();
                profile
                    .write(&mut bytes)
                    .map_err(|e| Failure::unwritable(Path::new("-"), e))?;
                streams::print(&bytes)
            }
            Self::Special(path) => File::create(path)
                .and_then(|mut file| profile.write(&mut file))
                .map_err(|e| Failure::unwritable(path, e)),
            Self::File(path) => {
                let unfinished = unfinished(path);
                let written = File::create(&unfinished)
                    .and_then(|file| {
                        let mut file = BufWriter::new(file);
                        profile.write(&mut file)?;
                        file.flush()
                    })
                    .and_then(|()| fs::rename(&unfinished, path));
                written.map_err(|error| {
                    let _ = fs::remove_file(&unfinished);
                    Failure::unwritable(path, error)
                })
            }
        }
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        self.path()
            .map_or("standard output".into(), |path| path.display().to_string())
    }

    /// The file, where it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Standard => None,
            Self::File(path) | Self::Special(path) => Some(path),
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
    format!("selvedge-{program}-{}.pb.gz", timestamp(seconds)).into()
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
}
