//! What does not fit a tunnel: senders are told, or the packet outside is fragmented.

use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::Target;

use super::Case;
use super::options::with_df;
use crate::host::packet::{Outer, frame, tagged, tcp_v4, udp_v6};
use crate::host::world::{peer_v4, peer_v6, station};

const KEY: Option<u32> = Some(34);
/// What fits into a packet of 200 bytes with IPv4, GRE and a key.
const FITS: usize = 200 - 28;
/// Headers of TCP over IPv4 in Ethernet.
const TCP: usize = 54;

/// From the segment's port.
fn from_port(name: impl Into<String>, inner: &[u8]) -> Case {
    Case::port(name, 32, inner.to_vec()).received(Target::port(22), inner.len())
}

/// A frame of TCP over IPv4 of this length.
fn v4(number: u8, len: usize, dont_fragment: bool) -> Vec<u8> {
    with_df(&tcp_v4(station(number), station(1), len - TCP), dont_fragment)
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = told();
    cases.extend(fragmented());
    cases.extend(ipv6());
    cases.extend(finished());
    cases
}

fn unfragmented(id: u32) -> Outer {
    Outer::to_peer(peer_v4(id), KEY)
}

fn may_be_fragmented(id: u32) -> Outer {
    Outer { dont_fragment: false, ..unfragmented(id) }
}

/// RFC 7588 3.2: with DF, whatever the peer's option is.
fn told() -> Vec<Case> {
    let mut cases = Vec::new();
    let mtu = FITS as u32 - 14;
    for (id, outer) in [(28, unfragmented(28)), (29, may_be_fragmented(29)), (30, unfragmented(30))] {
        let number = id as u8;
        let fits = v4(number, FITS, true);
        let large = v4(number, FITS + 1, true);
        let larger = v4(number, 1400, true);
        let tag = tagged(&v4(number, FITS - 3, true), 0x8100, 5);
        cases.extend([
            from_port(format!("peer {id}: just fits"), &fits).into_tunnel_as(id, &outer, &fits),
            from_port(format!("peer {id}: too big by a byte"), &large).told(id, mtu, &large),
            from_port(format!("peer {id}: too big, and longer than is reported"), &larger)
                .told(id, mtu, &larger),
            from_port(format!("peer {id}: too big with a tag"), &tag).told(id, mtu - 4, &tag),
        ]);
    }
    let beside = v4(28, FITS - 3, true);
    cases.push(from_port("too big with a tag beside", &beside).tag([0x81, 0, 0x60, 5]).told_of(
        28,
        mtu - 4,
        FITS as u32 + 1,
        &beside,
    ));
    let superframe = v4(28, 4000, true);
    cases.push(from_port("a superframe too big", &superframe).superframe(500).told_of(
        28,
        mtu,
        (TCP + 500) as u32,
        &superframe,
    ));
    cases
}

/// Without DF, as the peer's option says.
fn fragmented() -> Vec<Case> {
    let drop = |case: Case, id| {
        case.dropped().counted(Target::adjacency(id), Direction::Transmit, DropReason::TooBig)
    };
    let large = |id| v4(id, FITS + 1, false);
    let arp = |id| frame(station(id), station(1), 0x0806, FITS);
    vec![
        drop(from_port("df set: too big without DF", &large(28)), 28),
        drop(from_port("df set: too big and no IP", &arp(28)), 28),
        from_port("df unset: too big without DF", &large(29)).left_to_fragment(
            29,
            &may_be_fragmented(29),
            &large(29),
        ),
        from_port("df unset: too big and no IP", &arp(29)).left_to_fragment(
            29,
            &may_be_fragmented(29),
            &arp(29),
        ),
        from_port("df inherit: too big without DF", &large(30)).left_to_fragment(
            30,
            &may_be_fragmented(30),
            &large(30),
        ),
        from_port("df inherit: too big and no IP", &arp(30)).left_to_fragment(
            30,
            &may_be_fragmented(30),
            &arp(30),
        ),
    ]
}

/// RFC 7676 3.2 and 3.3.
fn ipv6() -> Vec<Case> {
    // Ethernet, IPv6 and UDP are 62 bytes.
    let v6 = |number, ip_len: usize| udp_v6(station(number), station(1), ip_len - 48);
    let tag = |frame: &[u8]| tagged(frame, 0x8100, 5);
    let six = || Outer::to_peer(peer_v6(31), KEY);
    // 1280 less IPv6, GRE and a key, and the inner Ethernet header.
    let mtu = 1280 - 48 - 14;
    vec![
        from_port("IPv6 inside: just fits", &v6(31, mtu)).into_tunnel_as(31, &six(), &v6(31, mtu)),
        from_port("IPv6 inside: what every host may send", &v6(31, 1280)).left_to_fragment(
            31,
            &six(),
            &v6(31, 1280),
        ),
        from_port("IPv6 inside: the same with a tag", &tag(&v6(31, 1280))).left_to_fragment(
            31,
            &six(),
            &tag(&v6(31, 1280)),
        ),
        from_port("IPv6 inside: a byte more", &v6(31, 1281)).told(31, mtu as u32, &v6(31, 1281)),
        from_port("IPv6 inside: a byte more with a tag", &tag(&v6(31, 1281))).told(
            31,
            mtu as u32 - 4,
            &tag(&v6(31, 1281)),
        ),
        // Outside, the whole packet is fragmented although the peer has DF set.
        from_port("IPv6 in IPv4: what every host may send", &v6(28, 1280)).left_to_fragment(
            28,
            &unfragmented(28),
            &v6(28, 1280),
        ),
        from_port("IPv6 in IPv4: a byte more", &v6(28, 1281)).told(28, FITS as u32 - 14, &v6(28, 1281)),
        from_port("IPv4 in IPv6: too big", &v4(31, 1400, true)).told(31, mtu as u32, &v4(31, 1400, true)),
        from_port("IPv4 in IPv6: too big without DF", &v4(31, 1400, false)).dropped().counted(
            Target::adjacency(31),
            Direction::Transmit,
            DropReason::TooBig,
        ),
    ]
}

/// Frames whose packets need finishing are judged before they go there.
fn finished() -> Vec<Case> {
    let fits = FITS - 4;
    let just = v4(35, fits, true);
    let large = v4(35, fits + 1, true);
    let without = v4(35, fits + 1, false);
    vec![
        from_port("to be finished: just fits", &just).left_to_finish(35, u8::MAX, &just),
        from_port("to be finished: too big", &large).told(35, fits as u32 - 14, &large),
        from_port("to be finished and fragmented", &without).left_to_finish(35, u8::MAX, &without),
    ]
}
