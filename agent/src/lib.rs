//! The agent: what `selvedge record` loads into a program (`LD_PRELOAD`).
//!
//! A guest in somebody else's process: it prints nothing, starts no thread, allocates nothing, needs no library but the C
//! library that is there already, and stays away where anything is not as it should be.
//!
//! - [`start`] and [`end`]: the process's first and last moments, and forks
//! - [`threads`]: new threads are armed before their first instruction, and account for themselves at their end
//! - [`exec`]: other programs are started with or without the agent, as suits them
//! - [`program`]: which programs can take it
//! - [`environment`]: environments, with and without the agent
//! - [`signals`]: the program may own the profiling signal as well
//! - [`memory`]: copying, without the C library
//! - [`symbols`]: finds the functions that the hooks stand in front of
//!
//! # Safety
//!
//! The whole crate is `unsafe`: it is called by C code and by the loader, with C's pointers.
#![no_std]

mod environment;
mod exec;
mod memory;
mod program;
mod signals;
mod symbols;
mod threads;

use core::ffi::{c_char, c_int};
use core::sync::atomic::{AtomicBool, Ordering};
use selvedge_arch::{number, syscall6};
use selvedge_sample::region::{MAGIC, Region, VERSION, session};
use selvedge_sample::target::{self, Base, Session};
use selvedge_sample::system;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing in the agent panics on purpose. If it does after all, stopping this one thread is the least harm.
    loop {
        core::hint::spin_loop();
    }
}

/// Functions of the loader's start and end lists.
type Initializer = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

#[used]
#[unsafe(link_section = ".init_array")]
static START: Initializer = start;

#[used]
#[unsafe(link_section = ".fini_array")]
static END: extern "C" fn() = end;

/// Whether this process, or the one it was forked from, has attached.
static ATTACHED: AtomicBool = AtomicBool::new(false);

/// Called by the loader before `main`: attaches to the session that the environment names.
extern "C" fn start(_count: c_int, _arguments: *const *const c_char, environment: *const *const c_char) {
    let Some(region) = environment::session(environment).and_then(|(path, nonce)| map(path, nonce)) else { return };
    if region.header.children.load(Ordering::Relaxed) == 0 {
        environment::forget(environment);
    }
    if attach(region, Base::Now).is_none() {
        return;
    }
    ATTACHED.store(true, Ordering::Release);
    if let Ok(previous) = target::install(region) {
        // Ignored: by us, before an `exec` (see `exec`), or by whoever started this program; then nothing is lost by
        // treating the program's view as the default.
        target::set_program_action(if previous.handler > 1 { previous.handler } else { 0 }, previous.mask);
    }
    symbols::register_fork(after_fork);
}

/// Called by the loader after `exit` has run the program's own handlers.
extern "C" fn end() {
    if let Some(session) = own_session() {
        target::leave(session);
    }
}

/// Called in the child of a `fork`: a process of its own.
extern "C" fn after_fork() {
    let Some(before) = target::session() else { return };
    target::forget();
    if before.region.header.children.load(Ordering::Relaxed) == 1 {
        attach(before.region, Base::Now);
    }
}

/// The session, if it is this process's own: in a `vfork` child, which shares its parent's memory, it is not.
fn own_session() -> Option<Session> {
    let session = target::session()?;
    (session.process.pid.load(Ordering::Relaxed) == system::getpid()).then_some(session)
}

fn attach(region: &'static Region, base: Base) -> Option<()> {
    if region.header.state.load(Ordering::Acquire) != session::RECORDING {
        return None;
    }
    let session = target::attach(region)?;
    target::start_thread(session, system::gettid(), base);
    Some(())
}

/// Maps the region at `path` (which ends with a NUL), if it is one and has this number.
fn map(path: &[u8], nonce: u64) -> Option<&'static Region> {
    const O_RDWR_CLOEXEC: usize = 0o2_000_002;
    const PROT_READ_WRITE: usize = 3;
    const MAP_SHARED_NORESERVE: usize = 0x4001;
    // SAFETY: the path ends with a NUL.
    let descriptor = unsafe { syscall6(number::OPEN, [path.as_ptr() as usize, O_RDWR_CLOEXEC, 0, 0, 0, 0]) };
    let descriptor = usize::try_from(descriptor).ok()?;
    let arguments = [0, Region::SIZE, PROT_READ_WRITE, MAP_SHARED_NORESERVE, descriptor, 0];
    let right_size = exec::file_size(descriptor) == Some(Region::SIZE as u64);
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let start = if right_size { unsafe { syscall6(number::MMAP, arguments) } } else { -1 };
    // SAFETY: the descriptor is ours.
    unsafe { syscall6(number::CLOSE, [descriptor, 0, 0, 0, 0, 0]) };
    let start = usize::try_from(start).ok()?;
    // SAFETY: page-aligned, `Region::SIZE` bytes (the file has as many), valid for any contents, never unmapped.
    let region = unsafe { &*(start as *const Region) };
    let header = &region.header;
    let ours = header.magic.load(Ordering::Acquire) == MAGIC
        && header.version.load(Ordering::Relaxed) == VERSION
        && header.nonce.load(Ordering::Relaxed) == nonce;
    ours.then_some(region)
}
