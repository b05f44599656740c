//! How much more CPU time the same work takes under a profiler, beside the same work without one.
//!
//! The burner's own clocks around its own work: starting the profiler and writing the profile are not in it. Each run of a
//! profiler is paired with a run without one, right before it, so that a machine that changes its speed changes both.

use super::Settings;
use crate::figure::Figures;
use crate::profiler::Profiler;
use std::io;

pub(crate) fn run(settings: &Settings, figures: &mut Figures) -> io::Result<()> {
    let output = settings.scratch.join("overhead");
    let trial = ["--seconds".to_string(), settings.seconds.to_string()];
    let sized = Profiler::None.run(&settings.burner, &trial, 99, &settings.scratch, &output)?;
    let work = ["--rounds".to_string(), format!("{:.0}", sized.rounds)];
    let cpu = |profiler: &Profiler, hz| {
        let _ = std::fs::remove_file(&output);
        profiler
            .run(&settings.burner, &work, hz, &settings.scratch, &output)
            .map(|report| report.cpu)
    };
    for hz in [99, 999] {
        let selvedge = |engine| Profiler::Selvedge {
            program: settings.selvedge.clone(),
            engine,
        };
        // A run without a profiler in the place of one: what of all these figures is noise.
        let mut all = vec![Profiler::None, selvedge("timer"), selvedge("perf")];
        all.extend(Profiler::peers(settings.pprof_rs.as_deref()));
        let mut ratios = vec![Vec::new(); all.len()];
        for _ in 0..settings.runs {
            for (profiler, ratios) in all.iter().zip(&mut ratios) {
                let plain = cpu(&Profiler::None, hz)?;
                match cpu(profiler, hz) {
                    Ok(profiled) => ratios.push(profiled / plain - 1.0),
                    Err(error) => figures.note(&format!("{}: {error}", profiler.name())),
                }
            }
        }
        for (profiler, ratios) in all.iter().zip(&ratios) {
            figures.add(
                "overhead",
                &format!("overhead_{hz}"),
                "ratio",
                profiler.name(),
                ratios,
            );
        }
    }
    Ok(())
}
