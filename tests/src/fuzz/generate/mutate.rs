//! Changes to a frame that nobody sends.

use mgre_ebpf::host::cases::Entrance;
use rand::Rng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;

use crate::model::{Input, checksum_of};

/// Where headers end, so that most changes hit some.
const HEADERS: usize = 120;

/// Changes it once or a few times.
pub(super) fn mutate(input: &mut Input, other: Option<&[u8]>, rng: &mut SmallRng) {
    for _ in 0..rng.random_range(1..4) {
        change(&mut input.bytes, other, rng);
    }
    let from_underlay = matches!(input.entrance, Entrance::Underlay | Entrance::Slow(0));
    // Else most of them would end as a wrong checksum.
    if from_underlay && rng.random_bool(0.85) {
        mend(&mut input.bytes, rng.random_bool(0.7));
    }
}

fn change(bytes: &mut Vec<u8>, other: Option<&[u8]>, rng: &mut SmallRng) {
    let len = bytes.len();
    if len == 0 {
        bytes.push(rng.random());
        return;
    }
    let end = len.min(if rng.random_bool(0.9) { HEADERS } else { len });
    let at = rng.random_range(0..end);
    match rng.random_range(0..12) {
        0..4 => bytes[at] ^= 1 << rng.random_range(0_u32..8),
        4..6 => bytes[at] = rng.random(),
        6 => bytes[at] = *[0, 1, 0x7f, 0x80, 0xff, 4, 6, 17, 47, 0x45].choose(rng).unwrap_or(&0),
        7 => {
            let end = (at + 2).min(len);
            let by = *[1_u16, 2, 4, 8, 14, 0xffff, 0xfffe, 0xfff0].choose(rng).unwrap_or(&1);
            if end - at == 2 {
                let word = u16::from_be_bytes([bytes[at], bytes[at + 1]]).wrapping_add(by);
                bytes[at..end].copy_from_slice(&word.to_be_bytes());
            }
        }
        8 => bytes.truncate(at),
        9 => {
            let less = rng.random_range(0..len.min(30));
            bytes.truncate(len - less);
        }
        10 => {
            let more = rng.random_range(1..40);
            bytes.resize(len + more, rng.random());
        }
        _ => match other {
            Some(other) if !other.is_empty() => {
                let from = rng.random_range(0..other.len());
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                bytes.insert(at, rng.random());
            }
        },
    }
}

/// Makes the lengths in an outer IPv4 header, perhaps, and its checksum right again.
fn mend(bytes: &mut [u8], lengths: bool) {
    if bytes.len() < 34 || bytes[12..14] != [8, 0] {
        return;
    }
    if lengths {
        let len = ((bytes.len() - 14) as u16).to_be_bytes();
        bytes[16..18].copy_from_slice(&len);
    }
    bytes[24..26].fill(0);
    let sum = checksum_of(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
}
