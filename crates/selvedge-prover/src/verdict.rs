//! Comparing what was recorded with the true stack.

use crate::mailbox::FIRST_ADDRESS;

/// What a recorded stack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Every frame, leaf to root.
    Exact,
    /// True frames from the leaf on, then a visible mark, then nothing or true frames to the root.
    Marked,
    /// True frames from the leaf on, and nothing says that the root is missing. Counted as wrong: it is a lie.
    Short,
    /// Anything else, nothing at all too.
    Wrong,
}

/// Compares. Both stacks are leaf first.
#[must_use]
pub fn judge(recorded: &[u64], truth: &[u64]) -> Verdict {
    if recorded == truth {
        return Verdict::Exact;
    }
    // The first frame is none: a thread can be at any address, after a call through a null pointer at 0.
    let marks = recorded
        .iter()
        .enumerate()
        .skip(1)
        .find(|&(_, &frame)| frame < FIRST_ADDRESS);
    let Some((mark, _)) = marks else {
        return match !recorded.is_empty() && truth.starts_with(recorded) {
            true => Verdict::Short,
            false => Verdict::Wrong,
        };
    };
    let (inner, mut outer) = (&recorded[..mark], &recorded[mark + 1..]);
    // Another mark behind: of the part that was left out, nothing is known.
    while let Some((last, rest)) = outer.split_last()
        && *last < FIRST_ADDRESS
    {
        outer = rest;
    }
    let fits = inner.len() + outer.len() <= truth.len()
        && truth.starts_with(inner)
        && truth.ends_with(outer);
    if fits {
        Verdict::Marked
    } else {
        Verdict::Wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_true_frames_and_marks_pass() {
        let truth = [0x5000, 0x6000, 0x7000, 0x8000];
        assert_eq!(judge(&truth, &truth), Verdict::Exact);
        for marked in [
            &[0x5000, 4][..],
            &[0x5000, 0x6000, 0x7000, 7],
            &[0x5000, 2, 0x8000],
            &[0x5000, 0x6000, 0x7000, 0x8000, 5],
            &[0x5000, 0x6000, 2, 7],
            &[0x5000, 2, 0x8000, 2],
        ] {
            assert_eq!(judge(marked, &truth), Verdict::Marked, "{marked:x?}");
        }
        assert_eq!(judge(&[0x5000, 0x6000, 0x7000], &truth), Verdict::Short);
        assert_eq!(judge(&[0, 4], &[0, 0x6000]), Verdict::Marked);
        for wrong in [
            &[][..],
            &[4],
            &[0x5000, 0x7000, 0x8000],
            &[0x5000, 0x7000, 0x6000, 0x8000],
            &[0x5000, 0x7000, 4],
            &[0x5000, 0x6000, 0x7000, 0x8000, 0x9000],
            &[0x5000, 0x6000, 2, 0x6000, 0x7000, 0x8000],
            &[0x5000, 2, 0x7000],
            &[0, 0x7000, 4],
        ] {
            assert_eq!(judge(wrong, &truth), Verdict::Wrong, "{wrong:x?}");
        }
    }
}
