//! Programs that this one starts, in its own place (`exec`) or as children (`posix_spawn`).
//!
//! Before an `exec`, the process takes leave of the recorder, and what would outlive it is disarmed. A child of `vfork`
//! shares the memory of its parent, so it takes leave of nothing and leaves nothing behind in memory.
//!
//! # Safety
//!
//! This file is `unsafe` because it defines functions under the C library's names, some of them with a variable number
//! of arguments, which stable Rust cannot define other than in assembly.
#![allow(unsafe_code)]

use crate::ending::own_session;
use crate::environment::{self, Wish};
use crate::kernel::AT_FDCWD;
use crate::program::{Program, Verdict};
use crate::real::{self, Real};
use crate::text::Strings;
use crate::{actions, kernel, sandbox, start};
use core::arch::naked_asm;
use core::ffi::{c_char, c_int, c_void};

/// Runs `run` with the environment with which `program` is to be started, and whether it will be recorded, as far as is
/// known.
///
/// # Safety
///
/// All are valid arguments of an `exec` function.
unsafe fn with_environment(
    program: Program,
    wish: Wish,
    before: Strings,
    run: impl FnOnce(Strings, bool) -> c_int,
) -> c_int {
    // Nothing is known of a session: most calls of a process that has none to carry on.
    if start::SESSION.get().is_none() {
        return run(before, false);
    }
    if sandbox::is_entered() {
        // SAFETY: the caller answers for the environment.
        return unsafe { environment::with(Wish::Strip, false, before, run) };
    }
    // SAFETY: the caller answers for the program's path; names are looked up in our own environment.
    let wish = match (unsafe { program.judge(real::environment()) }, wish) {
        (Verdict::TakesBehindAsan, Wish::CarryOn) => Wish::CarryOnBehindAsan,
        (Verdict::Joins, Wish::CarryOn) => Wish::Name,
        (Verdict::Takes | Verdict::TakesBehindAsan | Verdict::Joins, wish) => wish,
        (Verdict::Refuses, _) => Wish::Strip,
        (Verdict::Unclear, _) => return run(before, false),
    };
    let ignored = actions::program_ignores();
    // SAFETY: the caller answers for the environment.
    unsafe { environment::with(wish, ignored, before, run) }
}

/// Becomes `program` by `run`.
///
/// # Safety
///
/// As for [`with_environment`].
unsafe fn become_program(
    program: Program,
    before: Strings,
    run: impl FnOnce(Strings) -> c_int,
) -> c_int {
    let session = own_session();
    // Without children, the process itself is recorded all the same, whatever program it becomes.
    let carry_on = start::children_are_followed() || session.is_some_and(start::is_recording);
    let wish = if carry_on { Wish::CarryOn } else { Wish::Strip };
    let run = |environment, is_recorded| {
        let handed_over = actions::hand_over(session, is_recorded);
        let result = run(environment);
        actions::take_back(handed_over);
        result
    };
    // SAFETY: the caller answers for the arguments.
    unsafe { with_environment(program, wish, before, run) }
}

/// Starts `program` as a child by `run`.
///
/// # Safety
///
/// As for [`with_environment`].
unsafe fn start_child(
    program: Program,
    before: Strings,
    run: impl FnOnce(Strings) -> c_int,
) -> c_int {
    let wish = if start::children_are_followed() {
        Wish::CarryOn
    } else {
        Wish::Strip
    };
    // SAFETY: the caller answers for the arguments.
    unsafe { with_environment(program, wish, before, |environment, _| run(environment)) }
}

type Execute<T> = unsafe extern "C" fn(T, Strings, Strings) -> c_int;

/// Calls the real function of three arguments, the first of which names the program.
///
/// # Safety
///
/// `real` is a function of this type, and the arguments are valid for it.
unsafe fn execute<T>(real: &Real, what: T, arguments: Strings, environment: Strings) -> c_int {
    let Some(address) = real.address() else {
        return real::fail(real::ENOSYS);
    };
    // SAFETY: the caller answers for the type.
    let execute = unsafe { core::mem::transmute::<usize, Execute<T>>(address) };
    // SAFETY: the caller answers for the arguments.
    unsafe { execute(what, arguments, environment) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn execve(
    path: *const c_char,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let program = Program::At(AT_FDCWD, path);
    // SAFETY: the program's own call.
    let run = |environment| unsafe { execute(&real::EXECVE, path, arguments, environment) };
    // SAFETY: as above.
    unsafe { become_program(program, environment, run) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn execv(path: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the program's own call.
    unsafe { execve(path, arguments, real::environment()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn execvpe(
    name: *const c_char,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    // SAFETY: the program's own call.
    let run = |environment| unsafe { execute(&real::EXECVPE, name, arguments, environment) };
    // SAFETY: as above.
    unsafe { become_program(Program::Named(name), environment, run) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn execvp(name: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the program's own call.
    unsafe { execvpe(name, arguments, real::environment()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fexecve(descriptor: c_int, arguments: Strings, environment: Strings) -> c_int {
    // SAFETY: the program's own call.
    let run = |environment| unsafe { execute(&real::FEXECVE, descriptor, arguments, environment) };
    // SAFETY: as above.
    unsafe { become_program(Program::Open(descriptor), environment, run) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn execveat(
    folder: c_int,
    path: *const c_char,
    arguments: Strings,
    environment: Strings,
    flags: c_int,
) -> c_int {
    type At = unsafe extern "C" fn(c_int, *const c_char, Strings, Strings, c_int) -> c_int;
    const AT_EMPTY_PATH: c_int = 0x1000;
    // SAFETY: the program's own path.
    let empty = unsafe { crate::text::bytes(path) }.is_empty();
    let program = if empty && flags & AT_EMPTY_PATH != 0 {
        Program::Open(folder)
    } else {
        Program::At(folder, path)
    };
    let run = |environment: Strings| match real::EXECVEAT.address() {
        Some(address) => {
            // SAFETY: the C library's function of this name has this type.
            let execute = unsafe { core::mem::transmute::<usize, At>(address) };
            // SAFETY: the program's own call.
            unsafe { execute(folder, path, arguments, environment, flags) }
        }
        None => {
            let words = [
                folder as usize,
                path.addr(),
                arguments.addr(),
                environment.addr(),
                flags as usize,
            ];
            // SAFETY: the program's own call.
            real::fail(unsafe { kernel::execveat(words) })
        }
    };
    // SAFETY: the program's own call.
    unsafe { become_program(program, environment, run) }
}

type Spawn = unsafe extern "C" fn(
    *mut c_int,
    *const c_char,
    *const c_void,
    *const c_void,
    Strings,
    Strings,
) -> c_int;

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_spawn(
    pid: *mut c_int,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let Some(address) = real::POSIX_SPAWN.address() else {
        return real::ENOSYS;
    };
    // SAFETY: the C library's function of this name has this type.
    let spawn = unsafe { core::mem::transmute::<usize, Spawn>(address) };
    // SAFETY: the program's own call.
    let run =
        |environment| unsafe { spawn(pid, path, actions, attributes, arguments, environment) };
    // SAFETY: as above.
    unsafe { start_child(Program::At(AT_FDCWD, path), environment, run) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_spawnp(
    pid: *mut c_int,
    name: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let Some(address) = real::POSIX_SPAWNP.address() else {
        return real::ENOSYS;
    };
    // SAFETY: the C library's function of this name has this type.
    let spawn = unsafe { core::mem::transmute::<usize, Spawn>(address) };
    // SAFETY: the program's own call.
    let run =
        |environment| unsafe { spawn(pid, name, actions, attributes, arguments, environment) };
    // SAFETY: as above.
    unsafe { start_child(Program::Named(name), environment, run) }
}

// The functions whose arguments are the arguments of the program: they make an array of them on the stack and call the
// function that takes one.
//
// On entry: rdi is the path or name; the strings are in rsi, rdx, rcx, r8, r9, then on the stack from rsp + 8 on; a null
// ends them; for `execle`, the environment comes after it (AMD64 ABI, §3.2.3: variadic arguments that are pointers are
// passed as any others). The frame, which CFI describes by rbp:
//
//     rbp + 16   strings from the sixth on
//     rbp + 8    return address
//     rbp        saved rbp
//     rbp - 48   rsi, rdx, rcx, r8, r9, one word unused
//     rsp        the array, copied from its end on, so that a guard page of the stack is met and not stepped over
//
// On exit: as after any call; rdi is unchanged until the call, rbx and r12 to r15 are not touched.
macro_rules! listed {
    ($name:ident, $call:ident, $($environment:literal),*) => {
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() -> c_int {
            naked_asm!(
                ".cfi_startproc",
                "push rbp",
                ".cfi_def_cfa_offset 16",
                ".cfi_offset rbp, -16",
                "mov rbp, rsp",
                ".cfi_def_cfa_register rbp",
                "sub rsp, 48",
                "mov [rbp - 48], rsi",
                "mov [rbp - 40], rdx",
                "mov [rbp - 32], rcx",
                "mov [rbp - 24], r8",
                "mov [rbp - 16], r9",
                // Count to the null, and over it: rax strings, r10 the place after them.
                "xor eax, eax",
                "lea r10, [rbp - 48]",
                "2:",
                "mov r11, [r10]",
                "add r10, 8",
                "inc rax",
                "cmp rax, 5",
                "jne 3f",
                "lea r10, [rbp + 16]",
                "3:",
                "test r11, r11",
                "jnz 2b",
                $($environment,)*
                // Copy, last to first.
                "lea r11, [rax * 8 + 15]",
                "and r11, -16",
                "mov rcx, rax",
                "mov rsi, rsp",
                "sub rsi, r11",
                "lea r8, [rsi + rax * 8]",
                "4:",
                "dec rcx",
                "lea r9, [rbp + rcx * 8 - 48]",
                "lea r10, [rbp + rcx * 8 - 24]",
                "cmp rcx, 5",
                "cmovae r9, r10",
                "mov r9, [r9]",
                "sub r8, 8",
                "mov rsp, r8",
                "mov [r8], r9",
                "test rcx, rcx",
                "jnz 4b",
                "and rsp, -16",
                "call {call}",
                "leave",
                ".cfi_restore rbp",
                ".cfi_def_cfa rsp, 8",
                "ret",
                ".cfi_endproc",
                call = sym $call,
            )
        }
    };
}

listed!(execl, execv,);
listed!(execlp, execvp,);
listed!(execle, execve, "mov rdx, [r10]");
