//! One program image being followed: its mappings, the module map that its handlers read, its threads.

use crate::aggregate::{Counts, Frame, Owner, Segment, SegmentId, Stack};
use crate::arena::{Arena, Piece};
use crate::maps::{self, MappedRange};
use crate::modules::{ModuleId, Modules, Table};
use selvedge_sample::record::{HEADER_WORDS, MAX_FRAMES, REGISTER_WORDS, registers};
use selvedge_sample::region::{ARENA, CLAIMING, MAPS_BYTES, Process, Region, unkey};
use selvedge_sample::system;
use selvedge_unwind::build::{MapEntry, MapKind};
use selvedge_unwind::{EXACT_PC, End, Memory, ModuleMap, TRUNCATED, walk};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

/// Copied stacks kept until their code is known, per image.
const RAW_KEPT: usize = 8192;
/// Mappings are read anew at most this often.
const SCAN_PAUSE: Duration = Duration::from_millis(10);
/// For the sake of stacks, at most this often.
const STACK_SCAN_PAUSE: Duration = Duration::from_millis(40);

/// What the reader can do about a process from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Look at it under its process id.
    Here,
    /// It ended, or became another program, before the reader looked: its process id may be anybody's.
    Gone,
    /// It is in another namespace of process ids, where its ids mean others than here. It tells all that is known of it.
    Elsewhere,
}

impl Standing {
    /// That of a process that has just attached. Its memory of the session proves that it is the one.
    fn of(pid: u32, namespace: u64) -> Self {
        let own = system::pid_namespace();
        if pid == std::process::id() && namespace == own {
            return Self::Here;
        }
        if namespace != 0 && namespace != own {
            return Self::Elsewhere;
        }
        match maps::holds_session(pid) {
            // Nothing to be read is an ended process, which is found out later.
            Some(true) | None => Self::Here,
            Some(false) if namespace == 0 => Self::Elsewhere,
            Some(false) => Self::Gone,
        }
    }
}

/// A program image.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) index: u32,
    pub(crate) serial: u32,
    pub(crate) pid: u32,
    pub(crate) ticket: u64,
    pub(crate) standing: Standing,
    /// How often a process elsewhere was seen after it took leave.
    pub(crate) left: u32,
    pub(crate) name: String,
    pub(crate) command: String,
    /// Executable ranges, by address, with what each is.
    code: Vec<(MappedRange, Option<ModuleId>, SegmentId)>,
    /// Writable ranges, by address: where stacks can be; whether it is the main thread's.
    writable: Vec<(u64, u64, bool)>,
    /// What the map says, and the map.
    entries: Vec<MapEntry>,
    map: Vec<u8>,
    published: Option<Piece>,
    /// Replaced maps, with the threads that may still read them: see [`sequence`].
    retired: Vec<(Piece, Vec<(u32, u64)>)>,
    unknown_seen: u32,
    scanned: Instant,
    /// Whether a table of one of the modules was still being built when the map was made.
    incomplete: bool,
    raw: Vec<Vec<u64>>,
    /// CPU time of the process when last looked at.
    pub(crate) cpu: u64,
    /// CPU time used by each thread when last looked at, for threads without a record; and how often it was asked to arm
    /// itself.
    pub(crate) strangers: HashMap<u32, (u64, u32)>,
}

impl Image {
    /// Starts following process record `index`.
    pub(crate) fn adopt(
        region: &Region,
        process: &Process,
        index: u32,
        serial: u32,
        pid: u32,
    ) -> Self {
        let standing = Standing::of(pid, process.namespace.load(Ordering::Relaxed));
        let read = |file: &str| match standing {
            Standing::Here => std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default(),
            Standing::Gone | Standing::Elsewhere => Vec::new(),
        };
        let name = String::from_utf8_lossy(&read("comm"))
            .trim_end()
            .to_string();
        let command = read("cmdline");
        let command = String::from_utf8_lossy(&command)
            .trim_end_matches('\0')
            .replace('\0', " ");
        let mut image = Self {
            index,
            serial,
            pid,
            ticket: process.ticket.load(Ordering::Relaxed),
            standing,
            left: 0,
            name,
            command,
            code: Vec::new(),
            writable: Vec::new(),
            entries: Vec::new(),
            map: Vec::new(),
            published: None,
            retired: Vec::new(),
            unknown_seen: process.unknown_code.load(Ordering::Relaxed),
            scanned: Instant::now() - SCAN_PAUSE,
            incomplete: true,
            raw: Vec::new(),
            cpu: 0,
            strangers: HashMap::new(),
        };
        if image.name.is_empty() {
            let text = image.noted_maps(region, process);
            let first = maps::parse(&text)
                .into_iter()
                .find(|range| range.name.starts_with('/'));
            image.name = first.map_or(String::new(), |range| base_name(&range.name).to_string());
        }
        image
    }

    /// What the process itself noted of its mappings.
    fn noted_maps(&self, region: &Region, process: &Process) -> String {
        // Acquire: pairs with `note_mappings`.
        let len = (process.maps_len.load(Ordering::Acquire) as usize).min(MAPS_BYTES);
        region.maps_text(self.index, len)
    }

    /// Reads the mappings anew. Returns whether the code is different from before.
    pub(crate) fn scan(
        &mut self,
        region: &Region,
        process: &Process,
        modules: &mut Modules,
        counts: &mut Counts,
    ) -> bool {
        let text = match self.standing {
            Standing::Here => maps::read(self.pid),
            Standing::Gone | Standing::Elsewhere => String::new(),
        };
        if text.is_empty() {
            return self.scan_noted(region, process, modules, counts);
        }
        self.take_mappings(&text, modules, counts)
    }

    /// The same, of an image that is gone: ended, or replaced by the program that has its process now. Of such a one, what
    /// it noted itself is all there is; where that did not fit, what was known stays.
    pub(crate) fn scan_noted(
        &mut self,
        region: &Region,
        process: &Process,
        modules: &mut Modules,
        counts: &mut Counts,
    ) -> bool {
        let text = self.noted_maps(region, process);
        if text.is_empty() || (text.len() == MAPS_BYTES && !self.code.is_empty()) {
            return false;
        }
        self.take_mappings(&text, modules, counts)
    }

    fn take_mappings(&mut self, text: &str, modules: &mut Modules, counts: &mut Counts) -> bool {
        self.scanned = Instant::now();
        let ranges = maps::parse(text);
        self.writable = ranges
            .iter()
            .filter(|range| range.writable)
            .map(|range| (range.start, range.end, range.name == "[stack]"))
            .collect();
        let code: Vec<MappedRange> = ranges
            .into_iter()
            .filter(|r| r.executable && r.name != "[vsyscall]")
            .collect();
        if code.iter().eq(self.code.iter().map(|(range, ..)| range)) {
            return false;
        }
        self.code = code
            .into_iter()
            .map(|range| {
                let module = modules.of_range(self.pid, &range);
                let name = if range.name.is_empty() {
                    "[anon]".to_string()
                } else {
                    range.name.clone()
                };
                let name = name
                    .strip_suffix(" (deleted)")
                    .map(str::to_string)
                    .unwrap_or(name);
                let segment = Segment {
                    module,
                    start: range.start,
                    limit: range.end,
                    file_offset: range.offset,
                    name,
                };
                let segment = counts.segment(segment, self.serial);
                (range, module, segment)
            })
            .collect();
        true
    }

    /// Whether the mappings may be read anew for a stack that is in none of them: such a stack can stay unknown (its
    /// stack pointer may be garbage), so not often.
    pub(crate) fn may_scan_for_stacks(&self) -> bool {
        self.scanned.elapsed() >= STACK_SCAN_PAUSE
    }

    /// Whether the mappings should be read anew: a sample met code in no known module.
    pub(crate) fn wants_scan(&mut self, process: &Process) -> bool {
        let unknown = process.unknown_code.load(Ordering::Relaxed);
        if unknown == self.unknown_seen || self.scanned.elapsed() < SCAN_PAUSE {
            return false;
        }
        self.unknown_seen = unknown;
        true
    }

    /// Answers a prover's question whether there is code that is not known: see `known_code`.
    pub(crate) fn answer(&self, process: &Process) {
        if !self.incomplete {
            // Release: the map is published.
            process
                .known_code
                .store(self.unknown_seen, Ordering::Release);
        }
    }

    /// Makes the module map of what is known now. Returns whether it is another than before.
    fn make_map(&mut self, modules: &Modules) -> bool {
        let mut entries = Vec::new();
        self.incomplete = false;
        for (range, module, _) in &self.code {
            let module = module.map(|id| modules.get(id));
            let kind = match module.map(|module| (module.table, &module.image)) {
                Some((Table::Pending, _)) => {
                    self.incomplete = true;
                    continue;
                }
                Some((Table::Ready(piece), Some(image))) => {
                    match image.mapping_svma(range.offset) {
                        Some(svma) => MapKind::Table {
                            offset: piece.offset,
                            len: piece.len,
                            bias: range.start.wrapping_sub(svma),
                        },
                        None => MapKind::NoCfi,
                    }
                }
                _ => MapKind::NoCfi,
            };
            entries.push(MapEntry {
                start: range.start,
                end: range.end,
                kind,
            });
        }
        if entries == self.entries && !self.map.is_empty() {
            return false;
        }
        // A thread's record may come to another process: no two maps of all have the same number.
        static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);
        self.map =
            selvedge_unwind::build::map(&entries, NEXT_SERIAL.fetch_add(1, Ordering::Relaxed));
        self.entries = entries;
        true
    }

    /// Makes the module map of what is known now, and publishes it.
    pub(crate) fn publish(
        &mut self,
        region: &Region,
        process: &Process,
        modules: &Modules,
        arena: &mut Arena,
    ) {
        if !self.make_map(modules) {
            return;
        }
        let Some(piece) = arena.put(&[&(self.map.len() as u64).to_le_bytes(), &self.map]) else {
            // No room: the one before stays, and this is tried again.
            self.entries.clear();
            return;
        };
        // Release: pairs with the handler's Acquire; the map is complete.
        process.map.store(piece.offset, Ordering::Release);
        process.raw_budget.fetch_max(64, Ordering::Relaxed);
        // Full fence: a handler whose sequence is even below reads the new map when it enters next (it has a full fence
        // between the two as well).
        fence(Ordering::SeqCst);
        let inside = self
            .threads(region)
            .map(|at| (at, sequence(region, at)))
            .filter(|(_, now)| now % 2 == 1)
            .collect();
        if let Some(old) = self.published.replace(piece) {
            self.retired.push((old, inside));
        }
    }

    /// Takes back maps that no handler can be reading any more.
    pub(crate) fn reclaim(&mut self, region: &Region, arena: &mut Arena) {
        self.retired.retain_mut(|(piece, inside)| {
            inside.retain(|&(at, was)| sequence(region, at) == was);
            if inside.is_empty() {
                arena.release(*piece);
            }
            !inside.is_empty()
        });
    }

    /// Gives up the map: the process has ended.
    pub(crate) fn release(&mut self, arena: &mut Arena) {
        for piece in self
            .published
            .take()
            .into_iter()
            .chain(self.retired.drain(..).map(|(piece, _)| piece))
        {
            arena.release(piece);
        }
    }

    /// The thread records of this image, those that are being claimed too.
    pub(crate) fn threads<'a>(&self, region: &'a Region) -> impl Iterator<Item = u32> + use<'a> {
        let index = self.index;
        region.used_threads().filter(move |&at| {
            let key = region
                .thread(at)
                .map_or(0, |thread| thread.key.load(Ordering::Acquire));
            unkey(key & !CLAIMING).is_some_and(|(process, _)| process == index)
        })
    }

    /// Publishes the bounds of stacks that threads of this image asked about.
    pub(crate) fn publish_stack_bounds(&self, region: &Region) -> bool {
        let mut missing = false;
        for thread in self.threads(region).filter_map(|at| region.thread(at)) {
            let generation = thread.generation.load(Ordering::Acquire);
            let hint = thread.stack_hint.load(Ordering::Relaxed);
            let low = thread.stack_low.load(Ordering::Relaxed);
            let high = thread.stack_high.load(Ordering::Relaxed);
            let known = thread.stack_generation.load(Ordering::Relaxed) == generation;
            if hint == 0 || (known && (low..high).contains(&hint)) {
                continue;
            }
            let Some(&(start, end, is_main)) = self
                .writable
                .iter()
                .find(|&&(start, end, _)| (start..end).contains(&hint))
            else {
                missing = true;
                continue;
            };
            // glibc puts the control block at the top of a stack, which is mapped at least that far as long as the thread
            // lives. What else is in the same mapping may be anybody's, and be gone the next moment.
            let pointer = thread.thread_pointer.load(Ordering::Relaxed);
            let top = match (hint..end).contains(&pointer) {
                true => pointer & !7,
                false if is_main => end,
                // On another stack (an alternate one, a fiber's) than the thread's own: what is known of that stays.
                false => continue,
            };
            // Generation 0 is no claim's: while it stands there, the handler uses no bounds.
            thread.stack_generation.store(0, Ordering::Release);
            fence(Ordering::SeqCst);
            thread.stack_low.store(start, Ordering::Relaxed);
            thread.stack_high.store(top, Ordering::Relaxed);
            // Release: pairs with the handler's Acquire.
            thread.stack_generation.store(generation, Ordering::Release);
        }
        missing
    }

    /// Makes the map anew for walking copied stacks, of a process that has ended: nobody else reads it.
    pub(crate) fn update_own_map(&mut self, modules: &Modules) {
        self.make_map(modules);
    }

    fn frame(&self, value: u64, counts: &mut Counts) -> u32 {
        if value == TRUNCATED {
            return counts.frame(Frame::TRUNCATED);
        }
        // A return address is behind its call, which can be the last instruction of its function.
        let address = if value & EXACT_PC != 0 {
            value & !EXACT_PC
        } else {
            value.wrapping_sub(1)
        };
        let at = self
            .code
            .partition_point(|(range, ..)| range.end <= address);
        let frame = match self.code.get(at) {
            Some((range, _, segment)) if range.start <= address => Frame {
                segment: Some(*segment),
                offset: address - range.start,
            },
            _ => Frame {
                segment: None,
                offset: address,
            },
        };
        counts.frame(frame)
    }

    /// Counts a walked stack.
    pub(crate) fn count(
        &self,
        tid: u32,
        end: u8,
        words: &[u64],
        frames: &[u64],
        counts: &mut Counts,
    ) {
        let frames = frames
            .iter()
            .map(|&value| self.frame(value, counts))
            .collect();
        let owner = Owner {
            image: self.serial,
            tid,
        };
        counts.add(
            Stack {
                owner,
                labels: words[4],
                end,
                frames,
            },
            words[2],
        );
    }

    /// Keeps a copied stack until its code is known.
    pub(crate) fn keep_raw(&mut self, region: &Region, words: &[u64], counts: &mut Counts) {
        if self.raw.len() >= RAW_KEPT {
            self.walk_raw(region, true, counts);
        }
        self.raw.push(words.to_vec());
    }

    /// Walks the copied stacks, if all modules are known or there will be no better time.
    pub(crate) fn walk_raw(&mut self, region: &Region, now: bool, counts: &mut Counts) {
        if self.raw.is_empty() || self.map.is_empty() || (self.incomplete && !now) {
            return;
        }
        for words in std::mem::take(&mut self.raw) {
            let mut frames = [0_u64; MAX_FRAMES];
            let walked = walk_copy(region, &self.map, &words, &mut frames);
            let tid = (words[1] & 0xffff_ffff) as u32;
            self.count(tid, walked.1 as u8, &words, &frames[..walked.0], counts);
        }
    }

    /// Whether the module map lacks modules whose tables are being built.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// Whether copied stacks wait for tables.
    pub(crate) fn has_raw(&self) -> bool {
        !self.raw.is_empty()
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The claim and the sequence of a thread record: odd while that thread is in the handler.
fn sequence(region: &Region, at: u32) -> u64 {
    region.thread(at).map_or(0, |thread| {
        let sequence = thread.sequence.load(Ordering::Acquire);
        u64::from(thread.generation.load(Ordering::Acquire)) << 32 | u64::from(sequence)
    })
}

/// A copied part of a stack.
struct Copy<'a> {
    start: u64,
    words: &'a [u64],
}

impl Memory for Copy<'_> {
    fn read(&mut self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.start)?;
        if !offset.is_multiple_of(8) {
            return None;
        }
        self.words.get(usize::try_from(offset / 8).ok()?).copied()
    }
}

fn walk_copy(region: &Region, map: &[u8], words: &[u64], frames: &mut [u64]) -> (usize, End) {
    let Some((saved, stack)) = words[HEADER_WORDS..].split_first_chunk::<REGISTER_WORDS>() else {
        return (0, End::Unreadable);
    };
    let registers = registers(saved);
    let mut memory = Copy {
        start: registers.sp & !7,
        words: stack,
    };
    let Some(map) = ModuleMap::view(map, region.arena_of_reader(ARENA)) else {
        frames[0] = registers.ip | EXACT_PC;
        return (1, End::NoModule);
    };
    let walked = walk(&map, registers, &mut memory, frames);
    (walked.frames, walked.end)
}
