//! Finds the functions that the hooks stand in front of: the next definition of a name behind the agent, in the order in
//! which the loader searches, as `dlsym(RTLD_NEXT, …)` would.
//!
//! Not `dlsym` itself: before glibc 2.34 it is in `libdl`, which many programs do not have.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

/// `struct dl_phdr_info`, its first members.
#[repr(C)]
struct ObjectInfo {
    base: usize,
    name: *const c_char,
    headers: *const ProgramHeader,
    count: u16,
}

/// `Elf64_Phdr`.
#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    physical: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// `Elf64_Sym`.
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

unsafe extern "C" {
    fn dl_iterate_phdr(
        callback: extern "C" fn(*const ObjectInfo, usize, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
}

struct Search<'a> {
    name: &'a CStr,
    passed_ourselves: bool,
    found: usize,
}

/// A name, and where its next definition is once that has been looked up.
pub(crate) struct Next {
    name: &'static CStr,
    address: AtomicUsize,
}

impl Next {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { name, address: AtomicUsize::new(0) }
    }

    /// The address of the next definition; `None` where there is none.
    pub(crate) fn address(&self) -> Option<usize> {
        // Relaxed: whoever finds zero looks it up again, with the same result.
        let known = self.address.load(Ordering::Relaxed);
        if known != 0 {
            return Some(known);
        }
        let mut search = Search { name: self.name, passed_ourselves: false, found: 0 };
        let data: *mut Search<'_> = &raw mut search;
        // SAFETY: the callback gets `data` back, while `search` lives.
        unsafe { dl_iterate_phdr(look, data.cast()) };
        self.address.store(search.found, Ordering::Relaxed);
        (search.found != 0).then_some(search.found)
    }
}

extern "C" fn look(info: *const ObjectInfo, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: the loader passes a live structure.
    let info = unsafe { &*info };
    // SAFETY: `Next::address` passed its own `Search`.
    let search = unsafe { &mut *data.cast::<Search<'_>>() };
    // SAFETY: the loader describes its program headers.
    let headers = unsafe { core::slice::from_raw_parts(info.headers, usize::from(info.count)) };
    if !search.passed_ourselves {
        let here = look as *const () as usize;
        let holds = |header: &ProgramHeader| {
            let start = info.base.wrapping_add(header.address as usize);
            header.kind == 1 && (start..start.wrapping_add(header.memory_size as usize)).contains(&here)
        };
        search.passed_ourselves = headers.iter().any(holds);
        return 0;
    }
    let Some(dynamic) = headers.iter().find(|header| header.kind == 2) else { return 0 };
    let dynamic = info.base.wrapping_add(dynamic.address as usize) as *const [u64; 2];
    match definition(info.base, dynamic, search.name) {
        Some(address) => {
            search.found = address;
            1
        }
        None => 0,
    }
}

/// The parts of an object that a look-up needs.
#[derive(Default)]
struct Tables {
    symbols: usize,
    strings: usize,
    hashes: usize,
    versions: usize,
}

/// Looks a name up in one object by its GNU hash table
/// (<https://flapenguin.me/elf-dt-gnu-hash>, glibc elf/dl-lookup.c).
fn definition(base: usize, dynamic: *const [u64; 2], name: &CStr) -> Option<usize> {
    let mut tables = Tables::default();
    for at in 0..512 {
        // SAFETY: a dynamic section ends with a zero tag, behind which nothing is read.
        let [tag, value] = unsafe { dynamic.wrapping_add(at).read() };
        // The loader has turned these into addresses, except in the vDSO, whose are offsets.
        let value = value as usize;
        let address = if value < base { base.wrapping_add(value) } else { value };
        match tag {
            0 => break,
            5 => tables.strings = address,
            6 => tables.symbols = address,
            0x6fff_fef5 => tables.hashes = address,
            0x6fff_fff0 => tables.versions = address,
            _ => {}
        }
    }
    if tables.hashes == 0 || tables.symbols == 0 || tables.strings == 0 {
        return None;
    }
    let word = |at: usize| {
        // SAFETY: the caller of this closure stays inside the hash table, by its own counts.
        unsafe { (tables.hashes as *const u32).wrapping_add(at).read() }
    };
    let (buckets, first, bloom) = (word(0) as usize, word(1) as usize, word(2) as usize);
    if buckets == 0 {
        return None;
    }
    let hash = name.to_bytes().iter().fold(5381_u32, |hash, &byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)));
    let bucket_start = 4 + 2 * bloom;
    let mut symbol = word(bucket_start + hash as usize % buckets) as usize;
    if symbol < first {
        return None;
    }
    loop {
        let chain = word(bucket_start + buckets + symbol - first);
        if chain | 1 == hash | 1
            && let Some(address) = match_symbol(base, &tables, symbol, name)
        {
            return Some(address);
        }
        if chain & 1 == 1 {
            return None;
        }
        symbol += 1;
    }
}

fn match_symbol(base: usize, tables: &Tables, index: usize, name: &CStr) -> Option<usize> {
    const STT_FUNC: u8 = 2;
    const HIDDEN: u16 = 0x8000;
    // SAFETY: the hash table names symbols that exist.
    let symbol = unsafe { &*(tables.symbols as *const Symbol).wrapping_add(index) };
    if symbol.section == 0 || symbol.info & 15 != STT_FUNC {
        return None;
    }
    if tables.versions != 0 {
        // SAFETY: there is a version for each symbol. An old version of a function is hidden.
        let version = unsafe { (tables.versions as *const u16).wrapping_add(index).read() };
        if version & HIDDEN != 0 {
            return None;
        }
    }
    let found = (tables.strings as *const c_char).wrapping_add(symbol.name as usize);
    // SAFETY: names are C strings in the string table.
    (unsafe { CStr::from_ptr(found) } == name).then(|| base.wrapping_add(symbol.value as usize))
}

/// Has `child` called in the child of each `fork`.
pub(crate) fn register_fork(child: extern "C" fn()) {
    type Register = extern "C" fn(usize, usize, extern "C" fn(), usize) -> c_int;
    static REGISTER: Next = Next::new(c"__register_atfork");
    if let Some(address) = REGISTER.address() {
        // SAFETY: this is glibc's function of that name (since 2.3.2), which takes three handlers and the object that
        // they belong to (none: they are never unloaded).
        let register: Register = unsafe { core::mem::transmute(address) };
        register(0, 0, child, 0);
    }
}
