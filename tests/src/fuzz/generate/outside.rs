//! Packets as peers send them.

use mgre_ebpf::host::packet::{ENCAPSULATION_LIMIT, Outer, Sum, Udp, extended};
use mgre_ebpf::host::world::{LOCAL, LOCAL_V6, PeerSpec, STRANGER};
use rand::Rng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;

use crate::model::Moment;

/// A packet of a peer, or one that nearly is.
pub(super) fn packet(peer: &PeerSpec, frame: &[u8], moment: Moment, rng: &mut SmallRng) -> Vec<u8> {
    let key = match peer.key {
        Some(vsid) if peer.nvgre => Some(vsid << 8 | u32::from(rng.random::<u8>())),
        key => key,
    };
    let key = match rng.random_range(0..50) {
        0 => None,
        1 => Some(rng.random()),
        2 => Some(0),
        3 => key.map(|key| key ^ 1 << rng.random_range(0..32)),
        _ => key,
    };
    let mut outer = match peer.endpoint_v6 {
        Some(endpoint) => Outer::from_peer(endpoint, key),
        None => Outer::from_peer(peer.endpoint, key),
    };
    outer.ttl = *[61, 64, 255, 2, 3, 1, 0, rng.random()].choose(rng).unwrap_or(&61);
    outer.tos = *[0, 0, 0, 1, 2, 3, 0xb8, 0xbb, rng.random()].choose(rng).unwrap_or(&0);
    outer.dont_fragment = rng.random_bool(0.8);
    outer.identification = rng.random();
    let sum = |rng: &mut SmallRng| match rng.random_range(0..10) {
        0 => Sum::Wrong,
        1 | 2 => Sum::Zero,
        _ => Sum::Right,
    };
    if rng.random_bool(if peer.nvgre { 0.03 } else { 0.15 }) {
        outer = outer.checksum(sum(rng));
    }
    let numbered = if peer.nvgre {
        0.03
    } else if peer.sequence {
        0.7
    } else {
        0.1
    };
    if rng.random_bool(numbered) {
        let last = moment.received.map_or(0, |(number, _)| number);
        let step = *[0, 1, 2, u32::MAX, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 100].choose(rng).unwrap_or(&1);
        outer = outer.sequence(last.wrapping_add(step));
    }
    if rng.random_bool(0.25) {
        let destination_port = if rng.random_bool(0.97) { 4754 } else { rng.random() };
        outer.udp = Some(Udp { source_port: rng.random(), destination_port, checksum: sum(rng) });
    }
    match rng.random_range(0..200) {
        0 => outer.flags |= 1 << rng.random_range(0..16),
        1 => outer.protocol = *[0x0800, 0x86dd, 0x880b, rng.random()].choose(rng).unwrap_or(&0),
        2 if outer.source.is_ipv4() => outer.source = STRANGER.into(),
        3 if outer.source.is_ipv4() => outer.destination = STRANGER.into(),
        // IPv4 addresses where IPv6 ones stand, as no packet on a wire may have them.
        4 if outer.source.is_ipv4() => {
            outer.source = mapped(peer.endpoint).into();
            outer.destination = mapped(LOCAL).into();
        }
        5 if outer.source.is_ipv4() => {
            outer.source = mapped(peer.endpoint).into();
            outer.destination = LOCAL_V6.into();
        }
        _ => {}
    }
    let mut packet = outer.wrap(frame);
    if outer.source.is_ipv6() && rng.random_bool(0.15) {
        let mut content = ENCAPSULATION_LIMIT;
        if rng.random_bool(0.1) {
            content[rng.random_range(0..7)] = rng.random_range(0..8);
        }
        packet = extended(&packet, *[60, 60, 60, 0, 43, 44].choose(rng).unwrap_or(&60), content);
    }
    if rng.random_bool(0.1) {
        // Link-layer padding: zeros, or what was left in somebody's memory.
        let len = rng.random_range(1..50);
        packet.extend((0..len).map(|i| if i % 3 == 0 { 0x45 } else { 0xbb }));
    }
    packet
}

fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
