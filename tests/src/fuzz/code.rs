//! A [`Sample`] as bytes. Any bytes are a sample, so that a fuzzer that knows nothing of it can make some.
//!
//! | bytes | what |
//! | --- | --- |
//! | 2 | the network's number, little-endian, as all numbers here |
//! | 1 | where it comes in: 0 a port, 1 the underlay, 2 the slow interface; and the bits below |
//! | 4 | the port's interface, or the mark |
//! | 4 | the tag beside it, if there is one (bit 4) |
//! | 2 | the segment size, if it is a superframe (bit 5) |
//! | 11 | the last sequence number received, how many seconds ago, the next one sent, and frames just flooded, if any (bit 6) |
//! | | (from 0x8000 on: and one of a held address) |
//! | rest | the frame |
//!
//! Bit 7: the lease on next hops has lapsed.

use mgre_ebpf::host::cases::Entrance;

use super::Sample;
use crate::model::{Input, Moment};

const ENTRANCE: u8 = 3;
const TAG: u8 = 1 << 4;
const SUPERFRAME: u8 = 1 << 5;
const NUMBERS: u8 = 1 << 6;
const LAPSED: u8 = 1 << 7;
/// Of the frames just flooded.
const PACED: u16 = 1 << 15;

/// The longest frame that is taken: some more than the longest superframe.
const MAX_FRAME: usize = 70_000;

/// As bytes.
pub fn encode(sample: &Sample) -> Vec<u8> {
    let Input { entrance, bytes, segment_size, tag, moment } = &sample.input;
    let (kind, number) = match *entrance {
        Entrance::Port(ifindex) => (0, ifindex),
        Entrance::Underlay => (1, 0),
        Entrance::Slow(mark) => (2, mark),
    };
    let numbers = moment.received.is_some() || moment.sent != 0 || moment.flooded != 0 || moment.paced;
    let bit = |is: bool, bit: u8| if is { bit } else { 0 };
    let flags = kind
        | bit(tag.is_some(), TAG)
        | bit(*segment_size != 0, SUPERFRAME)
        | bit(numbers, NUMBERS)
        | bit(!moment.lease, LAPSED);
    let mut out = sample.world.to_le_bytes().to_vec();
    out.push(flags);
    out.extend(number.to_le_bytes());
    out.extend(tag.iter().flatten());
    if *segment_size != 0 {
        out.extend((*segment_size as u16).to_le_bytes());
    }
    if numbers {
        let (number, at) = moment.received.unwrap_or((0, 0));
        let ago = moment.received.map_or(u8::MAX, |_| moment.seconds.wrapping_sub(at).min(30) as u8);
        out.extend(number.to_le_bytes());
        out.push(ago);
        out.extend(moment.sent.to_le_bytes());
        out.extend((moment.flooded & !PACED | if moment.paced { PACED } else { 0 }).to_le_bytes());
    }
    out.extend(bytes);
    out
}

/// What is read off the front of bytes; what is not there is zero.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        bytes[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        bytes
    }
}

/// From bytes.
pub fn decode(bytes: &[u8]) -> Sample {
    let mut reader = Reader(bytes);
    let world = u16::from_le_bytes(reader.take());
    let [flags] = reader.take();
    let number = u32::from_le_bytes(reader.take());
    let has = |bit: u8| flags & bit != 0;
    let entrance = match flags & ENTRANCE {
        0 => Entrance::Port(number),
        1 => Entrance::Underlay,
        _ => Entrance::Slow(number),
    };
    let tag = has(TAG).then(|| reader.take());
    let segment_size = if has(SUPERFRAME) { u16::from_le_bytes(reader.take()).into() } else { 0 };
    let mut moment = Moment { lease: !has(LAPSED), ..Moment::default() };
    if has(NUMBERS) {
        let number = u32::from_le_bytes(reader.take());
        let [ago] = reader.take();
        moment.received = (ago <= 30).then(|| (number, moment.seconds - u32::from(ago)));
        moment.sent = u32::from_le_bytes(reader.take());
        let flooded = u16::from_le_bytes(reader.take());
        (moment.flooded, moment.paced) = (flooded & !PACED, flooded & PACED != 0);
    }
    let rest = &reader.0[..reader.0.len().min(MAX_FRAME)];
    Sample { world, input: Input { entrance, bytes: rest.to_vec(), segment_size, tag, moment } }
}

/// As hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// From hexadecimal digits.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_comes_back() {
        let moment = Moment {
            lease: false,
            received: Some((7, 48)),
            sent: 9,
            flooded: 33,
            paced: true,
            ..Moment::default()
        };
        for (entrance, segment_size, tag, moment) in [
            (Entrance::Port(12), 0, None, Moment::default()),
            (Entrance::Underlay, 1400, None, moment),
            (Entrance::Slow(0x8000_0001), 0, Some([0x81, 0, 0, 5]), Moment { received: None, ..moment }),
        ] {
            let input = Input { entrance, bytes: vec![1, 2, 3], segment_size, tag, moment };
            let sample = Sample { world: 300, input };
            assert_eq!(decode(&encode(&sample)), sample);
            assert_eq!(from_hex(&to_hex(&encode(&sample))), Some(encode(&sample)));
        }
        assert_eq!((from_hex("abc"), from_hex("zz")), (None, None));
        let _any_bytes_are_one = decode(&[]);
    }
}
