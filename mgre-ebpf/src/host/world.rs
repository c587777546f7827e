//! A small network to test in, described once and put into any tables.

use core::net::IpAddr;
use core::sync::atomic::Ordering;

use mgre_common::endpoint::{
    EndpointKey, Owner, endpoint_address, endpoint_key, endpoint_kind, local_flag, mapped_v4,
};
use mgre_common::fdb::{Bucket, FdbHash, FdbKey};
use mgre_common::neighbor::{NeighborKey, NeighborRecord};
use mgre_common::storm::Storm;
use mgre_common::table::{
    Adjacency, Clock, FloodList, FloodSlot, PORT_BY_VLAN, Port, Segment, Template, VlanKey, adjacency_flag,
    port_flag, template_flag, template_option,
};
use mgre_common::target::Target;
use mgre_common::template::{DontFragment, Encapsulation, Key, Link, Outer, Tos};
use mgre_common::wire::MacAddr;

/// Our underlay address.
pub const LOCAL: [u8; 4] = [192, 0, 2, 1];
/// Our underlay address, IPv6.
pub const LOCAL_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Others of our addresses, for which GRE of no peer's is the kernel's.
pub const LOCAL_SHARED: [u8; 4] = [192, 0, 2, 250];
/// As above, IPv6.
pub const LOCAL_SHARED_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 250];
/// A peer's endpoint, IPv6.
pub const PEER_A_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// As above.
pub const PEER_B_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
/// Peers' endpoints.
pub const PEER_A: [u8; 4] = [192, 0, 2, 2];
/// As above.
pub const PEER_B: [u8; 4] = [192, 0, 2, 3];
/// As above.
pub const PEER_C: [u8; 4] = [192, 0, 2, 4];
/// Nobody's address.
pub const STRANGER: [u8; 4] = [198, 51, 100, 9];
/// The underlay interface.
pub const UNDERLAY: u32 = 100;
/// The slow interface.
pub const SLOW: u32 = 101;
/// The underlay interface's MAC address.
pub const NEAR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xee, 1]);
/// The underlay next hop's MAC address.
pub const NEXT_HOP_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xee, 2]);
/// The virtual subnet id of the segment with NVGRE.
pub const VSID: u32 = 0x00ab_cdef;
/// An interface with ports by VLAN.
pub const VLAN_INTERFACE: u32 = 60;
/// An id for which no table has a record.
pub const ABSENT: u32 = 50_000;

pub mod neighbors;
mod standard;

/// Where tables are filled.
pub trait Sink {
    /// The clock, which says what the slow interface is.
    fn clock(&mut self) -> &Clock;
    /// Makes an interface a port; the index has it if its segment is given.
    fn port_index(&mut self, ifindex: u32, id: u32, segment: Option<u32>);
    /// Makes a VLAN on an interface a port.
    fn vlan_port(&mut self, key: VlanKey, id: u32);
    /// A port's record.
    fn port(&mut self, id: u32) -> &Port;
    /// A segment's record.
    fn segment(&mut self, id: u32) -> &Segment;
    /// An adjacency's record, with this template put in force.
    fn adjacency(&mut self, id: u32, template: Template) -> &Adjacency;
    /// Makes an endpoint an adjacency's; the index has it if all of it is given.
    fn endpoint(&mut self, key: EndpointKey, id: u32, owner: Option<Owner>);
    /// A source's storm limit.
    fn storm(&mut self, source: Target) -> &Storm;
    /// A slot of the flood lists.
    fn flood_slot(&mut self, index: u32) -> &FloodSlot;
    /// Who has an address.
    fn neighbor(&mut self, key: NeighborKey, record: NeighborRecord);
    /// Where the FDB keeps an address.
    fn fdb_hash(&self) -> FdbHash;
    /// A bucket of the FDB.
    fn fdb_bucket(&mut self, index: u32) -> &Bucket;
}

/// A port.
#[derive(Clone, Copy, Debug)]
pub struct PortSpec {
    /// Its id.
    pub id: u32,
    /// Its interface.
    pub ifindex: u32,
    /// Its segment.
    pub segment: u32,
    /// [`port_flag`] bits.
    pub flags: u32,
    /// The longest frame it takes.
    pub max_frame: u32,
    /// Its VLAN on the interface, if that has ports by VLAN; zero: frames without a tag.
    pub vlan: Option<u16>,
}

/// A peer in a segment.
#[derive(Clone, Copy, Debug)]
pub struct PeerSpec {
    /// The adjacency's id.
    pub id: u32,
    /// Its segment.
    pub segment: u32,
    /// [`adjacency_flag`] bits.
    pub flags: u32,
    /// The peer's endpoint.
    pub endpoint: [u8; 4],
    /// The GRE key.
    pub key: Option<u32>,
    /// The underlay's MTU, or none while the next hop is unknown.
    pub mtu: Option<u32>,
    /// Whether the next hop's address is known.
    pub neighbor: bool,
    /// Whether the underlay takes frames from an early hook.
    pub express: bool,
    /// The peer's endpoint, if it is an IPv6 one.
    pub endpoint_v6: Option<[u8; 16]>,
    /// Whether the key is a virtual subnet id.
    pub nvgre: bool,
    /// Whether outer packets may be fragmented.
    pub dont_fragment: DontFragment,
    /// DSCP of outer packets.
    pub tos: Tos,
    /// With a checksum.
    pub checksum: bool,
    /// With sequence numbers.
    pub sequence: bool,
    /// What GRE rests on.
    pub encapsulation: Encapsulation,
}

/// An address in the FDB.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its segment.
    pub segment: u16,
    /// The address.
    pub mac: MacAddr,
    /// Where it is.
    pub target: Target,
    /// When it was seen, or [`mgre_common::fdb::SEEN_STATIC`].
    pub seen: u32,
    /// Whether it is held there.
    pub held: bool,
}

/// How many frames of a source may be flooded.
#[derive(Clone, Copy, Debug)]
pub struct StormSpec {
    /// The source.
    pub source: Target,
    /// Frames a second.
    pub limit: u32,
    /// Whether none may for now.
    pub exhausted: bool,
}

/// A whole network.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Ports.
    pub ports: Vec<PortSpec>,
    /// Adjacencies.
    pub peers: Vec<PeerSpec>,
    /// Segments and their [`mgre_common::table::segment_flag`] bits.
    pub segments: Vec<(u32, u32)>,
    /// Segments that do not pass all that goes to the addresses that bridges keep to one
    /// link, and which of those.
    pub blocked_groups: Vec<(u32, u32)>,
    /// Storm limits.
    pub storms: Vec<StormSpec>,
    /// Addresses.
    pub entries: Vec<Entry>,
    /// Who has which address.
    pub neighbors: Vec<(NeighborKey, NeighborRecord)>,
    /// Addresses of ours for which GRE of no peer's is the kernel's.
    pub shared_locals: Vec<IpAddr>,
    /// Interfaces that are ports without a record.
    pub stray_interfaces: Vec<(u32, u32)>,
    /// Endpoints whose adjacency has no record.
    pub stray_endpoints: Vec<(EndpointKey, u32)>,
    /// The slow interface; zero: there is none.
    pub slow: u32,
}

/// A station's address.
pub const fn station(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, number])
}

/// The endpoint of the peer with this id, of those in segments 13 and up.
pub const fn peer_v4(id: u32) -> [u8; 4] {
    [192, 0, 2, 100 + id as u8]
}

/// The same, IPv6.
pub const fn peer_v6(id: u32) -> [u8; 16] {
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, id as u8]
}

/// What identifies a packet of a peer to us.
pub fn endpoint(remote: [u8; 4], key: Option<u32>) -> EndpointKey {
    EndpointKey {
        remote: mapped_v4(u32::from_ne_bytes(remote)),
        local: mapped_v4(u32::from_ne_bytes(LOCAL)),
        key: key.unwrap_or(0).to_be(),
        kind: if key.is_some() { endpoint_kind::KEYED } else { endpoint_kind::KEYLESS },
    }
}

impl PeerSpec {
    /// A peer in working order over an underlay with an MTU of 1500.
    pub const fn new(id: u32, segment: u32, endpoint: [u8; 4], key: Option<u32>) -> Self {
        let flags = adjacency_flag::VALID;
        Self {
            id,
            segment,
            flags,
            endpoint,
            key,
            mtu: Some(1500),
            neighbor: true,
            express: false,
            endpoint_v6: None,
            nvgre: false,
            dont_fragment: DontFragment::Set,
            tos: Tos::Fixed(0),
            checksum: false,
            sequence: false,
            encapsulation: Encapsulation::Gre,
        }
    }

    /// The same with NVGRE, the key its virtual subnet id.
    pub const fn with_nvgre(self) -> Self {
        Self { nvgre: true, flags: self.flags | adjacency_flag::NVGRE, ..self }
    }

    /// The same with the uniform model of DSCP.
    pub const fn uniform(self) -> Self {
        Self { tos: Tos::Inherit, flags: self.flags | adjacency_flag::UNIFORM, ..self }
    }

    /// The same with sequence numbers, both ways.
    pub const fn numbered(self) -> Self {
        Self { sequence: true, flags: self.flags | adjacency_flag::SEQUENCE, ..self }
    }

    /// The same over IPv6.
    pub const fn over_ipv6(self, endpoint: [u8; 16]) -> Self {
        Self { endpoint_v6: Some(endpoint), ..self }
    }

    fn addresses(&self) -> (IpAddr, IpAddr) {
        match self.endpoint_v6 {
            Some(endpoint) => (IpAddr::from(LOCAL_V6), IpAddr::from(endpoint)),
            None => (IpAddr::from(LOCAL), IpAddr::from(self.endpoint)),
        }
    }

    fn wire_key(&self) -> Key {
        match self.key {
            None => Key::None,
            Some(vsid) if self.nvgre => Key::Vsid(vsid),
            Some(key) => Key::Plain(key),
        }
    }

    /// What identifies its packets.
    pub fn endpoint_key(&self) -> EndpointKey {
        let (local, remote) = self.addresses();
        let (kind, key) = endpoint_key(self.wire_key());
        EndpointKey { remote: endpoint_address(remote), local: endpoint_address(local), key, kind }
    }

    /// Its outer header.
    pub fn template(&self) -> Template {
        let (source, destination) = self.addresses();
        let outer = Outer {
            source,
            destination,
            ttl: 64,
            tos: self.tos,
            dont_fragment: self.dont_fragment,
            key: self.wire_key(),
            checksum: self.checksum,
            sequence: self.sequence,
            encapsulation: self.encapsulation,
        };
        let link = self.mtu.map(|mtu| Link {
            ifindex: UNDERLAY,
            source_mac: NEAR_MAC,
            destination_mac: self.neighbor.then_some(NEXT_HOP_MAC),
            mtu,
        });
        let mut template = Template::new(&outer, link.as_ref());
        if self.flags & adjacency_flag::CLAMP_MSS != 0 {
            template.options |= template_option::CLAMP_MSS;
        }
        if self.express && template.options & template_option::NOT_EXPRESS == 0 {
            template.flags |= template_flag::EXPRESS;
            // Some do and some do not.
            if self.id.is_multiple_of(2) {
                template.flags |= template_flag::SENDS_BACK;
            }
        }
        template
    }
}

impl PortSpec {
    /// A port in working order. Its interface's index is 10 more than its id.
    pub const fn new(id: u32, segment: u32) -> Self {
        let flags = port_flag::VALID | port_flag::UP;
        Self { id, ifindex: id + 10, segment, flags, max_frame: 1514, vlan: None }
    }

    /// A VLAN on an interface.
    pub const fn vlan(self, ifindex: u32, vlan: u16) -> Self {
        Self { ifindex, vlan: Some(vlan), ..self }
    }
}

impl World {
    /// Fills tables with it.
    pub fn install(&self, sink: &mut impl Sink) {
        sink.clock().slow_ifindex.store(self.slow, Ordering::Relaxed);
        for port in &self.ports {
            let indexed = port.flags & port_flag::VALID != 0;
            let mut flags = port.flags;
            if let Some(vlan) = port.vlan {
                sink.port_index(port.ifindex, PORT_BY_VLAN, None);
                sink.vlan_port(VlanKey::new(port.ifindex, vlan), port.id);
                if vlan != 0 {
                    flags |= port_flag::TAGGED | u32::from(vlan) << port_flag::VLAN_SHIFT;
                }
            } else {
                let indexed = indexed && port.flags & port_flag::BLOCKED == 0;
                sink.port_index(port.ifindex, port.id, indexed.then_some(port.segment));
            }
            let record = sink.port(port.id);
            record.ifindex.store(port.ifindex, Ordering::Relaxed);
            record.segment.store(port.segment, Ordering::Relaxed);
            record.max_frame.store(port.max_frame, Ordering::Relaxed);
            record.flags.store(flags, Ordering::Relaxed);
        }
        for peer in &self.peers {
            let record = sink.adjacency(peer.id, peer.template());
            record.segment.store(peer.segment, Ordering::Relaxed);
            record.flags.store(peer.flags, Ordering::Relaxed);
            let key = peer.endpoint_key();
            let valid = peer.flags & adjacency_flag::VALID != 0;
            let flags = (peer.flags & adjacency_flag::RECEIVE) as u16;
            let owner = Owner { adjacency: peer.id, segment: peer.segment as u16, flags };
            // Of every four, one is found by the hash map alone.
            sink.endpoint(key, peer.id, (valid && peer.id % 4 != 3).then_some(owner));
            sink.endpoint(EndpointKey { key: 0, kind: endpoint_kind::KNOWN, ..key }, 0, None);
            sink.endpoint(EndpointKey { key: 0, kind: endpoint_kind::LOCAL, remote: [0; 4], ..key }, 0, None);
        }
        for local in &self.shared_locals {
            let (remote, kind) = ([0; 4], endpoint_kind::LOCAL);
            let key = EndpointKey { remote, local: endpoint_address(*local), key: 0, kind };
            sink.endpoint(key, local_flag::PASS_FOREIGN, None);
        }
        for &(ifindex, id) in &self.stray_interfaces {
            sink.port_index(ifindex, id, None);
        }
        for &(key, id) in &self.stray_endpoints {
            sink.endpoint(key, id, None);
        }
        self.install_flood_lists(sink);
        for &(segment, groups) in &self.blocked_groups {
            sink.segment(segment).blocked_groups.store(groups, Ordering::Relaxed);
        }
        for spec in &self.storms {
            let storm = sink.storm(spec.source);
            storm.set(spec.limit);
            storm.paid().store(if spec.exhausted { u64::MAX / 2 } else { 0 }, Ordering::Relaxed);
        }
        for entry in &self.entries {
            install_entry(sink, entry);
        }
        for &(key, record) in &self.neighbors {
            sink.neighbor(key, record);
        }
    }

    fn install_flood_lists(&self, sink: &mut impl Sink) {
        let mut next = 0;
        for &(id, flags) in &self.segments {
            let ports: Vec<_> = self
                .ports
                .iter()
                .filter(|port| port.segment == id && port.flags & port_flag::VALID != 0)
                .filter(|port| port.flags & port_flag::BLOCKED == 0)
                .map(|port| Target::port(port.id))
                .collect();
            let peers: Vec<_> = self
                .peers
                .iter()
                .filter(|peer| peer.segment == id && peer.flags & adjacency_flag::VALID != 0)
                .map(|peer| Target::adjacency(peer.id))
                .collect();
            let list = FloodList { start: next, ports: ports.len() as u16, adjacencies: peers.len() as u16 };
            for target in ports.into_iter().chain(peers) {
                sink.flood_slot(next).0.store(target.to_bits(), Ordering::Relaxed);
                next += 1;
            }
            let finishes =
                self.peers.iter().any(|peer| peer.segment == id && (peer.checksum || peer.sequence));
            let record = sink.segment(id);
            let finishes = if finishes { mgre_common::table::segment_flag::FINISHES } else { 0 };
            record.flags.store(flags | finishes, Ordering::Relaxed);
            record.flood.store(list.to_bits(), Ordering::Release);
        }
    }
}

fn install_entry(sink: &mut impl Sink, entry: &Entry) {
    let key = FdbKey::new(entry.segment, entry.mac);
    let hash = sink.fdb_hash();
    for choice in 0..2 {
        let bucket = sink.fdb_bucket(hash.bucket(key, choice));
        if let Some(slot) = bucket.slots.iter().find(|slot| slot.holds(FdbKey::EMPTY)) {
            slot.insert(key, entry.target, entry.seen);
            slot.hold(entry.held);
            return;
        }
    }
    panic!("no room for {key:?}");
}
