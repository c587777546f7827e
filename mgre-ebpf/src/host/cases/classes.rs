//! ECN and DSCP: copied out, and combined or copied in.

use mgre_common::reason::DropReason;
use mgre_common::target::Target;

use super::Case;
use crate::host::packet::{Outer, Sum, frame, tagged, tcp_v4, udp_v6, with_tos};
use crate::host::world::{PEER_A, PEER_A_V6, peer_v4, peer_v6, station};

/// A DSCP, for frames inside: AF11.
const INSIDE: u8 = 0x28;
/// Another one, for outer packets: CS5.
const OUTSIDE: u8 = 0xa0;
/// Expedited forwarding: what the peer 21 has.
const FIXED: u8 = 0xb8;
const KEY: Option<u32> = Some(34);

/// RFC 6040 4.2: what came inside and what came outside, and what goes on, if anything.
/// ECN codepoints: 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE.
pub const DECAPSULATION: [(u8, u8, Option<u8>); 16] = [
    (0, 0, Some(0)),
    (0, 2, Some(0)),
    (0, 1, Some(0)),
    (0, 3, None),
    (2, 0, Some(2)),
    (2, 2, Some(2)),
    (2, 1, Some(1)),
    (2, 3, Some(3)),
    (1, 0, Some(1)),
    (1, 2, Some(1)),
    (1, 1, Some(1)),
    (1, 3, Some(3)),
    (3, 0, Some(3)),
    (3, 2, Some(3)),
    (3, 1, Some(3)),
    (3, 3, Some(3)),
];

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = copied_out();
    cases.extend(combined_in());
    cases.extend(models());
    cases.extend(relayed());
    cases.extend(flooded());
    cases.extend(cut_short());
    cases
}

/// Frames with IP inside, behind tags or none.
fn carriers(destination: u8, source: u8) -> Vec<(&'static str, Vec<u8>)> {
    let (destination, source) = (station(destination), station(source));
    let (v4, v6) = (tcp_v4(destination, source, 40), udp_v6(destination, source, 40));
    vec![
        ("IPv4", v4.clone()),
        ("IPv6", v6.clone()),
        ("tagged IPv4", tagged(&v4, 0x8100, 5)),
        ("tagged IPv6", tagged(&v6, 0x8100, 5)),
        ("IPv4 with two tags", tagged(&tagged(&v4, 0x8100, 5), 0x88a8, 6)),
        ("IPv6 with two tags", tagged(&tagged(&v6, 0x8100, 5), 0x88a8, 6)),
    ]
}

fn copied_out() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, frame) in carriers(3, 1) {
        for ecn in 0..4 {
            let inner = with_tos(&frame, INSIDE | ecn);
            let from = |name: String, port: u32| {
                Case::port(name, port + 10, inner.clone()).received(Target::port(port), inner.len())
            };
            let outer = Outer::to_peer(PEER_A, Some(7)).tos(ecn);
            cases.push(from(format!("ECN {ecn} of {kind} copied out"), 0).into_tunnel_as(0, &outer, &inner));
            let outer = Outer::to_peer(PEER_A_V6, Some(31)).tos(ecn);
            cases.push(
                from(format!("IPv6: ECN {ecn} of {kind} copied out"), 17).into_tunnel_as(14, &outer, &inner),
            );
        }
    }
    cases
}

fn combined_in() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, frame) in carriers(1, 3) {
        for (inside, outside, result) in DECAPSULATION {
            let inner = with_tos(&frame, INSIDE | inside);
            let ends = |case: Case, source, port| {
                let case = case.received(source, inner.len());
                match result {
                    Some(ecn) => case.out_of_port(port, &with_tos(&frame, INSIDE | ecn)),
                    None => case.refused(source, DropReason::Ecn),
                }
            };
            let name = format!("ECN {inside} of {kind} inside {outside}");
            let outer = Outer::from_peer(PEER_A, Some(7)).tos(OUTSIDE | outside);
            cases.push(ends(Case::underlay(&name, outer.wrap(&inner)), Target::adjacency(0), 0));
            let outer = Outer::from_peer(PEER_A_V6, Some(31)).tos(OUTSIDE | outside);
            let name = format!("IPv6: {name}");
            cases.push(ends(Case::underlay(name, outer.wrap(&inner)), Target::adjacency(14), 17));
        }
    }
    // Who sends something else cannot be told, and does not mind.
    let arp = frame(station(1), station(3), 0x0806, 46);
    let outer = Outer::from_peer(PEER_A, Some(7)).tos(3);
    cases.push(
        Case::underlay("congestion outside, no IP inside", outer.wrap(&arp))
            .received(Target::adjacency(0), arp.len())
            .out_of_port(0, &arp),
    );
    cases
}

/// RFC 2983: the pipe model and the uniform one, both ways.
fn models() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, frame) in carriers(1, 1) {
        for ecn in [0, 1] {
            let to = |number: u8| {
                let mut inner = with_tos(&frame, INSIDE | ecn);
                inner[..6].copy_from_slice(&station(number).0);
                inner
            };
            let sent = |id: u8, outer: Outer| {
                let inner = to(id);
                Case::port(format!("peer {id}: class of {kind} with ECN {ecn} out"), 32, inner.clone())
                    .received(Target::port(22), inner.len())
                    .into_tunnel_as(id.into(), &outer, &inner)
            };
            let (four, six) = (|id| Outer::to_peer(peer_v4(id), KEY), |id| Outer::to_peer(peer_v6(id), KEY));
            let unset = Outer { dont_fragment: false, ..four(21) };
            cases.extend([
                sent(19, four(19).tos(INSIDE | ecn)),
                sent(20, six(20).tos(INSIDE | ecn)),
                sent(21, unset.tos(FIXED | ecn)),
                sent(24, six(24).tos(FIXED | ecn).udp(Sum::Zero)),
            ]);
        }
    }
    for (kind, frame) in carriers(1, 1) {
        let received = |id: u8, outer: Outer, inside: u8, outside: u8, result: u8| {
            let mut inner = with_tos(&frame, inside);
            inner[6..12].copy_from_slice(&station(id).0);
            let bytes = outer.tos(outside).wrap(&inner);
            Case::underlay(format!("peer {id}: class {outside:#x} outside {inside:#x} of {kind} in"), bytes)
                .received(Target::adjacency(id.into()), inner.len())
                .out_of_port(22, &with_tos(&inner, result))
        };
        let (four, six) = (|id| Outer::from_peer(peer_v4(id), KEY), |id| Outer::from_peer(peer_v6(id), KEY));
        cases.extend([
            received(19, four(19), INSIDE, OUTSIDE, OUTSIDE),
            received(19, four(19), INSIDE | 2, OUTSIDE | 3, OUTSIDE | 3),
            received(19, four(19), INSIDE | 2, 0, 2),
            received(20, six(20), INSIDE, OUTSIDE, OUTSIDE),
            received(20, six(20), INSIDE | 2, OUTSIDE | 1, OUTSIDE | 1),
            received(21, four(21), INSIDE, OUTSIDE, INSIDE),
            received(21, four(21), INSIDE | 2, OUTSIDE | 3, INSIDE | 3),
        ]);
    }
    cases
}

/// From tunnel to tunnel: what the last outer packet met, the next one says.
fn relayed() -> Vec<Case> {
    let key = Some(33);
    let mut cases = Vec::new();
    for (inside, outside, result) in DECAPSULATION {
        let inner = with_tos(&tcp_v4(station(18), station(17), 40), INSIDE | inside);
        let source = Target::adjacency(17);
        let arrives = |name: String| {
            let outer = Outer::from_peer(peer_v4(17), key).tos(OUTSIDE | outside);
            Case::underlay(name, outer.wrap(&inner)).received(source, inner.len())
        };
        let case = arrives(format!("ECN {inside} inside {outside} from tunnel to tunnel"));
        cases.push(match result {
            Some(ecn) => {
                let outer = Outer { ttl: 60, ..Outer::to_peer(peer_v6(18), key) }.tos(ecn);
                case.into_tunnel_as(18, &outer, &inner)
            }
            None => case.refused(source, DropReason::Ecn),
        });
    }
    cases
}

/// A hub's copies, of which the first is the next tunnel's: all of them say what was met.
fn flooded() -> Vec<Case> {
    let key = Some(33);
    let inner = with_tos(&tcp_v4(station(200), station(17), 40), INSIDE | 2);
    let met = with_tos(&inner, INSIDE | 3);
    let outer = Outer::from_peer(peer_v4(17), key).tos(OUTSIDE | 3);
    let on = Outer { ttl: 30, ..Outer::to_peer(peer_v6(18), key) }.tos(3);
    let case = Case::underlay("congestion met by what a hub floods", outer.wrap(&inner))
        .received(Target::adjacency(17), inner.len())
        .into_tunnel_as(18, &on, &inner)
        .out_of_port(21, &met)
        .left_to_finish(36, 30, &met)
        .flooded(13);
    vec![case]
}

/// What is too short for an IP header is no IP packet, whatever stands behind it.
fn cut_short() -> Vec<Case> {
    let outer = Outer::from_peer(PEER_A, Some(7)).tos(3);
    let short = |name: &str, payload_len: usize, padding: &[u8]| {
        let mut inner = frame(station(1), station(3), 0x0800, payload_len);
        inner.iter_mut().skip(14).for_each(|byte| *byte = 0x45);
        let packet = [outer.wrap(&inner), padding.to_vec()].concat();
        Case::underlay(name, packet).received(Target::adjacency(0), inner.len()).out_of_port(0, &inner)
    };
    vec![
        short("congestion outside a cut IPv4 header", 19, &[]),
        short("congestion outside padding that looks like IPv4", 0, &[0x45; 40]),
    ]
}
