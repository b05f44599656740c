//! Profiles that are read: from files or standard input, of a format that their contents tell.

use crate::failure::{Failure, Result};
use selvedge_pprof::model::Profile;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The longest file that is read, in bytes: real profiles are thousands of times smaller.
const LONGEST: u64 = 512 << 20;

/// Reads the profiles at `paths` and adds them up.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Profile> {
    let mut profiles = Vec::with_capacity(paths.len());
    for path in paths {
        let bytes = bytes(path).map_err(|error| Failure::unreadable(path, error))?;
        profiles.push(Profile::read(&bytes).map_err(|error| Failure::unreadable(path, error))?);
    }
    Profile::merge(profiles).map_err(Failure::own)
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let too_long = || {
        let words = format!(
            "it is longer than {} MiB, which no profile is",
            LONGEST >> 20
        );
        Err(io::Error::new(io::ErrorKind::FileTooLarge, words))
    };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin()
            .lock()
            .take(LONGEST + 1)
            .read_to_end(&mut bytes)?;
    } else {
        let file = File::open(path)?;
        if file.metadata()?.len() > LONGEST {
            return too_long();
        }
        file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > LONGEST {
        return too_long();
    }
    Ok(bytes)
}
