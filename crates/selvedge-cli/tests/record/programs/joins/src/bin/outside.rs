//! A program that uses another part of the library, and does not join: says what the environment says of the recording.
#![forbid(unsafe_code)]

fn main() -> Result<(), selvedge_profile::Error> {
    let _profile = selvedge_profile::init_from_env()?;
    for name in ["LD_PRELOAD", "SELVEDGE_SESSION"] {
        println!("{name} {}", std::env::var_os(name).is_some());
    }
    Ok(())
}
