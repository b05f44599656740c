//! How much CPU time a sample stands for.
//!
//! The weight of a sample is the CPU time of its thread since the last account (its arming, or its last sample), so the
//! weights of a thread telescope to its CPU clock, whatever rate the kernel really delivers. One case needs care: a
//! thread that blocked the signal for a second has it delivered at the moment it unblocks it, and that instruction did
//! not use the second. What is more than two expected periods is then split off as *blocked*.

/// Nanoseconds of a thread's CPU time that may pass between two samples though nothing blocked the signal: a host that takes
/// a virtual processor away while its clock goes on, or a busy machine on which the thread runs between the kernel's ticks.
/// On two processors with four times as many busy threads, up to 250 ms were seen.
pub const LONGEST_PAUSE: u64 = 500_000_000;

/// The parts of a thread's CPU time since its last account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// For the sample.
    pub sample: u64,
    /// While the signal was blocked.
    pub blocked: u64,
}

/// Nanoseconds between two samples that the kernel can deliver: a CPU-time timer only fires at ticks.
#[must_use]
pub fn expected(period: u64, tick: u64) -> u64 {
    period.max(tick)
}

/// Whether `elapsed` nanoseconds are more than an unblocked thread normally lets pass.
#[must_use]
pub fn is_late(elapsed: u64, expected: u64) -> bool {
    elapsed > expected.saturating_mul(2)
}

/// Splits `elapsed`, where `was_blocked` says that the thread had the signal blocked until just now.
#[must_use]
pub fn split(elapsed: u64, expected: u64, was_blocked: bool) -> Split {
    if was_blocked && is_late(elapsed, expected) {
        Split {
            sample: expected,
            blocked: elapsed.wrapping_sub(expected),
        }
    } else {
        Split {
            sample: elapsed,
            blocked: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_of_a_thread_that_never_blocked_is_all_the_samples() {
        assert_eq!(
            split(50_000_000, 4_000_000, false),
            Split {
                sample: 50_000_000,
                blocked: 0
            }
        );
    }

    #[test]
    fn time_spent_blocked_is_not_charged_to_the_code_that_unblocked() {
        assert_eq!(
            split(1_000_000_000, 4_000_000, true),
            Split {
                sample: 4_000_000,
                blocked: 996_000_000
            }
        );
    }

    #[test]
    fn both_parts_add_up_to_the_clock() {
        for elapsed in [0, 1, 4_000_000, 8_000_001, u64::MAX] {
            for blocked in [false, true] {
                let parts = split(elapsed, 4_000_000, blocked);
                assert_eq!(parts.sample + parts.blocked, elapsed);
            }
        }
    }
}
