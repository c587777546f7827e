//! RFC 7637. (That reserved virtual subnet ids are refused, the daemon's model shows.)

use std::collections::HashSet;

use mgre_common::reason::DropReason;

use super::{Bench, gre_at, hold};
use crate::host::cases::End;
use crate::host::packet::{Outer, tcp_v4};
use crate::host::world::{VSID, peer_v4, peer_v6, station};

#[test]
fn rfc_7637_3_2_a_key_and_neither_checksum_nor_sequence_number() {
    for case in hold("NVGRE: out", 1).into_iter().chain(hold("NVGRE over IPv6: out", 1)) {
        let (_, packet) = &case.expected.outputs[0];
        let gre = &packet[gre_at(packet)..];
        assert_eq!(gre[..4], [0x20, 0, 0x65, 0x58]);
        assert_eq!(gre[4..7], VSID.to_be_bytes()[1..]);
    }
    for case in hold(": a checksum", 8).into_iter().chain(hold(": a sequence number", 8)) {
        let reasons: Vec<_> = case.expected.drops.iter().map(|(_, _, reason)| *reason).collect();
        assert_eq!(reasons, [DropReason::ReservedBits]);
    }
}

/// 24 bits say the subnet; the other eight are the flow's, whatever they are.
#[test]
fn rfc_7637_3_2_any_flow_id_is_taken_and_no_other_subnet() {
    let bench = Bench::new();
    for flow in 0..=255 {
        for (id, outer) in [
            (32, Outer::from_peer(peer_v4(32), Some(VSID << 8 | flow))),
            (33, Outer::from_peer(peer_v6(33), Some(VSID << 8 | flow))),
        ] {
            let inner = tcp_v4(station(1), station(id), 40);
            assert_eq!(bench.receive(outer.wrap(&inner)).only(), inner);
        }
    }
    for bit in 0..24 {
        let inner = tcp_v4(station(1), station(32), 40);
        let ran = bench.receive(Outer::from_peer(peer_v4(32), Some((VSID ^ 1 << bit) << 8)).wrap(&inner));
        let reasons: Vec<_> = ran.drops.iter().map(|(_, _, reason)| *reason).collect();
        assert_eq!(reasons, [DropReason::KeyMismatch]);
    }
}

#[test]
fn rfc_7637_3_2_a_flow_has_one_flow_id_and_flows_have_many() {
    let bench = Bench::new();
    for id in [32, 33] {
        let flow_id = |inner: &[u8]| {
            let packet = bench.transmit(33, inner.to_vec()).only();
            packet[gre_at(&packet) + 7]
        };
        let mut ids = HashSet::new();
        for flow in 0..200_u16 {
            let mut inner = tcp_v4(station(id), station(1), 40);
            inner[34..36].copy_from_slice(&(1000 + flow).to_be_bytes());
            let number = flow_id(&inner);
            ids.insert(number);
            let last = inner.len() - 1;
            inner[last] ^= 0xff;
            assert_eq!(flow_id(&inner), number);
        }
        assert!(ids.len() > 80, "{} ids for 200 flows", ids.len());
    }
}

#[test]
fn rfc_7637_3_3_no_tag_inside() {
    let received = hold("a tag inside", 8 + 1).into_iter().filter(|case| case.name.starts_with("NVGRE"));
    let sent = hold("NVGRE: no tag goes out", 1).into_iter().chain(hold("NVGRE: nor one beside", 1));
    let mut count = 0;
    for case in received.chain(hold("a service tag inside", 8)).chain(sent) {
        let reasons: Vec<_> = case.expected.drops.iter().map(|(_, _, reason)| *reason).collect();
        assert_eq!((case.expected.end, &reasons[..]), (End::Dropped, &[DropReason::InnerTag][..]));
        count += 1;
    }
    assert_eq!(count, 18);
}

#[test]
fn rfc_7637_4_2_frames_for_many_are_replicated_at_the_head_end() {
    let case = hold("NVGRE: head-end replication", 1).remove(0);
    assert_eq!((case.expected.outputs.len(), case.expected.flooded), (2, Some((15, 2))));
}
