//! Frames from ports: forwarding, flooding, and what does not fit.

use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use super::{Case, End};
use crate::host::packet::{frame, kinds, tagged, tcp_v4, udp_v6};
use crate::host::world::{ABSENT, PEER_A, PEER_B, PEER_C, station};

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = forwarded();
    cases.extend(flooded());
    cases.extend(sizes());
    cases.extend(awkward_targets());
    cases.extend(odd_ports());
    cases.extend(asked_neighbors());
    cases
}

/// From station 1 at the port with this id.
fn from_port(name: impl Into<String>, id: u32, bytes: &[u8]) -> Case {
    Case::port(name, id + 10, bytes.to_vec()).received(Target::port(id), bytes.len())
}

/// To a peer whose next hop's address is not known: the kernel finds it for IP.
fn asked_neighbors() -> Vec<Case> {
    let (v4, v6) = (tcp_v4(station(3), station(1), 60), udp_v6(station(3), station(1), 60));
    let arp = frame(station(3), station(1), 0x0806, 46);
    let broadcast = frame(MacAddr::BROADCAST, station(1), 0x0800, 46);
    let unheard = |name, frame: &[u8]| {
        let case = from_port(name, 16, frame).dropped();
        case.counted(Target::adjacency(13), Direction::Transmit, DropReason::NoNextHop)
    };
    vec![
        from_port("the kernel finds the neighbour for IPv4", 16, &v4).by_neighbor(13, PEER_A, Some(22), &v4),
        from_port("the kernel finds the neighbour for IPv6", 16, &v6).by_neighbor(13, PEER_A, Some(22), &v6),
        unheard("but not for what is not IP", &arp),
        unheard("nor for copies", &broadcast).flooded(10),
    ]
}

fn forwarded() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, frame) in kinds(station(3), station(1)) {
        let case = from_port(format!("encap {kind}"), 0, &frame);
        cases.push(case.into_tunnel(0, PEER_A, Some(7), &frame));
    }
    for (kind, frame) in kinds(station(2), station(1)) {
        cases.push(from_port(format!("port to port: {kind}"), 0, &frame).out_of_port(1, &frame));
    }
    let to = |number| tcp_v4(station(number), station(1), 60);
    cases.extend([
        from_port("encap without a key", 2, &to(3)).into_tunnel(2, PEER_A, None, &to(3)),
        from_port("encap with key 0", 3, &to(3)).into_tunnel(3, PEER_A, Some(0), &to(3)),
        from_port("each address has its own peer", 0, &to(4)).into_tunnel(1, PEER_B, Some(7), &to(4)),
        from_port("back to the same port", 0, &to(1)).refused(Target::port(0), DropReason::NoTarget),
        from_port("into the host", 11, &to(2)).out_of_port(12, &to(2)),
        Case::port("out of the host", 22, tcp_v4(station(1), station(2), 60))
            .received(Target::port(12), 114)
            .out_of_port(11, &tcp_v4(station(1), station(2), 60)),
    ]);
    cases
}

fn flooded() -> Vec<Case> {
    let mut cases = Vec::new();
    let groups = [
        ("broadcast", MacAddr::BROADCAST, 0x0806),
        ("LLDP's group", MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]), 0x88cc),
        ("IPv4 multicast", MacAddr([1, 0, 0x5e, 0, 0, 1]), 0x0800),
        ("IPv6 multicast", MacAddr([0x33, 0x33, 0, 0, 0, 1]), 0x86dd),
        ("unknown unicast", station(99), 0x0800),
    ];
    for (name, destination, ethertype) in groups {
        let frame = frame(destination, station(1), ethertype, 80);
        cases.push(
            from_port(format!("{name} goes to everyone else once"), 0, &frame)
                .out_of_port(1, &frame)
                .into_tunnel(0, PEER_A, Some(7), &frame)
                .into_tunnel(1, PEER_B, Some(7), &frame)
                .flooded(1),
        );
    }
    // Cut before there is a tunnel around both tags.
    let stacked = tagged(&tcp_v4(station(99), station(1), 4000), 0x8100, 6);
    let on_the_wire = tagged(&stacked, 0x8100, 5);
    cases.push(
        from_port("a superframe with two tags is flooded", 0, &stacked)
            .out_of_port(1, &on_the_wire)
            .copy_left_to_finish(&on_the_wire)
            .left_to_finish(1, u8::MAX, &on_the_wire)
            .flooded(1)
            .superframe(1000)
            .tag([0x81, 0, 0, 5]),
    );
    // What is not known to be cut behind a tunnel is cut before, even if it is flooded.
    let datagrams = udp_v6(station(99), station(1), 4000);
    cases.push(
        from_port("a superframe of datagrams is flooded", 0, &datagrams)
            .out_of_port(1, &datagrams)
            .copy_left_to_finish(&datagrams)
            .left_to_finish(1, u8::MAX, &datagrams)
            .flooded(1)
            .superframe(1000),
    );
    let to_all = |len| frame(MacAddr::BROADCAST, station(1), 0x0806, len);
    let (small, medium, large) = (to_all(60), to_all(100), to_all(1000));
    let source = Target::port(4);
    let awkward = |name, frame: &[u8]| {
        from_port(name, 4, frame).counted(source, Direction::Receive, DropReason::RedirectFailed).counted(
            Target::adjacency(4),
            Direction::Transmit,
            DropReason::NoNextHop,
        )
    };
    cases.extend([
        from_port("without a key", 2, &small).into_tunnel(2, PEER_A, None, &small).flooded(2),
        awkward("flooded past a port that is down and a peer out of reach", &small)
            .out_of_port(6, &small)
            .into_tunnel(5, PEER_B, Some(9), &small)
            .into_tunnel(6, PEER_C, Some(9), &small)
            .flooded(4),
        awkward("flooded past a port that it is too long for", &medium)
            .counted(source, Direction::Receive, DropReason::TooBig)
            .into_tunnel(5, PEER_B, Some(9), &medium)
            .into_tunnel(6, PEER_C, Some(9), &medium)
            .flooded(4),
        awkward("flooded past a port and a peer that it is too long for", &large)
            .counted(source, Direction::Receive, DropReason::TooBig)
            .counted(Target::adjacency(5), Direction::Transmit, DropReason::TooBig)
            .into_tunnel(6, PEER_C, Some(9), &large)
            .flooded(4),
    ]);
    cases.push(
        from_port("nobody else in the segment: dropped, not flooded", 10, &small)
            .refused(Target::port(10), DropReason::NoTarget),
    );
    cases.push(from_port("flooded into the host", 11, &small).out_of_port(12, &small).flooded(8));
    cases
}

/// An IPv4 packet of another protocol than TCP or UDP, for a peer's station.
fn ip_v4(protocol: u8, payload_len: usize) -> Vec<u8> {
    let mut bytes = tcp_v4(station(3), station(1), payload_len);
    bytes[14 + 9] = protocol;
    bytes
}

fn sizes() -> Vec<Case> {
    let to = |number, len: usize| frame(station(number), station(1), 0x0806, len - 14);
    let too_big = |case: Case, id| {
        case.dropped().counted(Target::adjacency(id), Direction::Transmit, DropReason::TooBig)
    };
    let mut cases = vec![
        from_port("as long as a keyed tunnel takes", 0, &to(3, 1472)).into_tunnel(
            0,
            PEER_A,
            Some(7),
            &to(3, 1472),
        ),
        too_big(from_port("one byte more than a keyed tunnel takes", 0, &to(3, 1473)), 0),
        from_port("as long as a keyless tunnel takes", 2, &to(3, 1476)).into_tunnel(
            2,
            PEER_A,
            None,
            &to(3, 1476),
        ),
        too_big(from_port("one byte more than a keyless tunnel takes", 2, &to(3, 1477)), 2),
        from_port("as long as a port takes", 4, &to(3, 100)).out_of_port(6, &to(3, 100)),
        from_port("one byte more than a port takes", 4, &to(3, 101))
            .refused(Target::port(4), DropReason::TooBig),
    ];

    // A tag beside a frame is in it on the wire.
    let tag = [0x81, 0, 0x60, 5];
    let fits = to(3, 1468);
    cases.extend([
        from_port("a tag beside goes inside", 0, &fits)
            .into_tunnel(0, PEER_A, Some(7), &tagged(&fits, 0x8100, 0x6005))
            .tag(tag),
        too_big(from_port("a tag beside counts", 0, &to(3, 1469)), 0).tag(tag),
        from_port("a tag beside stays beside", 0, &to(2, 200))
            .out_of_port(1, &tagged(&to(2, 200), 0x8100, 0x6005))
            .tag(tag),
    ]);

    // A superframe is as long as one of its segments: 54 bytes of headers, or 74 (IPv6).
    let v4 = tcp_v4(station(3), station(1), 8000);
    let fits = |name: &str, bytes: &[u8], segment_size| {
        from_port(name, 0, bytes).into_tunnel(0, PEER_A, Some(7), bytes).superframe(segment_size)
    };
    // Of frames of 1473 bytes, one too many.
    let too_big = |name: &str, bytes: &[u8], segment_size, mtu| {
        from_port(name, 0, bytes).told_of(0, mtu, 1473, bytes).superframe(segment_size)
    };
    let v6 = udp_v6(station(3), station(1), 8000);
    let vlan = tagged(&v4, 0x8100, 5);
    cases.extend([
        fits("a superframe whose segments just fit", &v4, 1472 - 54),
        too_big("a superframe whose segments are too long by one", &v4, 1472 - 53, 1458),
        fits("a tagged superframe whose segments just fit", &vlan, 1472 - 58),
        too_big("a tagged superframe whose segments are too long by one", &vlan, 1472 - 57, 1454),
        fits("an IPv6 superframe whose segments just fit", &v6, 1472 - 62),
        too_big("an IPv6 superframe whose segments are too long by one", &v6, 1472 - 61, 1458),
        fits("a superframe with a tag beside", &v4, 1472 - 58),
        too_big("a superframe with a tag beside, too long by one", &v4, 1472 - 57, 1454),
        from_port("a superframe for a port is cut behind it", 4, &v4).out_of_port(6, &v4).superframe(4000),
    ]);
    let len = cases.len();
    let with_tag = &mut cases[len - 3..len - 1];
    for case in with_tag {
        case.tag = Some([0x81, 0, 0, 5]);
        for (head, _) in &mut case.expected.too_big {
            head.tag = 0x8100_0005;
        }
        for (_, bytes) in &mut case.expected.outputs {
            *bytes = crate::host::packet::Outer::to_peer(PEER_A, Some(7)).wrap(&vlan);
        }
    }
    // Neither SCTP nor a tunnel is cut once it is in ours.
    for (name, protocol, segment_size) in
        [("SCTP, cut by buffers", 132, 0xffff), ("IPv4 in IPv4", 4, 1400), ("a GRE tunnel", 47, 1400)]
    {
        let bytes = ip_v4(protocol, 8000);
        cases.push(
            from_port(format!("a superframe of {name} is cut first"), 0, &bytes)
                .left_to_finish(0, u8::MAX, &bytes)
                .superframe(segment_size),
        );
    }
    cases
}

fn awkward_targets() -> Vec<Case> {
    let to = |number| tcp_v4(station(number), station(1), 30);
    let unreached =
        |case: Case, id, reason| case.dropped().counted(Target::adjacency(id), Direction::Transmit, reason);
    let down = from_port("to a port that is down", 4, &to(2));
    let mut cases = vec![
        down.refused(Target::port(4), DropReason::RedirectFailed),
        unreached(from_port("to a peer out of reach", 4, &to(4)), 4, DropReason::NoNextHop),
        from_port("to a port without a record", 0, &to(6)).refused(Target::port(0), DropReason::Internal),
        unreached(from_port("to an adjacency without a record", 0, &to(7)), ABSENT, DropReason::Internal)
            .host_only("counter rows end where adjacencies do"),
    ];
    let long = frame(station(5), station(1), 0x0806, 200);
    cases.push(unreached(from_port("too long for one peer", 4, &long), 5, DropReason::TooBig));
    let long = frame(station(6), station(1), 0x0806, 200);
    cases.push(from_port("not too long for another", 4, &long).into_tunnel(6, PEER_C, Some(9), &long));
    cases
}

fn odd_ports() -> Vec<Case> {
    let bytes = tcp_v4(station(3), station(1), 30);
    let mut cases = vec![
        Case::port("an interface that is no port", 77, bytes.clone()),
        Case::port("a port not in use", 23, bytes.clone()),
        Case::port("a port without a record", 30, bytes.clone())
            .refused(Target::NONE, DropReason::Internal)
            .host_only("tests in the kernel have no such interface"),
    ];
    for len in [0, 1, 13] {
        let case = Case::port(format!("a frame of {len} bytes"), 10, bytes[..len].to_vec())
            .received(Target::port(0), len)
            .refused(Target::port(0), DropReason::Malformed);
        cases.push(case.host_only("a test run needs an Ethernet header"));
    }
    debug_assert!(cases.iter().all(|case| case.expected.end != End::Sent));
    cases
}
