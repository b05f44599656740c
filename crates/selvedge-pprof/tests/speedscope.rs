//! What is written for speedscope has the form of its schema, and the weights of the profile.

use selvedge_pprof::model::{Function, Label, LabelValue, Line, Location, Profile, ValueType};
use selvedge_pprof::{ProfileBuilder, speedscope};
use serde_json::{Value, json};

fn profile(labelled: bool) -> Profile {
    let mut builder = ProfileBuilder::new(vec![
        ValueType {
            kind: "samples".into(),
            unit: "count".into(),
        },
        ValueType {
            kind: "cpu".into(),
            unit: "nanoseconds".into(),
        },
    ]);
    let [inner, outer] = ["inner", "outer"].map(|name| {
        builder.function(Function {
            name: name.into(),
            filename: "main.rs".into(),
            ..Function::default()
        })
    });
    let line = |function, line, column| Line {
        function,
        line,
        column,
    };
    let inlined = builder.location(Location {
        address: 1,
        lines: vec![line(inner, 3, 9), line(outer, 8, 0)],
        ..Location::default()
    });
    let unknown = builder.location(Location {
        address: 2,
        ..Location::default()
    });
    for (tid, value) in [(7, 10), (8, 20), (7, 0), (9, -5)] {
        let labels = [
            Label {
                key: "thread".into(),
                value: LabelValue::Text("worker".into()),
            },
            Label {
                key: "tid".into(),
                value: LabelValue::Number(tid, String::new()),
            },
        ];
        builder.sample(
            &[inlined, unknown],
            &[1, value],
            if labelled { &labels } else { &[] },
        );
    }
    builder.finish()
}

fn written(profile: &Profile, index: usize) -> Value {
    let mut file = Vec::new();
    speedscope::write(profile, index, &mut file).unwrap();
    serde_json::from_slice(&file).unwrap()
}

#[test]
fn each_thread_has_a_profile_of_its_stacks_from_the_root() {
    let file = written(&profile(true), 1);
    assert_eq!(
        file["$schema"],
        "https://www.speedscope.app/file-format-schema.json"
    );
    assert_eq!(
        file["shared"]["frames"],
        json!([
            { "name": "inner", "file": "main.rs", "line": 3, "col": 9 },
            { "name": "outer", "file": "main.rs", "line": 8 },
            { "name": "<unknown>" },
        ])
    );
    let thread = |name: &str, value: i64| {
        json!({
            "type": "sampled", "name": name, "unit": "nanoseconds", "startValue": 0, "endValue": value,
            "samples": [[2, 1, 0]], "weights": [value],
        })
    };
    assert_eq!(
        file["profiles"],
        json!([thread("worker (7)", 10), thread("worker (8)", 20)])
    );
}

#[test]
fn without_threads_there_is_one_profile() {
    let file = written(&profile(false), 0);
    assert_eq!(file["profiles"].as_array().unwrap().len(), 1);
    assert_eq!(file["profiles"][0]["unit"], "none");
    assert_eq!(file["profiles"][0]["endValue"], 4);
}

#[test]
fn an_unknown_sample_type_is_refused() {
    let error = speedscope::write(&profile(true), 2, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("no sample type 2"), "{error}");
}
