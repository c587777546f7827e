//! What the pipeline may look up, count and report.

use core::sync::atomic::Ordering;

use mgre_common::cell::AtomicU64;
use mgre_common::endpoint::{EndpointIndex, EndpointSlot, EndpointWords, Owner};
use mgre_common::event::{LearnEvent, TooBigHead};
use mgre_common::fdb::{Bucket, FdbHash, FdbKey, Slot};
use mgre_common::neighbor::{NeighborEvent, NeighborKey, NeighborSlot, Protocol};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::storm::{Admission, Storm};
use mgre_common::table::{Adjacency, FloodSlot, Indexed, Port, PortSlot, Segment, Sequence, VlanKey};
use mgre_common::target::Target;

use crate::frame::Whole;

/// The daemon's clock, read once for each frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// [`mgre_common::table::Clock::seconds`].
    pub seconds: u32,
    /// [`mgre_common::table::Clock::lease`].
    pub lease: u64,
}

/// The tables that the daemon keeps. What they hand out may change under the
/// reader in the ways that `mgre_common::table` describes.
pub trait Tables {
    /// A slot of the port index.
    fn port_slot(&self, index: u32) -> Option<&PortSlot>;

    /// The port that an interface is, whether the index has it or not.
    fn any_port_of(&self, ifindex: u32) -> Option<u32>;

    /// A port's record.
    fn port(&self, id: u32) -> Option<&Port>;

    /// A segment's record.
    fn segment(&self, id: u32) -> Option<&Segment>;

    /// An adjacency's record.
    fn adjacency(&self, id: u32) -> Option<&Adjacency>;

    /// Where the endpoint index keeps an endpoint.
    fn endpoint_index(&self) -> EndpointIndex;

    /// A slot of the endpoint index.
    fn endpoint_slot(&self, index: u32) -> Option<&EndpointSlot>;

    /// What an endpoint stands for, whether the index has it or not.
    fn any_endpoint(&self, key: &EndpointWords) -> Option<u32>;

    /// One slot of the flood lists.
    fn flood_slot(&self, index: u32) -> Option<&FloodSlot>;

    /// Where the FDB keeps an address.
    fn fdb_hash(&self) -> FdbHash;

    /// One bucket of the FDB.
    fn fdb_bucket(&self, index: u32) -> Option<&Bucket>;

    /// The daemon's clock.
    fn now(&self) -> Now;

    /// The kernel's clock, in jiffies.
    fn jiffies(&self) -> u64;

    /// Counts a frame that a target sent us.
    fn count_received(&self, target: Target, bytes: u32, now: Now);

    /// Counts a frame that we sent to a target.
    fn count_sent(&self, target: Target, bytes: u32);

    /// Counts a frame that was not forwarded.
    fn count_drop(&self, target: Target, direction: Direction, reason: DropReason);

    /// Counts a flooded frame, its copies, and those that could not be made.
    fn count_flood(&self, segment: u32, copies: u32, lost: u32);

    /// The port that a VLAN is on an interface that has ports by VLAN.
    fn vlan_port(&self, key: VlanKey) -> Option<u32>;

    /// Sequence numbers of an adjacency.
    fn sequence(&self, adjacency: u32) -> Option<&Sequence>;

    /// Takes the next sequence number of those.
    fn next_sequence(&self, sequence: &Sequence) -> u32;

    /// Takes so many identifications of those; the first of them.
    fn next_ids(&self, sequence: &Sequence, count: u16) -> u16;

    /// The interface that frames leave by which cannot be finished here, if there is one.
    fn slow_interface(&self) -> Option<u32>;

    /// Tells the daemon of a frame that did not fit, unless it was told lately of one with
    /// the same MAC addresses. The frame begins behind so many bytes of outer headers; of
    /// `event`, `captured` says how many bytes it has, and is filled in here.
    fn report_too_big<F: Whole>(&self, frame: &F, outer_len: u32, event: TooBigHead);

    /// Tells the daemon of a source address, unless it was told lately.
    fn report(&self, event: &LearnEvent, source: Target);

    /// Who has an address in a segment.
    fn neighbor(&self, key: &NeighborKey) -> Option<&NeighborSlot>;

    /// Tells the daemon who says that he has an address, unless it was told lately.
    fn report_neighbor(&self, event: &NeighborEvent, source: Target);

    /// Counts a question that was answered.
    fn count_answered(&self, segment: u32, protocol: Protocol);
    /// What a source's storm limit is.
    fn storm(&self, source: Target) -> Option<&Storm>;

    /// Monotonic time in ns, as good as the kernel has it without effort.
    fn nanos(&self) -> u64;

    /// Whether one more frame from an address that is held may be flooded, and notes that it is.
    fn paces(&self, source: FdbKey) -> bool;

    /// Adds to a word that other CPUs add to as well.
    fn add(&self, word: &AtomicU64, number: u64);

    /// Whether one more frame from a source may be flooded, and notes that it is.
    #[inline(always)]
    fn admits_flood(&self, source: Target) -> bool {
        let Some(storm) = self.storm(source).filter(|storm| storm.is_limited()) else { return true };
        match storm.admit(self.nanos()) {
            Admission::Refused => return false,
            Admission::Add(ns) => self.add(storm.paid(), ns),
            Admission::Restart(ns) => storm.paid().store(ns, Ordering::Relaxed),
        }
        true
    }

    /// What the index says of an interface.
    #[inline(always)]
    fn indexed_port(&self, ifindex: u32) -> Option<Indexed> {
        self.port_slot(PortSlot::index(ifindex))?.find(ifindex)
    }

    /// What the index says of an endpoint.
    #[inline(always)]
    fn indexed_endpoint(&self, words: &EndpointWords) -> Option<Owner> {
        self.endpoint_index().find(words, |index| self.endpoint_slot(index)).and_then(EndpointSlot::owner)
    }

    /// Looks an address up.
    #[inline(always)]
    fn fdb(&self, hash: FdbHash, key: FdbKey) -> Option<&Slot> {
        hash.find(key, |index| self.fdb_bucket(index))
    }

    /// Brings near what [`Self::fdb`] will look at first.
    #[inline(always)]
    fn fdb_ahead(&self, hash: FdbHash, key: FdbKey) {
        if let Some(bucket) = self.fdb_bucket(hash.bucket(key, 0)) {
            bucket.fetch();
        }
    }

    /// Whether the daemon still answers for the next hops in the templates.
    #[inline(always)]
    fn has_lease(&self, now: Now) -> bool {
        now.lease > self.jiffies()
    }
}
