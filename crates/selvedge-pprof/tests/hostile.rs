//! Damaged and hostile files are refused or read, but never panic; neither does what is then made of them.

use selvedge_pprof::model::{Label, LabelValue, Line, Location, Mapping, Profile, ValueType};
use selvedge_pprof::report::{Filter, Top, TopOptions};
use selvedge_pprof::{ProfileBuilder, collapsed, legacy, speedscope};

/// The numbers of xorshift64*: the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit.max(1)
    }

    /// Damages `bytes` in a few places.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.next() as u8),
                2 => {
                    // A part twice.
                    let end = at + self.below(bytes.len() - at + 1).min(32);
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                3 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                4 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                _ if !bytes.is_empty() => bytes[at] = self.next() as u8,
                _ => {}
            }
        }
    }
}

fn valid() -> Profile {
    let value_type = |kind: &str, unit: &str| ValueType {
        kind: kind.into(),
        unit: unit.into(),
    };
    let cpu = value_type("cpu", "nanoseconds");
    let mut builder = ProfileBuilder::new(vec![value_type("samples", "count"), cpu.clone()]);
    let mapping = builder.mapping(Mapping {
        start: 0x1000,
        limit: 0x2000,
        filename: "/bin/program".into(),
        ..Mapping::default()
    });
    let functions = ["main", "run", "a::b(int)", "[unsampled]"].map(|name| {
        builder.function(selvedge_pprof::model::Function {
            name: name.into(),
            filename: format!("{name}.rs"),
            ..Default::default()
        })
    });
    let locations: Vec<usize> = (0..8)
        .map(|number| {
            builder.location(Location {
                mapping: (number % 3 != 0).then_some(mapping),
                address: if number == 0 {
                    0
                } else {
                    0x1000 + number as u64 * 4
                },
                lines: (0..number % 3)
                    .map(|line| Line {
                        function: functions[(number + line) % 4],
                        line: number as i64,
                        column: 0,
                    })
                    .collect(),
                is_folded: false,
            })
        })
        .collect();
    let label = |key: &str, value| Label {
        key: key.into(),
        value,
    };
    for number in 0..6 {
        let labels = [
            label("thread", LabelValue::Text(format!("t{number}"))),
            label("tid", LabelValue::Number(number as i64, "id".into())),
        ];
        builder.sample(&locations[number..], &[1, 1000], &labels[..number % 3]);
    }
    Profile {
        period_type: cpu,
        period: 1_000_000,
        time_nanos: 1,
        duration_nanos: 1_000_000_000,
        drop_frames: "run".into(),
        comments: vec!["comment".into()],
        ..builder.finish()
    }
}

/// Makes everything of `profile` that can be made of one.
fn use_everything(profile: &Profile) {
    let again = Profile::read(&profile.encode());
    assert!(
        again.is_ok(),
        "what was read is not readable when written: {again:?}"
    );
    for index in 0..profile.sample_types.len() {
        collapsed::write(profile, index, &mut Vec::new()).unwrap();
        speedscope::write(profile, index, &mut Vec::new()).unwrap();
    }
    // Profiles without count or period cannot be written so.
    let _ = legacy::write(profile, &mut Vec::new());
    let options = TopOptions {
        nodecount: 2,
        filter: Filter {
            focus: "main".into(),
            hide: "run".into(),
            tagfocus: "tid=1:".into(),
            ..Filter::default()
        },
        ..TopOptions::default()
    };
    for options in [TopOptions::default(), options] {
        if let Ok(top) = Top::new(profile, &options) {
            let _ = (top.to_string(), top.to_json());
        }
    }
}

/// Damages `file` in `rounds` ways; some must still be readable, and some not, for this to say anything.
fn torment(file: &[u8], seed: u64, rounds: usize, read: impl Fn(&[u8]) -> Option<Profile>) {
    let mut random = Random(seed);
    let mut readable = 0;
    for _ in 0..rounds {
        let mut bytes = file.to_vec();
        random.damage(&mut bytes);
        if let Some(profile) = read(&bytes) {
            readable += 1;
            use_everything(&profile);
        }
    }
    assert!(
        0 < readable && readable < rounds,
        "{readable} of {rounds} were readable"
    );
}

#[test]
fn damaged_protobuf_never_panics() {
    torment(&valid().encode(), 1, 5000, |bytes| {
        Profile::read(bytes).ok()
    });
}

#[test]
fn damaged_gzip_never_panics() {
    let mut file = Vec::new();
    valid().write(&mut file).unwrap();
    // Its checksum makes almost all of them unreadable; what is left is damage to the header.
    torment(&file, 2, 5000, |bytes| Profile::read(bytes).ok());
}

#[test]
fn damaged_legacy_files_never_panic() {
    let mut file = Vec::new();
    legacy::write(&valid(), &mut file).unwrap();
    torment(&file, 3, 5000, |bytes| Profile::read(bytes).ok());
}

#[test]
fn damaged_collapsed_stacks_never_panic() {
    let mut file = Vec::new();
    collapsed::write(&valid(), 1, &mut file).unwrap();
    torment(&file, 4, 5000, |bytes| collapsed::read(bytes).ok());
}

#[test]
fn noise_never_panics() {
    let mut random = Random(5);
    for length in 0..2000 {
        let bytes: Vec<u8> = (0..length % 64).map(|_| random.next() as u8).collect();
        let _ = Profile::read(&bytes);
        let _ = collapsed::read(&bytes);
    }
}
