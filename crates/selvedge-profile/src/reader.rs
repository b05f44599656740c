//! The reader: finds processes and threads, publishes what handlers need, empties rings, counts stacks.

use crate::aggregate::{Counts, Owner};
use crate::arena::Arena;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::memory::SessionMemory;
use crate::modules::Modules;
use crate::perf::Events;
use crate::summary::{ImageFacts, Summary};
use selvedge_sample::record::Kind;
use selvedge_sample::region::{
    Engine, LOSSES, Process, Region, order, process_state, session, unkey,
};
use selvedge_sample::target::{self, Base, Session};
use selvedge_sample::{ring, system};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// How often threads are looked for that did not announce themselves.
const DISCOVERY_PAUSE: Duration = Duration::from_millis(100);

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
    damaged_words: u64,
    /// Programs that took the place of one that was followed, and cannot be.
    outsiders: Vec<String>,
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
            damaged_words: 0,
            outsiders: Vec::new(),
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

    /// Starts following processes that have attached.
    fn adopt(&mut self) -> bool {
        let mut any = false;
        let used = self.region.header.processes_used.load(Ordering::Relaxed);
        for index in 0..used {
            let Some(process) = self.region.process(index) else {
                break;
            };
            // Acquire: pairs with `attach`.
            if self.images.contains_key(&index)
                || process.state.load(Ordering::Acquire) != process_state::LIVE
            {
                continue;
            }
            let pid = process.pid.load(Ordering::Relaxed);
            // An `exec` keeps the process id and begins a new image: the one before is over.
            let before: Vec<u32> = self
                .images
                .values()
                .filter(|i| i.pid == pid)
                .map(|i| i.index)
                .collect();
            for old in before {
                let cpu = process.cpu_start.load(Ordering::Relaxed);
                self.finish(old, Some(cpu), Ending::Replaced);
            }
            let image = Image::adopt(self.region, process, index, self.next_serial, pid);
            self.next_serial += 1;
            self.images.insert(index, image);
            self.refresh(index);
            any = true;
        }
        any
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
        image.reclaim(self.region, &mut self.arena);
        if Engine::from_code(process.engine.load(Ordering::Relaxed)) == Some(Engine::Perf) {
            for at in image.threads(self.region) {
                let key = self
                    .region
                    .thread(at)
                    .map_or(0, |thread| thread.key.load(Ordering::Acquire));
                if let Some((_, tid)) = unkey(key)
                    && !self.events.has(tid)
                    && let Err(error) = self.events.add(tid, self.setup.period, self.setup.signal)
                    && error.raw_os_error() != Some(libc::ESRCH)
                {
                    process
                        .engine_error
                        .store(error.raw_os_error().unwrap_or(0), Ordering::Relaxed);
                }
            }
        }
    }

    /// Finds threads without a record and records without a thread, and processes that have ended.
    fn discover(&mut self, index: u32) {
        let (Some(image), Some(process)) =
            (self.images.get_mut(&index), self.region.process(index))
        else {
            return;
        };
        let pid = image.pid;
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            self.finish(index, None, Ending::Over);
            return;
        };
        // After leave was taken, what the process uses is another program's, unless the `exec` fails.
        let left_at = process.cpu_end.load(Ordering::Relaxed);
        if left_at != 0 && is_without_session(pid) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            self.outsiders.push(format!("{} ({pid})", name.trim_end()));
            self.finish(index, Some(left_at), Ending::Replaced);
            return;
        }
        if self.stopped_after.is_some() || left_at != 0 {
            return;
        }
        if let Some(cpu) = process_cpu(pid, self.own_pid, &self.own_threads) {
            image.cpu = image.cpu.max(cpu);
        }
        let alive: Vec<u32> = entries
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
            .collect();
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
                if !self.own_threads.contains(&tid) {
                    target::start_thread(session, tid, Base::Birth);
                }
                continue;
            }
            if itimer {
                continue;
            }
            // It arms itself when asked, by a signal; only one that is using the CPU is asked, since a signal would
            // interrupt a system call that it sleeps in.
            let used = schedstat(pid, tid);
            let before = image.strangers.insert(tid, used);
            if before.is_some_and(|before| used > before) {
                let nonce = self.region.header.nonce.load(Ordering::Relaxed);
                crate::engine::queue_signal(pid, tid, self.setup.signal, nonce);
            }
        }
        let mut orders = false;
        for at in image.threads(self.region) {
            let Some(thread) = self.region.thread(at) else {
                continue;
            };
            let Some((_, tid)) = unkey(thread.key.load(Ordering::Acquire)) else {
                continue;
            };
            if alive.contains(&tid) {
                if thread.samples.load(Ordering::Relaxed) > 0 {
                    note_name(&mut self.counts, image.serial, pid, tid);
                }
                continue;
            }
            self.events.remove(tid);
            if pid == self.own_pid {
                target::disarm(thread);
                thread.key.store(0, Ordering::SeqCst);
            } else if thread.order.swap(order::BURY, Ordering::AcqRel) != order::BURY {
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
                    Kind::Raw if words.len() >= 13 => image.keep_raw(region, words, counts),
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
            .filter(|i| i.pid == pid)
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
                if let Some((_, tid)) = unkey(thread.key.load(Ordering::Acquire)) {
                    self.events.remove(tid);
                }
                if image.pid == self.own_pid {
                    target::disarm(thread);
                }
                // The timers of an ended process, and of one that has called `exec`, are gone.
                thread.armed.store(0, Ordering::Relaxed);
                thread.key.store(0, Ordering::SeqCst);
            }
        }
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
            if let Some(cpu) = process_cpu(image.pid, self.own_pid, &self.own_threads) {
                image.cpu = image.cpu.max(cpu);
            }
            if image.pid == self.own_pid {
                for at in image.threads(self.region) {
                    if let Some(thread) = self.region.thread(at) {
                        target::disarm(thread);
                        thread.key.store(0, Ordering::SeqCst);
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
            outsiders: self.outsiders.clone(),
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
        threads: process.threads.load(relaxed),
        threads_refused: process.threads_refused.load(relaxed),
        cpu: image.cpu.saturating_sub(process.cpu_start.load(relaxed)),
        delivered: process.delivered.load(relaxed),
        samples: process.recorded.count.load(relaxed),
        recorded: process.recorded.weight.load(relaxed),
        blocked: process.blocked.load(relaxed),
        unsampled_threads: process.unsampled.load(relaxed),
        lost,
    }
}

/// Whether a process is running a program that has not got the session's memory: not one that took leave for its end.
fn is_without_session(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/maps"))
        .is_ok_and(|text| !text.is_empty() && !text.contains(crate::memory::SESSION_NAME))
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
