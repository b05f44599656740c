//! Texts: C strings of others, and ones kept for the life of the process.
//!
//! # Safety
//!
//! This file is `unsafe` because C strings and arrays of them are raw pointers.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicUsize, Ordering};

/// A C array of C strings that ends with a null: arguments, or an environment.
pub(crate) type Strings = *const *const c_char;

/// The bytes of a C string; empty for a null pointer.
///
/// # Safety
///
/// `text` is null, or a NUL-terminated string that does not change while the result lives.
pub(crate) unsafe fn bytes<'a>(text: *const c_char) -> &'a [u8] {
    if text.is_null() {
        return &[];
    }
    // SAFETY: the caller answers for the string.
    unsafe { CStr::from_ptr(text) }.to_bytes()
}

/// The strings of a null-terminated array; none for a null pointer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Each {
    next: Strings,
}

impl Each {
    /// # Safety
    ///
    /// `strings` is null, or an array that ends with a null and does not change while this lives.
    pub(crate) unsafe fn of(strings: Strings) -> Self {
        Self { next: strings }
    }
}

impl Iterator for Each {
    type Item = *const c_char;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next.is_null() {
            return None;
        }
        // SAFETY: not past the null that ends the array: it is never stepped over below.
        let text = unsafe { self.next.read() };
        if text.is_null() {
            return None;
        }
        self.next = self.next.wrapping_add(1);
        Some(text)
    }
}

/// Room of a [`Kept`] text, with its NUL.
pub(crate) const KEPT_BYTES: usize = 512;

/// A text that is set once, when the agent starts, and read for ever after.
#[derive(Debug)]
pub(crate) struct Kept {
    /// 0 until the bytes are there.
    len: AtomicUsize,
    bytes: UnsafeCell<[u8; KEPT_BYTES]>,
}

// SAFETY: the bytes are written by `set`, whose caller is alone, and read only after `len` says that they are complete.
unsafe impl Sync for Kept {}

impl Kept {
    pub(crate) const fn new() -> Self {
        Self {
            len: AtomicUsize::new(0),
            bytes: UnsafeCell::new([0; KEPT_BYTES]),
        }
    }

    /// Sets the text. A text that has no room is not kept.
    ///
    /// # Safety
    ///
    /// It has not been set before, and no other thread sets it.
    pub(crate) unsafe fn set(&self, text: &[u8]) {
        // SAFETY: nobody else has a reference: `len` is still 0, and the caller is the only one to set it.
        let room = unsafe { &mut *self.bytes.get() };
        let Some((room, [_nul, ..])) = room.split_at_mut_checked(text.len()) else {
            return;
        };
        room.copy_from_slice(text);
        // Release: pairs with `get`.
        self.len.store(text.len(), Ordering::Release);
    }

    /// The text; `None` while it is not set. A NUL follows it in memory.
    pub(crate) fn get(&self) -> Option<&[u8]> {
        // Acquire: pairs with `set`.
        let len = self.len.load(Ordering::Acquire);
        if len == 0 {
            return None;
        }
        // SAFETY: the bytes do not change any more.
        let bytes = unsafe { &*self.bytes.get() };
        bytes.get(..len)
    }
}

/// The part of `entry` behind `NAME=`.
pub(crate) fn value<'a>(entry: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    entry.strip_prefix(name)?.strip_prefix(b"=")
}

/// The first value of a variable in an environment.
///
/// # Safety
///
/// As for [`Each::of`], for strings as well.
pub(crate) unsafe fn variable<'a>(environment: Strings, name: &[u8]) -> Option<&'a [u8]> {
    // SAFETY: the caller answers for the array.
    let mut entries = unsafe { Each::of(environment) };
    entries.find_map(|entry| {
        // SAFETY: the caller answers for the strings.
        let entry: &'a [u8] = unsafe { bytes(entry) };
        value(entry, name)
    })
}
