//! Figures: medians with the least and the most beside them, as a table or as lines of JSON.

use std::io::Write;

/// Prints figures as they come.
#[derive(Debug)]
pub(crate) struct Figures {
    json: bool,
    header: bool,
}

/// The middle of some numbers; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (length, middle) if length % 2 == 0 => sorted[middle - 1].midpoint(sorted[middle]),
        (_, middle) => sorted[middle],
    }
}

impl Figures {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            header: false,
        }
    }

    /// One figure, of several runs.
    pub(crate) fn add(&mut self, suite: &str, name: &str, unit: &str, peer: &str, values: &[f64]) {
        if values.is_empty() {
            return self.note(&format!("{suite} {name} {peer}: not measured"));
        }
        let middle = median(values);
        let mut out = std::io::stdout().lock();
        if self.json {
            let line = serde_json::json!({"suite": suite, "name": name, "value": middle, "unit": unit, "peer": peer});
            // A closed pipe ends the output, not the measurement.
            let _ = writeln!(out, "{line}");
            return;
        }
        if !self.header {
            self.header = true;
            let _ = writeln!(
                out,
                "{:<9} {:<26} {:<14} {:>10} {:>10} {:>10}  {:<6} runs",
                "suite", "name", "peer", "median", "least", "most", "unit"
            );
        }
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let runs = values.len();
        let _ = writeln!(
            out,
            "{suite:<9} {name:<26} {peer:<14} {middle:>10.4} {least:>10.4} {most:>10.4}  {unit:<6} {runs}"
        );
    }

    /// The machine, and how busy it is with other work: figures of a busy one are of little use.
    pub(crate) fn machine(&self) {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let model = model.map_or("unknown CPU", |line| {
            line.trim_start_matches([' ', '\t', ':'])
        });
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = read("/proc/sys/kernel/osrelease");
        let load = read("/proc/loadavg");
        let load = load.split(' ').next().unwrap_or_default();
        self.note(&format!(
            "{cpus} x {model}, Linux {}, load {load}",
            kernel.trim()
        ));
    }

    /// Something that the reader of the figures should know.
    pub(crate) fn note(&self, text: &str) {
        eprintln!("selvedge-bench: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn median_of_odd_and_even_numbers() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
        assert!(median(&[]).abs() < 1e-12);
    }
}
