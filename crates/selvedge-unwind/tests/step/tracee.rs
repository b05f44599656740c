//! A program under `ptrace`: steps, registers, memory and modules.
//!
//! # Safety
//!
//! This file is `unsafe` because it forks and calls `ptrace` and `process_vm_readv`.
#![allow(unsafe_code)]

use selvedge_arch::Registers;
use selvedge_unwind::build::{MapEntry, MapKind, map, table};
use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What happened after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Stepped,
    /// A signal is about to be delivered.
    Signal(i32),
    Exited(i32),
}

/// A traced process of one thread.
#[derive(Debug)]
pub(crate) struct Tracee {
    pid: libc::pid_t,
}

impl Tracee {
    /// Starts a program, stopped before its first instruction, with its output thrown away.
    pub(crate) fn start(command: &[&Path], environment: &[&str]) -> Self {
        let arguments: Vec<CString> = command
            .iter()
            .map(|a| CString::new(a.as_os_str().as_bytes()).unwrap())
            .collect();
        let environment: Vec<CString> = environment
            .iter()
            .map(|a| CString::new(*a).unwrap())
            .collect();
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            strings
                .iter()
                .map(|a| a.as_ptr())
                .chain([std::ptr::null()])
                .collect()
        };
        let (arguments, environment) = (pointers(&arguments), pointers(&environment));
        // SAFETY: the child calls only system calls until it executes the program.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "cannot fork: {}", io::Error::last_os_error());
        if pid == 0 {
            become_program(&arguments, &environment);
        }
        let this = Self { pid };
        assert_eq!(
            this.wait(),
            Stop::Signal(libc::SIGTRAP),
            "{:?} did not start",
            command
        );
        // SAFETY: sets options of our own stopped tracee; reads no memory.
        let set = unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, libc::PTRACE_O_EXITKILL) };
        assert_eq!(
            set,
            0,
            "cannot set ptrace options: {}",
            io::Error::last_os_error()
        );
        this
    }

    fn wait(&self) -> Stop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        assert_eq!(
            waited,
            self.pid,
            "cannot wait for the program: {}",
            io::Error::last_os_error()
        );
        if libc::WIFSTOPPED(status) {
            Stop::Signal(libc::WSTOPSIG(status))
        } else {
            Stop::Exited(status)
        }
    }

    /// Executes one instruction, or delivers `signal` and stops at the handler's first instruction.
    pub(crate) fn step(&self, signal: i32) -> Stop {
        // SAFETY: our own stopped tracee; reads no memory.
        let stepped = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, signal) };
        assert_eq!(stepped, 0, "cannot step: {}", io::Error::last_os_error());
        match self.wait() {
            Stop::Signal(libc::SIGTRAP) => Stop::Stepped,
            stop => stop,
        }
    }

    /// Registers of a walk, and `rax`.
    pub(crate) fn registers(&self) -> (Registers, u64) {
        let mut user = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
        // SAFETY: `user` is as large as the kernel's structure.
        let read = unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.pid, 0, user.as_mut_ptr()) };
        assert_eq!(
            read,
            0,
            "cannot read registers: {}",
            io::Error::last_os_error()
        );
        // SAFETY: all of its fields are integers, and it was zeroed.
        let user = unsafe { user.assume_init() };
        let registers = Registers {
            ip: user.rip,
            sp: user.rsp,
            bp: user.rbp,
            bx: user.rbx,
            r12: user.r12,
            r13: user.r13,
            r14: user.r14,
            r15: user.r15,
            scratch: [
                user.rax, user.rdx, user.rcx, user.rsi, user.rdi, user.r8, user.r9, user.r10,
                user.r11,
            ],
        };
        (registers, user.rax)
    }

    /// Copies memory; returns how many bytes could be read.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let remote = libc::iovec {
            iov_base: address as *mut _,
            iov_len: bytes.len(),
        };
        // SAFETY: `local` is `bytes`; the kernel checks `remote`.
        let read = unsafe {
            libc::process_vm_readv(self.pid, &raw const local, 1, &raw const remote, 1, 0)
        };
        usize::try_from(read).unwrap_or(0)
    }

    /// The word at an address.
    pub(crate) fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.read(address, &mut bytes) == 8).then(|| u64::from_le_bytes(bytes))
    }

    fn maps(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap_or_default()
    }
}

fn become_program(arguments: &[*const libc::c_char], environment: &[*const libc::c_char]) -> ! {
    // SAFETY: a system call without memory.
    unsafe { libc::ptrace(libc::PTRACE_TRACEME) };
    // SAFETY: a constant string.
    let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY) };
    for standard in [1, 2] {
        // SAFETY: a system call without memory.
        unsafe { libc::dup2(null, standard) };
    }
    // SAFETY: both arrays end in a null pointer and their strings outlive the call.
    unsafe { libc::execve(arguments[0], arguments.as_ptr(), environment.as_ptr()) };
    // SAFETY: ends the child without running anything of its parent.
    unsafe { libc::_exit(127) }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // SAFETY: our own child, not yet waited for to its end, or gone already.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // SAFETY: as above; a null status is allowed.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// Tables of the modules of a tracee.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    arena: Vec<u8>,
    /// Offset and length in the arena, by path; none where no table could be made.
    tables: HashMap<String, Option<(u64, u64)>>,
    map: Vec<u8>,
    serial: u64,
    code: Vec<(u64, u64, String)>,
}

impl Modules {
    /// Looks at the tracee's mappings again.
    pub(crate) fn refresh(&mut self, tracee: &Tracee) {
        let maps = tracee.maps();
        let mut entries = Vec::new();
        self.code.clear();
        for line in maps.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [range, permissions, offset, _, _, rest @ ..] = fields.as_slice() else {
                continue;
            };
            if !permissions.contains('x') || rest.first() == Some(&"[vsyscall]") {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
            let (start, end, offset) = (hex(start), hex(end), hex(offset));
            let path = rest.first().copied().unwrap_or("");
            self.code.push((start, end, path.to_owned()));
            let kind = match self.module(tracee, path, start, end) {
                Some((at, len)) => {
                    let bias = start - self.svma(tracee, path, offset).unwrap_or(offset);
                    MapKind::Table {
                        offset: at,
                        len,
                        bias,
                    }
                }
                None => MapKind::NoCfi,
            };
            entries.push(MapEntry { start, end, kind });
        }
        self.serial += 1;
        self.map = map(&entries, self.serial);
    }

    fn image(tracee: &Tracee, path: &str, start: u64, end: u64) -> Option<Vec<u8>> {
        if path == "[vdso]" {
            let mut image = vec![0; (end - start) as usize];
            let read = tracee.read(start, &mut image);
            image.truncate(read);
            return Some(image);
        }
        path.starts_with('/')
            .then(|| std::fs::read(path).ok())
            .flatten()
    }

    fn module(&mut self, tracee: &Tracee, path: &str, start: u64, end: u64) -> Option<(u64, u64)> {
        if let Some(known) = self.tables.get(path) {
            return *known;
        }
        let made = Self::image(tracee, path, start, end)
            .and_then(|image| table(&image).ok())
            .map(|bytes| {
                let at = self.arena.len();
                self.arena.extend_from_slice(&bytes);
                self.arena.resize(self.arena.len().next_multiple_of(8), 0);
                (at as u64, bytes.len() as u64)
            });
        self.tables.insert(path.to_owned(), made);
        made
    }

    /// The svma of a mapping's first byte: by the program header that covers its file offset.
    fn svma(&self, _tracee: &Tracee, path: &str, offset: u64) -> Option<u64> {
        use object::{Object, ObjectSegment};
        if path == "[vdso]" {
            return Some(0);
        }
        let image = std::fs::read(path).ok()?;
        let file = object::File::parse(&*image).ok()?;
        file.segments().find_map(|segment| {
            let object::SegmentFlags::Elf { p_flags, .. } = segment.flags() else {
                return None;
            };
            let (at, len) = segment.file_range();
            let page = at & !4095;
            let executable = p_flags.0 & object::elf::PF_X.0 != 0;
            (executable && page <= offset && offset < at + len)
                .then(|| (segment.address() & !4095) + (offset - page))
        })
    }

    pub(crate) fn view(&self) -> selvedge_unwind::ModuleMap<'_> {
        selvedge_unwind::ModuleMap::view(&self.map, &self.arena).unwrap()
    }

    /// An address as module and offset, for messages.
    pub(crate) fn name(&self, address: u64) -> String {
        let address = address & !selvedge_unwind::EXACT_PC;
        self.code
            .iter()
            .find(|(start, end, _)| (*start..*end).contains(&address))
            .map_or_else(
                || format!("{address:#x}"),
                |(_, _, path)| {
                    let base = self
                        .code
                        .iter()
                        .find(|(_, _, other)| other == path)
                        .map_or(0, |first| first.0);
                    format!(
                        "{address:#x} {}+text+{:#x}",
                        path.rsplit('/').next().unwrap_or(""),
                        address - base
                    )
                },
            )
    }
}
