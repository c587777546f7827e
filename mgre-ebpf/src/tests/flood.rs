//! Head-end replication in segments of many sizes.

use std::collections::BTreeMap;

use mgre_common::reason::{Direction, DropReason};
use mgre_common::table::{MAX_FLOOD_TARGETS, MAX_SEGMENT_ADJACENCIES, MAX_SEGMENT_PORTS, segment_flag};
use mgre_common::target::{Mark, Target};
use mgre_common::template::Encapsulation;
use mgre_common::wire::MacAddr;
use proptest::prelude::*;

use crate::act;
use crate::host::cases::{settled, wire};
use crate::host::frame::{HostAction, HostFrame};
use crate::host::packet::{Outer, frame};
use crate::host::tables::MemoryTables;
use crate::host::world::{Entry, PEER_A_V6, PEER_B_V6, PeerSpec, PortSpec, SLOW, UNDERLAY, World, station};
use crate::tables::Tables;

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
            Entry { segment: 1, mac: station(1), target: Target::port(0), seen: 1, held: false },
            Entry { segment: 1, mac: station(2), target: Target::adjacency(0), seen: 1, held: false },
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

/// Each peer gets a header of its own kind, whatever the one before it had.
#[test]
fn peers_of_every_kind_in_one_segment() {
    let peers = [
        PeerSpec::new(0, SEGMENT, endpoint(0), KEY),
        PeerSpec::new(1, SEGMENT, endpoint(1), None),
        PeerSpec::new(2, SEGMENT, endpoint(2), KEY).over_ipv6(PEER_A_V6),
        PeerSpec { encapsulation: Encapsulation::GreUdp, ..PeerSpec::new(3, SEGMENT, endpoint(3), KEY) },
        PeerSpec::new(4, SEGMENT, endpoint(4), None).over_ipv6(PEER_B_V6),
        PeerSpec::new(5, SEGMENT, endpoint(5), KEY),
    ];
    let inner = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);
    // In every rotation, so that each follows each.
    for first in 0..peers.len() {
        let mut peers = peers.to_vec();
        peers.rotate_left(first);
        let world = World {
            ports: vec![PortSpec::new(0, SEGMENT)],
            peers,
            segments: vec![(SEGMENT, 1)],
            ..World::default()
        };
        let mut tables = MemoryTables::default();
        world.install(&mut tables);
        let mut flooded = HostFrame::new(inner.clone());
        act::process_port(&mut flooded, &tables, 10);
        let sent: Vec<_> = flooded.sent.into_iter().map(|(egress, bytes)| settled(egress, bytes)).collect();
        assert_eq!(sent, wire::flooded(&world, &inner), "from {first} on");
        assert_eq!(tables.all_dropped(), 0);
    }
}

/// Copies that are to be finished bear their target as a mark, and no others bear any.
#[test]
fn only_copies_to_be_finished_are_marked() {
    let world = World {
        ports: vec![PortSpec::new(0, SEGMENT), PortSpec::new(1, SEGMENT)],
        peers: vec![
            PeerSpec { checksum: true, ..PeerSpec::new(0, SEGMENT, endpoint(0), KEY) },
            PeerSpec::new(1, SEGMENT, endpoint(1), KEY),
            PeerSpec::new(2, SEGMENT, endpoint(2), KEY).numbered(),
            PeerSpec { checksum: true, ..PeerSpec::new(3, SEGMENT, endpoint(3), KEY) },
        ],
        segments: vec![(SEGMENT, segment_flag::VALID | segment_flag::HUB)],
        slow: SLOW,
        ..World::default()
    };
    let mut tables = MemoryTables::default();
    world.install(&mut tables);
    let mark = |id, hops| Mark { target: Target::adjacency(id), hops }.to_bits();
    let inner = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);

    let mut flooded = HostFrame::new(inner.clone());
    act::process_port(&mut flooded, &tables, 10);
    assert_eq!(flooded.marks, [0, mark(0, 255), mark(2, 255), mark(3, 255), 0]);
    // They count when they come back.
    for (id, packets) in [(0, 0), (1, 1), (2, 0), (3, 0)] {
        assert_eq!(tables.traffic(Target::adjacency(id)).transmit_packets, packets);
    }

    let mut relayed = HostFrame::new(Outer::from_peer(endpoint(1), KEY).wrap(&inner));
    act::process_underlay(&mut relayed, &tables);
    assert_eq!(relayed.marks, [0, 0, mark(0, 30), mark(2, 30), mark(3, 30)]);
    assert!(relayed.sent.iter().all(|(_, bytes)| *bytes == inner));
}

/// A peer whose frames are to be finished, in a segment that does not say so yet: nobody is
/// left out without being counted.
#[test]
fn a_segment_that_does_not_know_yet() {
    let world = World {
        ports: vec![PortSpec::new(0, SEGMENT)],
        peers: vec![
            PeerSpec { checksum: true, ..PeerSpec::new(0, SEGMENT, endpoint(0), KEY) },
            PeerSpec::new(1, SEGMENT, endpoint(1), KEY),
        ],
        segments: vec![(SEGMENT, segment_flag::VALID)],
        slow: SLOW,
        ..World::default()
    };
    let mut tables = MemoryTables::default();
    world.install(&mut tables);
    let flags = &tables.segment(SEGMENT).expect("it is there").flags;
    flags.store(segment_flag::VALID, core::sync::atomic::Ordering::Relaxed);
    let mut flooded = HostFrame::new(frame(MacAddr::BROADCAST, station(1), 0x0806, 46));
    act::process_port(&mut flooded, &tables, 10);
    assert_eq!(flooded.sent.len(), 1);
    assert_eq!(tables.dropped(Target::adjacency(0), Direction::Transmit, DropReason::Headroom), 1);
}

/// Without a slow interface, what must go there does not go.
#[test]
fn without_a_slow_interface() {
    let world = World { slow: 0, ..World::standard() };
    let mut tables = MemoryTables::default();
    world.install(&mut tables);
    for (station_of, len, reason) in [(25, 46, DropReason::Headroom), (29, 1000, DropReason::TooBig)] {
        let mut frame = HostFrame::new(frame(station(station_of), station(1), 0x0806, len));
        let action = act::process_port(&mut frame, &tables, 32);
        assert_eq!(action, HostAction::Dropped);
        let peer = Target::adjacency(station_of.into());
        assert_eq!(tables.dropped(peer, Direction::Transmit, reason), 1);
    }
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
