//! x86-64 Linux.
//!
//! # Safety
//!
//! This file is `unsafe` because it contains the `syscall` instruction and reads the kernel's signal frame. Nothing
//! else of the workspace does either.
#![allow(unsafe_code)]

use core::arch::asm;

/// The registers that a walk needs: the program counter, the stack pointer, every callee-saved register, and, of the
/// interrupted frame, the others.
///
/// Unwind rules of real code name all of them (the dynamic loader's `_dl_runtime_resolve_*` computes its frame from
/// `rbx`, functions that align their stack do so from `r10`), so a walk that keeps only `rsp` and `rbp` loses such frames.
/// Source: System V ABI, AMD64 supplement, §3.2.1 (callee-saved registers) and figure 3.36 (DWARF register numbers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// `rbp`: the frame pointer where code keeps one.
    pub bp: u64,
    /// `rbx`.
    pub bx: u64,
    /// `r12`.
    pub r12: u64,
    /// `r13`.
    pub r13: u64,
    /// `r14`.
    pub r14: u64,
    /// `r15`.
    pub r15: u64,
    /// Those that calls may overwrite: see [`scratch`].
    pub scratch: [u64; scratch::COUNT],
}

/// Registers that calls may overwrite, in the order of their DWARF numbers: `rax`, `rdx`, `rcx`, `rsi`, `rdi`, `r8` to
/// `r11`.
pub mod scratch {
    /// Number of them.
    pub const COUNT: usize = 9;
    /// Where the kernel keeps each of them in the `ucontext` of a signal's frame, in bytes.
    pub const IN_CONTEXT: [u64; COUNT] = [144, 136, 152, 112, 104, 40, 48, 56, 64];
}

/// A thread interrupted by a signal, as the kernel saved it: a view of the third argument of a signal handler.
///
/// Layout: `struct ucontext` of the Linux ABI: flags, link, `stack_t` (5 words in all), then `sigcontext`, whose
/// general registers are r8–r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip (arch/x86/include/uapi/asm/sigcontext.h).
#[derive(Clone, Copy, Debug)]
pub struct Interrupted {
    words: *const u64,
}

impl Interrupted {
    /// Index of `r8` in the words of a `ucontext`.
    const R8: usize = 5;

    /// # Safety
    ///
    /// `context` is the third argument that the kernel gave to a handler installed with `SA_SIGINFO`, and that handler
    /// has not returned.
    pub unsafe fn new(context: *const core::ffi::c_void) -> Self {
        Self {
            words: context.cast(),
        }
    }

    fn word(&self, register: usize) -> u64 {
        // SAFETY: the registers are the words 5 to 27 of the `ucontext` that `new` was given, which is live until the
        // handler returns; all callers pass a register below 23.
        unsafe { self.words.wrapping_add(Self::R8 + register).read() }
    }

    /// The instruction pointer.
    #[must_use]
    pub fn ip(&self) -> u64 {
        self.word(16)
    }

    /// The stack pointer.
    #[must_use]
    pub fn sp(&self) -> u64 {
        self.word(15)
    }

    /// The registers that a walk starts from.
    #[must_use]
    pub fn registers(&self) -> Registers {
        Registers {
            ip: self.word(16),
            sp: self.word(15),
            bp: self.word(10),
            bx: self.word(11),
            r12: self.word(4),
            r13: self.word(5),
            r14: self.word(6),
            r15: self.word(7),
            scratch: [13, 12, 14, 9, 8, 0, 1, 2, 3].map(|register| self.word(register)),
        }
    }

    /// Whether the thread looks like it was interrupted at the end of a successful `rt_sigprocmask`, where `before` are
    /// the seven bytes in front of its program counter.
    ///
    /// A system call keeps every register except `rax` (its result), `rcx` and `r11`, so the arguments are still there:
    /// `rdi` is the operation (0 to 2) and `r10` the size of the set, 8. A `mov $14, %eax` directly in front of the
    /// `syscall` (glibc's wrapper) says the same with certainty.
    #[must_use]
    pub fn left_sigprocmask(&self, before: [u8; 7]) -> bool {
        let [a, b, c, d, e, s0, s1] = before;
        if (s0, s1) != (0x0f, 0x05) {
            return false;
        }
        if [a, b, c, d, e] == [0xb8, 14, 0, 0, 0] {
            return true;
        }
        self.word(13) == 0 && self.word(2) == 8 && self.word(8) <= 2
    }

    /// The signal mask that the thread had, signal 1 in bit 0.
    #[must_use]
    pub fn mask(&self) -> u64 {
        // SAFETY: `uc_sigmask` follows the 256-byte `sigcontext`, which starts at word 5: word 37.
        unsafe { self.words.wrapping_add(37).read() }
    }
}

/// What the kernel says of a signal: a view of the second argument of a signal handler.
///
/// Layout: `siginfo_t` of the Linux ABI (include/uapi/asm-generic/siginfo.h).
#[derive(Clone, Copy, Debug)]
pub struct SignalInfo {
    words: *const u32,
}

impl SignalInfo {
    /// # Safety
    ///
    /// `info` is the second argument that the kernel gave to a handler installed with `SA_SIGINFO`, and that handler
    /// has not returned.
    pub unsafe fn new(info: *const core::ffi::c_void) -> Self {
        Self { words: info.cast() }
    }

    /// `si_code`: who sent it.
    #[must_use]
    pub fn code(&self) -> i32 {
        // SAFETY: `siginfo_t` is 128 bytes; `new` promises a live one.
        (unsafe { self.words.wrapping_add(2).read() }).cast_signed()
    }

    /// `si_value`: meaningful for timers and queued signals.
    #[must_use]
    pub fn value(&self) -> u64 {
        // SAFETY: as above; `si_value` is the eight bytes at offset 24 for `SI_TIMER` and `SI_QUEUE`.
        unsafe { self.words.wrapping_add(6).cast::<u64>().read() }
    }

    /// The kernel's number of the timer, for `SI_TIMER`.
    #[must_use]
    pub fn timer(&self) -> i32 {
        // SAFETY: as above; `si_tid` is the four bytes at offset 16 for `SI_TIMER`.
        (unsafe { self.words.wrapping_add(4).read() }).cast_signed()
    }
}

/// Numbers of system calls.
pub mod number {
    #![allow(missing_docs)]
    pub const READ: usize = 0;
    pub const OPEN: usize = 2;
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const ACCESS: usize = 21;
    pub const NANOSLEEP: usize = 35;
    pub const SETITIMER: usize = 38;
    pub const GETPID: usize = 39;
    pub const EXECVE: usize = 59;
    pub const PRCTL: usize = 157;
    pub const ARCH_PRCTL: usize = 158;
    pub const GETTID: usize = 186;
    /// newfstatat
    pub const NEWFSTATAT: usize = 262;
    pub const FUTEX: usize = 202;
    pub const TIMER_CREATE: usize = 222;
    pub const TIMER_SETTIME: usize = 223;
    pub const TIMER_DELETE: usize = 226;
    pub const CLOCK_GETTIME: usize = 228;
    pub const TGKILL: usize = 234;
    pub const RT_TGSIGQUEUEINFO: usize = 297;
    pub const PERF_EVENT_OPEN: usize = 298;
    pub const PROCESS_VM_READV: usize = 310;
    pub const EXECVEAT: usize = 322;
}

/// A system call with up to six arguments. Returns the kernel's result: a negative value is an error number.
///
/// It does not touch `errno`.
///
/// # Safety
///
/// Whatever the system call with these arguments does to memory, descriptors and threads is what the caller wants:
/// every pointer is valid for what the kernel reads or writes through it.
#[inline(always)]
pub unsafe fn syscall6(number: usize, arguments: [usize; 6]) -> isize {
    let result: isize;
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller answers for the call; the kernel clobbers rax, rcx and r11 only (AMD64 ABI, appendix A.2).
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            out("rcx") _, out("r11") _,
            options(nostack),
        );
    }
    result
}

/// A system call with up to four arguments: see [`syscall6`].
///
/// # Safety
///
/// As for [`syscall6`].
#[inline(always)]
pub unsafe fn syscall4(number: usize, arguments: [usize; 4]) -> isize {
    let [a, b, c, d] = arguments;
    // SAFETY: the caller answers for the call.
    unsafe { syscall6(number, [a, b, c, d, 0, 0]) }
}

/// The stack pointer, about here.
#[inline(always)]
#[must_use]
pub fn stack_pointer() -> u64 {
    let sp: u64;
    // SAFETY: copies a register.
    unsafe { asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
    sp
}

/// The time stamp counter: only a source of differing bits.
#[inline(always)]
#[must_use]
pub fn entropy() -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: reads a counter that user space may read.
    unsafe {
        asm!("rdtsc", out("eax") lo, out("edx") hi, options(nomem, nostack, preserves_flags))
    };
    (u64::from(hi) << 32) | u64::from(lo)
}

// Where a handler returns to. Debuggers and unwinders know a signal frame by exactly these bytes (gdb's
// amd64_linux_sigtramp_start_p, libgcc's linux-unwind.h), which are also glibc's `__restore_rt`.
core::arch::global_asm!(
    ".p2align 4",
    ".globl selvedge_signal_return",
    ".hidden selvedge_signal_return",
    ".type selvedge_signal_return, @function",
    "nop",
    "selvedge_signal_return:",
    ".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05",
    ".size selvedge_signal_return, . - selvedge_signal_return",
);

unsafe extern "C" {
    fn selvedge_signal_return();
}

/// The address of the code that a signal handler must return to (`sa_restorer`).
#[must_use]
pub fn signal_return() -> usize {
    selvedge_signal_return as *const () as usize
}
