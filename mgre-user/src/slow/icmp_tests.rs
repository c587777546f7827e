//! Checked against a parser and checksums that are not ours.

use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, LaxSlicedPacket,
    NetSlice, PacketBuilder, SlicedPacket, TransportSlice, icmpv4,
};
use proptest::prelude::*;

use super::*;

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 2];
const V4: ([u8; 4], [u8; 4]) = ([10, 77, 0, 1], [10, 77, 0, 2]);
const V6: ([u8; 16], [u8; 16]) = (
    [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
);

/// A TCP packet with so many bytes of payload.
fn tcp(v6: bool, payload: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(OURS, THEIRS);
    let builder = if v6 { builder.ipv6(V6.0, V6.1, 64) } else { builder.ipv4(V4.0, V4.1, 64) };
    let mut frame = Vec::new();
    builder.tcp(1234, 80, 99, 1000).write(&mut frame, &vec![0x5a; payload]).expect("written");
    frame
}

/// A packet that carries an ICMP message of this type.
fn icmp(v6: bool, kind: u8) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(OURS, THEIRS);
    let mut frame = Vec::new();
    let rest = [0; 4];
    let payload = [0; 100];
    if v6 {
        builder.ipv6(V6.0, V6.1, 64).icmpv6_raw(kind, 0, rest).write(&mut frame, &payload).expect("written");
    } else {
        builder.ipv4(V4.0, V4.1, 64).icmpv4_raw(kind, 0, rest).write(&mut frame, &payload).expect("written");
    }
    frame
}

fn answer(frame: &[u8], mtu: u32, tag: u32) -> Vec<u8> {
    Oversize::new(frame).expect("to be answered").answer(mtu, tag)
}

#[test]
fn fragmentation_needed() {
    let frame = tcp(false, 1460);
    let told = answer(&frame, 1422, 0);
    let sliced = SlicedPacket::from_ethernet(&told).expect("a frame");
    let ethernet = sliced
        .link
        .as_ref()
        .and_then(|link| link.to_header())
        .and_then(|link| link.ethernet2())
        .expect("Ethernet");
    assert_eq!((ethernet.source, ethernet.destination), (THEIRS, OURS));
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no IPv4") };
    let ip = ip.header().to_header();
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    assert_eq!((ip.source, ip.destination, ip.protocol), (V4.1, V4.0, IpNumber::ICMP));
    assert_eq!((usize::from(ip.total_len), told.len()), (ICMP_MOST, 14 + ICMP_MOST));
    let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else { panic!("no ICMP") };
    let unreachable = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1422 };
    assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(unreachable.clone()));
    let wanted = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(unreachable), icmp.payload());
    assert_eq!(icmp.checksum(), wanted.checksum);
    assert_eq!(icmp.payload(), &frame[14..14 + ICMP_MOST - 28]);
}

#[test]
fn packet_too_big() {
    let frame = tcp(true, 1440);
    let told = answer(&frame, 1402, 0);
    let sliced = SlicedPacket::from_ethernet(&told).expect("a frame");
    let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("no IPv6") };
    let ip = ip.header();
    assert_eq!((ip.source(), ip.destination()), (V6.1, V6.0));
    assert_eq!(told.len(), 14 + ICMPV6_MOST);
    let Some(TransportSlice::Icmpv6(icmp)) = &sliced.transport else { panic!("no ICMPv6") };
    assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1402 });
    assert!(icmp.is_checksum_valid(ip.source(), ip.destination()));
    assert_eq!(icmp.payload(), &frame[14..14 + ICMPV6_MOST - 48]);
}

#[test]
fn no_ipv6_sender_is_told_less_than_1280() {
    for (mtu, said) in [(0, 1280), (1279, 1280), (1281, 1281)] {
        let told = answer(&tcp(true, 1440), mtu, 0);
        assert_eq!(told[58..62], u32::to_be_bytes(said));
    }
    for (mtu, said) in [(0, 68), (1279, 1279), (100_000, 65535)] {
        let told = answer(&tcp(false, 1440), mtu, 0);
        assert_eq!(told[40..42], u16::to_be_bytes(said));
    }
}

#[test]
fn tags_are_kept_in_the_frame_and_beside_it() {
    let frame = tcp(false, 1460);
    let mut tagged = frame[..12].to_vec();
    tagged.extend([0x81, 0, 0x60, 9]);
    tagged.extend(&frame[12..]);
    let told = answer(&tagged, 1400, 0x88a8_2007);
    assert_eq!(told[12..22], [0x88, 0xa8, 0x20, 7, 0x81, 0, 0x60, 9, 8, 0]);
    let untagged = answer(&frame, 1400, 0);
    assert_eq!(told[22..], untagged[14..]);
    let sliced = SlicedPacket::from_ethernet(&told).expect("a frame");
    assert!(matches!(sliced.transport, Some(TransportSlice::Icmpv4(_))));
}

#[test]
fn what_pads_a_frame_is_not_quoted_and_what_is_missing_is_not_invented() {
    let mut padded = tcp(false, 10);
    let length = padded.len();
    padded.extend([0xee; 20]);
    assert_eq!(answer(&padded, 68, 0).len(), length + 28);
    // Only the beginning was kept.
    let frame = tcp(false, 1460);
    assert_eq!(answer(&frame[..14 + 28], 1400, 0)[42..], frame[14..42]);
    assert!(Oversize::new(&frame[..14 + 27]).is_none(), "too little to tell whose it was");
    let frame = tcp(true, 1460);
    assert!(Oversize::new(&frame[..14 + 48]).is_some() && Oversize::new(&frame[..14 + 47]).is_none());
}

#[test]
fn errors_are_not_answered() {
    // RFC 1122 3.2.2: no ICMP error about an ICMP error.
    let answered: Vec<u8> = (0..=255).filter(|kind| Oversize::new(&icmp(false, *kind)).is_some()).collect();
    assert_eq!(answered, [0, 8, 9, 10, 13, 14, 15, 16, 17, 18]);
    // RFC 4443 2.4 (e.1), (e.2).
    for kind in 0..=255 {
        let answered = Oversize::new(&icmp(true, kind)).is_some();
        assert_eq!(answered, kind >= 128 && kind != 137, "{kind}");
    }
}

/// IPv6 extension headers before an ICMPv6 message.
fn extended(headers: &[u8], first: u8, kind: u8) -> Vec<u8> {
    let mut frame = icmp(true, kind);
    frame.splice(54..54, headers.iter().copied());
    let length = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame[20] = first;
    frame
}

#[test]
fn errors_behind_extension_headers_are_not_answered() {
    let hop_by_hop = [58, 1, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let routing_and_options = [60, 0, 0, 0, 0, 0, 0, 0, 58, 0, 1, 4, 0, 0, 0, 0];
    let first_fragment = [58, 0, 0, 1, 0, 0, 0, 9];
    let later_fragment = [58, 0, 0, 8, 0, 0, 0, 9];
    for (headers, first) in [(&hop_by_hop[..], 0), (&routing_and_options, 43), (&first_fragment, 44)] {
        assert!(Oversize::new(&extended(headers, first, 1)).is_none(), "{first}");
        assert!(Oversize::new(&extended(headers, first, 128)).is_some(), "{first}");
    }
    assert!(Oversize::new(&extended(&later_fragment, 44, 128)).is_none());
    let endless = [0, 0, 1, 4, 0, 0, 0, 0].repeat(EXTENSIONS_MOST + 1);
    assert!(Oversize::new(&extended(&endless, 0, 128)).is_none());
}

#[test]
fn groups_nobody_and_fragments_are_not_answered() {
    let change = |at: usize, bytes: &[u8]| {
        let mut frame = tcp(false, 1460);
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame[24..26].fill(0);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        Oversize::new(&frame).is_some()
    };
    assert!(change(26, &V4.0));
    for (what, at, bytes) in [
        ("broadcast frame", 0, &[0xff; 6][..]),
        ("multicast frame", 0, &[1, 0, 0x5e, 0, 0, 1]),
        ("frame from a group", 6, &[3, 0, 0, 0, 0, 1]),
        ("frame from nobody", 6, &[0; 6]),
        ("from nobody", 26, &[0; 4]),
        ("from this network", 26, &[0, 1, 2, 3]),
        ("from a loopback address", 26, &[127, 0, 0, 1]),
        ("from a group", 26, &[224, 0, 0, 1]),
        ("from a reserved address", 26, &[240, 0, 0, 1]),
        ("from everybody", 26, &[255; 4]),
        ("to a group", 30, &[239, 1, 2, 3]),
        ("to everybody", 30, &[255; 4]),
        ("a later fragment", 20, &[0, 1]),
        ("the last fragment", 20, &[0x1f, 0xff]),
    ] {
        assert!(!change(at, bytes), "{what}");
    }
    assert!(change(20, &[0x20, 0]), "the first fragment");
}

#[test]
fn ipv6_groups_and_nobody_are_not_answered() {
    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let loopback = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    for (at, bytes) in [(22, [0; 16]), (22, all_nodes), (22, loopback), (38, all_nodes), (38, [0; 16])] {
        let mut frame = tcp(true, 1460);
        frame[at..at + 16].copy_from_slice(&bytes);
        assert!(Oversize::new(&frame).is_none(), "{bytes:?} at {at}");
    }
}

#[test]
fn damaged_headers_are_not_answered() {
    let mut frame = tcp(false, 1460);
    frame[22] ^= 1;
    assert!(Oversize::new(&frame).is_none(), "a wrong checksum");
    for (v6, first) in [(false, 0x65), (false, 0x44), (true, 0x40)] {
        let mut frame = tcp(v6, 1460);
        frame[14] = first;
        assert!(Oversize::new(&frame).is_none());
    }
    let mut arp = tcp(false, 1460);
    arp[12..14].copy_from_slice(&[8, 6]);
    assert!(Oversize::new(&arp).is_none());
    let mut tags = tcp(false, 1460);
    tags.splice(12..12, [0x81, 0, 0, 1].repeat(TAGS_MOST + 1));
    assert!(Oversize::new(&tags).is_none(), "too many tags");
}

#[test]
fn senders_differ_by_mac_and_address() {
    let frame = tcp(false, 1460);
    let sender = Oversize::new(&frame).expect("to be answered").sender();
    assert_eq!(sender, (MacAddr(OURS), IpAddr::from(V4.0)));
}

proptest! {
    /// Nothing that comes in makes it panic, and what it says is a whole packet of the right length.
    #[test]
    fn arbitrary_bytes_do_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..1400), kind in 0_usize..3, mtu: u32, tag: u32,
    ) {
        let mut frame = bytes;
        if frame.len() > 40 {
            frame[0] &= 0xfe;
            frame[6] &= 0xfe;
            let (first, protocol) = [(0x45, 0x0800_u16), (0x60, 0x86dd), (0x46, 0x0800)][kind];
            frame[14] = first;
            frame[12..14].copy_from_slice(&protocol.to_be_bytes());
            if kind == 0 {
                frame[24..26].fill(0);
                let sum = checksum(&frame[14..34]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
        }
        if let Some(oversize) = Oversize::new(&frame) {
            let told = oversize.answer(mtu, tag & 0xffff);
            let packet = &told[14 + 4 * usize::from(tag & 0xffff != 0)..];
            let (ip, payload) = IpHeaders::from_slice(packet).expect("a packet");
            let (most, icmp) = match &ip {
                IpHeaders::Ipv4(..) => (ICMP_MOST, Ipv4Header::MIN_LEN),
                IpHeaders::Ipv6(..) => (ICMPV6_MOST, Ipv6Header::LEN),
            };
            prop_assert!(packet.len() <= most && packet.len() == icmp + payload.payload.len());
            LaxSlicedPacket::from_ethernet(&told).expect("a frame");
        }
    }
}
