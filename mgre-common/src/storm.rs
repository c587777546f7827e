//! Storm control: how many frames a port or a peer may have flooded.
//!
//! A bucket of frames for each counter row ([`crate::counters::row_of`]), kept as the
//! time at which it would be full again (the generic cell rate algorithm, ITU-T I.371
//! annex A): one word that all CPUs add to, and nothing to refill.

use core::sync::atomic::Ordering;

use crate::cell::{AtomicU32, AtomicU64};

/// The most frames a second that a limit can say.
pub const MAX_STORM_LIMIT: u32 = 100_000_000;

/// How much of a second's frames may come at once, as a divisor.
const BURST_SHARE: u32 = 4;
/// The fewest frames that may come at once.
const MIN_BURST: u32 = 32;

/// The limit of one source, and what of it is used up.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Storm {
    /// Nanoseconds that each frame stands for; zero: no limit.
    spacing_ns: AtomicU32,
    /// Frames that may come at once.
    burst: AtomicU32,
    /// Monotonic time in ns at which all frames let through so far would be paid for.
    paid_ns: AtomicU64,
}

const _: () = assert!(size_of::<Storm>() == 16);

/// What a limit says of one more frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is one too many.
    Refused,
    /// It may go, and so much is to be added to [`Storm::paid`].
    Add(u64),
    /// It may go, and [`Storm::paid`] becomes this: nothing was owed.
    Restart(u64),
}

impl Storm {
    /// Whether there is a limit at all.
    #[inline(always)]
    pub fn is_limited(&self) -> bool {
        self.spacing_ns.load(Ordering::Relaxed) != 0
    }

    /// The word that what is let through is noted in.
    #[inline(always)]
    pub const fn paid(&self) -> &AtomicU64 {
        &self.paid_ns
    }

    /// Whether one more frame may be flooded at a monotonic time in ns.
    #[inline(always)]
    pub fn admit(&self, now_ns: u64) -> Admission {
        let spacing = u64::from(self.spacing_ns.load(Ordering::Relaxed));
        if spacing == 0 {
            return Admission::Add(0);
        }
        let paid = self.paid_ns.load(Ordering::Relaxed);
        if paid <= now_ns {
            return Admission::Restart(now_ns + spacing);
        }
        // The frame itself is one of those that may come at once.
        let most = spacing * u64::from(self.burst.load(Ordering::Relaxed));
        if paid - now_ns + spacing > most { Admission::Refused } else { Admission::Add(spacing) }
    }

    /// Sets the limit, in frames a second; zero for none. What was used up stays so.
    pub fn set(&self, frames_per_second: u32) {
        let spacing = 1_000_000_000_u32.checked_div(frames_per_second.min(MAX_STORM_LIMIT)).unwrap_or(0);
        self.burst.store((frames_per_second / BURST_SHARE).max(MIN_BURST), Ordering::Relaxed);
        self.spacing_ns.store(spacing, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of frames at these times pass.
    fn passed(storm: &Storm, times: impl Iterator<Item = u64>) -> u32 {
        let mut passed = 0;
        for now in times {
            match storm.admit(now) {
                Admission::Refused => continue,
                Admission::Add(ns) => {
                    storm.paid_ns.store(storm.paid_ns.load(Ordering::Relaxed) + ns, Ordering::Relaxed)
                }
                Admission::Restart(ns) => storm.paid_ns.store(ns, Ordering::Relaxed),
            }
            passed += 1;
        }
        passed
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn without_a_limit_all_pass() {
        let storm = Storm::default();
        assert!(!storm.is_limited());
        assert_eq!(passed(&storm, (0..1000).map(|_| 5)), 1000);
    }

    #[test]
    fn a_burst_passes_and_then_so_many_a_second() {
        let storm = Storm::default();
        storm.set(1000);
        assert!(storm.is_limited());
        assert_eq!(passed(&storm, (0..5000).map(|_| SECOND)), 250);
        // Ten thousand a second for four seconds, right behind.
        assert_eq!(passed(&storm, (0..40_000).map(|n| SECOND + n * 100_000)), 3999);
        // A quiet while, and the burst is there again.
        assert_eq!(passed(&storm, (0..5000).map(|_| 60 * SECOND)), 250);
    }

    #[test]
    fn small_limits_let_a_few_frames_come_together() {
        let storm = Storm::default();
        storm.set(1);
        assert_eq!(passed(&storm, (0..100).map(|_| SECOND)), 32);
        assert_eq!(passed(&storm, (0..1000).map(|n| SECOND + n * SECOND / 100)), 9);
        storm.set(MAX_STORM_LIMIT);
        assert!(storm.is_limited());
        storm.set(0);
        assert_eq!(passed(&storm, (0..1000).map(|_| SECOND)), 1000);
    }
}
