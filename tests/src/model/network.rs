//! Who there is in a network: its description, read once into owned tables.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use mgre_common::endpoint::endpoint_kind;
use mgre_common::fdb::SEEN_STATIC;
use mgre_common::neighbor::{NeighborKey, neighbor_flag};
use mgre_common::table::{adjacency_flag, port_flag, segment_flag};
use mgre_common::target::Target;
use mgre_common::template::{DontFragment, Encapsulation, Tos};
use mgre_common::wire::MacAddr;
use mgre_ebpf::host::world::{LOCAL, LOCAL_V6, PeerSpec, PortSpec, World};

/// What a GRE key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum GreKey {
    None,
    Plain(u32),
    /// The upper 24 bits are a virtual subnet's, the lower 8 anything.
    Subnet(u32),
}

/// A local interface in a segment.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) id: u32,
    pub(super) ifindex: u32,
    pub(super) segment: u32,
    pub(super) valid: bool,
    pub(super) up: bool,
    /// Nothing goes in or out, for another way leads to the same LAN.
    pub(super) blocked: bool,
    pub(super) host: bool,
    /// The other end is in another namespace.
    pub(super) far: bool,
    pub(super) full: bool,
    pub(super) max_frame: usize,
    /// Its frames have this tag on the interface.
    pub(super) vlan: Option<u16>,
    /// Whether it has only some of the interface's frames: those of a VLAN, or of none.
    pub(super) by_vlan: bool,
}

/// A peer in a segment.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) id: u32,
    pub(super) segment: u32,
    pub(super) valid: bool,
    pub(super) full: bool,
    pub(super) local: IpAddr,
    pub(super) remote: IpAddr,
    pub(super) key: GreKey,
    pub(super) routed: bool,
    pub(super) resolved: bool,
    /// The longest frame that fits the tunnel; zero while there is no route.
    pub(super) max_frame: usize,
    pub(super) tos: Tos,
    pub(super) dont_fragment: DontFragment,
    pub(super) checksum: bool,
    pub(super) sequence: bool,
    pub(super) checks_sequence: bool,
    pub(super) udp: bool,
    pub(super) uniform: bool,
    pub(super) clamps: bool,
}

impl Peer {
    /// Frames for it must be of the wire's size, their checksums finished, before they get its header.
    pub(super) fn finishes(&self) -> bool {
        self.checksum || self.sequence
    }

    pub(super) fn is_nvgre(&self) -> bool {
        matches!(self.key, GreKey::Subnet(_))
    }

    pub(super) fn target(&self) -> Target {
        Target::adjacency(self.id)
    }

    /// Bytes of outer IP, UDP and GRE (RFC 791, RFC 8200, RFC 768, RFC 2784, RFC 2890).
    fn overhead(&self) -> usize {
        let ip = if self.remote.is_ipv4() { 20 } else { 40 };
        let udp = if self.udp { 8 } else { 0 };
        let fields = [self.checksum, self.key != GreKey::None, self.sequence];
        ip + udp + 4 + 4 * fields.iter().filter(|field| **field).count()
    }
}

/// A broadcast domain.
#[derive(Clone, Debug, Default)]
pub(super) struct Segment {
    pub(super) hub: bool,
    pub(super) full: bool,
    /// Questions for addresses that are known are answered, not flooded.
    pub(super) suppresses: bool,
    /// Of the sixteen addresses that bridges keep to one link (IEEE 802.1Q 8.6.3), those that do not pass.
    pub(super) blocked_groups: u32,
    /// Its ports' ids, in order.
    pub(super) ports: Vec<u32>,
    /// Its peers' ids, in order.
    pub(super) peers: Vec<u32>,
}

/// Where an address is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) target: Target,
    pub(super) fixed: bool,
    /// It was seen in too many places, and is taken to be here.
    pub(super) held: bool,
}

/// Who has an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbor {
    pub(super) mac: MacAddr,
    pub(super) router: bool,
    /// Somebody else says that he has it.
    pub(super) contested: bool,
}

/// What a local interface is.
pub(super) enum At<'a> {
    Nobody,
    /// A port that has no record.
    Stray,
    Port(&'a Port),
}

/// A network.
#[derive(Debug, Default)]
pub struct Network {
    ports: HashMap<u32, Port>,
    interfaces: HashMap<u32, u32>,
    vlans: HashMap<(u32, u16), u32>,
    pub(super) peers: HashMap<u32, Peer>,
    endpoints: HashMap<(IpAddr, IpAddr, GreKey), u32>,
    /// Pairs of addresses, ours last, that some peer has.
    known: HashMap<(IpAddr, IpAddr), ()>,
    /// Ours; whether GRE of no peer's for it is the kernel's.
    locals: HashMap<IpAddr, bool>,
    segments: HashMap<u32, Segment>,
    places: HashMap<(u32, MacAddr), Place>,
    neighbors: HashMap<NeighborKey, Neighbor>,
    pub(super) slow: Option<u32>,
    /// How many frames a source may have flooded at once.
    storms: HashMap<Target, u64>,
}

impl Network {
    /// From its description.
    pub fn new(world: &World) -> Self {
        let mut network = Self { slow: (world.slow != 0).then_some(world.slow), ..Self::default() };
        for (id, flags) in &world.segments {
            let has = |bit| flags & bit != 0;
            let segment = Segment {
                hub: has(segment_flag::HUB),
                full: has(segment_flag::FULL),
                suppresses: has(segment_flag::SUPPRESS),
                blocked_groups: 0,
                ports: Vec::new(),
                peers: Vec::new(),
            };
            network.segments.insert(*id, segment);
        }
        for (id, groups) in &world.blocked_groups {
            network.segments.entry(*id).or_default().blocked_groups = *groups;
        }
        for storm in &world.storms {
            // A quarter of a second's, 32 at least.
            let most = if storm.exhausted { 0 } else { u64::from(storm.limit / 4).max(32) };
            network.storms.insert(storm.source, most);
        }
        for spec in &world.ports {
            network.add_port(spec);
        }
        for (ifindex, id) in &world.stray_interfaces {
            network.interfaces.insert(*ifindex, *id);
        }
        for spec in &world.peers {
            network.add_peer(spec);
        }
        network.locals.extend(world.shared_locals.iter().map(|local| (*local, true)));
        for (key, id) in &world.stray_endpoints {
            let gre = match key.kind {
                endpoint_kind::KEYED => GreKey::Plain(u32::from_be(key.key)),
                endpoint_kind::VSID => GreKey::Subnet(u32::from_be(key.key) >> 8),
                _ => GreKey::None,
            };
            network.endpoints.insert((address(key.remote), address(key.local), gre), *id);
        }
        for entry in &world.entries {
            let fixed = entry.seen == SEEN_STATIC;
            let place = Place { target: entry.target, fixed, held: entry.held };
            network.places.insert((entry.segment.into(), entry.mac), place);
        }
        for (key, record) in &world.neighbors {
            let neighbor = Neighbor {
                mac: record.binding.mac(),
                router: record.binding.flags() & neighbor_flag::ROUTER != 0,
                contested: record.contested != 0,
            };
            network.neighbors.insert(*key, neighbor);
        }
        network
    }

    fn add_port(&mut self, spec: &PortSpec) {
        let has = |bit| spec.flags & bit != 0;
        let port = Port {
            id: spec.id,
            ifindex: spec.ifindex,
            segment: spec.segment,
            valid: has(port_flag::VALID),
            up: has(port_flag::UP),
            blocked: has(port_flag::BLOCKED),
            host: has(port_flag::HOST),
            far: has(port_flag::PEER),
            full: has(port_flag::FULL),
            max_frame: spec.max_frame as usize,
            by_vlan: spec.vlan.is_some(),
            vlan: spec.vlan.filter(|vlan| *vlan != 0),
        };
        if port.valid
            && !port.blocked
            && let Some(segment) = self.segments.get_mut(&spec.segment)
        {
            segment.ports.push(spec.id);
        }
        match spec.vlan {
            None => self.interfaces.insert(spec.ifindex, spec.id),
            Some(vlan) => self.vlans.insert((spec.ifindex, vlan), spec.id),
        };
        self.ports.insert(spec.id, port);
    }

    fn add_peer(&mut self, spec: &PeerSpec) {
        let has = |bit| spec.flags & bit != 0;
        let (local, remote) = match spec.endpoint_v6 {
            Some(remote) => (IpAddr::from(LOCAL_V6), IpAddr::from(remote)),
            None => (IpAddr::from(LOCAL), IpAddr::from(spec.endpoint)),
        };
        let key = match spec.key {
            None => GreKey::None,
            Some(subnet) if spec.nvgre => GreKey::Subnet(subnet),
            Some(key) => GreKey::Plain(key),
        };
        let mut peer = Peer {
            id: spec.id,
            segment: spec.segment,
            valid: has(adjacency_flag::VALID),
            full: has(adjacency_flag::FULL),
            local,
            remote,
            key,
            routed: spec.mtu.is_some(),
            resolved: spec.mtu.is_some() && spec.neighbor,
            max_frame: 0,
            tos: spec.tos,
            dont_fragment: spec.dont_fragment,
            checksum: spec.checksum,
            sequence: spec.sequence,
            checks_sequence: has(adjacency_flag::SEQUENCE),
            udp: spec.encapsulation == Encapsulation::GreUdp,
            uniform: has(adjacency_flag::UNIFORM),
            clamps: has(adjacency_flag::CLAMP_MSS),
        };
        peer.max_frame = (spec.mtu.unwrap_or(0) as usize).saturating_sub(peer.overhead());
        self.endpoints.insert((remote, local, key), spec.id);
        self.known.insert((remote, local), ());
        self.locals.insert(local, false);
        if peer.valid
            && let Some(segment) = self.segments.get_mut(&spec.segment)
        {
            segment.peers.push(spec.id);
        }
        self.peers.insert(spec.id, peer);
    }

    pub(super) fn port(&self, id: u32) -> Option<&Port> {
        self.ports.get(&id)
    }

    pub(super) fn peer(&self, id: u32) -> Option<&Peer> {
        self.peers.get(&id)
    }

    pub(super) fn segment(&self, id: u32) -> Option<&Segment> {
        self.segments.get(&id)
    }

    pub(super) fn place(&self, segment: u32, mac: MacAddr) -> Option<Place> {
        self.places.get(&(segment, mac)).copied()
    }

    pub(super) fn neighbor(&self, key: &NeighborKey) -> Option<Neighbor> {
        self.neighbors.get(key).copied()
    }

    /// How many frames a source may have flooded at once, if there is a limit.
    pub(super) fn storm_limit(&self, source: Target) -> Option<u64> {
        self.storms.get(&source).copied()
    }

    /// Which port takes a frame with this tag beside it.
    pub(super) fn port_at(&self, ifindex: u32, tag: Option<[u8; 4]>) -> At<'_> {
        let id = match tag {
            Some([0x81, 0, high, low]) => self.vlans.get(&(ifindex, u16::from_be_bytes([high, low]) & 0xfff)),
            _ => self.vlans.get(&(ifindex, 0)),
        };
        let Some(id) = self.interfaces.get(&ifindex).or(id) else { return At::Nobody };
        match self.ports.get(id) {
            None => At::Stray,
            Some(port) if !port.valid => At::Nobody,
            Some(port) => At::Port(port),
        }
    }

    /// Whether an address is one of ours.
    pub(super) fn is_ours(&self, local: IpAddr) -> bool {
        self.locals.contains_key(&local)
    }

    /// Whether GRE of no peer's for an address of ours is the kernel's.
    pub(super) fn is_shared(&self, local: IpAddr) -> bool {
        self.locals.get(&local) == Some(&true)
    }

    /// Whether there is some peer with these addresses.
    pub(super) fn is_known(&self, remote: IpAddr, local: IpAddr) -> bool {
        self.known.contains_key(&(remote, local))
    }

    /// Whose a packet is.
    pub(super) fn owner(&self, remote: IpAddr, local: IpAddr, key: Option<u32>) -> Option<u32> {
        let find = |key| self.endpoints.get(&(remote, local, key)).copied();
        match key {
            None => find(GreKey::None),
            Some(key) => find(GreKey::Plain(key)).or_else(|| find(GreKey::Subnet(key >> 8))),
        }
    }
}

/// An address as the endpoint table has it: IPv4 ones are mapped into IPv6.
fn address(words: [u32; 4]) -> IpAddr {
    let bytes: [u8; 16] = bytemuck::cast(words);
    let v6 = Ipv6Addr::from(bytes);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}
