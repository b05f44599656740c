//! Stacks counted: what the reader makes of records, before anything has a name.

use crate::modules::ModuleId;
use std::collections::HashMap;

/// Executable code of some file, or anonymous code of one process. Processes that map the same part of the same file
/// share a segment, wherever each has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) module: Option<ModuleId>,
    pub(crate) start: u64,
    pub(crate) limit: u64,
    pub(crate) file_offset: u64,
    pub(crate) name: String,
}

/// Index of a segment in [`Counts::segments`].
pub(crate) type SegmentId = u32;

/// An instruction: in a segment, or at an address that belonged to none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Frame {
    pub(crate) segment: Option<SegmentId>,
    /// Offset in the segment, or the address.
    pub(crate) offset: u64,
}

impl Frame {
    /// Stands for frames that are left out. No address is this high.
    pub(crate) const TRUNCATED: Self = Self {
        segment: None,
        offset: u64::MAX,
    };
}

/// Whose stack: which program image, which thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner {
    /// Serial number of the program image in the session.
    pub(crate) image: u32,
    pub(crate) tid: u32,
}

/// A distinct stack of a thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stack {
    pub(crate) owner: Owner,
    /// Set of labels; 0 for none.
    pub(crate) labels: u64,
    /// Code of `selvedge_unwind::End`.
    pub(crate) end: u8,
    /// Leaf first: indices into [`Counts::frames`].
    pub(crate) frames: Box<[u32]>,
}

/// How often, and for how many nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) samples: u64,
    pub(crate) nanos: u64,
}

/// All stacks of a session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) segments: Vec<Segment>,
    by_place: HashMap<(Option<ModuleId>, u64, u64, u64), SegmentId>,
    pub(crate) frames: Vec<Frame>,
    by_frame: HashMap<Frame, u32>,
    pub(crate) stacks: HashMap<Stack, Count>,
    pub(crate) thread_names: HashMap<Owner, String>,
}

impl Counts {
    /// The segment with these facts. Anonymous ones (no module) are told apart by where they are, and by `image`.
    pub(crate) fn segment(&mut self, segment: Segment, image: u32) -> SegmentId {
        let place = match segment.module {
            Some(_) => (
                segment.module,
                segment.file_offset,
                segment.limit - segment.start,
                0,
            ),
            None => (None, segment.start, segment.limit, u64::from(image)),
        };
        *self.by_place.entry(place).or_insert_with(|| {
            self.segments.push(segment);
            (self.segments.len() - 1) as SegmentId
        })
    }

    /// The index of a frame.
    pub(crate) fn frame(&mut self, frame: Frame) -> u32 {
        *self.by_frame.entry(frame).or_insert_with(|| {
            self.frames.push(frame);
            (self.frames.len() - 1) as u32
        })
    }

    /// Counts a sample.
    pub(crate) fn add(&mut self, stack: Stack, nanos: u64) {
        let count = self.stacks.entry(stack).or_default();
        count.samples += 1;
        count.nanos += nanos;
    }
}
