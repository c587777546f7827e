//! IPv6 outside, and peers of different kinds in one segment.

use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::Target;
use mgre_common::template::{DontFragment, Encapsulation, Tos};
use mgre_common::wire::MacAddr;

use super::Case;
use crate::host::packet::{
    ENCAPSULATION_LIMIT as LIMIT, Outer, Sum, extended, frame, kinds, tagged, tcp_v4, udp_v6,
};
use crate::host::world::{
    LOCAL, LOCAL_V6, PEER_A, PEER_A_V6, PEER_B_V6, PeerSpec, World, peer_v4, peer_v6, station,
};

/// The key of the segment with IPv6 peers.
const KEY: Option<u32> = Some(31);
const A: Target = Target::adjacency(14);
/// The hub's.
const HUB_KEY: Option<u32> = Some(33);
/// The hops that a peer's packet has left when it is here.
const HOPS: u8 = 61;
/// A stranger's address.
const STRANGER_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = delivered();
    cases.extend(judged());
    cases.extend(limited());
    cases.extend(lengths());
    cases.extend(sent());
    cases.extend(relayed());
    cases.extend(flooded_to_all());
    cases.extend(mapped());
    cases
}

/// An IPv4 address where an IPv6 one stands is nobody's: not the peer's whose IPv4 address it is.
fn mapped() -> Vec<Case> {
    let mapped = |[a, b, c, d]: [u8; 4]| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d];
    let inner = tcp_v4(station(1), station(3), 20);
    let from = |destination: [u8; 16]| {
        let outer = Outer::from_peer(mapped(PEER_A), Some(7));
        Outer { destination: destination.into(), ..outer }.wrap(&inner)
    };
    vec![
        Case::underlay("IPv4-mapped addresses over IPv6", from(mapped(LOCAL))),
        Case::underlay("an IPv4-mapped source over IPv6", from(LOCAL_V6))
            .refused_by_nobody(DropReason::UnknownEndpoint),
    ]
}

fn keyed() -> Outer {
    Outer::from_peer(PEER_A_V6, KEY)
}

/// From a known station behind peer A to one at port 17.
fn inner() -> Vec<u8> {
    tcp_v4(station(1), station(3), 100)
}

fn accepted(name: impl Into<String>, bytes: Vec<u8>, inner: &[u8]) -> Case {
    Case::underlay(name, bytes).received(A, inner.len()).out_of_port(17, inner)
}

fn refused(name: impl Into<String>, bytes: Vec<u8>, reason: DropReason) -> Case {
    Case::underlay(name, bytes).refused_by_nobody(reason)
}

fn delivered() -> Vec<Case> {
    let mut cases: Vec<_> = kinds(station(1), station(3))
        .into_iter()
        .map(|(kind, inner)| accepted(format!("IPv6: decap {kind}"), keyed().wrap(&inner), &inner))
        .collect();
    let inner = inner();
    let keyless = Outer::from_peer(PEER_A_V6, None);
    let group = frame(MacAddr::BROADCAST, station(3), 0x0806, 46);
    cases.extend([
        Case::underlay("IPv6: decap without a key", keyless.wrap(&inner))
            .received(Target::adjacency(16), inner.len())
            .out_of_port(19, &inner),
        accepted("IPv6: sequence number", keyed().sequence(1).wrap(&inner), &inner),
        accepted("IPv6: a hop limit of 1", Outer { ttl: 1, ..keyed() }.wrap(&inner), &inner),
        accepted("IPv6: a flow label", change_label(&keyed().wrap(&inner)), &inner),
        Case::underlay("IPv6: a superframe", keyed().wrap(&tcp_v4(station(1), station(3), 4000)))
            .superframe(1400)
            .received(A, 4054)
            .out_of_port(17, &tcp_v4(station(1), station(3), 4000)),
        Case::underlay("IPv6: split horizon", keyed().wrap(&tcp_v4(station(4), station(3), 9)))
            .received(A, 63)
            .refused(A, DropReason::NoTarget),
        Case::underlay("IPv6: a broadcast goes to all ports and no tunnel", keyed().wrap(&group))
            .received(A, group.len())
            .out_of_port(17, &group)
            .out_of_port(18, &group)
            .flooded(11),
    ]);
    cases
}

fn change_label(packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    bytes[15..18].copy_from_slice(&[0x0a, 0xbc, 0xde]);
    bytes
}

fn limited() -> Vec<Case> {
    let inner = inner();
    let packet = extended(&keyed().wrap(&inner), 60, LIMIT);
    let changed = |at: usize, value: u8| {
        let mut bytes = packet.clone();
        bytes[54 + at] = value;
        bytes
    };
    let padded = |to: usize| [packet.clone(), vec![0xee; to]].concat();
    let superframe = tcp_v4(station(1), station(3), 4000);
    let counted = |name: &str, bytes| {
        Case::underlay(name, bytes).counted(Target::NONE, Direction::Receive, DropReason::OuterFragment)
    };
    let mut cases = vec![
        accepted("IPv6: an encapsulation limit", packet.clone(), &inner),
        accepted("IPv6: another encapsulation limit", changed(4, 0), &inner),
        accepted("IPv6: an encapsulation limit and link padding", padded(6), &inner),
        accepted(
            "IPv6: an encapsulation limit, checksum and number",
            extended(&keyed().sequence(1).checksum(Sum::Right).wrap(&inner), 60, LIMIT),
            &inner,
        ),
        Case::underlay(
            "IPv6: a superframe with an encapsulation limit",
            extended(&keyed().wrap(&superframe), 60, LIMIT),
        )
        .superframe(1400)
        .received(A, superframe.len())
        .out_of_port(17, &superframe),
        Case::underlay("IPv6: an encapsulation limit before something else", changed(0, 6)),
        counted("IPv6: longer options", changed(1, 1)),
        counted("IPv6: other options", changed(2, 5)),
        counted("IPv6: other padding", changed(5, 0)),
        refused(
            "IPv6: an encapsulation limit and an unknown key",
            extended(&Outer::from_peer(PEER_A_V6, Some(8)).wrap(&inner), 60, LIMIT),
            DropReason::KeyMismatch,
        ),
    ];
    for short in [0, 7, 8, 15] {
        let mut bytes = packet.clone();
        bytes[18..20].copy_from_slice(&u16::to_be_bytes(short));
        cases.push(refused(format!("IPv6: a limit, and {short} bytes"), bytes, DropReason::Malformed));
    }
    cases
}

/// Packets of others, and those that the kernel has first.
fn judged() -> Vec<Case> {
    let inner = inner();
    let from = |source, key| Outer::from_peer(source, key).wrap(&inner);
    let foreign = Outer { destination: STRANGER_V6.into(), ..keyed() };
    let counted = |name: &str, bytes| {
        Case::underlay(name, bytes).counted(Target::NONE, Direction::Receive, DropReason::OuterFragment)
    };
    let packet = keyed().wrap(&inner);
    let mut cases = vec![
        refused("IPv6: a key that is not the peer's", from(PEER_A_V6, Some(8)), DropReason::KeyMismatch),
        refused("IPv6: no key where the peer has one", from(PEER_B_V6, None), DropReason::KeyMismatch),
        refused("IPv6: the key of an IPv4 peer", from(PEER_A_V6, Some(7)), DropReason::KeyMismatch),
        refused("IPv6: an unknown peer", from(STRANGER_V6, KEY), DropReason::UnknownEndpoint),
        refused("IPv6: ourselves", from(LOCAL_V6, KEY), DropReason::UnknownEndpoint),
        refused(
            "the key of an IPv6 peer",
            Outer::from_peer(PEER_A, KEY).wrap(&inner),
            DropReason::KeyMismatch,
        ),
        Case::underlay("IPv6: somebody else's", foreign.wrap(&inner)),
        Case::underlay("IPv6: somebody else's of version 2", foreign.clone().flags(2).wrap(&inner)),
        Case::underlay("IPv6: version 1 is PPTP's", keyed().flags(1).wrap(&inner)),
        Case::underlay("IPv6: an outer tag", tagged(&packet, 0x8100, 5)),
        Case::underlay("IPv6: a tag beside", packet.clone()).tag([0x81, 0, 0, 5]),
        counted("IPv6: a first fragment", extended(&packet, 44, [0, 0, 1, 0, 0, 0, 9])),
        counted("IPv6: a last fragment", extended(&packet, 44, [0, 1, 0, 0, 0, 0, 9])),
        counted("IPv6: hop-by-hop options", extended(&packet, 0, [0, 1, 4, 0, 0, 0, 0])),
        counted("IPv6: destination options", extended(&packet, 60, [0, 1, 4, 0, 0, 0, 0])),
        counted("IPv6: a routing header", extended(&packet, 43, [0, 4, 0, 0, 0, 0, 0])),
        Case::underlay("IPv6: an unknown header", extended(&packet, 253, [0; 7])),
        Case::underlay(
            "IPv6: somebody else's fragment",
            extended(&foreign.wrap(&inner), 44, [0, 0, 1, 0, 0, 0, 9]),
        ),
    ];
    let mut not_six = packet.clone();
    not_six[14] = 0x45;
    cases.push(Case::underlay("IP version 4 in an IPv6 header", not_six));
    for (bit, reason) in
        [(1, DropReason::RoutingPresent), (4, DropReason::ReservedBits), (5, DropReason::ReservedBits)]
    {
        let bytes = keyed().flags(0x8000 >> bit).wrap(&inner);
        cases.push(refused(format!("IPv6: bit {bit} set"), bytes, reason));
    }
    for bit in 6..=12 {
        let bytes = keyed().flags(0x8000 >> bit).wrap(&inner);
        cases.push(accepted(format!("IPv6: bit {bit} ignored"), bytes, &inner));
    }
    for version in 2..=7 {
        let bytes = keyed().flags(version).wrap(&inner);
        cases.push(refused(format!("IPv6: version {version}"), bytes, DropReason::BadVersion));
    }
    for protocol in [0x0800, 0x86dd] {
        let bytes = Outer { protocol, ..keyed() }.wrap(&inner);
        cases.push(refused(
            format!("IPv6: protocol type {protocol:#06x}"),
            bytes,
            DropReason::UnknownProtocol,
        ));
    }
    cases
}

fn lengths() -> Vec<Case> {
    let inner = inner();
    let packet = keyed().wrap(&inner);
    let len = (packet.len() - 54) as u16;
    let with_length = |len: u16| {
        let mut bytes = packet.clone();
        bytes[18..20].copy_from_slice(&len.to_be_bytes());
        bytes
    };
    let mut cases = vec![
        accepted("IPv6: link padding is cut", [packet.clone(), vec![0xee; 6]].concat(), &inner),
        accepted("IPv6: a byte shorter", with_length(len - 1), &inner[..inner.len() - 1]),
        accepted("IPv6: an inner header alone", with_length(8 + 14), &inner[..14]),
        refused("IPv6: a byte too long", with_length(len + 1), DropReason::Malformed),
        refused("IPv6: no payload", with_length(0), DropReason::Malformed),
        refused("IPv6: within the inner header", with_length(8 + 13), DropReason::Malformed),
    ];
    // The kernel strips only what leaves a whole IP header, of the one inside or of the one outside.
    for (ethertype, len) in [0x0800, 0x86dd, 0x0806]
        .into_iter()
        .flat_map(|ethertype| (0..60).step_by(4).map(move |len| (ethertype, len)))
    {
        let inner = frame(station(1), station(3), ethertype, len);
        let name = |family| format!("{family}: {len} bytes of type {ethertype:#06x}");
        let four = Outer::from_peer(PEER_A, Some(7)).wrap(&inner);
        cases.push(accepted(name("IPv6"), keyed().wrap(&inner), &inner));
        cases.push(
            Case::underlay(name("IPv4"), four)
                .received(Target::adjacency(0), inner.len())
                .out_of_port(0, &inner),
        );
    }
    for len in 54..76 {
        let bytes = packet[..len].to_vec();
        cases.push(refused(format!("IPv6: cut to {len} bytes"), bytes, DropReason::Malformed));
    }
    for len in 34..54 {
        cases.push(Case::underlay(format!("IPv6: cut to {len} bytes"), packet[..len].to_vec()));
    }
    cases
}

fn from_port(name: impl Into<String>, id: u32, bytes: &[u8]) -> Case {
    Case::port(name, id + 10, bytes.to_vec()).received(Target::port(id), bytes.len())
}

fn sent() -> Vec<Case> {
    let mut cases: Vec<_> = kinds(station(3), station(1))
        .into_iter()
        .map(|(kind, inner)| {
            from_port(format!("IPv6: encap {kind}"), 17, &inner).into_tunnel(14, PEER_A_V6, KEY, &inner)
        })
        .collect();
    let to = |number| tcp_v4(station(number), station(1), 60);
    // 1500 less IPv6, GRE and a key.
    let longest = |len: usize| frame(station(3), station(1), 0x0806, len - 14);
    let large = tcp_v4(station(3), station(1), 8000);
    let group = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);
    cases.extend([
        from_port("IPv6: each address has its own peer", 17, &to(4)).into_tunnel(15, PEER_B_V6, KEY, &to(4)),
        from_port("IPv6: encap without a key", 19, &to(3)).into_tunnel(16, PEER_A_V6, None, &to(3)),
        from_port("IPv6: as long as the tunnel takes", 17, &longest(1452)).into_tunnel(
            14,
            PEER_A_V6,
            KEY,
            &longest(1452),
        ),
        from_port("IPv6: one byte more", 17, &longest(1453)).dropped().counted(
            A,
            Direction::Transmit,
            DropReason::TooBig,
        ),
        from_port("IPv6: a superframe whose segments just fit", 17, &large)
            .into_tunnel(14, PEER_A_V6, KEY, &large)
            .superframe(1452 - 54),
        from_port("IPv6: a broadcast goes to everyone else once", 17, &group)
            .out_of_port(18, &group)
            .into_tunnel(14, PEER_A_V6, KEY, &group)
            .into_tunnel(15, PEER_B_V6, KEY, &group)
            .flooded(11),
    ]);
    cases
}

/// A hub between IPv4 and IPv6.
fn relayed() -> Vec<Case> {
    let (four, six) = (Target::adjacency(17), Target::adjacency(18));
    let from_four = |ttl| Outer { ttl, ..Outer::from_peer(peer_v4(17), HUB_KEY) };
    let from_six = |ttl| Outer { ttl, ..Outer::from_peer(peer_v6(18), HUB_KEY) };
    let to_four = |ttl| Outer { ttl, ..Outer::to_peer(peer_v4(17), HUB_KEY) };
    let to_six = |ttl| Outer { ttl, ..Outer::to_peer(peer_v6(18), HUB_KEY) };
    let (up, down) = (udp_v6(station(18), station(17), 40), tcp_v4(station(17), station(18), 40));
    let arrives = |name: &str, outer: &Outer, source, inner: &[u8]| {
        Case::underlay(name, outer.wrap(inner)).received(source, inner.len())
    };
    let group = |from| frame(MacAddr::BROADCAST, station(from), 0x0806, 46);
    vec![
        arrives("a hub relays from IPv4 to IPv6", &from_four(HOPS), four, &up).into_tunnel_as(
            18,
            &to_six(HOPS - 1),
            &up,
        ),
        arrives("a hub relays from IPv6 to IPv4", &from_six(HOPS), six, &down).into_tunnel_as(
            17,
            &to_four(HOPS - 1),
            &down,
        ),
        arrives("no hop is left for IPv6", &from_four(1), four, &up).refused(four, DropReason::TtlExpired),
        arrives("no hop is left from IPv6", &from_six(1), six, &down).refused(six, DropReason::TtlExpired),
        arrives("a hub floods from IPv4 to IPv6", &from_four(HOPS), four, &group(17))
            .into_tunnel_as(18, &to_six(HOPS / 2), &group(17))
            .out_of_port(21, &group(17))
            .left_to_finish(36, HOPS / 2, &group(17))
            .flooded(13),
        arrives("a hub floods from IPv6 to IPv4", &from_six(HOPS), six, &group(18))
            .into_tunnel_as(17, &to_four(HOPS / 2), &group(18))
            .out_of_port(21, &group(18))
            .left_to_finish(36, HOPS / 2, &group(18))
            .flooded(13),
    ]
}

/// A port's frames to all peers of a segment in which no two are alike.
fn flooded_to_all() -> Vec<Case> {
    let tcp = tcp_v4(station(99), station(1), 40);
    let inners = [
        ("ARP", frame(MacAddr::BROADCAST, station(1), 0x0806, 46)),
        ("tagged ARP", tagged(&frame(MacAddr::BROADCAST, station(1), 0x0806, 46), 0x8100, 5)),
        ("IPv4", tcp.clone()),
        ("IPv6", udp_v6(station(99), station(1), 40)),
        ("tagged IPv4", tagged(&tcp, 0x8100, 5)),
    ];
    let world = World::standard();
    let of = |segment| world.peers.iter().filter(move |peer| peer.segment == segment);
    let mut cases = Vec::new();
    for (name, inner) in &inners {
        for (segment, port) in [(13, 21), (14, 22)] {
            let mut case =
                from_port(format!("flooded to every kind of peer of segment {segment}: {name}"), port, inner);
            // Who gets it as it is comes first.
            let (finished, wrapped): (Vec<_>, Vec<_>) =
                of(segment).partition(|peer| peer.checksum || peer.sequence);
            for _ in finished {
                case = case.copy_left_to_finish(inner);
            }
            for peer in wrapped {
                let outer = headers(peer);
                // All the IP packets say that nobody may fragment them.
                let inherits = peer.dont_fragment == DontFragment::Inherit && name.contains("IP");
                let outer = Outer { dont_fragment: outer.dont_fragment || inherits, ..outer };
                case = case.into_tunnel_as(peer.id, &outer, inner);
            }
            cases.push(case.flooded(segment));
        }
    }
    cases
}

/// What each peer of a network of one segment gets of a frame that a port floods, in the
/// order of the flood list and as on the wire; what the flow decides is [`super::settled`].
/// For peers whose packets need no finishing.
pub fn flooded(world: &World, inner: &[u8]) -> Vec<Vec<u8>> {
    world.peers.iter().map(|peer| headers(peer).wrap(inner)).collect()
}

/// The headers of packets to a peer, as the options of [`World::standard`] have them.
fn headers(peer: &PeerSpec) -> Outer {
    assert!(!peer.checksum && !peer.sequence, "needs finishing");
    let key = peer.key.map(|key| if peer.nvgre { key << 8 } else { key });
    let outer = match peer.endpoint_v6 {
        Some(endpoint) => Outer::to_peer(endpoint, key),
        None => Outer::to_peer(peer.endpoint, key),
    };
    let tos = match peer.tos {
        Tos::Fixed(tos) => tos,
        Tos::Inherit => 0,
    };
    let outer = Outer { tos, dont_fragment: peer.dont_fragment == DontFragment::Set, ..outer };
    if peer.encapsulation == Encapsulation::GreUdp { outer.udp(Sum::Zero) } else { outer }
}
