//! Where debug information lives when it is not in the file itself: the places that distributions and `gdb` agree on.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use object::Object;

use crate::module::{Module, hex};

/// The file with the DWARF of `module`, if that was split off and can be found.
///
/// By build id first, which proves that the files belong together; then by `.gnu_debuglink` next to the file, in `.debug`
/// beside it, and below each of `debug_dirs`, where the checksum proves it.
pub(crate) fn separate(module: &Module, debug_dirs: &[PathBuf]) -> Option<Module> {
    if let Some(id) = module.build_id_bytes()
        && let Some(found) = by_build_id(id, debug_dirs)
        && !found.same_file(module)
        && has_debug_info(&found)
    {
        return Some(found);
    }
    by_debuglink(module, debug_dirs)
}

/// The file with what `dwz` moved out of several debug files (`.gnu_debugaltlink`), if it can be found.
pub(crate) fn supplementary(module: &Module, debug_dirs: &[PathBuf]) -> Option<Module> {
    let elf = module.elf()?;
    let (name, id) = elf.gnu_debugaltlink().ok()??;
    let name = Path::new(OsStr::from_bytes(name));
    // Joining an absolute path replaces the directory.
    let mut candidates = vec![directory(module).join(name)];
    if let Some(base) = name.file_name() {
        candidates.extend(debug_dirs.iter().map(|dir| dir.join(".dwz").join(base)));
    }
    candidates
        .iter()
        .filter_map(|path| Module::open(path).ok())
        .find(|found| found.build_id_bytes() == Some(id))
        .or_else(|| by_build_id(id, debug_dirs))
}

/// True if the image itself holds DWARF.
pub(crate) fn has_debug_info(module: &Module) -> bool {
    module.elf().is_some_and(|elf| elf.has_debug_symbols())
}

fn by_build_id(id: &[u8], debug_dirs: &[PathBuf]) -> Option<Module> {
    let (first, rest) = id.split_first()?;
    let name = format!(".build-id/{first:02x}/{}.debug", hex(rest));
    debug_dirs
        .iter()
        .filter_map(|dir| Module::open(&dir.join(&name)).ok())
        .find(|found| found.build_id_bytes() == Some(id))
}

fn by_debuglink(module: &Module, debug_dirs: &[PathBuf]) -> Option<Module> {
    let elf = module.elf()?;
    let (name, checksum) = elf.gnu_debuglink().ok()??;
    let name = Path::new(OsStr::from_bytes(name)).file_name()?;
    let directory = directory(module);
    let mut candidates = vec![directory.join(name), directory.join(".debug").join(name)];
    if let Ok(below_root) = directory.strip_prefix("/") {
        candidates.extend(debug_dirs.iter().map(|dir| dir.join(below_root).join(name)));
    }
    candidates
        .iter()
        .filter_map(|path| Module::open(path).ok())
        .find(|found| {
            !found.same_file(module)
                && has_debug_info(found)
                && crc32fast::hash(found.bytes()) == checksum
        })
}

/// The directory of the module's file, with symbolic links resolved where it exists: a library is often found by a link in
/// another directory.
fn directory(module: &Module) -> PathBuf {
    let path = module.path();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    path.parent().map(Path::to_path_buf).unwrap_or_default()
}
