//! The flame graph in a real browser: Chromium, driven with real clicks and keys through WebDriver.
//!
//! Each test is skipped, with a word about it, where `/usr/bin/chromium` or `/usr/bin/chromedriver` is missing.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use selvedge_pprof::model::{Function, Label, LabelValue, Line, Location, Profile, ValueType};
use selvedge_pprof::{ProfileBuilder, collapsed, flamegraph};
use serde_json::{Value, json};

const BROWSER: &str = "/usr/bin/chromium";
const DRIVER: &str = "/usr/bin/chromedriver";

/// Height of a row of the graph in pixels.
const ROW: f64 = 18.0;

// Keys as WebDriver names them.
const CONTROL: char = '\u{e009}';
const ENTER: char = '\u{e007}';
const ESCAPE: char = '\u{e00c}';
const RIGHT: char = '\u{e014}';
const DOWN: char = '\u{e015}';
const UP: char = '\u{e013}';

/// A browser of its own for a test.
struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
}

impl Browser {
    /// Starts one; `None` where there is none on this machine.
    fn start() -> Option<Self> {
        for program in [BROWSER, DRIVER] {
            if !Path::new(program).exists() {
                eprintln!(
                    "skipped: {program} is missing; install chromium and chromium-driver to run this test"
                );
                return None;
            }
        }
        let mut driver = Command::new(DRIVER)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(driver.stdout.take().unwrap());
        let port = loop {
            let mut line = String::new();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "{DRIVER} ended");
            if let Some((_, port)) = line.trim_end().split_once(" on port ") {
                // The line before says "Starting … on port 0".
                if let Ok(port @ 1..) = port.trim_end_matches('.').parse::<u16>() {
                    break port;
                }
            }
        };
        // Whatever else it prints must not fill the pipe.
        thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let mut browser = Self {
            driver,
            agent,
            session: format!("http://127.0.0.1:{port}/session"),
        };
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1200,800",
            "--force-device-scale-factor=1",
        ];
        let started = browser.post(
            "",
            &json!({ "capabilities": { "alwaysMatch": {
                "goog:chromeOptions": { "binary": BROWSER, "args": arguments },
                "goog:loggingPrefs": { "browser": "ALL" },
            } } }),
        );
        let id = started["sessionId"].as_str().unwrap().to_owned();
        browser.session.push('/');
        browser.session.push_str(&id);
        Some(browser)
    }

    fn post(&self, command: &str, body: &Value) -> Value {
        let url = format!("{}{command}", self.session);
        let mut response = self.agent.post(&url).send(body.to_string()).unwrap();
        let answer = response.body_mut().read_to_string().unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(response.status().is_success(), "{command}: {answer}");
        answer["value"].clone()
    }

    /// Opens the flame graph of `profile` with `fragment` in its URL.
    fn open(&self, name: &str, profile: &Profile, fragment: &str) {
        let options = flamegraph::Options {
            title: format!("Test of {name}"),
            ..flamegraph::Options::default()
        };
        let path: PathBuf = [env!("CARGO_TARGET_TMPDIR"), &format!("{name}.html")]
            .iter()
            .collect();
        let mut page = Vec::new();
        flamegraph::write(profile, &options, &mut page).unwrap();
        fs::write(&path, page).unwrap();
        self.go(&format!(
            "file://{}{fragment}",
            path.display().to_string().replace(' ', "%20")
        ));
    }

    fn go(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    fn text(&self, id: &str) -> String {
        let text = self.run(&format!(
            "return document.getElementById('{id}').textContent"
        ));
        text.as_str().unwrap().to_owned()
    }

    /// The name of the frame zoomed to.
    fn zoomed(&self) -> String {
        let text = self.run("return document.querySelector('#path [aria-current]').textContent");
        text.as_str().unwrap().to_owned()
    }

    fn fragment(&self) -> String {
        self.run("return location.hash")
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Moves the pointer over the graph: `share` of its width from the left, in the middle of `row`.
    fn point(&self, share: f64, row: u32, click: bool) {
        let view = self.run("const { left, top, width } = document.getElementById('canvas').getBoundingClientRect(); return [left, top, width]");
        let [left, top, width] = [0, 1, 2].map(|at| view[at].as_f64().unwrap());
        let x = (left + share * width).round();
        let y = (top + (f64::from(row) + 0.5) * ROW).round();
        let mut actions = vec![json!({ "type": "pointerMove", "x": x, "y": y })];
        if click {
            actions.push(json!({ "type": "pointerDown", "button": 0 }));
            actions.push(json!({ "type": "pointerUp", "button": 0 }));
        }
        self.post(
            "/actions",
            &json!({ "actions": [{ "type": "pointer", "id": "mouse", "actions": actions }] }),
        );
    }

    fn click(&self, share: f64, row: u32) {
        self.point(share, row, true);
    }

    /// Presses keys one after the other; `CONTROL` stays down for the one that follows.
    fn press(&self, keys: &str) {
        let mut actions = Vec::new();
        let mut held = false;
        for key in keys.chars() {
            actions.push(json!({ "type": "keyDown", "value": key }));
            if key == CONTROL {
                held = true;
                continue;
            }
            actions.push(json!({ "type": "keyUp", "value": key }));
            if held {
                actions.push(json!({ "type": "keyUp", "value": CONTROL }));
                held = false;
            }
        }
        self.post(
            "/actions",
            &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }),
        );
    }

    /// The colour of the graph: `share` of its width from the left, `y` pixels from its top; after it was drawn.
    fn colour(&self, share: f64, y: f64) -> Value {
        let drawn =
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))";
        self.post("/execute/async", &json!({ "script": drawn, "args": [] }));
        self.run(&format!(
            "const canvas = document.getElementById('canvas');
             return [...canvas.getContext('2d').getImageData(Math.round(canvas.width * {share}), {y}, 1, 1).data]"
        ))
    }

    /// Waits until `condition` holds: a step in the history is taken after its command has returned.
    fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{what} did not happen within 10 s"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Fails if the page has complained: an uncaught error, a violation of its security policy.
    fn assert_no_complaint(&self) {
        let log = self.post("/se/log", &json!({ "type": "browser" }));
        // Less than an error is the advice not to read pixels so often, which only this test does.
        let is_error = |entry: &&Value| entry["level"] == "SEVERE";
        let errors: Vec<&Value> = log.as_array().unwrap().iter().filter(is_error).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser with the session. If that fails there is nothing more to do about it.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// `all` 100 > `main` 90 > { `work` 50 > `inner` 50, `parse` 40 > `read` 30 }, and `[unsampled]` 10.
fn profile() -> Profile {
    collapsed::read(b"main;parse;read 30\nmain;parse 10\nmain;work;inner 50\n[unsampled] 10\n")
        .unwrap()
}

#[test]
fn a_click_zooms_and_there_are_three_ways_back() {
    let Some(browser) = Browser::start() else {
        return;
    };
    browser.open("zoom", &profile(), "");
    assert_eq!(browser.text("title"), "Test of zoom");
    assert_eq!(
        browser.text("totals"),
        "100 samples in all, 90 samples (90.00%) without [unsampled], [signals blocked] and [lost…]"
    );
    assert_eq!(browser.zoomed(), "all");

    browser.click(0.7, 2);
    assert_eq!(browser.zoomed(), "parse");
    assert_eq!(browser.text("path"), "allmainparse");
    assert_eq!(browser.fragment(), "#zoom=4");
    assert_eq!(
        browser.text("focused"),
        "parse · 40 samples, 40.00% of total, 44.44% of parent · self 10 samples, 10.00% of total"
    );
    // Now `read` has three quarters of the width.
    browser.point(0.74, 3, false);
    assert_eq!(
        browser.text("tip"),
        "read30 samples: 30.00% of total, 75.00% of parent"
    );
    browser.point(0.76, 3, false);
    assert_eq!(
        browser.run("return document.getElementById('tip').hidden"),
        true
    );

    browser.press(&ESCAPE.to_string());
    assert_eq!(
        (browser.zoomed().as_str(), browser.fragment().as_str()),
        ("all", "")
    );
    browser.run("history.back()");
    browser.wait("zooming again", |browser| browser.zoomed() == "parse");
    browser.run("document.getElementById('reset').click()");
    assert_eq!(browser.zoomed(), "all");
    browser.click(0.2, 3);
    assert_eq!(browser.zoomed(), "inner");
    browser.run("document.querySelector('#path button:nth-child(2)').click()");
    assert_eq!(browser.zoomed(), "main");
    browser.click(0.5, 0);
    assert_eq!(browser.zoomed(), "all");
    browser.assert_no_complaint();
}

#[test]
fn a_search_counts_each_sample_once() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let profile = collapsed::read(
        b"main;read_all;read_one 30\nmain;Write 20\nmain;read_all 10\nmain;f::{{closure}} 25\nmain 15\n",
    )
    .unwrap();
    browser.open("search", &profile, "");
    let plain = browser.colour(0.1, 2.0 * ROW + 2.0);
    browser.press(&format!("{CONTROL}fread"));
    assert_eq!(browser.run("return document.activeElement.id"), "search");
    assert_eq!(browser.text("matched"), "40 samples, 40.00% of total");
    assert_eq!(browser.fragment(), "#search=read");
    assert_ne!(browser.colour(0.1, 2.0 * ROW + 2.0), plain);

    browser.press(&format!("{ESCAPE}/one$|WRITE"));
    assert_eq!(
        browser.text("matched"),
        "30 samples, 30.00% of total",
        "a capital counts"
    );
    browser.press(&format!("{ESCAPE}/one$|write"));
    assert_eq!(browser.text("matched"), "50 samples, 50.00% of total");
    browser.click(0.1, 2);
    assert_eq!(browser.zoomed(), "read_all");
    assert_eq!(
        browser.text("matched"),
        "50 samples, 50.00% of total; 75.00% of what is shown"
    );
    browser.press(&ESCAPE.to_string());
    assert_eq!(
        (browser.zoomed().as_str(), browser.fragment().as_str()),
        ("all", "#search=one%24%7Cwrite")
    );

    browser.press("/{{closure}}");
    assert_eq!(browser.text("matched"), "25 samples, 25.00% of total");
    browser.press(&format!("{ESCAPE}/("));
    assert_eq!(browser.text("matched"), "not a regular expression");
    browser.press(&format!("{ESCAPE}{ESCAPE}"));
    assert_eq!(
        (
            browser.text("matched").as_str(),
            browser.fragment().as_str()
        ),
        ("", "")
    );
    browser.assert_no_complaint();
}

#[test]
fn everything_can_be_reached_by_keyboard_and_is_told_in_words() {
    let Some(browser) = Browser::start() else {
        return;
    };
    browser.open("keyboard", &profile(), "");
    assert_eq!(
        browser.run("return document.getElementById('focused').ariaLive"),
        "polite"
    );
    browser.run("document.getElementById('view').focus()");
    let expect = |keys: &[char], name: &str| {
        browser.press(&keys.iter().collect::<String>());
        let told = browser.text("focused");
        assert!(told.starts_with(&format!("{name} · ")), "{told}");
    };
    expect(&[DOWN], "all");
    expect(&[DOWN, DOWN], "work");
    expect(&[RIGHT], "parse");
    expect(&[RIGHT], "parse");
    expect(&[DOWN], "read");
    expect(&[UP, UP], "main");
    expect(&[RIGHT], "[unsampled]");
    assert_eq!(
        browser.text("focused"),
        "[unsampled] · 10 samples, 10.00% of total, 10.00% of parent"
    );
    browser.press(&ENTER.to_string());
    assert_eq!(browser.zoomed(), "[unsampled]");
    browser.press(&ESCAPE.to_string());
    assert_eq!(browser.zoomed(), "all");
    browser.assert_no_complaint();
}

/// A stack of `outer`, and `inner` inlined into it, on two threads of one process.
fn labelled() -> Profile {
    let mut builder = ProfileBuilder::new(vec![ValueType {
        kind: "cpu".into(),
        unit: "nanoseconds".into(),
    }]);
    let [inner, outer] = ["inner", "outer"].map(|name| {
        builder.function(Function {
            name: name.into(),
            filename: "src/main.rs".into(),
            ..Function::default()
        })
    });
    let line = |function, line| Line {
        function,
        line,
        column: 0,
    };
    let location = builder.location(Location {
        address: 1,
        lines: vec![line(inner, 3), line(outer, 8)],
        ..Location::default()
    });
    for (thread, tid, value) in [("reader", 7, 1_500_000_000), ("writer", 8, 500_000_000)] {
        let label = |key: &str, value| Label {
            key: key.into(),
            value,
        };
        let labels = [
            label("thread", LabelValue::Text(thread.into())),
            label("tid", LabelValue::Number(tid, String::new())),
            label("pid", LabelValue::Number(1, String::new())),
        ];
        builder.sample(&[location], &[value], &labels);
    }
    let mut profile = builder.finish();
    profile.comments = vec!["a comment".into(), "<b>another</b>".into()];
    profile
}

#[test]
fn stacks_are_grouped_and_the_url_keeps_all() {
    let Some(browser) = Browser::start() else {
        return;
    };
    browser.open("groups", &labelled(), "");
    assert_eq!(browser.text("totals"), "cpu: 2.000 s in all");
    browser.point(0.5, 2, false);
    assert_eq!(
        browser.text("tip"),
        "innersrc/main.rs:3inlined2.000 s: 100% of total, 100% of parent"
    );
    let choose = "const by = document.getElementById('by'); by.value = 'thread'; by.dispatchEvent(new Event('change'))";
    browser.run(choose);
    browser.click(0.9, 1);
    assert_eq!(browser.zoomed(), "writer (tid 8)");
    browser.press("/inner");
    let fragment = browser.fragment();
    assert_eq!(fragment, "#by=thread&zoom=4&search=inner");

    browser.go("about:blank");
    browser.open("groups", &labelled(), &fragment);
    assert_eq!(browser.zoomed(), "writer (tid 8)");
    assert_eq!(
        browser.run("return document.getElementById('by').value"),
        "thread"
    );
    assert_eq!(
        browser.text("matched"),
        "2.000 s, 100% of total; 100% of what is shown"
    );

    browser.go("about:blank");
    browser.open("groups", &labelled(), "#by=process&zoom=1");
    assert_eq!(browser.zoomed(), "pid 1");
    browser.go("about:blank");
    browser.open("groups", &labelled(), "#by=nobody&zoom=1e9&search=");
    assert_eq!(browser.zoomed(), "all");

    browser.run("document.getElementById('more').click()");
    assert_eq!(browser.text("comments"), "a comment<b>another</b>");
    assert_eq!(
        browser.run("return document.getElementById('details').offsetHeight > 0"),
        true
    );
    browser.assert_no_complaint();
}

#[test]
fn an_inlined_frame_has_no_border_to_its_caller() {
    let Some(browser) = Browser::start() else {
        return;
    };
    browser.open("border", &labelled(), "");
    let ground = browser.colour(0.5, 10.0 * ROW);
    // The last line of pixels of a row: between `all` and `outer`, and between `outer` and `inner`.
    assert_eq!(browser.colour(0.5, ROW - 1.0), ground);
    assert_ne!(browser.colour(0.5, 2.0 * ROW - 1.0), ground);
}

#[test]
fn themes_palettes_and_sizes_change_what_is_drawn() {
    let Some(browser) = Browser::start() else {
        return;
    };
    browser.open("themes", &profile(), "");
    let frame = |browser: &Browser| browser.colour(0.5, ROW + 2.0);
    let pseudo = |browser: &Browser| browser.colour(0.95, ROW + 2.0);
    let grey = |colour: &Value| {
        let channels = [0, 1, 2].map(|at| colour[at].as_u64().unwrap());
        channels.iter().max().unwrap() - channels.iter().min().unwrap() < 12
    };
    let mut seen = vec![frame(&browser)];
    for button in ["theme", "palette", "theme"] {
        assert!(grey(&pseudo(&browser)) && !grey(&frame(&browser)));
        let ground = browser.colour(0.5, 20.0 * ROW);
        browser.run(&format!("document.getElementById('{button}').click()"));
        assert_eq!(browser.colour(0.5, 20.0 * ROW) != ground, button == "theme");
        seen.push(frame(&browser));
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2]);

    browser.post("/window/rect", &json!({ "width": 700, "height": 500 }));
    let fits = "const view = document.getElementById('view'), canvas = document.getElementById('canvas');
        return innerWidth === 700 && canvas.width === view.clientWidth && canvas.height === view.clientHeight";
    browser.wait("resizing", |browser| browser.run(fits) == true);
    browser.click(0.7, 2);
    assert_eq!(browser.zoomed(), "parse");
    browser.assert_no_complaint();
}

#[test]
fn names_are_only_text_and_nothing_is_loaded() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let hostile = "</script><script>document.title='bad'</script><img src=x onerror=\"document.title='bad'\">";
    let profile = collapsed::read(format!("größe;関数🦀;{hostile} 1").as_bytes());
    browser.open("names", &profile.unwrap(), "");
    browser.click(0.5, 2);
    assert_eq!(browser.zoomed(), "関数🦀");
    browser.click(0.5, 4);
    // In collapsed stacks `;` separates frames, and this name has none.
    assert_eq!(browser.zoomed(), "関数🦀");
    browser.click(0.5, 3);
    assert_eq!(browser.zoomed(), hostile);
    assert_eq!(browser.run("return document.title"), "Test of names");
    assert_eq!(
        browser.run("return document.images.length + document.scripts.length"),
        2
    );
    assert_eq!(
        browser.run("return performance.getEntriesByType('resource').length"),
        0
    );
    let fetched = "const done = arguments[0]; fetch('data:,x').then(() => done('loaded'), () => done('refused'))";
    let fetched = browser.post("/execute/async", &json!({ "script": fetched, "args": [] }));
    assert_eq!(fetched, "refused");
}

#[test]
fn deep_and_large_profiles_are_drawn() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let mut stacks = format!("{};leaf 1000000\n", ["deep"; 5000].join(";"));
    for number in 0..100_000 {
        stacks.push_str(&format!(
            "wide{};f{number} {}\n",
            number % 100,
            number % 9 + 1
        ));
    }
    browser.open("large", &collapsed::read(stacks.as_bytes()).unwrap(), "");
    browser.run("const view = document.getElementById('view'); view.scrollTop = view.scrollHeight");
    let last = "const view = document.getElementById('view');
        return Math.floor((5001.5 * 18 - view.scrollTop) / 18)";
    let row = browser.run(last).as_u64().unwrap();
    browser.click(0.1, u32::try_from(row).unwrap());
    assert_eq!(browser.zoomed(), "leaf");
    browser.run("document.getElementById('reset').click()");
    assert_eq!(browser.zoomed(), "all");
    browser.assert_no_complaint();
}

#[test]
fn an_empty_profile_is_an_empty_graph() {
    let Some(browser) = Browser::start() else {
        return;
    };
    browser.open(
        "empty",
        &collapsed::read(b"main 0").unwrap(),
        "#zoom=1&search=x",
    );
    assert_eq!(browser.text("totals"), "0 samples in all");
    assert_eq!(browser.zoomed(), "all");
    browser.press(&format!("{DOWN}{DOWN}{RIGHT}{ENTER}"));
    browser.click(0.5, 0);
    browser.assert_no_complaint();
}
