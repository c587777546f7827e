//! The forwarding database: MAC address and segment to target.
//!
//! A fixed array of 64-byte buckets, four slots each. An address has a home bucket
//! and a second one, and is in either; where both are full it is in the stash, a
//! sixteenth as many buckets behind the others, and its home bucket is marked. So
//! a lookup touches one cache line, two where the address lives in its second
//! bucket or nowhere, and three only where its home bucket is marked. The daemon
//! alone inserts and removes, through shared memory; the datapath reads, and writes
//! nothing but a slot's age.
//!
//! # Memory protocol
//!
//! A slot is three words, and a reader takes the target only after it saw its own
//! key there. Programs may read the words of a slot in any order (a weakly ordered
//! machine gives an eBPF program no more), so what follows must not, and does not,
//! rest on the order of a reader's loads, but for one fact: a program runs for
//! microseconds inside an RCU read section. A slot **rests** when no program is left
//! that began before the last store to it, by [`QUARANTINE_SECONDS`] or by a grace
//! period that the writer waits for.
//!
//! - insert, into an empty slot that has rested: target and age first, the key
//!   last, with release order. A program finds the slot without the key (a miss: the
//!   address is new), or with the key and the target, or with the key and
//!   [`Target::NONE`], which the slot held since it was emptied: a miss too.
//! - retarget: one 32-bit store. Whether the entry is fixed or held is in the same word.
//! - remove: the key is cleared, then the target; then the slot rests. No program
//!   can still have seen the old key when a new target is stored.
//! - stash: an entry is inserted there first, and its home bucket marked then. It is
//!   unmarked when no entry of its is left in the stash.
//! - move to the other bucket (only where the stash is full as well): the target is
//!   stored in the new slot, then the key; the key is cleared in the old slot, then
//!   the target; and after each of the four the writer waits for a grace period. So
//!   every program finds the entry, in the old slot, in the new one or in both, and
//!   with its target.
//! - age: the datapath stores the time, and nothing else, in a word of its own. One
//!   that comes late writes the age of an empty slot that still rests.
//!
//! The models in `fdb/models.rs` run through the interleavings and reorderings.

use core::fmt;
use core::sync::atomic::Ordering;

use bytemuck::{Pod, Zeroable};

use crate::cell::{AtomicU32, AtomicU64};

use crate::target::Target;
use crate::wire::MacAddr;

/// Slots in a bucket.
pub const SLOTS: usize = 4;

/// The most entries that a table is made for.
pub const MAX_ENTRIES: u32 = 1 << 20;

/// How long a removed slot rests, at least, before it is used again.
pub const QUARANTINE_SECONDS: u32 = 2;

/// The age of an entry that is fixed: it never ages and never moves.
pub const SEEN_STATIC: u32 = u32::MAX;

/// In the word of a slot's target: the entry is fixed.
const FIXED: u32 = 1 << 29;
/// In the same word: the address was seen in two places by turns. Few of its frames are flooded
/// for now, and none that come from elsewhere.
const HELD: u32 = 1 << 27;
/// In the same word of a bucket's first slot: the stash holds entries of this bucket.
const OVERFLOWED: u32 = 1 << 28;
const TARGET_MASK: u32 = !(FIXED | HELD | OVERFLOWED);

/// Buckets to one bucket of the stash, as a shift.
const STASH_SHIFT: u32 = 4;

#[cfg(target_endian = "little")]
const MAC_MASK: u64 = 0xffff_ffff_ffff;

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

    /// The key of an address at the start of eight bytes loaded from the wire.
    #[inline(always)]
    pub const fn from_load(segment: u16, load: u64) -> Self {
        #[cfg(target_endian = "little")]
        let mac = load & MAC_MASK;
        #[cfg(target_endian = "big")]
        let mac = load >> 32 | (load >> 16 & 0xffff) << 32;
        Self(mac | (segment as u64) << 48)
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

/// The word of a slot that says where its entry points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding(u32);

impl Binding {
    /// Where frames to the address go.
    #[inline(always)]
    pub const fn target(self) -> Target {
        Target::from_bits(self.0 & TARGET_MASK)
    }

    /// Whether the entry never ages and never moves.
    #[inline(always)]
    pub const fn is_fixed(self) -> bool {
        self.0 & FIXED != 0
    }

    /// Whether the address was seen in two places by turns, and is held where it is.
    #[inline(always)]
    pub const fn is_held(self) -> bool {
        self.0 & HELD != 0
    }
}

/// One cache line of the FDB.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Bucket {
    /// The slots; an entry may be in any of them.
    pub slots: [Slot; SLOTS],
}

// Loom's words are larger.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 16 && size_of::<Bucket>() == 64);

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

    /// Where frames to its address go, and whether that is fixed, as of one moment.
    #[inline(always)]
    pub fn binding(&self) -> Binding {
        Binding(self.target.load(Ordering::Relaxed))
    }

    /// Where frames to its address go.
    #[inline(always)]
    pub fn target(&self) -> Target {
        self.binding().target()
    }

    /// [`crate::table::Clock::seconds`] when its address was last a source, or [`SEEN_STATIC`].
    #[inline(always)]
    pub fn seen(&self) -> u32 {
        if self.binding().is_fixed() { SEEN_STATIC } else { self.seen.load(Ordering::Relaxed) }
    }

    /// Notes that its address was just seen. Stores only what changes, so that a
    /// busy entry's cache line stays shared between CPUs.
    #[inline(always)]
    pub fn touch(&self, now_seconds: u32) {
        if self.seen.load(Ordering::Relaxed) != now_seconds && !self.binding().is_fixed() {
            self.seen.store(now_seconds, Ordering::Relaxed);
        }
    }

    /// Fills an empty slot that has rested. Only for the one writer.
    pub fn insert(&self, key: FdbKey, target: Target, seen: u32) {
        self.stage(target, seen);
        self.publish(key);
    }

    /// The first half of [`Self::insert`]: what no reader looks at without the key.
    pub fn stage(&self, target: Target, seen: u32) {
        self.set_target(target, seen);
    }

    /// The second half of [`Self::insert`].
    pub fn publish(&self, key: FdbKey) {
        self.key.store(key.0, Ordering::Release);
    }

    /// Points an entry elsewhere. Only for the one writer.
    pub fn retarget(&self, target: Target, seen: u32) {
        self.set_target(target, seen);
    }

    /// Holds an entry where it is, or lets it go. Only for the one writer.
    pub fn hold(&self, held: bool) {
        let word = self.target.load(Ordering::Relaxed) & !HELD;
        self.target.store(word | if held { HELD } else { 0 }, Ordering::Release);
    }

    /// Empties the slot. Only for the one writer, which must let the slot rest.
    pub fn clear(&self) {
        self.unpublish();
        self.unstage();
    }

    /// The first half of [`Self::clear`].
    pub fn unpublish(&self) {
        self.key.store(0, Ordering::Release);
    }

    /// The second half of [`Self::clear`].
    pub fn unstage(&self) {
        self.set_word(0);
    }

    fn set_target(&self, target: Target, seen: u32) {
        let fixed = if seen == SEEN_STATIC { FIXED } else { 0 };
        self.set_word(target.to_bits() & TARGET_MASK | fixed);
        self.seen.store(seen, Ordering::Relaxed);
    }

    /// Stores the target's word, all but the bucket's mark.
    fn set_word(&self, word: u32) {
        let mark = self.target.load(Ordering::Relaxed) & OVERFLOWED;
        self.target.store(word | mark, Ordering::Release);
    }
}

impl Bucket {
    /// Loads of it what brings its cache line near, for a look at it soon.
    #[inline(always)]
    pub fn fetch(&self) {
        // On the eBPF target every load is a volatile one, so this is not left out.
        self.slots[0].key();
    }

    /// A key's slot.
    #[inline(always)]
    pub fn find(&self, key: FdbKey) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.holds(key))
    }

    /// Whether the stash holds entries whose home this is.
    #[inline(always)]
    pub fn overflowed(&self) -> bool {
        self.slots[0].target.load(Ordering::Relaxed) & OVERFLOWED != 0
    }

    /// Says so. Only for the one writer: after it has put an entry into the stash,
    /// and after it has removed the last one.
    pub fn set_overflowed(&self, overflowed: bool) {
        let word = self.slots[0].target.load(Ordering::Relaxed) & !OVERFLOWED;
        let mark = if overflowed { OVERFLOWED } else { 0 };
        self.slots[0].target.store(word | mark, Ordering::Release);
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
    /// The home bucket (`choice` 0) or the second one (1) of a key.
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

    /// The bucket of the stash that takes what a home bucket has no room for.
    #[inline(always)]
    pub const fn stash(&self, home: u32) -> u32 {
        self.buckets() + (home >> STASH_SHIFT)
    }

    /// How many buckets there are but for the stash.
    #[inline(always)]
    pub const fn buckets(&self) -> u32 {
        1 << (u64::BITS - self.shift)
    }

    /// Finds a key's slot; `buckets` gives access to the table.
    #[inline(always)]
    pub fn find<'a>(&self, key: FdbKey, buckets: impl Fn(u32) -> Option<&'a Bucket>) -> Option<&'a Slot> {
        let number = self.bucket(key, 0);
        let home = buckets(number)?;
        if let Some(slot) = home.find(key) {
            return Some(slot);
        }
        if let Some(slot) = buckets(self.bucket(key, 1))?.find(key) {
            return Some(slot);
        }
        if home.overflowed() { buckets(self.stash(number))?.find(key) } else { None }
    }
}

/// Buckets for so many entries, the stash apart: a power of two that is at most half
/// full, where fewer than one entry in a thousand finds both its buckets full.
pub const fn buckets_for(entries: u32) -> u32 {
    let wanted = (entries as u64).div_ceil(2) as u32;
    if wanted < 16 { 16 } else { wanted.next_power_of_two() }
}

/// The length of a table of so many buckets, with its stash.
pub const fn table_len(buckets: u32) -> u32 {
    buckets + (buckets >> STASH_SHIFT)
}

/// [`FdbHash::shift`] for so many buckets: a power of two, and more than one.
pub const fn hash_shift(buckets: u32) -> u32 {
    u64::BITS - buckets.trailing_zeros()
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models;
