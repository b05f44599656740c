//! libunwind, where it is installed, from the interrupted context on.

use crate::{Interrupted, Walker};
use std::ffi::{c_int, c_void};

type Init = unsafe extern "C" fn(*mut c_void, *mut c_void, c_int) -> c_int;
type Step = unsafe extern "C" fn(*mut c_void) -> c_int;
type GetRegister = unsafe extern "C" fn(*mut c_void, c_int, *mut u64) -> c_int;

/// `unw_cursor_t` on x86-64 has 127 words.
type Cursor = [u64; 127];
const UNW_INIT_SIGNAL_FRAME: c_int = 1;
const UNW_X86_64_RIP: c_int = 16;

pub(crate) fn walker() -> Option<Walker> {
    // SAFETY: a library without constructors of note.
    let library = unsafe { libc::dlopen(c"libunwind.so.8".as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return None;
    }
    let find = |name: &std::ffi::CStr| {
        // SAFETY: an open library and a NUL-terminated name.
        let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
        (!symbol.is_null()).then_some(symbol)
    };
    // SAFETY: the documented types of these functions.
    let (init, step, get) = unsafe {
        (
            std::mem::transmute::<*mut c_void, Init>(find(c"_ULx86_64_init_local2")?),
            std::mem::transmute::<*mut c_void, Step>(find(c"_ULx86_64_step")?),
            std::mem::transmute::<*mut c_void, GetRegister>(find(c"_ULx86_64_get_reg")?),
        )
    };
    Some(Box::new(
        move |interrupted: &Interrupted, frames: &mut [u64]| {
            let mut cursor: Cursor = [0; 127];
            let cursor = cursor.as_mut_ptr().cast();
            // SAFETY: `unw_context_t` is the kernel's `ucontext_t`; the cursor has room.
            if unsafe { init(cursor, interrupted.context(), UNW_INIT_SIGNAL_FRAME) } < 0 {
                return 0;
            }
            for (count, place) in frames.iter_mut().enumerate() {
                let mut ip = 0;
                // SAFETY: an initialised cursor, and room for a word.
                let got = unsafe { get(cursor, UNW_X86_64_RIP, &raw mut ip) };
                if got < 0 || ip == 0 {
                    return count;
                }
                *place = ip;
                // SAFETY: an initialised cursor.
                if unsafe { step(cursor) } <= 0 {
                    return count + 1;
                }
            }
            frames.len()
        },
    ))
}
