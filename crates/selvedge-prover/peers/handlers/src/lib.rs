//! A library to be preloaded into a program: its handler of `SIGPROF` walks the interrupted stack by the unwinder that
//! `HANDLERS_WALKER` names, and shows what it found in the mailbox that `STEPPER_MAILBOX` names.
//!
//! What an unwinder needs to know of modules is prepared before the program begins; libraries that it loads later are known
//! to libgcc and libunwind only.

mod frame_pointers;
#[cfg(feature = "framehop")]
mod framehop;
mod libgcc;
mod libunwind;
mod mailbox;
mod memory;
mod modules;
mod planted;

use mailbox::Mailbox;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

/// What a handler gets.
pub(crate) struct Interrupted {
    context: *mut libc::ucontext_t,
}

impl Interrupted {
    fn register(&self, number: c_int) -> u64 {
        // SAFETY: the kernel's, live until the handler returns; the numbers are those of the C library.
        unsafe { (*self.context).uc_mcontext.gregs[number as usize] as u64 }
    }

    pub(crate) fn ip(&self) -> u64 {
        self.register(libc::REG_RIP)
    }

    pub(crate) fn sp(&self) -> u64 {
        self.register(libc::REG_RSP)
    }

    pub(crate) fn bp(&self) -> u64 {
        self.register(libc::REG_RBP)
    }

    pub(crate) fn context(&self) -> *mut c_void {
        self.context.cast()
    }

    pub(crate) fn registers(&self) -> selvedge_arch::Registers {
        selvedge_arch::Registers {
            ip: self.ip(),
            sp: self.sp(),
            bp: self.bp(),
            bx: self.register(libc::REG_RBX),
            r12: self.register(libc::REG_R12),
            r13: self.register(libc::REG_R13),
            r14: self.register(libc::REG_R14),
            r15: self.register(libc::REG_R15),
            scratch: [
                libc::REG_RAX,
                libc::REG_RDX,
                libc::REG_RCX,
                libc::REG_RSI,
                libc::REG_RDI,
                libc::REG_R8,
                libc::REG_R9,
                libc::REG_R10,
                libc::REG_R11,
            ]
            .map(|number| self.register(number)),
        }
    }
}

/// An unwinder: walks from what was interrupted, writes frames leaf first, and gives back their number.
pub(crate) type Walker = Box<dyn Fn(&Interrupted, &mut [u64]) -> usize + Send + Sync>;

static STATE: OnceLock<(Mailbox, Walker)> = OnceLock::new();

#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = at_start;

extern "C" fn at_start() {
    let (Some(path), Some(name)) = (
        std::env::var_os("STEPPER_MAILBOX"),
        std::env::var("HANDLERS_WALKER").ok(),
    ) else {
        return;
    };
    let Some(walker) = walker(&name) else {
        eprintln!("handlers: there is no walker {name}");
        std::process::exit(2);
    };
    let Some(mailbox) = Mailbox::open(&path) else {
        return;
    };
    mailbox.set_name(&name);
    if STATE.set((mailbox, walker)).is_err() {
        return;
    }
    // SAFETY: all integers and an empty set.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: an action that outlives the call, and a handler that lives as long as the program.
    unsafe {
        libc::sigfillset(&mut action.sa_mask);
        libc::sigaction(libc::SIGPROF, &action, std::ptr::null_mut());
    }
    if let Some((mailbox, _)) = STATE.get() {
        mailbox.get_ready();
    }
}

fn walker(name: &str) -> Option<Walker> {
    match name {
        "libgcc" => Some(libgcc::walker()),
        "libunwind" => libunwind::walker(),
        #[cfg(feature = "framehop")]
        "framehop" => Some(framehop::walker()),
        "frame-pointers" => Some(frame_pointers::walker()),
        _ => planted::walker(name.strip_prefix("planted-")?),
    }
}

extern "C" fn handler(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the address of this thread's `errno`.
    let errno = unsafe { *libc::__errno_location() };
    let interrupted = Interrupted {
        context: context.cast(),
    };
    if let Some((mailbox, walker)) = STATE.get() {
        let mut frames = [0; mailbox::FRAMES];
        let count = walker(&interrupted, &mut frames);
        mailbox.answer(&frames[..count]);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}
