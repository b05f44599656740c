//! How much of the threads' CPU time is in the profile, and whether known shares come out.

use super::Settings;
use crate::figure::Figures;
use crate::profiler::Profiler;
use selvedge_pprof::model::Profile;
use std::io;
use std::path::Path;

/// What a profile says of the burner.
struct Weights {
    total: f64,
    sampled: f64,
    /// Shares of the three functions, of what is in any of them.
    shares: [f64; 3],
    samples: f64,
}

pub(crate) fn run(settings: &Settings, figures: &mut Figures) -> io::Result<()> {
    let ours = Profiler::Selvedge {
        program: settings.selvedge.clone(),
        engine: "auto",
    };
    let output = settings.scratch.join("weight.pb.gz");
    let runs = settings.runs.min(5);
    for threads in [1, 2, 8] {
        for hz in [99, 999, 4000] {
            let (mut totals, mut sampled) = (Vec::new(), Vec::new());
            for _ in 0..runs {
                let arguments = arguments(threads, settings.seconds);
                let report =
                    ours.run(&settings.burner, &arguments, hz, &settings.scratch, &output)?;
                let weights = read(&output)?;
                totals.push(weights.total / report.threads);
                sampled.push(weights.sampled / report.threads);
            }
            figures.add(
                "weight",
                &format!("weight_{threads}t_{hz}hz"),
                "ratio",
                "selvedge",
                &totals,
            );
            figures.add(
                "weight",
                &format!("weight_sampled_{threads}t_{hz}hz"),
                "ratio",
                "selvedge",
                &sampled,
            );
        }
    }
    for peer in Profiler::peers(settings.pprof_rs.as_deref()) {
        if matches!(peer, Profiler::Perf) {
            // Its own format, which we do not read.
            continue;
        }
        let mut ratios = Vec::new();
        for _ in 0..runs {
            let arguments = arguments(1, settings.seconds);
            let report = peer.run(
                &settings.burner,
                &arguments,
                999,
                &settings.scratch,
                &output,
            )?;
            ratios.push(read(&output)?.total / report.threads);
        }
        figures.add("weight", "weight_1t_999hz", "ratio", peer.name(), &ratios);
    }
    shares(settings, figures, &ours, &output)
}

/// The known shares, in standard deviations of a binomial from what they should be.
fn shares(
    settings: &Settings,
    figures: &mut Figures,
    ours: &Profiler,
    output: &Path,
) -> io::Result<()> {
    let mut deviations = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..settings.runs.min(5) {
        ours.run(
            &settings.burner,
            &arguments(2, settings.seconds * 2.0),
            999,
            &settings.scratch,
            output,
        )?;
        let weights = read(output)?;
        for (at, (share, truth)) in weights.shares.iter().zip([0.5, 0.3, 0.2]).enumerate() {
            let sigma = (truth * (1.0 - truth) / weights.samples.max(1.0)).sqrt();
            deviations[at].push((share - truth) / sigma);
        }
    }
    for (values, name) in
        deviations
            .iter()
            .zip(["share_half", "share_three_tenths", "share_one_fifth"])
    {
        figures.add("weight", name, "sigma", "selvedge", values);
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

fn read(path: &Path) -> io::Result<Weights> {
    let profile = Profile::read(&std::fs::read(path)?).map_err(io::Error::other)?;
    let index = profile
        .sample_types
        .iter()
        .position(|kind| kind.unit == "nanoseconds");
    let index = index.ok_or_else(|| io::Error::other("the profile has no CPU time"))?;
    let (total, sampled) = profile.accounted(index);
    let mut shares = [0.0; 3];
    let mut samples = 0.0;
    for sample in &profile.samples {
        let lines = sample
            .locations
            .iter()
            .flat_map(|&at| &profile.locations[at].lines);
        let mut names = lines.map(|line| profile.functions[line.function].name.as_str());
        let found = names.find_map(|name| {
            ["burn_half", "burn_three_tenths", "burn_one_fifth"]
                .iter()
                .position(|wanted| name.ends_with(wanted))
        });
        if let Some(found) = found {
            shares[found] += sample.values[index] as f64;
            samples += sample.values[0] as f64;
        }
    }
    let sum: f64 = shares.iter().sum();
    Ok(Weights {
        total: total as f64,
        sampled: sampled as f64,
        shares: shares.map(|share| share / sum.max(1.0)),
        samples,
    })
}
