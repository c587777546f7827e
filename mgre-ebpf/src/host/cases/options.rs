//! What a peer's options ask for, and what is checked on receipt.

use mgre_common::reason::DropReason;
use mgre_common::target::{Mark, Target};

use super::Case;
use crate::host::packet::{Outer, Sum, Udp, frame, tagged, tcp_v4, udp_v6};
use crate::host::world::{PEER_A, PEER_A_V6, VSID, peer_v4, peer_v6, station};

const KEY: Option<u32> = Some(34);
/// The segment's port.
const PORT: Target = Target::port(22);

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = fragmentation();
    cases.extend(checksums());
    cases.extend(sequences());
    cases.extend(in_udp());
    cases.extend(nvgre());
    cases
}

/// From the segment's port.
fn from_port(name: impl Into<String>, inner: &[u8]) -> Case {
    Case::port(name, 32, inner.to_vec()).received(PORT, inner.len())
}

/// From a peer, to be delivered to the segment's port.
fn delivered(name: impl Into<String>, id: u32, outer: &Outer, inner: &[u8]) -> Case {
    arrives(name, id, outer, inner).out_of_port(22, inner)
}

fn arrives(name: impl Into<String>, id: u32, outer: &Outer, inner: &[u8]) -> Case {
    Case::underlay(name, outer.wrap(inner)).received(Target::adjacency(id), inner.len())
}

/// A packet with a wrong checksum: it may not be finished, so the slow interface gets it; wrong there, it is dropped.
fn wrong(name: impl Into<String>, id: u32, bytes: Vec<u8>, inner: &[u8]) -> [Case; 2] {
    let name = name.into();
    let peer = Target::adjacency(id);
    [
        Case::underlay(name.clone(), bytes.clone()).left_unfinished(&bytes),
        Case::slow(name + ", still", Mark::UNFINISHED, bytes)
            .received(peer, inner.len())
            .refused(peer, DropReason::Checksum),
    ]
}

/// An IPv4 frame that says whether it may be fragmented.
pub(super) fn with_df(frame: &[u8], dont_fragment: bool) -> Vec<u8> {
    crate::host::packet::change_ip(frame, |ip| ip[6] = if dont_fragment { 0x40 } else { 0 })
}

fn fragmentation() -> Vec<Case> {
    let v4 = |number| tcp_v4(station(number), station(1), 40);
    let outer = |id, dont_fragment| Outer { dont_fragment, ..Outer::to_peer(peer_v4(id), KEY) };
    let arp = frame(station(22), station(1), 0x0806, 46);
    let tag = |frame: &[u8]| tagged(frame, 0x8100, 5);
    let sent = |name: &str, id: u32, dont_fragment, inner: &[u8]| {
        let outer = outer(id, dont_fragment).tos(if id == 22 { 0x28 } else { 0xb8 });
        from_port(name, inner).into_tunnel_as(id, &outer, inner)
    };
    vec![
        sent("df unset: of IPv4 with DF", 21, false, &with_df(&v4(21), true)),
        sent("df unset: of IPv4 without DF", 21, false, &with_df(&v4(21), false)),
        sent("df unset: of IPv6", 21, false, &udp_v6(station(21), station(1), 40)),
        sent("df inherit: of IPv4 with DF", 22, true, &with_df(&v4(22), true)),
        sent("df inherit: of IPv4 without DF", 22, false, &with_df(&v4(22), false)),
        sent("df inherit: of tagged IPv4 with DF", 22, true, &tag(&with_df(&v4(22), true))),
        sent("df inherit: of tagged IPv4 without DF", 22, false, &tag(&with_df(&v4(22), false))),
        sent("df inherit: of IPv6", 22, true, &udp_v6(station(22), station(1), 40)),
        sent("df inherit: of ARP", 22, false, &arp),
    ]
}

fn checksums() -> Vec<Case> {
    let inner = |number, len| tcp_v4(station(1), station(number), len);
    let four = || Outer::from_peer(peer_v4(25), KEY);
    let six = || Outer::from_peer(peer_v6(27), KEY);
    let mut cases = Vec::new();
    // Even and odd lengths, and longer than what one helper call sums up.
    for len in [0, 1, 40, 41, 511, 512, 1000, 1300] {
        let inner = inner(25, len);
        let named = |what: &str| format!("checksum of {len} bytes of TCP payload: {what}");
        cases.extend([delivered(named("right"), 25, &four().checksum(Sum::Right), &inner)]);
        cases.extend(wrong(named("wrong"), 25, four().checksum(Sum::Wrong).wrap(&inner), &inner));
    }
    let inner = |number| tcp_v4(station(1), station(number), 40);
    let wrong_at = |at: usize| {
        let mut bytes = four().checksum(Sum::Right).wrap(&inner(25));
        bytes[at] ^= 0x40;
        wrong(format!("checksum: byte {at} is another"), 25, bytes, &inner(25))
    };
    // Reserved1 is summed up, and ignored otherwise (RFC 2784 2.3).
    cases.extend([40, 41, 42 + 4 + 12, 42 + 4 + 50].into_iter().flat_map(wrong_at));
    for (name, id, outer) in [
        ("checksum: zero is not none", 25, four().checksum(Sum::Zero)),
        ("checksum wrong, and a sequence", 27, six().checksum(Sum::Wrong).sequence(2)),
    ] {
        cases.extend(wrong(name, id, outer.wrap(&inner(id as u8)), &inner(id as u8)));
    }
    let keyless = Outer::from_peer(PEER_A_V6, None).checksum(Sum::Wrong).wrap(&inner(3));
    cases.extend(wrong("IPv6: checksum without a key", 16, keyless, &inner(3)));
    let padded = [four().checksum(Sum::Right).wrap(&inner(25)), vec![0xee; 7]].concat();
    cases.extend([
        delivered("checksum: none where the peer has one", 25, &four(), &inner(25)),
        Case::underlay("checksum: padding is not summed up", padded)
            .received(Target::adjacency(25), inner(25).len())
            .out_of_port(22, &inner(25)),
        delivered(
            "checksum: of a peer without the option",
            19,
            &{ Outer::from_peer(peer_v4(19), KEY).checksum(Sum::Right) },
            &inner(19),
        ),
        delivered("checksum and sequence", 27, &six().checksum(Sum::Right).sequence(1), &inner(27)),
        Case::underlay("checksum without a key", {
            Outer::from_peer(PEER_A, None).checksum(Sum::Right).wrap(&inner(3))
        })
        .received(Target::adjacency(2), inner(3).len())
        .out_of_port(2, &inner(3)),
        from_port("checksum: to be finished", &tcp_v4(station(25), station(1), 40)).left_to_finish(
            25,
            u8::MAX,
            &tcp_v4(station(25), station(1), 40),
        ),
        from_port("checksum: an ARP frame to be finished", &frame(station(25), station(1), 0x0806, 46))
            .left_to_finish(25, u8::MAX, &frame(station(25), station(1), 0x0806, 46)),
    ]);
    cases
}

/// Cases have tables of their own on the host, and the kernel's are kept from case to case:
/// numbers only go up here. What happens to old ones, `rfc_2890_2_2_*` show.
fn sequences() -> Vec<Case> {
    let inner = tcp_v4(station(1), station(26), 40);
    let number = |number| Outer::from_peer(peer_v4(26), KEY).sequence(number);
    let out = tcp_v4(station(26), station(1), 40);
    vec![
        delivered("sequence: the first, whatever it is", 26, &number(5), &inner),
        delivered("sequence: with a gap", 26, &number(9), &inner),
        delivered("sequence: none at all", 26, &Outer::from_peer(peer_v4(26), KEY), &inner),
        delivered(
            "sequence: of a peer without the option",
            19,
            &{ Outer::from_peer(peer_v4(19), KEY).sequence(0) },
            &tcp_v4(station(1), station(19), 40),
        ),
        from_port("sequence: to be finished", &out).left_to_finish(26, u8::MAX, &out),
    ]
}

fn in_udp() -> Vec<Case> {
    let inner = |number| tcp_v4(station(1), station(number), 41);
    let four = || Outer::from_peer(peer_v4(23), KEY);
    let six = || Outer::from_peer(peer_v6(24), KEY);
    let port = |source_port, destination_port| {
        let udp = Udp { source_port, destination_port, checksum: Sum::Zero };
        Outer { udp: Some(udp), ..four() }
    };
    let out = |number| tcp_v4(station(number), station(1), 40);
    let packet = four().udp(Sum::Zero).wrap(&inner(23));
    let with_length = |len: u16| {
        let mut bytes = packet.clone();
        bytes[38..40].copy_from_slice(&len.to_be_bytes());
        bytes
    };
    let len = (packet.len() - 34) as u16;
    let wrong = [
        wrong("UDP: with a wrong one", 23, four().udp(Sum::Wrong).wrap(&inner(23)), &inner(23)),
        wrong("UDP over IPv6: with a wrong one", 24, six().udp(Sum::Wrong).wrap(&inner(24)), &inner(24)),
        wrong(
            "UDP: the inner checksum wrong",
            23,
            four().checksum(Sum::Wrong).udp(Sum::Right).wrap(&inner(23)),
            &inner(23),
        ),
    ];
    let others = vec![
        delivered("UDP: without a checksum", 23, &four().udp(Sum::Zero), &inner(23)),
        delivered("UDP: with a right one", 23, &four().udp(Sum::Right), &inner(23)),
        delivered("UDP over IPv6: without a checksum", 24, &six().udp(Sum::Zero), &inner(24)),
        delivered("UDP over IPv6: with a right one", 24, &six().udp(Sum::Right), &inner(24)),
        delivered("UDP: both checksums", 23, &four().checksum(Sum::Right).udp(Sum::Right), &inner(23)),
        delivered("UDP: any source port", 23, &port(1, 4754), &inner(23)),
        Case::underlay("UDP: another port is somebody else's", port(50_000, 4755).wrap(&inner(23))),
        delivered(
            "UDP: of a peer that has GRE",
            19,
            &{ Outer::from_peer(peer_v4(19), KEY).udp(Sum::Zero) },
            &inner(19),
        ),
        delivered("GRE of a peer that has UDP", 23, &four(), &inner(23)),
        Case::underlay("UDP: a length too short", with_length(len - 1))
            .refused_by_nobody(DropReason::Malformed),
        Case::underlay("UDP: a length too long", with_length(len + 1))
            .refused_by_nobody(DropReason::Malformed),
        Case::underlay(
            "UDP: another key",
            Outer::from_peer(peer_v4(23), Some(99)).udp(Sum::Zero).wrap(&inner(23)),
        )
        .refused_by_nobody(DropReason::KeyMismatch),
        from_port("UDP: out", &out(23)).into_tunnel_as(
            23,
            &Outer::to_peer(peer_v4(23), KEY).udp(Sum::Zero),
            &out(23),
        ),
        from_port("UDP over IPv6: out", &out(24)).into_tunnel_as(
            24,
            &Outer::to_peer(peer_v6(24), KEY).tos(0xb8).udp(Sum::Zero),
            &out(24),
        ),
    ];
    wrong.into_iter().flatten().chain(others).collect()
}

/// The key field with a flow id.
const fn vsid(flow: u8) -> Option<u32> {
    Some(VSID << 8 | flow as u32)
}

fn nvgre() -> Vec<Case> {
    let inner = |number| tcp_v4(station(1), station(number), 40);
    let mut cases = Vec::new();
    for flow in [0, 1, 0x7f, 0xff] {
        for (id, outer) in
            [(32, Outer::from_peer(peer_v4(32), vsid(flow))), (33, Outer::from_peer(peer_v6(33), vsid(flow)))]
        {
            let source = Target::adjacency(id);
            let inner = inner(id as u8);
            let arrives = |name: &str, outer: &Outer, inner: &[u8]| {
                Case::underlay(format!("NVGRE, peer {id}, flow {flow}: {name}"), outer.wrap(inner))
                    .received(source, inner.len())
            };
            let with_tag = tagged(&inner, 0x8100, 5);
            cases.extend([
                arrives("taken", &outer, &inner).out_of_port(23, &inner),
                arrives("a checksum", &outer.clone().checksum(Sum::Right), &inner)
                    .refused(source, DropReason::ReservedBits),
                arrives("a sequence number", &outer.clone().sequence(1), &inner)
                    .refused(source, DropReason::ReservedBits),
                arrives("a tag inside", &outer, &with_tag).refused(source, DropReason::InnerTag),
                arrives("a service tag inside", &outer, &tagged(&inner, 0x88a8, 5))
                    .refused(source, DropReason::InnerTag),
            ]);
        }
    }
    let other = Outer::from_peer(peer_v4(32), Some((VSID ^ 1) << 8));
    let out = |id| tcp_v4(station(id), station(1), 40);
    let from_port = |name: &str, inner: &[u8]| {
        Case::port(name, 33, inner.to_vec()).received(Target::port(23), inner.len())
    };
    let tagged_out = tagged(&out(32), 0x8100, 5);
    let group = frame(mgre_common::wire::MacAddr::BROADCAST, station(1), 0x0806, 46);
    cases.extend([
        Case::underlay("NVGRE: another virtual subnet", other.wrap(&inner(32)))
            .refused_by_nobody(DropReason::KeyMismatch),
        Case::underlay("NVGRE: no key", Outer::from_peer(peer_v4(32), None).wrap(&inner(32)))
            .refused_by_nobody(DropReason::KeyMismatch),
        from_port("NVGRE: out", &out(32)).into_tunnel(32, peer_v4(32), vsid(0), &out(32)),
        from_port("NVGRE over IPv6: out", &out(33)).into_tunnel(33, peer_v6(33), vsid(0), &out(33)),
        from_port("NVGRE: no tag goes out", &tagged_out).dropped().counted(
            Target::adjacency(32),
            mgre_common::reason::Direction::Transmit,
            DropReason::InnerTag,
        ),
        from_port("NVGRE: nor one beside", &out(32)).tag([0x81, 0, 0, 5]).dropped().counted(
            Target::adjacency(32),
            mgre_common::reason::Direction::Transmit,
            DropReason::InnerTag,
        ),
        from_port("NVGRE: head-end replication", &group)
            .into_tunnel(32, peer_v4(32), vsid(0), &group)
            .into_tunnel(33, peer_v6(33), vsid(0), &group)
            .flooded(15),
    ]);
    cases
}
