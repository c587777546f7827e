//! Whose packet it is: outer addresses and key to adjacency.
//!
//! Every endpoint is in a hash map. Those of adjacencies are in an index before it
//! as well, which is an array in shared memory: a slot is one cache line, an
//! endpoint may be in any of four, and nearly all are in one. A packet of a peer
//! is found there with no helper call; one that is not found there (few endpoints,
//! and packets of strangers) costs a look into the hash map. The index says the
//! adjacency's segment, too, so its record need not be looked at.
//!
//! # Memory protocol
//!
//! As that of [`crate::fdb`], it does not rest on the order of a reader's loads. A slot has five words of the
//! endpoint, which a reader compares, and one of the owner.
//!
//! - insert, into an empty slot that has rested: the owner first, the word with the key's kind last, with release
//!   order. Each word that a reader sees is the new one, or the zero that it held since the slot was emptied. Of two
//!   endpoints one word at least is different; where the one has zero there and the other has not, others are
//!   different as well (an IPv4 address is mapped). So a reader takes no other endpoint for its own. (The exception
//!   is a peer whose IPv6 address ends in eight bytes of zero: in the moment in which its neighbour in the same
//!   network is entered, in a slot where it is looked for as well, its packet may be taken for that one's.) It finds
//!   the owner, or zero, which is none: a miss.
//! - give: one store.
//! - remove: all words are zeroed, that with the kind first, then the owner; then the slot rests for
//!   [`crate::fdb::QUARANTINE_SECONDS`]. No program can still have compared the old words when a new owner is stored.
//!
//! The models in `endpoint/models.rs` run through the interleavings and reorderings, and show what is lost without
//! each.

use core::net::IpAddr;
use core::sync::atomic::Ordering;

use bytemuck::{Pod, Zeroable};

use crate::cell::AtomicU64;
#[cfg(not(loom))]
use crate::template::Key;

#[cfg(all(test, loom))]
mod models;

/// How an [`EndpointKey`] is to be read.
pub mod endpoint_kind {
    /// A GRE packet without a key.
    pub const KEYLESS: u32 = 1;
    /// A GRE packet with this key.
    pub const KEYED: u32 = 2;
    /// Any: says only that the two addresses belong to a peer. The value is not used.
    pub const KNOWN: u32 = 3;
    /// The local address is one of ours; remote is zero. The value has [`super::local_flag`] bits.
    pub const LOCAL: u32 = 4;
    /// A GRE packet with this virtual subnet id, whatever its flow id, which is zero here
    /// (RFC 7637 3.2).
    pub const VSID: u32 = 5;
}

/// The part of a key that is a virtual subnet id (RFC 7637 3.2), as on the wire.
pub const VSID_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);

/// Bits of the value of [`endpoint_kind::LOCAL`].
pub mod local_flag {
    /// GRE for this address that is no peer's is handed to the kernel.
    pub const PASS_FOREIGN: u32 = 1;
}

/// What identifies a peer's packet: addresses and key. IPv4 addresses are
/// IPv4-mapped (RFC 4291 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct EndpointKey {
    /// Outer source address, as on the wire.
    pub remote: [u32; 4],
    /// Outer destination address, as on the wire.
    pub local: [u32; 4],
    /// The GRE key as on the wire, zero where the kind has none.
    pub key: u32,
    /// An [`endpoint_kind`].
    pub kind: u32,
}

const WORDS: usize = 5;

const _: () = assert!(size_of::<EndpointKey>() == WORDS * 8);

/// An [`EndpointKey`] as tables hold it; the last word has the kind.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct EndpointWords([u64; WORDS]);

impl EndpointKey {
    /// Whether the index has such endpoints.
    pub const fn is_indexed(&self) -> bool {
        matches!(self.kind, endpoint_kind::KEYLESS | endpoint_kind::KEYED | endpoint_kind::VSID)
    }

    /// As words.
    #[inline(always)]
    pub const fn words(&self) -> EndpointWords {
        let Self { remote, local, key, kind } = *self;
        EndpointWords([
            pair(remote[0], remote[1]),
            pair(remote[2], remote[3]),
            pair(local[0], local[1]),
            pair(local[2], local[3]),
            pair(key, kind),
        ])
    }
}

#[inline(always)]
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// An IPv4 address, its four bytes as they stand on the wire, in the form of [`EndpointKey`].
#[inline(always)]
pub const fn mapped_v4(address: u32) -> [u32; 4] {
    [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), address]
}

/// Any address in the form of [`EndpointKey`].
pub const fn endpoint_address(address: IpAddr) -> [u32; 4] {
    let octets = match address {
        IpAddr::V4(v4) => return mapped_v4(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => v6.octets(),
    };
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
    let word = u32::from_ne_bytes;
    [word([a, b, c, d]), word([e, f, g, h]), word([i, j, k, l]), word([m, n, o, p])]
}

/// Kind and value of a key in the form of [`EndpointKey`].
#[cfg(not(loom))]
pub const fn endpoint_key(key: Key) -> (u32, u32) {
    let kind = match key {
        Key::None => endpoint_kind::KEYLESS,
        Key::Plain(_) => endpoint_kind::KEYED,
        Key::Vsid(_) => endpoint_kind::VSID,
    };
    (kind, key.to_wire())
}

/// One endpoint in the index.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct EndpointSlot {
    words: [AtomicU64; WORDS],
    /// The adjacency's id, and above it its segment's and how its packets are taken.
    owner: AtomicU64,
    /// Zero.
    reserved: [u64; 2],
}

/// Whose an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The adjacency's id.
    pub adjacency: u32,
    /// The id of its segment.
    pub segment: u16,
    /// [`adjacency_flag::RECEIVE`] bits.
    ///
    /// [`adjacency_flag::RECEIVE`]: crate::table::adjacency_flag::RECEIVE
    pub flags: u16,
}

impl Owner {
    const fn to_bits(self) -> u64 {
        pair(self.adjacency, (self.flags as u32) << 16 | self.segment as u32)
    }
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<EndpointSlot>() == 64);

impl EndpointSlot {
    /// Whether it holds this endpoint.
    #[inline(always)]
    pub fn holds(&self, words: &EndpointWords) -> bool {
        let word = |index: usize| self.words[index].load(Ordering::Relaxed) == words.0[index];
        // Those that differ most come first.
        word(1) && word(4) && word(3) && word(0) && word(2)
    }

    /// Whose it is; none if it is just being filled. A segment's id is not zero.
    #[inline(always)]
    pub fn owner(&self) -> Option<Owner> {
        let bits = self.owner.load(Ordering::Relaxed);
        let owner =
            Owner { adjacency: bits as u32, segment: (bits >> 32) as u16, flags: (bits >> 48) as u16 };
        (owner.segment != 0).then_some(owner)
    }

    /// Whether it holds none.
    pub fn is_free(&self) -> bool {
        self.words[WORDS - 1].load(Ordering::Relaxed) == 0
    }

    /// Fills a free slot that has rested. Only for the one writer.
    pub fn insert(&self, words: &EndpointWords, owner: Owner) {
        self.owner.store(owner.to_bits(), Ordering::Relaxed);
        for (cell, word) in self.words.iter().zip(words.0).take(WORDS - 1) {
            cell.store(word, Ordering::Relaxed);
        }
        self.words[WORDS - 1].store(words.0[WORDS - 1], Ordering::Release);
    }

    /// Gives its endpoint to another adjacency. Only for the one writer.
    pub fn give(&self, owner: Owner) {
        self.owner.store(owner.to_bits(), Ordering::Release);
    }

    /// Frees it. Only for the one writer, which must let the slot rest.
    pub fn clear(&self) {
        for word in self.words.iter().rev() {
            word.store(0, Ordering::Release);
        }
        self.owner.store(0, Ordering::Release);
    }
}

/// Slots in which an endpoint may be.
pub const CHOICES: usize = 4;

/// Where in the index an endpoint may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointIndex {
    /// 64 less the binary logarithm of the number of pairs of slots.
    pub shift: u32,
}

impl EndpointIndex {
    /// Slots for so many adjacencies: at most half of them are in use where there is
    /// one local address.
    pub const fn slots_for(adjacencies: u32) -> u32 {
        let wanted = if adjacencies < 16 { 32 } else { adjacencies.saturating_mul(2) };
        wanted.next_power_of_two()
    }

    /// For so many slots: a power of two, and more than two.
    pub const fn new(slots: u32) -> Self {
        Self { shift: u64::BITS - (slots.trailing_zeros() - 1) }
    }

    /// The slots that an endpoint may be in: two pairs of neighbours.
    ///
    /// The sum of products is multilinear hashing, of which the top bits are good.
    #[inline(always)]
    pub const fn slots(self, words: &EndpointWords) -> [u32; CHOICES] {
        let w = &words.0;
        let sum = w[0]
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(w[1].wrapping_mul(0xc2b2_ae3d_27d4_eb4f))
            .wrapping_add(w[2].wrapping_mul(0x1656_67b1_9e37_79f9))
            .wrapping_add(w[3].wrapping_mul(0x27d4_eb2f_1656_67c5))
            .wrapping_add(w[4].wrapping_mul(0x85eb_ca77_c2b2_ae63));
        let hash = (sum ^ sum >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let first = (hash >> self.shift) as u32 * 2;
        let second = ((hash << 32) >> self.shift) as u32 * 2;
        [first, first + 1, second, second + 1]
    }

    /// Finds an endpoint's slot; `slot` gives access to the table.
    #[inline(always)]
    pub fn find<'a>(
        self,
        words: &EndpointWords,
        slot: impl Fn(u32) -> Option<&'a EndpointSlot>,
    ) -> Option<&'a EndpointSlot> {
        for index in self.slots(words) {
            if let Some(slot) = slot(index)
                && slot.holds(words)
            {
                return Some(slot);
            }
        }
        None
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: the type is `bytemuck::Pod`: any bits are a value and no byte is padding.
    unsafe impl aya::Pod for super::EndpointWords {}
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn key(remote: u32, local: u32, key: u32) -> EndpointKey {
        EndpointKey {
            remote: mapped_v4(remote.to_be()),
            local: mapped_v4(local.to_be()),
            key: key.to_be(),
            kind: endpoint_kind::KEYED,
        }
    }

    fn owner(adjacency: u32) -> Owner {
        Owner { adjacency, segment: (adjacency % 7 + 1) as u16, flags: (adjacency % 3) as u16 }
    }

    fn fill(keys: &[EndpointKey]) -> (Vec<EndpointSlot>, EndpointIndex, usize) {
        let count = EndpointIndex::slots_for(keys.len() as u32);
        let slots: Vec<_> = (0..count).map(|_| EndpointSlot::default()).collect();
        let index = EndpointIndex::new(count);
        let mut placed = 0;
        for (id, key) in keys.iter().enumerate() {
            let words = key.words();
            let free = index.slots(&words).into_iter().find(|slot| slots[*slot as usize].is_free());
            if let Some(slot) = free {
                slots[slot as usize].insert(&words, owner(id as u32));
                placed += 1;
            }
        }
        (slots, index, placed)
    }

    /// Peers of one network, several networks, and one peer in many segments.
    #[test]
    fn nearly_all_endpoints_have_a_place_and_all_placed_are_found() {
        let one_network: Vec<_> = (0..10_000).map(|i| key(0x0a00_0001 + i, 0x0a01_0001, 7)).collect();
        let networks: Vec<_> = (0..10_000).map(|i| key(0x0a00_0001 + (i << 8), 0x0a01_0001, 7)).collect();
        let segments: Vec<_> = (0..4000).map(|i| key(0x0a00_0001, 0x0a01_0001, i)).collect();
        for keys in [one_network, networks, segments] {
            let (slots, index, placed) = fill(&keys);
            // In the fullest of them, which has half its slots in use.
            let few = keys.len() * 3 / 100;
            assert!(placed >= keys.len() - few, "{placed} of {}", keys.len());
            let mut found = 0;
            for (id, key) in keys.iter().enumerate() {
                if let Some(slot) = index.find(&key.words(), |slot| slots.get(slot as usize)) {
                    assert_eq!(slot.owner(), Some(owner(id as u32)));
                    found += 1;
                }
            }
            assert_eq!(found, placed);
        }
    }

    #[test]
    fn every_part_of_a_key_counts() {
        let one = key(1, 2, 3);
        let (slots, index, _) = fill(&[one]);
        let find = |key: EndpointKey| index.find(&key.words(), |slot| slots.get(slot as usize)).is_some();
        assert!(find(one));
        let mut others = vec![
            EndpointKey { kind: endpoint_kind::KEYLESS, ..one },
            EndpointKey { key: 4_u32.to_be(), ..one },
        ];
        for word in 0..4 {
            let (mut remote, mut local) = (one.remote, one.local);
            remote[word] ^= 1;
            local[word] ^= 1;
            others.extend([EndpointKey { remote, ..one }, EndpointKey { local, ..one }]);
        }
        for other in others {
            // Wherever it would be looked for.
            assert!(!slots.iter().any(|slot| slot.holds(&other.words())), "{other:?}");
            assert!(!find(other));
        }
    }

    #[test]
    fn a_slot_can_be_cleared_and_retargeted() {
        let one = key(1, 2, 3);
        let slot = EndpointSlot::default();
        assert!(slot.is_free());
        slot.insert(&one.words(), owner(9));
        slot.give(owner(10));
        assert!(slot.holds(&one.words()) && slot.owner() == Some(owner(10)));
        slot.clear();
        assert!(slot.is_free() && !slot.holds(&one.words()));
    }

    #[test]
    fn sizes() {
        assert_eq!((EndpointIndex::slots_for(1), EndpointIndex::slots_for(16_384)), (32, 32_768));
        assert_eq!(EndpointIndex::new(32).shift, 60);
    }
}
