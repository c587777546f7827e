//! Cuts an outer packet that is too long for its way. Pure.
//!
//! This is not left to the kernel: what a raw socket sends is cut by what the kernel believes of the path, which is
//! any word that it gets, and not only what [`super::quote`] takes.

use mgre_common::checksum::checksum;
use mgre_common::wire::{IPV4_LEN, IPV6_LEN, IpProtocol};

/// Length of an IPv6 fragment header.
const FRAGMENT_LEN: usize = 8;
/// All fragments but the last are a multiple of this long.
const UNIT: usize = 8;
const MORE_FRAGMENTS: u16 = 0x2000;

/// Cuts a packet, from its IP header on, into pieces of `mtu` bytes at most. One that fits stays as it is.
/// `identification` is one that no other packet between the two hosts had lately.
///
/// None if it is no packet that is sent so: it has IP options or is a fragment, or `mtu` is too small for anything.
pub fn cut(packet: &[u8], mtu: u32, identification: u32) -> Option<Vec<Vec<u8>>> {
    match packet.first()? >> 4 {
        4 => cut_v4(packet, mtu as usize, identification as u16),
        6 => cut_v6(packet, mtu as usize, identification),
        _ => None,
    }
}

/// The payload in pieces, each with its offset and whether there are more.
fn pieces(payload: &[u8], room: usize) -> Option<impl Iterator<Item = (u16, bool, &[u8])>> {
    let room = room & !(UNIT - 1);
    let count = payload.len().div_ceil(room.max(1));
    let numbered = payload.chunks(room.max(1)).enumerate();
    (room > 0)
        .then(|| numbered.map(move |(index, piece)| ((index * room / UNIT) as u16, index + 1 < count, piece)))
}

fn cut_v4(packet: &[u8], mtu: usize, identification: u16) -> Option<Vec<Vec<u8>>> {
    let (header, rest) = packet.split_first_chunk::<IPV4_LEN>()?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    if header[0] != 0x45 || total < IPV4_LEN || fragment & (MORE_FRAGMENTS | 0x1fff) != 0 {
        return None;
    }
    let payload = rest.get(..total - IPV4_LEN)?;
    if total <= mtu {
        return Some(vec![packet[..total].to_vec()]);
    }
    let own = u16::from_be_bytes([header[4], header[5]]);
    // Zero has the kernel choose, for each fragment another.
    let identification = if own != 0 { own } else { identification.max(1) };
    let pieces = pieces(payload, mtu.checked_sub(IPV4_LEN)?)?;
    let packets = pieces.map(|(offset, more, piece)| {
        let mut header = *header;
        header[2..4].copy_from_slice(&((IPV4_LEN + piece.len()) as u16).to_be_bytes());
        header[4..6].copy_from_slice(&identification.to_be_bytes());
        let more = if more { MORE_FRAGMENTS } else { 0 };
        header[6..8].copy_from_slice(&(fragment | more | offset).to_be_bytes());
        header[10..12].fill(0);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [&header, piece].concat()
    });
    Some(packets.collect())
}

fn cut_v6(packet: &[u8], mtu: usize, identification: u32) -> Option<Vec<Vec<u8>>> {
    let (header, rest) = packet.split_first_chunk::<IPV6_LEN>()?;
    let protocol = header[6];
    if ![IpProtocol::GRE, IpProtocol::UDP].contains(&IpProtocol(protocol)) {
        return None;
    }
    let payload = rest.get(..u16::from_be_bytes([header[4], header[5]]).into())?;
    if IPV6_LEN + payload.len() <= mtu {
        return Some(vec![packet[..IPV6_LEN + payload.len()].to_vec()]);
    }
    let pieces = pieces(payload, mtu.checked_sub(IPV6_LEN + FRAGMENT_LEN)?)?;
    let packets = pieces.map(|(offset, more, piece)| {
        let mut header = *header;
        header[4..6].copy_from_slice(&((FRAGMENT_LEN + piece.len()) as u16).to_be_bytes());
        header[6] = IpProtocol::FRAGMENT.0;
        let mut packet = header.to_vec();
        packet.extend([protocol, 0]);
        packet.extend((offset << 3 | u16::from(more)).to_be_bytes());
        packet.extend(identification.to_be_bytes());
        packet.extend(piece);
        packet
    });
    Some(packets.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::defrag::IpDefragPool;
    use etherparse::{IpNumber, Ipv4Header, Ipv6Header, SlicedPacket};
    use proptest::prelude::*;

    fn v4(payload: &[u8], dont_fragment: bool, identification: u16) -> Vec<u8> {
        let mut header =
            Ipv4Header::new(payload.len() as u16, 64, IpNumber::GRE, [192, 0, 2, 1], [192, 0, 2, 2])
                .expect("a header");
        header.dont_fragment = dont_fragment;
        header.identification = identification;
        header.header_checksum = header.calc_header_checksum();
        let mut packet = Vec::new();
        header.write(&mut packet).expect("written");
        packet.extend(payload);
        packet
    }

    fn v6(payload: &[u8]) -> Vec<u8> {
        let header = Ipv6Header {
            payload_length: payload.len() as u16,
            next_header: IpNumber::GRE,
            hop_limit: 64,
            source: [1; 16],
            destination: [2; 16],
            ..Ipv6Header::default()
        };
        let mut packet = Vec::new();
        header.write(&mut packet).expect("written");
        packet.extend(payload);
        packet
    }

    /// What another implementation makes of the fragments.
    fn reassembled(fragments: &[Vec<u8>]) -> Vec<u8> {
        let mut pool = IpDefragPool::<(), ()>::new();
        let mut whole = None;
        for fragment in fragments {
            assert!(whole.is_none(), "whole before the last fragment");
            let sliced = SlicedPacket::from_ip(fragment).expect("a packet");
            whole = pool.process_sliced_packet(&sliced, (), ()).expect("a fragment");
        }
        whole.expect("whole").payload
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        let packet = v4(&[7; 100], false, 3);
        assert_eq!(cut(&packet, 120, 9), Some(vec![packet.clone()]));
        let packet = v6(&[7; 100]);
        assert_eq!(cut(&packet, 140, 9), Some(vec![packet.clone()]));
        // What pads a frame is not the packet's.
        let mut padded = packet.clone();
        padded.extend([0; 6]);
        assert_eq!(cut(&padded, 140, 9), Some(vec![packet]));
    }

    #[test]
    fn header_fields_of_ipv4_fragments() {
        let fragments = cut(&v4(&[7; 1500], true, 0), 1300, 0x1234_5678).expect("cut");
        let headers: Vec<_> =
            fragments.iter().map(|f| Ipv4Header::from_slice(f).expect("a header").0).collect();
        assert_eq!(headers.len(), 2);
        for header in &headers {
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!((header.identification, header.dont_fragment), (0x5678, true));
        }
        // 1300 - 20 = 1280, a multiple of eight.
        assert_eq!((headers[0].total_len, headers[0].more_fragments), (1300, true));
        assert_eq!((headers[1].total_len, headers[1].more_fragments), (240, false));
        assert_eq!(headers[1].fragment_offset.value(), 160);
        // The datapath's identification stays.
        let fragments = cut(&v4(&[7; 1500], false, 77), 1300, 5).expect("cut");
        assert_eq!(Ipv4Header::from_slice(&fragments[1]).expect("a header").0.identification, 77);
    }

    #[test]
    fn what_is_not_sent_so_is_refused() {
        let mut fragment = v4(&[7; 1500], false, 1);
        fragment[6] |= 0x20;
        let mut options = v4(&[7; 1500], false, 1);
        options[0] = 0x46;
        let mut short = v4(&[7; 1500], false, 1);
        short.pop();
        for packet in [fragment, options, short, Vec::new(), vec![0x50; 100]] {
            assert_eq!(cut(&packet, 1300, 1), None);
        }
        assert_eq!(cut(&v4(&[7; 100], false, 1), 27, 1), None, "no room for eight bytes");
        assert_eq!(cut(&v6(&[7; 100]), 40, 1), None);
    }

    proptest! {
        #[test]
        fn fragments_fit_and_another_implementation_puts_them_together(
            payload in proptest::collection::vec(any::<u8>(), 1..4000), mtu in 68_u32..1600, id: u32, six: bool,
        ) {
            let packet = if six { v6(&payload) } else { v4(&payload, false, 0) };
            let fragments = cut(&packet, mtu, id).expect("cut");
            prop_assert!(fragments.iter().all(|fragment| fragment.len() <= mtu as usize));
            if fragments.len() > 1 {
                prop_assert_eq!(reassembled(&fragments), payload);
            }
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes: Vec<u8>, first in 0x40_u8..0x70, mtu in 0_u32..200, id: u32) {
            cut(&bytes, mtu, id);
            let mut bytes = bytes;
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            cut(&bytes, mtu, id);
        }
    }
}
