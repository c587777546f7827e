//! What the daemon counts, not the datapath: kept in a map, so that it outlives the daemon. No program reads it.

use crate::cell::AtomicU64;

/// Numbers of one segment, or, as the first in the map, of the instance. Written by the daemon alone.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Tally {
    /// By [`segment`] and [`instance`].
    pub numbers: [AtomicU64; 8],
}

/// Which number of a segment is where.
pub mod segment {
    /// Learned addresses that moved.
    pub const MOVES: usize = 0;
    /// Learned addresses that were held where they were.
    pub const HOLDS: usize = 1;
    /// IP addresses that two hosts claimed.
    pub const DUPLICATES: usize = 2;
}

/// Which number of the instance is where.
pub mod instance {
    /// Addresses that the datapath reported.
    pub const EVENTS: usize = 0;
    /// When the daemon was last known to be alive: seconds of `CLOCK_BOOTTIME`.
    pub const ALIVE: usize = 1;
    /// When the clock stood still, the latest first: see [`super::Pause`].
    pub const PAUSES: core::ops::Range<usize> = 2..8;
}

/// A time during which the daemon's clock ([`crate::table::Clock`]) stood still: there was no daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// What the clock said.
    pub at: u32,
    /// How long, in seconds; zero: there was none.
    pub seconds: u32,
}

impl Pause {
    /// From one word.
    pub const fn from_bits(bits: u64) -> Self {
        Self { at: (bits >> 32) as u32, seconds: bits as u32 }
    }

    /// As one word.
    pub const fn to_bits(self) -> u64 {
        (self.at as u64) << 32 | self.seconds as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_one_word() {
        for pause in
            [Pause::default(), Pause { at: 7, seconds: u32::MAX }, Pause { at: u32::MAX, seconds: 1 }]
        {
            assert_eq!(Pause::from_bits(pause.to_bits()), pause);
        }
    }
}
