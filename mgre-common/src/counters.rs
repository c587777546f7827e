//! Counter rows, read by the daemon through shared memory.
//!
//! A *row* belongs to nobody (row 0), to a port, or to an adjacency; see
//! [`row_of`]. Traffic rows exist once per row and CPU, and once for the daemon, so a
//! counter has one writer at a time. Drop rows are shared by a few CPUs each and written
//! atomically: a frame that is dropped has done all its expensive work, and a
//! row of reasons for each of many CPUs would cost more memory than it is worth.

use bytemuck::{Pod, Zeroable};

use crate::reason::{Direction, DropReason, REASON_SLOTS};
use crate::table::{MAX_PORTS, NO_ROW};
use crate::target::{Target, TargetKind};

/// Traffic of one port or adjacency on one CPU.
///
/// A frame counts once even if it is a GSO or GRO superframe, as it does for a
/// kernel netdev. Bytes are those of the inner Ethernet frame.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Traffic {
    /// Frames received: decapsulated from the peer, or taken in from the port.
    pub receive_packets: u64,
    /// Bytes of those frames.
    pub receive_bytes: u64,
    /// Frames sent: encapsulated to the peer, or delivered out of the port.
    pub transmit_packets: u64,
    /// Bytes of those frames.
    pub transmit_bytes: u64,
    /// Learn events left in this source's burst.
    pub report_tokens: u64,
    /// Monotonic time in ns up to which tokens were refilled.
    pub report_refilled_ns: u64,
    /// Learn events not reported: the token bucket or the ring was empty.
    pub reports_lost: u64,
    /// [`crate::table::Clock::seconds`] when a frame was last received.
    pub last_receive_seconds: u64,
}

/// Flooding in one segment on one CPU, and what was answered instead.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SegmentTraffic {
    /// Frames flooded: those that there was somebody to send to.
    pub flood_frames: u64,
    /// Copies made of them.
    pub flood_copies: u64,
    /// Copies that could not be made; each is counted as a drop as well.
    pub flood_lost: u64,
    /// ARP requests answered.
    pub arp_replies: u64,
    /// Neighbour solicitations answered.
    pub nd_replies: u64,
}

/// Drops of one port or adjacency, one counter per direction and reason.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Drops {
    /// Indexed by [`Direction`], then by [`DropReason::index`].
    pub packets: [[u64; REASON_SLOTS]; 2],
}

impl Default for Drops {
    fn default() -> Self {
        Self::zeroed()
    }
}

impl Drops {
    /// One counter.
    pub fn get(&self, direction: Direction, reason: DropReason) -> u64 {
        self.packets[direction as usize][reason.index()]
    }
}

const _: () = assert!(size_of::<Traffic>() == 64);
const _: () = assert!(size_of::<SegmentTraffic>() == 40);
const _: () = assert!(size_of::<Drops>() == 512);

/// How many traffic rows each row has on a machine with so many possible CPUs: one for each of them, and
/// one behind those that only the daemon writes.
pub const fn traffic_rows(cpus: u32) -> u32 {
    cpus + 1
}

/// The most drop shards there are.
pub const MAX_DROP_SHARDS: u32 = 8;

/// How many drop rows each row has on a machine with so many CPUs: a power of two, and one for two
/// CPUs as long as there are few. They are most of the memory there is.
pub const fn drop_shards(cpus: u32) -> u32 {
    let mut shards = 1;
    while 2 * shards < cpus && shards < MAX_DROP_SHARDS {
        shards *= 2;
    }
    shards
}

/// The row that counts for a target; [`Target::NONE`] has the row of nobody.
#[inline(always)]
pub const fn row_of(target: Target) -> u32 {
    match target.kind() {
        TargetKind::None => NO_ROW,
        TargetKind::Port(id) => 1 + id,
        TargetKind::Adjacency(id) => 1 + MAX_PORTS + id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_a_bounded_power_of_two() {
        assert_eq!([1, 2, 3, 4, 7, 16, 64].map(drop_shards), [1, 1, 2, 2, 4, 8, 8]);
    }

    #[test]
    fn rows_do_not_meet() {
        assert_eq!(row_of(Target::NONE), 0);
        assert_eq!(row_of(Target::port(0)), 1);
        assert_eq!(row_of(Target::port(MAX_PORTS - 1)) + 1, row_of(Target::adjacency(0)));
    }
}
