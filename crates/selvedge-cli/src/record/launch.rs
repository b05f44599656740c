//! Finds CMD, checks that the agent can be loaded into it, starts it.

use super::signals::Signals;
use crate::failure::{Failure, Result, shown};
use crate::{dispositions, program};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// CMD, found and checked.
#[derive(Debug)]
pub(crate) struct Launch {
    arguments: Vec<OsString>,
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
        if let Some(obstacle) = program::obstacle(&path) {
            return Err(Failure::cannot_load(path.as_os_str(), &obstacle));
        }
        Ok(Self {
            arguments: command.to_vec(),
            name,
        })
    }

    /// The bundled demo, as a program of its own: this one, which joins the recording by itself where it gets no agent.
    pub(crate) fn demo() -> Result<Self> {
        let own = std::env::current_exe()
            .map_err(|e| Failure::system("find the demo (this program)", e))?;
        Ok(Self {
            arguments: vec![own.into(), "demo".into()],
            name: "selvedge".into(),
        })
    }

    /// Starts it with the agent at `agent`, recording into `session`. Gives back its process id.
    pub(crate) fn start(&self, agent: &Path, session: &str, signals: &Signals) -> Result<i32> {
        let mut preload: OsString = agent.as_os_str().to_owned();
        let mut asan = false;
        if let Some(before) = std::env::var_os("LD_PRELOAD").filter(|value| !value.is_empty()) {
            asan = before.to_string_lossy().contains("libasan.so");
            preload.push(":");
            preload.push(before);
        }
        let (program, rest) = self
            .arguments
            .split_first()
            .ok_or_else(|| Failure::usage("name a program to record"))?;
        let mut command = Command::new(program);
        command
            .args(rest)
            .env("LD_PRELOAD", preload)
            .env("SELVEDGE_SESSION", session);
        if asan || program::find(program).is_ok_and(|path| program::needs_asan(&path)) {
            // AddressSanitizer refuses to start behind another library unless it is told not to: see the agent's
            // `environment`.
            let mut options = std::env::var_os("ASAN_OPTIONS").unwrap_or_default();
            options.push(if options.is_empty() { "" } else { ":" });
            options.push("verify_asan_link_order=0");
            command.env("ASAN_OPTIONS", options);
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
        let found: Option<PathBuf> = program::find(program).ok();
        match found.and_then(|path| program::obstacle(&path)) {
            Some(obstacle) => obstacle.to_string(),
            None => "it may have changed user, limited its address space (ulimit -v), or ended before it began".into(),
        }
    }
}
