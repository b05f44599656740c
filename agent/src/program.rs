//! How a program comes to be recorded, if it can be, judged by its file.
//!
//! # Safety
//!
//! This file is `unsafe` because paths come from the program as C strings.
#![allow(unsafe_code)]

use crate::kernel::{self, AT_FDCWD, Descriptor, X_OK};
use crate::scratch::Scratch;
use crate::text::{self, Strings};
use core::ffi::{c_char, c_int};
use selvedge_sample::note;
use selvedge_sample::region::VERSION;

/// What a program can do with the agent, or without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its loader loads it.
    Takes,
    /// As above, but the program's AddressSanitizer refuses to start behind another library, unless it is told not to.
    TakesBehindAsan,
    /// It has no loader, and joins recordings of this version by itself: a note in its file says so.
    Joins,
    /// It would not work, and may make the program's loader complain.
    Refuses,
    /// Its file could not be read, or its loader decides by itself: its environment is best left alone.
    Unclear,
}

/// A program to be executed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    /// The file with this path, relative to the open folder.
    At(c_int, *const c_char),
    /// The open file.
    Open(c_int),
    /// The file with this name in a folder of `PATH`.
    Named(*const c_char),
}

/// Interpreters of interpreters that are followed: what the kernel does (fs/exec.c).
const INTERPRETERS: usize = 4;
/// Bytes of a file that are read at first: the kernel reads 256 of a script.
const HEAD_BYTES: usize = 1024;

impl Program {
    /// Judges the program. `environment` is the one in which its name is looked up.
    ///
    /// # Safety
    ///
    /// The path is a NUL-terminated string, `environment` an array of such.
    pub(crate) unsafe fn judge(self, environment: Strings) -> Verdict {
        let file = match self {
            // SAFETY: the caller answers for the path.
            Self::At(folder, path) => unsafe { Descriptor::open(folder, path, false) },
            Self::Open(descriptor) => open_again(descriptor),
            // SAFETY: the caller answers for both.
            Self::Named(name) => unsafe { search(name, environment) },
        };
        let path = match self {
            // SAFETY: the caller answers for the path.
            Self::At(_, path) | Self::Named(path) => unsafe { text::bytes(path) },
            Self::Open(_) => b"",
        };
        let Some(file) = file else {
            return Verdict::Unclear;
        };
        judge_file(file, path)
    }
}

/// Opens a file that is open, but maybe not for reading.
fn open_again(descriptor: c_int) -> Option<Descriptor> {
    let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0";
    let mut rest = u32::try_from(descriptor).ok()?;
    let digits = rest.checked_ilog10().unwrap_or(0) as usize + 1;
    for place in path.get_mut(14..14 + digits)?.iter_mut().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // SAFETY: a descriptor has at most ten digits, so a NUL is left.
    unsafe { Descriptor::open(AT_FDCWD, path.as_ptr().cast(), false) }
}

/// Finds a program as `execvp` does.
///
/// # Safety
///
/// `name` is a NUL-terminated string, `environment` an array of such.
unsafe fn search(name: *const c_char, environment: Strings) -> Option<Descriptor> {
    const SLASH_AND_NUL: usize = 2;
    // SAFETY: the caller answers for the name.
    let bytes = unsafe { text::bytes(name) };
    if bytes.contains(&b'/') {
        // SAFETY: the caller answers for the name.
        return unsafe { Descriptor::open(AT_FDCWD, name, false) };
    }
    // SAFETY: the caller answers for the environment.
    let folders = unsafe { text::variable(environment, b"PATH") }.unwrap_or(b"/bin:/usr/bin");
    let folders = folders.split(|&byte| byte == b':');
    let longest = folders.clone().map(<[u8]>::len).max()?;
    let mut room = Scratch::new(longest + bytes.len() + SLASH_AND_NUL + size_of::<usize>())?;
    // SAFETY: bytes of words, which are not used otherwise meanwhile.
    let (_, room, _) = unsafe { room.words().align_to_mut::<u8>() };
    folders.into_iter().find_map(|folder| {
        let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
        let mut rest = &mut *room;
        for part in [folder, slash, bytes, b"\0"] {
            let (place, behind) = rest.split_at_mut_checked(part.len())?;
            place.copy_from_slice(part);
            rest = behind;
        }
        let path = room.as_ptr().cast();
        // SAFETY: NUL-terminated above.
        let executable = unsafe { kernel::may(path, X_OK) };
        let file = if executable {
            // SAFETY: as above.
            unsafe { Descriptor::open(AT_FDCWD, path, false) }
        } else {
            None
        }?;
        const S_IFMT: u32 = 0o170_000;
        const S_IFREG: u32 = 0o100_000;
        (file.facts()?.mode & S_IFMT == S_IFREG).then_some(file)
    })
}

fn judge_file(file: Descriptor, path: &[u8]) -> Verdict {
    let mut file = file;
    let mut is_loader = contains(path, LOADER);
    for _ in 0..=INTERPRETERS {
        let mut head = [0_u8; HEAD_BYTES];
        let head = file.read(&mut head, 0);
        let Some(line) = head.strip_prefix(b"#!") else {
            return judge_binary(&file, head, is_loader);
        };
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let mut words = line
            .split(|&byte| byte == b' ' || byte == b'\t')
            .filter(|word| !word.is_empty());
        let Some(interpreter) = words.next() else {
            return Verdict::Unclear;
        };
        is_loader = contains(interpreter, LOADER);
        // The kernel looks no further than so many bytes into a script. The last one is a NUL.
        let mut path = [0_u8; 256];
        let Some(place) = path
            .get_mut(..255)
            .and_then(|path| path.get_mut(..interpreter.len()))
        else {
            return Verdict::Unclear;
        };
        place.copy_from_slice(interpreter);
        // SAFETY: NUL-terminated.
        let Some(next) = (unsafe { Descriptor::open(AT_FDCWD, path.as_ptr().cast(), false) })
        else {
            return Verdict::Unclear;
        };
        file = next;
    }
    Verdict::Unclear
}

/// What is in the path of glibc's loader for this CPU, wherever it is installed.
const LOADER: &[u8] = b"ld-linux-x86-64";

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// A little-endian number of the file.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let field: &[u8; N] = bytes.get(at..)?.first_chunk()?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |number, &byte| (number << 8) | u64::from(byte)),
    )
}

fn judge_binary(file: &Descriptor, head: &[u8], is_loader: bool) -> Verdict {
    const SET_ID: u32 = 0o6000;
    if !head.starts_with(b"\x7fELF") {
        // A script without a first line that says so, which `execvp` gives to the shell; or nothing that can be run.
        return Verdict::Unclear;
    }
    // 64 bits, little-endian, x86-64: see the ELF specification, file header.
    let fits = head.get(4..6) == Some(&[2, 1]) && number::<2>(head, 18) == Some(62);
    if !fits {
        return Verdict::Refuses;
    }
    if file.facts().is_none_or(|facts| facts.mode & SET_ID != 0) || file.has_capabilities() {
        return Verdict::Unclear;
    }
    // A loader that is started like a program heeds `LD_PRELOAD` for the program that it loads.
    if is_loader {
        return Verdict::Takes;
    }
    match loader(file, head) {
        Some(Loader::Ours) if needs_asan(file, head) == Some(true) => Verdict::TakesBehindAsan,
        Some(Loader::Ours) => Verdict::Takes,
        Some(Loader::None) if joins(file, head) => Verdict::Joins,
        Some(Loader::None | Loader::Other) => Verdict::Refuses,
        None => Verdict::Unclear,
    }
}

/// A program header of an ELF file.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u64,
    offset: u64,
    address: u64,
    size: u64,
    alignment: u64,
}

/// Program headers that are looked at.
const SEGMENTS: u64 = 128;

/// The program headers of an ELF file; they end early where the file is cut short.
fn segments(file: &Descriptor, head: &[u8]) -> impl Iterator<Item = Segment> {
    const ENTRY: u64 = 56;
    let (table, count) = (number::<8>(head, 32), number::<2>(head, 56));
    (0..count.unwrap_or(0).min(SEGMENTS)).map_while(move |at| {
        let mut entry = [0_u8; ENTRY as usize];
        let offset = table?.wrapping_add(at * ENTRY);
        let entry = match head.get(usize::try_from(offset).ok()?..) {
            Some(there) if there.len() >= ENTRY as usize => there,
            _ => file.read(&mut entry, offset),
        };
        Some(Segment {
            kind: number::<4>(entry, 0)?,
            offset: number::<8>(entry, 8)?,
            address: number::<8>(entry, 16)?,
            size: number::<8>(entry, 32)?,
            alignment: number::<8>(entry, 48)?,
        })
    })
}

/// What an ELF file names as its interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loader {
    /// glibc's loader.
    Ours,
    /// Another.
    Other,
    /// Nothing: the program is static.
    None,
}

/// The loader that an ELF file asks for; `None` where the file is cut short.
fn loader(file: &Descriptor, head: &[u8]) -> Option<Loader> {
    const PT_INTERP: u64 = 3;
    let mut read = 0;
    for segment in segments(file, head) {
        read += 1;
        if segment.kind == PT_INTERP {
            let mut name = [0_u8; 256];
            let size = usize::try_from(segment.size).ok()?.min(256);
            let name = file.read(name.get_mut(..size)?, segment.offset);
            let ours = contains(name, LOADER);
            return Some(if ours { Loader::Ours } else { Loader::Other });
        }
    }
    (read >= number::<2>(head, 56)?.min(SEGMENTS)).then_some(Loader::None)
}

/// Whether an ELF file has the note that its program joins recordings of this version.
fn joins(file: &Descriptor, head: &[u8]) -> bool {
    const PT_NOTE: u64 = 4;
    let mut notes = segments(file, head).filter(|segment| segment.kind == PT_NOTE);
    let version = notes.find_map(|segment| {
        let notes = note::Segment {
            offset: segment.offset,
            size: segment.size,
            alignment: segment.alignment,
        };
        note::version_in(notes, |buffer, offset| file.read(buffer, offset).len())
    });
    version == Some(u64::from(VERSION))
}

/// Whether an ELF file is linked against the runtime of AddressSanitizer as a library; `None` where it cannot be known.
fn needs_asan(file: &Descriptor, head: &[u8]) -> Option<bool> {
    const PT_LOAD: u64 = 1;
    const PT_DYNAMIC: u64 = 2;
    const DT_NEEDED: u64 = 1;
    const DT_STRTAB: u64 = 5;
    /// Longer than the names in question.
    const NAME: usize = 64;
    let dynamic = segments(file, head).find(|segment| segment.kind == PT_DYNAMIC)?;
    let (_, names) = entries(file, dynamic).find(|&(tag, _)| tag == DT_STRTAB)?;
    let loaded = segments(file, head).find(|segment| {
        segment.kind == PT_LOAD && names.wrapping_sub(segment.address) < segment.size
    })?;
    let names = names
        .wrapping_sub(loaded.address)
        .wrapping_add(loaded.offset);
    let mut needed = entries(file, dynamic).filter(|&(tag, _)| tag == DT_NEEDED);
    Some(needed.any(|(_, at)| {
        let mut name = [0_u8; NAME];
        let name = file.read(&mut name, names.wrapping_add(at));
        is_asan(name.split(|&byte| byte == 0).next().unwrap_or_default())
    }))
}

/// Whether the name of a library, or a list of such, has the runtime of AddressSanitizer (GCC's or Clang's).
pub(crate) fn is_asan(name: &[u8]) -> bool {
    contains(name, b"libasan.so") || contains(name, b"libclang_rt.asan")
}

/// The entries (tag, value) of a dynamic section.
fn entries(file: &Descriptor, dynamic: Segment) -> impl Iterator<Item = (u64, u64)> {
    const ENTRY: u64 = 16;
    let count = dynamic.size / ENTRY;
    (0..count).map_while(move |at| {
        let mut entry = [0_u8; ENTRY as usize];
        let entry = file.read(&mut entry, dynamic.offset.wrapping_add(at * ENTRY));
        let tag = number::<8>(entry, 0).filter(|&tag| tag != 0)?;
        Some((tag, number::<8>(entry, 8)?))
    })
}
