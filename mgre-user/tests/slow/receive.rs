use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use mgre_common::template::Encapsulation;
use mgre_user::slow::counters::Happening;
use socket2::Type;

use super::*;

/// What arrives at the inner end, as another implementation reads it.
fn arrived(socket: &Socket, macs: [MacAddr; 2]) -> (IpAddr, IpAddr, u8, Vec<u8>) {
    let frame = next(socket).expect("a frame at the inner end");
    assert_eq!((&frame[..6], &frame[6..12]), (&macs[0].0[..], &macs[1].0[..]));
    let sliced = SlicedPacket::from_ethernet(&frame).expect("a packet");
    let (source, destination, ttl, payload) = match sliced.net.as_ref().expect("IP") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert!(
                !header.more_fragments && header.fragment_offset.value() == 0 && header.options.is_empty()
            );
            let addresses = (IpAddr::from(header.source), IpAddr::from(header.destination));
            (addresses.0, addresses.1, header.time_to_live, ip.payload().payload)
        }
        NetSlice::Ipv6(ip) => {
            assert!(ip.extensions().is_empty());
            let header = ip.header();
            let addresses = (header.source_addr().into(), header.destination_addr().into());
            (addresses.0, addresses.1, header.hop_limit(), ip.payload().payload)
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let payload = match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => {
            assert_eq!((udp.source_port(), udp.destination_port()), (50_000, 4754));
            udp.payload()
        }
        _ => payload,
    };
    (source, destination, ttl, payload.to_vec())
}

#[test]
fn what_the_kernel_put_together_arrives_whole() {
    for v6 in [false, true] {
        for encapsulation in [Encapsulation::Gre, Encapsulation::GreUdp] {
            in_namespace(move || async move {
                let world = World::new(&[outer(v6, encapsulation)]).await;
                let udp = encapsulation == Encapsulation::GreUdp;
                let inner = packet_socket(world.pair.inner.0);
                let macs = [world.pair.inner.1, world.pair.outer.1];
                let family = usize::from(v6);
                let port = if udp { 4754 } else { 0 };
                let to = SocketAddr::new(address(OURS[family]), port);
                let (kind, protocol) = if udp { (Type::DGRAM, 17) } else { (Type::RAW, GRE) };
                let from = |local, port| world.far.socket(kind, protocol, local, port);
                let (peer, stranger) =
                    (from(THEIRS[family], 50_000 * u16::from(udp)), from(STRANGERS[family], 0));

                for (sent, length) in [(1, 4000), (2, 100), (3, 60_000)] {
                    peer.send_to(&gre(length), &to.into()).unwrap();
                    world.counted(Happening::Reinjected, sent).await;
                    let (source, destination, ttl, payload) = arrived(&inner, macs);
                    assert_eq!((source, destination), (address(THEIRS[family]), to.ip()));
                    assert_eq!((ttl, payload), (64, gre(length)));
                }
                stranger.send_to(&gre(4000), &to.into()).unwrap();
                world.counted(Happening::Refused, 1).await;
                assert_eq!(next(&inner), None, "a stranger's");
                assert_eq!(world.count(Happening::Reassembled), 3);
            });
        }
    }
}

#[test]
fn options_are_taken_off_and_version_1_is_not_ours() {
    in_namespace(|| async {
        let world = World::new(&[outer(false, Encapsulation::Gre)]).await;
        let inner = packet_socket(world.pair.inner.0);
        let to = SocketAddr::new(address(OURS[0]), 0);
        let peer = world.far.socket(Type::RAW, GRE, THEIRS[0], 0);
        let mut pptp = gre(100);
        pptp[1] = 1;
        peer.send_to(&pptp, &to.into()).unwrap();
        let no_operation = [1_u8; 4];
        // SAFETY: the option lives during the call, and its length is given.
        let set = unsafe {
            libc::setsockopt(
                peer.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_OPTIONS,
                no_operation.as_ptr().cast(),
                4,
            )
        };
        assert_eq!(set, 0);
        peer.send_to(&gre(100), &to.into()).unwrap();
        world.counted(Happening::Reinjected, 1).await;
        let (.., payload) = arrived(&inner, [world.pair.inner.1, world.pair.outer.1]);
        assert_eq!(payload, gre(100));
        assert_eq!((next(&inner), world.count(Happening::Refused)), (None, 0));
    });
}

#[test]
fn sockets_come_and_go_with_endpoints_and_the_pair() {
    in_namespace(|| async {
        let mut world = World::new(&[outer(false, Encapsulation::Gre)]).await;
        let bound = |port: &str| {
            let file = std::fs::read_to_string("/proc/thread-self/net/udp").unwrap();
            file.lines().any(|line| line.contains(port))
        };
        // 4754, as the kernel writes it.
        assert!(!bound(":1292 "));
        let with_udp = plan(&[outer(false, Encapsulation::Gre), outer(false, Encapsulation::GreUdp)]);
        world.slow.follow(&with_udp, Some(world.pair));
        assert!(bound(":1292 "));
        world.slow.follow(&with_udp, None);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!bound(":1292 "));
        // Another program has the port: that is said, and tried again later.
        let taken = std::net::UdpSocket::bind((OURS[0], 4754)).unwrap();
        world.slow.follow(&with_udp, Some(world.pair));
        let failures: Vec<String> = world.slow.failures().collect();
        assert_eq!(
            failures,
            ["cannot receive GRE in UDP for 192.0.2.1: Address already in use (os error 98)"]
        );
        drop(taken);
        world.slow.follow(&plan(&[]), Some(world.pair));
        assert_eq!(world.slow.failures().count(), 0);
    });
}
