//! What `show` shows: the JSON of the API. Keys are stable; new ones are added.

use std::net::IpAddr;

use mgre_common::wire::MacAddr;
use serde::{Deserialize, Serialize};

use crate::model::types::mac_text;
use crate::model::{Df, Encap, ForeignGre, HostInterface, LinkLocal, Mode, StormLimit, Tos};

/// An underlay: one of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderlayView {
    /// The interface.
    pub interface: String,
    /// Our endpoint on it.
    pub local: IpAddr,
    /// The mode that was asked for.
    pub mode: Mode,
    /// What becomes of GRE for its addresses that is no peer's.
    #[serde(default)]
    pub foreign_gre: ForeignGre,
    /// What it is attached to: `xdp`, `xdp-generic`, `tcx`, `clsact`, several with `+` between; none if not attached.
    pub hook: Option<String>,
    /// Why this hook, or why none.
    pub reason: Option<String>,
    /// Whether it works.
    #[serde(default)]
    pub state: UnderlayState,
    /// Why not, or what else there is to know.
    #[serde(default)]
    pub problem: Option<String>,
}

/// Whether an underlay works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnderlayState {
    /// It does.
    #[default]
    Up,
    /// Its interface is down or cannot be attached to, or has not got the address.
    Down,
    /// There is no such interface.
    Missing,
}

/// A segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentView {
    /// Its name.
    pub name: String,
    /// Its GRE key; null for GRE without one, and for NVGRE.
    pub key: Option<u32>,
    /// Its virtual subnet id, if its packets are NVGRE.
    pub vsid: Option<u32>,
    /// The MTU in force, if one is known.
    pub mtu: Option<u32>,
    /// Seconds after which a learned address that was not seen again is forgotten.
    pub aging_seconds: u32,
    /// Addresses it may learn.
    pub max_macs: u32,
    /// Whether frames go from peer to peer through this host.
    pub hub: bool,
    /// Whether TCP's maximum segment size is lowered to what fits.
    pub clamp_mss: bool,
    /// Whether questions for addresses that are known are answered here, not flooded.
    pub suppress_neighbors: bool,
    /// Which frames that bridges keep to one link it passes.
    pub link_local: LinkLocal,
    /// How many peers it has.
    pub peers: u64,
    /// How many ports it has.
    pub ports: u64,
    /// How many FDB entries it has.
    pub fdb_entries: u64,
}

/// Whether a port works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// It does.
    Up,
    /// Its interface is down, or no program could be attached.
    Down,
    /// There is no such interface.
    Missing,
    /// Another port of the segment is on the same LAN.
    Blocked,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortView {
    /// Its name: the interface's, and behind it a dot and the VLAN, if it is for one.
    pub name: String,
    /// Its interface.
    pub interface: String,
    /// The tag that its frames have on the interface.
    pub vlan: Option<u16>,
    /// Its segment.
    pub segment: String,
    /// The mode that was asked for.
    pub mode: Mode,
    /// What it is attached to; see [`UnderlayView::hook`].
    pub hook: Option<String>,
    /// What the daemon made, if it made the interface.
    pub created: Option<HostInterface>,
    /// Frames from it that may be flooded in a second.
    pub storm_limit: StormLimit,
    /// The interface's MTU.
    pub mtu: Option<u32>,
    /// Whether it works.
    pub state: PortState,
    /// Why not.
    pub reason: Option<String>,
    /// Frames taken in.
    pub receive_packets: u64,
    /// Bytes of them.
    pub receive_bytes: u64,
    /// Frames delivered.
    pub transmit_packets: u64,
    /// Bytes of them.
    pub transmit_bytes: u64,
    /// Frames dropped, for all reasons, both ways.
    pub drops: u64,
}

/// Whether a peer can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// Its endpoint, route and next hop are known.
    Up,
    /// Something is not known yet, or not any more.
    Unresolved,
    /// No underlay leads to it.
    Down,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// Its name.
    pub name: String,
    /// Its endpoint as given.
    pub remote: String,
    /// Its endpoint as an address, once it is known.
    pub endpoint: Option<IpAddr>,
    /// The segments it is in.
    pub segments: Vec<String>,
    /// Whether it can be reached.
    pub state: PeerState,
    /// Why not.
    pub reason: Option<String>,
    /// Frames received from it.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames sent to it.
    pub tx_packets: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Frames dropped, for all reasons, both ways.
    pub drops: u64,
    /// Seconds since a frame was last received from it; null for never.
    pub last_seen_seconds: Option<u64>,
    /// The largest inner packet to it (the least over its segments), if known.
    pub mtu: Option<u32>,
    /// TTL of outer packets.
    pub ttl: u8,
    /// TOS of outer packets.
    pub tos: Tos,
    /// Whether outer packets may be fragmented.
    pub df: Df,
    /// Addresses that may be learned from it.
    pub max_macs: u32,
    /// Whether packets to it have a checksum.
    pub csum: bool,
    /// Whether packets to it are numbered, and those from it taken in their order.
    pub seq: bool,
    /// What GRE packets are put into.
    pub encap: Encap,
    /// Frames from it that may be flooded in a second, in each of its segments.
    pub storm_limit: StormLimit,
    /// The same for each segment.
    pub adjacencies: Vec<AdjacencyView>,
}

/// A peer in one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdjacencyView {
    /// The segment.
    pub segment: String,
    /// Frames received from it.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames sent to it.
    pub tx_packets: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Frames dropped, for all reasons, both ways.
    pub drops: u64,
    /// Seconds since a frame was last received from it; null for never.
    pub last_seen_seconds: Option<u64>,
    /// The largest inner packet, if known.
    pub mtu: Option<u32>,
    /// FDB entries that point at it.
    pub fdb_entries: u64,
}

/// What kind of FDB entry it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FdbFlag {
    /// Given by an operator: never ages, never moves.
    Static,
    /// Learned from traffic.
    Learned,
    /// The address of an interface that the daemon made.
    Local,
    /// Seen in two places by turns: it does not move until that ends.
    Held,
}

impl FdbFlag {
    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Learned => "learned",
            Self::Local => "local",
            Self::Held => "held",
        }
    }
}

/// An FDB entry: at a peer or at a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbView {
    /// The segment.
    pub segment: String,
    /// The address.
    #[serde(with = "mac_text")]
    pub mac: MacAddr,
    /// The peer that it is at.
    pub peer: Option<String>,
    /// The port that it is at.
    pub port: Option<String>,
    /// The peer's address, if known.
    pub endpoint: Option<IpAddr>,
    /// What kind of entry it is.
    pub flags: Vec<FdbFlag>,
    /// Seconds since the address was last seen; null if that does not matter.
    pub age_seconds: Option<u64>,
}

/// What is said of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NeighborFlag {
    /// It is a router.
    Router,
    /// Two hosts say that they have the address: questions are not answered.
    Duplicate,
}

impl NeighborFlag {
    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Duplicate => "duplicate",
        }
    }
}

/// A host's address in a segment that suppresses ARP and ND.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighborView {
    /// The segment.
    pub segment: String,
    /// The address.
    pub address: IpAddr,
    /// The host's MAC address.
    #[serde(with = "mac_text")]
    pub mac: MacAddr,
    /// The peer that it is at.
    pub peer: Option<String>,
    /// The port that it is at.
    pub port: Option<String>,
    /// What is said of it.
    pub flags: Vec<NeighborFlag>,
    /// Seconds since it was last heard of.
    pub age_seconds: u64,
}

/// Frames dropped in one direction for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsRow {
    /// Name of a [`mgre_common::reason::DropReason`].
    pub reason: String,
    /// `receive` or `transmit`.
    pub direction: String,
    /// The peer, if there was one.
    pub peer: Option<String>,
    /// The port, if there was one.
    pub port: Option<String>,
    /// The segment, if there was one.
    pub segment: Option<String>,
    /// How many.
    pub packets: u64,
}

/// Traffic of one port, or of one peer in one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficRow {
    /// The peer, if it is one.
    pub peer: Option<String>,
    /// The port, if it is one.
    pub port: Option<String>,
    /// The segment.
    pub segment: String,
    /// Frames received from the peer, or taken in from the port.
    pub receive_packets: u64,
    /// Bytes of them.
    pub receive_bytes: u64,
    /// Frames sent to the peer, or out of the port.
    pub transmit_packets: u64,
    /// Bytes of them.
    pub transmit_bytes: u64,
    /// Frames dropped, for all reasons, both ways.
    pub drops: u64,
}

/// What `stats` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsView {
    /// Every port, and every peer in every segment.
    pub traffic: Vec<TrafficRow>,
    /// Drop counters that are not zero.
    pub drops: Vec<StatsRow>,
}

/// What `status` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// The instance.
    pub instance: String,
    /// The daemon's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// The kernel.
    pub kernel: KernelView,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// The underlays.
    pub underlays: Vec<UnderlayView>,
    /// How many segments there are.
    pub segments: u64,
    /// How many peers there are.
    pub peers: u64,
    /// How many of them can be reached.
    pub peers_up: u64,
    /// How many ports there are.
    pub ports: u64,
    /// How many adjacencies there are.
    pub adjacencies: u64,
    /// How many there is room for.
    pub adjacency_capacity: u64,
    /// How many FDB entries there are.
    pub fdb_entries: u64,
    /// How many there is room for.
    pub fdb_capacity: u64,
    /// Learn events that the daemon has handled.
    pub events: u64,
    /// Learn events that were lost: bursts beyond the limit, or a full ring.
    pub events_lost: u64,
    /// Times that notifications of the kernel were lost, and everything was looked at again.
    pub netlink_losses: u64,
    /// What the datapath does not do by itself.
    pub slow_path: SlowPathView,
    /// Segments in which addresses are held, because they are seen in two places by turns.
    pub held: Vec<HeldView>,
}

/// The kernel that a daemon runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelView {
    /// Its release.
    pub release: String,
    /// What newer kernels have and this one has not, and what that means: a line each.
    pub missing: Vec<String>,
    /// Settings of it that make mgre slower, or keep the next daemon from starting.
    pub notes: Vec<String>,
}

/// Addresses that are held in one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldView {
    /// The segment.
    pub segment: String,
    /// How many.
    pub addresses: u64,
}

/// The slow path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowPathView {
    /// What of it does not work, and why.
    pub problems: Vec<String>,
    /// Outer packets that the kernel put together, or that had IP options.
    pub reassembled: u64,
    /// Those of them that went on.
    pub reinjected: u64,
    /// Packets that did not: no peer's, malformed, or without a way.
    pub refused: u64,
    /// Outer packets that were sent in fragments.
    pub fragmented: u64,
    /// Senders that were told that a packet was too big.
    pub icmp_sent: u64,
    /// Those that were not told: they must not be, or too often.
    pub icmp_suppressed: u64,
    /// Routers that said that the path to a peer is narrower than was known.
    pub icmp_received: u64,
    /// Those that said so of no packet of ours, or said nothing new.
    pub icmp_ignored: u64,
    /// Frames lost between the slow interface's ends: a CPU's queue of received frames was full.
    #[serde(default)]
    pub overflowed: u64,
}
