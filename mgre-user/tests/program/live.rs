//! The programs attached to interfaces, with frames that no test run can make:
//! superframes, and frames with a tag beside them.

use std::sync::atomic::Ordering;

use aya::programs::tc::{self, NlOptions, TcAttachOptions};
use aya::programs::{LinkOrder, TcAttachType};
use etherparse::{Ipv4Header, TcpHeader};
use mgre_common::counters::Drops;
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;
use mgre_ebpf::host::packet::{Outer, tagged, tcp_v4, udp_v6};
use mgre_ebpf::host::world::{NEAR_MAC, PEER_A, PeerSpec, UNDERLAY, World, station};
use mgre_user::datapath::load::{PORT_PROGRAM, UNDERLAY_PROGRAM, classifier};

use super::capture::{Capture, cut_superframes, send, send_superframe};
use super::kernel::{FAR, Kernel, in_namespace, interfaces, ip};

const KEY: Option<u32> = Some(7);
/// The interface of port 0, where station 1 is.
const PORT: u32 = 10;

/// The standard network, attached at port 0 and the underlay.
fn attached(world: &World) -> Kernel {
    interfaces(world);
    let mut kernel = Kernel::new(world);
    for (program, ifindex) in [(PORT_PROGRAM, PORT), (UNDERLAY_PROGRAM, UNDERLAY)] {
        let interface = format!("near{ifindex}");
        let classifier = classifier(&mut kernel.loaded.programs, program).unwrap();
        let tcx = TcAttachOptions::TcxOrder(LinkOrder::default());
        if classifier.attach_with_options(&interface, TcAttachType::Ingress, tcx).is_err() {
            // Before Linux 6.6 there are filters alone.
            tc::qdisc_add_clsact(&interface).unwrap();
            let filter = TcAttachOptions::Netlink(NlOptions::default());
            classifier.attach_with_options(&interface, TcAttachType::Ingress, filter).unwrap();
        }
    }
    kernel
}

#[test]
fn frames_go_to_the_interface_that_was_decided() {
    in_namespace(|| {
        let kernel = attached(&World::standard());
        let (port, underlay) = (Capture::new(FAR + PORT), Capture::new(FAR + UNDERLAY));

        let inner = tcp_v4(station(3), station(1), 100);
        send(FAR + PORT, &inner);
        assert_eq!(underlay.next(1000), Some(Outer::to_peer(PEER_A, KEY).wrap(&inner)));

        let inner = tcp_v4(station(1), station(3), 100);
        send(FAR + UNDERLAY, &Outer::from_peer(PEER_A, KEY).wrap(&inner));
        assert_eq!(port.next(1000), Some(inner));

        assert_eq!((port.next(20), underlay.next(0)), (None, None));
        assert_eq!(kernel.traffic(Target::adjacency(0)).transmit_packets, 1);
    });
}

/// With no daemon to answer for next hops, the kernel's neighbour table is what counts.
#[test]
fn a_lapsed_lease_lets_the_kernel_find_the_next_hop() {
    in_namespace(|| {
        let kernel = attached(&World::standard());
        let neighbor = MacAddr([2, 0, 0, 0, 0xdd, 7]);
        ip(&format!(
            "link set near{UNDERLAY} address {NEAR_MAC}\naddress add 192.0.2.1/24 dev near{UNDERLAY}\nneigh replace 192.0.2.2 lladdr {neighbor} dev near{UNDERLAY}\n"
        ));
        let (port, underlay) = (Capture::new(FAR + PORT), Capture::new(FAR + UNDERLAY));
        let (v4, v6) = (tcp_v4(station(3), station(1), 100), udp_v6(station(3), station(1), 100));
        let usual = Outer::to_peer(PEER_A, KEY);
        send(FAR + PORT, &v4);
        assert_eq!(underlay.next(1000), Some(usual.wrap(&v4)));

        let clock = kernel.loaded.tables.clock.get(0).unwrap();
        clock.lease.store(0, Ordering::Relaxed);
        for inner in [v4, v6] {
            send(FAR + PORT, &inner);
            let found = Outer { destination_mac: neighbor, ..usual.clone() };
            assert_eq!(underlay.next(1000), Some(found.wrap(&inner)));
        }
        assert_eq!((port.next(20), underlay.next(0)), (None, None));
        let traffic = kernel.traffic(Target::adjacency(0));
        assert_eq!((traffic.transmit_packets, kernel.drops(Target::adjacency(0))), (3, Drops::default()));
    });
}

/// The kernel takes the outermost tag of a frame and keeps it beside. In the tunnel
/// it is in the frame, and behind it again as it was.
#[test]
fn tags_go_through_the_tunnel() {
    in_namespace(|| {
        let _kernel = attached(&World::standard());
        let (port, underlay) = (Capture::new(FAR + PORT), Capture::new(FAR + UNDERLAY));
        let frames = |to, from| {
            let (v4, v6) = (tcp_v4(station(to), station(from), 100), udp_v6(station(to), station(from), 100));
            let arp = mgre_ebpf::host::packet::frame(station(to), station(from), 0x0806, 46);
            vec![
                tagged(&v4, 0x8100, 0x6005),
                tagged(&v6, 0x8100, 0x0fff),
                tagged(&v4, 0x88a8, 0x0007),
                tagged(&arp, 0x8100, 0x0001),
                tagged(&tagged(&v4, 0x8100, 5), 0x88a8, 6),
                tagged(&tagged(&arp, 0x8100, 5), 0x8100, 6),
            ]
        };
        for inner in frames(3, 1) {
            send(FAR + PORT, &inner);
            assert_eq!(underlay.next(1000), Some(Outer::to_peer(PEER_A, KEY).wrap(&inner)));
        }
        for inner in frames(1, 3) {
            send(FAR + UNDERLAY, &Outer::from_peer(PEER_A, KEY).wrap(&inner));
            assert_eq!(port.next(1000), Some(inner));
        }
        assert_eq!((port.next(20), underlay.next(0)), (None, None));
    });
}

/// A superframe is encapsulated whole, counted once, and cut by whoever sends it on:
/// every segment then has an outer header of its own.
#[test]
fn superframes_are_cut_behind_the_tunnel() {
    const SEGMENT: usize = 1200;
    for with_tag in [false, true] {
        in_namespace(move || {
            let world = World { peers: vec![PeerSpec::new(0, 1, PEER_A, KEY)], ..World::standard() };
            let kernel = attached(&world);
            // This interface takes no superframes, so the kernel has to cut.
            cut_superframes(&format!("near{UNDERLAY}"));
            let underlay = Capture::new(FAR + UNDERLAY);
            let payload = 10 * SEGMENT;
            let plain = tcp_v4(station(3), station(1), payload);
            let sent = if with_tag { tagged(&plain, 0x8100, 5) } else { plain.clone() };
            let tag_len = sent.len() - plain.len();
            send_superframe(FAR + PORT, &sent, SEGMENT as u16, (14 + tag_len + 20) as u16);
            for number in 0..10 {
                let packet = underlay.next(1000).unwrap_or_else(|| panic!("no segment {number}"));
                let (outer, gre) = Ipv4Header::from_slice(&packet[14..]).unwrap();
                assert_eq!(outer.header_checksum, outer.calc_header_checksum());
                assert_eq!(usize::from(outer.total_len), packet.len() - 14);
                assert_eq!(gre[..8], [0x20, 0, 0x65, 0x58, 0, 0, 0, 7]);
                let inner = &gre[8..];
                assert_eq!(inner[..14 + tag_len], sent[..14 + tag_len], "segment {number}");
                let (ip, rest) = Ipv4Header::from_slice(&inner[14 + tag_len..]).unwrap();
                assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                let (tcp, data) = TcpHeader::from_slice(rest).unwrap();
                assert_eq!(tcp.sequence_number, 1 + (number * SEGMENT) as u32);
                assert_eq!(data.len(), SEGMENT);
                assert_eq!(Ok(tcp.checksum), tcp.calc_checksum_ipv4(&ip, data));
            }
            assert_eq!(underlay.next(20), None);
            let traffic = kernel.traffic(Target::adjacency(0));
            assert_eq!((traffic.transmit_packets, traffic.transmit_bytes), (1, plain.len() as u64));
        });
    }
}
