//! `selvedge-prover`: see the library.

use clap::Parser;
use selvedge_prover::arguments::Arguments;
use selvedge_prover::launch::{self, BECOME, Ending, Scratch};
use selvedge_prover::report::Findings;
use selvedge_prover::stepper::{Settings, Stepper};
use selvedge_prover::tracee;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let all: Vec<OsString> = std::env::args_os().collect();
    if let [_, first, rest @ ..] = all.as_slice()
        && first == BECOME
    {
        let error = launch::become_program(rest);
        eprintln!(
            "cannot run {}: {error}",
            rest.get(5)
                .map_or_else(Default::default, |p| p.display().to_string())
        );
        return ExitCode::from(127);
    }
    let arguments = Arguments::parse();
    match prove(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("selvedge-prover: {error}");
            ExitCode::from(2)
        }
    }
}

/// Proves, and prints. Returns whether all is well.
fn prove(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    for file in [&arguments.preload, &arguments.stdin].into_iter().flatten() {
        std::fs::File::open(file).map_err(|e| format!("cannot open {}: {e}", file.display()))?;
    }
    let command = arguments.command[0].display();
    launch::find(&arguments.command[0]).map_err(|e| format!("cannot run {command}: {e}"))?;
    let scratch = Scratch::new()?;
    let alone = match arguments.once {
        true => None,
        false => Some(
            launch::run_alone(&scratch, arguments)
                .map_err(|e| format!("cannot run {command}: {e}"))?,
        ),
    };
    tracee::catch_interrupts();
    let launched = launch::start(&scratch, arguments)
        .map_err(|e| format!("cannot start the profiler: {e}"))?;
    let settings = Settings {
        visits: usize::from(arguments.visits),
        windows: arguments.window.clone(),
        max_steps: arguments.max_steps.unwrap_or(u64::MAX),
        library: arguments
            .preload
            .as_ref()
            .map(std::fs::canonicalize)
            .transpose()?,
    };
    let progress = if !arguments.quiet && std::io::stderr().is_terminal() {
        show
    } else {
        |_: &Findings| ()
    };
    let pid = launched.tracee.0.unsigned_abs();
    let (mut findings, status, _) = Stepper::new(launched, settings, progress).run()?;
    let mut problems = Vec::new();
    if let (Some(alone), Some(status)) = (&alone, status)
        && let Some(difference) = alone.difference(&Ending::new(&scratch, "stepped", pid, status))
    {
        problems.push(format!("the program was changed: {difference}"));
    }
    let messages = scratch.text("messages");
    if !messages.is_empty() {
        problems.push(format!("the profiler says: {}", messages.trim_end()));
    }
    if findings.cut && arguments.max_steps.is_none() {
        problems.push("it was interrupted before the end of the program".into());
    }
    if arguments.preload.is_none() {
        findings.in_profile = samples_in(&scratch)?;
        if findings.in_profile.is_none() && !findings.cut {
            problems.push("the profiler wrote no profile".into());
        }
    }
    problems.extend(judge(arguments, &findings));
    let text = if arguments.json {
        findings.json()
    } else {
        findings.text()
    };
    let mut out = std::io::stdout().lock();
    // A closed pipe is no failure: the reader has seen enough.
    let _ = out.write_all(text.as_bytes());
    for problem in &problems {
        eprintln!("selvedge-prover: not proved: {problem}");
    }
    Ok(problems.is_empty())
}

/// What is not well.
fn judge(arguments: &Arguments, findings: &Findings) -> Vec<String> {
    let mut problems = Vec::new();
    if findings.profiler.is_empty() {
        problems.push(format!(
            "the profiler was not ready to take signals after {} instructions (a static program never gets the agent)",
            findings.steps
        ));
        return problems;
    }
    if findings.samples < arguments.least {
        problems.push(format!(
            "only {} samples, which prove little (--least {})",
            findings.samples, arguments.least
        ));
    }
    if findings.wrong > 0 {
        problems.push(format!("{} of the stacks are wrong", findings.wrong));
    }
    if findings.changed > 0 {
        problems.push(format!(
            "{} of the handlers changed something",
            findings.changed
        ));
    }
    if findings.exact_share() < arguments.exact {
        problems.push(format!(
            "only {:.3} % of the stacks are exact (--exact {})",
            findings.exact_share(),
            arguments.exact
        ));
    }
    if !arguments.window.is_empty() && findings.windows == 0 {
        problems.push("no function has the name that --window gives".into());
    }
    match findings.in_profile {
        Some(samples) if samples < findings.samples => {
            problems.push(format!(
                "{} signals, but {samples} samples in the profile",
                findings.samples
            ));
        }
        _ => {}
    }
    problems
}

/// Samples in the profile that the profiler wrote, if it did.
fn samples_in(scratch: &Scratch) -> Result<Option<u64>, Box<dyn std::error::Error>> {
    let Ok(bytes) = std::fs::read(scratch.file("profile.pb.gz")) else {
        return Ok(None);
    };
    let profile = selvedge_pprof::model::Profile::read(&bytes[..])?;
    let samples = profile
        .samples
        .iter()
        .filter_map(|sample| sample.values.first());
    Ok(Some(
        samples.map(|&count| count.max(0).unsigned_abs()).sum(),
    ))
}

fn show(findings: &Findings) {
    let Findings {
        steps,
        samples,
        exact,
        marked,
        wrong,
        ..
    } = findings;
    eprint!("\r{steps} steps, {samples} samples: exact {exact}, marked {marked}, wrong {wrong} ");
}
