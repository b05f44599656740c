//! An ELF image: its bytes, its identity, its load addresses.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use object::LittleEndian;
use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader};

use crate::error::Error;
use crate::image::Image;

/// The parsed form that the rest of the crate works on.
pub(crate) type Elf<'a> = ElfFile64<'a, LittleEndian>;

/// An executable, a shared library or the vDSO: opened once, cheap to clone and to keep.
///
/// The file stays mapped, so deleting or replacing it later does not change what is read. Nothing but the headers is
/// looked at before a [`Symbolizer`](crate::Symbolizer) asks for names.
///
/// A file that is *shrunk in place* while a `Module` is alive makes later reads fail with `SIGBUS`, as it does in every
/// process that has the file mapped.
#[derive(Clone, Debug)]
pub struct Module(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    image: Image,
    path: PathBuf,
    /// Device and inode of the file, to recognise it when it is found again as a candidate for its own debug file.
    file: Option<(u64, u64)>,
    loads: Vec<Load>,
    build_id: Option<Vec<u8>>,
}

/// One `PT_LOAD`.
#[derive(Debug)]
struct Load {
    executable: bool,
    offset: u64,
    size: u64,
    address: u64,
}

impl Module {
    /// Opens and maps the ELF file at `path`.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened or mapped, is not a regular file, is empty, or is not a 64-bit little-endian ELF
    /// image. Devices and pipes are refused without being opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let metadata = std::fs::metadata(path).map_err(|e| Error::open(path, e))?;
        if !metadata.is_file() {
            return Err(Error::not_a_file(path));
        }
        let file = File::open(path).map_err(|e| Error::open(path, e))?;
        Self::from_file(file, path)
    }

    /// Maps an ELF file that is open already, for instance by its link in `/proc/PID/map_files`.
    ///
    /// `path` is where the file would be found by name: separate debug files are searched relative to it, and messages
    /// name it. Nothing is read from it here.
    ///
    /// # Errors
    ///
    /// As for [`Module::open`].
    pub fn from_file(file: File, path: &Path) -> Result<Self, Error> {
        let metadata = file.metadata().map_err(|e| Error::open(path, e))?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Err(Error::not_a_file(path));
        }
        let image = Image::map(&file).map_err(|e| Error::map(path, e))?;
        Self::new(image, path, Some((metadata.dev(), metadata.ino())))
    }

    /// Takes an image that is in memory already, for instance the vDSO.
    ///
    /// `name` is used in messages only.
    ///
    /// # Errors
    ///
    /// If the bytes are not a 64-bit little-endian ELF image.
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self, Error> {
        Self::new(Image::owned(bytes), Path::new(name), None)
    }

    fn new(image: Image, path: &Path, file: Option<(u64, u64)>) -> Result<Self, Error> {
        let (loads, build_id) = headers(&image).ok_or_else(|| Error::not_elf(path))?;
        Ok(Self(Arc::new(Inner {
            image,
            path: path.to_path_buf(),
            file,
            loads,
            build_id,
        })))
    }

    /// The whole image as it is in the file.
    pub fn bytes(&self) -> &[u8] {
        &self.0.image
    }

    /// The path (or name) given when the module was opened.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The GNU build id in lower-case hexadecimal, if the image carries one.
    pub fn build_id(&self) -> Option<String> {
        self.0.build_id.as_deref().map(hex)
    }

    /// The image's own virtual address (SVMA: the address before relocation) of the byte at `file_offset`.
    ///
    /// For an address `a` in a mapping that starts at `start` with file offset `offset`, pass `a - start + offset`. `None`
    /// if no loaded segment holds that byte.
    pub fn svma(&self, file_offset: u64) -> Option<u64> {
        let holds = |load: &&Load| {
            file_offset
                .checked_sub(load.offset)
                .is_some_and(|distance| distance < load.size)
        };
        let loads = &self.0.loads;
        let load = loads
            .iter()
            .filter(|load| load.executable)
            .find(holds)
            .or_else(|| loads.iter().find(holds))?;
        (file_offset - load.offset).checked_add(load.address)
    }

    /// Returns the address (svma) of the start of an executable mapping with this file offset.
    ///
    /// Mappings start at page boundaries, segments need not: the start of a mapping can be a byte of the file that belongs
    /// to the segment before. `None` if no executable segment begins on that page or holds that byte.
    #[must_use]
    pub fn mapping_svma(&self, file_offset: u64) -> Option<u64> {
        let loads = &self.0.loads;
        let starts = |load: &&Load| {
            load.offset
                .checked_sub(file_offset)
                .is_some_and(|before| before < 4096)
        };
        match loads.iter().filter(|load| load.executable).find(starts) {
            Some(load) => load.address.checked_sub(load.offset - file_offset),
            None => self.svma(file_offset),
        }
    }

    pub(crate) fn image(&self) -> &Image {
        &self.0.image
    }

    /// The build id as bytes.
    pub(crate) fn build_id_bytes(&self) -> Option<&[u8]> {
        self.0.build_id.as_deref()
    }

    /// True if both were opened from the same file.
    pub(crate) fn same_file(&self, other: &Self) -> bool {
        self.0.file.is_some() && self.0.file == other.0.file
    }

    /// What tells this module from others, without keeping it alive.
    pub(crate) fn identity(&self) -> Identity {
        Identity(Arc::downgrade(&self.0))
    }

    /// The sections and symbols, if they can be parsed.
    pub(crate) fn elf(&self) -> Option<Elf<'_>> {
        Elf::parse(self.bytes()).ok()
    }
}

/// Tells whether a module is the one that this was taken from.
#[derive(Debug)]
pub(crate) struct Identity(Weak<Inner>);

impl Identity {
    pub(crate) fn is(&self, module: &Module) -> bool {
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&module.0))
    }

    /// True while any clone of the module is left.
    pub(crate) fn is_alive(&self) -> bool {
        self.0.strong_count() != 0
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The loaded segments and the build id, or `None` if this is no ELF image we can use.
fn headers(data: &[u8]) -> Option<(Vec<Load>, Option<Vec<u8>>)> {
    let header = elf::FileHeader64::<LittleEndian>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, data).ok()?;
    let loads = segments
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
        .map(|segment| Load {
            executable: segment.p_flags(endian).contains(elf::PF_X),
            offset: segment.p_offset(endian),
            size: segment.p_filesz(endian),
            address: segment.p_vaddr(endian),
        })
        .collect();

    // Segments first: they survive stripping and describe what is loaded. A note that cannot be read ends the search in
    // its segment or section only.
    let mut build_id = None;
    for segment in segments {
        if build_id.is_none()
            && let Ok(Some(notes)) = segment.notes(endian, data)
        {
            build_id = find_build_id(endian, notes);
        }
    }
    if build_id.is_none()
        && let Ok(sections) = header.sections(endian, data)
    {
        for section in sections.iter() {
            if build_id.is_none()
                && let Ok(Some(notes)) = section.notes(endian, data)
            {
                build_id = find_build_id(endian, notes);
            }
        }
    }
    Some((loads, build_id))
}

fn find_build_id(
    endian: LittleEndian,
    mut notes: object::read::elf::NoteIterator<'_, elf::FileHeader64<LittleEndian>>,
) -> Option<Vec<u8>> {
    while let Ok(Some(note)) = notes.next() {
        if note.name() == elf::ELF_NOTE_GNU
            && note.n_type(endian) == elf::NT_GNU_BUILD_ID
            && !note.desc().is_empty()
        {
            return Some(note.desc().to_vec());
        }
    }
    None
}
