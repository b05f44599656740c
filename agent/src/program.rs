//! Which programs can take the agent: 64-bit x86 ELF with glibc's loader, and scripts whose interpreter can.

use core::ffi::{CStr, c_char};
use selvedge_arch::{number, syscall6};

/// Bytes of a file's beginning that are looked at.
const HEAD: usize = 1024;

/// What starting a program with the agent would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suits {
    /// It is loaded.
    Yes,
    /// The loader complains, or fails.
    No,
    /// The loader ignores it (set-user-id), or nothing is known: the environment is best left as it is.
    Whatever,
}

/// Looks at the program at `path`, which ends with a NUL.
pub(crate) fn suits(path: *const c_char) -> Suits {
    let mut head = [0_u8; HEAD];
    let mut script = [0_u8; 256];
    let mut path = path;
    for _ in 0..4 {
        let Some(descriptor) = open(path) else { return Suits::Whatever };
        let verdict = look(descriptor, &mut head);
        // SAFETY: the descriptor is ours.
        unsafe { syscall6(number::CLOSE, [descriptor, 0, 0, 0, 0, 0]) };
        let Look::Script(length) = verdict else {
            return if verdict == Look::Glibc { Suits::Yes } else if verdict == Look::Other { Suits::No } else { Suits::Whatever };
        };
        let Some(interpreter) = interpreter(&head, length) else { return Suits::Whatever };
        let Some(place) = script.get_mut(..=interpreter.len()) else { return Suits::Whatever };
        let (name, end) = place.split_at_mut(interpreter.len());
        name.copy_from_slice(interpreter);
        end.fill(0);
        path = script.as_ptr().cast();
    }
    Suits::Whatever
}

/// Looks at the program that a descriptor has open.
pub(crate) fn suits_open(descriptor: usize) -> Suits {
    let mut head = [0_u8; HEAD];
    match look(descriptor, &mut head) {
        Look::Glibc => Suits::Yes,
        Look::Other => Suits::No,
        _ => Suits::Whatever,
    }
}

fn open(path: *const c_char) -> Option<usize> {
    const O_CLOEXEC: usize = 0o2_000_000;
    // SAFETY: the path is a C string.
    usize::try_from(unsafe { syscall6(number::OPEN, [path as usize, O_CLOEXEC, 0, 0, 0, 0]) }).ok()
}

fn read_at(descriptor: usize, buffer: &mut [u8], offset: u64) -> usize {
    const PREAD64: usize = 17;
    let arguments = [descriptor, buffer.as_mut_ptr() as usize, buffer.len(), offset as usize, 0, 0];
    // SAFETY: the kernel writes at most the buffer's length.
    usize::try_from(unsafe { syscall6(PREAD64, arguments) }).unwrap_or(0)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Glibc,
    Other,
    Unknown,
    /// A script: bytes read.
    Script(usize),
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn look(descriptor: usize, head: &mut [u8; HEAD]) -> Look {
    let length = read_at(descriptor, head, 0);
    if head.starts_with(b"#!") {
        return Look::Script(length);
    }
    if !head.starts_with(b"\x7fELF") {
        return Look::Unknown;
    }
    // Class 2: 64 bits; machine 62: x86-64 (System V ABI).
    if head.get(4) != Some(&2) || word(head, 18) != Some(62_u16.to_le_bytes()) {
        return Look::Other;
    }
    if crate::exec::file_mode(descriptor).is_some_and(|mode| mode & 0o6000 != 0) {
        return Look::Unknown;
    }
    loader(descriptor, head).unwrap_or(Look::Other)
}

/// Whose loader a 64-bit ELF program names. `None` where it names none: it is static.
fn loader(descriptor: usize, head: &[u8; HEAD]) -> Option<Look> {
    const PT_INTERP: u32 = 3;
    const HEADER: usize = 56;
    let table = u64::from_le_bytes(word(head, 32)?);
    let count = u16::from_le_bytes(word(head, 56)?);
    for at in 0..u64::from(count).min(64) {
        let mut entry = [0_u8; HEADER];
        if read_at(descriptor, &mut entry, table.wrapping_add(at * HEADER as u64)) < HEADER {
            return None;
        }
        if u32::from_le_bytes(word(&entry, 0)?) != PT_INTERP {
            continue;
        }
        let mut name = [0_u8; 256];
        let length = read_at(descriptor, &mut name, u64::from_le_bytes(word(&entry, 8)?));
        let name = CStr::from_bytes_until_nul(name.get(..length)?).ok()?.to_bytes();
        let glibc = b"ld-linux-x86-64";
        return Some(if name.windows(glibc.len()).any(|part| part == glibc) { Look::Glibc } else { Look::Other });
    }
    None
}

/// The interpreter that a script's first line names.
fn interpreter(head: &[u8; HEAD], length: usize) -> Option<&[u8]> {
    let line = head.get(2..length)?.split(|&byte| byte == b'\n').next()?;
    line.split(|byte| b" \t".contains(byte)).find(|word| !word.is_empty())
}
