//! What holds for any frame.

use etherparse::{Ethernet2Header, IpNumber, Ipv4Header};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::act;
use crate::host::cases::{self, Entrance};
use crate::host::frame::{HostAction, HostFrame};
use crate::host::packet::with_payload;
use crate::host::tables::MemoryTables;
use crate::host::world::{
    Entry, LOCAL, NEAR_MAC, NEXT_HOP_MAC, PEER_A, PeerSpec, PortSpec, UNDERLAY, World, station,
};

fn standard() -> MemoryTables {
    let mut tables = MemoryTables::default();
    World::standard().install(&mut tables);
    tables
}

/// One port, one peer, and room for long frames.
fn pair(key: Option<u32>) -> MemoryTables {
    let world = World {
        ports: vec![PortSpec { max_frame: 9000, ..PortSpec::new(0, 1) }],
        peers: vec![PeerSpec { mtu: Some(10_000), ..PeerSpec::new(0, 1, PEER_A, key) }],
        segments: vec![(1, 1)],
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

/// Nothing disappears: what is not passed is sent or counted.
fn conserved(tables: &MemoryTables, frame: &HostFrame, action: HostAction) {
    let fates = frame.sent.len() as u64 + tables.all_dropped();
    match action {
        HostAction::Passed => assert_eq!(frame.sent, [], "sent and passed"),
        HostAction::Dropped | HostAction::Sent(_) => assert!(fates > 0, "lost"),
    }
    if let HostAction::Sent(egress) = action {
        assert_eq!(frame.sent.last().map(|(last, _)| *last), Some(egress));
    }
    let transmitted: u64 = tables.traffic.borrow().values().map(|row| row.transmit_packets).sum();
    // What bears a mark counts when it comes back.
    let counted = frame.marks.iter().filter(|mark| **mark == 0).count() as u64;
    assert_eq!(transmitted, counted, "every output is counted once");
}

fn outer_header_is_right(packet: &[u8], inner: &[u8], key: Option<u32>) {
    let (ethernet, rest) = Ethernet2Header::from_slice(packet).expect("Ethernet");
    assert_eq!((ethernet.source, ethernet.destination), (NEAR_MAC.0, NEXT_HOP_MAC.0));
    let (ip, gre) = Ipv4Header::from_slice(rest).expect("IPv4");
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    assert_eq!((ip.protocol, ip.identification, ip.dont_fragment), (IpNumber::GRE, 0, true));
    assert_eq!((ip.source, ip.destination), (LOCAL, PEER_A));
    assert_eq!(usize::from(ip.total_len), rest.len());
    let mut wanted = vec![if key.is_some() { 0x20 } else { 0 }, 0, 0x65, 0x58];
    wanted.extend(key.into_iter().flat_map(u32::to_be_bytes));
    wanted.extend_from_slice(inner);
    assert_eq!(gre, wanted);
}

proptest! {
    #[test]
    fn decap_undoes_encap(
        key: Option<u32>, ethertype: u16, payload in vec(any::<u8>(), 0..=8986), tag in any::<Option<[u8; 2]>>(),
    ) {
        let near = pair(key);
        let inner = with_payload(station(2), station(1), ethertype, &payload);
        let mut sent = HostFrame::new(inner.clone());
        let mut on_the_wire = inner;
        if let Some([high, low]) = tag {
            sent = sent.with_tag([0x81, 0, high, low]);
            on_the_wire.splice(12..12, [0x81, 0, high, low]);
        }
        prop_assume!(on_the_wire.len() <= 9000);
        let action = act::process_port(&mut sent, &near, 10);
        conserved(&near, &sent, action);
        let [(egress, packet)] = sent.sent.as_slice() else { panic!("one packet: {sent:?}") };
        prop_assert_eq!(egress.ifindex, UNDERLAY);
        outer_header_is_right(packet, &on_the_wire, key);

        // The far side is a mirror of this one.
        let mut packet = packet.clone();
        packet[26..30].copy_from_slice(&PEER_A);
        packet[..6].copy_from_slice(&NEAR_MAC.0);
        packet[30..34].copy_from_slice(&LOCAL);
        let mac_at = if key.is_some() { 42 } else { 38 };
        packet[mac_at..mac_at + 6].copy_from_slice(&station(1).0);
        packet[mac_at + 6..mac_at + 12].copy_from_slice(&station(2).0);
        on_the_wire[..6].copy_from_slice(&station(1).0);
        on_the_wire[6..12].copy_from_slice(&station(2).0);
        let far = pair(key);
        let mut received = HostFrame::new(packet);
        let action = act::process_underlay(&mut received, &far);
        conserved(&far, &received, action);
        let [(egress, delivered)] = received.sent.as_slice() else { panic!("one frame: {received:?}") };
        prop_assert_eq!(egress.ifindex, 10);
        prop_assert_eq!(delivered, &on_the_wire);
        prop_assert_eq!(far.all_dropped(), 0);
    }

    #[test]
    fn random_bytes_are_sent_counted_or_passed(
        bytes in vec(any::<u8>(), 0..200), ifindex in 9_u32..32, segment_size in prop_oneof![Just(0), any::<u32>().prop_map(|n| n % 65_536)],
        tag: Option<[u8; 4]>,
    ) {
        run(&bytes, Entrance::Port(ifindex), segment_size, tag);
        run(&bytes, Entrance::Underlay, segment_size, tag);
    }

    #[test]
    fn changed_packets_are_sent_counted_or_passed(
        which: prop::sample::Index, changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut: prop::sample::Index, grow in 0_usize..40, superframe: bool, fix_checksum: bool,
    ) {
        let cases = cases::all();
        let case = &cases[which.index(cases.len())];
        let mut bytes = case.bytes.clone();
        for (at, value) in changes {
            if !bytes.is_empty() {
                // Mostly within the headers.
                let len = bytes.len().min(80);
                bytes[at.index(len)] = value;
            }
        }
        if fix_checksum && bytes.len() >= 34 {
            bytes = crate::host::packet::change_ip(&bytes, |_| ());
        }
        bytes.extend(vec![0; grow]);
        run(&bytes, case.entrance, if superframe { 1000 } else { 0 }, case.tag);
        bytes.truncate(cut.index(bytes.len() + 1));
        run(&bytes, case.entrance, if superframe { 1000 } else { 0 }, case.tag);
    }

    /// What is sent back into a tunnel never came out of one.
    #[test]
    fn nothing_goes_from_tunnel_to_tunnel(destination: [u8; 6], number in 0_u8..12, known: bool) {
        let tables = standard();
        let destination = if known { station(number) } else { MacAddr(destination) };
        let inner = with_payload(destination, station(3), 0x0806, &[0; 46]);
        let packet = crate::host::packet::Outer::from_peer(PEER_A, Some(7)).wrap(&inner);
        let mut frame = HostFrame::new(packet);
        act::process_underlay(&mut frame, &tables);
        prop_assert!(frame.sent.iter().all(|(egress, _)| egress.ifindex != UNDERLAY));
    }
}

fn run(bytes: &[u8], entrance: Entrance, segment_size: u32, tag: Option<[u8; 4]>) {
    let tables = standard();
    let mut frame = HostFrame::new(bytes).with_segment_size(segment_size);
    if let Some(tag) = tag {
        frame = frame.with_tag(tag);
    }
    let action = match entrance {
        Entrance::Port(ifindex) => act::process_port(&mut frame, &tables, ifindex),
        Entrance::Underlay => act::process_underlay(&mut frame, &tables),
        Entrance::Slow(mark) => act::process_slow(&mut frame, &tables, mark),
    };
    // What comes by the slow interface without a mark and is not for us is a copy: the daemon
    // has it already.
    if entrance == Entrance::Slow(0) && action == HostAction::Dropped {
        return;
    }
    conserved(&tables, &frame, action);
}
