//! Head-end replication in segments of many sizes.

use std::collections::BTreeMap;

use mgre_common::reason::{Direction, DropReason};
use mgre_common::table::{MAX_FLOOD_TARGETS, MAX_SEGMENT_ADJACENCIES, MAX_SEGMENT_PORTS};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;
use proptest::prelude::*;

use crate::act;
use crate::host::frame::{HostAction, HostFrame};
use crate::host::packet::{Outer, frame};
use crate::host::tables::MemoryTables;
use crate::host::world::{Entry, PeerSpec, PortSpec, UNDERLAY, World, station};

const KEY: Option<u32> = Some(5);
const SEGMENT: u32 = 1;

fn endpoint(id: u32) -> [u8; 4] {
    let [_, _, high, low] = id.to_be_bytes();
    [10, 1, high, low]
}

/// A segment with so many ports and peers.
fn network(ports: u32, peers: u32) -> MemoryTables {
    let world = World {
        ports: (0..ports).map(|id| PortSpec::new(id, SEGMENT)).collect(),
        peers: (0..peers).map(|id| PeerSpec::new(id, SEGMENT, endpoint(id), KEY)).collect(),
        segments: vec![(SEGMENT, 1)],
        entries: vec![
            Entry { segment: 1, mac: station(1), target: Target::port(0), seen: 1 },
            Entry { segment: 1, mac: station(2), target: Target::adjacency(0), seen: 1 },
        ],
        ..World::default()
    };
    let mut tables = MemoryTables::default();
    world.install(&mut tables);
    tables
}

/// A broadcast from port 0: every other port, then every peer, once each.
fn flood_from_port(ports: u32, peers: u32) {
    let tables = network(ports, peers);
    let inner = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);
    let mut flooded = HostFrame::new(inner.clone());
    let action = act::process_port(&mut flooded, &tables, 10);

    let wanted: Vec<_> = (1..ports)
        .map(|id| (10 + id, inner.clone()))
        .chain((0..peers).map(|id| (UNDERLAY, Outer::to_peer(endpoint(id), KEY).wrap(&inner))))
        .collect();
    let sent: Vec<_> = flooded.sent.iter().map(|(egress, bytes)| (egress.ifindex, bytes.clone())).collect();
    assert_eq!(sent, wanted);

    match flooded.sent.last() {
        // The last one is the frame itself.
        Some((egress, _)) => assert_eq!(action, HostAction::Sent(*egress)),
        None => assert_eq!(action, HostAction::Dropped),
    }
    let drops = if wanted.is_empty() {
        BTreeMap::from([((Target::port(0), Direction::Receive, DropReason::NoTarget), 1)])
    } else {
        BTreeMap::new()
    };
    assert_eq!(*tables.drops.borrow(), drops);
    assert_eq!(tables.floods.borrow()[&SEGMENT].flood_copies, wanted.len() as u64);
    assert_eq!(tables.floods.borrow()[&SEGMENT].flood_frames, 1);
    for id in 0..peers {
        assert_eq!(tables.traffic(Target::adjacency(id)).transmit_packets, 1);
    }
}

/// A broadcast from peer 0: every port, and no tunnel.
fn flood_from_peer(ports: u32, peers: u32) {
    let tables = network(ports, peers);
    let inner = frame(MacAddr::BROADCAST, station(2), 0x0806, 46);
    let mut flooded = HostFrame::new(Outer::from_peer(endpoint(0), KEY).wrap(&inner));
    act::process_underlay(&mut flooded, &tables);

    let wanted: Vec<_> = (0..ports).map(|id| (10 + id, inner.clone())).collect();
    let sent: Vec<_> = flooded.sent.iter().map(|(egress, bytes)| (egress.ifindex, bytes.clone())).collect();
    assert_eq!(sent, wanted);
    assert!((0..peers).all(|id| tables.traffic(Target::adjacency(id)).transmit_packets == 0));
}

#[test]
fn the_largest_segment_is_flooded_whole() {
    flood_from_port(MAX_SEGMENT_PORTS, MAX_SEGMENT_ADJACENCIES);
    flood_from_peer(MAX_SEGMENT_PORTS, MAX_SEGMENT_ADJACENCIES);
}

#[test]
fn copies_are_bounded() {
    let peers = MAX_SEGMENT_ADJACENCIES + 100;
    let tables = network(1, peers);
    let mut flooded = HostFrame::new(frame(MacAddr::BROADCAST, station(1), 0x0806, 46));
    act::process_port(&mut flooded, &tables, 10);
    // The sender has a place in the list too.
    assert_eq!(flooded.sent.len() as u32, MAX_FLOOD_TARGETS - 1);
}

#[test]
fn peers_with_and_without_a_key_in_one_segment_are_counted_and_not_garbled() {
    let world = World {
        ports: vec![PortSpec::new(0, SEGMENT)],
        peers: vec![
            PeerSpec::new(0, SEGMENT, endpoint(0), KEY),
            PeerSpec::new(1, SEGMENT, endpoint(1), None),
            PeerSpec::new(2, SEGMENT, endpoint(2), KEY),
        ],
        segments: vec![(SEGMENT, 1)],
        ..World::default()
    };
    let mut tables = MemoryTables::default();
    world.install(&mut tables);
    let inner = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);
    let mut flooded = HostFrame::new(inner.clone());
    act::process_port(&mut flooded, &tables, 10);
    let sent: Vec<_> = flooded.sent.into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(sent, [0, 2].map(|id| Outer::to_peer(endpoint(id), KEY).wrap(&inner)));
    assert_eq!(tables.dropped(Target::adjacency(1), Direction::Transmit, DropReason::Internal), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_segment_is_flooded_whole(ports in 1_u32..12, peers in 1_u32..40) {
        flood_from_port(ports, peers);
        flood_from_port(ports, 0);
        flood_from_peer(ports, peers);
    }
}
