//! Flame graphs: one self-contained HTML page, which needs no network and no other file.
//!
//! The root is on top, children are sorted by decreasing size, and colours tell packages apart. The page has search,
//! zoom, keyboard navigation, a light and a dark theme, and a palette for the colour-blind; its state is kept in the
//! fragment of its URL. Stacks can be grouped by thread (labels `thread` and `tid`) and process (`process` and `pid`).

mod frames;
mod package;
mod tree;

use std::io::{self, Write};

use serde::Serialize;

use crate::error::Error;
use crate::model::{Profile, ValueType};
use frames::Frames;
use tree::{Grouping, Tree};

const PAGE: &str = include_str!("flamegraph/page.html");
const STYLE: &str = include_str!("flamegraph/page.css");
const SCRIPT: &str = include_str!("flamegraph/page.js");

/// What to show, and how to call it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Title of the page; empty: *Flame graph*.
    pub title: String,
    /// Which of [`Profile::sample_types`] to show; by default [`Profile::default_sample_type`], or the last.
    pub sample_index: Option<usize>,
}

#[derive(Serialize)]
struct Document<'a> {
    title: &'a str,
    kind: &'a str,
    unit: &'a str,
    /// Sum of all values, and the same without rows that only account for time without a stack.
    total: i64,
    sampled: i64,
    time_nanos: i64,
    duration_nanos: i64,
    period: i64,
    period_unit: &'a str,
    doc_url: &'a str,
    comments: &'a [String],
    frames: &'a Frames,
    trees: &'a [Tree],
}

/// Writes a flame graph of `profile`, as UTF-8.
///
/// As in pprof, a negative value counts as its magnitude. Frames of the same function, file and package are merged,
/// inlined ones apart from others. Numbers above 2⁵³ lose their last digits in a browser.
///
/// # Errors
///
/// Those of `out`; and [`InvalidInput`](io::ErrorKind::InvalidInput) if there is no such sample type.
///
/// # Panics
///
/// If a sample names a location that `profile` does not have.
///
/// # Examples
///
/// ```
/// use selvedge_pprof::{collapsed, flamegraph};
///
/// let profile = collapsed::read(b"main;work 3\nmain;rest 1\n")?;
/// let options = flamegraph::Options { title: "rest".into(), ..flamegraph::Options::default() };
/// let mut page = Vec::new();
/// flamegraph::write(&profile, &options, &mut page)?;
/// assert!(page.starts_with(b"<!doctype html>"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write(
    profile: &Profile,
    options: &Options,
    out: &mut (impl Write + ?Sized),
) -> io::Result<()> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let index = match options.sample_index {
        Some(index) => index,
        None => profile.sample_index("").map_err(invalid)?,
    };
    let Some(ValueType { kind, unit }) = profile.sample_types.get(index) else {
        return Err(invalid(Error::option(format!(
            "writing a flame graph: there is no sample type {index}, only {}; use one of these",
            profile.sample_types.len()
        ))));
    };
    let (mut frames, stacks) = Frames::new(profile);
    let trees: Vec<Tree> = [Grouping::None, Grouping::Thread, Grouping::Process]
        .into_iter()
        .filter(|grouping| grouping.applies_to(profile))
        .map(|grouping| Tree::new(profile, index, grouping, &mut frames, &stacks))
        .collect();
    let (total, sampled) = profile.accounted(index);
    let title = if options.title.is_empty() {
        "Flame graph"
    } else {
        &options.title
    };
    let document = Document {
        title,
        kind,
        unit,
        total,
        sampled,
        time_nanos: profile.time_nanos,
        duration_nanos: profile.duration_nanos,
        period: profile.period,
        period_unit: &profile.period_type.unit,
        doc_url: &profile.doc_url,
        comments: &profile.comments,
        frames: &frames,
        trees: &trees,
    };
    // In JSON, `<` occurs in strings only. Without it nothing can end the script element that holds the data.
    let data = serde_json::to_string(&document)?.replace('<', "\\u003c");
    fill(
        &[
            ("{{title}}", &html(title)),
            ("{{style}}", STYLE),
            ("{{data}}", &data),
            ("{{script}}", SCRIPT),
        ],
        out,
    )?;
    out.flush()
}

/// Writes the page with each marker, in the order they occur, replaced once: what replaces one is not searched.
fn fill(replacements: &[(&str, &str)], out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    let mut rest = PAGE;
    for (marker, replacement) in replacements {
        if let Some((before, after)) = rest.split_once(marker) {
            out.write_all(before.as_bytes())?;
            out.write_all(replacement.as_bytes())?;
            rest = after;
        }
    }
    out.write_all(rest.as_bytes())
}

/// Escapes what has a meaning in the text of HTML.
fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collapsed;

    fn page(stacks: &str, title: &str) -> String {
        let profile = collapsed::read(stacks.as_bytes()).unwrap();
        let options = Options {
            title: title.to_owned(),
            ..Options::default()
        };
        let mut page = Vec::new();
        write(&profile, &options, &mut page).unwrap();
        String::from_utf8(page).unwrap()
    }

    #[test]
    fn every_marker_is_replaced_once_and_in_order() {
        assert!(!page("main 1", "").contains("{{"));
        let page = page("main 1", "{{data}}{{script}}");
        assert!(page.contains("<title>{{data}}{{script}}</title>"));
        assert_eq!(page.matches(SCRIPT).count(), 1);
    }

    #[test]
    fn names_end_neither_the_title_nor_the_data() {
        let page = page("</script><script>alert(1)</script><!-- 1", "</title>&lt;");
        assert!(page.contains("<title>&lt;/title>&amp;lt;</title>"));
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(!page.contains("<script>alert"));
        assert!(!SCRIPT.contains("</script"));
        assert!(!STYLE.contains("</style"));
    }

    #[test]
    fn nothing_is_loaded() {
        let page = page("main 1", "");
        assert!(page.contains(r#"content="default-src 'none'; style-src"#));
        for loader in [" src=", "@import", "url(", "fetch(", "http:", "https:"] {
            assert!(!page.contains(loader), "{loader}");
        }
    }

    #[test]
    fn an_unknown_sample_type_is_refused() {
        let profile = collapsed::read(b"main 1").unwrap();
        let options = Options {
            sample_index: Some(1),
            ..Options::default()
        };
        let error = write(&profile, &options, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("no sample type 1"), "{error}");
        let none = Profile::default();
        let error = write(&none, &Options::default(), &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
