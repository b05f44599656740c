//! Links the agent as a library that depends on nothing: see `Cargo.toml` and `src/lib.rs`.

fn main() {
    for argument in ["-nostdlib", "-nostartfiles", "-Wl,-Bsymbolic", "-Wl,-z,now,-z,relro", "-Wl,--no-undefined-version"] {
        println!("cargo::rustc-cdylib-link-arg={argument}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
