//! `_Unwind_Backtrace` of libgcc, as in glibc's `backtrace` and the crate `backtrace`.

use crate::{Interrupted, Walker};
use std::ffi::{c_int, c_void};

unsafe extern "C" {
    fn _Unwind_Backtrace(
        visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        to: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

struct Found<'a> {
    ip: u64,
    frames: &'a mut [u64],
    /// Nothing until the walk has come out of the handler.
    count: Option<usize>,
}

extern "C" fn visit(context: *mut c_void, found: *mut c_void) -> c_int {
    // SAFETY: `_Unwind_Backtrace` gives back what it was given below.
    let found = unsafe { &mut *found.cast::<Found<'_>>() };
    // SAFETY: the context is valid in this call.
    let ip = unsafe { _Unwind_GetIP(context) } as u64;
    if found.count.is_none() {
        if ip != found.ip {
            return 0;
        }
        found.count = Some(0);
    }
    let count = found.count.unwrap_or(0);
    let Some(place) = found.frames.get_mut(count) else {
        return 5;
    };
    // The last frame is behind the root.
    if ip == 0 {
        return 0;
    }
    *place = ip;
    found.count = Some(count + 1);
    0
}

pub(crate) fn walker() -> Walker {
    // Its first call loads and allocates.
    let mut nowhere = Found {
        ip: 1,
        frames: &mut [],
        count: None,
    };
    // SAFETY: `nowhere` outlives the call.
    unsafe { _Unwind_Backtrace(visit, (&raw mut nowhere).cast()) };
    Box::new(|interrupted: &Interrupted, frames: &mut [u64]| {
        let mut found = Found {
            ip: interrupted.ip(),
            frames,
            count: None,
        };
        // SAFETY: `found` outlives the call.
        unsafe { _Unwind_Backtrace(visit, (&raw mut found).cast()) };
        found.count.unwrap_or(0)
    })
}
