//! Outer headers, good and bad.

use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use super::Case;
use crate::host::packet::{Outer, change_ip, frame, kinds, tagged, tcp_v4};
use crate::host::world::{
    LOCAL, LOCAL_SHARED, LOCAL_SHARED_V6, PEER_A, PEER_A_V6, PEER_B, STRANGER, station,
};

const A: Target = Target::adjacency(0);

/// The frame inside: from a known station behind peer A to one at port 0.
fn inner() -> Vec<u8> {
    tcp_v4(station(1), station(3), 100)
}

fn keyed() -> Outer {
    Outer::from_peer(PEER_A, Some(7))
}

/// A packet that is accepted and delivered to port 0.
fn accepted(name: &str, bytes: Vec<u8>, inner: &[u8]) -> Case {
    Case::underlay(name, bytes).received(A, inner.len()).out_of_port(0, inner)
}

fn refused(name: impl Into<String>, bytes: Vec<u8>, reason: DropReason) -> Case {
    Case::underlay(name, bytes).refused_by_nobody(reason)
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = delivered();
    cases.extend(flag_bits());
    cases.extend(lengths());
    cases.extend(endpoints());
    cases.extend(the_kernels());
    cases.extend(others());
    cases
}

fn delivered() -> Vec<Case> {
    let mut cases: Vec<_> = kinds(station(1), station(3))
        .into_iter()
        .map(|(kind, inner)| accepted(&format!("decap {kind}"), keyed().wrap(&inner), &inner))
        .collect();
    let inner = inner();
    let large = frame(station(1), station(3), 0x0800, 1500);
    cases.extend([
        Case::underlay("decap without a key", Outer::from_peer(PEER_A, None).wrap(&inner))
            .received(Target::adjacency(2), inner.len())
            .out_of_port(2, &inner),
        Case::underlay("decap with key 0", Outer::from_peer(PEER_A, Some(0)).wrap(&inner))
            .received(Target::adjacency(3), inner.len())
            .out_of_port(3, &inner),
        accepted("sequence number with a key", keyed().flags(0x1000).field(1).wrap(&inner), &inner),
        Case::underlay(
            "sequence number without a key",
            Outer::from_peer(PEER_A, None).flags(0x1000).field(1).wrap(&inner),
        )
        .received(Target::adjacency(2), inner.len())
        .out_of_port(2, &inner),
        accepted("a frame as long as the port takes", keyed().wrap(&large), &large),
        Case::underlay(
            "a superframe longer than the port takes",
            keyed().wrap(&tcp_v4(station(1), station(3), 4000)),
        )
        .superframe(1400)
        .received(A, 4054)
        .out_of_port(0, &tcp_v4(station(1), station(3), 4000)),
        Case::underlay("split horizon of known unicast", keyed().wrap(&tcp_v4(station(4), station(3), 9)))
            .received(A, 63)
            .refused(A, DropReason::NoTarget),
        Case::underlay("back to where it came from", keyed().wrap(&tcp_v4(station(3), station(3), 9)))
            .received(A, 63)
            .refused(A, DropReason::NoTarget),
    ]);
    let longer = frame(station(1), station(3), 0x0800, 1501);
    cases.push(
        Case::underlay("one byte more than the port takes", keyed().wrap(&longer))
            .received(A, longer.len())
            .refused(A, DropReason::TooBig),
    );
    let group = frame(MacAddr::BROADCAST, station(3), 0x0806, 46);
    cases.push(
        Case::underlay("broadcast out of a tunnel goes to all ports and no tunnel", keyed().wrap(&group))
            .received(A, group.len())
            .out_of_port(0, &group)
            .out_of_port(1, &group)
            .flooded(1),
    );
    cases
}

/// RFC 2784 2.3 counts bits from the left.
fn flag_bits() -> Vec<Case> {
    let inner = inner();
    let mut cases = Vec::new();
    let mut reject = |bit: u32, reason| {
        for (keys, outer) in [("keyed", keyed()), ("keyless", Outer::from_peer(PEER_A, None))] {
            let bytes = outer.flags(0x8000 >> bit).wrap(&inner);
            cases.push(refused(format!("{keys}: bit {bit} set"), bytes, reason));
        }
    };
    reject(1, DropReason::RoutingPresent);
    reject(4, DropReason::ReservedBits);
    reject(5, DropReason::ReservedBits);
    for bit in 6..=12 {
        let bytes = keyed().flags(0x8000 >> bit).wrap(&inner);
        cases.push(accepted(&format!("bit {bit} ignored"), bytes, &inner));
    }
    for version in 2..=7 {
        let bytes = keyed().flags(version).wrap(&inner);
        cases.push(refused(format!("version {version}"), bytes, DropReason::BadVersion));
    }
    cases.push(Case::underlay("version 1 is PPTP's", keyed().flags(1).wrap(&inner)));
    for protocol in [0x0800, 0x86dd, 0x5865, 0] {
        let bytes = Outer { protocol, ..keyed() }.wrap(&inner);
        cases.push(refused(format!("protocol type {protocol:#06x}"), bytes, DropReason::UnknownProtocol));
    }
    cases
}

fn lengths() -> Vec<Case> {
    let inner = inner();
    let packet = keyed().wrap(&inner);
    let total = (packet.len() - 14) as u16;
    let with_total = |total: u16| change_ip(&packet, |ip| ip[2..4].copy_from_slice(&total.to_be_bytes()));
    let padded = |inner: &[u8], padding: usize| {
        let mut bytes = keyed().wrap(inner);
        bytes.extend(vec![0xee; padding]);
        bytes
    };
    let mut cases = vec![
        accepted("link padding is cut", padded(&inner, 6), &inner),
        accepted("much link padding is cut", padded(&inner, 600), &inner),
        refused("total length a byte too long", with_total(total + 1), DropReason::Malformed),
        refused("total length of the most there is", with_total(0xffff), DropReason::Malformed),
        refused("total length zero", with_total(0), DropReason::Malformed),
        refused("total length of the IP header alone", with_total(20), DropReason::Malformed),
        refused("total length within the inner header", with_total(20 + 8 + 13), DropReason::Malformed),
        accepted("total length of the inner header alone", with_total(20 + 8 + 14), &inner[..14]),
        accepted("total length a byte shorter", with_total(total - 1), &inner[..inner.len() - 1]),
    ];
    for len in [16, 20, 30, 37, 38, 39] {
        let short = frame(station(1), station(3), 0xfff1, len - 14);
        let bytes = padded(&short, 6);
        cases.push(accepted(&format!("inner frame of {len} bytes, link padding cut"), bytes, &short));
    }
    // The four bytes of a tag are not in the frame, only in the padding behind it.
    let short = frame(station(1), station(3), 0x8100, 0);
    let mut bytes = keyed().wrap(&short);
    bytes.extend([0, 5, 8, 0, 0xee, 0xee]);
    cases.push(accepted("padding is no tag", bytes, &short));
    for len in 34..packet.len().min(70) {
        let bytes = packet[..len].to_vec();
        cases.push(refused(format!("cut to {len} bytes"), bytes, DropReason::Malformed));
    }
    for len in 14..34 {
        cases.push(Case::underlay(format!("cut to {len} bytes"), packet[..len].to_vec()));
    }
    for byte in 0..20 {
        // Whatever makes it no GRE packet of ours, a fragment or one with options is elsewhere.
        if matches!(byte, 0 | 6 | 7 | 9 | 16..) {
            continue;
        }
        let mut bytes = packet.clone();
        bytes[14 + byte] ^= 0x10;
        cases.push(refused(format!("outer checksum wrong by byte {byte}"), bytes, DropReason::Checksum));
    }
    cases
}

fn endpoints() -> Vec<Case> {
    let inner = inner();
    let from = |source, key| Outer::from_peer(source, key).wrap(&inner);
    let reason = DropReason::KeyMismatch;
    let mut cases = vec![
        refused("a key that is not the peer's", from(PEER_A, Some(8)), reason),
        refused("a key in the other byte order", from(PEER_A, Some(7_u32.swap_bytes())), reason),
        refused("no key where the peer has one", from(PEER_B, None), reason),
        refused("key 0 where the peer has another", from(PEER_B, Some(0)), reason),
        refused("an unknown peer", from(STRANGER, Some(7)), DropReason::UnknownEndpoint),
        refused("an unknown peer without a key", from(STRANGER, None), DropReason::UnknownEndpoint),
        refused("ourselves", from(LOCAL, Some(7)), DropReason::UnknownEndpoint),
        refused("an adjacency not in use", from(PEER_A, Some(14)), DropReason::UnknownEndpoint),
        Case::underlay("an adjacency without a record", from(PEER_A, Some(15)))
            .refused(Target::NONE, DropReason::Internal),
    ];
    // The same stations are in segments 1, 2 and 3, and each finds its own.
    for (key, id, port) in [(Some(7), 0, 0), (None, 2, 2), (Some(0), 3, 3)] {
        let source = Target::adjacency(id);
        let case = Case::underlay(format!("segments do not mix, key {key:?}"), from(PEER_A, key));
        cases.push(case.received(source, inner.len()).out_of_port(port, &inner));
    }
    // Known in segment 1 only.
    let inner = frame(station(2), station(3), 0x0800, 46);
    let source = Target::adjacency(2);
    cases.push(
        Case::underlay(
            "an address of another segment is unknown",
            Outer::from_peer(PEER_A, None).wrap(&inner),
        )
        .received(source, inner.len())
        .out_of_port(2, &inner)
        .flooded(2),
    );
    cases
}

/// Packets that are not judged, or not here.
fn the_kernels() -> Vec<Case> {
    let inner = inner();
    let packet = keyed().wrap(&inner);
    let foreign = Outer { destination: STRANGER.into(), ..keyed() };
    let fragment = |bits: u16| change_ip(&packet, |ip| ip[6..8].copy_from_slice(&bits.to_be_bytes()));
    let counted = |name: &str, bytes| {
        Case::underlay(name, bytes).counted(Target::NONE, Direction::Receive, DropReason::OuterFragment)
    };
    let mut options = change_ip(&packet, |ip| {
        ip[0] = 0x46;
        let total = u16::from_be_bytes([ip[2], ip[3]]) + 4;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
    });
    options.splice(34..34, [1, 1, 1, 0]);
    let mut wrong_sum = foreign.clone().wrap(&inner);
    wrong_sum[24] ^= 1;
    let mut cases = vec![
        counted("first fragment", fragment(0x2000)),
        counted("middle fragment", fragment(0x2010)),
        counted("last fragment", fragment(0x0010)),
        counted("IP options", options.clone()),
        accepted("the reserved fragment bit", fragment(0x8000), &inner),
        accepted("don't fragment", fragment(0x4000), &inner),
        Case::underlay("somebody else's", foreign.clone().wrap(&inner)),
        Case::underlay("somebody else's with a wrong checksum", wrong_sum),
        Case::underlay("somebody else's of version 2", foreign.clone().flags(2).wrap(&inner)),
        Case::underlay("somebody else's with routing", foreign.clone().flags(0x4000).wrap(&inner)),
        Case::underlay("somebody else's fragment", change_ip(&foreign.wrap(&inner), |ip| ip[6] = 0x20)),
        Case::underlay("outer VLAN", tagged(&packet, 0x8100, 5)),
        Case::underlay("outer service VLAN", tagged(&packet, 0x88a8, 5)),
        Case::underlay("outer VLAN beside", packet.clone()).tag([0x81, 0, 0, 5]),
        Case::underlay("UDP", change_ip(&packet, |ip| ip[9] = 17)),
        Case::underlay("IP version 6 in an IPv4 header", change_ip(&packet, |ip| ip[0] = 0x65)),
        Case::underlay("ARP", frame(station(1), station(3), 0x0806, 46)),
        Case::underlay("IPv6", crate::host::packet::udp_v6(station(1), station(3), 46)),
        Case::underlay("nothing", Vec::new()).host_only("a test run needs an Ethernet header"),
        Case::underlay("a packet of 13 bytes", packet[..13].to_vec())
            .host_only("a test run needs an Ethernet header"),
    ];
    options[37] = 0xff;
    cases.push(counted("options that are wrong are the kernel's to judge", options));
    cases
}

/// Nobody's, IPv6.
const OTHER_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 99];

/// Packets for other users of GRE at one of our addresses.
fn others() -> Vec<Case> {
    let inner = inner();
    let of_both = [
        ("", Outer { destination: LOCAL_SHARED.into(), ..Outer::from_peer(STRANGER, Some(7)) }),
        (
            "a peer's elsewhere: ",
            Outer { destination: LOCAL_SHARED.into(), ..Outer::from_peer(PEER_A, Some(7)) },
        ),
        ("IPv6: ", Outer { destination: LOCAL_SHARED_V6.into(), ..Outer::from_peer(OTHER_V6, Some(7)) }),
        (
            "IPv6: a peer's elsewhere: ",
            Outer { destination: LOCAL_SHARED_V6.into(), ..Outer::from_peer(PEER_A_V6, Some(8)) },
        ),
    ];
    let mut cases = Vec::new();
    for (name, outer) in of_both {
        let mut left = |what: &str, bytes| {
            let case = Case::underlay(format!("{name}left to the kernel: {what}"), bytes);
            cases.push(case.counted(Target::NONE, Direction::Receive, DropReason::ForeignGre));
        };
        left("Ethernet inside", outer.wrap(&inner));
        left("IP inside", Outer { protocol: 0x0800, ..outer.clone() }.wrap(&inner));
        left("a keepalive's answer", Outer { protocol: 0, ..outer.clone() }.wrap(&[]));
        left("source routing", outer.clone().flags(0x4000).wrap(&inner));
        left("a reserved bit", outer.clone().flags(0x0800).wrap(&inner));
        left("version 2", outer.clone().flags(2).wrap(&inner));
        cases.push(Case::underlay(format!("{name}version 1"), outer.clone().flags(1).wrap(&inner)));
        let bytes = outer.wrap(&inner);
        let cut = bytes[..bytes.len() - inner.len() - 1].to_vec();
        cases.push(refused(format!("{name}nobody's: cut short"), cut, DropReason::Malformed));
    }
    cases
}
