//! The files that profiled code comes from: opened once, a table built once, whichever processes map them.
//!
//! Tables are built on threads of their own, so that the reader goes on emptying rings while a large one is made; until
//! then the module is left out of the module maps, and stacks that meet it are copied and walked later.

use crate::arena::{Arena, Piece};
use crate::maps::MappedRange;
use selvedge_sample::Region;
use selvedge_symbol::Module as Image;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Threads that build tables: a large program has two or three large libraries.
const BUILDERS: usize = 2;

/// Index of a module in [`Modules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ModuleId(pub(crate) usize);

/// The unwind table of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Being built.
    Pending,
    /// In the arena.
    Ready(Piece),
    /// There is none: the file cannot be read or has no CFI, or the arena is full.
    Missing,
}

/// A table with the number of entries of unwind information that could not be read for it, or why there is none.
type Built = Result<(Vec<u8>, usize), String>;

/// A file.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) image: Option<Arc<Image>>,
    pub(crate) table: Table,
}

/// All files of a session.
#[derive(Debug)]
pub(crate) struct Modules {
    modules: Vec<Module>,
    by_file: HashMap<((u64, u64), String), ModuleId>,
    requests: Sender<(ModuleId, Arc<Image>)>,
    built: Receiver<(ModuleId, Built)>,
    /// Why tables are missing, for the profile's comments.
    pub(crate) problems: Vec<String>,
    /// The threads that build, as the kernel knows them.
    pub(crate) builder_tids: Vec<u32>,
}

impl Modules {
    pub(crate) fn new(region: &'static Region) -> std::io::Result<Self> {
        let (requests, orders) = channel::<(ModuleId, Arc<Image>)>();
        let (results, built) = channel();
        let orders = Arc::new(Mutex::new(orders));
        let mut builder_tids = Vec::new();
        for _ in 0..BUILDERS {
            let (orders, results) = (Arc::clone(&orders), results.clone());
            let (tid_sender, tid) = channel();
            let thread = std::thread::Builder::new().name("selvedge-tables".into());
            thread.spawn(move || {
                let _ = tid_sender.send(selvedge_sample::system::gettid());
                loop {
                    let next = orders.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((id, image)) = next else { return };
                    // Whoever waits for this table must get an answer, even if a file is found that the builder cannot bear.
                    let build = || selvedge_unwind::build::table_and_damage(image.bytes());
                    let table = match std::panic::catch_unwind(AssertUnwindSafe(build)) {
                        Ok(table) => table.map_err(|e| e.to_string()),
                        Err(_) => Err("building its unwind table failed".to_string()),
                    };
                    if results.send((id, table)).is_err() {
                        return;
                    }
                    region.ring_doorbell();
                }
            })?;
            builder_tids.push(tid.recv().unwrap_or(0));
        }
        Ok(Self {
            modules: Vec::new(),
            by_file: HashMap::new(),
            requests,
            built,
            problems: Vec::new(),
            builder_tids,
        })
    }

    pub(crate) fn get(&self, id: ModuleId) -> &Module {
        &self.modules[id.0]
    }

    /// The module of an executable range of process `pid`; `None` for anonymous code.
    pub(crate) fn of_range(&mut self, pid: u32, range: &MappedRange) -> Option<ModuleId> {
        let is_vdso = range.name == "[vdso]";
        if range.file.1 == 0 && !is_vdso {
            return None;
        }
        let key = (range.file, range.name.clone());
        if let Some(&id) = self.by_file.get(&key) {
            return Some(id);
        }
        let id = ModuleId(self.modules.len());
        let image = if is_vdso {
            own_vdso()
        } else {
            open(pid, range)
        };
        let image = image.map(Arc::new);
        let table = match &image {
            Some(image) if self.requests.send((id, Arc::clone(image))).is_ok() => Table::Pending,
            _ => {
                self.problems.push(format!(
                    "{}: cannot be read, walked without its unwind information",
                    range.name
                ));
                Table::Missing
            }
        };
        let name = range
            .name
            .strip_suffix(" (deleted)")
            .unwrap_or(&range.name)
            .to_string();
        self.modules.push(Module { name, image, table });
        self.by_file.insert(key, id);
        Some(id)
    }

    /// Puts tables that are done into the arena. Returns whether there were any.
    pub(crate) fn collect(&mut self, arena: &mut Arena) -> bool {
        let mut any = false;
        while let Ok((id, result)) = self.built.try_recv() {
            self.settle(id, result, arena);
            any = true;
        }
        any
    }

    /// Waits until no table is being built.
    pub(crate) fn collect_all(&mut self, arena: &mut Arena) {
        while self
            .modules
            .iter()
            .any(|module| module.table == Table::Pending)
        {
            let Ok((id, result)) = self.built.recv() else {
                return;
            };
            self.settle(id, result, arena);
        }
    }

    fn settle(&mut self, id: ModuleId, result: Built, arena: &mut Arena) {
        let module = &mut self.modules[id.0];
        let placed = result.and_then(|(table, unreadable)| {
            if unreadable > 0 {
                self.problems.push(format!(
                    "{}: {unreadable} entries of its unwind information are damaged: that code is walked without",
                    module.name
                ));
            }
            arena
                .put(&[&table])
                .ok_or_else(|| "no room left for its unwind table".to_string())
        });
        module.table = match placed {
            Ok(piece) => Table::Ready(piece),
            Err(why) => {
                self.problems.push(format!("{}: {why}", module.name));
                Table::Missing
            }
        };
    }
}

/// Opens the file of a range, if what the path names now is still what is mapped.
fn open(pid: u32, range: &MappedRange) -> Option<Image> {
    let plain = range.name.strip_suffix(" (deleted)").unwrap_or(&range.name);
    let candidates = [
        PathBuf::from(plain),
        PathBuf::from(format!("/proc/{pid}/root{plain}")),
        PathBuf::from(format!("/proc/{pid}/exe")),
        PathBuf::from(format!(
            "/proc/{pid}/map_files/{:x}-{:x}",
            range.start, range.end
        )),
    ];
    candidates.into_iter().find_map(|path| {
        let file = File::open(&path).ok()?;
        let found = file.metadata().ok()?;
        // The device number is not compared: an overlay file system shows another in maps than in stat.
        (found.ino() == range.file.1 && found.is_file()).then_some(())?;
        Image::from_file(file, &PathBuf::from(plain)).ok()
    })
}

/// The vDSO: the kernel gives the same image to every 64-bit process.
fn own_vdso() -> Option<Image> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let range = crate::maps::parse(&maps)
        .into_iter()
        .find(|range| range.name == "[vdso]")?;
    let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
    File::open("/proc/self/mem")
        .ok()?
        .read_exact_at(&mut bytes, range.start)
        .ok()?;
    Image::from_bytes(bytes, "[vdso]").ok()
}
