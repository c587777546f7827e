//! What only superframes need.

use core::sync::atomic::Ordering;
use std::collections::HashSet;

use etherparse::{Ipv4Header, Ipv6Header};
use mgre_common::target::{Mark, Target};
use mgre_common::template::DontFragment;

use crate::act;
use crate::frame::{Egress, Side};
use crate::host::frame::{Failures, HostAction, HostFrame};
use crate::host::packet::{Outer, change_ip, tcp_v4, tcp_v6, udp_v6};
use crate::host::tables::MemoryTables;
use crate::host::world::{Entry, LOCAL, NEAR_MAC, PEER_A, PeerSpec, PortSpec, SLOW, World, station};

fn tables() -> MemoryTables {
    let mut tables = MemoryTables::default();
    World::standard().install(&mut tables);
    tables
}

/// The kernel cuts a packet of one tunnel, and knows of no tunnel in a tunnel: it refuses then.
#[test]
fn what_bears_the_marks_of_a_tunnel_is_cut_first() {
    for bytes in [udp_v6(station(3), station(1), 8000), tcp_v6(station(3), station(1), 8000)] {
        refused_and_cut(&bytes);
    }
}

fn refused_and_cut(bytes: &[u8]) {
    let tables = tables();
    let sent = |marked| {
        let failures = Failures { marked, ..Failures::default() };
        let mut frame = HostFrame::new(bytes).with_segment_size(1200).with_failures(failures);
        assert!(matches!(act::process_port(&mut frame, &tables, 10), HostAction::Sent(_)));
        (frame.sent.remove(0), frame.mark)
    };
    let ((egress, packet), _) = sent(false);
    assert_ne!(egress.ifindex, SLOW);
    assert!(packet.ends_with(bytes) && packet.len() > bytes.len(), "it is encapsulated whole");
    let mark = Mark { target: Target::adjacency(0), hops: u8::MAX }.to_bits();
    assert_eq!(sent(true), ((Egress::new(SLOW, Side::Out), bytes.to_vec()), mark));
    assert!(tables.drops.borrow().is_empty());
}

/// BIG TCP: the kernel's note of a superframe's length (RFC 2675 2) is in no segment.
#[test]
fn the_length_of_a_jumbogram_stays_behind() {
    let tables = tables();
    for payload in [60_000, 150_000] {
        {
            let plain = tcp_v6(station(3), station(1), payload);
            let mut noted = plain.clone();
            noted.splice(54..54, [6, 0, 0xc2, 4, 0, 2, 0x49, 0xf0]);
            noted[14 + 6] = 0;
            noted[14 + 4..14 + 6].fill(0);
            let mut superframe = HostFrame::new(noted.clone()).with_segment_size(1388);
            act::process_port(&mut superframe, &tables, 10);
            let (_, packet) = superframe.sent.last().expect("it is sent");
            // A header like that which is no longer than others is its sender's affair.
            if payload < 65_536 {
                assert!(packet.ends_with(&noted[14..]));
                continue;
            }
            let inner = &packet[packet.len() - plain.len()..];
            let (ip, transport) = Ipv6Header::from_slice(&inner[14..]).expect("IPv6");
            assert_eq!((ip.next_header.0, ip.payload_length), (6, 0));
            assert_eq!(transport, &plain[54..]);
        }
    }
}

/// Hosts would take it for an empty packet: they get it in segments.
#[test]
fn a_jumbogram_without_its_length_is_cut_when_it_arrives() {
    let tables = tables();
    tables.clock.slow_ifindex.store(SLOW, Ordering::Relaxed);
    for (length, slow) in [(0_u16, true), (60_000, false)] {
        let mut inner = tcp_v6(station(1), station(3), 150_000);
        inner[14 + 4..14 + 6].copy_from_slice(&length.to_be_bytes());
        let mut packet = Outer::from_peer(PEER_A, Some(7)).wrap(&tcp_v4(station(1), station(3), 0));
        let header = packet.len() - 54;
        packet.splice(header.., inner.clone());
        let packet = change_ip(&packet, |_| ());
        let mut superframe = HostFrame::new(packet).with_segment_size(1388);
        act::process_underlay(&mut superframe, &tables);
        let (egress, bytes) = &superframe.sent[0];
        assert_eq!((egress.ifindex == SLOW, bytes), (slow, &inner), "length {length}");
        let target = Mark::from_bits(superframe.mark).target;
        assert_eq!(target, if slow { Target::port(0) } else { Target::NONE });
    }
}

/// RFC 6864 4: zero where nobody may fragment the packet, else a number of its own.
#[test]
fn rfc_6864_4_identifications_of_packets_that_may_be_fragmented_differ() {
    let world = World {
        ports: vec![PortSpec::new(0, 1)],
        peers: vec![PeerSpec { dont_fragment: DontFragment::Unset, ..PeerSpec::new(0, 1, PEER_A, Some(7)) }],
        segments: vec![(1, 1)],
        entries: vec![Entry {
            segment: 1,
            mac: station(3),
            target: Target::adjacency(0),
            seen: 1,
            held: false,
        }],
        ..World::default()
    };
    let mut tables = MemoryTables::default();
    world.install(&mut tables);
    let mut ids = HashSet::new();
    // The kernel numbers the segments of a superframe from its own number on.
    for segments in [1, 1, 45, 1, 7].repeat(100) {
        let mut frame = HostFrame::new(tcp_v4(station(3), station(1), segments * 1000 - 10));
        if segments > 1 {
            frame = frame.with_segment_size(1000);
        }
        act::process_port(&mut frame, &tables, 10);
        let (ip, _) = Ipv4Header::from_slice(&frame.bytes()[14..]).expect("IPv4");
        assert!(!ip.dont_fragment);
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        for segment in 0..segments as u16 {
            let id = ip.identification.wrapping_add(segment);
            assert!(ids.insert(id), "{id} twice");
        }
    }
}

/// A superframe that does not fit 16 bits says zero, and its checksum is right.
#[test]
fn superframes_longer_than_a_packet() {
    let tables = tables();
    let mut bytes = tcp_v4(station(3), station(1), 100);
    bytes.resize(70_000, 0x5a);
    let mut superframe = HostFrame::new(bytes.clone()).with_segment_size(1000);
    act::process_port(&mut superframe, &tables, 10);
    let (_, packet) = &superframe.sent[0];
    let (ip, _) = Ipv4Header::from_slice(&packet[14..]).expect("IPv4");
    assert_eq!((ip.total_len, ip.header_checksum), (0, ip.calc_header_checksum()));

    // Its own length counts on the way in.
    let mut received = packet.clone();
    received[..6].copy_from_slice(&NEAR_MAC.0);
    received[26..30].copy_from_slice(&PEER_A);
    received[30..34].copy_from_slice(&LOCAL);
    received[42..54].copy_from_slice(&tcp_v4(station(1), station(3), 0)[..12]);
    let received = change_ip(&received, |_| ());
    let mut superframe = HostFrame::new(received).with_segment_size(1000);
    act::process_underlay(&mut superframe, &tables);
    assert_eq!(superframe.sent[0].1[14..], bytes[14..]);
}
