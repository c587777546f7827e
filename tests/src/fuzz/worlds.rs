//! Networks, by number: the one that the pipeline's cases are about, and as many as there are numbers, with ports,
//! peers and options of every kind.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mgre_common::fdb::SEEN_STATIC;
use mgre_common::neighbor::{Binding, NeighborKey, NeighborRecord, neighbor_flag};
use mgre_common::table::{adjacency_flag, port_flag, segment_flag};
use mgre_common::target::Target;
use mgre_common::template::{DontFragment, Encapsulation, Tos};
use mgre_ebpf::host::world::neighbors::{host_v4, host_v6};
use mgre_ebpf::host::world::{
    ABSENT, Entry, LOCAL, LOCAL_V6, PeerSpec, PortSpec, SLOW, StormSpec, VLAN_INTERFACE, World, endpoint,
    peer_v4, peer_v6, station,
};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// The number of the pipeline's cases' network.
pub const STANDARD: u16 = 0;
/// Ports that a network has, at most; port n is on interface n + 10.
pub const MAX_PORTS: u32 = 57;
/// The most stations that a segment knows.
const STATIONS: u8 = 12;

/// How a segment's packets are told from another's.
#[derive(Clone, Copy)]
enum Kind {
    Keyless,
    Keyed(u32),
    Nvgre(u32),
}

/// The network with this number.
pub fn world(number: u16) -> World {
    if number == STANDARD {
        return World::standard();
    }
    let mut rng = SmallRng::seed_from_u64(number.into());
    let slow = if rng.random_bool(0.9) { SLOW } else { 0 };
    let mut world = World { slow, ..World::default() };
    let segments = rng.random_range(1..=4);
    for segment in 1..=segments {
        let mut flags = segment_flag::VALID;
        if rng.random_bool(0.4) {
            flags |= segment_flag::HUB;
        }
        if rng.random_bool(0.08) {
            flags |= segment_flag::FULL;
        }
        world.segments.push((segment, flags));
        add_ports(&mut world, segment, &mut rng);
        add_peers(&mut world, segment, &mut rng);
        add_stations(&mut world, segment, &mut rng);
        if rng.random_bool(0.5) {
            world.blocked_groups.push((segment, rng.random_range(0..0x1_0000)));
        }
    }
    if rng.random_bool(0.3) {
        add_storms(&mut world, &mut rng);
    }
    // Numbers of their own, so that a network is what it was before there was this.
    let mut rng = SmallRng::seed_from_u64(u64::from(number) | 1 << 32);
    block_ports(&mut world, &mut rng);
    add_neighbors(&mut world, &mut rng);
    world.stray_interfaces.push((38, ABSENT));
    world.stray_endpoints.push((endpoint([192, 0, 2, 2], Some(0x7fff_0001)), ABSENT));
    if rng.random_bool(0.25) {
        world.shared_locals = vec![LOCAL.into(), LOCAL_V6.into()];
    }
    world
}

fn add_ports(world: &mut World, segment: u32, rng: &mut SmallRng) {
    for _ in 0..rng.random_range(0..=4) {
        let id = world.ports.len() as u32;
        let mut port = PortSpec::new(id, segment);
        let vlans: BTreeSet<_> = world.ports.iter().filter_map(|port| port.vlan).collect();
        let vlan = *[0, 5, 6, 7].choose(rng).unwrap_or(&0);
        if rng.random_bool(0.15) && !vlans.contains(&vlan) {
            port = port.vlan(VLAN_INTERFACE, vlan);
        } else if rng.random_bool(0.1) {
            port.flags |= port_flag::HOST;
        } else if rng.random_bool(0.2) {
            port.flags |= port_flag::PEER;
        }
        if rng.random_bool(0.08) {
            port.flags &= !port_flag::UP;
        }
        if rng.random_bool(0.05) {
            port.flags |= port_flag::FULL;
        }
        if rng.random_bool(0.03) && port.vlan.is_none() {
            port.flags = 0;
        }
        port.max_frame = *[1518, 1518, 100, 9018].choose(rng).unwrap_or(&1518);
        world.ports.push(port);
    }
}

/// A kind whose packets are nobody else's.
fn kind(world: &World, rng: &mut SmallRng) -> Kind {
    let used = |key: u32| world.peers.iter().any(|peer| peer.key == Some(key) && !peer.nvgre);
    let subnets = |vsid: u32| world.peers.iter().any(|peer| peer.key == Some(vsid) && peer.nvgre);
    let keyless = world.peers.iter().any(|peer| peer.key.is_none());
    match rng.random_range(0..10) {
        0 | 1 if !keyless => Kind::Keyless,
        2 if !used(0) && !subnets(0) => Kind::Keyed(0),
        3 | 4 => loop {
            let vsid = rng.random_range(0x1000..0xff_ffff);
            if !subnets(vsid) && !world.peers.iter().any(|peer| peer.key.is_some_and(|key| key >> 8 == vsid))
            {
                break Kind::Nvgre(vsid);
            }
        },
        _ => loop {
            let key = if rng.random_bool(0.5) { rng.random_range(1..100) } else { rng.random() };
            if !used(key) && !subnets(key >> 8) {
                break Kind::Keyed(key);
            }
        },
    }
}

fn add_peers(world: &mut World, segment: u32, rng: &mut SmallRng) {
    let kind = kind(world, rng);
    let clamps = rng.random_bool(0.3);
    for _ in 0..rng.random_range(0..=5) {
        let id = world.peers.len() as u32;
        // Endpoints are shared between segments, whose keys differ.
        let host = id % 9;
        let key = match kind {
            Kind::Keyless => None,
            Kind::Keyed(number) | Kind::Nvgre(number) => Some(number),
        };
        let mut peer = PeerSpec::new(id, segment, peer_v4(host), key);
        if rng.random_bool(0.4) {
            peer = peer.over_ipv6(peer_v6(host));
        }
        add_options(&mut peer, kind, rng);
        if clamps {
            peer.flags |= adjacency_flag::CLAMP_MSS;
        }
        if rng.random_bool(0.05) {
            peer.flags |= adjacency_flag::FULL;
        }
        peer.mtu = match rng.random_range(0..20) {
            0 => None,
            1..3 => Some(150),
            3..5 => Some(200),
            5 => Some(576),
            6..8 => Some(1280),
            8 => Some(1400),
            9 => Some(9000),
            _ => Some(1500),
        };
        peer.neighbor = rng.random_bool(0.9);
        world.peers.push(peer);
    }
}

fn add_options(peer: &mut PeerSpec, kind: Kind, rng: &mut SmallRng) {
    if let Kind::Nvgre(_) = kind {
        *peer = peer.with_nvgre();
    } else {
        peer.checksum = rng.random_bool(0.2);
        if rng.random_bool(0.2) {
            *peer = peer.numbered();
        }
        if rng.random_bool(0.25) {
            peer.encapsulation = Encapsulation::GreUdp;
        }
    }
    match rng.random_range(0..4) {
        0 => *peer = peer.uniform(),
        1 => peer.tos = Tos::Fixed(0xb8),
        _ => {}
    }
    peer.dont_fragment = match rng.random_range(0..5) {
        0 => DontFragment::Unset,
        1 => DontFragment::Inherit,
        _ => DontFragment::Set,
    };
    if rng.random_bool(0.04) {
        peer.flags &= !adjacency_flag::VALID;
    }
}

fn block_ports(world: &mut World, rng: &mut SmallRng) {
    for port in &mut world.ports {
        if rng.random_bool(0.04) && port.flags & port_flag::VALID != 0 {
            port.flags = port.flags & !port_flag::UP | port_flag::BLOCKED;
        }
    }
}

/// Segments that suppress ARP and ND, and who has which address there.
fn add_neighbors(world: &mut World, rng: &mut SmallRng) {
    for (segment, flags) in &mut world.segments {
        if !rng.random_bool(0.4) {
            continue;
        }
        *flags |= segment_flag::SUPPRESS;
        for number in 1..STATIONS + 2 {
            let mac = if rng.random_bool(0.9) { number } else { rng.random_range(1..STATIONS) };
            for address in [IpAddr::from(host_v4(number)), IpAddr::from(host_v6(number))] {
                let router = rng.random_bool(0.2) && address.is_ipv6();
                let flags = if router { neighbor_flag::ROUTER } else { 0 };
                let record = NeighborRecord {
                    binding: Binding::new(station(mac), flags),
                    seen: 1,
                    contested: u32::from(rng.random_bool(0.1)),
                };
                if rng.random_bool(0.85) {
                    world.neighbors.push((NeighborKey::new(*segment as u16, address), record));
                }
            }
        }
    }
}

fn add_storms(world: &mut World, rng: &mut SmallRng) {
    let ports = world.ports.iter().map(|port| Target::port(port.id));
    let peers = world.peers.iter().map(|peer| Target::adjacency(peer.id));
    for source in ports.chain(peers) {
        if rng.random_bool(0.5) {
            let limit = *[10, 1000, 1_000_000].choose(rng).unwrap_or(&1000);
            world.storms.push(StormSpec { source, limit, exhausted: rng.random_bool(0.1) });
        }
    }
}

fn add_stations(world: &mut World, segment: u32, rng: &mut SmallRng) {
    let ports = world.ports.iter().filter(|port| port.segment == segment);
    let peers = world.peers.iter().filter(|peer| peer.segment == segment);
    let mut targets: Vec<Target> = ports.map(|port| Target::port(port.id)).collect();
    targets.extend(
        peers.filter(|peer| peer.flags & adjacency_flag::VALID != 0).map(|peer| Target::adjacency(peer.id)),
    );
    for number in 1..STATIONS {
        let Some(target) = targets.choose(rng).copied() else { return };
        let target = if rng.random_bool(0.01) { Target::adjacency(ABSENT) } else { target };
        let seen = if rng.random_bool(0.12) { SEEN_STATIC } else { 1 };
        let held = seen != SEEN_STATIC && rng.random_bool(0.08);
        world.entries.push(Entry { segment: segment as u16, mac: station(number), target, seen, held });
    }
}
