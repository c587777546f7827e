//! RFC 2983, 6040, 9601: DSCP and ECN. The table of RFC 6040 itself is tested beside its code.

use mgre_common::reason::DropReason;
use mgre_common::table::segment_flag;
use mgre_common::target::Target;

use super::hold;
use crate::act;
use crate::host::cases::classes::DECAPSULATION;
use crate::host::cases::{Case, End};
use crate::host::frame::HostFrame;
use crate::host::packet::{Outer, tcp_v4, with_tos};
use crate::host::tables::MemoryTables;
use crate::host::world::{Entry, PeerSpec, World, peer_v4, station};

/// The traffic class of a packet, and that of the IP packet in it, behind whatever tags.
fn class(packet: &[u8]) -> u8 {
    let mut at = 12;
    while matches!(packet[at..at + 2], [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    if packet[at] == 8 { packet[at + 3] } else { packet[at + 2] << 4 | packet[at + 3] >> 4 }
}

fn reasons(case: &Case) -> Vec<DropReason> {
    case.expected.drops.iter().map(|(_, _, reason)| *reason).collect()
}

/// The normal mode: for a router that is not ECN capable there is the compatibility mode, which
/// nobody needs any more.
#[test]
fn rfc_6040_4_1_ecn_is_copied_out() {
    // Four codepoints of six kinds of frames, over IPv4 and IPv6.
    for case in hold("copied out", 48) {
        let (_, packet) = &case.expected.outputs[0];
        assert_eq!(class(packet) & 3, class(&case.bytes) & 3, "{}", case.name);
    }
}

#[test]
fn rfc_6040_4_2_the_table_through_the_pipeline() {
    for (inside, outside, result) in DECAPSULATION {
        // Six kinds of frames over IPv4 and IPv6, three with "tagged" or "tags" each.
        for kind in ["IPv4", "IPv6", "tagged IPv4", "tagged IPv6", "IPv4 with two tags", "IPv6 with two tags"]
        {
            for case in hold(&format!("ECN {inside} of {kind} inside {outside}"), 2) {
                match result {
                    Some(ecn) => assert_eq!(class(&case.expected.outputs[0].1) & 3, ecn),
                    None => assert_eq!(reasons(&case), [DropReason::Ecn]),
                }
            }
        }
    }
}

/// Congestion that cannot be told of any more is loss.
#[test]
fn rfc_6040_4_2_congestion_outside_not_ect_is_dropped_and_counted() {
    let dropped: Vec<_> = hold("inside 3", 6 * 2 * 4 + 4)
        .into_iter()
        .filter(|case| case.expected.end == End::Dropped)
        .collect();
    assert_eq!(dropped.len(), 6 * 2 + 1);
    assert!(dropped.iter().all(|case| reasons(case) == [DropReason::Ecn]));
    hold("congestion outside, no IP inside", 1);
}

/// GRE, Ethernet and tags are what RFC 9601 calls a shim: they change nothing of the above.
#[test]
fn rfc_9601_a_shim_hides_no_congestion() {
    for case in hold("ECN 2 of IPv6 with two tags inside 3", 2) {
        assert_eq!(class(&case.expected.outputs[0].1) & 3, 3);
    }
    // From tunnel to tunnel it goes on in the next outer header.
    for case in hold("from tunnel to tunnel", 16).iter().filter(|case| case.name.contains("inside 3")) {
        match case.expected.outputs.first() {
            Some((_, packet)) => assert_eq!(class(packet) & 3, 3),
            None => assert_eq!(reasons(case), [DropReason::Ecn]),
        }
    }
}

#[test]
fn rfc_2983_3_the_pipe_model() {
    for id in [21, 24] {
        for case in hold(&format!("peer {id}: class of"), 12) {
            assert_eq!(class(&case.expected.outputs[0].1) & 0xfc, 0xb8, "{}", case.name);
        }
    }
    for case in hold("peer 21: class 0x", 12) {
        assert_eq!(class(&case.expected.outputs[0].1) & 0xfc, 0x28, "DSCP inside stays: {}", case.name);
    }
}

#[test]
fn rfc_2983_3_the_uniform_model() {
    for id in [19, 20] {
        for case in hold(&format!("peer {id}: class of"), 12) {
            assert_eq!(class(&case.expected.outputs[0].1) & 0xfc, class(&case.bytes) & 0xfc, "{}", case.name);
        }
    }
    for case in hold("peer 19: class 0x", 18).into_iter().chain(hold("peer 20: class 0x", 12)) {
        let delivered = class(&case.expected.outputs[0].1) & 0xfc;
        assert_eq!(delivered, class(&case.bytes) & 0xfc, "{}", case.name);
    }
}

/// What the middle of the network says goes on through a hub, to the last tunnel.
#[test]
fn rfc_2983_3_the_uniform_model_through_a_hub() {
    let peer = |id| PeerSpec::new(id, 1, peer_v4(id), Some(7)).uniform();
    let entry = |number: u8| Entry {
        segment: 1,
        mac: station(number),
        target: Target::adjacency(number.into()),
        seen: 1,
        held: false,
    };
    let world = World {
        peers: vec![peer(1), peer(2)],
        segments: vec![(1, segment_flag::VALID | segment_flag::HUB)],
        entries: vec![entry(1), entry(2)],
        ..World::default()
    };
    let mut tables = MemoryTables::default();
    world.install(&mut tables);
    let inner = with_tos(&tcp_v4(station(2), station(1), 9), 0xb8);
    let outer = Outer::from_peer(peer_v4(1), Some(7)).tos(0x28);
    let mut frame = HostFrame::new(outer.wrap(&inner));
    act::process_underlay(&mut frame, &tables);
    assert_eq!(class(&frame.sent[0].1), 0x28);
}
