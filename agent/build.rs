//! Links the agent without a C library: what it needs of one it looks up where the program has it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for argument in [
        "-nostdlib",
        "-nostartfiles",
        // All calls inside the agent stay inside, whatever the program defines.
        "-Wl,-Bsymbolic",
        // Nothing is bound lazily: the loader's resolver never runs on behalf of the signal handler.
        "-Wl,-z,now",
        "-Wl,-z,relro",
        // Whatever is not defined must be a weak reference, or this does not link.
        "-Wl,-z,defs",
        "-Wl,-z,noexecstack",
        "-Wl,--hash-style=both",
        "-Wl,--build-id",
    ] {
        println!("cargo::rustc-cdylib-link-arg={argument}");
    }
}
