//! The command line: every option is defined here, once; help, completions and errors derive from it.

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Records a true CPU profile of any program, and shows it.
#[derive(Debug, Parser)]
#[command(
    name = "selvedge",
    version,
    max_term_width = 100,
    infer_subcommands = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program and record where its CPU time goes
    Record(Record),
    /// Show the functions that use the most CPU time
    Top(Top),
    /// Make a flame graph: one self-contained HTML page
    Flamegraph(Flamegraph),
    /// Convert between profile formats
    Convert(Convert),
    /// Say which engine will be used and why, and which limits apply here
    Doctor(Doctor),
    /// Print completions for a shell
    Completions(Completions),
    /// A program to profile: four threads, known shares
    #[command(hide = true)]
    Demo(Demo),
}

/// Run a program and record where its CPU time goes.
#[derive(Debug, Args)]
#[command(
    after_help = "A .pb.gz is gzipped profile.proto: `go tool pprof`, speedscope and `selvedge top` read it.\n\
Exit status: that of CMD (128+n if signal n ended it), 126 if CMD cannot be run, 127 if it is not found,\n\
2 for errors of selvedge itself.\n\n\
Signals: SIGUSR2 writes a snapshot and goes on; each snapshot replaces the one before, and the profile the last one.\n\
The first Ctrl-C reaches CMD and keeps the data; a second one kills CMD, and what was not written is lost.\n\n\
The agent that CMD loads is kept in /var/cache/selvedge (root), $XDG_CACHE_HOME/selvedge or ~/.cache/selvedge."
)]
pub(crate) struct Record {
    /// File to write, by its ending in a format of `selvedge convert` (else .pb.gz); replaced where it exists; - for standard output, where it mixes with what CMD writes [default: selvedge-NAME-TIME.pb.gz, a new one]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Samples per second of CPU time, 1 to 50000
    #[arg(
        short = 'F',
        long = "frequency",
        value_name = "HZ",
        default_value_t = 99.0
    )]
    pub(crate) frequency: f64,
    /// Stop recording and write the profile after this time (30s, 5m); CMD runs on
    #[arg(short, long, value_name = "DURATION", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// What produces the signals
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t = Engine::Auto)]
    pub(crate) engine: Engine,
    /// Signal to use where CMD owns SIGPROF (a number, or a name such as SIGRTMIN+3)
    #[arg(long, value_name = "SIG", default_value = "SIGPROF", value_parser = signal)]
    pub(crate) signal: i32,
    /// Write a snapshot at this interval, each over the one before
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) every: Option<Duration>,
    /// Profile CMD only, not the processes that it starts
    #[arg(long)]
    pub(crate) no_children: bool,
    /// Rows of the table printed at the end; 0 for none [default: 10 on a terminal and for the demo]
    #[arg(long, value_name = "ROWS")]
    pub(crate) top: Option<usize>,
    /// Print nothing but errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The program and its arguments [default: a bundled demo]
    #[arg(trailing_var_arg = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

/// What produces the signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// The best that is permitted: the timer engine
    Auto,
    /// A CPU-time timer per thread: unprivileged, nearly free, at most one signal per kernel tick
    Timer,
    /// A perf_event task clock per thread: any rate up to 50000, 15 to 22 µs a signal
    Perf,
    /// ITIMER_PROF: the last resort; a program that uses that timer itself gets no signals from it
    Itimer,
}

/// Show the functions that use the most CPU time.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Profile to read, - for standard input; several are added up
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) files: Vec<PathBuf>,
    /// Sort by the time in functions and what they call, instead of in functions themselves
    #[arg(long)]
    pub(crate) cum: bool,
    /// Rows to show at most; 0 for all
    #[arg(short = 'n', long, value_name = "N", default_value_t = 0)]
    pub(crate) nodecount: usize,
    /// Hide functions below this share of the total, from 0 to 1
    #[arg(long, value_name = "F", default_value_t = 0.005, value_parser = fraction)]
    pub(crate) nodefraction: f64,
    /// Value to report: a name (samples, cpu) or a number
    #[arg(long, value_name = "TYPE")]
    pub(crate) sample_index: Option<String>,
    /// Keep only stacks through a function that matches
    #[arg(short, long, value_name = "REGEX")]
    pub(crate) focus: Option<String>,
    /// Leave out stacks through a function that matches
    #[arg(short, long, value_name = "REGEX")]
    pub(crate) ignore: Option<String>,
    /// Leave out functions that match
    #[arg(long, value_name = "REGEX")]
    pub(crate) hide: Option<String>,
    /// Show only functions that match
    #[arg(long, value_name = "REGEX")]
    pub(crate) show: Option<String>,
    /// Keep only samples with a label that matches (key=regex, or regex)
    #[arg(long, value_name = "REGEX")]
    pub(crate) tagfocus: Option<String>,
    /// Leave out samples with a label that matches
    #[arg(long, value_name = "REGEX")]
    pub(crate) tagignore: Option<String>,
    /// Count inlined functions to the function that they were inlined into
    #[arg(long)]
    pub(crate) noinlines: bool,
    /// Print JSON (version 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a flame graph: one self-contained HTML page.
#[derive(Debug, Args)]
pub(crate) struct Flamegraph {
    /// Profile to read, - for standard input; several are added up
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) files: Vec<PathBuf>,
    /// Page to write; - for standard output [default: the first FILE with the ending .html]
    #[arg(short, long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Title of the page [default: the name of the first FILE]
    #[arg(long)]
    pub(crate) title: Option<String>,
}

/// Convert between profile formats.
#[derive(Debug, Args)]
#[command(
    after_help = "FROM tells its format by its contents, TO by its ending: .pb.gz and .pb (profile.proto), .prof (legacy gperftools CPU profile),\n\
.collapsed and .folded (one stack a line), .speedscope.json (write only), .html (flame graph, write only)."
)]
pub(crate) struct Convert {
    /// Profile to read, - for standard input; several are added up
    #[arg(required = true, value_name = "FROM", value_hint = ValueHint::FilePath)]
    pub(crate) from: Vec<PathBuf>,
    /// File to write, - for standard output
    #[arg(required = true, value_name = "TO", value_hint = ValueHint::FilePath)]
    pub(crate) to: PathBuf,
    /// Format to write, whatever the name says
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) format: Option<Format>,
}

/// A format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Gzipped profile.proto
    Pprof,
    /// Legacy gperftools CPU profile
    Legacy,
    /// One stack a line
    Collapsed,
    /// speedscope's JSON
    Speedscope,
    /// Flame graph
    Html,
}

/// Say which engine will be used and why, and which limits apply here.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print JSON (version 1)
    #[arg(long)]
    pub(crate) json: bool,
    /// A program to check: can it be recorded?
    #[arg(value_name = "CMD", value_hint = ValueHint::CommandName)]
    pub(crate) command: Option<OsString>,
}

/// Print completions for a shell.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// A program to profile.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// How long to work
    #[arg(long, default_value_t = 3.0)]
    pub(crate) seconds: f64,
}

/// Parses 500ms, 30s, 5m, 1h, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        unit => return Err(format!("'{unit}' is not a unit of time: use ms, s, m or h")),
    };
    let number: f64 = digits
        .parse()
        .map_err(|_| "write a number and a unit, such as 30s or 5m".to_string())?;
    let seconds = number * factor;
    if !(0.001..=1e9).contains(&seconds) {
        return Err("choose a time from 1ms to 1000000000s".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Parses a share, from 0 to 1.
fn fraction(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n| (0.0..=1.0).contains(n));
    number.ok_or_else(|| "choose a number from 0 to 1".into())
}

/// Parses a signal's number or name.
fn signal(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.split_once('+') {
        Some(("RTMIN", offset)) => offset.parse().ok().map(|n: i32| libc::SIGRTMIN() + n),
        None => match name {
            "PROF" => Some(libc::SIGPROF),
            "VTALRM" => Some(libc::SIGVTALRM),
            "USR1" => Some(libc::SIGUSR1),
            "IO" | "POLL" => Some(libc::SIGIO),
            "STKFLT" => Some(libc::SIGSTKFLT),
            "PWR" => Some(libc::SIGPWR),
            "RTMIN" => Some(libc::SIGRTMIN()),
            "RTMAX" => Some(libc::SIGRTMAX()),
            number => number.parse().ok(),
        },
        Some(_) => None,
    };
    let usable = |n: &i32| {
        (1..=64).contains(n)
            && ![
                libc::SIGKILL,
                libc::SIGSTOP,
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGILL,
                libc::SIGFPE,
                32,
                33,
            ]
            .contains(n)
    };
    number.filter(usable).ok_or_else(|| {
        "choose SIGPROF, SIGVTALRM, SIGUSR1, SIGIO, SIGPWR, SIGRTMIN+n, or a number".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_with_and_without_units() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        for wrong in ["", "s", "0s", "-1s", "3 days", "1e99s", "NaNs"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn signals_that_would_break_a_program_are_refused() {
        assert_eq!(signal("sigprof"), Ok(libc::SIGPROF));
        assert_eq!(signal("SIGRTMIN+3"), Ok(libc::SIGRTMIN() + 3));
        for wrong in ["SIGKILL", "9", "SIGSEGV", "11", "0", "65", "RTMIN+99", "x"] {
            assert!(signal(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_told_the_range() {
        let far = duration("99999999999999999999s").unwrap_err();
        assert!(far.contains("1ms to 1000000000s"), "{far}");
        for wrong in ["nan", "-0.1", "1.1", "inf", "x"] {
            assert!(fraction(wrong).is_err(), "{wrong}");
        }
        assert_eq!(fraction("0.5"), Ok(0.5));
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let record = |words: &[&str]| {
            let words = ["selvedge", "record"].iter().chain(words);
            match Cli::try_parse_from(words).map(|cli| cli.command) {
                Ok(Command::Record(record)) => Ok(record),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error.exit_code()),
            }
        };
        let attached = record(&["-F999", "-d1s", "-oX", "--", "prog"]).unwrap();
        assert_eq!(attached.frequency, 999.0);
        assert_eq!(attached.duration, Some(Duration::from_secs(1)));
        assert_eq!(attached.output, Some("X".into()));
        assert_eq!(attached.command, ["prog"]);
        for typo in [
            &["--durationn", "1s", "prog"][..],
            &["-x", "prog"],
            &["-F999x", "prog"],
            &["-x", "--", "prog"],
        ] {
            assert_eq!(record(typo).unwrap_err(), 2, "{typo:?}");
        }
        for (words, command) in [
            (&["prog", "-F999", "-x"][..], &["prog", "-F999", "-x"][..]),
            (&["prog", "--", "-x"], &["prog", "--", "-x"]),
            (&["--", "-x", "--", "-d1s"], &["-x", "--", "-d1s"]),
            (
                &["-q", "prog", "--help", "-o", "x"],
                &["prog", "--help", "-o", "x"],
            ),
        ] {
            let parsed = record(words).unwrap();
            assert_eq!(parsed.command, command);
            assert_eq!((parsed.frequency, parsed.output), (99.0, None));
        }
    }
}
