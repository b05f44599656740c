//! Finds CMD, checks that it can be recorded, starts it.

use super::signals::Signals;
use crate::failure::{Failure, Result, shown};
use crate::program::Way;
use crate::{dispositions, program};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

/// CMD, found and checked.
#[derive(Debug)]
pub(crate) struct Launch {
    arguments: Vec<OsString>,
    way: Way,
    /// Its name, for files and messages.
    pub(crate) name: String,
}

impl Launch {
    /// Finds the program and checks it.
    pub(crate) fn prepare(command: &[OsString]) -> Result<Self> {
        let (program, _) = command
            .split_first()
            .ok_or_else(|| Failure::usage("name a program to record"))?;
        let name = shown(Path::new(program).file_name().unwrap_or(program));
        let path = program::find(program)?;
        Ok(Self {
            arguments: command.to_vec(),
            way: way(&path)?,
            name,
        })
    }

    /// The bundled demo, as a program of its own: this one, which joins the recording by itself where it is static.
    pub(crate) fn demo() -> Result<Self> {
        let own = std::env::current_exe()
            .map_err(|e| Failure::system("find the demo (this program)", e))?;
        Ok(Self {
            way: way(&own)?,
            arguments: vec![own.into(), "demo".into()],
            name: "selvedge".into(),
        })
    }

    /// Starts it, recording into `session`, with the agent at `agent` if it takes that. Gives back its process id.
    pub(crate) fn start(&self, agent: &Path, session: &str, signals: &Signals) -> Result<i32> {
        let (program, rest) = self
            .arguments
            .split_first()
            .ok_or_else(|| Failure::usage("name a program to record"))?;
        let mut command = Command::new(program);
        command.args(rest).env("SELVEDGE_SESSION", session);
        if self.way == Way::Agent {
            preload(&mut command, program, agent);
        }
        signals.unblock_in(&mut command);
        dispositions::restore_in(&mut command);
        let child = command
            .spawn()
            .map_err(|error| Failure::cannot_run(program, &error))?;
        // The process is waited for by its id, together with any others of ours.
        Ok(child.id().cast_signed())
    }

    /// Why no process may have attached.
    pub(crate) fn why_not(&self) -> String {
        let program = self
            .arguments
            .first()
            .map_or(OsStr::new(""), OsString::as_os_str);
        match program::find(program).map(|path| program::way(&path)) {
            Ok(Err(obstacle)) => obstacle.to_string(),
            Ok(Ok(Way::Itself)) => {
                "it joins recordings by itself (Membership::from_env), but did not, or ended before".into()
            }
            _ => "it may have changed user, limited its address space (ulimit -v), or ended before it began".into(),
        }
    }
}

fn way(path: &Path) -> Result<Way> {
    program::way(path).map_err(|obstacle| Failure::cannot_load(path.as_os_str(), &obstacle))
}

/// Has the loader of `program` load the agent, before what it is to load already.
fn preload(command: &mut Command, program: &OsStr, agent: &Path) {
    let mut preload: OsString = agent.as_os_str().to_owned();
    let mut asan = false;
    if let Some(before) = std::env::var_os("LD_PRELOAD").filter(|value| !value.is_empty()) {
        asan = before.to_string_lossy().contains("libasan.so");
        preload.push(":");
        preload.push(before);
    }
    command.env("LD_PRELOAD", preload);
    if asan || program::find(program).is_ok_and(|path| program::needs_asan(&path)) {
        // AddressSanitizer refuses to start behind another library unless it is told not to: see the agent's
        // `environment`.
        let mut options = std::env::var_os("ASAN_OPTIONS").unwrap_or_default();
        options.push(if options.is_empty() { "" } else { ":" });
        options.push("verify_asan_link_order=0");
        command.env("ASAN_OPTIONS", options);
    }
}
