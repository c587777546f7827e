//! What comes by the slow interface.

use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::{Mark, Target};
use mgre_common::wire::MacAddr;

use super::Case;
use super::options::with_df;
use crate::frame::{Egress, Side};
use crate::host::packet::{Outer, Sum, frame, tcp_v4, with_tos};
use crate::host::world::{PEER_A, PEER_B, SLOW, STRANGER, UNDERLAY, peer_v4, peer_v6, station};

const KEY: Option<u32> = Some(34);

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = marked();
    cases.extend(unmarked());
    cases.extend(on_the_way_there());
    cases
}

/// A frame for a target.
fn back(name: impl Into<String>, target: Target, hops: u8, inner: &[u8]) -> Case {
    Case::slow(name, Mark { target, hops }.to_bits(), inner.to_vec())
}

impl Case {
    /// As [`Case::left_to_finish`], where another copy comes after it.
    pub(super) fn copy_left_to_finish(mut self, inner: &[u8]) -> Self {
        self.expected.outputs.push((Egress::new(SLOW, Side::Out), inner.to_vec()));
        self
    }

    fn sends(self, target: Target, ifindex: u32, bytes: Vec<u8>, counted: usize) -> Self {
        self.send_counted(target, Egress::new(ifindex, Side::Out), bytes, counted as u64)
    }
}

fn marked() -> Vec<Case> {
    let mut cases = Vec::new();
    // Even and odd lengths, and longer than what one helper call sums up.
    for len in [0, 1, 40, 512, 513, 1000, 1001, 1300] {
        let inner = tcp_v4(station(25), station(1), len);
        let to = Target::adjacency(25);
        let outer = Outer::to_peer(peer_v4(25), KEY).checksum(Sum::Right);
        let name = format!("a checksum of {len} bytes of TCP payload is filled in");
        cases.push(back(name, to, u8::MAX, &inner).sends(to, UNDERLAY, outer.wrap(&inner), inner.len()));
    }
    let inner = tcp_v4(station(25), station(1), 40);
    let checked = Outer::to_peer(peer_v4(25), KEY).checksum(Sum::Right);
    let to = |id| Target::adjacency(id);
    let plain = |id| Outer::to_peer(peer_v4(id), KEY);
    let large = with_df(&tcp_v4(station(35), station(1), 300), false);
    let fragmented = Outer { dont_fragment: false, ..plain(35) }.checksum(Sum::Right);
    let arp = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);
    cases.extend([
        back("no more hops than the mark says", to(25), 7, &inner).sends(
            to(25),
            UNDERLAY,
            Outer { ttl: 7, ..checked.clone() }.wrap(&inner),
            inner.len(),
        ),
        back("nor than the peer's own", to(25), 200, &inner).sends(
            to(25),
            UNDERLAY,
            checked.wrap(&inner),
            inner.len(),
        ),
        back("ARP is finished too", to(25), u8::MAX, &arp).sends(
            to(25),
            UNDERLAY,
            checked.wrap(&arp),
            arp.len(),
        ),
        back("what needs no finishing", to(19), u8::MAX, &inner).sends(
            to(19),
            UNDERLAY,
            plain(19).wrap(&inner),
            inner.len(),
        ),
        back("over IPv6 and in UDP", to(24), u8::MAX, &inner).sends(
            to(24),
            UNDERLAY,
            Outer::to_peer(peer_v6(24), KEY).tos(0xb8).udp(Sum::Zero).wrap(&inner),
            inner.len(),
        ),
        back("finished, and to be fragmented", to(35), u8::MAX, &large).sends(
            to(35),
            SLOW,
            fragmented.wrap(&large),
            large.len(),
        ),
        back("for a port", Target::port(22), u8::MAX, &inner).sends(
            Target::port(22),
            32,
            inner.clone(),
            inner.len(),
        ),
        back("for a port that is down", Target::port(5), u8::MAX, &inner).counted(
            Target::port(5),
            Direction::Transmit,
            DropReason::RedirectFailed,
        ),
        back("for a peer out of reach", to(4), u8::MAX, &inner).counted(
            to(4),
            Direction::Transmit,
            DropReason::NoNextHop,
        ),
        back("for an adjacency not in use", to(9), u8::MAX, &inner).counted(
            to(9),
            Direction::Transmit,
            DropReason::Internal,
        ),
    ]);
    cases
}

fn unmarked() -> Vec<Case> {
    let inner = tcp_v4(station(1), station(3), 100);
    let peer = Target::adjacency(0);
    let keyed = || Outer::from_peer(PEER_A, Some(7));
    let slow = |name: &str, bytes| Case::slow(name, 0, bytes);
    vec![
        slow("unmarked: a peer's packet is taken", keyed().wrap(&inner))
            .received(peer, inner.len())
            .out_of_port(0, &inner),
        slow(
            "unmarked: over IPv6",
            Outer::from_peer(peer_v6(20), KEY).wrap(&tcp_v4(station(1), station(20), 9)),
        )
        .received(Target::adjacency(20), 63)
        .out_of_port(22, &tcp_v4(station(1), station(20), 9)),
        slow(
            "unmarked: somebody else's packet",
            Outer { destination: STRANGER.into(), ..keyed() }.wrap(&inner),
        ),
        slow("unmarked: one that we send", Outer::to_peer(PEER_B, Some(7)).wrap(&inner)),
        slow("unmarked: ARP", frame(MacAddr::BROADCAST, station(1), 0x0806, 46)),
        slow("unmarked: an unknown peer", Outer::from_peer(STRANGER, Some(7)).wrap(&inner))
            .refused_by_nobody(DropReason::UnknownEndpoint),
        slow("unmarked: a fragment is not counted again", {
            crate::host::packet::change_ip(&keyed().wrap(&inner), |ip| ip[6] = 0x20)
        }),
        slow("unmarked: PPTP", keyed().flags(1).wrap(&inner)),
    ]
}

/// From tunnel to tunnel by way of the slow interface.
fn on_the_way_there() -> Vec<Case> {
    let hub = Some(33);
    let source = Target::adjacency(17);
    let outer = |ttl| Outer { ttl, ..Outer::from_peer(peer_v4(17), hub) };
    let inner = tcp_v4(station(36), station(17), 40);
    let marked = with_tos(&inner, 2);
    let arrives = |name: &str, outer: &Outer, inner: &[u8]| {
        Case::underlay(name, outer.wrap(inner)).received(source, inner.len())
    };
    let group = frame(MacAddr::BROADCAST, station(17), 0x0806, 46);
    vec![
        arrives("a hub relays to be finished", &outer(61), &inner).left_to_finish(36, 60, &inner),
        arrives("a hub relays to be finished, marked", &outer(61).tos(3), &marked).left_to_finish(
            36,
            60,
            &with_tos(&inner, 3),
        ),
        arrives("a hub floods, and one copy is to be finished", &outer(61), &group)
            .into_tunnel_as(18, &Outer { ttl: 30, ..Outer::to_peer(peer_v6(18), hub) }, &group)
            .out_of_port(21, &group)
            .left_to_finish(36, 30, &group)
            .flooded(13),
        Case::port(
            "a port floods, and the first copy is to be finished",
            31,
            frame(MacAddr::BROADCAST, station(1), 0x0806, 46),
        )
        .received(Target::port(21), 60)
        .copy_left_to_finish(&frame(MacAddr::BROADCAST, station(1), 0x0806, 46))
        .into_tunnel(17, peer_v4(17), hub, &frame(MacAddr::BROADCAST, station(1), 0x0806, 46))
        .into_tunnel(18, peer_v6(18), hub, &frame(MacAddr::BROADCAST, station(1), 0x0806, 46))
        .flooded(13),
    ]
}
