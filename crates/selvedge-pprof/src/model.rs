//! The profile in memory: the same concepts as `profile.proto`, with indices instead of ids and strings owned.
//!
//! Source: <https://github.com/google/pprof/blob/main/proto/profile.proto>.

/// What a number in a sample means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValueType {
    /// What is counted: `samples`, `cpu`.
    pub kind: String,
    /// Its unit: `count`, `nanoseconds`.
    pub unit: String,
}

/// A file (or the vDSO, or anonymous code) mapped into a profiled process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub limit: u64,
    /// Offset in the file that `start` maps.
    pub file_offset: u64,
    /// Path of the file, or a name in brackets.
    pub filename: String,
    /// Build id as lower-case hexadecimal; empty where unknown.
    pub build_id: String,
    /// Whether locations of this mapping have function names.
    pub has_functions: bool,
    /// Whether they have file names.
    pub has_filenames: bool,
    /// Whether they have line numbers.
    pub has_line_numbers: bool,
    /// Whether inlined frames were expanded.
    pub has_inline_frames: bool,
}

/// A function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Function {
    /// Demangled name.
    pub name: String,
    /// Name as the symbol table has it.
    pub system_name: String,
    /// Source file.
    pub filename: String,
    /// First line of the function; 0 where unknown.
    pub start_line: i64,
}

/// One source position of a location.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Line {
    /// Index into [`Profile::functions`].
    pub function: usize,
    /// Line number; 0 where unknown.
    pub line: i64,
    /// Column; 0 where unknown.
    pub column: i64,
}

/// An instruction address with its source positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Location {
    /// Index into [`Profile::mappings`].
    pub mapping: Option<usize>,
    /// Address of the instruction: the interrupted one, or inside the call of a caller (return address minus one).
    pub address: u64,
    /// Source positions, innermost inlined function first; empty where nothing is known.
    pub lines: Vec<Line>,
    /// Whether several symbols share this address (identical code folding).
    pub is_folded: bool,
}

/// The value of a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LabelValue {
    /// Text.
    Text(String),
    /// A number and its unit (may be empty).
    Number(i64, String),
}

/// A label of a sample.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    /// Key.
    pub key: String,
    /// Value.
    pub value: LabelValue,
}

/// A stack with its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Indices into [`Profile::locations`], leaf first.
    pub locations: Vec<usize>,
    /// One value per [`Profile::sample_types`].
    pub values: Vec<i64>,
    /// Labels.
    pub labels: Vec<Label>,
}

/// A whole profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// What the values of samples mean.
    pub sample_types: Vec<ValueType>,
    /// Which of them to show first; empty: the last.
    pub default_sample_type: String,
    /// What a period counts.
    pub period_type: ValueType,
    /// Length of a period, in units of `period_type`.
    pub period: i64,
    /// Start, in nanoseconds since the Unix epoch.
    pub time_nanos: i64,
    /// Length in nanoseconds.
    pub duration_nanos: i64,
    /// Free text for people.
    pub comments: Vec<String>,
    /// Frames to drop: a regular expression; empty for none.
    pub drop_frames: String,
    /// Frames to keep although `drop_frames` matches.
    pub keep_frames: String,
    /// Absolute URL of documentation; may be empty.
    pub doc_url: String,
    /// Mappings; the first is the main program's.
    pub mappings: Vec<Mapping>,
    /// Functions.
    pub functions: Vec<Function>,
    /// Locations.
    pub locations: Vec<Location>,
    /// Samples.
    pub samples: Vec<Sample>,
}
