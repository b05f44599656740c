//! Numbers as pprof writes them: scaled to a unit that suits, and percentages.

/// A unit of a family, and how many base units it is.
type Unit = (&'static str, &'static [&'static str], f64);

const BYTES: &[Unit] = &[
    ("B", &["b", "byte"], 1.0),
    ("kB", &["kb", "kbyte", "kilobyte"], 1024.0),
    ("MB", &["mb", "mbyte", "megabyte"], 1_048_576.0),
    ("GB", &["gb", "gbyte", "gigabyte"], 1_073_741_824.0),
    ("TB", &["tb", "tbyte", "terabyte"], 1_099_511_627_776.0),
    ("PB", &["pb", "pbyte", "petabyte"], 1_125_899_906_842_624.0),
];

const TIME: &[Unit] = &[
    ("ns", &["ns", "nanosecond"], 1.0),
    ("us", &["μs", "us", "microsecond"], 1e3),
    ("ms", &["ms", "millisecond"], 1e6),
    ("s", &["s", "sec", "second"], 1e9),
    ("hrs", &["hour", "hr"], 3600e9),
];

/// The families, each with the index of the unit for what has none of its own.
const FAMILIES: [(&[Unit], usize); 2] = [(BYTES, 0), (TIME, 3)];

fn find(family: &[Unit], name: &str) -> Option<usize> {
    let mut name = name.to_lowercase();
    if name.len() > 2 && name.ends_with('s') {
        name.pop();
    }
    family
        .iter()
        .position(|(_, aliases, _)| aliases.contains(&name.as_str()))
}

/// Converts `value` to the unit `to`, or one that suits it where `to` is `minimum` or `auto`.
///
/// Returns the name of the unit too, which is empty for plain counts.
pub(super) fn scale(value: i64, from: &str, to: &str) -> (f64, String) {
    if value < 0 && value > i64::MIN {
        let (value, unit) = scale(-value, from, to);
        return (-value, unit);
    }
    let automatic = to == "minimum" || to == "auto";
    for (family, default) in FAMILIES {
        let Some(from) = find(family, from) else {
            continue;
        };
        let base = value as f64 * family[from].2;
        let to = if automatic {
            family.iter().rposition(|(.., factor)| base / factor >= 1.0)
        } else {
            find(family, to)
        };
        let (name, _, factor) = family[to.unwrap_or(default)];
        return (base / factor, name.to_owned());
    }
    let plain = automatic || ["count", "sample", "unit"].contains(&to);
    (
        value as f64,
        if plain { String::new() } else { to.to_owned() },
    )
}

/// Writes `value` in the unit `to`, as [`scale`] converts it.
pub(super) fn label(value: i64, from: &str, to: &str) -> String {
    let (scaled, unit) = scale(value, from, to);
    let number = format!("{scaled:.2}");
    let number = number.strip_suffix(".00").unwrap_or(&number);
    if number == "0" || number == "-0" {
        return "0".to_owned();
    }
    format!("{number}{unit}")
}

/// Writes what share of `total` is `value`, in at least six characters.
pub(super) fn percentage(value: i64, total: i64) -> String {
    let ratio = if total == 0 {
        0.0
    } else {
        (value as f64 / total as f64).abs() * 100.0
    };
    if (99.95..=100.05).contains(&ratio) {
        "  100%".to_owned()
    } else if ratio >= 1.0 {
        format!("{ratio:5.2}%")
    } else {
        format!("{:>5}%", two_digits(ratio))
    }
}

/// Writes a number below 1 with two significant digits, without trailing zeros: C's `%.2g`.
fn two_digits(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{number:.1e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if exponent < -4 {
        let digits = digits.strip_suffix(".0").unwrap_or(digits);
        return format!("{digits}e-{:02}", -exponent);
    }
    let decimals = usize::try_from(1 - exponent).unwrap_or(0);
    let plain = format!("{number:.decimals$}");
    plain.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The expectations of both tests are the output of google/pprof's `measurement` package.

    #[test]
    fn labels_are_those_of_pprof() {
        for (value, from, to, expected) in [
            (0, "nanoseconds", "auto", "0"),
            (1, "ns", "auto", "1ns"),
            (1500, "nanoseconds", "auto", "1.50us"),
            (10_000_000, "nanoseconds", "ms", "10ms"),
            (10_000_000, "nanoseconds", "s", "0.01s"),
            (1_000_000, "nanoseconds", "s", "0"),
            (7_200_000_000_000, "nanoseconds", "auto", "2hrs"),
            (-1500, "ns", "auto", "-1.50us"),
            (1536, "bytes", "auto", "1.50kB"),
            (5, "count", "minimum", "5"),
            (5, "count", "count", "5"),
            (5, "widgets", "widgets", "5widgets"),
            (5, "seconds", "bytes", "5s"),
        ] {
            assert_eq!(label(value, from, to), expected, "{value} {from} as {to}");
        }
    }

    #[test]
    fn percentages_are_those_of_pprof() {
        for (value, total, expected) in [
            (0, 0, "    0%"),
            (0, 5, "    0%"),
            (1, 1, "  100%"),
            (9996, 10_000, "  100%"),
            (999, 1000, "99.90%"),
            (1, 3, "33.33%"),
            (-1, 3, "33.33%"),
            (3, 1, "300.00%"),
            (1, 100, " 1.00%"),
            (1, 200, "  0.5%"),
            (123, 100_000, " 0.12%"),
            (996, 100_000, "    1%"),
            (1, 100_000, "0.001%"),
            (12, 10_000_000, "0.00012%"),
            (12, 100_000_000, "1.2e-05%"),
            (1, 10_000_000, "1e-05%"),
        ] {
            assert_eq!(percentage(value, total), expected, "{value} of {total}");
        }
    }
}
