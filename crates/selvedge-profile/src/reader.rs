//! The reader: finds processes and threads, publishes what handlers need, empties rings, counts stacks.

use crate::aggregate::{Counts, Owner};
use crate::arena::Arena;
use crate::error::{Error, Result};
use crate::image::{Image, Standing};
use crate::maps;
use crate::memory::SessionMemory;
use crate::modules::Modules;
use crate::perf::{Events, ThreadClaim};
use crate::summary::{ImageFacts, Summary};
use selvedge_sample::record::{HEADER_WORDS, Kind, REGISTER_WORDS};
use selvedge_sample::region::{
    Engine, LOSSES, Process, Region, Thread, process_state, session, unkey,
};
use selvedge_sample::target::{self, Base, Session};
use selvedge_sample::{ring, system};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// How often threads are looked for that did not announce themselves.
const DISCOVERY_PAUSE: Duration = Duration::from_millis(100);
/// A thread that has used the CPU and was asked so often to arm itself finds no room for a record.
const ASKED_IN_VAIN: u32 = 4;
/// Looks at a process elsewhere that has taken leave, after which it is taken for ended: an `exec` that fails has done so.
const LEFT_FOR_GOOD: u32 = 5;

/// How a session is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Nanoseconds of CPU time between samples.
    pub period: u64,
    /// What produces signals.
    pub engine: Engine,
    /// Signal number.
    pub signal: i32,
    /// Whether children are followed.
    pub children: bool,
}

/// What the reader knows.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) region: &'static Region,
    pub(crate) setup: Setup,
    pub(crate) started: SystemTime,
    started_clock: Instant,
    stopped_after: Option<Duration>,
    arena: Arena,
    pub(crate) modules: Modules,
    pub(crate) counts: Counts,
    images: HashMap<u32, Image>,
    /// Images of ended processes whose copied stacks wait for tables.
    closing: Vec<Image>,
    ended: Vec<ImageFacts>,
    next_serial: u32,
    events: Events,
    discovered: Instant,
    /// Threads of this process that are the profiler's own.
    own_threads: Vec<u32>,
    own_pid: u32,
    /// Threads of this process from before the session.
    own_threads_before: Vec<u32>,
    damaged_words: u64,
    /// Programs that took the place of one that was followed, and cannot be.
    outsiders: Vec<(u32, String)>,
    /// Processes in other namespaces of process ids.
    elsewhere: u32,
}

/// How an image came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// With its process, or with the recording.
    Over,
    /// Its process is another program now.
    Replaced,
}

impl Reader {
    /// Prepares a region for a session and starts recording.
    pub(crate) fn start(memory: &SessionMemory, setup: Setup, nonce: u64) -> Result<Self> {
        let region = memory.region;
        let header = &region.header;
        let relaxed = Ordering::Relaxed;
        header
            .version
            .store(selvedge_sample::region::VERSION, relaxed);
        header.signal.store(setup.signal.cast_unsigned(), relaxed);
        header.engine.store(setup.engine as u32, relaxed);
        header.children.store(u32::from(setup.children), relaxed);
        header.period.store(setup.period, relaxed);
        header.tick.store(crate::engine::tick_nanos(), relaxed);
        header.nonce.store(nonce & !0xffff, relaxed);
        header.processes_refused.store(0, relaxed);
        note_look(region);
        header
            .magic
            .store(selvedge_sample::region::MAGIC, Ordering::Release);
        header.state.store(session::RECORDING, Ordering::SeqCst);
        let modules = Modules::new(region)
            .map_err(|e| Error::os("start the thread that builds unwind tables", e))?;
        Ok(Self {
            region,
            setup,
            started: SystemTime::now(),
            started_clock: Instant::now(),
            stopped_after: None,
            arena: Arena::new(region),
            own_threads: modules.builder_tids.clone(),
            modules,
            counts: Counts::default(),
            images: HashMap::new(),
            closing: Vec::new(),
            ended: Vec::new(),
            next_serial: 0,
            events: Events::default(),
            discovered: Instant::now() - DISCOVERY_PAUSE,
            own_pid: std::process::id(),
            own_threads_before: tasks(std::process::id()).unwrap_or_default(),
            damaged_words: 0,
            outsiders: Vec::new(),
            elsewhere: 0,
        })
    }

    /// Notes that a thread is the profiler's own.
    pub(crate) fn note_own_thread(&mut self, tid: u32) {
        self.own_threads.push(tid);
    }

    /// Whether a thread is the profiler's own.
    pub(crate) fn is_own_thread(&self, tid: u32) -> bool {
        self.own_threads.contains(&tid)
    }

    /// Looks at everything once. Returns whether there was anything to do.
    pub(crate) fn turn(&mut self) -> bool {
        note_look(self.region);
        let mut busy = self.adopt();
        let tables = self.modules.collect(&mut self.arena);
        let discover = self.discovered.elapsed() >= DISCOVERY_PAUSE;
        let indices: Vec<u32> = self.images.keys().copied().collect();
        for index in indices {
            self.look_after(index, tables);
            if discover {
                self.discover(index);
            }
        }
        if discover {
            self.discovered = Instant::now();
            self.close_events();
        }
        busy |= tables;
        busy |= self.drain() > 0;
        for image in self.images.values_mut() {
            image.walk_raw(self.region, false, &mut self.counts);
        }
        if tables {
            self.close(false);
        }
        busy
    }

    /// Walks the copied stacks of ended processes, as far as their tables are there; all, if there will be no better time.
    fn close(&mut self, now: bool) {
        self.closing.retain_mut(|image| {
            image.update_own_map(&self.modules);
            image.walk_raw(self.region, now, &mut self.counts);
            image.has_raw()
        });
    }

    /// Starts following processes that have attached, in the order in which they did.
    fn adopt(&mut self) -> bool {
        let used = self.region.header.processes_used.load(Ordering::Relaxed);
        let mut new: Vec<(u64, u32, &Process)> = (0..used)
            .filter(|index| !self.images.contains_key(index))
            .filter_map(|index| Some((index, self.region.process(index)?)))
            // Acquire: pairs with `attach`.
            .filter(|(_, process)| process.state.load(Ordering::Acquire) == process_state::LIVE)
            .map(|(index, process)| (process.ticket.load(Ordering::Relaxed), index, process))
            .collect();
        new.sort_unstable_by_key(|&(ticket, index, _)| (ticket, index));
        for &(ticket, index, process) in &new {
            let pid = process.pid.load(Ordering::Relaxed);
            let image = Image::adopt(self.region, process, index, self.next_serial, pid);
            self.next_serial += 1;
            // An `exec` keeps the process id and begins a new image: the one before is over.
            let is_before =
                |i: &&Image| i.pid == pid && i.ticket < ticket && i.standing != Standing::Elsewhere;
            let before: Vec<u32> = match image.standing {
                Standing::Elsewhere => Vec::new(),
                _ => self
                    .images
                    .values()
                    .filter(is_before)
                    .map(|i| i.index)
                    .collect(),
            };
            for old in before {
                let cpu = process.cpu_start.load(Ordering::Relaxed);
                self.finish(old, Some(cpu), Ending::Replaced);
            }
            if image.standing == Standing::Elsewhere {
                self.elsewhere += 1;
            } else {
                // It had not loaded the agent yet when it was taken for one that cannot.
                self.outsiders.retain(|&(outsider, _)| outsider != pid);
            }
            self.images.insert(index, image);
            self.refresh(index);
        }
        !new.is_empty()
    }

    /// Reads an image's mappings and publishes its module map.
    fn refresh(&mut self, index: u32) {
        let (Some(image), Some(process)) =
            (self.images.get_mut(&index), self.region.process(index))
        else {
            return;
        };
        image.scan(self.region, process, &mut self.modules, &mut self.counts);
        image.publish(self.region, process, &self.modules, &mut self.arena);
        image.publish_stack_bounds(self.region);
    }

    fn look_after(&mut self, index: u32, tables: bool) {
        let (Some(image), Some(process)) =
            (self.images.get_mut(&index), self.region.process(index))
        else {
            return;
        };
        if image.wants_scan(process) {
            image.scan(self.region, process, &mut self.modules, &mut self.counts);
            image.publish(self.region, process, &self.modules, &mut self.arena);
        } else if tables {
            image.publish(self.region, process, &self.modules, &mut self.arena);
        }
        if image.is_incomplete() {
            process.raw_budget.fetch_max(64, Ordering::Relaxed);
        }
        if image.publish_stack_bounds(self.region) && image.may_scan_for_stacks() {
            image.scan(self.region, process, &mut self.modules, &mut self.counts);
            image.publish(self.region, process, &self.modules, &mut self.arena);
            image.publish_stack_bounds(self.region);
        }
        image.answer(process);
        image.reclaim(self.region, &mut self.arena);
        if process.engine.load(Ordering::Relaxed) != Engine::Perf as u32
            || image.standing != Standing::Here
            || process.sandboxed.load(Ordering::Relaxed) != 0
        {
            return;
        }
        for at in image.threads(self.region) {
            let Some(claim) = self.region.thread(at).and_then(claim_of) else {
                continue;
            };
            if !self.events.has(claim)
                && let Err(error) = self.events.add(claim, self.setup.period, self.setup.signal)
                && error.raw_os_error() != Some(libc::ESRCH)
            {
                process
                    .engine_error
                    .store(error.raw_os_error().unwrap_or(0), Ordering::Relaxed);
            }
        }
    }

    /// Closes the events of threads that have ended.
    fn close_events(&mut self) {
        if self.events.is_empty() {
            return;
        }
        let region = self.region;
        let threads = region.used_threads().filter_map(|at| region.thread(at));
        self.events.keep(&threads.filter_map(claim_of).collect());
    }

    /// Finds threads without a record and records without a thread, and processes that have ended.
    fn discover(&mut self, index: u32) {
        let (Some(image), Some(process)) =
            (self.images.get_mut(&index), self.region.process(index))
        else {
            return;
        };
        let pid = image.pid;
        let left_at = process.cpu_end.load(Ordering::Relaxed);
        match image.standing {
            Standing::Here => {}
            Standing::Gone => return self.finish(index, None, Ending::Replaced),
            Standing::Elsewhere => {
                image.left = if left_at == 0 { 0 } else { image.left + 1 };
                if image.left > LEFT_FOR_GOOD {
                    self.finish(index, Some(left_at), Ending::Over);
                }
                return;
            }
        }
        // Records first: a thread that gets its record meanwhile is among those that are alive.
        let records: Vec<_> = image
            .threads(self.region)
            .filter_map(|at| {
                let thread = self.region.thread(at)?;
                let key = thread.key.load(Ordering::Acquire);
                let (tid, generation) = claim_of(thread)?;
                (unkey(key)?.1 == tid).then_some((thread, key, tid, generation))
            })
            .collect();
        let alive = match tasks(pid) {
            Ok(alive) => alive,
            Err(error) if is_gone(&error) => return self.finish(index, None, Ending::Over),
            // Too many open files, or no memory: it is looked at again.
            Err(_) => return,
        };
        // After leave was taken, what the process uses is another program's, unless the `exec` fails.
        if left_at != 0 && maps::holds_session(pid) == Some(false) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            self.outsiders.push((pid, name.trim_end().to_string()));
            return self.finish(index, Some(left_at), Ending::Replaced);
        }
        // In a sandbox, the signal is the program's alone.
        let sandboxed = process.sandboxed.load(Ordering::Relaxed) != 0;
        if self.stopped_after.is_some() || left_at != 0 || sandboxed {
            return;
        }
        if let Some(cpu) = process_cpu(pid, self.own_pid, &self.own_threads) {
            image.cpu = image.cpu.max(cpu);
        }
        let session = Session {
            region: self.region,
            process_index: index,
            process,
        };
        let itimer = process.engine.load(Ordering::Relaxed) == Engine::Itimer as u32;
        for &tid in &alive {
            if target::find_thread(self.region, index, tid).is_some() {
                image.strangers.remove(&tid);
                continue;
            }
            if pid == self.own_pid {
                if self.own_threads.contains(&tid) {
                    continue;
                }
                let base = if self.own_threads_before.contains(&tid) {
                    Base::Now
                } else {
                    Base::Birth
                };
                if target::start_thread(session, tid, base).is_none()
                    && image.strangers.insert(tid, (0, 0)).is_none()
                {
                    target::note_refused(session);
                }
                continue;
            }
            if itimer {
                continue;
            }
            // It arms itself when asked, by a signal; only one that is using the CPU is asked, since a signal would
            // interrupt a system call that it sleeps in.
            let used = schedstat(pid, tid);
            let (before, asked) = image.strangers.insert(tid, (used, 0)).unwrap_or((used, 0));
            if used <= before {
                image.strangers.insert(tid, (used, asked));
                continue;
            }
            image.strangers.insert(tid, (used, asked + 1));
            if asked == ASKED_IN_VAIN {
                target::note_refused(session);
            }
            // The process may have ended since, and another have its id.
            if asked < ASKED_IN_VAIN || asked.is_power_of_two() {
                let nonce = self.region.header.nonce.load(Ordering::Relaxed);
                if maps::holds_session(pid) == Some(true) {
                    crate::engine::queue_signal(pid, tid, self.setup.signal, nonce);
                }
            }
        }
        let mut orders = false;
        for (thread, key, tid, generation) in records {
            if alive.contains(&tid) {
                if thread.samples.load(Ordering::Relaxed) > 0 {
                    note_name(&mut self.counts, image.serial, pid, tid);
                }
            } else if pid == self.own_pid {
                target::disarm(thread);
                target::free(thread, key);
            } else if thread.bury.swap(generation, Ordering::AcqRel) != generation {
                orders = true;
            }
        }
        if orders {
            process.orders.store(1, Ordering::Release);
        }
    }

    /// Empties all rings. Returns the number of records.
    fn drain(&mut self) -> usize {
        let mut records = 0;
        for at in self.region.used_threads() {
            let (images, counts) = (&mut self.images, &mut self.counts);
            let region = self.region;
            let taken = ring::consume(region, at, |head, words| {
                let Some((process, tid)) = words.get(1).and_then(|&key| unkey(key)) else {
                    return;
                };
                let Some(image) = images.get_mut(&process) else {
                    return;
                };
                match head.kind {
                    Kind::Stack if words.len() >= 5 => {
                        image.count(tid, head.end, words, &words[5..], counts)
                    }
                    Kind::Raw if words.len() >= HEADER_WORDS + REGISTER_WORDS => {
                        image.keep_raw(region, words, counts)
                    }
                    Kind::Name if words.len() == 4 => {
                        let name: Vec<u8> = words[2..]
                            .iter()
                            .flat_map(|word| word.to_le_bytes())
                            .collect();
                        set_name(counts, image.serial, tid, &name);
                    }
                    _ => {}
                }
            });
            match taken {
                Ok(number) => records += number,
                Err(words) => self.damaged_words += words,
            }
        }
        records
    }

    /// A process has ended, with this CPU time if it is known.
    pub(crate) fn process_ended(&mut self, pid: u32, cpu: Option<u64>) {
        self.adopt();
        let indices: Vec<u32> = self
            .images
            .values()
            .filter(|i| i.pid == pid && i.standing != Standing::Elsewhere)
            .map(|i| i.index)
            .collect();
        for index in indices {
            self.finish(index, cpu, Ending::Over);
        }
    }

    fn finish(&mut self, index: u32, cpu: Option<u64>, ending: Ending) {
        self.drain();
        let Some(process) = self.region.process(index) else {
            return;
        };
        let Some(mut image) = self.images.remove(&index) else {
            return;
        };
        let (modules, counts) = (&mut self.modules, &mut self.counts);
        match ending {
            Ending::Over => image.scan(self.region, process, modules, counts),
            Ending::Replaced => image.scan_noted(self.region, process, modules, counts),
        };
        // After the end of the recording, it used CPU time that nobody asked about.
        if self.stopped_after.is_none() {
            image.cpu = cpu
                .unwrap_or(image.cpu)
                .max(process.cpu_end.load(Ordering::Relaxed));
        }
        for at in image.threads(self.region) {
            if let Some(thread) = self.region.thread(at) {
                if image.pid == self.own_pid {
                    target::disarm(thread);
                }
                // The timers of an ended process, and of one that has called `exec`, are gone.
                thread.armed.store(0, Ordering::Relaxed);
                thread.key.store(0, Ordering::SeqCst);
            }
        }
        self.close_events();
        self.ended.push(facts(&image, process));
        image.release(&mut self.arena);
        if image.has_raw() {
            self.closing.push(image);
        }
        // Release: pairs with the next claim's Acquire.
        process.state.store(process_state::FREE, Ordering::Release);
    }

    /// Ends recording; what was recorded stays to be read.
    pub(crate) fn stop(&mut self) {
        if self.stopped_after.is_some() {
            return;
        }
        self.region
            .header
            .state
            .store(session::STOPPED, Ordering::SeqCst);
        self.stopped_after = Some(self.started_clock.elapsed());
        self.events.clear();
        for (index, image) in &mut self.images {
            if image.standing == Standing::Here
                && let Some(cpu) = process_cpu(image.pid, self.own_pid, &self.own_threads)
            {
                image.cpu = image.cpu.max(cpu);
            }
            if image.pid == self.own_pid {
                for at in image.threads(self.region) {
                    if let Some(thread) = self.region.thread(at) {
                        let key = thread.key.load(Ordering::Acquire);
                        target::disarm(thread);
                        target::free(thread, key);
                    }
                }
                let itimer = Engine::Itimer as u32;
                if self
                    .region
                    .process(*index)
                    .is_some_and(|p| p.engine.load(Ordering::Relaxed) == itimer)
                {
                    let _ = system::setitimer_prof(0);
                }
            }
        }
    }

    /// Reads everything that is left and ends all images; copied stacks may be left to [`Self::settle`].
    pub(crate) fn finish_all(&mut self) {
        self.turn();
        let indices: Vec<u32> = self.images.keys().copied().collect();
        for index in indices {
            self.finish(index, None, Ending::Over);
        }
    }

    /// Walks the copied stacks that are left, as soon as all tables are built.
    pub(crate) fn settle(&mut self) {
        if !self.closing.is_empty() {
            self.modules.collect_all(&mut self.arena);
            self.close(true);
        }
    }

    /// Counts and facts as of now.
    pub(crate) fn summary(&mut self) -> Summary {
        self.turn();
        let mut images = self.ended.clone();
        for (index, image) in &mut self.images {
            if self.stopped_after.is_none()
                && image.standing == Standing::Here
                && let Some(cpu) = process_cpu(image.pid, self.own_pid, &self.own_threads)
            {
                image.cpu = image.cpu.max(cpu);
            }
            if let Some(process) = self.region.process(*index) {
                images.push(facts(image, process));
            }
        }
        images.sort_by_key(|image| image.serial);
        Summary {
            images,
            period: self.setup.period,
            engine: self.setup.engine,
            tick: self.region.header.tick.load(Ordering::Relaxed),
            duration: self
                .stopped_after
                .unwrap_or_else(|| self.started_clock.elapsed()),
            user_only: self.events.user_only,
            damaged_words: self.damaged_words,
            elsewhere: self.elsewhere,
            abandoned: self.stopped_after.is_none()
                && self.region.header.state.load(Ordering::Relaxed) == session::STOPPED,
            outsiders: self
                .outsiders
                .iter()
                .map(|(pid, name)| format!("{name} ({pid})"))
                .collect(),
            processes_refused: self.region.header.processes_refused.load(Ordering::Relaxed),
        }
    }

    /// Samples recorded so far.
    pub(crate) fn samples(&self) -> u64 {
        let live = self
            .images
            .keys()
            .filter_map(|&index| self.region.process(index));
        let live: u64 = live
            .map(|process| process.recorded.count.load(Ordering::Relaxed))
            .sum();
        self.ended.iter().map(|image| image.samples).sum::<u64>() + live
    }
}

fn facts(image: &Image, process: &Process) -> ImageFacts {
    let relaxed = Ordering::Relaxed;
    let mut lost = [(0, 0); LOSSES];
    for (sum, tally) in lost.iter_mut().zip(&process.lost) {
        *sum = (tally.count.load(relaxed), tally.weight.load(relaxed));
    }
    ImageFacts {
        serial: image.serial,
        pid: image.pid,
        name: image.name.clone(),
        command: image.command.clone(),
        engine: Engine::from_code(process.engine.load(relaxed)),
        engine_error: process.engine_error.load(relaxed),
        signal_shared: process.signal_shared.load(relaxed) != 0,
        sandboxed: process.sandboxed.load(relaxed) != 0,
        threads: process.threads.load(relaxed),
        threads_refused: process.threads_refused.load(relaxed),
        cpu: match image.standing {
            Standing::Here | Standing::Gone => {
                image.cpu.saturating_sub(process.cpu_start.load(relaxed))
            }
            Standing::Elsewhere => told_cpu(process),
        },
        delivered: process.delivered.load(relaxed),
        samples: process.recorded.count.load(relaxed),
        recorded: process.recorded.weight.load(relaxed),
        blocked: process.blocked.load(relaxed),
        unsampled_threads: process.unsampled.load(relaxed),
        lost,
    }
}

/// The claim of a thread record, if it is in use.
fn claim_of(thread: &Thread) -> Option<ThreadClaim> {
    let generation = thread.generation.load(Ordering::Acquire);
    let (_, tid) = unkey(thread.key.load(Ordering::Acquire))?;
    // Claimed anew in between: the next look sees it.
    (thread.generation.load(Ordering::Acquire) == generation).then_some((tid, generation))
}

/// The threads of a process.
fn tasks(pid: u32) -> std::io::Result<Vec<u32>> {
    let mut tasks = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        tasks.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok()),
        );
    }
    Ok(tasks)
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Tells targets that the reader is alive.
fn note_look(region: &Region) {
    let now = system::clock(system::MONOTONIC_CLOCK).unwrap_or(0);
    region.header.seen.store(now, Ordering::Relaxed);
}

/// CPU time of a process that only told of it: at its end, or that of its samples.
fn told_cpu(process: &Process) -> u64 {
    let relaxed = Ordering::Relaxed;
    let lost: u64 = process
        .lost
        .iter()
        .map(|tally| tally.weight.load(relaxed))
        .sum();
    let sampled = process.recorded.weight.load(relaxed) + process.blocked.load(relaxed) + lost;
    let whole = process
        .cpu_end
        .load(relaxed)
        .saturating_sub(process.cpu_start.load(relaxed));
    whole.max(sampled)
}

/// CPU time of a process, without that of the profiler's own threads in it.
fn process_cpu(pid: u32, own_pid: u32, own_threads: &[u32]) -> Option<u64> {
    let all = system::clock(system::process_clock(pid))?;
    let ours = |&tid: &u32| system::clock(system::thread_clock(tid));
    let own: u64 = if pid == own_pid {
        own_threads.iter().filter_map(ours).sum()
    } else {
        0
    };
    Some(all.saturating_sub(own))
}

/// Nanoseconds that a thread has run, by the scheduler's account.
fn schedstat(pid: u32, tid: u32) -> u64 {
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}

fn note_name(counts: &mut Counts, serial: u32, pid: u32, tid: u32) {
    if let Ok(name) = std::fs::read(format!("/proc/{pid}/task/{tid}/comm")) {
        set_name(counts, serial, tid, name.trim_ascii_end());
    }
}

fn set_name(counts: &mut Counts, image: u32, tid: u32, name: &[u8]) {
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    counts.thread_names.insert(
        Owner { image, tid },
        String::from_utf8_lossy(name).into_owned(),
    );
}
