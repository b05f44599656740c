//! The peers: framehop, libgcc, libunwind, frame pointers.

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, Module, MustNotAllocateDuringUnwind, Unwinder};
use object::{Object, ObjectSection, ObjectSegment};
use std::ffi::{c_int, c_void};
use std::ops::Range;

type Rules = MustNotAllocateDuringUnwind;

/// framehop, with tables that are ready to be searched, as in a signal handler.
pub struct Framehop {
    unwinder: UnwinderX86_64<Vec<u8>, Rules>,
    cache: CacheX86_64<Rules>,
}

impl Framehop {
    pub fn new() -> Self {
        Self {
            unwinder: UnwinderX86_64::new(),
            cache: CacheX86_64::new_in(),
        }
    }

    /// Adds a module that is mapped with `bias` added to its addresses.
    pub fn add(&mut self, image: &[u8], bias: u64, range: Range<u64>) {
        let Ok(file) = object::File::parse(image) else {
            return;
        };
        let section = |name: &str| {
            let section = file.section_by_name(name)?;
            let (start, len) = (section.address(), section.size());
            Some((start..start + len, section.data().ok()?.to_vec()))
        };
        let base = file.segments().map(|s| s.address()).min().unwrap_or(0);
        let (eh_frame_svma, eh_frame) = section(".eh_frame").unzip();
        let (eh_frame_hdr_svma, eh_frame_hdr) = section(".eh_frame_hdr").unzip();
        let info = ExplicitModuleSectionInfo {
            base_svma: base,
            text_svma: section(".text").map(|(range, _)| range),
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            ..ExplicitModuleSectionInfo::default()
        };
        self.unwinder
            .add_module(Module::new(String::new(), range, bias + base, info));
    }

    /// Makes its cache anew.
    pub fn forget(&mut self) {
        self.cache = CacheX86_64::new_in();
    }

    pub fn walk(
        &mut self,
        (ip, sp, bp): (u64, u64, u64),
        mut read: impl FnMut(u64) -> Option<u64>,
        frames: &mut [u64],
    ) -> usize {
        let mut read = |address| read(address).ok_or(());
        let registers = UnwindRegsX86_64::new(ip, sp, bp);
        let mut walk = self
            .unwinder
            .iter_frames(ip, registers, &mut self.cache, &mut read);
        let mut written = 0;
        while written < frames.len() {
            match walk.next() {
                Ok(Some(frame)) => frames[written] = frame.address(),
                _ => break,
            }
            written += 1;
        }
        written
    }
}

unsafe extern "C" {
    fn _Unwind_Backtrace(visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int, to: *mut c_void);
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

/// libgcc's.
pub fn libgcc(frames: &mut [u64]) -> usize {
    struct Found<'a>(&'a mut [u64], usize);
    extern "C" fn visit(context: *mut c_void, found: *mut c_void) -> c_int {
        // SAFETY: `_Unwind_Backtrace` gives back what it was given below.
        let found = unsafe { &mut *found.cast::<Found<'_>>() };
        let Some(place) = found.0.get_mut(found.1) else {
            return 5;
        };
        // SAFETY: the context is valid in this call.
        *place = unsafe { _Unwind_GetIP(context) } as u64;
        found.1 += 1;
        0
    }
    let mut found = Found(frames, 0);
    // SAFETY: `found` outlives the call.
    unsafe { _Unwind_Backtrace(visit, (&raw mut found).cast()) };
    found.1
}

type Backtrace = unsafe extern "C" fn(*mut u64, c_int) -> c_int;

/// libunwind's `unw_backtrace`, with its cache per thread, where it is installed.
pub fn libunwind() -> Option<impl Fn(&mut [u64]) -> usize> {
    // SAFETY: a library without constructors of note, and the documented type of its function.
    let backtrace = unsafe {
        let library = libc::dlopen(c"libunwind.so.8".as_ptr(), libc::RTLD_NOW);
        if library.is_null() {
            return None;
        }
        let symbol = libc::dlsym(library, c"unw_backtrace".as_ptr());
        std::mem::transmute::<*mut c_void, Option<Backtrace>>(symbol)?
    };
    Some(move |frames: &mut [u64]| {
        // SAFETY: room for as many as it is told.
        unsafe { backtrace(frames.as_mut_ptr(), frames.len() as c_int) as usize }
    })
}

/// Empties the cache that libunwind's threads share.
pub fn forget_of_libunwind() {
    type Flush = unsafe extern "C" fn(*mut c_void, u64, u64);
    // SAFETY: as above; the variable holds the address space that the function takes; 0 to 0 is all of it.
    unsafe {
        let library = libc::dlopen(c"libunwind.so.8".as_ptr(), libc::RTLD_NOW);
        let space = libc::dlsym(library, c"_ULx86_64_local_addr_space".as_ptr());
        let flush = libc::dlsym(library, c"_Ux86_64_flush_cache".as_ptr());
        let flush = std::mem::transmute::<*mut c_void, Option<Flush>>(flush);
        if let (Some(flush), false) = (flush, space.is_null()) {
            flush(*space.cast::<*mut c_void>(), 0, 0);
        }
    }
}

/// Frame pointers, believed blindly: what a walk costs that is nothing but its loads.
pub fn frame_pointers(mut bp: u64, frames: &mut [u64]) -> usize {
    let mut written = 0;
    while written < frames.len() && bp != 0 && bp % 8 == 0 {
        // SAFETY: this program is built with frame pointers down to `main`, below which the walk ends.
        let (caller, ip) = unsafe { (*(bp as *const u64), *((bp + 8) as *const u64)) };
        frames[written] = ip;
        written += 1;
        if caller <= bp || caller - bp > 1 << 16 {
            break;
        }
        bp = caller;
    }
    written
}
