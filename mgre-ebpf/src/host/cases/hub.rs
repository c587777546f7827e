//! From tunnel to tunnel, in a segment that is a hub.

use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use super::Case;
use crate::frame::{Egress, Side};
use crate::host::packet::{Outer, frame, kinds, tcp_v4};
use crate::host::world::{PEER_A, PEER_B, PEER_C, UNDERLAY, station};

const KEY: Option<u32> = Some(21);
const A: Target = Target::adjacency(10);
/// The hops that a peer's packet has left when it is here.
const HOPS: u8 = 61;

impl Case {
    /// A packet from peer A in the hub's segment.
    fn from_spoke(name: impl Into<String>, outer: &Outer, inner: &[u8]) -> Self {
        Self::underlay(name, outer.wrap(inner)).received(A, inner.len())
    }

    /// It goes on to a peer, with so many hops left.
    fn on_to(self, id: u32, endpoint: [u8; 4], hops: u8, inner: &[u8]) -> Self {
        let bytes = Outer { ttl: hops, ..Outer::to_peer(endpoint, KEY) }.wrap(inner);
        self.send(Target::adjacency(id), Egress::new(UNDERLAY, Side::Out), bytes)
    }
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let spoke = Outer::from_peer(PEER_A, KEY);
    let to_b = tcp_v4(station(4), station(3), 100);
    for (kind, inner) in kinds(station(4), station(3)) {
        let case = Case::from_spoke(format!("from spoke to spoke: {kind}"), &spoke, &inner);
        cases.push(case.on_to(11, PEER_B, HOPS - 1, &inner));
    }
    let with_hops = |ttl| Outer { ttl, ..spoke.clone() };
    let sequence = spoke.clone().flags(0x1000).field(1);
    let padded = [spoke.wrap(&to_b), vec![0xee; 9]].concat();
    let large = tcp_v4(station(5), station(3), 100);
    cases.extend([
        Case::from_spoke("a hop is left", &with_hops(2), &to_b).on_to(11, PEER_B, 1, &to_b),
        Case::from_spoke("no hop is left", &with_hops(1), &to_b).refused(A, DropReason::TtlExpired),
        Case::from_spoke("less than no hop is left", &with_hops(0), &to_b).refused(A, DropReason::TtlExpired),
        Case::from_spoke("no more hops than the peer's own", &with_hops(255), &to_b)
            .on_to(11, PEER_B, 64, &to_b),
        Case::from_spoke("the outer header becomes shorter", &sequence, &to_b).on_to(
            11,
            PEER_B,
            HOPS - 1,
            &to_b,
        ),
        Case::underlay("padding stays behind", padded).received(A, to_b.len()).on_to(
            11,
            PEER_B,
            HOPS - 1,
            &to_b,
        ),
        Case::from_spoke("too big for the other spoke", &spoke, &large).told(12, 150 - 28 - 14, &large),
        Case::underlay(
            "too big for the other spoke, and padded",
            [spoke.wrap(&large), vec![0xee; 9]].concat(),
        )
        .received(A, large.len())
        .told(12, 150 - 28 - 14, &large),
        Case::from_spoke("back to the same spoke", &spoke, &tcp_v4(station(3), station(3), 9))
            .refused(A, DropReason::NoTarget),
        Case::from_spoke("a superframe from spoke to spoke", &spoke, &tcp_v4(station(4), station(3), 4000))
            .superframe(1400)
            .on_to(11, PEER_B, HOPS - 1, &tcp_v4(station(4), station(3), 4000)),
        Case::from_spoke("a superframe with segments too big", &spoke, &tcp_v4(station(4), station(3), 4000))
            .told_of(11, 1500 - 28 - 14, 1554, &tcp_v4(station(4), station(3), 4000))
            .superframe(1500),
    ]);
    cases.extend(flooded());
    cases
}

fn flooded() -> Vec<Case> {
    let broadcast = frame(MacAddr::BROADCAST, station(3), 0x0806, 46);
    let unknown = tcp_v4(station(99), station(3), 20);
    let large = frame(MacAddr::BROADCAST, station(3), 0x0806, 120);
    let from = |ttl| Outer { ttl, ..Outer::from_peer(PEER_A, KEY) };
    let to_all = |name: &str, ttl: u8, inner: &[u8]| {
        Case::from_spoke(name, &from(ttl), inner)
            .on_to(11, PEER_B, ttl / 2, inner)
            .on_to(12, PEER_C, ttl / 2, inner)
            .out_of_port(14, inner)
            .out_of_port(15, inner)
            .flooded(9)
    };
    vec![
        to_all("a broadcast goes to spokes and ports", HOPS, &broadcast),
        to_all("unknown unicast goes to spokes and ports", 2, &unknown),
        Case::from_spoke("flooded, too big for one spoke", &from(HOPS), &large)
            .on_to(11, PEER_B, HOPS / 2, &large)
            .counted(Target::adjacency(12), Direction::Transmit, DropReason::TooBig)
            .out_of_port(14, &large)
            .out_of_port(15, &large)
            .flooded(9),
        Case::from_spoke("flooded without hops for spokes", &from(1), &broadcast)
            .out_of_port(14, &broadcast)
            .out_of_port(15, &broadcast)
            .flooded(9),
        Case::port("a port of a hub floods as any", 24, frame(MacAddr::BROADCAST, station(1), 0x0806, 46))
            .received(Target::port(14), 60)
            .out_of_port(15, &frame(MacAddr::BROADCAST, station(1), 0x0806, 46))
            .into_tunnel(10, PEER_A, KEY, &frame(MacAddr::BROADCAST, station(1), 0x0806, 46))
            .into_tunnel(11, PEER_B, KEY, &frame(MacAddr::BROADCAST, station(1), 0x0806, 46))
            .into_tunnel(12, PEER_C, KEY, &frame(MacAddr::BROADCAST, station(1), 0x0806, 46))
            .flooded(9),
    ]
}
