//! The maximum segment size of TCP that opens a connection.

use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use mgre_common::table::adjacency_flag;
use mgre_common::target::Target;
use proptest::prelude::*;

use crate::host::frame::HostFrame;
use crate::host::packet::Outer;
use crate::host::tables::MemoryTables;
use crate::host::world::{Entry, PEER_A, PeerSpec, PortSpec, World, station};
use crate::{act, express};

const KEY: Option<u32> = Some(7);

/// A segment of a port and a peer that clamps, over an underlay with this MTU.
fn tables(mtu: u32) -> MemoryTables {
    let flags = adjacency_flag::VALID | adjacency_flag::CLAMP_MSS;
    let peer = PeerSpec { flags, mtu: Some(mtu), express: true, ..PeerSpec::new(0, 1, PEER_A, KEY) };
    let world = World {
        ports: vec![PortSpec::new(0, 1)],
        peers: vec![peer],
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

/// A TCP segment, from one station to the other, with these options.
fn segment(ipv6: bool, there: bool, syn: bool, options: &[TcpOptionElement]) -> Vec<u8> {
    let (from, to) = if there { (station(1), station(2)) } else { (station(2), station(1)) };
    let builder = PacketBuilder::ethernet2(from.0, to.0);
    let mut bytes = Vec::new();
    let builder = if ipv6 {
        builder.ipv6([0xfd; 16], [0xfe; 16], 64)
    } else {
        builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let mut builder = builder.tcp(40_000, 80, 1, 1024);
    if syn {
        builder = builder.syn();
    }
    builder.options(options).expect("they fit").write(&mut bytes, &[]).expect("a vector takes all");
    bytes
}

/// The maximum segment size that a frame asks for; its checksum must be right.
fn size(frame: &[u8]) -> Option<u16> {
    let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
    let header = tcp.to_header();
    let wanted = match packet.net.expect("IP") {
        etherparse::NetSlice::Ipv4(ip) => {
            header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()).expect("fits")
        }
        etherparse::NetSlice::Ipv6(ip) => {
            header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload()).expect("fits")
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(header.checksum, wanted);
    header.options_iterator().find_map(|option| match option {
        Ok(TcpOptionElement::MaximumSegmentSize(size)) => Some(size),
        _ => None,
    })
}

/// What a frame asks for after it went into the tunnel, or came out of it.
fn after(mtu: u32, there: bool, frame: &[u8]) -> Option<u16> {
    let tables = tables(mtu);
    if there {
        let mut sent = HostFrame::new(frame);
        act::process_port(&mut sent, &tables, 10);
        let (_, packet) = sent.sent.pop().expect("it goes");
        return size(&packet[42..]);
    }
    let mut received = HostFrame::new(Outer::from_peer(PEER_A, KEY).wrap(frame));
    act::process_underlay(&mut received, &tables);
    let (_, frame) = received.sent.pop().expect("it goes");
    size(&frame)
}

#[test]
fn lowered_both_ways_to_what_fits() {
    use TcpOptionElement::{MaximumSegmentSize, Noop, Timestamp, WindowScale};
    for there in [true, false] {
        for (ipv6, fits) in [(false, 1500 - 28 - 14 - 40), (true, 1500 - 28 - 14 - 60)] {
            let ask = |size, before: &[TcpOptionElement]| {
                let options = [before, &[MaximumSegmentSize(size)]].concat();
                after(1500, there, &segment(ipv6, there, true, &options))
            };
            assert_eq!(ask(1460, &[]), Some(fits), "ipv6 {ipv6}, there {there}");
            assert_eq!(ask(1460, &[Noop]), Some(fits), "at an odd place");
            assert_eq!(ask(1460, &[Noop, WindowScale(7), Timestamp(1, 2)]), Some(fits), "behind others");
            assert_eq!(ask(fits, &[]), Some(fits));
            assert_eq!(ask(536, &[]), Some(536), "never raised");
        }
        let plain = segment(false, there, false, &[MaximumSegmentSize(1460)]);
        assert_eq!(after(1500, there, &plain), Some(1460), "no connection is opened");
        let none = segment(false, there, true, &[WindowScale(7)]);
        assert_eq!(after(1500, there, &none), None, "there is none");
    }
}

/// A tag beside the frame takes room as well; all options may be padding but the last; and those of IP count nothing.
#[test]
fn lowered_behind_tags_and_options() {
    let tables = tables(1500);
    let size_after = |mut sent: HostFrame, tables: &MemoryTables| {
        act::process_port(&mut sent, tables, 10);
        let (_, packet) = sent.sent.pop().expect("it goes");
        packet[42..].to_vec()
    };
    let ask = [TcpOptionElement::MaximumSegmentSize(1460)];
    let tagged = HostFrame::new(segment(false, true, true, &ask)).with_tag([0x81, 0, 0, 5]);
    let fits: u16 = 1500 - 28 - 14 - 40;
    assert_eq!(size(&size_after(tagged, &tables)), Some(fits - 4));

    let padded = [vec![TcpOptionElement::Noop; 36].as_slice(), &ask].concat();
    let padded = HostFrame::new(segment(false, true, true, &padded));
    assert_eq!(size(&size_after(padded, &tables)), Some(fits));

    let mut long = segment(false, true, true, &ask);
    // Twenty bytes of IP options; where TCP begins is all that matters here.
    long[14] = 0x4a;
    long.splice(34..34, [0; 20]);
    let long = size_after(HostFrame::new(long), &tables);
    assert_eq!(long[14 + 40 + 22..14 + 40 + 24], fits.to_be_bytes());
}

/// The early hook leaves what is to be changed to the last one, and nothing else.
#[test]
fn the_early_hook_leaves_openings_alone() {
    let tables = tables(1500);
    for (syn, sent) in [(true, 0), (false, 1)] {
        let bytes = segment(false, true, syn, &[TcpOptionElement::MaximumSegmentSize(1460)]);
        let mut early = HostFrame::new(bytes);
        express::process_port(&mut early, &tables, 10);
        assert_eq!(early.sent.len(), sent, "syn {syn}");
    }
}

proptest! {
    /// Options of any kind and length, true or not.
    #[test]
    fn nothing_is_read_or_written_outside(options in prop::collection::vec(any::<u8>(), 0..40), cut in 0_usize..60) {
        let mut bytes = segment(false, true, true, &[]);
        let len = options.len() / 4 * 4;
        bytes[46] = ((20 + len) as u8 / 4) << 4;
        bytes.extend(&options[..len]);
        bytes.truncate(bytes.len().saturating_sub(cut).max(14));
        let before = bytes.clone();
        let tables = tables(600);
        let mut sent = HostFrame::new(bytes);
        act::process_port(&mut sent, &tables, 10);
        for (_, packet) in &sent.sent {
            // All but the size and the checksum stays.
            let changed = packet[42..].iter().zip(&before).filter(|(new, old)| new != old).count();
            prop_assert!(changed <= 4, "{changed}");
        }
    }
}
