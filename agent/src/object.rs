//! Loaded objects and the symbols that they define, read from memory as the loader left them.
//!
//! `dlsym` would do the same, but lives in another library than the C library before glibc 2.34, and a library that is
//! linked against symbols that a program does not have keeps that program from starting.
//!
//! # Safety
//!
//! This file is `unsafe` because it reads the loader's structures through raw pointers.
#![allow(unsafe_code)]

use crate::text;
use core::arch::asm;
use core::ffi::{c_char, c_int, c_void};

/// `struct dl_phdr_info`, its first four fields, which every version has.
#[repr(C)]
struct Info {
    base: usize,
    name: *const c_char,
    headers: *const Header,
    count: u16,
}

/// `Elf64_Phdr`.
#[repr(C)]
struct Header {
    kind: u32,
    flags: u32,
    offset: usize,
    address: usize,
    physical: usize,
    file_size: usize,
    memory_size: usize,
    align: usize,
}

/// `Elf64_Sym`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: usize,
    size: usize,
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_HASH: usize = 4;
const DT_STRTAB: usize = 5;
const DT_SYMTAB: usize = 6;
const DT_GNU_HASH: usize = 0x6fff_fef5;
const DT_VERSYM: usize = 0x6fff_fff0;
/// A version that is there for old programs only.
const VERSION_HIDDEN: u16 = 0x8000;
const STT_FUNC: u8 = 2;

/// A value of the loader's memory.
///
/// # Safety
///
/// `address` is that of a `T` in a loaded object.
unsafe fn read<T: Copy>(address: usize) -> T {
    // SAFETY: the caller answers for the address; objects' tables are not always aligned as their types ask.
    unsafe { (address as *const T).read_unaligned() }
}

/// A loaded object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object<'a> {
    /// Its path, as the loader was given it; empty for the program.
    pub(crate) path: &'a [u8],
    /// Whether it is the agent.
    pub(crate) is_agent: bool,
    tables: Option<Tables>,
}

/// Where its tables are; 0 for those that it does not have.
#[derive(Clone, Copy, Debug)]
struct Tables {
    base: usize,
    names: usize,
    symbols: usize,
    versions: usize,
    gnu_hash: usize,
    hash: usize,
}

impl Object<'_> {
    /// # Safety
    ///
    /// `info` is one that `dl_iterate_phdr` gave to its callback, which has not returned.
    unsafe fn new(info: &Info) -> Self {
        let own = crate::real::address_of_agent();
        let mut is_agent = false;
        let mut dynamic = 0;
        for at in 0..info.count as usize {
            // SAFETY: there are `count` headers.
            let header = unsafe { &*info.headers.wrapping_add(at) };
            let start = info.base.wrapping_add(header.address);
            match header.kind {
                PT_LOAD => is_agent |= own.wrapping_sub(start) < header.memory_size,
                PT_DYNAMIC => dynamic = start,
                _ => {}
            }
        }
        // SAFETY: the loader's string, which lives as long as the object is loaded.
        let path = unsafe { text::bytes(info.name) };
        // The kernel's own object is mapped read-only, so its addresses were not relocated, and it defines no hooks.
        let usable = dynamic != 0 && !path.starts_with(b"linux-vdso");
        let tables = if usable {
            // SAFETY: the object's dynamic section.
            unsafe { Tables::new(info.base, dynamic) }
        } else {
            None
        };
        Self {
            path,
            is_agent,
            tables,
        }
    }

    /// The address of a function that it defines.
    pub(crate) fn function(&self, name: &[u8]) -> Option<usize> {
        self.tables.as_ref()?.find(name)
    }
}

impl Tables {
    /// # Safety
    ///
    /// `dynamic` is the address of the dynamic section of an object loaded at `base`.
    unsafe fn new(base: usize, dynamic: usize) -> Option<Self> {
        let mut tables = Self {
            base,
            names: 0,
            symbols: 0,
            versions: 0,
            gnu_hash: 0,
            hash: 0,
        };
        let mut at = dynamic;
        loop {
            // SAFETY: not past the entry with tag 0, which ends the section.
            let [tag, value] = unsafe { read::<[usize; 2]>(at) };
            // The loader replaces offsets by addresses, except in sections that it could not write.
            let address = if value < base {
                value.wrapping_add(base)
            } else {
                value
            };
            match tag {
                0 => break,
                DT_STRTAB => tables.names = address,
                DT_SYMTAB => tables.symbols = address,
                DT_VERSYM => tables.versions = address,
                DT_GNU_HASH => tables.gnu_hash = address,
                DT_HASH => tables.hash = address,
                _ => {}
            }
            at = at.wrapping_add(16);
        }
        (tables.names != 0 && tables.symbols != 0).then_some(tables)
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        if self.gnu_hash != 0 {
            self.find_by_gnu_hash(name)
        } else {
            self.find_by_hash(name)
        }
    }

    /// The address that symbol `index` stands for if it defines `name`, and whether programs linked today would get it.
    fn matching(&self, index: u32, name: &[u8]) -> Option<(usize, bool)> {
        let index = index as usize;
        // SAFETY: the hash tables name symbols of the table.
        let symbol =
            unsafe { read::<Symbol>(self.symbols.wrapping_add(index * size_of::<Symbol>())) };
        let there = self.names.wrapping_add(symbol.name as usize) as *const c_char;
        // SAFETY: a string of the object's string table.
        let there = unsafe { text::bytes(there) };
        if there != name
            || symbol.section == 0
            || symbol.value == 0
            || symbol.info & 0xf != STT_FUNC
        {
            return None;
        }
        let hidden = self.versions != 0 && {
            // SAFETY: there is one version per symbol.
            let version = unsafe { read::<u16>(self.versions.wrapping_add(index * 2)) };
            version & VERSION_HIDDEN != 0
        };
        Some((self.base.wrapping_add(symbol.value), !hidden))
    }

    /// The table of `DT_GNU_HASH`: counts, a filter that is not needed here, buckets, and chains of hashes in which the
    /// lowest bit marks the last.
    fn find_by_gnu_hash(&self, name: &[u8]) -> Option<usize> {
        let hash = name.iter().fold(5381_u32, |hash, &byte| {
            hash.wrapping_mul(33).wrapping_add(u32::from(byte))
        });
        // SAFETY: the table begins with four numbers.
        let [buckets, first, filter, _] = unsafe { read::<[u32; 4]>(self.gnu_hash) };
        let bucket_table = self.gnu_hash.wrapping_add(16 + filter as usize * 8);
        let chain_table = bucket_table.wrapping_add(buckets as usize * 4);
        let bucket = hash.checked_rem(buckets)?;
        // SAFETY: there are `buckets` of them.
        let mut index = unsafe { read::<u32>(bucket_table.wrapping_add(bucket as usize * 4)) };
        let mut old = None;
        while index >= first {
            // SAFETY: chains are followed to their marked ends only.
            let entry = unsafe {
                read::<u32>(chain_table.wrapping_add(index.wrapping_sub(first) as usize * 4))
            };
            if entry | 1 == hash | 1 {
                match self.matching(index, name) {
                    Some((address, true)) => return Some(address),
                    Some((address, false)) => old = Some(address),
                    None => {}
                }
            }
            if entry & 1 == 1 {
                break;
            }
            index = index.wrapping_add(1);
        }
        old
    }

    /// The table of `DT_HASH`: counts, buckets, and a chain of symbols that ends with 0.
    fn find_by_hash(&self, name: &[u8]) -> Option<usize> {
        if self.hash == 0 {
            return None;
        }
        let hash = name.iter().fold(0_u32, |hash, &byte| {
            let hash = (hash << 4).wrapping_add(u32::from(byte));
            let high = hash & 0xf000_0000;
            (hash ^ (high >> 24)) & !high
        });
        // SAFETY: the table begins with two numbers.
        let [buckets, _] = unsafe { read::<[u32; 2]>(self.hash) };
        let bucket_table = self.hash.wrapping_add(8);
        let chain_table = bucket_table.wrapping_add(buckets as usize * 4);
        let mut at = bucket_table.wrapping_add(hash.checked_rem(buckets)? as usize * 4);
        let mut old = None;
        loop {
            // SAFETY: a bucket, or the chain entry of a symbol.
            let index = unsafe { read::<u32>(at) };
            if index == 0 {
                return old;
            }
            match self.matching(index, name) {
                Some((address, true)) => return Some(address),
                Some((address, false)) => old = Some(address),
                None => {}
            }
            at = chain_table.wrapping_add(index as usize * 4);
        }
    }
}

type Callback = unsafe extern "C" fn(*const Info, usize, *mut c_void) -> c_int;
type Iterate = unsafe extern "C" fn(Callback, *mut c_void) -> c_int;

/// Shows all loaded objects to `look`, in the order in which the loader searches them, until it returns false.
///
/// Where the program has no C library, there is nothing to see.
pub(crate) fn each<F: FnMut(&Object<'_>) -> bool>(look: F) {
    unsafe extern "C" fn show<F: FnMut(&Object<'_>) -> bool>(
        info: *const Info,
        _: usize,
        look: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader's, live until this returns.
        let info = unsafe { &*info };
        // SAFETY: this is the callback.
        let object = unsafe { Object::new(info) };
        // SAFETY: `each` passes its `look`, and nothing else uses it meanwhile.
        let look = unsafe { &mut *look.cast::<F>() };
        c_int::from(!look(&object))
    }
    let address: usize;
    // Weak, so that a program without it starts nevertheless.
    // SAFETY: loads an entry of the global offset table, which the loader has filled in.
    unsafe {
        asm!(
            ".weak dl_iterate_phdr",
            "mov {}, qword ptr [rip + dl_iterate_phdr@GOTPCREL]",
            out(reg) address,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    if address == 0 {
        return;
    }
    let mut look = look;
    // SAFETY: the C library's function of this name has this type.
    let iterate = unsafe { core::mem::transmute::<usize, Iterate>(address) };
    // SAFETY: `show` expects an `F`, and gets one that lives until the call returns.
    unsafe { iterate(show::<F>, (&raw mut look).cast()) };
}
