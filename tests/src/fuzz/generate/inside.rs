//! Frames as stations send them.

use mgre_common::wire::MacAddr;
use rand::Rng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;

/// A frame of about this length.
pub(super) fn frame(to: MacAddr, from: MacAddr, len: usize, rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 64);
    bytes.extend(to.0);
    bytes.extend(from.0);
    let tags = match rng.random_range(0..20) {
        0..3 => 1,
        3 => 2,
        4 if rng.random_bool(0.2) => 3,
        _ => 0,
    };
    for _ in 0..tags {
        bytes.extend(if rng.random_bool(0.7) { [0x81, 0] } else { [0x88, 0xa8] });
        bytes.extend(rng.random::<u16>().to_be_bytes());
    }
    let room = len.saturating_sub(bytes.len() + 2);
    match rng.random_range(0..20) {
        0..9 => ipv4(&mut bytes, room, rng),
        9..15 => ipv6(&mut bytes, room, rng),
        15 | 16 => {
            bytes.extend([8, 6]);
            bytes.extend([0, 1, 8, 0, 6, 4, 0, rng.random_range(1..3)]);
            fill(&mut bytes, room.max(28) - 8, rng);
        }
        _ => {
            let kind =
                *[0x88cc, 0x8847, 46, 0xfff1, 0x8808, 0x0800, 0x86dd, 0x8100].choose(rng).unwrap_or(&46);
            bytes.extend(u16::to_be_bytes(kind));
            fill(&mut bytes, room, rng);
        }
    }
    bytes
}

fn fill(bytes: &mut Vec<u8>, len: usize, rng: &mut SmallRng) {
    let start: u8 = rng.random();
    bytes.extend((0..len).map(|i| (i as u8).wrapping_mul(7).wrapping_add(start)));
}

/// Few addresses and ports, so that flows come again.
fn octets(bytes: &mut Vec<u8>, len: usize, rng: &mut SmallRng) {
    bytes.extend(vec![10; len - 1]);
    bytes.push(rng.random_range(0..8));
}

fn class(rng: &mut SmallRng) -> u8 {
    *[0, 0, 1, 2, 3, 0xb8, 0xba, 0xbb, rng.random()].choose(rng).unwrap_or(&0)
}

fn protocol(rng: &mut SmallRng) -> u8 {
    *[6, 6, 6, 17, 17, 1, 132, 58, 44, 0, 50].choose(rng).unwrap_or(&6)
}

fn ipv4(bytes: &mut Vec<u8>, room: usize, rng: &mut SmallRng) {
    let start = bytes.len() + 2;
    let options = if rng.random_bool(0.06) { rng.random_range(1..=10) } else { 0 };
    let protocol = protocol(rng);
    let len = room.max(20 + options * 4);
    bytes.extend([8, 0, 0x45 + options as u8, class(rng)]);
    bytes.extend((len as u16).to_be_bytes());
    bytes.extend(rng.random::<u16>().to_be_bytes());
    let fragment: u16 = *[0x4000, 0x4000, 0x4000, 0, 0, 0, 0x2000, 0x0007, 0x2010].choose(rng).unwrap_or(&0);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0]);
    octets(bytes, 4, rng);
    octets(bytes, 4, rng);
    fill(bytes, options * 4, rng);
    if rng.random_bool(0.8) {
        let sum = crate::model::checksum_of(&bytes[start..]);
        bytes[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
    } else {
        bytes[start + 10..start + 12].copy_from_slice(&rng.random::<[u8; 2]>());
    }
    transport(bytes, protocol, len - 20 - options * 4, rng);
}

fn ipv6(bytes: &mut Vec<u8>, room: usize, rng: &mut SmallRng) {
    let protocol = protocol(rng);
    let len = room.saturating_sub(40);
    let class = class(rng);
    bytes.extend([0x86, 0xdd, 0x60 | class >> 4, class << 4, 0, rng.random_range(0..3)]);
    bytes.extend((len as u16).to_be_bytes());
    bytes.extend([protocol, 64]);
    octets(bytes, 16, rng);
    octets(bytes, 16, rng);
    transport(bytes, protocol, len, rng);
}

fn transport(bytes: &mut Vec<u8>, protocol: u8, room: usize, rng: &mut SmallRng) {
    if protocol != 6 || room < 20 {
        octets_of_ports(bytes, room, rng);
        return;
    }
    let end = bytes.len() + room;
    octets_of_ports(bytes, 4, rng);
    fill(bytes, 8, rng);
    let options = options(room.min(60) - 20, rng);
    let flags = *[0x02, 0x12, 0x10, 0x18, 0x11].choose(rng).unwrap_or(&0x10);
    let offset = if rng.random_bool(0.97) { 5 + options.len() / 4 } else { rng.random_range(0..16) };
    bytes.extend([(offset as u8) << 4, flags, 0x20, 0]);
    bytes.extend(rng.random::<u16>().to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(options);
    let rest = end.saturating_sub(bytes.len());
    fill(bytes, rest, rng);
}

fn octets_of_ports(bytes: &mut Vec<u8>, room: usize, rng: &mut SmallRng) {
    if room < 4 {
        fill(bytes, room, rng);
        return;
    }
    bytes.extend([0x9c, rng.random_range(0..4), 0, 80]);
    fill(bytes, room - 4, rng);
}

/// TCP options, padded to words.
fn options(room: usize, rng: &mut SmallRng) -> Vec<u8> {
    let mut options = Vec::new();
    for _ in 0..rng.random_range(0..5) {
        match rng.random_range(0..12) {
            0..5 => {
                let size: u16 =
                    *[1460, 1440, 8960, 536, 100, 65535, rng.random()].choose(rng).unwrap_or(&1460);
                options.extend([2, 4]);
                options.extend(size.to_be_bytes());
            }
            5 => options.extend(vec![1; rng.random_range(1..26)]),
            6 => options.extend([3, 3, 7]),
            7 => options.extend([4, 2]),
            8 => options.extend([8, 10, 1, 2, 3, 4, 5, 6, 7, 8]),
            9 => options.push(1),
            10 => options.extend([rng.random(), rng.random_range(0..8)]),
            _ => options.push(0),
        }
    }
    options.truncate(room);
    options.resize(options.len() / 4 * 4, 1);
    options
}
