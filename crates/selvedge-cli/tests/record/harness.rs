//! Runs the built command on small programs, with a watchdog, and reads what it wrote.

use selvedge_pprof::is_accounting_row;
use selvedge_pprof::model::{LabelValue, Profile, Sample};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// After this long, a recording is taken for hung.
const PATIENCE: Duration = Duration::from_secs(60);
const SELVEDGE: &str = env!("CARGO_BIN_EXE_selvedge");

/// A folder of a test's own, removed at the end.
#[derive(Debug)]
pub(crate) struct Workshop {
    pub(crate) folder: PathBuf,
}

impl Workshop {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("selvedge-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Compiles a C program that starts with `programs/burn.h`.
    pub(crate) fn program(&self, name: &str, source: &str) -> PathBuf {
        self.compile(name, source, &[])
            .unwrap_or_else(|errors| panic!("cannot compile {name}: {errors}"))
    }

    /// Compiles with more options; gives back what the compiler says where it cannot.
    pub(crate) fn compile(
        &self,
        name: &str,
        source: &str,
        options: &[&str],
    ) -> Result<PathBuf, String> {
        let file = self.path(&format!("{name}.c"));
        fs::write(&file, format!("#include \"burn.h\"\n{source}")).unwrap();
        let program = self.path(name);
        let output = Command::new("cc")
            .args(["-O1", "-g", "-w", "-pthread", "-I"])
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/record/programs"
            ))
            .args(["-o".as_ref(), program.as_os_str(), file.as_os_str()])
            .args(options)
            .output()
            .unwrap();
        if output.status.success() {
            Ok(program)
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// A recording that is to be started.
    pub(crate) fn record(&self) -> Setup<'_> {
        Setup {
            workshop: self,
            before: Vec::new(),
            options: Vec::new(),
            environment: Vec::new(),
            patience: PATIENCE,
        }
    }

    /// Compiles a program and records it.
    pub(crate) fn record_source(&self, options: &[&str], source: &str) -> Recording {
        let program = self.program("program", source);
        self.record().options(options).run([program])
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// How to start a recording.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    workshop: &'a Workshop,
    before: Vec<OsString>,
    options: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    patience: Duration,
}

impl Setup<'_> {
    /// Options of `selvedge record`.
    pub(crate) fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(OsString::from));
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().into()));
        self
    }

    /// Waits this long before it takes the recording for hung.
    pub(crate) fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Runs the command by way of another: `selvedge` and its arguments are added to these.
    pub(crate) fn through(mut self, before: &[&str]) -> Self {
        self.before = before.iter().map(OsString::from).collect();
        self
    }

    /// Starts it: standard output and errors go to files.
    pub(crate) fn start(self, command: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Running {
        let folder = &self.workshop.folder;
        let profile = folder.join("profile.pb.gz");
        let _ = fs::remove_file(&profile);
        let mut words = self.before;
        words.extend([SELVEDGE.into(), "record".into()]);
        if !self.options.iter().any(|option| option == "-o") {
            words.extend(["-o".into(), profile.clone().into()]);
        }
        words.extend(self.options);
        words.push("--".into());
        words.extend(command.into_iter().map(|word| word.as_ref().to_owned()));
        let (stdout, stderr) = (folder.join("stdout"), folder.join("stderr"));
        let child = Command::new(&words[0])
            .args(&words[1..])
            .envs(self.environment)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        Running {
            child,
            profile,
            stdout,
            stderr,
            started: Instant::now(),
            patience: self.patience,
        }
    }

    /// Starts it and waits for its end.
    pub(crate) fn run(self, command: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Recording {
        self.start(command).wait()
    }
}

/// A recording that is under way, leader of a process group.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pub(crate) profile: PathBuf,
    stdout: PathBuf,
    stderr: PathBuf,
    started: Instant,
    patience: Duration,
}

impl Running {
    /// Process id of `selvedge`, and of its process group.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to `selvedge` only.
    pub(crate) fn signal(&self, name: &str) {
        kill(name, &self.pid().to_string());
    }

    /// What CMD has printed so far.
    pub(crate) fn output(&self) -> String {
        read(&self.stdout)
    }

    /// What has been said on standard error so far.
    pub(crate) fn messages(&self) -> String {
        read(&self.stderr)
    }

    /// Waits until something holds; the watchdog ends it otherwise.
    pub(crate) fn until<T>(&mut self, what: &str, mut holds: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(found) = holds(self) {
                return found;
            }
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                self.give_up(&format!("{what} did not happen (ended: {ended:?})"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What every thread of the recording is doing.
    fn threads(&self) -> String {
        let columns = "pgid,pid,tid,stat,wchan:32,pending,blocked,ignored,caught,comm";
        let listed = Command::new("ps").args(["-eLo", columns]).output();
        let listed = listed.map_or_else(
            |error| error.to_string().into_bytes(),
            |output| output.stdout,
        );
        let group = self.pid().to_string();
        let own =
            |line: &&str| ["PGID", &group].contains(&line.split_whitespace().next().unwrap_or(""));
        let lines = String::from_utf8_lossy(&listed).into_owned();
        lines.lines().filter(own).collect::<Vec<_>>().join("\n")
    }

    fn give_up(&mut self, why: &str) -> ! {
        let threads = self.threads();
        kill("KILL", &format!("-{}", self.pid()));
        let _ = self.child.wait();
        panic!(
            "{why}\n--- threads\n{threads}\n--- output\n{}\n--- messages\n{}",
            tail(&self.output()),
            tail(&self.messages())
        );
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Recording {
        let deadline = Instant::now() + self.patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.give_up("the recording did not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let profile = fs::read(&self.profile)
            .ok()
            .map(|bytes| Profile::read(&bytes).unwrap());
        Recording {
            status: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap()),
            took: self.started.elapsed(),
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
            profile,
        }
    }
}

/// Sends a signal: `target` is a process id, or a process group with a minus sign before it.
pub(crate) fn kill(name: &str, target: &str) {
    let _ = Command::new("sh")
        .args(["-c", "kill -s \"$1\" -- \"$2\"", "sh", name, target])
        .stderr(Stdio::null())
        .status();
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn tail(text: &str) -> &str {
    let lines = text.lines().rev().take(40);
    let bytes: usize = lines.map(|line| line.len() + 1).sum();
    text.get(text.len().saturating_sub(bytes)..).unwrap_or(text)
}

/// A recording that has ended.
#[derive(Debug)]
pub(crate) struct Recording {
    /// Exit status, 128+n for a signal.
    pub(crate) status: i32,
    pub(crate) took: Duration,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) profile: Option<Profile>,
}

impl Drop for Recording {
    /// Where an assertion failed, what the recording says of itself explains more.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let comments = self.profile.iter().flat_map(|profile| &profile.comments);
            eprintln!("--- messages\n{}", tail(&self.stderr));
            comments.for_each(|comment| eprintln!("comment: {comment}"));
        }
    }
}

impl Recording {
    /// Asserts the exit status.
    pub(crate) fn exits(self, status: i32) -> Self {
        assert_eq!(
            self.status, status,
            "exit status\n--- output\n{}\n--- messages\n{}",
            self.stdout, self.stderr
        );
        self
    }

    pub(crate) fn profile(&self) -> &Profile {
        self.profile
            .as_ref()
            .unwrap_or_else(|| panic!("no profile was written: {}", self.stderr))
    }

    /// Samples of stacks, without the rows that account for what is in none.
    pub(crate) fn stacks(&self) -> Stacks<'_> {
        let profile = self.profile();
        let samples = profile
            .samples
            .iter()
            .filter(|sample| !names(profile, sample).any(is_accounting_row))
            .collect();
        Stacks { profile, samples }
    }

    /// Seconds in an accounting row.
    pub(crate) fn row(&self, name: &str) -> f64 {
        let profile = self.profile();
        let rows = profile
            .samples
            .iter()
            .filter(|sample| names(profile, sample).any(|function| function == name));
        rows.map(seconds).sum()
    }

    /// All seconds, in stacks or not.
    pub(crate) fn total(&self) -> f64 {
        self.profile().samples.iter().map(seconds).sum()
    }

    /// The number behind a word in the program's output.
    pub(crate) fn said(&self, word: &str) -> f64 {
        let mut words = self.stdout.split_ascii_whitespace();
        words.find(|&found| found == word);
        words
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("no number after '{word}' in {}", self.stdout))
    }

    /// Lines on standard error that are not ours.
    pub(crate) fn foreign_messages(&self) -> Vec<&str> {
        self.stderr
            .lines()
            .filter(|line| !line.starts_with("selvedge: "))
            .collect()
    }
}

/// Some of a profile's samples.
#[derive(Clone, Debug)]
pub(crate) struct Stacks<'a> {
    profile: &'a Profile,
    samples: Vec<&'a Sample>,
}

impl<'a> Stacks<'a> {
    /// Those with a function anywhere in the stack.
    pub(crate) fn through(&self, function: &str) -> Stacks<'a> {
        self.keep(|sample| names(self.profile, sample).any(|name| name == function))
    }

    /// Those with this text for a label.
    pub(crate) fn labelled(&self, key: &str, text: &str) -> Stacks<'a> {
        self.keep(|sample| label(sample, key).as_deref() == Some(text))
    }

    fn keep(&self, condition: impl Fn(&Sample) -> bool) -> Stacks<'a> {
        let samples = self.samples.iter().copied();
        Stacks {
            profile: self.profile,
            samples: samples.filter(|sample| condition(sample)).collect(),
        }
    }

    pub(crate) fn count(&self) -> i64 {
        self.samples.iter().map(|sample| sample.values[0]).sum()
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.samples.iter().map(|sample| seconds(sample)).sum()
    }

    /// The functions of each, leaf first.
    pub(crate) fn names(&self) -> Vec<Vec<&'a str>> {
        let samples = self.samples.iter();
        samples
            .map(|sample| names(self.profile, sample).collect())
            .collect()
    }

    /// The different values of a label.
    pub(crate) fn labels(&self, key: &str) -> BTreeSet<String> {
        self.samples
            .iter()
            .filter_map(|sample| label(sample, key))
            .collect()
    }
}

fn seconds(sample: &Sample) -> f64 {
    sample.values[1] as f64 / 1e9
}

fn names<'a>(profile: &'a Profile, sample: &'a Sample) -> impl Iterator<Item = &'a str> {
    sample
        .locations
        .iter()
        .flat_map(|&at| &profile.locations[at].lines)
        .map(|line| profile.functions[line.function].name.as_str())
}

fn label(sample: &Sample, key: &str) -> Option<String> {
    let label = sample.labels.iter().find(|label| label.key == key)?;
    Some(match &label.value {
        LabelValue::Text(text) => text.clone(),
        LabelValue::Number(number, _) => number.to_string(),
    })
}

/// What a failed [`within`] panics with.
#[derive(Debug)]
struct OutOfBand;

/// Asserts that a number is in a band.
#[track_caller]
pub(crate) fn within(what: &str, number: f64, band: std::ops::RangeInclusive<f64>) {
    if !band.contains(&number) {
        let place = std::panic::Location::caller();
        eprintln!("{place}: {what}: {number:.4} is not in {band:?}");
        std::panic::panic_any(OutOfBand);
    }
}

/// Runs a test that measures CPU time up to three times, until all its numbers are in their bands. On a busy machine a
/// thread can run between the kernel's ticks for many of them, and none sees it. Whatever else fails, fails at once.
pub(crate) fn best_of_three(test: impl Fn()) {
    for _ in 0..2 {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(&test)) {
            Ok(()) => return,
            Err(why) if why.is::<OutOfBand>() => {}
            Err(why) => std::panic::resume_unwind(why),
        }
    }
    test();
}

/// Says why a test cannot run here.
pub(crate) fn skip(test: &str, why: &str) {
    eprintln!("skipped {test}: {why}");
}
