//! Frame pointers, believed as long as they can be read and lead upwards.

use crate::{Interrupted, Walker, memory};

pub(crate) fn walker() -> Walker {
    Box::new(|interrupted: &Interrupted, frames: &mut [u64]| {
        let (mut floor, mut bp) = (interrupted.sp(), interrupted.bp());
        frames[0] = interrupted.ip();
        for (count, place) in frames.iter_mut().enumerate().skip(1) {
            let aligned = bp.is_multiple_of(8) && bp >= floor;
            let pair = memory::word(bp).zip(memory::word(bp.wrapping_add(8)));
            let Some((caller, ip)) = pair.filter(|&(_, ip)| aligned && ip >= 4096) else {
                return count;
            };
            *place = ip;
            (floor, bp) = (bp + 16, caller);
        }
        frames.len()
    })
}
