//! A program that joins the recording by itself, which it has to where it is static.
//!
//! - `joins burn SECONDS`: uses so much CPU time in each of three threads, then says what it used, and ends with 7
//! - `joins short`: some 700,000 instructions, the same at each run, for a prover that steps through them
//! - `joins environment`: prints what the environment says of the recording
//! - `joins start`: starts itself with `environment`
#![forbid(unsafe_code)]

use selvedge_profile::Membership;
use std::fmt::Write;
use std::hint::black_box;
use std::process::ExitCode;

fn main() -> ExitCode {
    let member = match Membership::from_env() {
        Ok(member) => member,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(3);
        }
    };
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["burn", seconds] => burn(seconds.parse().unwrap_or(1.0), member.as_ref()),
        ["short"] => println!("{}", short()),
        ["start"] => start(),
        ["environment"] => environment(member.is_some()),
        _ => return ExitCode::from(2),
    }
    ExitCode::from(7)
}

fn start() {
    let own = std::env::current_exe().unwrap_or_default();
    if let Err(error) = std::process::Command::new(own).arg("environment").status() {
        eprintln!("{error}");
    }
}

fn environment(joined: bool) {
    for name in ["LD_PRELOAD", "SELVEDGE_SESSION"] {
        println!("{name} {}", std::env::var_os(name).is_some());
    }
    println!("joined {joined}");
}

/// CPU time that the calling thread has used, in seconds.
fn used() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse().ok());
    nanoseconds.map_or(f64::MAX, |nanoseconds: f64| nanoseconds / 1e9)
}

fn burn(seconds: f64, member: Option<&Membership>) {
    let all = std::thread::scope(|scope| {
        let known = scope.spawn(|| {
            let _thread = member.map(Membership::thread);
            hot_in_known_thread(seconds)
        });
        let unknown = scope.spawn(|| hot_in_unknown_thread(seconds));
        let own = hot_in_main_thread(seconds);
        [Ok(own), known.join(), unknown.join()]
    });
    let all = all.map(|used| used.unwrap_or(0.0));
    println!("used {}", all.iter().sum::<f64>());
}

/// Each has a number of its own: the compiler makes one function of several that do the same.
macro_rules! hot {
    ($($name:ident $number:literal)*) => {$(
        #[inline(never)]
        fn $name(seconds: f64) -> f64 {
            let begin = used();
            loop {
                black_box((0..2_000_000_u64).fold($number, |x, y| {
                    black_box(x ^ y).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                }));
                let used = used() - begin;
                if used >= seconds {
                    return used;
                }
            }
        }
    )*};
}

hot!(hot_in_main_thread 1 hot_in_known_thread 2 hot_in_unknown_thread 3);

/// Recursion, calls back from a sort, formatting, and allocation.
fn short() -> String {
    let mut text = format!(
        "hanoi {}",
        black_box(hanoi as fn(u32, u8, u8) -> u64)(10, 0, 2)
    );
    let mut numbers: Vec<u32> = (0..300_u32)
        .map(|number| number.wrapping_mul(0x9e37_79b9) >> 7)
        .collect();
    let orders: [fn(&u32, &u32) -> std::cmp::Ordering; 2] = [by_digits, by_value];
    for order in black_box(orders) {
        numbers.sort_by(order);
        let middle = &numbers[numbers.len() / 2..][..8];
        for (place, number) in middle.iter().enumerate() {
            let share = f64::from(*number) / f64::from(u32::MAX);
            write!(text, " {place}:{number:x}={share:.3}").unwrap_or_default();
        }
    }
    let words: std::collections::BTreeMap<&str, usize> =
        text.split(' ').map(|word| (word, word.len())).collect();
    format!("{text} {:?}", words.first_key_value())
}

#[inline(never)]
fn by_value(a: &u32, b: &u32) -> std::cmp::Ordering {
    a.cmp(b)
}

#[inline(never)]
fn by_digits(a: &u32, b: &u32) -> std::cmp::Ordering {
    let (a, b) = (digits(*a), digits(*b));
    a.cmp(&b)
}

#[inline(never)]
fn digits(number: u32) -> u32 {
    match number {
        0 => 0,
        _ => number % 10 + digits(number / 10),
    }
}

#[inline(never)]
fn hanoi(discs: u32, from: u8, to: u8) -> u64 {
    if discs == 0 {
        return 0;
    }
    let other = 3 - from - to;
    hanoi(discs - 1, from, other) + 1 + hanoi(discs - 1, other, to)
}
