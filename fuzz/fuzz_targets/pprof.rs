//! Profiles of whatever a file may hold, and what is made of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_pprof::model::Profile;
use selvedge_pprof::{collapsed, legacy, speedscope};

fuzz_target!(|bytes: &[u8]| {
    let _ = collapsed::read(bytes);
    let Ok(profile) = Profile::read(bytes) else {
        return;
    };
    let encoded = profile.encode();
    assert_eq!(
        Profile::read(&encoded).expect("what was written can be read"),
        profile
    );
    let _ = legacy::write(&profile, &mut Vec::new());
    let _ = speedscope::write(&profile, 0, &mut Vec::new());
});
