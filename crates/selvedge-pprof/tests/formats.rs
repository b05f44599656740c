//! Profiles survive being written and read.

use selvedge_pprof::model::{
    Function, Label, LabelValue, Line, Location, Mapping, Profile, ValueType,
};
use selvedge_pprof::{ProfileBuilder, legacy};

fn value_type(kind: &str, unit: &str) -> ValueType {
    ValueType {
        kind: kind.into(),
        unit: unit.into(),
    }
}

fn function(builder: &mut ProfileBuilder, name: &str) -> usize {
    builder.function(Function {
        name: name.into(),
        system_name: format!("_Z{name}"),
        filename: format!("src/{name}.rs"),
        start_line: 10,
    })
}

/// A profile in which every field of the model is set.
fn full() -> Profile {
    let mut builder = ProfileBuilder::new(vec![
        value_type("samples", "count"),
        value_type("cpu", "nanoseconds"),
    ]);
    let main = builder.mapping(Mapping {
        start: 0x1000,
        limit: 0x3000,
        file_offset: 0x100,
        filename: "/usr/bin/été".into(),
        build_id: "ab12".into(),
        has_functions: true,
        has_filenames: true,
        has_line_numbers: true,
        has_inline_frames: true,
    });
    let vdso = builder.mapping(Mapping {
        start: u64::MAX - 0xfff,
        limit: u64::MAX,
        filename: "[vdso]".into(),
        ..Mapping::default()
    });
    let inlined = function(&mut builder, "inlined");
    let caller = function(&mut builder, "caller");
    let pseudo = function(&mut builder, "[unsampled]");
    let leaf = builder.location(Location {
        mapping: Some(main),
        address: 0x1234,
        lines: vec![
            Line {
                function: inlined,
                line: 11,
                column: 5,
            },
            Line {
                function: caller,
                line: 22,
                column: 1,
            },
        ],
        is_folded: true,
    });
    let vdso = builder.location(Location {
        mapping: Some(vdso),
        address: u64::MAX - 10,
        ..Location::default()
    });
    let pseudo = builder.location(Location {
        lines: vec![Line {
            function: pseudo,
            ..Line::default()
        }],
        ..Location::default()
    });
    let label = |key: &str, value| Label {
        key: key.into(),
        value,
    };
    let labels = [
        label("pid", LabelValue::Number(42, String::new())),
        label("size", LabelValue::Number(-3, "bytes".into())),
        label("thread", LabelValue::Text("worker".into())),
    ];
    builder.sample(&[leaf, vdso, leaf], &[3, 30_000_000], &labels);
    builder.sample(&[leaf], &[1, i64::MIN], &[]);
    builder.sample(&[pseudo], &[2, 20_000_000], &[]);
    builder.sample(&[], &[1, 10_000_000], &[]);
    Profile {
        default_sample_type: "cpu".into(),
        period_type: value_type("cpu", "nanoseconds"),
        period: 10_000_000,
        time_nanos: 1_700_000_000_000_000_000,
        duration_nanos: 5_000_000_000,
        comments: vec!["one".into(), "two".into()],
        drop_frames: "^drop$".into(),
        keep_frames: "^keep$".into(),
        doc_url: "https://example.org/".into(),
        ..builder.finish()
    }
}

#[test]
fn proto_keeps_everything() {
    let profile = full();
    assert_eq!(Profile::read(&profile.encode()).unwrap(), profile);
    let mut file = Vec::new();
    profile.write(&mut file).unwrap();
    assert_eq!(file[..2], [0x1f, 0x8b]);
    assert_eq!(Profile::read(&file).unwrap(), profile);
}

#[test]
fn equal_profiles_make_equal_files() {
    let write = || {
        let mut file = Vec::new();
        full().write(&mut file).unwrap();
        file
    };
    assert_eq!(write(), write());
}

#[test]
fn legacy_keeps_addresses_counts_mappings_and_names_of_pseudo_frames() {
    let profile = full();
    let mut file = Vec::new();
    legacy::write(&profile, &mut file).unwrap();
    let read = Profile::read(&file).unwrap();
    assert_eq!(read.period, 10_000_000);
    assert_eq!(read.sample_types, profile.sample_types);
    let stacks: Vec<_> = (read.samples.iter())
        .map(|sample| {
            let addresses: Vec<_> = (sample.locations.iter())
                .map(|&index| {
                    let location = &read.locations[index];
                    let mapping = location
                        .mapping
                        .map(|index| read.mappings[index].filename.as_str());
                    let name = location
                        .lines
                        .first()
                        .map(|line| read.functions[line.function].name.as_str());
                    (location.address, mapping, name)
                })
                .collect();
            (addresses, sample.values.clone())
        })
        .collect();
    let leaf = (0x1234, Some("/usr/bin/été"), None);
    let vdso = (u64::MAX - 10, Some("[vdso]"), None);
    assert_eq!(
        stacks,
        [
            (vec![leaf, vdso, leaf], vec![3, 30_000_000]),
            (vec![leaf], vec![1, 10_000_000]),
            (vec![(0, None, Some("[unsampled]"))], vec![2, 20_000_000]),
            (vec![(0, None, Some("[unknown]"))], vec![1, 10_000_000]),
        ]
    );
}

#[test]
fn legacy_is_refused_for_profiles_without_counts_or_period() {
    let mut profile = full();
    profile.sample_types[0].kind = "bytes".into();
    let error = legacy::write(&profile, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("samples/count"), "{error}");

    let mut profile = full();
    profile.period = 0;
    let error = legacy::write(&profile, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("period"), "{error}");
}

/// A legacy profile of one stack, as a program with words of `size` bytes writes it.
fn legacy_words(size: usize, big_endian: bool) -> Vec<u8> {
    let words: [u64; 15] = [
        0, 3, 0, 10_000, 0, 7, 2, 0x1100, 0x2001, 1, 1, 0x9000, 0, 1, 0,
    ];
    let mut bytes = Vec::new();
    for word in words {
        let mut word = word.to_le_bytes()[..size].to_vec();
        if big_endian {
            word.reverse();
        }
        bytes.extend(word);
    }
    bytes.extend(
        b"build=/bin/x\n00001000-00003000 r-xp 00000000 fe:01 391    /bin/a b (deleted)\n\
          00003000-00004000 rw-p 00002000 fe:01 391    /bin/data\nnonsense\n",
    );
    bytes
}

#[test]
fn legacy_is_read_with_any_words() {
    for (size, big_endian) in [(8, false), (8, true), (4, false), (4, true)] {
        let profile = Profile::read(&legacy_words(size, big_endian)).unwrap();
        let names: Vec<_> = profile
            .mappings
            .iter()
            .map(|mapping| mapping.filename.as_str())
            .collect();
        assert_eq!(names, ["/bin/a b"]);
        let places: Vec<_> = profile
            .locations
            .iter()
            .map(|location| (location.address, location.mapping))
            .collect();
        assert_eq!(
            places,
            [(0x1100, Some(0)), (0x2000, Some(0)), (0x9000, None)]
        );
        assert_eq!(profile.samples[0].values, [7, 70_000_000]);
    }
}

#[test]
fn legacy_that_ends_early_is_refused() {
    let whole = legacy_words(8, false);
    let error = Profile::read(&whole[..8 * 7]).unwrap_err();
    assert!(error.is_malformed());
    assert!(
        error.to_string().contains("ends inside a record"),
        "{error}"
    );
}
