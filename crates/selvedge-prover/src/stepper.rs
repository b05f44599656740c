//! Steps through all threads of a program, keeps their shadow stacks, and interrupts the instructions that are chosen.
//!
//! A thread gets signals from when the profiler has made a timer for it until that timer is deleted: the signal, its value
//! and the timer's number are seen in the system call. What its timers send by themselves is not delivered.

use crate::choice::Choice;
use crate::injection::{self, Outcome};
use crate::instruction::{Flow, LONGEST, flow};
use crate::launch::Launched;
use crate::modules::Modules;
use crate::report::{Finding, Findings};
use crate::shadow::Shadow;
use crate::tracee::{self, Event, Going, Registers, SIGNAL_INFO, SignalInfo, Tracee};
use crate::verdict::judge;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the user has asked for an end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends the proof: what was found so far is reported. May be called in a signal handler.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// What a proof does.
#[derive(Debug)]
pub struct Settings {
    /// Times that each instruction is interrupted.
    pub visits: usize,
    /// Functions that are interrupted always.
    pub windows: Vec<String>,
    /// Steps, at most.
    pub max_steps: u64,
    /// The library that is proved instead of the command. It makes no timers: every thread gets signals. It may take its
    /// time to get ready: until then it runs at full speed.
    pub library: Option<PathBuf>,
}

/// The signal that a profiler's timer would send.
#[derive(Clone, Copy, Debug)]
struct Template {
    signal: i32,
    timer: i32,
    info: SignalInfo,
}

/// `si_code` of a timer's signal.
const SI_TIMER: i32 = -2;

impl Template {
    fn new(signal: i32, timer: i32, value: u64) -> Self {
        let mut info = [0; SIGNAL_INFO];
        info[0..4].copy_from_slice(&signal.to_le_bytes());
        info[8..12].copy_from_slice(&SI_TIMER.to_le_bytes());
        info[16..20].copy_from_slice(&timer.to_le_bytes());
        info[24..32].copy_from_slice(&value.to_le_bytes());
        Self {
            signal,
            timer,
            info,
        }
    }

    /// Whether a signal is one that this timer has sent.
    fn has_sent(&self, info: &SignalInfo) -> bool {
        [0..4, 8..12, 24..32]
            .into_iter()
            .all(|part| info[part.clone()] == self.info[part])
    }
}

/// A thread of the program.
#[derive(Debug)]
struct Thread {
    tracee: Tracee,
    shadow: Shadow,
    /// At its last stop.
    registers: Registers,
    /// What the instruction there can do.
    flow: Flow,
    /// The signal that is being delivered; 0: none.
    delivered: i32,
    /// Whether our signal was queued, to interrupt it where it stands.
    queued: bool,
}

/// A proof that goes on.
#[derive(Debug)]
pub struct Stepper {
    launched: Launched,
    settings: Settings,
    threads: HashMap<i32, Thread>,
    templates: HashMap<i32, Template>,
    code: HashMap<u64, Flow>,
    modules: Modules,
    choice: Choice,
    findings: Findings,
    status: Option<i32>,
    first_ended: bool,
    /// Whether the program has begun.
    begun: bool,
    progress: fn(&Findings),
}

impl Stepper {
    /// Of a program that is about to begin. `progress` is called now and then.
    #[must_use]
    pub fn new(launched: Launched, settings: Settings, progress: fn(&Findings)) -> Self {
        Self {
            launched,
            threads: HashMap::new(),
            templates: HashMap::new(),
            code: HashMap::new(),
            modules: Modules::default(),
            choice: Choice::new(settings.visits),
            findings: Findings::default(),
            status: None,
            first_ended: false,
            begun: false,
            progress,
            settings,
        }
    }

    /// Steps to the end of the program, or as far as the settings say. Gives back the findings, the program's status if it
    /// came to its end, and the process that was started first.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or the program has no time to begin.
    pub fn run(mut self) -> io::Result<(Findings, Option<i32>, Child)> {
        let leader = self.launched.tracee;
        let first = self.launched.first.id() as i32;
        while let Some((tracee, event)) = tracee::wait_for_any()? {
            if let Event::Ended(status) = event {
                self.threads.remove(&tracee.0);
                self.templates.remove(&tracee.0);
                if tracee == leader {
                    self.status = Some(status);
                }
                self.first_ended |= tracee.0 == first;
                if self.threads.is_empty() && self.first_ended {
                    break;
                }
                continue;
            }
            if self.findings.steps >= self.settings.max_steps || is_interrupted() {
                self.findings.cut = true;
                leader.kill();
                continue;
            }
            match self.take(tracee, event) {
                // Ended meanwhile: an event of its own says so.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
        if !self.begun {
            return Err(io::Error::other("the program did not begin"));
        }
        self.findings.profiler = self.launched.mailbox.name();
        self.findings.instructions = self.choice.instructions();
        self.findings.name_functions(leader, &mut self.modules);
        let status = self.status.filter(|_| !self.findings.cut);
        Ok((self.findings, status, self.launched.first))
    }

    fn take(&mut self, tracee: Tracee, event: Event) -> io::Result<()> {
        match event {
            Event::Executed => {
                self.begun = true;
                self.threads.clear();
                self.templates.clear();
                self.choice.begin_anew();
                self.launched.mailbox.forget_ready();
                self.code_has_changed(tracee);
                self.begin(tracee)?;
            }
            Event::Stopped if !self.threads.contains_key(&tracee.0) => self.begin(tracee)?,
            Event::Trapped if self.threads.contains_key(&tracee.0) => return self.stepped(tracee),
            Event::Signal(signal) => return self.signalled(tracee, signal),
            _ => {}
        }
        // What is not the program yet goes on until it is.
        let going = if self.threads.contains_key(&tracee.0) {
            Going::Step
        } else {
            Going::On
        };
        tracee.go(going, 0)
    }

    /// A signal is about to be delivered to a thread.
    fn signalled(&mut self, tracee: Tracee, signal: i32) -> io::Result<()> {
        let info = tracee.signal_info()?;
        let timers = self.templates.values();
        let own = match self.settings.library {
            Some(_) => signal == libc::SIGPROF,
            None => timers.into_iter().any(|timer| timer.has_sent(&info)),
        };
        let Some(mut thread) = self.threads.remove(&tracee.0) else {
            return tracee.go(Going::Step, signal);
        };
        // What a timer has sent by itself is not delivered.
        let queued = own && std::mem::take(&mut thread.queued);
        thread.delivered = if own { 0 } else { signal };
        let ended = match queued {
            true => self.interrupt(&mut thread)?,
            false => None,
        };
        self.go_on(thread, ended)
    }

    /// Lets a thread go on, if it has not ended.
    fn go_on(&mut self, thread: Thread, ended: Option<i32>) -> io::Result<()> {
        let (tracee, signal) = (thread.tracee, thread.delivered);
        if let Some(status) = ended {
            self.templates.remove(&tracee.0);
            if tracee == self.launched.tracee {
                self.status = Some(status);
            }
            return Ok(());
        }
        self.threads.insert(tracee.0, thread);
        tracee.go(Going::Step, signal)
    }

    /// A thread begins.
    fn begin(&mut self, tracee: Tracee) -> io::Result<()> {
        let registers = tracee.registers()?;
        let flow = self.flow(tracee, registers.rip);
        self.threads.insert(
            tracee.0,
            Thread {
                tracee,
                shadow: Shadow::starting(registers.rsp),
                registers,
                flow,
                delivered: 0,
                queued: false,
            },
        );
        Ok(())
    }

    fn flow(&mut self, tracee: Tracee, pc: u64) -> Flow {
        *self.code.entry(pc).or_insert_with(|| {
            let mut code = [0; LONGEST];
            flow(tracee.read(pc, &mut code))
        })
    }

    fn code_has_changed(&mut self, tracee: Tracee) {
        self.code.clear();
        self.modules.refresh(tracee);
        if !self.settings.windows.is_empty() {
            let windows = self.modules.ranges(tracee, &self.settings.windows);
            self.findings.windows = self.findings.windows.max(windows.len());
            self.choice.set_windows(windows);
        }
    }

    /// A thread has executed an instruction, or is at the start of a handler.
    fn stepped(&mut self, tracee: Tracee) -> io::Result<()> {
        let now = tracee.registers()?;
        let Some(mut thread) = self.threads.remove(&tracee.0) else {
            return Ok(());
        };
        let before = std::mem::replace(&mut thread.registers, now);
        let delivered = std::mem::take(&mut thread.delivered);
        self.findings.steps += 1;
        if self.findings.steps.is_multiple_of(1 << 14) {
            (self.progress)(&self.findings);
        }
        // The kernel calls a handler with the signal's number and the context that it has put above the restorer.
        let in_handler = delivered != 0
            && now.rdi == u64::from(delivered.unsigned_abs())
            && now.rdx == now.rsp.wrapping_add(8);
        let system_call =
            (thread.flow == Flow::SystemCall && !in_handler).then_some(before.rax as i64);
        if in_handler {
            enter_handler(&mut thread);
        } else {
            self.execute(&mut thread, before)?;
            self.let_library_get_ready(&mut thread)?;
        }
        let now = thread.registers;
        thread.flow = self.flow(tracee, now.rip);
        // In a system call that is to be restarted, the kernel moves the thread back as it delivers a signal.
        let restarts = system_call.is_some() && (-516..=-512).contains(&(now.rax as i64));
        if in_handler {
            // The kernel delivers no signal at this stop: it is queued.
            self.queue(&mut thread)?;
        }
        let ended = match restarts || in_handler {
            true => None,
            false => self.interrupt(&mut thread)?,
        };
        self.go_on(thread, ended)
    }

    /// Follows an executed instruction.
    fn execute(&mut self, thread: &mut Thread, before: Registers) -> io::Result<()> {
        let (tracee, now) = (thread.tracee, thread.registers);
        match thread.flow {
            Flow::Call if now.rsp == before.rsp.wrapping_sub(8) => {
                let address = tracee.word(now.rsp).unwrap_or(0);
                thread.shadow.call(now.rsp, address);
                return Ok(());
            }
            Flow::SystemCall => match before.rax as i64 {
                libc::SYS_rt_sigreturn => {
                    thread.shadow.signal_return(now.rsp);
                    return Ok(());
                }
                libc::SYS_mmap
                | libc::SYS_munmap
                | libc::SYS_mremap
                | libc::SYS_mprotect
                | libc::SYS_pkey_mprotect
                | libc::SYS_shmat => {
                    self.code_has_changed(tracee);
                }
                libc::SYS_timer_create if now.rax == 0 => self.note_timer(tracee, before),
                libc::SYS_timer_delete => {
                    let timer = before.rdi as i32;
                    self.templates.retain(|_, template| template.timer != timer);
                }
                _ => {}
            },
            _ => {}
        }
        thread.shadow.executed(thread.flow, now.rsp);
        if let Some((slot, address)) = thread.shadow.taken()
            && thread.flow == Flow::Push
            && now.rsp == slot
            && tracee.word(slot) == Some(address)
        {
            thread.shadow.call(slot, address);
        }
        Ok(())
    }

    /// Where the thread has just called a function of the library that is proved, and that is not ready yet: runs that
    /// function to its return.
    fn let_library_get_ready(&mut self, thread: &mut Thread) -> io::Result<()> {
        let (tracee, called) = (thread.tracee, thread.registers);
        let inside = self.settings.library.as_deref().is_some_and(|library| {
            thread.flow == Flow::Call && self.modules.is_in(called.rip, library)
        });
        if !inside || self.launched.mailbox.is_ready() {
            return Ok(());
        }
        let Some(back) = tracee.word(called.rsp) else {
            return Ok(());
        };
        tracee.set_breakpoint(Some(back))?;
        let mut signal = 0;
        loop {
            tracee.go(Going::On, signal)?;
            signal = 0;
            match tracee.wait()? {
                Event::Trapped if tracee.registers()?.rsp == called.rsp.wrapping_add(8) => break,
                Event::Signal(own) => signal = own,
                Event::Ended(_) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
                _ => {}
            }
        }
        tracee.set_breakpoint(None)?;
        thread.registers = tracee.registers()?;
        thread.shadow.executed(Flow::Other, thread.registers.rsp);
        self.code_has_changed(tracee);
        Ok(())
    }

    /// A timer was made: for which thread, and with which signal?
    fn note_timer(&mut self, tracee: Tracee, call: Registers) {
        const SIGEV_THREAD_ID: i32 = 4;
        let number = |bytes: [u8; 4]| i32::from_le_bytes(bytes);
        let word = |offset: u64| tracee.bytes::<4>(call.rsi.wrapping_add(offset)).map(number);
        let (Some(value), Some(signal), Some(notify), Some(tid), Some(timer)) = (
            tracee.word(call.rsi),
            word(8),
            word(12),
            word(16),
            tracee.bytes::<4>(call.rdx).map(number),
        ) else {
            return;
        };
        if notify == SIGEV_THREAD_ID {
            self.templates
                .insert(tid, Template::new(signal, timer, value));
        }
    }

    /// The signal by which a thread is to be interrupted where it stands, if that is chosen.
    fn chosen(&mut self, thread: &Thread) -> io::Result<Option<Template>> {
        if thread.delivered != 0
            || !self
                .choice
                .wants(thread.registers.rip, thread.shadow.caller())
            || !self.launched.mailbox.is_ready()
        {
            return Ok(None);
        }
        let template = match self.templates.get(&thread.tracee.0) {
            Some(template) => *template,
            None if self.settings.library.is_some() => Template::new(libc::SIGPROF, 0, 0),
            None => return Ok(None),
        };
        if thread.tracee.signal_mask()? >> (template.signal - 1) & 1 != 0 {
            self.findings.blocked += 1;
            return Ok(None);
        }
        Ok(Some(template))
    }

    /// Queues the signal instead.
    fn queue(&mut self, thread: &mut Thread) -> io::Result<()> {
        if let Some(template) = self.chosen(thread)? {
            let process = self.launched.tracee.0;
            thread.queued = true;
            thread
                .tracee
                .queue_signal(process, template.signal, &template.info)?;
        }
        Ok(())
    }

    /// Interrupts a thread where it stands, if that is chosen. Gives back its status if it ended.
    fn interrupt(&mut self, thread: &mut Thread) -> io::Result<Option<i32>> {
        let Some(template) = self.chosen(thread)? else {
            return Ok(None);
        };
        let (tracee, registers) = (thread.tracee, thread.registers);
        let caller = thread.shadow.caller();
        self.choice.note(registers.rip, caller);
        self.findings.samples += 1;
        let outcome = injection::inject(
            tracee,
            registers,
            template.signal,
            &template.info,
            &self.launched.mailbox,
            self.findings.samples,
            thread.shadow.is_on_first(),
        );
        let outcome = match outcome {
            // It was killed, or another thread has ended the process: nothing came of the signal.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                self.launched.mailbox.withdraw();
                self.findings.samples -= 1;
                return Err(error);
            }
            other => other?,
        };
        let Outcome {
            recorded,
            stack,
            changed,
            pending,
            ended,
        } = outcome;
        if ended.is_some() {
            self.findings.samples -= 1;
            return Ok(ended);
        }
        if let Some(signal) = pending {
            let info = tracee.signal_info()?;
            if !template.has_sent(&info) {
                thread.delivered = signal;
            }
        }
        self.findings.stack = self.findings.stack.max(stack.unwrap_or(0));
        let mut truth = Vec::new();
        thread.shadow.frames(registers.rip, &mut truth);
        let recorded = recorded.unwrap_or_default();
        let finding = Finding {
            verdict: judge(&recorded, &truth),
            registers,
            recorded,
            truth,
            changed,
        };
        self.findings.note(finding, tracee, &mut self.modules);
        Ok(None)
    }
}

/// The kernel has called a handler: what it interrupted, and the alternate stack, are in the frame that it made.
fn enter_handler(thread: &mut Thread) {
    // Of `ss_sp`, `ss_size`, `rsp` and `rip` in a `ucontext`, which lies above the restorer.
    const STACK: u64 = 16;
    const STACK_SIZE: u64 = 32;
    const SP: u64 = 160;
    const IP: u64 = 168;
    let (tracee, sp) = (thread.tracee, thread.registers.rsp);
    let word = |offset: u64| tracee.word(sp.wrapping_add(offset)).unwrap_or(0);
    let alternate = word(8 + STACK);
    let alternate = alternate..alternate.saturating_add(word(8 + STACK_SIZE));
    thread
        .shadow
        .signal(word(8 + IP), word(8 + SP), (sp, word(0)), alternate);
}
