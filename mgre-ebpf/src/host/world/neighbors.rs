//! The segments that suppress ARP and ND.

use core::net::IpAddr;

use mgre_common::fdb::SEEN_STATIC;
use mgre_common::neighbor::{Binding, NeighborKey, NeighborRecord, neighbor_flag};
use mgre_common::table::{port_flag, segment_flag};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use super::{Entry, PeerSpec, PortSpec, VLAN_INTERFACE, World, peer_v4, station};

/// The segment with most of it: stations 1 and 2 at ports 51 and 52, 3 and 4 behind peers 60
/// and 61.
pub const SUPPRESSED: u32 = 40;
/// The one with other ports: station 1 at port 54 in VLAN 8, 2 at port 55, 5 at the host's
/// interface 53.
pub const SUPPRESSED_VLAN: u32 = 41;
/// One that does not suppress, with bindings all the same: station 1 at port 56, 3 behind peer 62.
pub const UNSUPPRESSED: u32 = 42;
/// GRE key of the first.
pub const SUPPRESSED_KEY: Option<u32> = Some(20 + SUPPRESSED);
/// GRE key of the last.
pub const UNSUPPRESSED_KEY: Option<u32> = Some(20 + UNSUPPRESSED);

/// An address in the tests' IPv4 network.
pub const fn host_v4(number: u8) -> [u8; 4] {
    [10, 17, 0, number]
}

/// The same, IPv6.
pub const fn host_v6(number: u8) -> [u8; 16] {
    [0x20, 1, 0xd, 0xb8, 0, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]
}

/// An address that is contested.
pub const CONTESTED: u8 = 30;
/// An address whose MAC address the FDB does not know, which is station 40's.
pub const HOMELESS: u8 = 31;
/// An address that is contested by the cases, each by one.
pub const DISPUTED: [u8; 3] = [32, 33, 34];

impl World {
    /// Adds them to a network.
    pub(super) fn with_neighbors(mut self) -> Self {
        let up = port_flag::VALID | port_flag::UP;
        self.ports.extend([
            PortSpec::new(51, SUPPRESSED),
            PortSpec::new(52, SUPPRESSED),
            PortSpec { flags: up | port_flag::HOST, ..PortSpec::new(53, SUPPRESSED_VLAN) },
            PortSpec::new(54, SUPPRESSED_VLAN).vlan(VLAN_INTERFACE, 8),
            PortSpec::new(55, SUPPRESSED_VLAN),
            PortSpec::new(56, UNSUPPRESSED),
        ]);
        self.peers.extend([
            PeerSpec::new(60, SUPPRESSED, peer_v4(60), SUPPRESSED_KEY),
            PeerSpec::new(61, SUPPRESSED, peer_v4(61), SUPPRESSED_KEY),
            PeerSpec::new(62, UNSUPPRESSED, peer_v4(62), UNSUPPRESSED_KEY),
        ]);
        let suppresses = segment_flag::VALID | segment_flag::SUPPRESS;
        self.segments.extend([
            (SUPPRESSED, suppresses),
            (SUPPRESSED_VLAN, suppresses),
            (UNSUPPRESSED, segment_flag::VALID),
        ]);
        let entry = |segment: u32, number, target| Entry {
            segment: segment as u16,
            mac: station(number),
            target,
            seen: 1,
            held: false,
        };
        self.entries.extend([
            entry(SUPPRESSED, 1, Target::port(51)),
            entry(SUPPRESSED, 2, Target::port(52)),
            Entry { seen: SEEN_STATIC, ..entry(SUPPRESSED_VLAN, 5, Target::port(53)) },
            entry(SUPPRESSED, 3, Target::adjacency(60)),
            entry(SUPPRESSED, 4, Target::adjacency(61)),
            entry(SUPPRESSED, 6, Target::port(51)),
            entry(SUPPRESSED_VLAN, 1, Target::port(54)),
            entry(SUPPRESSED_VLAN, 2, Target::port(55)),
            entry(UNSUPPRESSED, 1, Target::port(56)),
            entry(UNSUPPRESSED, 3, Target::adjacency(62)),
        ]);
        for segment in [SUPPRESSED, SUPPRESSED_VLAN, UNSUPPRESSED] {
            for number in 1..=6 {
                self.bind(segment, number, station(number), 0);
            }
        }
        self.bind(SUPPRESSED, CONTESTED, station(3), 1);
        self.bind(SUPPRESSED, HOMELESS, station(40), 0);
        for number in DISPUTED {
            self.bind(SUPPRESSED, number, station(3), 0);
        }
        self
    }

    /// Both addresses with this number; station 4 is a router.
    fn bind(&mut self, segment: u32, number: u8, mac: MacAddr, contested: u32) {
        let router = if mac == station(4) { neighbor_flag::ROUTER } else { 0 };
        for (address, flags) in [(IpAddr::from(host_v4(number)), 0), (IpAddr::from(host_v6(number)), router)]
        {
            let record = NeighborRecord { binding: Binding::new(mac, flags), seen: 1, contested };
            self.neighbors.push((NeighborKey::new(segment as u16, address), record));
        }
    }
}
