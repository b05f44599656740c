//! Programs that lock all their memory (`mlockall`): the session's memory is not theirs to lock.
//!
//! It is more than a gigabyte of address space, of which a process touches little. The kernel would give it all of its
//! memory, or, where the program may lock only so much, refuse to lock anything. So what is mapped now is locked one
//! mapping after the other, except that one; what is mapped later, the kernel locks as ever.
//!
//! What differs: a program that has asked for later mappings to be locked, and then for present ones only, still gets
//! later ones locked.
//!
//! # Safety
//!
//! This file is `unsafe` because it defines a function under the C library's name.
#![allow(unsafe_code)]

use crate::kernel::{self, AT_FDCWD, Descriptor};
use crate::{real, sandbox, start};
use core::ffi::c_int;
use core::ops::Range;
use selvedge_sample::Region;

const MCL_CURRENT: c_int = 1;
const MCL_FUTURE: c_int = 2;
const MCL_ONFAULT: c_int = 4;

#[unsafe(no_mangle)]
extern "C" fn mlockall(flags: c_int) -> c_int {
    let known = flags & !(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0;
    let region = start::region();
    if region == 0 || !known || flags & MCL_CURRENT == 0 || sandbox::is_entered() {
        return lock_by_kernel(flags);
    }
    match lock_current(region..region + Region::SIZE, flags) {
        Some(0) => 0,
        Some(error) => real::fail(error),
        None => lock_by_kernel(flags),
    }
}

fn lock_by_kernel(flags: c_int) -> c_int {
    let Some(address) = real::MLOCKALL.address() else {
        return real::fail(real::ENOSYS);
    };
    // SAFETY: the C library's function of this name has this type.
    let lock =
        unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(c_int) -> c_int>(address) };
    // SAFETY: the program's own call.
    unsafe { lock(flags) }
}

/// Locks what is mapped, except a part. Gives back an error number, or 0; `None` where it cannot be known what is mapped.
///
/// In the order of the kernel (mm/mlock.c): whether it may lock anything, whether all fits; then errors of single mappings
/// (one that cannot be accessed, say) are passed over.
fn lock_current(except: Range<usize>, flags: c_int) -> Option<c_int> {
    const ENOMEM: c_int = 12;
    const EPERM: c_int = 1;
    let limit = kernel::locked_memory_limit();
    if limit != u64::MAX && !kernel::may_lock_memory() {
        if limit == 0 {
            return Some(EPERM);
        }
        let mut total = 0_u64;
        each_mapping(&except, |part| total += part.len() as u64)?;
        if total > limit {
            return Some(ENOMEM);
        }
    }
    // First, so that nothing is missed that is mapped meanwhile.
    if flags & MCL_FUTURE != 0 && lock_by_kernel(flags & !MCL_CURRENT) != 0 {
        return Some(real::error());
    }
    each_mapping(&except, |part| {
        kernel::lock_memory(part, flags & MCL_ONFAULT != 0);
    })?;
    Some(0)
}

/// Shows all mappings of user space but one.
fn each_mapping(except: &Range<usize>, mut look: impl FnMut(Range<usize>)) -> Option<()> {
    const PIECE: usize = 1024;
    const USER_SPACE: usize = 1 << 47;
    /// What a line of `/proc/self/maps` is being read for: `START-END rest`.
    enum At {
        Start,
        End,
        Rest,
    }
    let path = c"/proc/self/maps";
    // SAFETY: NUL-terminated.
    let file = unsafe { Descriptor::open(AT_FDCWD, path.as_ptr(), false) }?;
    let (mut at, mut start, mut end, mut offset) = (At::Start, 0_usize, 0_usize, 0);
    loop {
        let mut piece = [0; PIECE];
        let piece = file.read(&mut piece, offset);
        if piece.is_empty() {
            return (offset > 0).then_some(());
        }
        offset += piece.len() as u64;
        for &byte in piece {
            let digit = char::from(byte).to_digit(16).map(|digit| digit as usize);
            match (&at, byte, digit) {
                (_, b'\n', _) => (at, start, end) = (At::Start, 0, 0),
                (At::Start, _, Some(digit)) => start = (start << 4) | digit,
                (At::Start, ..) => at = At::End,
                (At::End, _, Some(digit)) => end = (end << 4) | digit,
                (At::End, ..) => {
                    at = At::Rest;
                    if end <= USER_SPACE && start < end && !except.contains(&start) {
                        look(start..end);
                    }
                }
                (At::Rest, ..) => {}
            }
        }
    }
}
