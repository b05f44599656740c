//! Debug information in another file, in each place where it is looked for; and none from a file that does not belong.

use std::fs;
use std::path::{Path, PathBuf};

use crate::build::{Dir, function, symbolize};
use selvedge_symbol::{Module, Symbol};

/// A stripped program, the debug file split from it, and what is known with both.
struct Split {
    dir: Dir,
    program: PathBuf,
    svmas: Vec<u64>,
    whole: Vec<Vec<Symbol>>,
}

impl Split {
    fn new(flags: &[&str]) -> Self {
        let dir = Dir::new();
        let mut all = vec!["-O2", "-g"];
        all.extend(flags);
        let program = dir.compile("inlined.c", "program", &all);
        let (start, size) = function(&program, "work");
        let (hidden, _) = function(&program, "hidden");
        let svmas: Vec<u64> = (start..start + size).chain([hidden]).collect();
        let whole = symbolize(&program, &[], &svmas);
        assert_eq!(whole[0].last().map(|symbol| symbol.line), Some(20));
        dir.tool(
            "objcopy",
            &["--only-keep-debug", "program", "program.debug"],
        );
        dir.tool("strip", &["program"]);
        Self {
            dir,
            program,
            svmas,
            whole,
        }
    }

    fn link(&self) {
        self.dir
            .tool("objcopy", &["--add-gnu-debuglink=program.debug", "program"]);
    }

    fn move_debug_file(&self, to: &Path) {
        fs::create_dir_all(to.parent().expect("has a parent")).expect("create directories");
        fs::rename(self.dir.path("program.debug"), to).expect("move the debug file");
    }

    fn found(&self, debug_dirs: &[PathBuf]) -> bool {
        let symbols = symbolize(&self.program, debug_dirs, &self.svmas);
        if symbols == self.whole {
            return true;
        }
        assert!(
            symbols.iter().all(Vec::is_empty),
            "all or nothing: {symbols:?}"
        );
        false
    }
}

#[test]
fn by_link_beside_the_program() {
    let split = Split::new(&["-Wl,--build-id=none"]);
    assert!(!split.found(&[]), "nothing links to the debug file yet");
    split.link();
    assert!(split.found(&[]));
}

#[test]
fn by_link_in_the_hidden_directory() {
    let split = Split::new(&[]);
    split.link();
    split.move_debug_file(&split.dir.path(".debug/program.debug"));
    assert!(split.found(&[]));
}

#[test]
fn by_link_below_a_debug_directory() {
    let split = Split::new(&[]);
    split.link();
    let root = split.dir.path("root");
    let below = split.program.strip_prefix("/").expect("an absolute path");
    split.move_debug_file(&root.join(below).with_file_name("program.debug"));
    assert!(!split.found(&[]));
    assert!(split.found(&[split.dir.path("absent"), root]));
}

#[test]
fn by_link_of_a_program_found_by_symbolic_link() {
    let mut split = Split::new(&[]);
    split.link();
    fs::create_dir(split.dir.path("bin")).expect("create a directory");
    let link = split.dir.path("bin/link");
    std::os::unix::fs::symlink(&split.program, &link).expect("link");
    split.program = link;
    assert!(split.found(&[]));
}

#[test]
fn by_build_id() {
    let split = Split::new(&["-Wl,--build-id=sha1"]);
    let id = Module::open(&split.program)
        .expect("open")
        .build_id()
        .expect("has an id");
    assert_eq!(id.len(), 40);
    assert!(
        id.bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    );
    let root = split.dir.path("root");
    let place = format!(".build-id/{}/{}.debug", &id[..2], &id[2..]);
    split.move_debug_file(&root.join(place));
    assert!(split.found(&[root]));
}

#[test]
fn not_by_a_link_with_another_checksum() {
    let split = Split::new(&["-Wl,--build-id=none"]);
    split.link();
    let path = split.dir.path("program.debug");
    let mut bytes = fs::read(&path).expect("read");
    bytes.push(0);
    fs::write(&path, bytes).expect("write");
    assert!(!split.found(&[]));
}

#[test]
fn not_by_a_file_with_another_build_id() {
    let split = Split::new(&["-Wl,--build-id=sha1"]);
    let id = Module::open(&split.program)
        .expect("open")
        .build_id()
        .expect("has an id");
    let other = split
        .dir
        .compile("inlined.c", "other", &["-O0", "-g", "-Wl,--build-id=sha1"]);
    let place = split
        .dir
        .path(&format!("root/.build-id/{}/{}.debug", &id[..2], &id[2..]));
    fs::create_dir_all(place.parent().expect("has a parent")).expect("create directories");
    fs::rename(other, place).expect("move");
    assert!(!split.found(&[split.dir.path("root")]));
}

#[test]
fn the_build_id_is_the_one_readelf_prints() {
    let dir = Dir::new();
    let program = dir.compile("inlined.c", "program", &["-Wl,--build-id=0x00abcdef"]);
    let module = Module::open(&program).expect("open");
    assert_eq!(module.build_id().as_deref(), Some("00abcdef"));
    assert!(dir.tool("readelf", &["-n", "program"]).contains("00abcdef"));
    let none = dir.compile("inlined.c", "none", &["-Wl,--build-id=none"]);
    assert_eq!(Module::open(&none).expect("open").build_id(), None);
}
