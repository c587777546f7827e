//! The MAC addresses that packets for this host's underlay interfaces are sent to.

use core::sync::atomic::Ordering;

use crate::cell::AtomicU64;
use crate::wire::MacAddr;

/// Addresses of underlay interfaces at which XDP takes packets, in a map of one. (A socket buffer says itself whether
/// it was sent to its interface.)
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct NearMacs([AtomicU64; Self::SLOTS]);

const _: () = assert!(size_of::<NearMacs>() == 64);

impl NearMacs {
    const SLOTS: usize = 8;
    /// What is in use is not zero.
    const USED: u64 = 1 << 63;

    /// Notes the addresses, and forgets all others. Of two that end in the same three bits, one has the place; XDP
    /// leaves what is sent to the other to TC.
    pub fn set(&self, macs: impl IntoIterator<Item = MacAddr>) {
        let mut words = [0; Self::SLOTS];
        for mac in macs {
            words[Self::slot(mac)] = Self::word(mac);
        }
        for (slot, word) in self.0.iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
    }

    /// Whether this is one of them.
    #[inline(always)]
    pub fn contain(&self, mac: MacAddr) -> bool {
        self.0[Self::slot(mac)].load(Ordering::Relaxed) == Self::word(mac)
    }

    #[inline(always)]
    const fn slot(MacAddr([.., last]): MacAddr) -> usize {
        last as usize % Self::SLOTS
    }

    #[inline(always)]
    const fn word(MacAddr([a, b, c, d, e, f]): MacAddr) -> u64 {
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) | Self::USED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_known_until_others_are_set() {
        let macs = NearMacs::default();
        let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
        assert!(!macs.contain(MacAddr::ZERO), "none is none");
        macs.set([mac(1), mac(2)]);
        assert!(
            macs.contain(mac(1)) && macs.contain(mac(2)) && !macs.contain(mac(3)) && !macs.contain(mac(9))
        );
        macs.set([mac(9), mac(3)]);
        assert!(
            !macs.contain(mac(1)) && !macs.contain(mac(2)) && macs.contain(mac(3)) && macs.contain(mac(9))
        );
    }
}
