//! Where the kernel cannot do what it is asked: the frame ends, and is counted.

use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use crate::act;
use crate::host::frame::{Failures, HostAction, HostFrame};
use crate::host::packet::{Outer, frame, tcp_v4};
use crate::host::tables::{Drop, MemoryTables};
use crate::host::world::{PEER_A, PEER_B, UNDERLAY, World, station};

fn tables() -> MemoryTables {
    let mut tables = MemoryTables::default();
    World::standard().install(&mut tables);
    tables
}

fn drops(tables: &MemoryTables) -> Vec<(Drop, u64)> {
    tables.drops.borrow().iter().map(|(drop, times)| (*drop, *times)).collect()
}

#[test]
fn strip_fails() {
    let failures = Failures { strip: true, ..Failures::default() };
    for destination in [station(1), station(99), MacAddr::BROADCAST] {
        let tables = tables();
        let inner = frame(destination, station(3), 0x0806, 46);
        let packet = Outer::from_peer(PEER_A, Some(7)).wrap(&inner);
        let mut frame = HostFrame::new(packet).with_failures(failures.clone());
        assert_eq!(act::process_underlay(&mut frame, &tables), HostAction::Dropped);
        assert_eq!(frame.sent, []);
        let drop = (Target::adjacency(0), Direction::Receive, DropReason::Headroom);
        assert_eq!(drops(&tables), [(drop, 1)]);
        assert_eq!(tables.traffic(Target::port(0)).transmit_packets, 0);
    }
}

#[test]
fn encapsulation_fails() {
    let tables = tables();
    let failures = Failures { encapsulate: true, ..Failures::default() };
    // What is left of a superframe is nothing that could be cut.
    for segment_size in [0, 1000] {
        let mut frame = HostFrame::new(tcp_v4(station(3), station(1), 60))
            .with_failures(failures.clone())
            .with_segment_size(segment_size);
        assert_eq!(act::process_port(&mut frame, &tables, 10), HostAction::Dropped);
    }
    let drop = (Target::adjacency(0), Direction::Transmit, DropReason::Headroom);
    assert_eq!(drops(&tables), [(drop, 2)]);
    assert_eq!(tables.traffic(Target::adjacency(0)).transmit_packets, 0, "it was not sent");
}

/// The ports have had theirs; no peer gets what is left of the frame.
#[test]
fn encapsulation_fails_while_flooding() {
    let tables = tables();
    let failures = Failures { encapsulate: true, ..Failures::default() };
    let bytes = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);
    let mut frame = HostFrame::new(bytes.clone()).with_failures(failures);
    assert_eq!(act::process_port(&mut frame, &tables, 10), HostAction::Dropped);
    let sent: Vec<_> = frame.sent.into_iter().map(|(egress, bytes)| (egress.ifindex, bytes)).collect();
    assert_eq!(sent, [(11, bytes)]);
    let lost = |id| ((Target::adjacency(id), Direction::Transmit, DropReason::Headroom), 1);
    assert_eq!(drops(&tables), [lost(0), lost(1)]);
    let floods = tables.floods.borrow();
    assert_eq!((floods[&1].flood_copies, floods[&1].flood_lost), (1, 2));
}

/// A copy that an interface does not take is lost for that one only.
#[test]
fn copies_fail() {
    let bytes = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);
    let flood = |copy_to: Vec<u32>| {
        let tables = tables();
        let failures = Failures { copy_to, ..Failures::default() };
        let mut frame = HostFrame::new(bytes.clone()).with_failures(failures);
        act::process_port(&mut frame, &tables, 10);
        (frame.sent.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(), drops(&tables), tables)
    };
    let (a, b) = (Outer::to_peer(PEER_A, Some(7)).wrap(&bytes), Outer::to_peer(PEER_B, Some(7)).wrap(&bytes));

    let (sent, dropped, tables) = flood(vec![11]);
    assert_eq!(sent, [a, b.clone()]);
    assert_eq!(dropped, [((Target::port(0), Direction::Receive, DropReason::RedirectFailed), 1)]);
    assert_eq!(tables.traffic(Target::port(1)).transmit_packets, 0);

    // The last one is no copy.
    let (sent, dropped, tables) = flood(vec![UNDERLAY]);
    assert_eq!(sent, [bytes.clone(), b]);
    assert_eq!(dropped, [((Target::adjacency(0), Direction::Transmit, DropReason::RedirectFailed), 1)]);
    let floods = tables.floods.borrow();
    assert_eq!((floods[&1].flood_copies, floods[&1].flood_lost), (2, 1));
}

/// Tables that point nowhere.
#[test]
fn records_are_missing() {
    use core::sync::atomic::Ordering;
    use mgre_common::table::FloodList;

    let broadcast = || HostFrame::new(frame(MacAddr::BROADCAST, station(1), 0x0806, 46));
    let internal = ((Target::port(0), Direction::Receive, DropReason::Internal), 1);

    // A segment beyond the table.
    let world = World {
        ports: World::standard()
            .ports
            .into_iter()
            .map(|mut port| {
                port.segment = 4000;
                port
            })
            .collect(),
        ..World::default()
    };
    let mut none = MemoryTables::default();
    world.install(&mut none);
    assert_eq!(act::process_port(&mut broadcast(), &none, 10), HostAction::Dropped);
    assert_eq!(drops(&none), [internal]);

    // A flood list that ends behind the slots.
    let tables = tables();
    let segment = crate::tables::Tables::segment(&tables, 1).expect("there is one");
    let list = FloodList { start: u32::MAX - 5, ports: 1, adjacencies: 0 };
    segment.flood.store(list.to_bits(), Ordering::Relaxed);
    assert_eq!(act::process_port(&mut broadcast(), &tables, 10), HostAction::Dropped);
    assert_eq!(tables.all_dropped(), 1);

    // A slot that says nothing.
    segment.flood.store(FloodList { start: 1500, ports: 1, adjacencies: 0 }.to_bits(), Ordering::Relaxed);
    tables.reset_counters();
    assert_eq!(act::process_port(&mut broadcast(), &tables, 10), HostAction::Dropped);
    assert_eq!(drops(&tables), [internal]);
}
