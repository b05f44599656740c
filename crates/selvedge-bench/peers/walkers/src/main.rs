//! Walks the same stacks by selvedge-unwind and by its peers. Prints a line for each figure of each run: name, peer, value.
//!
//! - *warm*: the stack of 50 calls of one function, again and again
//! - *changed*: the same, and nothing is kept from one walk to the next
//! - *cold*: stacks of 50 frames at distinct addresses of a large library, each walked once

mod deep;
mod library;
mod peers;

use std::path::PathBuf;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let runs = arguments.next().and_then(|runs| runs.parse().ok());
    let Some(runs) = runs else {
        eprintln!("walkers: usage: walkers RUNS [LIBRARY]");
        std::process::exit(2);
    };
    let library = arguments.next().map(PathBuf::from);
    let mut deep = deep::Walkers::new();
    let mut large = library.as_deref().map(library::Large::new);
    for _ in 0..runs {
        deep.run(50);
        if let Some(large) = &mut large {
            large.run();
        }
    }
}

/// Prints a figure.
fn say(name: &str, peer: &str, value: f64) {
    println!("{name} {peer} {value}");
}
