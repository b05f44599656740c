//! `go tool pprof`, an independent reader, sees in our files what we put there, and reports what we report.
//!
//! The tests need `go` on the `PATH`, or named by `SELVEDGE_GO`; without it they say so and pass. The first of them
//! waits for `go` to build pprof, about half a minute.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use selvedge_pprof::model::{
    Function, Label, LabelValue, Line, Location, Mapping, Profile, ValueType,
};
use selvedge_pprof::report::{Filter, Sort, Top, TopOptions};
use selvedge_pprof::{ProfileBuilder, collapsed, legacy};

/// Finds `go`, or says why the test cannot run.
fn go() -> Option<PathBuf> {
    let go = env::var_os("SELVEDGE_GO").map_or_else(|| PathBuf::from("go"), PathBuf::from);
    match Command::new(&go).args(["tool", "-n", "pprof"]).output() {
        Ok(output) if output.status.success() => Some(go),
        Ok(output) => {
            eprintln!(
                "skipped: {go:?} has no pprof: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            None
        }
        Err(error) => {
            eprintln!("skipped: {go:?} cannot be run ({error}); install Go or set SELVEDGE_GO");
            None
        }
    }
}

/// Runs `go tool pprof` with `options` on `file` and returns what it prints.
fn pprof(go: &Path, options: &[&str], file: &Path) -> String {
    let output = Command::new(go)
        .args(["tool", "pprof", "-symbolize=none"])
        .args(options)
        .arg(file)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "pprof {options:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a file of this test's own.
fn file(name: &str, write: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = Vec::new();
    write(&mut bytes);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn profile_file(name: &str, profile: &Profile) -> PathBuf {
    file(name, |bytes| profile.write(bytes).unwrap())
}

/// The numbers of xorshift64*: the same for the same seed on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

/// A profile with inlined functions, recursion, unknown functions, labels, and rows without stack.
fn synthetic(seed: u64) -> Profile {
    let mut random = Random(seed);
    let value_type = |kind: &str, unit: &str| ValueType {
        kind: kind.into(),
        unit: unit.into(),
    };
    let cpu = value_type("cpu", "nanoseconds");
    let mut builder = ProfileBuilder::new(vec![value_type("samples", "count"), cpu.clone()]);
    let mapping = |start: u64, filename: &str| Mapping {
        start,
        limit: start + 0x10_0000,
        filename: filename.into(),
        build_id: "abcdef0123".into(),
        ..Mapping::default()
    };
    let mappings = [
        builder.mapping(mapping(0x40_0000, "/usr/local/bin/program")),
        builder.mapping(mapping(0x7f00_0000_0000, "/lib/x86_64-linux-gnu/libc.so.6")),
        builder.mapping(mapping(0x7fff_0000_0000, "[vdso]")),
    ];
    let functions: Vec<usize> = (0..60)
        .map(|number| {
            builder.function(Function {
                name: format!("crate{}::module::function{number}", number % 7),
                filename: format!("src/module{}.rs", number % 5),
                start_line: 10,
                ..Function::default()
            })
        })
        .collect();
    let mut locations = Vec::new();
    for number in 0..150 {
        // The lower functions are more frequent, so that some weigh next to nothing.
        let mut function = || functions[(random.below(60) * (random.below(60) + 1)) / 60];
        let lines = (0..number % 4)
            .map(|_| Line {
                function: function(),
                line: number as i64,
                column: 1,
            })
            .collect();
        let mapping = number % 3;
        locations.push(builder.location(Location {
            mapping: Some(mappings[mapping]),
            address: [0x40_0000, 0x7f00_0000_0000, 0x7fff_0000_0000][mapping] + number as u64 * 16,
            lines,
            is_folded: false,
        }));
    }
    for _ in 0..2000 {
        let stack: Vec<usize> = (0..=random.below(12))
            .map(|_| locations[random.below(150) * (random.below(150) + 1) / 150])
            .collect();
        let count = random.below(5) as i64;
        let tid = random.below(4) as i64;
        let labels = [
            Label {
                key: "thread".into(),
                value: LabelValue::Text(format!("worker-{tid}")),
            },
            Label {
                key: "tid".into(),
                value: LabelValue::Number(100 + tid, String::new()),
            },
            Label {
                key: "size".into(),
                value: LabelValue::Number(1 << (random.below(4) * 5), "bytes".into()),
            },
        ];
        builder.sample(
            &stack,
            &[count, count * 10_000_000 + random.below(1000) as i64],
            &labels,
        );
    }
    for name in ["[unsampled]", "[signals blocked]", "[lost: log full]"] {
        let function = builder.function(Function {
            name: name.into(),
            ..Function::default()
        });
        let location = builder.location(Location {
            lines: vec![Line {
                function,
                ..Line::default()
            }],
            ..Location::default()
        });
        builder.sample(&[location], &[0, 333_333_333], &[]);
    }
    Profile {
        period_type: cpu,
        period: 10_000_000,
        time_nanos: 1_700_000_000_000_000_000,
        duration_nanos: 21_000_000_000,
        comments: vec!["engine: timers".into(), "# not for people".into()],
        doc_url: "https://example.org/doc".into(),
        ..builder.finish()
    }
}

fn filter(change: impl FnOnce(&mut Filter)) -> TopOptions {
    let mut options = TopOptions::default();
    change(&mut options.filter);
    options
}

fn options(change: impl FnOnce(&mut TopOptions)) -> TopOptions {
    let mut options = TopOptions::default();
    change(&mut options);
    options
}

/// Command lines of pprof, and the same for us.
fn cases() -> Vec<(Vec<&'static str>, TopOptions)> {
    vec![
        (vec![], TopOptions::default()),
        (vec!["-cum"], options(|o| o.sort = Sort::Cum)),
        (
            vec!["-cum", "-nodecount=10"],
            options(|o| {
                o.sort = Sort::Cum;
                o.nodecount = 10;
            }),
        ),
        (vec!["-nodecount=7"], options(|o| o.nodecount = 7)),
        (vec!["-nodecount=1000"], options(|o| o.nodecount = 1000)),
        (vec!["-nodefraction=0"], options(|o| o.nodefraction = 0.0)),
        (vec!["-nodefraction=0.1"], options(|o| o.nodefraction = 0.1)),
        (vec!["-nodefraction=0.9"], options(|o| o.nodefraction = 0.9)),
        (
            vec!["-nodefraction=0", "-edgefraction=0"],
            options(|o| {
                o.nodefraction = 0.0;
                o.edgefraction = 0.0;
            }),
        ),
        (
            vec!["-edgefraction=0.02"],
            options(|o| o.edgefraction = 0.02),
        ),
        (
            vec!["-sample_index=samples"],
            options(|o| o.sample_index = "samples".into()),
        ),
        (
            vec!["-sample_index=0"],
            options(|o| o.sample_index = "0".into()),
        ),
        (vec!["-unit=ms"], options(|o| o.unit = "ms".into())),
        (vec!["-unit=auto"], options(|o| o.unit = "auto".into())),
        (vec!["-noinlines"], filter(|f| f.noinlines = true)),
        (
            vec!["-focus=function1"],
            filter(|f| f.focus = "function1".into()),
        ),
        (
            vec!["-ignore=module3.rs"],
            filter(|f| f.ignore = "module3.rs".into()),
        ),
        (
            vec!["-hide=libc|function2"],
            filter(|f| f.hide = "libc|function2".into()),
        ),
        (
            vec!["-show=crate[12]::"],
            filter(|f| f.show = "crate[12]::".into()),
        ),
        (
            vec!["-show=libc", "-hide=crate1"],
            filter(|f| {
                f.show = "libc".into();
                f.hide = "crate1".into();
            }),
        ),
        (
            vec![
                "-focus=crate1",
                "-ignore=crate2",
                "-noinlines",
                "-nodefraction=0",
            ],
            options(|o| {
                o.nodefraction = 0.0;
                o.filter.focus = "crate1".into();
                o.filter.ignore = "crate2".into();
                o.filter.noinlines = true;
            }),
        ),
        (
            vec!["-focus=nothing has this name"],
            filter(|f| f.focus = "nothing has this name".into()),
        ),
        (
            vec!["-tagfocus=worker-[12]"],
            filter(|f| f.tagfocus = "worker-[12]".into()),
        ),
        (
            vec!["-tagfocus=thread:w.*1,thread"],
            filter(|f| f.tagfocus = "thread:w.*1,thread".into()),
        ),
        (
            vec!["-tagfocus=thread=-1,-2"],
            filter(|f| f.tagfocus = "thread=-1,-2".into()),
        ),
        (
            vec!["-tagfocus=gone=x"],
            filter(|f| f.tagfocus = "gone=x".into()),
        ),
        (
            vec!["-tagignore=thread=worker-0"],
            filter(|f| f.tagignore = "thread=worker-0".into()),
        ),
        (
            vec!["-tagfocus=tid=101"],
            filter(|f| f.tagfocus = "tid=101".into()),
        ),
        (
            vec!["-tagfocus=tid=101:102tid"],
            filter(|f| f.tagfocus = "tid=101:102tid".into()),
        ),
        (
            vec!["-tagfocus=1kb:"],
            filter(|f| f.tagfocus = "1kb:".into()),
        ),
        (
            vec!["-tagfocus=size=:1kb"],
            filter(|f| f.tagfocus = "size=:1kb".into()),
        ),
        (
            vec!["-tagignore=32b:1kb"],
            filter(|f| f.tagignore = "32b:1kb".into()),
        ),
    ]
}

#[test]
fn top_is_the_same_to_the_character() {
    let Some(go) = go() else { return };
    let files: Vec<(Profile, PathBuf)> = (1..=3)
        .map(|seed| {
            let profile = synthetic(seed);
            let path = profile_file(&format!("top-{seed}.pb.gz"), &profile);
            (profile, path)
        })
        .collect();
    let mut all = String::new();
    for ((arguments, options), (profile, path)) in cases().into_iter().zip(files.iter().cycle()) {
        let theirs = pprof(&go, &[&["-top"], arguments.as_slice()].concat(), path);
        let ours = Top::new(profile, &options).unwrap().to_string();
        assert_eq!(
            ours, theirs,
            "{arguments:?} of {path:?}; left is ours, right theirs"
        );
        all += &ours;
    }
    // The profiles are such that there is something to be wrong about.
    for part in [
        "(inline)",
        "(partial-inline)",
        "Dropped ",
        "Showing top ",
        "Active filters:",
        "[libc.so.6]",
        "us ",
    ] {
        assert!(all.contains(part), "no report has {part:?}");
    }
}

#[test]
fn frames_to_drop_are_dropped_as_pprof_drops_them() {
    let Some(go) = go() else { return };
    let profile = Profile {
        drop_frames: "crate[0-3]::.*".into(),
        keep_frames: ".*function[1-9]".into(),
        ..synthetic(7)
    };
    let path = profile_file("drop.pb.gz", &profile);
    for options in [
        TopOptions::default(),
        filter(|filter| filter.focus = "crate4".into()),
    ] {
        let focus = format!("-focus={}", options.filter.focus);
        let theirs = pprof(&go, &["-top", &focus], &path);
        assert_eq!(
            Top::new(&profile, &options).unwrap().to_string(),
            theirs,
            "{focus}"
        );
    }
}

/// Turns the output of `-traces` into collapsed stacks.
fn collapse(traces: &str) -> Profile {
    let mut text = String::new();
    let separator = |line: &str| line.starts_with("-----------+");
    for block in traces
        .lines()
        .collect::<Vec<_>>()
        .split(|line| separator(line))
        .skip(1)
    {
        let frames: Vec<&str> = block
            .iter()
            .filter(|line| !line[..11].ends_with(':'))
            .copied()
            .collect();
        let Some(first) = frames.first() else {
            continue;
        };
        let names: Vec<&str> = (frames.iter().rev())
            .map(|line| line[13..].trim_end_matches(" (inline)"))
            .collect();
        text += &format!("{} {}\n", names.join(";"), first[..10].trim());
    }
    collapsed::read(text.as_bytes()).unwrap()
}

fn collapsed_text(profile: &Profile, index: usize) -> String {
    let mut text = Vec::new();
    collapsed::write(profile, index, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn traces_are_our_collapsed_stacks() {
    let Some(go) = go() else { return };
    let profile = synthetic(4);
    let path = profile_file("traces.pb.gz", &profile);
    // Lines would be part of the names.
    let traces = pprof(
        &go,
        &["-traces", "-sample_index=samples", "-functions"],
        &path,
    );
    assert_eq!(
        collapsed_text(&collapse(&traces), 0),
        collapsed_text(&profile, 0)
    );
}

/// The lines of a section of `-raw`, without indentation.
fn section<'a>(raw: &'a str, name: &str) -> Vec<&'a str> {
    (raw.lines().skip_while(|line| *line != name).skip(1))
        .take_while(|line| {
            line.starts_with(' ') || line.starts_with(|char: char| char.is_ascii_digit())
        })
        .map(str::trim)
        .collect()
}

#[test]
fn raw_shows_every_field() {
    let Some(go) = go() else { return };
    let mut profile = synthetic(5);
    profile.default_sample_type = "samples".into();
    profile.mappings[0].has_functions = true;
    profile.mappings[0].has_inline_frames = true;
    profile.mappings[0].file_offset = 0x2000;
    profile.locations[1].is_folded = true;
    profile.locations[1].lines[0].column = 77;
    let raw = pprof(&go, &["-raw"], &profile_file("raw.pb.gz", &profile));
    for line in [
        "PeriodType: cpu nanoseconds",
        "Period: 10000000",
        "Duration: 21",
        "Comment: engine: timers",
        "Doc: https://example.org/doc",
        "samples/count[dflt] cpu/nanoseconds",
    ] {
        assert!(
            raw.lines().any(|found| found.starts_with(line)),
            "no line {line:?} in\n{raw}"
        );
    }
    assert_eq!(
        section(&raw, "Mappings"),
        [
            "1: 0x400000/0x500000/0x2000 /usr/local/bin/program abcdef0123 [FN][IN]",
            "2: 0x7f0000000000/0x7f0000100000/0x0 /lib/x86_64-linux-gnu/libc.so.6 abcdef0123",
            "3: 0x7fff00000000/0x7fff00100000/0x0 [vdso] abcdef0123",
        ]
    );
    let locations = section(&raw, "Locations").join("\n");
    let function = &profile.functions[profile.locations[1].lines[0].function];
    let folded = format!(
        "0x7f0000000010 M=2 [F] {} src/{}",
        function.name,
        &function.filename[4..]
    );
    assert!(locations.contains(&folded), "no {folded:?} in\n{locations}");
    assert!(locations.contains(":1:77 "), "no column in\n{locations}");
    let numbers = |line: &str| {
        let (values, _) = line.split_once(':')?;
        values
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<Vec<i64>, _>>()
            .ok()
    };
    let theirs: Vec<i64> = (section(&raw, "samples/count[dflt] cpu/nanoseconds").iter())
        .filter_map(|line| numbers(line))
        .fold(vec![0, 0], |sum, values| {
            vec![sum[0] + values[0], sum[1] + values[1]]
        });
    assert_eq!(theirs, [profile.accounted(0).0, profile.accounted(1).0]);
}

#[test]
fn legacy_files_are_read_by_pprof_as_by_us() {
    let Some(go) = go() else { return };
    let profile = synthetic(6);
    let path = file("legacy.prof", |bytes| {
        legacy::write(&profile, bytes).unwrap()
    });
    let ours = Profile::read(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(ours.accounted(0).0, profile.accounted(0).0);
    let theirs = pprof(&go, &["-raw"], &path);
    let addresses = |text: &str| -> Vec<String> {
        let mut found: Vec<String> = text
            .split_whitespace()
            .filter(|word| word.starts_with("0x"))
            .map(str::to_owned)
            .collect();
        found.sort();
        found.dedup();
        found
    };
    let mut expected: Vec<String> = (ours.locations.iter())
        .map(|location| format!("{:#x}", location.address))
        .collect();
    expected.sort();
    assert_eq!(
        addresses(&section(&theirs, "Locations").join("\n")),
        expected
    );
    let top = |profile: &Profile| {
        Top::new(profile, &TopOptions::default())
            .unwrap()
            .to_string()
    };
    assert_eq!(pprof(&go, &["-top"], &path), top(&ours));
}

#[test]
fn pseudo_frames_in_legacy_files_are_named_by_pprof() {
    let Some(go) = go() else { return };
    let mut profile = collapsed::read(b"main;[truncated] 3\n[unsampled] 2\n").unwrap();
    profile.period = 1_000_000;
    profile.period_type.unit = "nanoseconds".into();
    let path = file("pseudo.prof", |bytes| {
        legacy::write(&profile, bytes).unwrap()
    });
    let top = pprof(&go, &["-top", "-sample_index=samples"], &path);
    let rows: Vec<&str> = top
        .lines()
        .skip_while(|line| !line.contains("flat%"))
        .skip(1)
        .collect();
    assert_eq!(
        rows,
        [
            "         3 60.00% 60.00%          3 60.00%  [[truncated]]",
            "         2 40.00%   100%          2 40.00%  [[unsampled]]",
            "         0     0%   100%          3 60.00%  [main]",
        ]
    );
}

#[test]
fn several_profiles_are_added_up_as_pprof_does() {
    let Some(go) = go() else { return };
    let profiles = vec![synthetic(5), synthetic(6)];
    let first = profile_file("merge-1.pb.gz", &profiles[0]);
    let second = profile_file("merge-2.pb.gz", &profiles[1]);
    let theirs = pprof(&go, &["-top", first.to_str().unwrap()], &second);
    let merged = Profile::merge(profiles).unwrap();
    let ours = Top::new(&merged, &TopOptions::default())
        .unwrap()
        .to_string();
    assert_eq!(ours, theirs);
}
