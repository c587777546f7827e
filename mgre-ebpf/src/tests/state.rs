//! What frames leave behind in the tables.

use core::sync::atomic::Ordering;

use mgre_common::event::HELD_INTERVAL_NS;
use mgre_common::fdb::{FdbKey, SEEN_STATIC};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;
use proptest::prelude::*;

use crate::frame::Side;
use crate::host::frame::{HostAction, HostFrame};
use crate::host::packet::{Outer, frame, tcp_v4};
use crate::host::tables::MemoryTables;
use crate::host::world::{PEER_A, World, peer_v4, peer_v6, station};
use crate::{act, express};

/// The key of a segment that is a hub.
const HUB: Option<u32> = Some(33);

fn tables() -> MemoryTables {
    let mut tables = MemoryTables::default();
    World::standard().install(&mut tables);
    tables.clock.seconds.store(50, Ordering::Relaxed);
    tables
}

fn seen(tables: &MemoryTables, number: u8) -> u32 {
    tables.slot(FdbKey::new(1, station(number))).expect("it is known").seen()
}

/// A source is touched where it is known to be, and nothing else is.
#[test]
fn ages() {
    let tables = tables();
    act::process_port(&mut HostFrame::new(tcp_v4(station(3), station(1), 9)), &tables, 10);
    assert_eq!((seen(&tables, 1), seen(&tables, 3)), (50, 1));

    let packet = Outer::from_peer(PEER_A, Some(7)).wrap(&tcp_v4(station(1), station(3), 9));
    act::process_underlay(&mut HostFrame::new(packet), &tables);
    assert_eq!(seen(&tables, 3), 50);

    // Elsewhere than known: the daemon decides.
    act::process_port(&mut HostFrame::new(tcp_v4(station(1), station(4), 9)), &tables, 11);
    assert_eq!(seen(&tables, 4), 1);

    // A static entry has no age.
    act::process_port(&mut HostFrame::new(tcp_v4(station(1), station(5), 9)), &tables, 11);
    assert_eq!(seen(&tables, 5), SEEN_STATIC);
    assert_eq!(tables.traffic(Target::adjacency(0)).last_receive_seconds, 50);
}

/// When the daemon does not answer for next hops any more, the kernel is asked where it can be.
#[test]
fn a_lapsed_lease() {
    let tables = tables();
    tables.clock.lease.store(0, Ordering::Relaxed);
    let side = |inner: Vec<u8>| {
        let mut frame = HostFrame::new(inner);
        match act::process_port(&mut frame, &tables, 10) {
            HostAction::Sent(egress) => egress.side,
            action => panic!("{action:?}"),
        }
    };
    assert_eq!(side(tcp_v4(station(3), station(1), 9)), Side::Neighbor);
    assert_eq!(side(frame(station(3), station(1), 0x0806, 46)), Side::Out, "the last known next hop");
    // A hub's packet that goes from IPv4 to IPv6 is none that the kernel would find a next hop for.
    for (outer, from, to) in
        [(Outer::from_peer(peer_v4(17), HUB), 17, 18), (Outer::from_peer(peer_v6(18), HUB), 18, 17)]
    {
        let mut packet = HostFrame::new(outer.wrap(&tcp_v4(station(to), station(from), 9)));
        match act::process_underlay(&mut packet, &tables) {
            HostAction::Sent(egress) => assert_eq!(egress.side, Side::Out, "the last known next hop"),
            action => panic!("{action:?}"),
        }
    }
    // Between ports there is no next hop.
    assert_eq!(side(tcp_v4(station(2), station(1), 9)), Side::Out);
    // The early hook leaves it to the last: whether an interface still takes frames from there, nobody looks.
    let mut tables = MemoryTables::default();
    World::express().install(&mut tables);
    for (lease, passes) in [(u64::MAX, false), (0, true)] {
        tables.clock.lease.store(lease, Ordering::Relaxed);
        for to in [2, 3] {
            let mut early = HostFrame::new(tcp_v4(station(to), station(1), 9));
            let action = express::process_port(&mut early, &tables, 10);
            assert_eq!(action == HostAction::Passed, passes, "to {to}: {action:?}");
        }
    }
}

proptest! {
    /// A frame leaves through ports of the segment that its key names, and no others.
    #[test]
    fn segments_never_mix(
        key in prop_oneof![Just(None), (0_u32..16).prop_map(Some)], number: u8, to in 0_u8..8, group: bool,
    ) {
        let world = World::standard();
        let tables = tables();
        let destination = if group { MacAddr::BROADCAST } else { station(to) };
        let inner = frame(destination, station(number), 0x0806, 46);
        let mut packet = HostFrame::new(Outer::from_peer(PEER_A, key).wrap(&inner));
        act::process_underlay(&mut packet, &tables);
        let peer = world.peers.iter().find(|peer| (peer.endpoint, peer.key) == (PEER_A, key));
        for (egress, _) in &packet.sent {
            let port = world.ports.iter().find(|port| port.ifindex == egress.ifindex);
            let port = port.expect("only ports are sent to");
            prop_assert_eq!(Some(port.segment), peer.map(|peer| peer.segment));
        }
    }
}

#[test]
fn few_frames_of_a_held_address_are_flooded() {
    let mut tables = MemoryTables::default();
    World::standard().install(&mut tables);
    let broadcast = frame(MacAddr::BROADCAST, station(5), 0x0806, 46);
    let send = |tables: &MemoryTables| {
        let mut frame = HostFrame::new(broadcast.clone());
        act::process_port(&mut frame, tables, 38);
        frame.sent.len()
    };
    let dropped =
        |tables: &MemoryTables| tables.dropped(Target::port(28), Direction::Receive, DropReason::Loop);
    tables.nanos.set(7 * HELD_INTERVAL_NS);
    assert_eq!((send(&tables), dropped(&tables)), (3, 0));
    tables.nanos.set(8 * HELD_INTERVAL_NS - 1);
    assert_eq!((send(&tables), dropped(&tables)), (0, 1));
    tables.nanos.set(8 * HELD_INTERVAL_NS);
    assert_eq!((send(&tables), dropped(&tables)), (3, 1));
}
