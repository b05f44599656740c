//! framehop, as in pprof-rs: no allocation in the handler, modules known from the start.

use crate::{Interrupted, Walker, memory, modules};
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, Module, MustNotAllocateDuringUnwind, Unwinder};
use object::{Object, ObjectSection, ObjectSegment};
use std::sync::Mutex;

type Rules = MustNotAllocateDuringUnwind;

fn unwinder() -> UnwinderX86_64<Vec<u8>, Rules> {
    let mut unwinder = UnwinderX86_64::new();
    for code in modules::code() {
        let Ok(file) = object::File::parse(&*code.image) else {
            continue;
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
            text: section(".text").map(|(_, bytes)| bytes),
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            ..ExplicitModuleSectionInfo::default()
        };
        let base = code.bias + base;
        unwinder.add_module(Module::new(String::new(), code.range, base, info));
    }
    unwinder
}

pub(crate) fn walker() -> Walker {
    let unwinder = unwinder();
    let cache = Mutex::new(CacheX86_64::<Rules>::new_in());
    Box::new(move |interrupted: &Interrupted, frames: &mut [u64]| {
        let Ok(mut cache) = cache.try_lock() else {
            return 0;
        };
        let mut read = |address| memory::word(address).ok_or(());
        let registers = UnwindRegsX86_64::new(interrupted.ip(), interrupted.sp(), interrupted.bp());
        let mut walk = unwinder.iter_frames(interrupted.ip(), registers, &mut cache, &mut read);
        for (count, place) in frames.iter_mut().enumerate() {
            match walk.next() {
                Ok(Some(frame)) => *place = frame.address(),
                _ => return count,
            }
        }
        frames.len()
    })
}
