//! The report `top`: the functions that weigh most.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::filter::Filter;
use super::graph::{Callers, Functions, Graph};
use super::measurement::{label, percentage, scale};
use crate::error::Error;
use crate::frame;
use crate::model::{Profile, ValueType};

/// The order of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// By what a function's own instructions weigh.
    #[default]
    Flat,
    /// By what it weighs with all that it calls.
    Cum,
}

/// What [`Top`] shows. The fields are called as the options of `go tool pprof`, and have its defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct TopOptions {
    /// The type of the values: a name or a number; empty for the profile's default.
    pub sample_index: String,
    /// How many rows to show at most; 0 for all.
    pub nodecount: usize,
    /// Leave out functions with less than this share of the total, from 0 to 1.
    pub nodefraction: f64,
    /// Take no notice of calls with less than this share of the total, from 0 to 1, when marking inlined functions.
    pub edgefraction: f64,
    /// The order of the rows.
    pub sort: Sort,
    /// The unit of what is shown; `minimum` for one that suits all rows, `auto` for one that suits each.
    pub unit: String,
    /// Which samples and frames to look at. Percentages are of the whole profile in any case.
    pub filter: Filter,
}

impl Default for TopOptions {
    fn default() -> Self {
        Self {
            sample_index: String::new(),
            nodecount: 0,
            nodefraction: 0.005,
            edgefraction: 0.001,
            sort: Sort::Flat,
            unit: "minimum".to_owned(),
            filter: Filter::default(),
        }
    }
}

/// Whether a function was inlined into its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inline {
    /// In no call that is shown.
    No,
    /// In some.
    Partial,
    /// In all.
    Yes,
}

/// A function and what it weighs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name; its file in brackets where that is not known.
    pub name: String,
    /// Whether it was inlined.
    pub inline: Inline,
    /// What its own instructions weigh.
    pub flat: i64,
    /// What the samples weigh that it occurs in, each counted once however often it recurs.
    pub cum: i64,
}

/// The functions that weigh most.
///
/// Written with `{}`, it is what `go tool pprof -top` prints; times are in the local time zone, as there.
///
/// # Examples
///
/// ```
/// use selvedge_pprof::collapsed;
/// use selvedge_pprof::report::{Top, TopOptions};
///
/// let profile = collapsed::read(b"main;parse 3\nmain;run 5\n")?;
/// let top = Top::new(&profile, &TopOptions::default())?;
/// assert_eq!(top.rows()[0].name, "run");
/// assert_eq!(
///     top.to_string(),
///     "Type: samples\n\
///      Showing nodes accounting for 8, 100% of 8 total\n\
///      \u{20}     flat  flat%   sum%        cum   cum%\n\
///      \u{20}        5 62.50% 62.50%          5 62.50%  run\n\
///      \u{20}        3 37.50%   100%          3 37.50%  parse\n\
///      \u{20}        0     0%   100%          8   100%  main\n"
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Top {
    sample_type: ValueType,
    unit: String,
    total: i64,
    sampled: i64,
    rows: Vec<Row>,
    dropped: usize,
    cutoff: i64,
    candidates: usize,
    header: Vec<String>,
}

impl Top {
    /// Makes the report of `profile`.
    ///
    /// # Errors
    ///
    /// If `profile` has no such sample type, or a regular expression is wrong.
    ///
    /// # Panics
    ///
    /// If a sample names a location that `profile` does not have.
    pub fn new(profile: &Profile, options: &TopOptions) -> Result<Self, Error> {
        let index = profile.sample_index(&options.sample_index)?;
        let sample_type = profile.sample_types[index].clone();
        let (total, sampled) = profile.accounted(index);
        let filtered = options.filter.apply(profile)?;
        let functions = Functions::new(&filtered);
        let selection = select(&functions, &filtered, index, options);
        let callers = selection.graph.callers(selection.edge_cutoff);
        let rows: Vec<Row> = (selection.order.iter())
            .map(|&node| {
                let weights = &selection.graph.nodes[node];
                Row {
                    name: weights.name.clone(),
                    inline: inline(callers[node]),
                    flat: weights.flat,
                    cum: weights.cum,
                }
            })
            .collect();
        let unit = output_unit(&rows, total, &sample_type.unit, &options.unit);
        let mut top = Self {
            unit,
            total,
            sampled,
            rows,
            dropped: selection.dropped,
            cutoff: share(total, options.nodefraction),
            candidates: selection.candidates,
            header: Vec::new(),
            sample_type,
        };
        top.header = top.describe(profile, &options.filter);
        Ok(top)
    }

    /// Returns the type of the values.
    #[must_use]
    pub fn sample_type(&self) -> &ValueType {
        &self.sample_type
    }

    /// Returns the total of the whole profile, whatever is shown of it.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.total
    }

    /// Returns the total without [rows that account for values without a stack](crate::is_accounting_row).
    #[must_use]
    pub fn sampled(&self) -> i64 {
        self.sampled
    }

    /// Returns the functions, in the order asked for.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Returns how many functions were left out because they weigh too little.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Returns the report as JSON, of version 1:
    /// `{"version":1,"sample_type":{"type","unit"},"total","sampled","dropped","rows":[{"name","inline","flat","cum"}]}`.
    ///
    /// `inline` is `no`, `partial` or `yes`; `sampled` is the total without rows that account for values without a
    /// stack, and `dropped` how many functions were left out because they weigh too little. Later versions may add
    /// fields.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "version": 1,
            "sample_type": { "type": self.sample_type.kind, "unit": self.sample_type.unit },
            "total": self.total,
            "sampled": self.sampled,
            "dropped": self.dropped,
            "rows": self.rows,
        })
    }

    fn value(&self, value: i64) -> String {
        label(value, &self.sample_type.unit, &self.unit)
    }

    /// The lines above the table.
    fn describe(&self, profile: &Profile, filter: &Filter) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(main) = profile.mappings.first() {
            if !main.filename.is_empty() {
                lines.push(format!("File: {}", frame::base(&main.filename)));
            }
            if !main.build_id.is_empty() {
                lines.push(format!("Build ID: {}", main.build_id));
            }
        }
        lines.extend(
            profile
                .comments
                .iter()
                .filter(|comment| !comment.starts_with('#'))
                .cloned(),
        );
        if !self.sample_type.kind.is_empty() {
            lines.push(format!("Type: {}", self.sample_type.kind));
        }
        if !profile.doc_url.is_empty() {
            lines.push(format!("Doc: {}", profile.doc_url));
        }
        if profile.time_nanos != 0
            && let Ok(time) = Timestamp::from_nanosecond(profile.time_nanos.into())
        {
            let time = time.to_zoned_datetime(TimeZone::system());
            lines.push(format!("Time: {}", time.strftime("%Y-%m-%d %H:%M:%S %Z")));
        }
        if profile.duration_nanos != 0 {
            let (nanoseconds, unit) = scale(self.total, &self.sample_type.unit, "nanoseconds");
            let ratio = if unit == "ns" && nanoseconds != 0.0 {
                format!(
                    "({})",
                    percentage(nanoseconds as i64, profile.duration_nanos)
                )
            } else {
                String::new()
            };
            let duration = label(profile.duration_nanos, "nanoseconds", "auto");
            lines.push(format!(
                "Duration: {duration}, Total samples = {} {ratio}",
                self.value(self.total)
            ));
        }
        let active = filter.active();
        if !active.is_empty() {
            lines.push("Active filters:".to_owned());
            lines.extend(
                active
                    .iter()
                    .map(|filter| format!("   {}", shortened(filter))),
            );
        }
        let shown = self
            .rows
            .iter()
            .fold(0_i64, |sum, row| sum.saturating_add(row.flat));
        lines.push(format!(
            "Showing nodes accounting for {}, {} of {} total",
            self.value(shown),
            percentage(shown, self.total).trim(),
            self.value(self.total)
        ));
        if self.total != 0 && self.dropped > 0 {
            let plural = if self.dropped > 1 { "s" } else { "" };
            lines.push(format!(
                "Dropped {} node{plural} (cum <= {})",
                self.dropped,
                self.value(self.cutoff)
            ));
        }
        if self.total != 0 && !self.rows.is_empty() && self.rows.len() < self.candidates {
            lines.push(format!(
                "Showing top {} nodes out of {}",
                self.rows.len(),
                self.candidates
            ));
        }
        lines
    }
}

impl fmt::Display for Top {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.header {
            writeln!(out, "{line}")?;
        }
        writeln!(
            out,
            "{:>10} {:>5}% {:>5}% {:>10} {:>5}%",
            "flat", "flat", "sum", "cum", "cum"
        )?;
        let mut sum = 0_i64;
        for row in &self.rows {
            sum = sum.saturating_add(row.flat);
            let inline = match row.inline {
                Inline::No => "",
                Inline::Partial => " (partial-inline)",
                Inline::Yes => " (inline)",
            };
            writeln!(
                out,
                "{:>10} {} {} {:>10} {}  {}{inline}",
                self.value(row.flat),
                percentage(row.flat, self.total),
                percentage(sum, self.total),
                self.value(row.cum),
                percentage(row.cum, self.total),
                printable(&row.name),
            )?;
        }
        Ok(())
    }
}

/// A name without what could change a terminal.
fn printable(name: &str) -> Cow<'_, str> {
    if !name.contains(char::is_control) {
        return Cow::Borrowed(name);
    }
    let escaped = name.chars().map(|char| {
        if char.is_control() {
            char.escape_default().to_string()
        } else {
            char.to_string()
        }
    });
    Cow::Owned(escaped.collect())
}

/// The functions to show.
struct Selection {
    graph: Graph,
    /// Indices of the nodes to show, in order.
    order: Vec<usize>,
    /// How many nodes weigh too little.
    dropped: usize,
    /// How many do not.
    candidates: usize,
    edge_cutoff: i64,
}

fn select(
    functions: &Functions,
    profile: &Profile,
    index: usize,
    options: &TopOptions,
) -> Selection {
    let mut kept = vec![true; functions.len()];
    let mut graph = functions.weigh(profile, index, &kept);
    let mut order: Vec<usize> = (0..functions.len())
        .filter(|&node| graph.nodes[node].cum != 0 || graph.nodes[node].flat != 0)
        .collect();
    let total = (order.iter()).fold(0_i64, |sum, &node| {
        sum.saturating_add(graph.nodes[node].flat)
    });
    let cutoff = share(total, options.nodefraction);
    let all = order.len();
    order.retain(|&node| graph.nodes[node].cum.saturating_abs() >= cutoff);
    let candidates = order.len();
    // Equal names are possible: a function can be called as a file is shown.
    match options.sort {
        Sort::Flat => order.sort_by_key(|&node| {
            let node = &graph.nodes[node];
            let magnitude = |value: i64| Reverse(value.unsigned_abs());
            (magnitude(node.flat), node.name.clone(), magnitude(node.cum))
        }),
        Sort::Cum => order.sort_by_key(|&node| {
            let node = &graph.nodes[node];
            let magnitude = |value: i64| Reverse(value.unsigned_abs());
            (magnitude(node.cum), node.name.clone(), magnitude(node.flat))
        }),
    }
    if options.nodecount > 0 {
        order.truncate(options.nodecount);
    }
    if order.len() < all {
        // Calls now skip what is not shown, which matters for what counts as inlined.
        kept.fill(false);
        for &node in &order {
            kept[node] = true;
        }
        graph = functions.weigh(profile, index, &kept);
    }
    Selection {
        graph,
        order,
        dropped: all - candidates,
        candidates,
        edge_cutoff: share(total, options.edgefraction),
    }
}

/// The magnitude of a share of `total`.
fn share(total: i64, fraction: f64) -> i64 {
    ((total as f64 * fraction) as i64).saturating_abs()
}

fn inline(callers: Callers) -> Inline {
    match callers {
        Callers { inline: false, .. } => Inline::No,
        Callers { ordinary: true, .. } => Inline::Partial,
        Callers {
            ordinary: false, ..
        } => Inline::Yes,
    }
}

/// The unit to write values in: for `minimum`, one in which the smallest is still seen and the largest is short.
fn output_unit(rows: &[Row], total: i64, unit: &str, wanted: &str) -> String {
    if wanted != "minimum" || rows.is_empty() {
        return wanted.to_owned();
    }
    let smallest = (rows.iter())
        .map(|row| if row.flat == 0 { row.cum } else { row.flat })
        .map(i64::saturating_abs)
        .filter(|value| *value > 0)
        .min()
        .unwrap_or(total);
    let (_, mut chosen) = scale(smallest, unit, "minimum");
    let (_, of_total) = scale(total, unit, "minimum");
    let hundredfold = smallest.saturating_mul(100);
    if chosen != of_total && hundredfold < total {
        (_, chosen) = scale(hundredfold, unit, "minimum");
    }
    if chosen.is_empty() {
        unit.to_owned()
    } else {
        chosen
    }
}

/// At most 80 bytes of `text`.
fn shortened(text: &str) -> String {
    if text.len() <= 80 {
        return text.to_owned();
    }
    let end = (0..=80)
        .rev()
        .find(|&end| text.is_char_boundary(end))
        .unwrap_or(0);
    format!("{}…", &text[..end])
}
