//! Head-end replication by the real program, out of real interfaces.

use aya::programs::Program;

use super::capture::Capture;
use super::kernel::{DROP, FAR, Kernel, REDIRECT, in_namespace, interfaces, ip};
use etherparse::{Ethernet2Header, IpNumber, Ipv4Header};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::table::MAX_SEGMENT_ADJACENCIES;
use mgre_common::target::Target;
use mgre_common::template::Encapsulation;
use mgre_common::wire::MacAddr;
use mgre_ebpf::frame::{Egress, Side};
use mgre_ebpf::host::cases::{settled, wire};
use mgre_ebpf::host::packet::{Outer, frame};
use mgre_ebpf::host::world::{LOCAL, PEER_A_V6, PeerSpec, PortSpec, UNDERLAY, World, station};
use mgre_user::datapath::load::{PORT_PROGRAM, UNDERLAY_PROGRAM};

const KEY: Option<u32> = Some(0x0102_0304);

fn endpoint(id: u32) -> [u8; 4] {
    let [_, _, high, low] = id.to_be_bytes();
    [10, 1, high, low]
}

fn network(ports: u32, peers: u32) -> World {
    World {
        ports: (0..ports).map(|id| PortSpec::new(id, 1)).collect(),
        peers: (0..peers).map(|id| PeerSpec::new(id, 1, endpoint(id), KEY)).collect(),
        segments: vec![(1, 1)],
        ..World::default()
    }
}

/// Checks an outer header with a parser and a checksum that are not ours.
fn inside(packet: &[u8], peer: [u8; 4]) -> &[u8] {
    let (ethernet, rest) = Ethernet2Header::from_slice(packet).expect("Ethernet");
    assert_eq!(ethernet.ether_type, etherparse::EtherType::IPV4);
    let (ip, gre) = Ipv4Header::from_slice(rest).expect("IPv4");
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    assert_eq!((ip.protocol, ip.source, ip.destination), (IpNumber::GRE, LOCAL, peer));
    assert_eq!(usize::from(ip.total_len), rest.len());
    assert_eq!(gre[..8], [0x20, 0, 0x65, 0x58, 1, 2, 3, 4]);
    &gre[8..]
}

#[test]
fn everyone_else_gets_one_copy() {
    in_namespace(|| {
        const PORTS: u32 = 6;
        /// Fewer than the queue between two interfaces holds.
        const PEERS: u32 = 448;
        let world = network(PORTS, PEERS);
        interfaces(&world);
        let mut kernel = Kernel::new(&world);
        let ports: Vec<_> = (0..PORTS).map(|id| Capture::new(FAR + 10 + id)).collect();
        let underlay = Capture::new(FAR + UNDERLAY);

        // Port 2 sends.
        let inner = frame(MacAddr::BROADCAST, station(1), 0x0806, 1000);
        let ran = kernel.run(PORT_PROGRAM, 12, 0, &inner).unwrap();
        assert_eq!(ran.action, REDIRECT);
        for (id, port) in ports.iter().enumerate() {
            let wanted = if id == 2 { None } else { Some(inner.clone()) };
            assert_eq!(port.next(if id == 2 { 50 } else { 1000 }), wanted, "port {id}");
            assert_eq!(port.next(0), None, "port {id}");
        }
        for id in 0..PEERS - 1 {
            let packet = underlay.next(1000).unwrap_or_else(|| panic!("no copy for peer {id}"));
            assert_eq!(inside(&packet, endpoint(id)), inner);
        }
        assert_eq!(underlay.next(50), None);
        // The last peer gets the frame itself, which a test run does not send.
        assert_eq!(inside(&ran.bytes, endpoint(PEERS - 1)), inner);
        let copies = u64::from(PORTS - 1 + PEERS);
        assert_eq!((kernel.flooded(1).flood_frames, kernel.flooded(1).flood_copies), (1, copies));
        for id in 0..PEERS {
            let traffic = kernel.traffic(Target::adjacency(id));
            assert_eq!((traffic.transmit_packets, traffic.transmit_bytes), (1, inner.len() as u64));
        }

        // Peer 3 sends: every port, no tunnel.
        let inner = frame(MacAddr::BROADCAST, station(2), 0x88cc, 500);
        let packet = Outer::from_peer(endpoint(3), KEY).wrap(&inner);
        let ran = kernel.run(UNDERLAY_PROGRAM, UNDERLAY, 0, &packet).unwrap();
        assert_eq!((ran.action, &ran.bytes), (REDIRECT, &inner));
        for port in &ports[..PORTS as usize - 1] {
            assert_eq!(port.next(1000), Some(inner.clone()));
        }
        assert_eq!(underlay.next(50), None);
    });
}

/// More copies than the queues of interfaces hold: that they were sent, the counters say.
#[test]
fn the_largest_segment_is_flooded_whole() {
    in_namespace(|| {
        let world = network(1, MAX_SEGMENT_ADJACENCIES);
        interfaces(&world);
        let mut kernel = Kernel::new(&world);
        let inner = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);
        let ran = kernel.run(PORT_PROGRAM, 10, 0, &inner).unwrap();
        assert_eq!(inside(&ran.bytes, endpoint(MAX_SEGMENT_ADJACENCIES - 1)), inner);
        let mut copies = 0;
        for id in 0..MAX_SEGMENT_ADJACENCIES {
            let target = Target::adjacency(id);
            let sent = kernel.traffic(target).transmit_packets;
            let dropped = kernel.drops(target).get(Direction::Transmit, DropReason::RedirectFailed);
            assert_eq!(sent + dropped, 1, "peer {id}");
            copies += sent;
        }
        assert!(copies >= 1000, "{copies}");
        assert_eq!((kernel.flooded(1).flood_frames, kernel.flooded(1).flood_copies), (1, copies));
    });
}

#[test]
fn every_peer_gets_a_header_of_its_own_kind() {
    in_namespace(|| {
        let mut world = network(1, 5);
        world.peers[1].key = None;
        world.peers[2] = world.peers[2].over_ipv6(PEER_A_V6);
        world.peers[3].encapsulation = Encapsulation::GreUdp;
        interfaces(&world);
        let mut kernel = Kernel::new(&world);
        let underlay = Capture::new(FAR + UNDERLAY);
        let inner = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);
        let ran = kernel.run(PORT_PROGRAM, 10, 0, &inner).unwrap();
        let copies: Vec<_> = (0..4).map(|_| underlay.next(1000).expect("a copy for each peer")).collect();
        assert_eq!(underlay.next(50), None);
        let expected = wire::flooded(&world, &inner);
        let out = Egress::new(UNDERLAY, Side::Out);
        let packets: Vec<_> = copies.into_iter().chain([ran.bytes]).map(|copy| settled(out, copy)).collect();
        assert_eq!(packets, expected);
    });
}

/// An interface that is down takes no copy: that is counted, and the others get theirs.
#[test]
fn an_interface_that_does_not_take_its_copy() {
    in_namespace(|| {
        let world = network(3, 1);
        interfaces(&world);
        let mut kernel = Kernel::new(&world);
        ip("link set near11 down\n");
        let port = Capture::new(FAR + 12);
        let inner = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);
        let ran = kernel.run(PORT_PROGRAM, 10, 0, &inner).unwrap();
        assert_ne!(ran.action, DROP);
        assert_eq!(port.next(1000), Some(inner.clone()));
        assert_eq!(inside(&ran.bytes, endpoint(0)), inner);
        let drops = kernel.drops(Target::port(0));
        assert_eq!(drops.get(Direction::Receive, DropReason::RedirectFailed), 1);
        assert_eq!(kernel.traffic(Target::port(1)).transmit_packets, 0);
    });
}

/// The kernel's verifier gives up at a million.
#[test]
fn the_verifier_has_instructions_to_spare() {
    in_namespace(|| {
        let mut kernel = Kernel::new(&World::default());
        let loaded = kernel.loaded.programs.programs_mut().filter_map(|(name, program)| match program {
            Program::SchedClassifier(program) => Some((name, program.info().ok()?)),
            Program::Xdp(program) => Some((name, program.info().ok()?)),
            _ => None,
        });
        let loaded: Vec<_> = loaded.collect();
        assert!(loaded.len() >= 10, "{} programs", loaded.len());
        for (name, info) in loaded {
            let verified = info.verified_instruction_count().expect("the kernel tells");
            println!(
                "{name}: {verified} instructions verified, {} bytes of machine code",
                info.size_jitted()
            );
            assert!(verified < 400_000, "{name}: {verified}");
        }
    });
}
