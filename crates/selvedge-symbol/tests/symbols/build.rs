//! Programs built for a test, in a directory that is removed after it, and what the binutils say about them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use selvedge_symbol::{Module, Options, Symbol, Symbolizer};

/// A directory of its own for one test.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only the numbers must differ.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("selvedge-symbol-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("create the test's directory");
        Self(path.canonicalize().expect("the directory exists"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Compiles `testprogs/<source>` to `output`.
    pub(crate) fn compile(&self, source: &str, output: &str, flags: &[&str]) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("testprogs")
            .join(source);
        let compiler = if source.extension() == Some(OsStr::new("cc")) {
            "c++"
        } else {
            "cc"
        };
        let output = self.path(output);
        let mut command = Command::new(compiler);
        command
            .current_dir(&self.0)
            .args(flags)
            .arg("-o")
            .arg(&output)
            .arg(source);
        run(&mut command);
        output
    }

    /// Runs a tool in the directory and returns what it prints.
    pub(crate) fn tool(&self, program: &str, arguments: &[&str]) -> String {
        run(Command::new(program).current_dir(&self.0).args(arguments))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Addresses of the functions that `nm` lists, by linker name.
pub(crate) fn functions(path: &Path) -> Vec<(String, u64, u64)> {
    run(Command::new("nm").arg("-S").arg(path))
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let &[start, size, "t" | "T" | "w" | "W" | "i", name] = fields.as_slice() else {
                return None;
            };
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some((name.to_owned(), number(start)?, number(size)?))
        })
        .collect()
}

pub(crate) fn function(path: &Path, name: &str) -> (u64, u64) {
    let (_, start, size) = functions(path)
        .into_iter()
        .find(|(found, ..)| found == name)
        .unwrap_or_else(|| panic!("{name} not in {}", path.display()));
    (start, size)
}

/// Symbols without looking for separate files in the system's directories.
pub(crate) fn symbolize(path: &Path, debug_dirs: &[PathBuf], svmas: &[u64]) -> Vec<Vec<Symbol>> {
    let module = Module::open(path).expect("open the program");
    let options = Options {
        debug_dirs: debug_dirs.to_vec(),
        ..Options::default()
    };
    Symbolizer::new(options).symbolize(&module, svmas)
}

/// The name and the line of each function, innermost first.
pub(crate) fn names(symbols: &[Symbol]) -> Vec<(&str, u32)> {
    symbols
        .iter()
        .map(|symbol| (symbol.name.as_str(), symbol.line))
        .collect()
}

/// What `addr2line -i -f -C` says: name, base name of the file, line.
pub(crate) fn addr2line(path: &Path, svmas: &[u64]) -> Vec<Vec<(String, String, u32)>> {
    let mut command = Command::new("addr2line");
    command.args(["-a", "-i", "-f", "-C", "-e"]).arg(path);
    command.args(svmas.iter().map(|svma| format!("{svma:#x}")));
    let output = run(&mut command);
    let mut results = Vec::new();
    let mut lines = output.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("0x") {
            results.push(Vec::new());
            continue;
        }
        let location = lines.next().expect("a location follows a name");
        let location = location.split(' ').next().unwrap_or_default();
        let (file, number) = location.rsplit_once(':').expect("file:line");
        results.last_mut().expect("an address comes first").push((
            line.to_owned(),
            base_name(file),
            number.parse().unwrap_or(0),
        ));
    }
    results
}

pub(crate) fn base_name(file: &str) -> String {
    file.rsplit('/').next().unwrap_or_default().to_owned()
}
