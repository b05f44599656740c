//! Environments: finding the session in one, and making one with or without the agent.
//!
//! Everything is built on the caller's stack: a `vfork` child shares its parent's heap, and there is none here anyway.

use core::ffi::{CStr, c_char};

/// Variables that an edited environment can hold.
const POINTERS: usize = 1024;
/// Bytes for variables that are made anew.
const BYTES: usize = 4096;

const PRELOAD: &[u8] = b"LD_PRELOAD=";
const SESSION: &[u8] = b"SELVEDGE_SESSION=";

/// The path and the number of this process's session, kept for environments that have lost them.
static mut KEPT_SESSION: [u8; 256] = [0; 256];
/// The path of the agent.
static mut KEPT_AGENT: [u8; 1024] = [0; 1024];

/// The variables of an environment.
fn variables<'a>(environment: *const *const c_char) -> impl Iterator<Item = &'a CStr> {
    (0..).map_while(move |at| {
        if environment.is_null() {
            return None;
        }
        // SAFETY: an environment is an array of pointers that a null ends, and no later one is looked at.
        let variable = unsafe { environment.wrapping_add(at).read() };
        // SAFETY: each is a C string, which lives as long as the environment is looked at.
        (!variable.is_null()).then(|| unsafe { CStr::from_ptr(variable) })
    })
}

/// The value of a variable, whose name ends with `=`.
fn value<'a>(environment: *const *const c_char, name: &[u8]) -> Option<&'a [u8]> {
    variables(environment).find_map(|variable| variable.to_bytes().strip_prefix(name))
}

/// The value of a variable of `environment`.
pub(crate) fn get<'a>(environment: *const *const c_char, name: &[u8]) -> Option<&'a [u8]> {
    value(environment, name)
}

fn keep(place: *mut u8, room: usize, text: &[u8]) -> bool {
    if text.len() >= room {
        return false;
    }
    // SAFETY: the place has `room` bytes, more than the text has, and only `session` (before `main`) writes it.
    unsafe { core::ptr::copy_nonoverlapping(text.as_ptr(), place, text.len()) };
    true
}

fn kept(place: *const u8) -> &'static [u8] {
    // SAFETY: the places are NUL-terminated (one byte is never written) and no longer change after `session`.
    unsafe { CStr::from_ptr(place.cast()) }.to_bytes()
}

/// The session that an environment names: the path of its region, with a NUL, and its number.
pub(crate) fn session(environment: *const *const c_char) -> Option<(&'static [u8], u64)> {
    let text = value(environment, SESSION)?;
    let agent = value(environment, PRELOAD)?.split(|byte| b": ".contains(byte)).find(|path| is_agent(path))?;
    let colon = text.iter().rposition(|&byte| byte == b':')?;
    let (path, number) = text.split_at_checked(colon)?;
    let number = core::str::from_utf8(number.get(1..)?).ok()?;
    let nonce = u64::from_str_radix(number, 16).ok()?;
    let (session_place, agent_place) = (&raw mut KEPT_SESSION, &raw mut KEPT_AGENT);
    if !keep(agent_place.cast(), 1024, agent) || !keep(session_place.cast(), 256, text) {
        return None;
    }
    static mut PATH: [u8; 256] = [0; 256];
    let place: *mut u8 = (&raw mut PATH).cast();
    if !keep(place, 256, path) {
        return None;
    }
    // SAFETY: the path and the zero behind it lie inside `PATH`, which nothing writes any more.
    Some((unsafe { core::slice::from_raw_parts(place, path.len() + 1) }, nonce))
}

/// Whether a path of `LD_PRELOAD` is the agent's: by its name, or by where the recorder keeps it in memory.
fn is_agent(path: &[u8]) -> bool {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    name.starts_with(b"selvedge-agent") || name.starts_with(b"libselvedge_agent") || in_memory(path)
}

fn in_memory(path: &[u8]) -> bool {
    path.starts_with(b"/proc/") && path.windows(4).any(|part| part == b"/fd/")
}

/// The path of the agent, without a NUL; empty where there is no session.
pub(crate) fn agent() -> &'static [u8] {
    kept((&raw const KEPT_AGENT).cast())
}

/// Whether an environment starts programs with the agent and the session.
pub(crate) fn has_agent(environment: *const *const c_char) -> bool {
    let preload = value(environment, PRELOAD).unwrap_or_default();
    let agent = agent();
    !agent.is_empty()
        && preload.split(|byte| b": ".contains(byte)).any(|path| path == agent)
        && value(environment, SESSION) == Some(kept((&raw const KEPT_SESSION).cast()))
}

/// Takes agent and session out of the process's own environment, in place: children are not followed.
pub(crate) fn forget(environment: *const *const c_char) {
    let environment = environment.cast_mut();
    let mut to = 0;
    for from in 0.. {
        // SAFETY: an environment is an array that a null ends; nothing behind the null is looked at.
        let variable = unsafe { environment.wrapping_add(from).read() };
        if variable.is_null() {
            // SAFETY: `to` is at most `from`.
            unsafe { environment.wrapping_add(to).write(variable) };
            return;
        }
        // SAFETY: a C string.
        let text = unsafe { CStr::from_ptr(variable) }.to_bytes();
        if text.starts_with(SESSION) {
            continue;
        }
        if let Some(list) = text.strip_prefix(PRELOAD) {
            let Some(rest) = without_agent(list) else { continue };
            // Moves the rest of the list to the front of the string, over the agent: it only gets shorter.
            let start = variable.cast_mut().cast::<u8>().wrapping_add(PRELOAD.len());
            // SAFETY: both lie in the variable's own string; `copy` allows overlap.
            unsafe { core::ptr::copy(rest.as_ptr(), start, rest.len()) };
            // SAFETY: inside the string, or at its old end.
            unsafe { start.wrapping_add(rest.len()).write(0) };
        }
        // SAFETY: `to` is at most `from`.
        unsafe { environment.wrapping_add(to).write(variable) };
        to += 1;
    }
}

/// A list of libraries without the agent, which the recorder put first; `None` where nothing is left.
fn without_agent(list: &[u8]) -> Option<&[u8]> {
    let end = list.iter().position(|byte| b": ".contains(byte)).unwrap_or(list.len());
    let (first, rest) = list.split_at_checked(end)?;
    let rest = if is_agent(first) { rest.get(1..).unwrap_or_default() } else { list };
    (!rest.is_empty()).then_some(rest)
}

/// An environment made for one `exec`.
pub(crate) struct Edited {
    pointers: [*const c_char; POINTERS + 1],
    count: usize,
    bytes: [u8; BYTES],
    used: usize,
}

impl Edited {
    /// `environment` with or without the agent. `None` where it does not fit: it is then best left as it is.
    pub(crate) fn new(environment: *const *const c_char, with_agent: bool) -> Option<Self> {
        let mut edited =
            Self { pointers: [core::ptr::null(); POINTERS + 1], count: 0, bytes: [0; BYTES], used: 0 };
        let mut preload = None;
        for variable in variables(environment) {
            let text = variable.to_bytes();
            if text.starts_with(SESSION) {
                continue;
            }
            if let Some(list) = text.strip_prefix(PRELOAD) {
                preload = preload.or(without_agent(list));
                continue;
            }
            edited.push(variable.as_ptr())?;
        }
        if with_agent {
            let rest = preload.unwrap_or_default();
            let between: &[u8] = if rest.is_empty() { b"" } else { b":" };
            edited.make(&[PRELOAD, agent(), between, rest])?;
            edited.make(&[SESSION, kept((&raw const KEPT_SESSION).cast())])?;
        } else if let Some(rest) = preload {
            edited.make(&[PRELOAD, rest])?;
        }
        Some(edited)
    }

    /// As `exec` takes it; valid while this is not moved.
    pub(crate) fn finish(&mut self) -> *const *const c_char {
        // Variables made anew are kept as offsets (odd, small) until the place of the bytes is final.
        let bytes = self.bytes.as_ptr();
        for pointer in self.pointers.iter_mut().take(self.count) {
            if pointer.addr() <= BYTES {
                *pointer = bytes.wrapping_add(pointer.addr() - 1).cast();
            }
        }
        self.pointers.as_ptr()
    }

    fn push(&mut self, pointer: *const c_char) -> Option<()> {
        if self.count == POINTERS {
            return None;
        }
        *self.pointers.get_mut(self.count)? = pointer;
        self.count += 1;
        Some(())
    }

    fn make(&mut self, parts: &[&[u8]]) -> Option<()> {
        let start = self.used;
        for part in parts {
            let end = self.used.checked_add(part.len())?;
            self.bytes.get_mut(self.used..end)?.copy_from_slice(part);
            self.used = end;
        }
        *self.bytes.get_mut(self.used)? = 0;
        self.used += 1;
        // One more than the offset: no pointer is that small, and none of these is null.
        self.push(core::ptr::without_provenance(start + 1))
    }
}
