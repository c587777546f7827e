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
    /// [`learn_flag`] bits.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<LearnEvent>() == 24);

/// Bits of [`LearnEvent::flags`].
pub mod learn_flag {
    /// The address is held elsewhere, and the frame, which would have been flooded, was dropped.
    pub const STOPPED: u32 = 1 << 0;
}

/// Frames from an address that is held are flooded at most once in this time, on one CPU.
pub const HELD_INTERVAL_NS: u64 = 100_000_000;

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

/// Bytes of a frame that a [`TooBig`] has: what an ICMPv6 message of 1280 bytes quotes, behind
/// an Ethernet header and two tags.
pub const TOO_BIG_CAPTURE: usize = 1256;

/// What is said of a frame that did not fit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TooBigHead {
    /// Where the frame came from ([`crate::target::Target`] bits).
    pub source: u32,
    /// The adjacency that it did not fit.
    pub adjacency: u32,
    /// The longest IP packet that fits, in bytes, for frames with the tags that this one has.
    pub mtu: u32,
    /// The frame's length, of a superframe the length of each frame that it stands for.
    pub frame_len: u32,
    /// How many of the frame's first bytes there are.
    pub captured: u32,
    /// A tag that the kernel kept beside the frame: its protocol's number in the upper
    /// half, its control information in the lower one; zero: none.
    pub tag: u32,
}

/// A frame that did not fit and whose sender is to be told (RFC 7588 3.2, RFC 7676 3.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct TooBig {
    /// What is said of it.
    pub head: TooBigHead,
    /// The frame from its Ethernet header on.
    pub bytes: [u8; TOO_BIG_CAPTURE],
}

const _: () = assert!(size_of::<TooBig>() == 1280);

/// The datapath reports frames from one source to one destination at most once in this time.
pub const TOO_BIG_INTERVAL_NS: u64 = 10_000_000;
