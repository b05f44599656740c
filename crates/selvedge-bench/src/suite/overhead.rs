//! How much more CPU time the same work takes under a profiler, beside the same work without one.
//!
//! The burner's own clocks around its own work: starting the profiler and writing the profile are not in it (`whole` rows
//! have them, and the profiler's own process). Each run of a profiler is paired with a run without one, right before it
//! or right after it by turns, so that a machine that changes its speed changes both.

use super::Settings;
use crate::figure::{Figures, median};
use crate::profiler::{Profiler, Report};
use std::io;

/// Ratios - 1 of the pairs of one profiler.
#[derive(Default)]
struct Pairs {
    cpu: Vec<f64>,
    wall: Vec<f64>,
    whole: Vec<f64>,
}

pub(crate) fn run(settings: &Settings, figures: &mut Figures) -> io::Result<()> {
    let output = settings.scratch.join("overhead");
    let threads = ["--threads".to_string(), settings.threads.to_string()];
    let sized = {
        let seconds = ["--seconds".to_string(), settings.seconds.to_string()];
        let trial = [&threads[..], &seconds].concat();
        Profiler::None.run(&settings.burner, &trial, 99, &output)?
    };
    let rounds = (sized.rounds / settings.threads as f64).round();
    let rounds = ["--rounds".to_string(), rounds.to_string()];
    let work = [&threads[..], &rounds].concat();
    for hz in [99, 999] {
        // A run without a profiler in the place of one: what of all these figures is noise.
        let mut all = vec![Profiler::None, settings.selvedge("timer")];
        all.extend_from_slice(&settings.peers);
        if hz == 999 {
            all.extend([settings.selvedge("perf"), Profiler::EmptyHandler]);
        }
        let mut pairs: Vec<Pairs> = all.iter().map(|_| Pairs::default()).collect();
        for turn in 0..settings.runs {
            for (profiler, pairs) in all.iter().zip(&mut pairs) {
                let run =
                    |profiler: &Profiler, hz| profiler.run(&settings.burner, &work, hz, &output);
                let plain = || {
                    let (without, hz) = profiler.without(hz);
                    run(&without, hz)
                };
                let measured = if turn % 2 == 0 {
                    plain().and_then(|plain| Ok((plain, run(profiler, hz)?)))
                } else {
                    run(profiler, hz).and_then(|profiled| Ok((plain()?, profiled)))
                };
                match measured {
                    Ok((plain, profiled)) => pairs.add(plain, profiled),
                    Err(error) => figures.note(&error.to_string()),
                }
            }
        }
        for (profiler, pairs) in all.iter().zip(&pairs) {
            report(figures, profiler, hz, pairs);
        }
        beside_empty_handler(figures, &all, &pairs);
    }
    Ok(())
}

impl Pairs {
    fn add(&mut self, plain: Report, profiled: Report) {
        self.cpu.push(profiled.cpu / plain.cpu - 1.0);
        self.wall.push(profiled.wall / plain.wall - 1.0);
        self.whole
            .push(profiled.everything / plain.everything - 1.0);
    }
}

fn report(figures: &mut Figures, profiler: &Profiler, hz: u32, pairs: &Pairs) {
    let (name, peer) = match profiler {
        Profiler::None => (format!("overhead_null_{hz}"), "none"),
        Profiler::EmptyHandler => ("perf_empty_handler".to_string(), "none"),
        Profiler::Selvedge { engine: "perf", .. } => (format!("overhead_perf_{hz}"), "selvedge"),
        other => (format!("overhead_{hz}"), other.name()),
    };
    let rows = [
        ("", &pairs.cpu),
        ("_wall", &pairs.wall),
        ("_whole", &pairs.whole),
    ];
    for (of, ratios) in rows {
        figures.add("overhead", &format!("{name}{of}"), "ratio", peer, ratios);
    }
}

/// What the perf engine costs, in costs of signals to a handler that does nothing.
fn beside_empty_handler(figures: &mut Figures, all: &[Profiler], pairs: &[Pairs]) {
    let of = |wanted: &str| {
        let at = all.iter().position(|profiler| profiler.name() == wanted)?;
        Some(pairs[at].cpu.as_slice()).filter(|costs| !costs.is_empty())
    };
    if let (Some(ours), Some(empty)) = (of("selvedge-perf"), of("empty handler")) {
        let empty = median(empty);
        let ratios: Vec<f64> = ours.iter().map(|ours| ours / empty).collect();
        figures.add(
            "overhead",
            "perf_over_empty_handler",
            "ratio",
            "selvedge",
            &ratios,
        );
    }
}
