//! RFC 1701, 2784, 2890 and 8086: the GRE header.

use std::collections::HashSet;

use mgre_common::reason::{Direction, DropReason};
use mgre_common::table::SEQUENCE_MEMORY_SECONDS;
use mgre_common::target::Target;
use std::sync::atomic::Ordering;

use super::{Bench, all_packets, gre_at, hold, sum};
use crate::host::cases::End;
use crate::host::frame::HostAction;
use crate::host::packet::{Outer, Sum, tcp_v4};
use crate::host::world::{PEER_A, PEER_A_V6, peer_v4, peer_v6, station};

const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;

/// For port 0, from a known station behind peer A.
fn inner() -> Vec<u8> {
    tcp_v4(station(1), station(3), 40)
}

/// A packet with these flags and the fields that they announce.
fn with_flags(flags: u16) -> Vec<u8> {
    let key = flags & KEY != 0;
    let mut outer = Outer::from_peer(PEER_A, if key { Some(7) } else { None });
    if flags & SEQUENCE != 0 {
        outer = outer.field(1);
    }
    outer = outer.flags(flags & !CHECKSUM);
    if flags & CHECKSUM != 0 {
        outer = outer.checksum(Sum::Right);
    }
    outer.wrap(&inner())
}

fn reason(drops: &[(Target, Direction, DropReason)]) -> DropReason {
    let [(_, Direction::Receive, reason)] = drops else { panic!("{drops:?}") };
    *reason
}

#[test]
fn rfc_1701_source_routes_are_never_read() {
    let bench = Bench::new();
    for flags in (0..=u16::MAX).filter(|flags| flags & 0x4000 != 0 && flags & 7 != 1) {
        let ran = bench.receive(with_flags(flags));
        assert_eq!((ran.action, ran.sent), (HostAction::Dropped, vec![]), "{flags:#06x}");
        // Of a packet with a wrong version, too, that is said first or last, but said.
        let allowed = [DropReason::RoutingPresent, DropReason::BadVersion, DropReason::ReservedBits];
        assert!(allowed.contains(&reason(&ran.drops)), "{flags:#06x}: {:?}", ran.drops);
    }
    let ran = bench.receive(with_flags(0x6000));
    assert_eq!(reason(&ran.drops), DropReason::RoutingPresent);
}

#[test]
fn rfc_2784_2_2_a_wrong_checksum_is_refused() {
    hold("checksum of", 32);
    let bench = Bench::new();
    for outer in [Outer::from_peer(PEER_A, Some(7)), Outer::from_peer(PEER_A_V6, Some(31))] {
        let packet = outer.checksum(Sum::Right).wrap(&inner());
        assert_eq!(bench.receive(packet.clone()).only(), inner());
        // It covers the GRE header and all of the payload.
        let start = gre_at(&packet);
        for at in start..packet.len() {
            for bit in 0..8 {
                let mut damaged = packet.clone();
                damaged[at] ^= 1 << bit;
                let ran = bench.receive(damaged);
                let said_otherwise = at < start + 4 || (start + 8..start + 12).contains(&at);
                assert!(ran.sent.is_empty(), "byte {at} bit {bit}");
                assert!(
                    said_otherwise || reason(&ran.drops) == DropReason::Checksum,
                    "byte {at} bit {bit}: {:?}",
                    ran.drops
                );
            }
        }
    }
}

#[test]
fn rfc_2784_2_5_the_checksum_sent_is_right() {
    let bench = Bench::new();
    for (id, len) in [(25, 0), (25, 1), (25, 1000), (27, 77)] {
        let inner = tcp_v4(station(id), station(1), len);
        let packet = bench.finish(Target::adjacency(id.into()).to_bits(), inner).only();
        let gre = &packet[gre_at(&packet)..];
        assert_ne!(gre[0] & 0x80, 0);
        assert_eq!(sum(gre), 0xffff, "{len} bytes");
    }
}

/// Bits 1, 4 and 5; bits 2 and 3 are the key's and the sequence number's since RFC 2890.
#[test]
fn rfc_2784_2_3_bits_1_to_5_discard() {
    let bench = Bench::new();
    // Every first word that there is.
    for flags in 0..=u16::MAX {
        let ran = bench.receive(with_flags(flags));
        let acceptable = flags & 0x4c07 == 0;
        assert_eq!(ran.sent.len(), usize::from(acceptable), "{flags:#06x}");
        match (acceptable, flags & 7) {
            (true, _) => assert_eq!(ran.drops, []),
            (false, 1) => assert_eq!((ran.action, ran.drops), (HostAction::Passed, vec![])),
            (false, _) => assert_eq!((ran.action, ran.drops.len()), (HostAction::Dropped, 1)),
        }
    }
    for (flags, wanted) in [(0x2800, DropReason::ReservedBits), (0x2400, DropReason::ReservedBits)] {
        assert_eq!(reason(&bench.receive(with_flags(flags)).drops), wanted);
    }
    hold("keyed: bit ", 3);
    hold("keyless: bit ", 3);
    hold("IPv6: bit 1 set", 1);
}

#[test]
fn rfc_2784_2_3_bits_6_to_12_are_ignored() {
    let bench = Bench::new();
    for bits in 0..0x80_u16 {
        for outer in [Outer::from_peer(PEER_A, Some(7)), Outer::from_peer(PEER_A_V6, Some(31))] {
            assert_eq!(bench.receive(outer.flags(bits << 3).wrap(&inner())).only(), inner(), "{bits:#x}");
        }
    }
}

#[test]
fn rfc_2784_2_3_nothing_reserved_is_sent() {
    for packet in all_packets() {
        let at = gre_at(&packet);
        let flags = u16::from_be_bytes([packet[at], packet[at + 1]]);
        assert_eq!(flags & !(CHECKSUM | KEY | SEQUENCE), 0);
    }
}

#[test]
fn rfc_2784_2_3_1_version_0_alone() {
    let bench = Bench::new();
    for version in 2..8 {
        assert_eq!(reason(&bench.receive(with_flags(KEY | version)).drops), DropReason::BadVersion);
    }
    assert!(all_packets().iter().all(|packet| packet[gre_at(packet) + 1] & 7 == 0), "version 0 is sent");
}

/// RFC 2637: the kernel may serve it.
#[test]
fn rfc_2784_2_3_1_version_1_is_the_kernels() {
    let bench = Bench::new();
    for flags in (0..=u16::MAX).filter(|flags| flags & 7 == 1) {
        let ran = bench.receive(with_flags(flags));
        assert_eq!((ran.action, ran.drops), (HostAction::Passed, vec![]), "{flags:#06x}");
    }
}

#[test]
fn rfc_2784_2_4_unknown_protocol_types_are_discarded_and_counted() {
    let bench = Bench::new();
    for protocol in (0..=u16::MAX).filter(|protocol| *protocol != 0x6558) {
        let outer = Outer { protocol, ..Outer::from_peer(PEER_A, Some(7)) };
        let ran = bench.receive(outer.wrap(&inner()));
        assert_eq!(reason(&ran.drops), DropReason::UnknownProtocol, "{protocol:#06x}");
    }
    assert!(all_packets().iter().all(|packet| packet[gre_at(packet) + 2..][..2] == [0x65, 0x58]));
}

/// The two bytes behind the checksum.
#[test]
fn rfc_2784_2_6_reserved1_is_sent_zero() {
    let with_checksum: Vec<_> =
        all_packets().into_iter().filter(|packet| packet[gre_at(packet)] & 0x80 != 0).collect();
    assert!(with_checksum.len() > 5, "{}", with_checksum.len());
    for packet in with_checksum {
        assert_eq!(packet[gre_at(&packet) + 6..][..2], [0, 0]);
    }
}

#[test]
fn rfc_2890_2_1_keyless_is_not_key_0() {
    let bench = Bench::new();
    let port = |key| {
        let ran = bench.receive(Outer::from_peer(PEER_A, key).wrap(&inner()));
        ran.sent[0].0.ifindex
    };
    assert_eq!((port(None), port(Some(0))), (12, 13), "segments 2 and 3");
    hold("no key where the peer has one", 2);
    hold("key 0 where the peer has another", 1);
    hold("encap with key 0", 1);
}

#[test]
fn rfc_2890_2_1_all_32_bits_of_the_key_count() {
    let bench = Bench::new();
    for bit in 0..32 {
        for (peer, key) in [
            (Outer::from_peer(PEER_A, Some(7 ^ 1 << bit)), 7_u32),
            (Outer::from_peer(PEER_A_V6, Some(31 ^ 1 << bit)), 31),
        ] {
            // Where peer A has that key too, it is another segment's.
            let ran = bench.receive(peer.wrap(&tcp_v4(station(99), station(3), 40)));
            let mismatch = ran.drops.iter().any(|(_, _, reason)| *reason == DropReason::KeyMismatch);
            let elsewhere = ran.sent.iter().all(|(egress, _)| !matches!(egress.ifindex, 10 | 11 | 27 | 28));
            assert!(mismatch || elsewhere, "key {key} with bit {bit} changed");
        }
    }
}

#[test]
fn rfc_2890_2_2_the_first_number_sent_is_0() {
    let bench = Bench::new();
    for id in [26, 27] {
        for wanted in 0..300_u32 {
            let inner = tcp_v4(station(id), station(1), 9);
            let packet = bench.finish(Target::adjacency(id.into()).to_bits(), inner).only();
            let at = gre_at(&packet);
            let last = at + if packet[at] & 0x80 != 0 { 12 } else { 8 };
            assert_eq!(packet[at] & 0x10, 0x10);
            assert_eq!(packet[last..last + 4], wanted.to_be_bytes(), "each peer has its own");
        }
    }
}

/// "Old" is what is up to 2^31 - 1 before the last one taken, or that one.
#[test]
fn rfc_2890_2_2_old_numbers_are_discarded() {
    let bench = Bench::new();
    for (id, outer) in
        [(26, Outer::from_peer(peer_v4(26), Some(34))), (27, Outer::from_peer(peer_v6(27), Some(34)))]
    {
        let inner = tcp_v4(station(1), station(id), 40);
        let receive = |number: u32| bench.receive(outer.clone().sequence(number).wrap(&inner));
        let half = 1_u32 << 31;
        for number in [5, 6, 9, half, half + 8, u32::MAX, 0, 1] {
            assert_eq!(receive(number).only(), inner, "{number}");
        }
        for number in [1, 0, u32::MAX, half + 2] {
            assert_eq!(reason(&receive(number).drops), DropReason::SequenceOld, "{number}");
        }
        assert_eq!(receive(2).only(), inner);
        // A peer that begins anew is heard again, in time.
        bench.tables.clock.seconds.fetch_add(SEQUENCE_MEMORY_SECONDS, Ordering::Relaxed);
        assert_eq!(receive(0).only(), inner);
        assert_eq!(reason(&receive(0).drops), DropReason::SequenceOld);
    }
}

#[test]
fn rfc_2890_2_2_packets_without_a_number_are_taken() {
    let bench = Bench::new();
    let inner = tcp_v4(station(1), station(26), 40);
    let outer = Outer::from_peer(peer_v4(26), Some(34));
    assert_eq!(bench.receive(outer.clone().sequence(100).wrap(&inner)).only(), inner);
    assert_eq!(bench.receive(outer.wrap(&inner)).only(), inner);
    hold("sequence: none at all", 1);
}

#[test]
fn rfc_8086_3_2_port_4754_and_a_checksum_or_none() {
    for case in hold("UDP: out", 1).into_iter().chain(hold("UDP over IPv6: out", 1)) {
        let (_, packet) = &case.expected.outputs[0];
        let udp = gre_at(packet) - 8;
        assert_eq!(packet[udp + 2..udp + 4], 4754_u16.to_be_bytes());
        let len = (packet.len() - udp) as u16;
        assert_eq!(packet[udp + 4..udp + 6], len.to_be_bytes());
        assert_eq!(packet[udp + 6..udp + 8], [0, 0]);
    }
    hold("with a right one", 2);
    hold("without a checksum", 2);
    let wrong = hold("with a wrong one", 4);
    assert!(
        wrong
            .iter()
            .filter(|case| case.name.ends_with("still"))
            .all(|case| case.expected.end == End::Dropped)
    );
    hold("UDP: another port is somebody else's", 1);
}

/// The source port of a packet to the peers 23 and 24.
fn source_port(bench: &Bench, id: u8, inner: &[u8]) -> u16 {
    let mut inner = inner.to_vec();
    inner[..6].copy_from_slice(&station(id).0);
    let packet = bench.transmit(32, inner).only();
    let udp = gre_at(&packet) - 8;
    u16::from_be_bytes([packet[udp], packet[udp + 1]])
}

#[test]
fn rfc_8086_3_2_1_the_source_port_carries_the_flow() {
    let bench = Bench::new();
    for id in [23, 24] {
        let mut ports = HashSet::new();
        for flow in 0..200_u16 {
            let mut inner = tcp_v4(station(id), station(1), 40);
            inner[34..36].copy_from_slice(&(1000 + flow).to_be_bytes());
            let port = source_port(&bench, id, &inner);
            assert!(port >= 49_152, "{port}");
            ports.insert(port);
            // Other bytes of the same flow.
            let last = inner.len() - 1;
            inner[last] ^= 0xff;
            inner[38] ^= 1;
            assert_eq!(source_port(&bench, id, &inner), port);
        }
        assert!(ports.len() > 190, "{} ports for 200 flows", ports.len());
    }
}
