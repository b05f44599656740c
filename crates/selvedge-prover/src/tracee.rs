//! A thread under `ptrace`: steps, registers, signals and memory.
//!
//! # Safety
//!
//! This file is `unsafe` because it calls `ptrace`, `waitpid` and `process_vm_readv`.
#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, offset_of};

/// General registers, as the kernel keeps them.
pub type Registers = libc::user_regs_struct;

/// Bytes of a `siginfo_t`.
pub const SIGNAL_INFO: usize = size_of::<libc::siginfo_t>();

/// What the kernel says of a signal.
pub type SignalInfo = [u8; SIGNAL_INFO];

/// What happened to a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It has executed an instruction, stands at a breakpoint, or at the start of a handler.
    Trapped,
    /// A signal is about to be delivered.
    Signal(i32),
    /// It has made a thread.
    Cloned(i32),
    /// It has become another program.
    Executed,
    /// It stopped because its process was stopped, or for the first time.
    Stopped,
    /// It has ended with this status, as `waitpid` gives it.
    Ended(i32),
}

/// A traced thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tracee(pub i32);

/// How a thread is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Going {
    /// For one instruction.
    Step,
    /// Until something happens.
    On,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Waits for anything to happen to any child or traced thread. `None` where there is none.
///
/// # Errors
///
/// The kernel refuses.
pub fn wait_for_any() -> io::Result<Option<(Tracee, Event)>> {
    match wait(-1) {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        other => other.map(Some),
    }
}

fn wait(pid: i32) -> io::Result<(Tracee, Event)> {
    let mut status = 0;
    let waited = loop {
        // SAFETY: `status` outlives the call.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        match check(i64::from(waited)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    let tracee = Tracee(waited as i32);
    if !libc::WIFSTOPPED(status) {
        return Ok((tracee, Event::Ended(status)));
    }
    let event = match (libc::WSTOPSIG(status), status >> 16) {
        (libc::SIGTRAP, libc::PTRACE_EVENT_CLONE) => Event::Cloned(tracee.message()? as i32),
        (libc::SIGTRAP, libc::PTRACE_EVENT_EXEC) => Event::Executed,
        (_, libc::PTRACE_EVENT_STOP) => Event::Stopped,
        (libc::SIGTRAP, 0) if tracee.is_own_trap()? => Event::Trapped,
        (signal, _) => Event::Signal(signal),
    };
    Ok((tracee, event))
}

extern "C" fn on_interrupt(_: i32) {
    crate::stepper::interrupt();
}

/// From now on, Ctrl-C and `SIGTERM` end the proof, not this program.
pub fn catch_interrupts() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler: extern "C" fn(i32) = on_interrupt;
        // SAFETY: the handler stores to an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

impl Tracee {
    /// Traces a process that is not traced yet, with the threads that it makes. It is not stopped, and is killed when the
    /// tracer ends.
    ///
    /// # Errors
    ///
    /// The kernel does not allow it.
    pub fn seize(pid: i32) -> io::Result<Self> {
        let options =
            libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_EXITKILL;
        // SAFETY: reads and writes no memory.
        check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0_usize, options as usize) })?;
        Ok(Self(pid))
    }

    /// Waits for this thread alone.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn wait(self) -> io::Result<Event> {
        wait(self.0).map(|(_, event)| event)
    }

    /// Goes on, and delivers a signal if it is not 0.
    ///
    /// # Errors
    ///
    /// The thread has ended.
    pub fn go(self, going: Going, signal: i32) -> io::Result<()> {
        let request = match going {
            Going::Step => libc::PTRACE_SINGLESTEP,
            Going::On => libc::PTRACE_CONT,
        };
        // SAFETY: reads and writes no memory of ours.
        check(unsafe { libc::ptrace(request, self.0, 0_usize, signal as usize) })?;
        Ok(())
    }

    /// Whether the trap that it is stopped at is of stepping: else it is the program's (`int3`, or sent).
    fn is_own_trap(self) -> io::Result<bool> {
        /// What the kernel says where it stops a thread at a handler's start.
        const NOTIFIED: i32 = libc::SIGTRAP;
        let [_, _, _, _, _, _, _, _, c0, c1, c2, c3, ..] = self.signal_info()?;
        let code = i32::from_le_bytes([c0, c1, c2, c3]);
        Ok(matches!(
            code,
            libc::TRAP_BRKPT | libc::TRAP_TRACE | libc::TRAP_HWBKPT | NOTIFIED
        ))
    }

    fn message(self) -> io::Result<u64> {
        let mut message = 0_u64;
        // SAFETY: the kernel writes one word.
        check(unsafe {
            libc::ptrace(libc::PTRACE_GETEVENTMSG, self.0, 0_usize, &raw mut message)
        })?;
        Ok(message)
    }

    /// Its registers.
    ///
    /// # Errors
    ///
    /// The thread has ended.
    pub fn registers(self) -> io::Result<Registers> {
        let mut registers = MaybeUninit::<Registers>::zeroed();
        // SAFETY: the kernel writes a structure of this type.
        check(unsafe {
            libc::ptrace(
                libc::PTRACE_GETREGS,
                self.0,
                0_usize,
                registers.as_mut_ptr(),
            )
        })?;
        // SAFETY: all of its fields are integers, and it was zeroed.
        Ok(unsafe { registers.assume_init() })
    }

    /// Sets its registers.
    ///
    /// # Errors
    ///
    /// The thread has ended, or has no such registers.
    pub fn set_registers(self, registers: &Registers) -> io::Result<()> {
        // SAFETY: the kernel reads a structure of this type.
        check(unsafe {
            libc::ptrace(
                libc::PTRACE_SETREGS,
                self.0,
                0_usize,
                std::ptr::from_ref(registers),
            )
        })?;
        Ok(())
    }

    /// Its vector registers, in the layout of `XSAVE`.
    ///
    /// # Errors
    ///
    /// The thread has ended.
    pub fn vector_registers(self) -> io::Result<Vec<u8>> {
        const NT_X86_XSTATE: usize = 0x202;
        let mut bytes = vec![0_u8; 16384];
        let mut place = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: the kernel writes at most the length of `bytes` there, and how much it wrote into `place`.
        check(unsafe {
            libc::ptrace(
                libc::PTRACE_GETREGSET,
                self.0,
                NT_X86_XSTATE,
                &raw mut place,
            )
        })?;
        bytes.truncate(place.iov_len);
        Ok(bytes)
    }

    /// The signals that it blocks, signal 1 in bit 0.
    ///
    /// # Errors
    ///
    /// The thread has ended.
    pub fn signal_mask(self) -> io::Result<u64> {
        const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
        let mut mask = 0_u64;
        // SAFETY: the kernel writes the eight bytes that it is told of.
        check(unsafe { libc::ptrace(PTRACE_GETSIGMASK, self.0, 8_usize, &raw mut mask) })?;
        Ok(mask)
    }

    /// What the kernel says of the signal that it is stopped at.
    ///
    /// # Errors
    ///
    /// It is not stopped at a signal.
    pub fn signal_info(self) -> io::Result<SignalInfo> {
        let mut info = [0_u8; SIGNAL_INFO];
        // SAFETY: the kernel writes a `siginfo_t`, which has this size.
        check(unsafe {
            libc::ptrace(libc::PTRACE_GETSIGINFO, self.0, 0_usize, info.as_mut_ptr())
        })?;
        Ok(info)
    }

    /// Replaces that.
    ///
    /// # Errors
    ///
    /// It is not stopped at a signal.
    pub fn set_signal_info(self, info: &SignalInfo) -> io::Result<()> {
        // SAFETY: the kernel reads a `siginfo_t`, which has this size.
        check(unsafe { libc::ptrace(libc::PTRACE_SETSIGINFO, self.0, 0_usize, info.as_ptr()) })?;
        Ok(())
    }

    /// Queues a signal for it, with what the kernel is to say of it (`si_code` below 0).
    ///
    /// # Errors
    ///
    /// It has ended, or has too many signals pending.
    pub fn queue_signal(self, process: i32, signal: i32, info: &SignalInfo) -> io::Result<()> {
        // SAFETY: the kernel reads a `siginfo_t`, which has this size.
        check(unsafe {
            libc::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                process,
                self.0,
                signal,
                info.as_ptr(),
            )
        })?;
        Ok(())
    }

    /// Makes it trap before it executes the instruction at an address; `None`: no longer.
    ///
    /// # Errors
    ///
    /// The machine has no debug registers.
    pub fn set_breakpoint(self, address: Option<u64>) -> io::Result<()> {
        // Bit 0: breakpoint 0 is on, for execution (AMD64 manual, volume 2, §13.1).
        let control = u64::from(address.is_some());
        if let Some(address) = address {
            self.poke_debug_register(0, address)?;
        }
        self.poke_debug_register(7, control)
    }

    fn poke_debug_register(self, number: usize, value: u64) -> io::Result<()> {
        let offset = offset_of!(libc::user, u_debugreg) + 8 * number;
        // SAFETY: writes no memory of ours.
        check(unsafe { libc::ptrace(libc::PTRACE_POKEUSER, self.0, offset, value) })?;
        Ok(())
    }

    /// Copies memory; gives back what could be read.
    #[must_use]
    pub fn read(self, address: u64, bytes: &mut [u8]) -> &[u8] {
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let remote = libc::iovec {
            iov_base: address as *mut _,
            iov_len: bytes.len(),
        };
        // SAFETY: `local` is `bytes`; the kernel checks `remote`.
        let read =
            unsafe { libc::process_vm_readv(self.0, &raw const local, 1, &raw const remote, 1, 0) };
        bytes
            .get(..usize::try_from(read).unwrap_or(0))
            .unwrap_or(&[])
    }

    /// Writes memory. Returns whether all of it was written.
    #[must_use]
    pub fn write(self, address: u64, bytes: &[u8]) -> bool {
        let local = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let remote = libc::iovec {
            iov_base: address as *mut _,
            iov_len: bytes.len(),
        };
        // SAFETY: the kernel reads `local`, which is `bytes`, and checks `remote`.
        let written = unsafe {
            libc::process_vm_writev(self.0, &raw const local, 1, &raw const remote, 1, 0)
        };
        usize::try_from(written) == Ok(bytes.len())
    }

    /// Bytes of memory; `None` where not all of them can be read.
    #[must_use]
    pub fn bytes<const N: usize>(self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.read(address, &mut bytes).len() == N).then_some(bytes)
    }

    /// The word at an address.
    #[must_use]
    pub fn word(self, address: u64) -> Option<u64> {
        self.bytes(address).map(u64::from_le_bytes)
    }

    /// Kills its process.
    pub fn kill(self) {
        // SAFETY: a system call without memory; the thread is our tracee, so its number is nobody else's.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }
}
