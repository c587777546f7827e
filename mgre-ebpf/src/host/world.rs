//! A small network to test in, described once and put into any tables.

use core::net::IpAddr;
use core::sync::atomic::Ordering;

use mgre_common::endpoint::{EndpointKey, Owner, endpoint_address, endpoint_key, endpoint_kind, mapped_v4};
use mgre_common::fdb::{Bucket, FdbHash, FdbKey, SEEN_STATIC};
use mgre_common::table::{
    Adjacency, FloodList, FloodSlot, Port, Segment, Template, VlanKey, adjacency_flag, port_flag,
    segment_flag, template_flag, template_option,
};
use mgre_common::target::Target;
use mgre_common::template::{DontFragment, Encapsulation, Key, Link, Outer, Tos};
use mgre_common::wire::MacAddr;

/// Our underlay address.
pub const LOCAL: [u8; 4] = [192, 0, 2, 1];
/// Our underlay address, IPv6.
pub const LOCAL_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
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
/// The underlay interface's MAC address.
pub const NEAR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xee, 1]);
/// The underlay next hop's MAC address.
pub const NEXT_HOP_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xee, 2]);
/// An id for which no table has a record.
pub const ABSENT: u32 = 50_000;

/// Where tables are filled.
pub trait Sink {
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
    /// A slot of the flood lists.
    fn flood_slot(&mut self, index: u32) -> &FloodSlot;
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
    /// When it was seen, or [`SEEN_STATIC`].
    pub seen: u32,
}

/// A whole network.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Ports.
    pub ports: Vec<PortSpec>,
    /// Adjacencies.
    pub peers: Vec<PeerSpec>,
    /// Segments and their [`segment_flag`] bits.
    pub segments: Vec<(u32, u32)>,
    /// Addresses.
    pub entries: Vec<Entry>,
    /// Interfaces that are ports without a record.
    pub stray_interfaces: Vec<(u32, u32)>,
    /// Endpoints whose adjacency has no record.
    pub stray_endpoints: Vec<(EndpointKey, u32)>,
}

/// A station's address.
pub const fn station(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, number])
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
        Self { id, ifindex: id + 10, segment, flags, max_frame: 1514 }
    }
}

impl World {
    /// The network that [`super::cases`] are about.
    pub fn standard() -> Self {
        let port = PortSpec::new;
        let peer = PeerSpec::new;
        let entry = |segment, number, target| Entry { segment, mac: station(number), target, seen: 1 };
        Self {
            ports: vec![
                port(0, 1),
                port(1, 1),
                port(2, 2),
                port(3, 3),
                port(4, 4),
                PortSpec { flags: port_flag::VALID, ..port(5, 4) },
                PortSpec { max_frame: 100, ..port(6, 4) },
                PortSpec { flags: port_flag::VALID | port_flag::UP | port_flag::FULL, ..port(7, 5) },
                port(8, 5),
                port(9, 6),
                port(10, 7),
                port(11, 8),
                PortSpec { flags: port_flag::VALID | port_flag::UP | port_flag::HOST, ..port(12, 8) },
                PortSpec { flags: 0, ..port(13, 1) },
                port(14, 9),
                port(15, 9),
                port(16, 10),
            ],
            peers: vec![
                peer(0, 1, PEER_A, Some(7)),
                peer(1, 1, PEER_B, Some(7)),
                peer(2, 2, PEER_A, None),
                peer(3, 3, PEER_A, Some(0)),
                PeerSpec { mtu: None, ..peer(4, 4, PEER_A, Some(9)) },
                PeerSpec { mtu: Some(150), ..peer(5, 4, PEER_B, Some(9)) },
                peer(6, 4, PEER_C, Some(9)),
                PeerSpec {
                    flags: adjacency_flag::VALID | adjacency_flag::FULL,
                    ..peer(7, 5, PEER_A, Some(11))
                },
                peer(8, 6, PEER_A, Some(12)),
                PeerSpec { flags: 0, ..peer(9, 1, PEER_A, Some(14)) },
                peer(10, 9, PEER_A, Some(21)),
                peer(11, 9, PEER_B, Some(21)),
                PeerSpec { mtu: Some(150), ..peer(12, 9, PEER_C, Some(21)) },
                PeerSpec { neighbor: false, ..peer(13, 10, PEER_A, Some(22)) },
            ],
            segments: (1..=10)
                .map(|id| match id {
                    6 => (id, segment_flag::VALID | segment_flag::FULL),
                    9 => (id, segment_flag::VALID | segment_flag::HUB),
                    _ => (id, segment_flag::VALID),
                })
                .collect(),
            entries: vec![
                entry(1, 1, Target::port(0)),
                entry(1, 2, Target::port(1)),
                entry(1, 3, Target::adjacency(0)),
                entry(1, 4, Target::adjacency(1)),
                Entry { seen: SEEN_STATIC, ..entry(1, 5, Target::port(1)) },
                entry(1, 6, Target::port(ABSENT)),
                entry(1, 7, Target::adjacency(ABSENT)),
                entry(2, 1, Target::port(2)),
                entry(2, 3, Target::adjacency(2)),
                entry(3, 1, Target::port(3)),
                entry(3, 3, Target::adjacency(3)),
                entry(4, 1, Target::port(4)),
                entry(4, 2, Target::port(5)),
                entry(4, 3, Target::port(6)),
                entry(4, 4, Target::adjacency(4)),
                entry(4, 5, Target::adjacency(5)),
                entry(4, 6, Target::adjacency(6)),
                entry(5, 1, Target::port(7)),
                entry(5, 2, Target::port(8)),
                entry(5, 3, Target::adjacency(7)),
                entry(6, 1, Target::port(9)),
                entry(6, 3, Target::adjacency(8)),
                entry(7, 1, Target::port(10)),
                entry(8, 1, Target::port(11)),
                entry(8, 2, Target::port(12)),
                entry(9, 1, Target::port(14)),
                entry(9, 3, Target::adjacency(10)),
                entry(9, 4, Target::adjacency(11)),
                entry(9, 5, Target::adjacency(12)),
                entry(10, 1, Target::port(16)),
                entry(10, 3, Target::adjacency(13)),
            ],
            stray_interfaces: vec![(30, ABSENT)],
            stray_endpoints: vec![(endpoint(PEER_A, Some(15)), ABSENT)],
        }
    }

    /// The same, where every interface outside takes frames from an early hook.
    pub fn express() -> Self {
        let mut world = Self::standard();
        for port in world.ports.iter_mut().filter(|port| port.flags & port_flag::HOST == 0) {
            port.flags |= port_flag::EXPRESS;
        }
        for peer in &mut world.peers {
            peer.express = true;
        }
        world
    }

    /// Fills tables with it.
    pub fn install(&self, sink: &mut impl Sink) {
        for port in &self.ports {
            let indexed = port.flags & port_flag::VALID != 0;
            sink.port_index(port.ifindex, port.id, indexed.then_some(port.segment));
            let record = sink.port(port.id);
            record.ifindex.store(port.ifindex, Ordering::Relaxed);
            record.segment.store(port.segment, Ordering::Relaxed);
            record.max_frame.store(port.max_frame, Ordering::Relaxed);
            record.flags.store(port.flags, Ordering::Relaxed);
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
        for &(ifindex, id) in &self.stray_interfaces {
            sink.port_index(ifindex, id, None);
        }
        for &(key, id) in &self.stray_endpoints {
            sink.endpoint(key, id, None);
        }
        self.install_flood_lists(sink);
        for entry in &self.entries {
            install_entry(sink, entry);
        }
    }

    fn install_flood_lists(&self, sink: &mut impl Sink) {
        let mut next = 0;
        for &(id, flags) in &self.segments {
            let ports: Vec<_> = self
                .ports
                .iter()
                .filter(|port| port.segment == id && port.flags & port_flag::VALID != 0)
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
            let record = sink.segment(id);
            record.flags.store(flags, Ordering::Relaxed);
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
            return;
        }
    }
    panic!("no room for {key:?}");
}
