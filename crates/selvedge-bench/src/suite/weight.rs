//! How much of the threads' CPU time is in the profile, and whether known shares come out.

use super::Settings;
use crate::figure::Figures;
use crate::profiler::Profiler;
use crate::weights::{TRUTH, Weights};
use std::io;

/// What one profiler made of one load.
struct Row {
    profiler: Profiler,
    threads: usize,
    hz: u32,
    totals: Vec<f64>,
    sampled: Vec<f64>,
}

pub(crate) fn run(settings: &Settings, figures: &mut Figures) -> io::Result<()> {
    let mut rows = Vec::new();
    for threads in [1, 2, 8] {
        for hz in [99, 999, 4000] {
            let mut profilers = vec![settings.selvedge("auto")];
            if hz == 999 {
                profilers.push(settings.selvedge("perf"));
                profilers.extend_from_slice(&settings.peers);
            }
            rows.extend(profilers.into_iter().map(|profiler| Row {
                profiler,
                threads,
                hz,
                totals: Vec::new(),
                sampled: Vec::new(),
            }));
        }
    }
    for _ in 0..settings.runs.min(5) {
        for row in &mut rows {
            if let Err(error) = row.measure(settings) {
                figures.note(&error.to_string());
            }
        }
    }
    for row in &rows {
        let load = format!("{}t_{}hz", row.threads, row.hz);
        let (name, peer) = (format!("weight_{load}"), row.profiler.name());
        figures.add("weight", &name, "ratio", peer, &row.totals);
        if let Profiler::Selvedge { .. } = row.profiler {
            let name = format!("weight_sampled_{load}");
            figures.add("weight", &name, "ratio", peer, &row.sampled);
        }
    }
    shares(settings, figures)
}

impl Row {
    fn measure(&mut self, settings: &Settings) -> io::Result<()> {
        let output = settings.scratch.join("weight");
        let arguments = arguments(self.threads, settings.seconds);
        let report = self
            .profiler
            .run(&settings.burner, &arguments, self.hz, &output)?;
        let weights = Weights::read(&self.profiler, &output)?;
        self.totals.push(weights.total / report.threads);
        self.sampled.push(weights.sampled / report.threads);
        Ok(())
    }
}

/// The known shares, and what part of the samples shows one of the three functions at all.
fn shares(settings: &Settings, figures: &mut Figures) -> io::Result<()> {
    let output = settings.scratch.join("shares");
    let mut profilers = vec![settings.selvedge("auto"), settings.selvedge("perf")];
    profilers.extend_from_slice(&settings.peers);
    // Its profiles have addresses, no names.
    profilers.retain(|profiler| !matches!(profiler, Profiler::Gperftools { .. }));
    let mut measured = vec![Vec::new(); profilers.len()];
    for _ in 0..settings.runs.min(5) {
        for (profiler, measured) in profilers.iter().zip(&mut measured) {
            let arguments = arguments(2, settings.seconds * 2.0);
            profiler.run(&settings.burner, &arguments, 999, &output)?;
            measured.push(Weights::read(profiler, &output)?);
        }
    }
    for (profiler, measured) in profilers.iter().zip(&measured) {
        let peer = profiler.name();
        for (at, (function, _)) in TRUTH.iter().enumerate() {
            let sigmas: Vec<f64> = measured
                .iter()
                .map(|weights| weights.deviations()[at])
                .collect();
            figures.add(
                "weight",
                &format!("share_{function}"),
                "sigma",
                peer,
                &sigmas,
            );
        }
        let attributed: Vec<f64> = measured.iter().map(Weights::attributed).collect();
        figures.add("weight", "share_attributed", "ratio", peer, &attributed);
    }
    Ok(())
}

fn arguments(threads: usize, seconds: f64) -> Vec<String> {
    vec![
        "--threads".into(),
        threads.to_string(),
        "--seconds".into(),
        seconds.to_string(),
    ]
}
