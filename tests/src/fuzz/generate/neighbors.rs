//! ARP and ND as hosts send them.

use mgre_common::table::segment_flag;
use mgre_common::wire::MacAddr;
use mgre_ebpf::host::world::World;
use mgre_ebpf::host::world::neighbors::{host_v4, host_v6};
use rand::Rng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;

use crate::model::checksum_of;

/// A question or a claim, now and then, mostly in segments that suppress them.
pub(super) fn message(world: &World, segment: u32, from: MacAddr, rng: &mut SmallRng) -> Option<Vec<u8>> {
    let suppresses =
        world.segments.iter().any(|(id, flags)| *id == segment && flags & segment_flag::SUPPRESS != 0);
    if !rng.random_bool(if suppresses { 0.35 } else { 0.01 }) {
        return None;
    }
    // As a rule, a station has the address with its number.
    let own = if rng.random_bool(0.8) { from.0[5] } else { rng.random_range(0..14) };
    let other = if rng.random_bool(0.95) { rng.random_range(0..14) } else { own };
    let mut message =
        if rng.random_bool(0.5) { arp(from, own, other, rng) } else { nd(from, own, other, rng) };
    if rng.random_bool(0.3) {
        let padding = rng.random_range(1..30);
        message.resize(message.len() + padding, 0);
    }
    Some(message)
}

fn destination(group: MacAddr, rng: &mut SmallRng) -> MacAddr {
    match rng.random_range(0..10) {
        0 => MacAddr([2, 0, 0, 0, 1, rng.random_range(0..14)]),
        1 => MacAddr::BROADCAST,
        _ => group,
    }
}

fn arp(from: MacAddr, own: u8, other: u8, rng: &mut SmallRng) -> Vec<u8> {
    let mut sender = host_v4(own);
    if rng.random_bool(0.05) {
        sender = *[[0; 4], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]].choose(rng).unwrap_or(&[0; 4]);
    }
    let mut frame = destination(MacAddr::BROADCAST, rng).0.to_vec();
    frame.extend(from.0);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, *[1, 1, 1, 2, 3].choose(rng).unwrap_or(&1)]);
    frame.extend(if rng.random_bool(0.97) { from.0 } else { rng.random() });
    frame.extend(sender);
    frame.extend(if rng.random_bool(0.8) { [0; 6] } else { rng.random() });
    frame.extend(host_v4(other));
    frame
}

fn nd(from: MacAddr, own: u8, other: u8, rng: &mut SmallRng) -> Vec<u8> {
    let asks = rng.random_bool(0.6);
    let to = MacAddr([0x33, 0x33, 0xff, 0, 0, other]);
    let mut frame = destination(to, rng).0.to_vec();
    frame.extend(from.0);
    frame.extend([0x86, 0xdd, 0x60 | rng.random_range(0..2), rng.random(), 0, 0, 0, 32, 58]);
    frame.push(if rng.random_bool(0.97) { 255 } else { 64 });
    frame.extend(if rng.random_bool(0.95) { host_v6(own) } else { [0; 16] });
    frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, other]);
    let flags = *[0, 0x20, 0x80, 0xa0, 0xe0].choose(rng).unwrap_or(&0);
    frame.extend([if asks { 135 } else { 136 }, 0, 0, 0, if asks { 0 } else { flags }, 0, 0, 0]);
    // A host speaks of himself, and asks for others.
    frame.extend(host_v6(if asks { other } else { own }));
    frame.extend([if asks { 1 } else { 2 }, 1]);
    frame.extend(from.0);
    let sum = checksum_of(&[&frame[22..54], &[0, 0, 0, 32, 0, 0, 0, 58], &frame[54..]].concat());
    if rng.random_bool(0.97) {
        frame[56..58].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}
