//! What the pipeline may look up, count and report.

use mgre_common::endpoint::{EndpointIndex, EndpointKey, EndpointSlot};
use mgre_common::event::LearnEvent;
use mgre_common::fdb::{Bucket, FdbHash, FdbKey, Slot};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::table::{Adjacency, FloodSlot, Port, PortSlot, Segment};
use mgre_common::target::Target;

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
    fn any_endpoint(&self, key: &EndpointKey) -> Option<u32>;

    /// One slot of the flood lists.
    fn flood_slot(&self, index: u32) -> Option<&FloodSlot>;

    /// Where the FDB keeps an address.
    fn fdb_hash(&self) -> FdbHash;

    /// One bucket of the FDB.
    fn fdb_bucket(&self, index: u32) -> Option<&Bucket>;

    /// The daemon's clock.
    fn now_seconds(&self) -> u32;

    /// Whether the daemon still answers for the next hops in the templates.
    fn has_lease(&self) -> bool;

    /// Counts a frame of a target.
    fn count(&self, target: Target, direction: Direction, bytes: u32);

    /// Counts a frame that was not forwarded.
    fn count_drop(&self, target: Target, direction: Direction, reason: DropReason);

    /// Counts a flooded frame and its copies.
    fn count_flood(&self, segment: u32, copies: u32);

    /// A number for a packet to a target that differs from those of the packets before it.
    fn packet_id(&self, target: Target) -> u16;

    /// Tells the daemon of a source address, unless it was told lately.
    fn report(&self, event: &LearnEvent, source: Target);

    /// The port that an interface is.
    #[inline(always)]
    fn port_of(&self, ifindex: u32) -> Option<u32> {
        match self.port_slot(PortSlot::index(ifindex)).and_then(|slot| slot.port_of(ifindex)) {
            Some(port) => Some(port),
            None => self.any_port_of(ifindex),
        }
    }

    /// The adjacency of an endpoint.
    #[inline(always)]
    fn adjacency_of(&self, key: &EndpointKey) -> Option<u32> {
        let slot = self.endpoint_index().find(&key.words(), |index| self.endpoint_slot(index));
        match slot {
            Some(slot) => Some(slot.adjacency()),
            None => self.any_endpoint(key),
        }
    }

    /// Looks an address up.
    #[inline(always)]
    fn fdb(&self, key: FdbKey) -> Option<&Slot> {
        self.fdb_hash().find(key, |index| self.fdb_bucket(index))
    }
}
