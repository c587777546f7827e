//! What both sides of mgre must agree on, and the pure logic both use.
//!
//! The datapath (`mgre-ebpf`) and the daemon (`mgre-user`) share memory, not
//! messages, so every layout lives here once, with its size asserted:
//!
//! - [`wire`]: the header formats on the wire, in network byte order;
//! - [`cell`]: words of shared memory;
//! - [`checksum`]: the Internet checksum (RFC 1071) and its incremental forms;
//! - [`target`]: where a frame can go: a port or an adjacency;
//! - [`fdb`]: the forwarding database's buckets and their memory protocol;
//! - [`endpoint`]: whose packet it is;
//! - [`neighbor`]: which address has which MAC address;
//! - [`table`]: adjacencies, ports, segments, flood lists;
//! - [`template`]: makes outer headers for adjacencies;
//! - [`counters`]: counter rows;
//! - [`tally`]: what the daemon counts itself;
//! - [`storm`]: storm control;
//! - [`reason`]: the one table of drop reasons;
//! - [`mod@bench`]: for the benchmark's programs;
//! - [`event`]: what the datapath reports to the daemon.

#![cfg_attr(not(any(test, loom)), no_std)]

pub mod bench;
pub mod cell;
pub mod checksum;
#[cfg(not(loom))]
pub mod counters;
pub mod endpoint;
pub mod event;
pub mod fdb;
#[cfg(not(loom))]
pub mod near;
pub mod neighbor;
pub mod reason;
#[cfg(not(loom))]
pub mod storm;
#[cfg(not(loom))]
pub mod table;
#[cfg(not(loom))]
pub mod tally;
pub mod target;
#[cfg(not(loom))]
pub mod template;
pub mod wire;

/// Version of every layout in this crate. It is part of the pin directory's
/// path, so that a daemon never reads tables laid out by another one.
pub const SCHEMA_VERSION: u32 = 3;

/// Where a program stands in [`map_name::CALLS`].
pub mod call {
    /// The one that forwards what needs more than its headers.
    pub const FORWARD: u32 = 0;
    /// The one that floods.
    pub const FLOOD: u32 = 1;
    /// How many there are.
    pub const COUNT: u32 = 2;
}

/// Names of the eBPF maps, as pinned and as `bpftool map` shows them.
///
/// The kernel keeps 15 characters of a name, so all of these fit in that.
pub mod map_name {
    /// Array: [`crate::table::PortSlot`]s.
    pub const PORT_SLOTS: &str = "mgre_port_slot";
    /// Array of one: [`crate::near::NearMacs`].
    pub const NEAR_MACS: &str = "mgre_near_mac";
    /// Hash: ifindex to port id, of every port.
    pub const PORT_INDEX: &str = "mgre_port_idx";
    /// Devmap: ifindex of every interface that XDP may redirect to.
    pub const DEVICES: &str = "mgre_devices";
    /// Array: port id to [`crate::table::Port`].
    pub const PORTS: &str = "mgre_ports";
    /// Array: segment id to [`crate::table::Segment`].
    pub const SEGMENTS: &str = "mgre_segments";
    /// Array: adjacency id to [`crate::table::Adjacency`].
    pub const ADJACENCIES: &str = "mgre_adjs";
    /// Hash: [`crate::endpoint::EndpointKey`] to adjacency id.
    pub const ENDPOINTS: &str = "mgre_endpoints";
    /// Array: [`crate::endpoint::EndpointSlot`]s.
    pub const ENDPOINT_SLOTS: &str = "mgre_ep_slot";
    /// Array: the flood lists' slots, one [`crate::target::Target`] each.
    pub const FLOOD: &str = "mgre_flood";
    /// Array: [`crate::fdb::Bucket`]s.
    pub const FDB: &str = "mgre_fdb";
    /// Array of one: [`crate::table::Clock`].
    pub const CLOCK: &str = "mgre_clock";
    /// Array: [`crate::counters::Traffic`] rows.
    pub const TRAFFIC: &str = "mgre_traffic";
    /// Array: [`crate::counters::Drops`] rows.
    pub const DROPS: &str = "mgre_drops";
    /// Array: [`crate::counters::SegmentTraffic`] rows.
    pub const SEGMENT_TRAFFIC: &str = "mgre_seg_stats";
    /// Array of [`super::tally::Tally`]: the instance's, and those of segments.
    pub const TALLIES: &str = "mgre_tallies";
    /// Ring buffer of [`crate::event::LearnEvent`] and [`crate::neighbor::NeighborEvent`].
    pub const EVENTS: &str = "mgre_events";
    /// Per-CPU array: which events were reported lately.
    pub const RECENT: &str = "mgre_recent";
    /// Hash: [`crate::table::VlanKey`] to port id.
    pub const VLAN_PORTS: &str = "mgre_port_vlan";
    /// Array: adjacency id to [`crate::table::Sequence`].
    pub const SEQUENCES: &str = "mgre_sequence";
    /// Hash: [`crate::neighbor::NeighborKey`] to [`crate::neighbor::NeighborRecord`].
    pub const NEIGHBORS: &str = "mgre_neighbors";
    /// Array: [`crate::storm::Storm`], one for each row of traffic.
    pub const STORMS: &str = "mgre_storm";
    /// Program array: the programs that others go on in, by [`crate::call`].
    pub const CALLS: &str = "mgre_calls";
    /// Ring buffer of [`crate::event::TooBig`].
    pub const TOO_BIG: &str = "mgre_too_big";
}
