//! The environment that a program is started with: whether it carries the recording on.
//!
//! Usually nothing has to change, and the program's own array is passed through. Otherwise the new array and its texts
//! are put together in memory that a child of `vfork` does not leave behind in its parent's: see `scratch`.
//!
//! **Stack.** The hooks of `exec` and `posix_spawn` need less than 4 KiB of the caller's stack more than the functions that
//! they call, whatever the program's environment: [`FEW`] entries or fewer are put together on the stack, since that is
//! cheaper; a program's file is read in pieces of 1 KiB before.
//!
//! # Safety
//!
//! This file is `unsafe` because environments are arrays of C strings.
#![allow(unsafe_code)]

use crate::kernel::{self, R_OK};
use crate::program::is_asan;
use crate::scratch::Scratch;
use crate::text::{Each, Strings, bytes, value};
use crate::{real, start};
use core::ffi::{c_char, c_int};
use selvedge_sample::action::IGNORED_MARK;

/// Names the session.
pub(crate) const SESSION: &[u8] = b"SELVEDGE_SESSION";
/// Behind the session's name, where the program is to find the profiling signal ignored.
pub(crate) const IGNORED: &[u8] = IGNORED_MARK.as_bytes();
/// Names the libraries that the loader is to load first, separated by colons or spaces.
const PRELOAD: &[u8] = b"LD_PRELOAD";

/// Options of AddressSanitizer, separated by colons (among others). The last one counts.
const ASAN_OPTIONS: &[u8] = b"ASAN_OPTIONS";
/// Has it start behind the agent: its own functions are found all the same, before those of the C library, since the agent
/// has others and looks up what comes behind it. The alternative, to name its library before the agent in `LD_PRELOAD`,
/// would have every child of the program load it.
const ASAN_MAY_FOLLOW: &[u8] = b"verify_asan_link_order=0";

/// Entries of an environment that is put together on the stack.
const FEW: usize = 192;
/// Bytes of its new texts.
const FEW_BYTES: usize = 768;

/// What is to become of the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The new program is recorded too.
    CarryOn,
    /// As above, and AddressSanitizer is told that it need not come first.
    CarryOnBehindAsan,
    /// The new program takes no agent, and joins by itself: the session is named to it, and nothing else.
    Name,
    /// The new program knows nothing of it.
    Strip,
}

fn is_separator(byte: &u8) -> bool {
    matches!(byte, b':' | b' ')
}

/// Whether a value of `LD_PRELOAD` has the agent.
fn has_agent(value: &[u8], agent: &[u8]) -> bool {
    value.split(is_separator).any(|library| library == agent)
}

/// The change to an environment, and how much room it takes.
#[derive(Clone, Copy, Debug)]
struct Change<'a> {
    wish: Wish,
    agent: &'a [u8],
    session: &'a [u8],
    mark: &'static [u8],
    before: Strings,
    entries: usize,
    text: usize,
}

/// The session's name without its mark, and whether it has one.
pub(crate) fn split_mark(value: &[u8]) -> (&[u8], bool) {
    match value.strip_suffix(IGNORED) {
        Some(name) => (name, true),
        None => (value, false),
    }
}

/// Runs `run` with an environment according to `wish`, in which the program is told whether the profiling signal is
/// `ignored`. `run` is also told whether the program will be recorded.
///
/// # Safety
///
/// `before` is null, or an array of strings that ends with a null.
pub(crate) unsafe fn with(
    wish: Wish,
    ignored: bool,
    before: Strings,
    run: impl FnOnce(Strings, bool) -> c_int,
) -> c_int {
    // SAFETY: the caller answers for the array.
    let Some((wish, change)) = (unsafe { Change::plan(wish, ignored, before) }) else {
        return run(before, true);
    };
    let run = |environment| run(environment, wish != Wish::Strip);
    match change {
        None => run(before),
        Some(change) => change.carry_out(run),
    }
}

impl<'a> Change<'a> {
    /// What can be done of a wish, and what has to change for it, if anything. `None` where the environment is not ours to
    /// change.
    ///
    /// # Safety
    ///
    /// As for [`with`].
    unsafe fn plan(wish: Wish, ignored: bool, before: Strings) -> Option<(Wish, Option<Self>)> {
        let (agent, session) = (real::AGENT.get()?, start::SESSION.get()?);
        let mark = if ignored { IGNORED } else { b"" };
        let (mut preloaded, mut named, mut other) = (false, false, false);
        let (mut marked, mut asan) = (false, wish == Wish::CarryOnBehindAsan);
        let mut asan_options: &[u8] = b"";
        // Three entries more than there are, and a null.
        let (mut entries, mut preload_bytes) = (4, 0);
        // SAFETY: the caller answers for the array.
        for entry in unsafe { Each::of(before) } {
            // SAFETY: the caller answers for the strings.
            let entry = unsafe { bytes(entry) };
            entries += 1;
            if let Some(value) = value(entry, PRELOAD) {
                preloaded |= has_agent(value, agent);
                preload_bytes = value.len();
                asan |= is_asan(value);
            } else if let Some(value) = value(entry, SESSION) {
                let name;
                (name, marked) = split_mark(value);
                named = true;
                other |= name != session;
            } else if let Some(value) = value(entry, ASAN_OPTIONS) {
                asan_options = value;
            }
        }
        // Another session was chosen on purpose: a recorder that is recorded itself.
        if other {
            return None;
        }
        // SAFETY: `AGENT` keeps a NUL behind the path.
        let loadable = || unsafe { kernel::may(agent.as_ptr().cast(), R_OK) };
        let wish = match (wish, asan) {
            (Wish::Strip | Wish::Name, _) => wish,
            _ if !loadable() => Wish::Strip,
            (_, true) => Wish::CarryOnBehindAsan,
            (_, false) => wish,
        };
        let named_so = named && marked == ignored;
        let done = match wish {
            Wish::CarryOn => preloaded && named_so,
            Wish::CarryOnBehindAsan => {
                preloaded && named_so && asan_options.ends_with(ASAN_MAY_FOLLOW)
            }
            Wish::Name => !preloaded && named_so,
            Wish::Strip => !preloaded && !named,
        };
        let text =
            agent.len() + session.len() + mark.len() + preload_bytes + asan_options.len() + 128;
        let change = Self {
            wish,
            agent,
            session,
            mark,
            before,
            entries,
            text,
        };
        Some((wish, (!done).then_some(change)))
    }

    fn carry_out(self, run: impl FnOnce(Strings) -> c_int) -> c_int {
        if self.entries <= FEW && self.text <= FEW_BYTES {
            self.carry_out_on_stack(run)
        } else {
            self.carry_out_elsewhere(run)
        }
    }

    #[inline(never)]
    fn carry_out_on_stack(self, run: impl FnOnce(Strings) -> c_int) -> c_int {
        let mut entries = [0; FEW];
        let mut text = [0_u8; FEW_BYTES];
        self.fill_and_run(&mut entries, &mut text, run)
    }

    #[inline(never)]
    fn carry_out_elsewhere(self, run: impl FnOnce(Strings) -> c_int) -> c_int {
        let room = Scratch::until_exec(self.entries * size_of::<usize>() + self.text);
        let Some(mut room) = room else {
            return run(self.before);
        };
        let Some((entries, text)) = room.words().split_at_mut_checked(self.entries) else {
            return run(self.before);
        };
        // SAFETY: bytes of words, which are not used otherwise meanwhile.
        let (_, text, _) = unsafe { text.align_to_mut::<u8>() };
        self.fill_and_run(entries, text, run)
    }

    fn fill_and_run(
        &self,
        entries: &mut [usize],
        text: &mut [u8],
        run: impl FnOnce(Strings) -> c_int,
    ) -> c_int {
        match self.fill(entries, text) {
            Some(()) => run(entries.as_ptr().cast()),
            None => run(self.before),
        }
    }

    /// Writes the environment: addresses of strings, then a null.
    fn fill(&self, entries: &mut [usize], text: &mut [u8]) -> Option<()> {
        let mut texts = Texts {
            room: text,
            start: 0,
            end: 0,
        };
        let mut places = entries.iter_mut();
        let (mut preload, mut asan_options): (_, Option<&[u8]>) = (None, None);
        let asan = self.wish == Wish::CarryOnBehindAsan;
        // SAFETY: `plan`'s caller answers for the array.
        for entry in unsafe { Each::of(self.before) } {
            // SAFETY: as above.
            let content = unsafe { bytes(entry) };
            if let Some(value) = value(content, PRELOAD) {
                // As for the loader, the last one counts.
                preload = Some(value);
            } else if let Some(value) = value(content, ASAN_OPTIONS).filter(|_| asan) {
                asan_options = Some(value);
            } else if value(content, SESSION).is_none() {
                *places.next()? = entry.addr();
            }
        }
        let before = preload.unwrap_or(b"");
        let others = before
            .split(is_separator)
            .filter(|&library| !library.is_empty() && library != self.agent);
        let (first, session) = match self.wish {
            Wish::CarryOn | Wish::CarryOnBehindAsan => (Some(self.agent), Some(self.session)),
            Wish::Name => (None, Some(self.session)),
            Wish::Strip => (None, None),
        };
        let mut joint: &[u8] = b"LD_PRELOAD=";
        for library in first.into_iter().chain(others) {
            texts.add(joint)?;
            texts.add(library)?;
            joint = b":";
        }
        if joint == b":" {
            *places.next()? = texts.finish()?.addr();
        }
        if let Some(session) = session {
            for part in [SESSION, b"=", session, self.mark] {
                texts.add(part)?;
            }
            *places.next()? = texts.finish()?.addr();
        }
        if asan {
            let before = asan_options.unwrap_or_default();
            let joint: &[u8] = if before.is_empty() { b"" } else { b":" };
            for part in [ASAN_OPTIONS, b"=", before, joint, ASAN_MAY_FOLLOW] {
                texts.add(part)?;
            }
            *places.next()? = texts.finish()?.addr();
        }
        *places.next()? = 0;
        Some(())
    }
}

/// Texts being put together, one behind the other.
#[derive(Debug)]
struct Texts<'a> {
    room: &'a mut [u8],
    start: usize,
    end: usize,
}

impl Texts<'_> {
    fn add(&mut self, part: &[u8]) -> Option<()> {
        self.room
            .get_mut(self.end..)?
            .get_mut(..part.len())?
            .copy_from_slice(part);
        self.end += part.len();
        Some(())
    }

    /// Ends a text and gives back where it is.
    fn finish(&mut self) -> Option<*const c_char> {
        self.add(b"\0")?;
        let text = self.room.get(self.start..)?.as_ptr().cast();
        self.start = self.end;
        Some(text)
    }
}

/// Takes the agent and the session out of an environment, in place: texts and array only shrink.
///
/// # Safety
///
/// `environment` is the array that the kernel gave to the program, and nothing else uses it meanwhile.
pub(crate) unsafe fn clear(environment: *mut *const c_char) {
    let Some(agent) = real::AGENT.get() else {
        return;
    };
    let mut kept = environment;
    // SAFETY: the caller answers for the array. What is written below lies before what is still to be read.
    for entry in unsafe { Each::of(environment) } {
        // SAFETY: the kernel's string.
        let content = unsafe { bytes(entry) };
        if value(content, SESSION).is_some() {
            continue;
        }
        if value(content, PRELOAD).is_some_and(|value| has_agent(value, agent)) {
            // SAFETY: the caller answers for the string: it may be written to, and `content` is not used any more.
            let text = unsafe {
                core::slice::from_raw_parts_mut(entry.cast_mut().cast::<u8>(), content.len() + 1)
            };
            if cut_agent(text, agent) <= PRELOAD.len() + 1 {
                continue;
            }
        }
        // SAFETY: not past the entry just read.
        unsafe { kept.write(entry) };
        kept = kept.wrapping_add(1);
    }
    // SAFETY: the null that ended the array, or an entry before it.
    unsafe { kept.write(core::ptr::null()) };
}

/// Cuts the agent out of `LD_PRELOAD=…`, in place. Gives back the new length.
fn cut_agent(text: &mut [u8], agent: &[u8]) -> usize {
    let start = PRELOAD.len() + 1;
    let ends = |byte: &u8| *byte == 0 || is_separator(byte);
    let is_agent = |&at: &usize| {
        let begins = at == start || text.get(at.wrapping_sub(1)).is_some_and(is_separator);
        let rest = text.get(at..).and_then(|rest| rest.strip_prefix(agent));
        begins && rest.and_then(<[u8]>::first).is_some_and(ends)
    };
    let Some(at) = (start..text.len()).find(is_agent) else {
        return text.len();
    };
    // With the separator behind it, if there is one.
    let after = at + agent.len();
    let after = if text.get(after).is_some_and(is_separator) {
        after + 1
    } else {
        after
    };
    // Byte by byte, since ranges that the compiler cannot check are checked where it runs.
    for from in after..text.len() {
        let byte = text.get(from).copied().unwrap_or(0);
        if let Some(place) = text.get_mut(at + (from - after)) {
            *place = byte;
        }
    }
    let len = text.iter().position(|&byte| byte == 0).unwrap_or(0);
    // A separator that is now the last.
    match text.get_mut(start..len).and_then(<[u8]>::last_mut) {
        Some(last) if is_separator(last) => {
            *last = 0;
            len - 1
        }
        _ => len,
    }
}
