//! The forwarding database: MAC address and segment to target.
//!
//! A fixed array of 64-byte buckets, four slots each, so that a lookup touches
//! one cache line, or two when the address lives in its second bucket. The
//! daemon alone inserts and removes, through shared memory; the datapath reads,
//! and writes nothing but a slot's age.
//!
//! # Memory protocol
//!
//! A reader takes a slot's target only after it saw its own key there. So:
//!
//! - insert: target and age are stored first, the key last, with release order;
//! - move: the target is one 32-bit store;
//! - remove: the key is cleared, then the target; and the slot is not used again
//!   before [`QUARANTINE_SECONDS`] have passed.
//!
//! A datapath program runs for microseconds. When a slot is used again, no
//! reader is left that saw the old key, and every CPU has seen the target
//! cleared; a reader that sees the new key early reads either the new target or
//! [`Target::NONE`], which is a miss. It never takes a value for another key,
//! on weakly ordered machines too.

use core::fmt;
use core::sync::atomic::Ordering;

use bytemuck::{Pod, Zeroable};

use crate::cell::{AtomicU32, AtomicU64};

use crate::target::Target;
use crate::wire::MacAddr;

/// Slots in a bucket.
pub const SLOTS: usize = 4;

/// How long a removed slot rests before it is used again.
pub const QUARANTINE_SECONDS: u32 = 2;

/// The age of an entry that never ages and never moves.
pub const SEEN_STATIC: u32 = u32::MAX;

/// Segment id (never zero) in the top 16 bits, the MAC's six bytes below, in the
/// order in which this machine loads them from memory.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct FdbKey(pub u64);

impl FdbKey {
    /// No key: an empty slot.
    pub const EMPTY: Self = Self(0);

    /// The key of an address in a segment.
    #[inline(always)]
    pub const fn new(segment: u16, mac: MacAddr) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        let low = u32::from_ne_bytes([a, b, c, d]);
        let high = u16::from_ne_bytes([e, f]);
        Self(low as u64 | (high as u64) << 32 | (segment as u64) << 48)
    }

    /// The key of an address given as three words loaded from the wire.
    #[inline(always)]
    pub const fn from_words(segment: u16, mac: [u16; 3]) -> Self {
        #[cfg(target_endian = "little")]
        let low = mac[0] as u64 | (mac[1] as u64) << 16;
        #[cfg(target_endian = "big")]
        let low = (mac[0] as u64) << 16 | mac[1] as u64;
        Self(low | (mac[2] as u64) << 32 | (segment as u64) << 48)
    }

    /// The segment id.
    #[inline(always)]
    pub const fn segment(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The address.
    #[inline(always)]
    pub const fn mac(self) -> MacAddr {
        let [a, b, c, d] = (self.0 as u32).to_ne_bytes();
        let [e, f] = ((self.0 >> 32) as u16).to_ne_bytes();
        MacAddr([a, b, c, d, e, f])
    }
}

impl fmt::Debug for FdbKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.segment(), self.mac())
    }
}

/// One entry of the FDB.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Slot {
    key: AtomicU64,
    target: AtomicU32,
    seen: AtomicU32,
}

/// One cache line of the FDB.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Bucket {
    /// The slots; an entry may be in any of them.
    pub slots: [Slot; SLOTS],
}

const _: () = assert!(size_of::<Slot>() == 16);
const _: () = assert!(size_of::<Bucket>() == 64);

impl Slot {
    /// Whether the slot holds this key.
    #[inline(always)]
    pub fn holds(&self, key: FdbKey) -> bool {
        self.key.load(Ordering::Relaxed) == key.0
    }

    /// The key it holds, or [`FdbKey::EMPTY`].
    #[inline(always)]
    pub fn key(&self) -> FdbKey {
        FdbKey(self.key.load(Ordering::Relaxed))
    }

    /// Where frames to its address go.
    #[inline(always)]
    pub fn target(&self) -> Target {
        Target::from_bits(self.target.load(Ordering::Relaxed))
    }

    /// [`crate::table::Clock::seconds`] when its address was last a source, or [`SEEN_STATIC`].
    #[inline(always)]
    pub fn seen(&self) -> u32 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Notes that its address was just seen. Stores only what changes, so that a
    /// busy entry's cache line stays shared between CPUs.
    #[inline(always)]
    pub fn touch(&self, now_seconds: u32) {
        let seen = self.seen();
        if seen != now_seconds && seen != SEEN_STATIC {
            self.seen.store(now_seconds, Ordering::Relaxed);
        }
    }

    /// Fills an empty slot that has rested. Only for the one writer.
    pub fn insert(&self, key: FdbKey, target: Target, seen: u32) {
        self.target.store(target.to_bits(), Ordering::Relaxed);
        self.seen.store(seen, Ordering::Relaxed);
        self.key.store(key.0, Ordering::Release);
    }

    /// Points an entry elsewhere. Only for the one writer.
    pub fn retarget(&self, target: Target, seen: u32) {
        self.target.store(target.to_bits(), Ordering::Release);
        self.seen.store(seen, Ordering::Relaxed);
    }

    /// Empties the slot. Only for the one writer, which must let the slot rest.
    pub fn clear(&self) {
        self.key.store(0, Ordering::Release);
        self.target.store(0, Ordering::Release);
    }
}

/// Which buckets an address may be in. The multipliers are drawn by the daemon,
/// so that nobody on the wire can aim many addresses at one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbHash {
    /// 64 less the binary logarithm of the number of buckets ([`hash_shift`]).
    pub shift: u32,
    /// Two odd numbers.
    pub multipliers: [u64; 2],
}

impl FdbHash {
    /// The first bucket (`choice` 0) or the second one (1) of a key.
    ///
    /// A carry goes up, never down: only a product's top bits depend on every bit
    /// of the key, the segment and the end of the address among them. Folded, they
    /// stir the second product, so that keys in sequence (one vendor's addresses,
    /// one address in many segments) spread like random ones, whatever was drawn.
    #[inline(always)]
    pub const fn bucket(&self, key: FdbKey, choice: usize) -> u32 {
        let product = key.0.wrapping_mul(self.multipliers[0]);
        let product = (product ^ product >> 32).wrapping_mul(self.multipliers[1]);
        let half = if choice == 0 { product } else { product << 32 };
        (half >> self.shift) as u32
    }

    /// Finds a key's slot; `buckets` gives access to the table.
    #[inline(always)]
    pub fn find<'a>(&self, key: FdbKey, buckets: impl Fn(u32) -> Option<&'a Bucket>) -> Option<&'a Slot> {
        for choice in 0..2 {
            if let Some(bucket) = buckets(self.bucket(key, choice)) {
                for slot in &bucket.slots {
                    if slot.holds(key) {
                        return Some(slot);
                    }
                }
            }
        }
        None
    }
}

/// Buckets for so many entries: a power of two that is at most half full. Two
/// choices of four slots hold that many, if an entry may now and then be moved to
/// its other bucket to make room.
pub const fn buckets_for(entries: u32) -> u32 {
    let wanted = (entries as u64).div_ceil(2) as u32;
    if wanted < 16 { 16 } else { wanted.next_power_of_two() }
}

/// [`FdbHash::shift`] for so many buckets: a power of two, and more than one.
pub const fn hash_shift(buckets: u32) -> u32 {
    u64::BITS - buckets.trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_come_apart_as_they_were_made(segment in 1u16.., mac: [u8; 6]) {
            let key = FdbKey::new(segment, MacAddr(mac));
            prop_assert_eq!((key.segment(), key.mac()), (segment, MacAddr(mac)));
            prop_assert_ne!(key, FdbKey::EMPTY);
            let words = [0, 2, 4].map(|i| u16::from_ne_bytes([mac[i], mac[i + 1]]));
            prop_assert_eq!(FdbKey::from_words(segment, words), key);
        }

        #[test]
        fn what_is_inserted_is_found_and_nothing_else(
            keys in proptest::collection::hash_set(1u64.., 1..40), absent in 1u64..,
        ) {
            let hash = FdbHash { shift: hash_shift(16), multipliers: [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f] };
            let buckets: Vec<Bucket> = (0..16).map(|_| Bucket::default()).collect();
            let get = |i: u32| buckets.get(i as usize);
            let mut stored = Vec::new();
            for (i, &key) in keys.iter().enumerate() {
                let key = FdbKey(key);
                let free = (0..2).flat_map(|c| &buckets[hash.bucket(key, c) as usize].slots)
                    .find(|slot| slot.holds(FdbKey::EMPTY));
                if let Some(slot) = free {
                    slot.insert(key, Target::port(i as u32), 1);
                    stored.push((key, Target::port(i as u32)));
                }
            }
            for (key, target) in &stored {
                prop_assert_eq!(hash.find(*key, get).map(Slot::target), Some(*target));
            }
            if !keys.contains(&absent) {
                prop_assert!(hash.find(FdbKey(absent), get).is_none());
            }
            for (key, _) in stored {
                hash.find(key, get).expect("stored").clear();
                prop_assert!(hash.find(key, get).is_none());
            }
        }
    }

    #[test]
    fn static_entries_keep_their_age() {
        let slot = Slot::default();
        slot.insert(FdbKey(1), Target::port(1), SEEN_STATIC);
        slot.touch(7);
        assert_eq!(slot.seen(), SEEN_STATIC);
        slot.retarget(Target::port(2), 3);
        slot.touch(7);
        assert_eq!((slot.seen(), slot.target()), (7, Target::port(2)));
    }

    /// Addresses of one vendor, and one address in many segments, are the usual case.
    #[test]
    fn every_part_of_a_key_tells_buckets_apart() {
        const BUCKETS: u32 = 1024;
        let hash = FdbHash {
            shift: hash_shift(BUCKETS),
            multipliers: [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f],
        };
        let spread = |key: &dyn Fn(u16) -> FdbKey| {
            let mut hit = [[false; BUCKETS as usize]; 2];
            for i in 0..BUCKETS as u16 {
                for (choice, hit) in hit.iter_mut().enumerate() {
                    hit[hash.bucket(key(i), choice) as usize] = true;
                }
            }
            hit.map(|hit| hit.iter().filter(|hit| **hit).count())
        };
        let bytes = |i: u16| i.to_be_bytes();
        let by_segment = spread(&|i| FdbKey::new(1 + i, MacAddr([2, 0, 0, 0, 0, 1])));
        let by_end = spread(&|i| FdbKey::new(1, MacAddr([2, 0, 0, 0, bytes(i)[0], bytes(i)[1]])));
        let by_start = spread(&|i| FdbKey::new(1, MacAddr([2, bytes(i)[0], bytes(i)[1], 0, 0, 1])));
        // At random, 63 in 100 buckets would be hit.
        for hit in [by_segment, by_end, by_start].as_flattened() {
            assert!(*hit > 550, "{by_segment:?} {by_end:?} {by_start:?}");
        }
    }

    #[test]
    fn bucket_numbers() {
        assert_eq!((hash_shift(16), hash_shift(65_536)), (60, 48));
        assert_eq!(buckets_for(131_072), 65_536);
        assert_eq!(buckets_for(1), 16);
    }
}
