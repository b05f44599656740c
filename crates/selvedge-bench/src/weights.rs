//! What a profile of the burner says: how much CPU time, and in which of its functions.

use crate::profiler::Profiler;
use selvedge_pprof::model::Profile;
use std::io;
use std::path::Path;
use std::process::Command;

/// The functions that work, and their shares of it.
pub(crate) const TRUTH: [(&str, f64); 3] = [
    ("burn_half", 0.5),
    ("burn_three_tenths", 0.3),
    ("burn_one_fifth", 0.2),
];

/// Sums over a profile of the burner.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Weights {
    /// CPU nanoseconds.
    pub(crate) total: f64,
    /// CPU nanoseconds without the rows that account for time without a sample.
    pub(crate) sampled: f64,
    /// Samples with a stack.
    samples: f64,
    /// Samples with a working function on their stack.
    found: f64,
    /// CPU nanoseconds of samples with each of the working functions on their stack.
    shares: [f64; 3],
}

impl Weights {
    /// Reads the profile that `profiler` wrote; none if it cannot be attributed here.
    pub(crate) fn read(profiler: &Profiler, path: &Path) -> io::Result<Self> {
        if matches!(profiler, Profiler::Perf) {
            return Self::of_script(path);
        }
        let profile = Profile::read(&std::fs::read(path)?).map_err(io::Error::other)?;
        Self::of_profile(&profile)
            .ok_or_else(|| io::Error::other("the profile has no samples/count and cpu/nanoseconds"))
    }

    /// How far each share of the CPU time is off its truth, in standard deviations of a binomial of as many samples.
    pub(crate) fn deviations(&self) -> [f64; 3] {
        let sum: f64 = self.shares.iter().sum::<f64>().max(1.0);
        let mut deviations = [0.0; 3];
        for ((deviation, share), (_, truth)) in deviations.iter_mut().zip(self.shares).zip(TRUTH) {
            let sigma = (truth * (1.0 - truth) / self.found.max(1.0)).sqrt();
            *deviation = (share / sum - truth) / sigma;
        }
        deviations
    }

    /// The part of all samples that have a working function on their stack.
    pub(crate) fn attributed(&self) -> f64 {
        self.found / self.samples.max(1.0)
    }

    fn add<'a>(&mut self, samples: f64, cpu: f64, mut functions: impl Iterator<Item = &'a str>) {
        self.samples += samples;
        let found = functions.find_map(|name| {
            let name = name.split_whitespace().last().unwrap_or(name);
            TRUTH.iter().position(|(wanted, _)| name.ends_with(wanted))
        });
        if let Some(found) = found {
            self.found += samples;
            self.shares[found] += cpu;
        }
    }

    fn of_profile(profile: &Profile) -> Option<Self> {
        let unit = |unit: &str| {
            profile
                .sample_types
                .iter()
                .position(|kind| kind.unit == unit)
        };
        let (cpu, count) = (unit("nanoseconds")?, unit("count")?);
        let (total, sampled) = profile.accounted(cpu);
        let mut weights = Self {
            total: total as f64,
            sampled: sampled as f64,
            ..Self::default()
        };
        for sample in &profile.samples {
            let names = sample
                .locations
                .iter()
                .flat_map(|&at| &profile.locations[at].lines)
                .map(|line| profile.functions[line.function].name.as_str());
            let accounting = names
                .clone()
                .next()
                .is_some_and(selvedge_pprof::is_accounting_row);
            if !accounting {
                weights.add(
                    sample.values[count] as f64,
                    sample.values[cpu] as f64,
                    names,
                );
            }
        }
        Some(weights)
    }

    fn of_script(path: &Path) -> io::Result<Self> {
        let output = Command::new("perf")
            .args(["script", "-F", "period,ip,sym", "-i"])
            .arg(path)
            .output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!(
                "perf script on {} ended with {}",
                path.display(),
                output.status
            )));
        }
        Ok(Self::of_text(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Blocks of a period and lines of address and name, leaf first.
    fn of_text(text: &str) -> Self {
        let mut weights = Self::default();
        for block in text.split("\n\n") {
            let mut lines = block.lines();
            if let Some(period) = lines
                .next()
                .and_then(|line| line.trim().parse::<f64>().ok())
            {
                weights.total += period;
                weights.sampled += period;
                weights.add(1.0, period, lines);
            }
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_pprof::collapsed;

    #[test]
    fn perf_script_gives_periods_and_functions() {
        let text = "   1001001 \n\t  55c6 bench::burn_half\n\t  55c7 bench::run\n\n   1001001 \n\t  55c8 [unknown]\n\n";
        let weights = Weights::of_text(text);
        assert_eq!((weights.total, weights.samples), (2_002_002.0, 2.0));
        assert_eq!(weights.shares, [1_001_001.0, 0.0, 0.0]);
        assert!((weights.attributed() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn rows_without_a_stack_are_in_the_total_only() {
        let text = b"main;burn_half 50\nmain;burn_three_tenths 30\nmain;burn_one_fifth 20\n[unsampled] 7\n";
        let mut profile = collapsed::read(text).unwrap();
        profile.sample_types[0].unit = "count".into();
        profile.sample_types.push(profile.sample_types[0].clone());
        profile.sample_types[1].unit = "nanoseconds".into();
        for sample in &mut profile.samples {
            sample.values.push(sample.values[0] * 1000);
        }
        let weights = Weights::of_profile(&profile).unwrap();
        assert_eq!((weights.total, weights.sampled), (107_000.0, 100_000.0));
        assert!((weights.attributed() - 1.0).abs() < 1e-12);
        assert!(weights.deviations().iter().all(|sigma| sigma.abs() < 1e-9));
    }
}
