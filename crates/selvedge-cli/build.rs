//! Builds the agent and hands it to the command, which carries it inside: one file to install.
//!
//! The agent cannot be a member of the workspace (it is `no_std` with a panic handler, and needs `panic = "abort"`), so it
//! is built by a cargo of its own, into a target folder of its own.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let manifest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let output = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = manifest.join("../..");
    let agent = root.join("agent");
    for watched in [
        "agent/src",
        "agent/build.rs",
        "agent/Cargo.toml",
        "agent/Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    for library in ["selvedge-arch", "selvedge-unwind", "selvedge-sample"] {
        println!(
            "cargo::rerun-if-changed={}",
            root.join("crates").join(library).join("src").display()
        );
    }
    let library = build(&agent, &output.join("agent"));
    let place = output.join("selvedge_agent.so");
    std::fs::copy(&library, &place).unwrap_or_else(|error| {
        panic!(
            "cannot copy {} to {}: {error}",
            library.display(),
            place.display()
        )
    });
    println!("cargo::rustc-env=SELVEDGE_AGENT_FILE={}", place.display());
}

/// Builds the agent and gives back the library.
fn build(agent: &Path, target: &Path) -> PathBuf {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            "x86_64-unknown-linux-gnu",
            "--manifest-path",
        ])
        .arg(agent.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .current_dir(agent);
    // What is meant for the outer build (flags for static linking, clippy's driver, coverage) is not meant for the agent.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let outer = name.starts_with("CARGO_ENCODED")
            || name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_TARGET_")
            || name.starts_with("CLIPPY_")
            || [
                "RUSTFLAGS",
                "RUSTC_WRAPPER",
                "RUSTC_WORKSPACE_WRAPPER",
                "CARGO_BUILD_TARGET",
            ]
            .contains(&&*name);
        if outer {
            cargo.env_remove(&*name);
        }
    }
    let status = cargo
        .status()
        .unwrap_or_else(|error| panic!("cannot run cargo to build the agent: {error}"));
    assert!(
        status.success(),
        "the agent in {} could not be built: see above",
        agent.display()
    );
    target.join("x86_64-unknown-linux-gnu/release/libselvedge_agent.so")
}
