//! Attaching: when the loader starts the agent, and in the child of a `fork`.
//!
//! # Safety
//!
//! This file is `unsafe` because the loader calls it with raw pointers, and because it maps the session's memory.
#![allow(unsafe_code)]

use crate::kernel::{AT_FDCWD, Descriptor};
use crate::text::{self, Kept, Strings};
use crate::{actions, environment, kernel, mailbox, real, sandbox, scratch, threads};
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use selvedge_sample::action;
use selvedge_sample::mailbox::get_ready;
use selvedge_sample::region::{MAGIC, Region, VERSION, session};
use selvedge_sample::system;
use selvedge_sample::target::{self, Base, Session};

/// The value of `SELVEDGE_SESSION`, without the mark.
pub(crate) static SESSION: Kept = Kept::new();

/// Whether the session records children too, and ours was recording: set once, at the start. Relaxed everywhere: says
/// nothing of other memory.
static CHILDREN: AtomicU32 = AtomicU32::new(0);

/// Address of the session's memory, from its mapping on; 0 before. Relaxed everywhere: an address is all there is to know.
static REGION: AtomicUsize = AtomicUsize::new(0);

/// Where the session's memory is mapped, if it is; else 0. Also in children that are not recorded.
pub(crate) fn region() -> usize {
    REGION.load(Ordering::Relaxed)
}

/// Run by the loader before the program, with the arguments of `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: unsafe extern "C" fn(c_int, Strings, *mut *const c_char) = at_start;

unsafe extern "C" fn at_start(_: c_int, _: Strings, envp: *mut *const c_char) {
    // A program that is started past our hooks of `exec` gets the preload whatever its loader. musl's loads the agent, and
    // calls this without arguments; from here on, hooks that find no session pass everything through.
    if !real::is_glibc() {
        return;
    }
    // SAFETY: the program's environment, which nothing else changes before the program begins.
    let Some(value) = (unsafe { text::variable(envp, environment::SESSION) }) else {
        return;
    };
    let (value, ignored) = environment::split_mark(value);
    // SAFETY: called once, before the program begins.
    unsafe { real::keep_own_path() };
    // SAFETY: as above.
    unsafe { SESSION.set(value) };
    real::look_up_all();
    scratch::own();
    register_in_child();
    let Some(region) = open_session(value) else {
        return;
    };
    // Relaxed: set before the session could be found.
    let children = region.header.children.load(Ordering::Relaxed);
    CHILDREN.store(children, Ordering::Relaxed);
    if children == 0 {
        // SAFETY: the loader's array, in the memory that the kernel wrote it to; the program has not begun.
        unsafe { environment::clear(envp) };
    }
    // SAFETY: as above.
    unsafe { mailbox::open(envp) };
    begin(region, ignored);
}

/// Maps the memory of the session that `value` names, if that is recording.
fn open_session(value: &[u8]) -> Option<&'static Region> {
    const PATH_BYTES: usize = 256;
    let colon = value.iter().rposition(|&byte| byte == b':')?;
    let (path, number) = value.split_at_checked(colon)?;
    let number = number.get(1..)?.iter().try_fold(0_u64, |number, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        (number >> 60 == 0).then_some((number << 4) | u64::from(digit))
    })?;
    let mut terminated = [0_u8; PATH_BYTES];
    terminated
        .get_mut(..PATH_BYTES - 1)?
        .get_mut(..path.len())?
        .copy_from_slice(path);
    // SAFETY: ends with a NUL: the last byte at least.
    let file = unsafe { Descriptor::open(AT_FDCWD, terminated.as_ptr().cast(), true) }?;
    let size = Region::SIZE as u64;
    // A program that was given little address space needs it itself.
    if file.facts()?.size < size || kernel::address_space_limit() / 4 < size {
        return None;
    }
    let start = file.map(Region::SIZE)?;
    // SAFETY: the mapping has the size of a region, every field of which is valid whatever the memory holds.
    let region = unsafe { &*start.cast::<Region>() };
    // Relaxed: set before the file was given to anyone.
    let header = &region.header;
    let fits = header.magic.load(Ordering::Relaxed) == MAGIC
        && header.version.load(Ordering::Relaxed) == VERSION
        && header.nonce.load(Ordering::Relaxed) == number
        && header.state.load(Ordering::Relaxed) == session::RECORDING;
    if !fits {
        // SAFETY: `region` is not used any more.
        unsafe { kernel::unmap(start, Region::SIZE) };
        return None;
    }
    kernel::keep_out_of_dumps(start, Region::SIZE);
    REGION.store(start.addr(), Ordering::Relaxed);
    Some(region)
}

/// Begins recording this program.
///
/// The handler is there before anybody can learn of the process and send a signal to it.
fn begin(region: &'static Region, ignored: bool) {
    let Ok(before) = action::install(region.header.signal.load(Ordering::Relaxed)) else {
        return;
    };
    let Some(session) = target::attach(region) else {
        // SAFETY: the action that was there.
        let _ = unsafe {
            system::sigaction(region.header.signal.load(Ordering::Relaxed), Some(&before))
        };
        return;
    };
    actions::own(
        region.header.signal.load(Ordering::Relaxed).cast_signed(),
        &before,
        ignored,
    );
    target::start_thread(session, system::gettid(), Base::Now);
    threads::watch_end_of_this_one(false);
    get_ready(region, session.process);
}

fn register_in_child() {
    if let Some(address) = real::REGISTER_ATFORK.address() {
        type Handler = Option<extern "C" fn()>;
        type Register = unsafe extern "C" fn(Handler, Handler, Handler, *const c_void) -> c_int;
        // SAFETY: the C library's function of this name has this type.
        let register = unsafe { core::mem::transmute::<usize, Register>(address) };
        let object = real::address_of_agent() as *const c_void;
        // SAFETY: the handler stays loaded as long as the process lives.
        unsafe { register(None, None, Some(in_child), object) };
    }
}

/// Run by `fork` in the child, which has one thread and no timer.
extern "C" fn in_child() {
    if sandbox::is_entered() {
        return target::forget();
    }
    scratch::own();
    selvedge_sample::mailbox::leave();
    let Some(session) = target::session() else {
        return;
    };
    target::forget();
    threads::forget_others();
    actions::forget_others();
    if !is_recording(session) {
        CHILDREN.store(0, Ordering::Relaxed);
    }
    if CHILDREN.load(Ordering::Relaxed) == 0 {
        return;
    }
    if let Some(session) = target::attach(session.region) {
        target::start_thread(session, system::gettid(), Base::Now);
    }
}

/// `fork` without the handlers of `pthread_atfork`, ours among them (glibc 2.34). May be called in a signal handler, as what
/// we do in the child may be.
#[unsafe(no_mangle)]
unsafe extern "C" fn _Fork() -> c_int {
    let Some(address) = real::FORK.address() else {
        return real::fail(real::ENOSYS);
    };
    // SAFETY: the C library's function of this name has this type.
    let fork = unsafe { core::mem::transmute::<usize, unsafe extern "C" fn() -> c_int>(address) };
    // SAFETY: the program's own call.
    let child = unsafe { fork() };
    if child == 0 {
        in_child();
    }
    child
}

/// Whether programs that this process starts are to be recorded. After the recording, there is nothing to follow them for.
pub(crate) fn children_are_followed() -> bool {
    CHILDREN.load(Ordering::Relaxed) == 1
        && !sandbox::is_entered()
        && target::session().is_none_or(is_recording)
}

/// Whether a session is recording now.
pub(crate) fn is_recording(session: Session) -> bool {
    // Relaxed: a moment later it may not be, whatever the order.
    session.region.header.state.load(Ordering::Relaxed) == session::RECORDING
}
