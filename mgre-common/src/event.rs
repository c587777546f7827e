//! What the datapath reports to the daemon through the event ring.

use bytemuck::{Pod, Zeroable};

use crate::fdb::FdbKey;

/// A source address that the FDB does not hold, or holds elsewhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct LearnEvent {
    /// Segment and source MAC.
    pub key: FdbKey,
    /// Where the frame came from ([`crate::target::Target`] bits).
    pub source: u32,
    /// What the FDB said when the frame came (bits; zero: nothing).
    pub known: u32,
}

const _: () = assert!(size_of::<LearnEvent>() == 16);

/// The datapath reports one address from one source at most once in this time.
pub const REPORT_INTERVAL_NS: u64 = 200_000_000;

/// Events that one port or adjacency may report on one CPU in a burst.
pub const REPORT_BURST: u64 = 1024;

/// Time that earns one more event once a burst is spent: 8,192 a second.
pub const REPORT_REFILL_NS: u64 = 1_000_000_000 / 8192;

/// One slot of the per-CPU table of lately reported addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Recent {
    /// Segment and MAC, mixed with where it was seen.
    pub tag: u64,
    /// Monotonic time of the report in ns.
    pub reported_ns: u64,
}

/// Slots in the table of lately reported addresses; a power of two.
pub const RECENT_SLOTS: u32 = 1024;
