//! The network that the cases are about.

use mgre_common::fdb::SEEN_STATIC;
use mgre_common::table::{adjacency_flag, port_flag, segment_flag};
use mgre_common::target::Target;
use mgre_common::template::{DontFragment, Encapsulation, Tos};

use super::{
    ABSENT, Entry, LOCAL_SHARED, LOCAL_SHARED_V6, PEER_A, PEER_A_V6, PEER_B, PEER_B_V6, PEER_C, PeerSpec,
    PortSpec, SLOW, StormSpec, VLAN_INTERFACE, VSID, World, endpoint, peer_v4, peer_v6, station,
};

impl World {
    /// The network that [`super::super::cases`] are about.
    pub fn standard() -> Self {
        let port = PortSpec::new;
        let peer = PeerSpec::new;
        let v4 = |id: u32, segment: u32| peer(id, segment, peer_v4(id), Some(20 + segment));
        let v6 = |id: u32, segment: u32| v4(id, segment).over_ipv6(peer_v6(id));
        let entry =
            |segment, number, target| Entry { segment, mac: station(number), target, seen: 1, held: false };
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
                port(17, 11),
                port(18, 11),
                port(19, 12),
                port(21, 13),
                port(22, 14),
                port(23, 15),
                port(24, 16).vlan(VLAN_INTERFACE, 5),
                port(25, 16).vlan(VLAN_INTERFACE, 0),
                port(26, 16).vlan(VLAN_INTERFACE, 6),
                port(27, 16),
                port(28, 17),
                port(29, 17),
                PortSpec { flags: port_flag::VALID | port_flag::BLOCKED, ..port(30, 17) },
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
                peer(14, 11, PEER_A, Some(31)).over_ipv6(PEER_A_V6),
                peer(15, 11, PEER_B, Some(31)).over_ipv6(PEER_B_V6),
                peer(16, 12, PEER_A, None).over_ipv6(PEER_A_V6),
                v4(17, 13),
                v6(18, 13),
                v4(19, 14).uniform(),
                v6(20, 14).uniform(),
                PeerSpec { tos: Tos::Fixed(0xb8), dont_fragment: DontFragment::Unset, ..v4(21, 14) },
                PeerSpec { tos: Tos::Fixed(0x28), dont_fragment: DontFragment::Inherit, ..v4(22, 14) },
                PeerSpec { encapsulation: Encapsulation::GreUdp, ..v4(23, 14) },
                PeerSpec { encapsulation: Encapsulation::GreUdp, tos: Tos::Fixed(0xb8), ..v6(24, 14) },
                PeerSpec { checksum: true, ..v4(25, 14) },
                v4(26, 14).numbered(),
                PeerSpec { checksum: true, ..v6(27, 14).numbered() },
                PeerSpec { mtu: Some(200), ..v4(28, 14) },
                PeerSpec { mtu: Some(200), dont_fragment: DontFragment::Unset, ..v4(29, 14) },
                PeerSpec { mtu: Some(200), dont_fragment: DontFragment::Inherit, ..v4(30, 14) },
                PeerSpec { mtu: Some(1280), ..v6(31, 14) },
                PeerSpec { key: Some(VSID), ..v4(32, 15) }.with_nvgre(),
                PeerSpec { key: Some(VSID), ..v6(33, 15) }.with_nvgre(),
                v4(34, 16),
                PeerSpec { mtu: Some(200), checksum: true, dont_fragment: DontFragment::Unset, ..v4(35, 14) },
                PeerSpec { checksum: true, ..v4(36, 13) },
                v4(37, 17),
                v4(38, 17),
            ],
            segments: (1..=17)
                .map(|id| match id {
                    6 => (id, segment_flag::VALID | segment_flag::FULL),
                    9 | 13 => (id, segment_flag::VALID | segment_flag::HUB),
                    _ => (id, segment_flag::VALID),
                })
                .collect(),
            entries: [
                vec![
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
                    entry(11, 1, Target::port(17)),
                    entry(11, 2, Target::port(18)),
                    entry(11, 3, Target::adjacency(14)),
                    entry(11, 4, Target::adjacency(15)),
                    entry(12, 1, Target::port(19)),
                    entry(12, 3, Target::adjacency(16)),
                    entry(13, 1, Target::port(21)),
                    entry(14, 1, Target::port(22)),
                    entry(15, 1, Target::port(23)),
                    entry(16, 1, Target::port(24)),
                    entry(16, 2, Target::port(25)),
                    entry(16, 3, Target::port(26)),
                    entry(16, 4, Target::port(27)),
                    entry(17, 1, Target::port(28)),
                    entry(17, 2, Target::port(29)),
                    entry(17, 7, Target::port(30)),
                    Entry { held: true, ..entry(17, 5, Target::port(28)) },
                    Entry { held: true, ..entry(17, 6, Target::adjacency(37)) },
                ],
                // The stations behind the others have their peers' numbers.
                (17..=38).map(|id| entry(segment_of(id), id as u8, Target::adjacency(id))).collect(),
            ]
            .concat(),
            // All but those of LLDP.
            blocked_groups: vec![(17, 0xffff & !(1 << 14))],
            storms: vec![
                StormSpec { source: Target::port(28), limit: 1_000_000, exhausted: false },
                StormSpec { source: Target::port(29), limit: 1000, exhausted: true },
                StormSpec { source: Target::adjacency(38), limit: 1000, exhausted: true },
            ],
            stray_interfaces: vec![(30, ABSENT)],
            shared_locals: vec![LOCAL_SHARED.into(), LOCAL_SHARED_V6.into()],
            stray_endpoints: vec![(endpoint(PEER_A, Some(15)), ABSENT)],
            slow: SLOW,
            neighbors: Vec::new(),
        }
        .with_neighbors()
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
}

/// The segment of a peer, of those from 17 on.
const fn segment_of(peer: u32) -> u16 {
    match peer {
        17 | 18 | 36 => 13,
        32 | 33 => 15,
        34 => 16,
        37 | 38 => 17,
        _ => 14,
    }
}
