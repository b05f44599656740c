//! `selvedge top`: the functions that use the most CPU time.

use crate::arguments::Top;
use crate::failure::{Failure, Result};
use crate::input;
use crate::streams::{self, say};
use selvedge_pprof::model::Profile;
use selvedge_pprof::report::{self, Filter, Sort, TopOptions};
use std::process::ExitCode;

/// Runs the command.
pub(crate) fn run(options: &Top) -> Result<ExitCode> {
    let profile = input::read(&options.files)?;
    let regex = |option: &Option<String>| option.clone().unwrap_or_default();
    let wanted = TopOptions {
        sample_index: regex(&options.sample_index),
        nodecount: options.nodecount,
        nodefraction: options.nodefraction,
        sort: if options.cum { Sort::Cum } else { Sort::Flat },
        filter: Filter {
            focus: regex(&options.focus),
            ignore: regex(&options.ignore),
            hide: regex(&options.hide),
            show: regex(&options.show),
            tagfocus: regex(&options.tagfocus),
            tagignore: regex(&options.tagignore),
            noinlines: options.noinlines,
        },
        ..TopOptions::default()
    };
    let top = report::Top::new(&profile, &wanted).map_err(Failure::own)?;
    let text = if options.json {
        serde_json::to_string_pretty(&top.to_json()).map_err(Failure::own)? + "\n"
    } else {
        top.to_string()
    };
    streams::print(text.as_bytes())?;
    if top.total() != 0 {
        return Ok(ExitCode::SUCCESS);
    }
    // 1: the file was read, but there is nothing in it.
    if profile.samples.is_empty() {
        say!("selvedge: the profile has no samples: was the program idle, or over at once?");
    } else {
        say!("selvedge: the values add up to 0; look at others with --sample-index");
    }
    Ok(ExitCode::from(1))
}

/// The first rows of a profile, as text.
pub(crate) fn table(profile: &Profile, rows: usize) -> Result<String> {
    let options = TopOptions {
        nodecount: rows,
        ..TopOptions::default()
    };
    let top = report::Top::new(profile, &options).map_err(Failure::own)?;
    Ok(top.to_string())
}
