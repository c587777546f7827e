//! What the benchmark's programs and the benchmark agree on.

use bytemuck::{Pod, Zeroable};

/// Addresses that one run of a lookup program looks up.
pub const LOOKUPS: u32 = 64;

/// Bytes of the outer headers of packets with a key over IPv4, Ethernet included.
pub const OUTER_LEN_V4: i32 = 42;
/// The same over IPv6.
pub const OUTER_LEN_V6: i32 = 62;

/// One step of the sequence that programs go through.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Step {
    /// An address: [`crate::fdb::FdbKey`] bits.
    pub key: u64,
    /// The peer behind which it is, as on the wire; over IPv6 the end of its address.
    pub remote: u32,
    /// The header checksum of that peer's packets over IPv4, as on the wire.
    pub checksum: u16,
    /// Zero.
    pub reserved: u16,
}

/// What programs are told, and where they are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Settings {
    /// Number of the step that was last.
    pub position: u32,
    /// Steps less one; their number is a power of two.
    pub mask: u32,
    /// Zero, which no compiler knows.
    pub zero: u64,
    /// Of everything found, so that nothing is left out.
    pub sum: u64,
    /// Copies to make.
    pub copies: u32,
    /// The interface to send them to.
    pub ifindex: u32,
    /// Not zero if the underlay is IPv6.
    pub v6: u32,
    /// Zero.
    pub reserved: u32,
}
