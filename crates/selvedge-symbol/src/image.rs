//! The bytes of an ELF image or of one of its sections, shared by everything that reads from them.
//!
//! # Safety
//!
//! Three facts need `unsafe`: mapping a file, and the two marker traits that let the DWARF reader keep a pointer into
//! shared bytes. An [`Image`] never hands out mutable access and never replaces its backing store, so its bytes stay at
//! one address for as long as any clone lives.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use gimli::{EndianReader, LittleEndian};
use memmap2::Mmap;

/// The DWARF reader of this crate: a range of an [`Image`].
pub(crate) type Reader = EndianReader<LittleEndian, Image>;

/// Immutable shared bytes at a stable address.
#[derive(Clone, Debug)]
pub(crate) struct Image(Arc<Backing>);

#[derive(Debug)]
enum Backing {
    Map(Mmap),
    Owned(Vec<u8>),
}

impl Image {
    pub(crate) fn map(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is private and read-only, so nothing in this process writes through it. Another process
        // may still change the file in place. The bytes are only ever parsed, with every offset checked against the
        // length at each read, so a change gives wrong names but no invalid access; shrinking the file in place raises
        // SIGBUS, as it does for every program that has the library mapped. Linkers and package managers replace files.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self(Arc::new(Backing::Map(map))))
    }

    pub(crate) fn owned(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Backing::Owned(bytes)))
    }

    /// A reader of `range`, or of nothing if the range is not inside the image.
    pub(crate) fn reader(&self, range: Range<usize>) -> Reader {
        let whole = EndianReader::new(self.clone(), LittleEndian);
        if range.start <= range.end && range.end <= self.len() {
            whole.range(range)
        } else {
            whole.range(0..0)
        }
    }
}

impl Deref for Image {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &*self.0 {
            Backing::Map(map) => map,
            Backing::Owned(bytes) => bytes,
        }
    }
}

// SAFETY: `deref` returns the contents of a mapping or of a vector's heap block, both owned by the `Arc` and never mutated
// or replaced (no method takes them mutably), so moving an `Image` does not move them.
unsafe impl gimli::StableDeref for Image {}

// SAFETY: a clone shares the `Arc`, so it dereferences to the same bytes, which live as long as any clone.
unsafe impl gimli::CloneStableDeref for Image {}
