//! `selvedge doctor`: which engine will be used here and why, which limits apply, how to lift each.

use crate::arguments::Doctor;
use crate::failure::{Failure, Result, shown};
use crate::program::{self, Way};
use crate::streams;
use selvedge_profile::{ITIMER_TAKEN, perf_permitted, tick_nanos};
use serde::Serialize;
use std::process::ExitCode;

/// What was found; version 1.
#[derive(Debug, Serialize)]
struct Findings {
    version: u32,
    engine: &'static str,
    engine_reason: &'static str,
    checks: Vec<Check>,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    /// `ok`, `limit` (works, with a limit), `problem`.
    state: &'static str,
    found: String,
    advice: Option<String>,
}

impl Check {
    fn new(name: &'static str, state: &'static str, found: String, advice: Option<&str>) -> Self {
        Self {
            name,
            state,
            found,
            advice: advice.map(str::to_string),
        }
    }
}

/// Runs the command.
pub(crate) fn run(options: &Doctor) -> Result<ExitCode> {
    let mut checks = vec![
        tick(),
        perf(),
        pending_signals(),
        itimer(),
        address_space(),
        frequency_of_signal(),
    ];
    if let Some(command) = &options.command {
        checks.push(loadable(command));
    }
    let findings = Findings {
        version: 1,
        engine: "timer",
        engine_reason: "a CPU-time timer per thread needs no privileges, costs next to nothing, and its weights are exact",
        checks,
    };
    let text = if options.json {
        serde_json::to_string_pretty(&findings).map_err(Failure::own)? + "\n"
    } else {
        words(&findings)
    };
    streams::print(text.as_bytes())?;
    let sick = findings.checks.iter().any(|check| check.state == "problem");
    Ok(ExitCode::from(u8::from(sick)))
}

fn words(findings: &Findings) -> String {
    let mut text = format!("engine: {} ({})\n", findings.engine, findings.engine_reason);
    for check in &findings.checks {
        text.push_str(&format!(
            "{:<8} {}: {}\n",
            check.state, check.name, check.found
        ));
        if let Some(advice) = &check.advice {
            text.push_str(&format!("         -> {advice}\n"));
        }
    }
    text
}

fn tick() -> Check {
    let hz = 1_000_000_000 / tick_nanos().max(1);
    Check::new(
        "kernel tick",
        if hz < 1000 { "limit" } else { "ok" },
        format!(
            "{hz} a second: the timer engine takes at most {hz} samples per CPU second and thread; weights stay exact"
        ),
        Some(
            "work that repeats in step with the tick is seen askew, and higher rates are not reached: --engine perf",
        ),
    )
}

fn perf() -> Check {
    let paranoid =
        std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let paranoid = paranoid.trim();
    match perf_permitted() {
        Ok(()) => Check::new(
            "perf engine",
            "ok",
            format!("permitted (perf_event_paranoid={paranoid})"),
            None,
        ),
        Err(error) => Check::new(
            "perf engine",
            "limit",
            format!("not permitted: {error} (perf_event_paranoid={paranoid})"),
            Some(
                "sudo sysctl kernel.perf_event_paranoid=1; in a container, allow perf_event_open in its seccomp profile",
            ),
        ),
    }
}

fn itimer() -> Check {
    let found = format!("the last resort, and never chosen where timers work: {ITIMER_TAKEN}");
    Check::new("itimer engine", "limit", found, None)
}

fn limit(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.get(name.len()..)?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn pending_signals() -> Check {
    match limit("Max pending signals") {
        Some(number) if number < 4096 => Check::new(
            "timers",
            "limit",
            format!(
                "{number} for all processes of this user; threads beyond fall back to the itimer engine"
            ),
            Some("raise it: ulimit -i 65536"),
        ),
        Some(number) => Check::new(
            "timers",
            "ok",
            format!("{number} for all processes of this user"),
            None,
        ),
        None => Check::new("timers", "ok", "unlimited".into(), None),
    }
}

fn address_space() -> Check {
    match limit("Max address space") {
        Some(bytes) => Check::new(
            "address space",
            "limit",
            format!(
                "limited to {} MiB; recording reserves {} MiB of it",
                bytes >> 20,
                selvedge_sample::Region::SIZE >> 20
            ),
            Some("lift it for recorded programs: ulimit -v unlimited"),
        ),
        None => Check::new("address space", "ok", "unlimited".into(), None),
    }
}

fn frequency_of_signal() -> Check {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let mask = blocked
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    if mask >> (libc::SIGPROF - 1) & 1 == 1 {
        let found = "blocked in this shell, and so in what it starts".to_string();
        return Check::new("signal", "problem", found, Some("use --signal SIGRTMIN+3"));
    }
    Check::new("signal", "ok", "SIGPROF is not blocked".into(), None)
}

fn loadable(command: &std::ffi::OsStr) -> Check {
    let path = match program::find(command) {
        Ok(path) => path,
        Err(failure) => return Check::new("program", "problem", failure.to_string(), None),
    };
    let name = shown(&path);
    match program::way(&path) {
        Ok(Way::Itself) => {
            let found = format!("{name} can be recorded: it joins by itself");
            Check::new("program", "ok", found, None)
        }
        Ok(Way::Agent) => Check::new("program", "ok", format!("{name} can be recorded"), None),
        Err(obstacle) => {
            let found = format!("{name} cannot be recorded: {obstacle}");
            Check::new("program", "problem", found, Some(obstacle.advice()))
        }
    }
}
