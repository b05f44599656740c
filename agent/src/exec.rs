//! Other programs: started with the agent where they can take it, without it where not.
//!
//! **Terms.** A *child* here is whoever calls one of these functions: often the child of a `vfork`, which runs on its
//! parent's memory. So nothing shared is written by one (its process id is not that of the record), and what must be made
//! is made on the stack.
//!
//! **A signal in the middle of an `exec`.** Per-thread timers end with the old program, and the kernel takes their
//! pending signals back (`flush_itimer_signals`, fs/exec.c). `ITIMER_PROF` survives, and a `perf_event` may fire while
//! the kernel works on the `exec`: their signal would meet the new program before its agent has a handler, and kill it.
//! So with these engines the signal is ignored from just before the `exec` on; being ignored is inherited, and the new
//! program's agent ends it. A program without the agent keeps ignoring a signal that it does not use.

use crate::environment::{self, Edited};
use crate::own_session;
use crate::program::{self, Suits};
use crate::symbols::Next;
use core::ffi::{CStr, c_char, c_int};
use core::sync::atomic::Ordering;
use selvedge_arch::{number, syscall6};
use selvedge_sample::region::Engine;
use selvedge_sample::system::SignalAction;
use selvedge_sample::{system, target};

type Strings = *const *const c_char;

unsafe extern "C" {
    #[link_name = "environ"]
    static ENVIRON: Strings;
}

fn own_environment() -> Strings {
    let place = &raw const ENVIRON;
    // SAFETY: the C library's variable; a program that changes it while another of its threads executes another program
    // has a race of its own.
    unsafe { place.read() }
}

/// The words of the kernel's `struct stat`.
fn stat(descriptor: usize) -> Option<[u64; 18]> {
    const FSTAT: usize = 5;
    let mut facts = [0_u64; 18];
    // SAFETY: the kernel writes a `stat`, 144 bytes.
    let result = unsafe { syscall6(FSTAT, [descriptor, facts.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    (result == 0).then_some(facts)
}

/// Size of an open file. `st_size` is at byte 48 (arch/x86/include/uapi/asm/stat.h).
pub(crate) fn file_size(descriptor: usize) -> Option<u64> {
    stat(descriptor).map(|facts| facts[6])
}

/// Mode of an open file. `st_mode` is at byte 24.
pub(crate) fn file_mode(descriptor: usize) -> Option<u32> {
    stat(descriptor).map(|facts| facts[3] as u32)
}

/// What is to be done with a program's environment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    Add,
    Remove,
}

fn change(environment: Strings, suits: impl FnOnce() -> Suits) -> Change {
    let Some(session) = target::session() else { return Change::Nothing };
    if session.region.header.children.load(Ordering::Relaxed) == 0 || environment::agent().is_empty() {
        return Change::Nothing;
    }
    match (suits(), environment::has_agent(environment)) {
        (Suits::Yes, false) if can_read_agent() => Change::Add,
        (Suits::Yes, true) if !can_read_agent() => Change::Remove,
        (Suits::No, true) => Change::Remove,
        _ => Change::Nothing,
    }
}

/// Whether the agent's file is there for whoever this process is now.
fn can_read_agent() -> bool {
    const R_OK: usize = 4;
    let mut path = [0_u8; 1024];
    let agent = environment::agent();
    let Some(place) = path.get_mut(..agent.len()) else { return false };
    place.copy_from_slice(agent);
    // SAFETY: the path ends with a NUL: it is shorter than its place.
    (unsafe { syscall6(number::ACCESS, [path.as_ptr() as usize, R_OK, 0, 0, 0, 0]) }) == 0
}

/// Calls `go` with the environment to use. Not inlined: only who needs the room on the stack takes it.
fn with_environment(environment: Strings, change: Change, go: impl Fn(Strings) -> c_int) -> c_int {
    #[inline(never)]
    fn edited(environment: Strings, with_agent: bool, go: &dyn Fn(Strings) -> c_int) -> Option<c_int> {
        let mut edited = Edited::new(environment, with_agent)?;
        Some(go(edited.finish()))
    }
    if change != Change::Nothing
        && let Some(result) = edited(environment, change == Change::Add, &go)
    {
        return result;
    }
    go(environment)
}

/// Calls `go`, which replaces this program, or fails and returns.
fn replacing(go: impl Fn() -> c_int) -> c_int {
    let Some(session) = own_session() else { return go() };
    target::leave(session);
    let survives = session.process.engine.load(Ordering::Relaxed) != Engine::Timer as u32;
    let signal = session.region.header.signal.load(Ordering::Relaxed);
    if survives {
        let ignore = SignalAction { handler: 1, ..SignalAction::default() };
        // SAFETY: ignoring runs no code.
        let _ = unsafe { system::sigaction(signal, Some(&ignore)) };
    }
    let result = go();
    if survives {
        let _ = target::install(session.region);
    }
    target::stay(session);
    result
}

/// Finds a program as `execvp` does, and looks at it.
fn suits_by_name(file: *const c_char) -> Suits {
    // SAFETY: the caller passes a C string.
    let name = unsafe { CStr::from_ptr(file) }.to_bytes();
    if name.contains(&b'/') {
        return program::suits(file);
    }
    let path = environment::get(own_environment(), b"PATH=").unwrap_or(b"/bin:/usr/bin");
    let mut candidate = [0_u8; 1024];
    for folder in path.split(|&byte| byte == b':') {
        let length = folder.len() + 1 + name.len();
        let Some(place) = candidate.get_mut(..=length) else { continue };
        let (start, rest) = place.split_at_mut(folder.len());
        start.copy_from_slice(folder);
        if let [slash, rest @ ..] = rest {
            *slash = b'/';
            let (middle, end) = rest.split_at_mut(name.len());
            middle.copy_from_slice(name);
            end.fill(0);
        }
        const X_OK: usize = 1;
        let start = if folder.is_empty() { candidate.as_ptr().wrapping_add(1) } else { candidate.as_ptr() };
        // SAFETY: the path ends with a NUL.
        if unsafe { syscall6(number::ACCESS, [start as usize, X_OK, 0, 0, 0, 0]) } == 0 {
            return program::suits(start.cast());
        }
    }
    Suits::Whatever
}

type Execve = extern "C" fn(*const c_char, Strings, Strings) -> c_int;
static EXECVE: Next = Next::new(c"execve");
static EXECVPE: Next = Next::new(c"execvpe");

fn call(next: &Next, path: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    let Some(next) = next.address() else { return -1 };
    // SAFETY: `execve` and `execvpe` have this type.
    let next: Execve = unsafe { core::mem::transmute(next) };
    replacing(|| next(path, arguments, environment))
}

fn exec_path(path: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    let change = change(environment, || program::suits(path));
    with_environment(environment, change, |environment| call(&EXECVE, path, arguments, environment))
}

fn exec_name(file: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    let change = change(environment, || suits_by_name(file));
    with_environment(environment, change, |environment| call(&EXECVPE, file, arguments, environment))
}

/// Stands in front of `execve`.
///
/// # Safety
///
/// As for `execve`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execve(path: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    exec_path(path, arguments, environment)
}

/// Stands in front of `execv`.
///
/// # Safety
///
/// As for `execv`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execv(path: *const c_char, arguments: Strings) -> c_int {
    exec_path(path, arguments, own_environment())
}

/// Stands in front of `execvp`.
///
/// # Safety
///
/// As for `execvp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvp(file: *const c_char, arguments: Strings) -> c_int {
    exec_name(file, arguments, own_environment())
}

/// Stands in front of `execvpe`.
///
/// # Safety
///
/// As for `execvpe`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvpe(file: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    exec_name(file, arguments, environment)
}

/// Stands in front of `fexecve`.
///
/// # Safety
///
/// As for `fexecve`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fexecve(descriptor: c_int, arguments: Strings, environment: Strings) -> c_int {
    type Fexecve = extern "C" fn(c_int, Strings, Strings) -> c_int;
    static NEXT: Next = Next::new(c"fexecve");
    let Some(next) = NEXT.address() else { return -1 };
    // SAFETY: the function of that name.
    let next: Fexecve = unsafe { core::mem::transmute(next) };
    let change = change(environment, || {
        usize::try_from(descriptor).map_or(Suits::Whatever, program::suits_open)
    });
    with_environment(environment, change, |environment| replacing(|| next(descriptor, arguments, environment)))
}

type Spawn =
    extern "C" fn(*mut c_int, *const c_char, *const u8, *const u8, Strings, Strings) -> c_int;

/// Stands in front of `posix_spawn`.
///
/// # Safety
///
/// As for `posix_spawn`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawn(
    pid: *mut c_int,
    path: *const c_char,
    actions: *const u8,
    attributes: *const u8,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    const ENOSYS: c_int = 38;
    static NEXT: Next = Next::new(c"posix_spawn");
    let Some(next) = NEXT.address() else { return ENOSYS };
    // SAFETY: the function of that name.
    let next: Spawn = unsafe { core::mem::transmute(next) };
    let change = change(environment, || program::suits(path));
    with_environment(environment, change, |environment| {
        next(pid, path, actions, attributes, arguments, environment)
    })
}

/// Stands in front of `posix_spawnp`.
///
/// # Safety
///
/// As for `posix_spawnp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawnp(
    pid: *mut c_int,
    file: *const c_char,
    actions: *const u8,
    attributes: *const u8,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    const ENOSYS: c_int = 38;
    static NEXT: Next = Next::new(c"posix_spawnp");
    let Some(next) = NEXT.address() else { return ENOSYS };
    // SAFETY: the function of that name.
    let next: Spawn = unsafe { core::mem::transmute(next) };
    let change = change(environment, || suits_by_name(file));
    with_environment(environment, change, |environment| {
        next(pid, file, actions, attributes, arguments, environment)
    })
}

/// Arguments of a variadic function: five in registers, the rest on the stack.
const IN_REGISTERS: usize = 5;
/// Arguments that the `execl` family can pass on.
const LISTED: usize = 512;

/// The argument with number `at` of a variadic call.
fn listed(registers: Strings, stack: Strings, at: usize) -> *const c_char {
    let place = if at < IN_REGISTERS { registers.wrapping_add(at) } else { stack.wrapping_add(at - IN_REGISTERS) };
    // SAFETY: the caller's arguments end with a null (and an environment, where the function takes one), behind which
    // nothing is read.
    unsafe { place.read() }
}

/// The `execl` family: 0 `execl`, 1 `execlp`, 2 `execle`.
extern "C" fn exec_listed(path: *const c_char, registers: Strings, stack: Strings, which: usize) -> c_int {
    let mut arguments = [core::ptr::null(); LISTED + 1];
    let mut count = 0;
    loop {
        let argument = listed(registers, stack, count);
        if argument.is_null() {
            break;
        }
        let Some(place) = arguments.get_mut(count) else { return -1 };
        if count == LISTED {
            return -1;
        }
        *place = argument;
        count += 1;
    }
    match which {
        0 => exec_path(path, arguments.as_ptr(), own_environment()),
        1 => exec_name(path, arguments.as_ptr(), own_environment()),
        _ => exec_path(path, arguments.as_ptr(), listed(registers, stack, count + 1).cast()),
    }
}

macro_rules! listed {
    ($($name:ident $which:literal)*) => { $(
        #[doc = concat!("Stands in front of `", stringify!($name), "`, whose arguments are a list of any length.")]
        ///
        /// Entry: `rdi` the path, `rsi`, `rdx`, `rcx`, `r8`, `r9` the first five arguments, the others from `rsp + 8` on
        /// (System V ABI, AMD64 supplement, §3.2.3); `rsp` is 8 below a multiple of 16. The five are pushed in order, so
        /// that they are an array; five pushes align the stack for the call. Exit: as any function's.
        ///
        /// # Safety
        ///
        /// As for the function itself.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "lea r10, [rsp + 8]",
                "push r9", ".cfi_adjust_cfa_offset 8",
                "push r8", ".cfi_adjust_cfa_offset 8",
                "push rcx", ".cfi_adjust_cfa_offset 8",
                "push rdx", ".cfi_adjust_cfa_offset 8",
                "push rsi", ".cfi_adjust_cfa_offset 8",
                "mov rsi, rsp",
                "mov rdx, r10",
                "mov ecx, {which}",
                "call {listed}",
                "add rsp, 40", ".cfi_adjust_cfa_offset -40",
                "ret",
                ".cfi_endproc",
                which = const $which,
                listed = sym exec_listed,
            )
        }
    )* };
}

listed! {
    execl 0
    execlp 1
    execle 2
}
