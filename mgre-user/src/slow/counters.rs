//! What the slow path counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What can happen to a packet of the slow path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// An outer packet came from the kernel: of several fragments, or with IP options.
    Reassembled,
    /// It was given to the datapath.
    Reinjected,
    /// It was not: no peer's, malformed, or too many.
    Refused,
    /// A packet left in fragments.
    Fragmented,
    /// A sender was told that its packet is too big.
    IcmpSent,
    /// A sender was not told: it must not be, or too many were.
    IcmpSuppressed,
    /// A router's word that our packet was too big was taken.
    IcmpReceived,
    /// It was not: about nothing that we could have sent, or no news.
    IcmpIgnored,
    /// A frame was lost on its way through the pair of interfaces: a CPU's queue of received frames was full.
    Overflowed,
}

impl Happening {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Reassembled,
        Self::Reinjected,
        Self::Refused,
        Self::Fragmented,
        Self::IcmpSent,
        Self::IcmpSuppressed,
        Self::IcmpReceived,
        Self::IcmpIgnored,
        Self::Overflowed,
    ];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reassembled => "reassembled",
            Self::Reinjected => "reinjected",
            Self::Refused => "refused",
            Self::Fragmented => "fragmented",
            Self::IcmpSent => "icmp_sent",
            Self::IcmpSuppressed => "icmp_suppressed",
            Self::IcmpReceived => "icmp_received",
            Self::IcmpIgnored => "icmp_ignored",
            Self::Overflowed => "overflowed",
        }
    }
}

/// Counts of everything that happened. A copy counts into the same numbers.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<[AtomicU64; Happening::ALL.len()]>);

impl Counters {
    /// Counts one packet.
    pub fn count(&self, happening: Happening) {
        self.0[happening as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts several packets.
    pub fn add(&self, happening: Happening, packets: u64) {
        self.0[happening as usize].fetch_add(packets, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn get(&self, happening: Happening) -> u64 {
        self.0[happening as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_number_and_name() {
        let counters = Counters::default();
        for (times, happening) in Happening::ALL.into_iter().enumerate() {
            assert_eq!(happening as usize, times);
            (0..times).for_each(|_| counters.clone().count(happening));
        }
        let counts: Vec<u64> = Happening::ALL.iter().map(|happening| counters.get(*happening)).collect();
        assert_eq!(counts, (0..Happening::ALL.len() as u64).collect::<Vec<_>>());
        let names: std::collections::BTreeSet<_> = Happening::ALL.iter().map(|one| one.name()).collect();
        assert_eq!(names.len(), Happening::ALL.len());
    }
}
