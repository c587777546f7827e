use core::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, UdpHeader};
use proptest::prelude::*;

use super::*;

const LINK: Link = Link {
    ifindex: 7,
    source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
    destination_mac: Some(MacAddr([2, 0, 0, 0, 0, 2])),
    mtu: 1500,
};

fn outer(key: Key) -> Outer {
    Outer {
        source: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        destination: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
        ttl: 64,
        tos: Tos::Fixed(0xb8),
        dont_fragment: DontFragment::Set,
        key,
        checksum: false,
        sequence: false,
        encapsulation: Encapsulation::Gre,
    }
}

fn over_ipv6(outer: Outer) -> Outer {
    Outer { source: IpAddr::V6(Ipv6Addr::LOCALHOST), destination: IpAddr::V6(Ipv6Addr::LOCALHOST), ..outer }
}

#[test]
fn sizes() {
    let everything = Outer { checksum: true, sequence: true, ..outer(Key::Plain(1)) };
    let overhead = [
        outer(Key::None),
        outer(Key::Plain(0)),
        outer(Key::Vsid(0x1000)),
        everything,
        over_ipv6(outer(Key::None)),
        over_ipv6(outer(Key::Plain(0))),
        Outer { encapsulation: Encapsulation::GreUdp, ..over_ipv6(everything) },
    ];
    assert_eq!(overhead.map(|outer| outer.overhead()), [24, 28, 28, 36, 44, 48, 64]);
    for outer in overhead {
        let template = Template::new(&outer, Some(&LINK));
        assert_eq!(u32::from(template.header_len), 14 + outer.overhead());
        assert_eq!(template.max_frame, 1500 - outer.overhead());
    }
    assert_eq!((overlay_mtu(1500, 28), overlay_mtu(1500, 24), overlay_mtu(20, 28)), (1458, 1462, 0));
    let tiny = Link { mtu: 10, ..LINK };
    assert_eq!(Template::new(&outer(Key::None), Some(&tiny)).max_frame, 0);
}

#[test]
fn key_zero_is_not_keyless() {
    let keyed = Template::new(&outer(Key::Plain(0)), Some(&LINK));
    assert_eq!(keyed.header[34..42], [0x20, 0, 0x65, 0x58, 0, 0, 0, 0]);
    let keyless = Template::new(&outer(Key::None), Some(&LINK));
    assert_eq!(keyless.header[34..42], [0, 0, 0x65, 0x58, 0, 0, 0, 0]);
}

/// RFC 7637 3.2: the key's upper 24 bits are the VSID, the lower 8 the flow id.
#[test]
fn a_vsid_is_the_upper_part_of_the_key() {
    let nvgre = Template::new(&outer(Key::Vsid(0x12_3456)), Some(&LINK));
    assert_eq!(nvgre.header[34..42], [0x20, 0, 0x65, 0x58, 0x12, 0x34, 0x56, 0]);
    assert_eq!(nvgre.options, template_option::FLOW_ID);
}

#[test]
fn flags_say_what_the_datapath_has_to_do() {
    let usual = template_flag::RESOLVED | template_flag::ROUTED;
    let flags = |dont_fragment, over: fn(Outer) -> Outer| {
        let template = Template::new(&over(Outer { dont_fragment, ..outer(Key::None) }), Some(&LINK));
        (template.flags, template.options)
    };
    assert_eq!(flags(DontFragment::Set, |outer| outer), (usual, 0));
    let fragments = usual | template_flag::FRAGMENTS;
    assert_eq!(flags(DontFragment::Unset, |outer| outer), (fragments | template_flag::NEEDS_ID, 0));
    let inherit = (fragments | template_flag::NEEDS_ID, template_option::INHERIT_DF);
    assert_eq!(flags(DontFragment::Inherit, |outer| outer), inherit);
    // IPv6 has neither the bit nor the identification.
    assert_eq!(flags(DontFragment::Inherit, over_ipv6), (fragments, 0));
    let asked = Template::new(&outer(Key::None), Some(&Link { destination_mac: None, ..LINK }));
    assert_eq!((asked.flags, asked.ifindex, asked.max_frame), (template_flag::ROUTED, 7, 1476));
    let unresolved = Template::new(&outer(Key::Plain(1)), None);
    assert_eq!((unresolved.flags, unresolved.ifindex, unresolved.max_frame), (0, 0, 0));
    assert_eq!(unresolved.header_len, 42);
}

fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(one, other)| (IpAddr::from(one), IpAddr::from(other))),
        any::<([u8; 16], [u8; 16])>().prop_map(|(one, other)| (IpAddr::from(one), IpAddr::from(other))),
    ]
}

fn keys() -> impl Strategy<Value = Key> {
    prop_oneof![Just(Key::None), any::<u32>().prop_map(Key::Plain), (0_u32..1 << 24).prop_map(Key::Vsid)]
}

/// An IPv4 header as a datapath would finish it for a packet of this length.
fn finish_ipv4(bytes: &mut [u8], base: u16, total: u16, id: u16) {
    bytes[16..18].copy_from_slice(&total.to_be_bytes());
    bytes[18..20].copy_from_slice(&id.to_be_bytes());
    let sum = checksum::finish_ipv4(base, total, id);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
}

proptest! {
    /// Checked against a parser and a checksum that are not ours.
    #[test]
    fn is_what_another_implementation_reads(
        (source, destination) in addresses(), ttl: u8, tos: u8, key in keys(),
        flags in any::<[bool; 4]>(), macs: [[u8; 6]; 2], inner_len in 14_u16..9000, id: u16,
    ) {
        let [dont_fragment, checksum, sequence, udp] = flags;
        let outer = Outer {
            source, destination, ttl, tos: Tos::Fixed(tos), key, checksum, sequence,
            dont_fragment: if dont_fragment { DontFragment::Set } else { DontFragment::Unset },
            encapsulation: if udp { Encapsulation::GreUdp } else { Encapsulation::Gre },
        };
        let link = Link { source_mac: MacAddr(macs[0]), destination_mac: Some(MacAddr(macs[1])), ..LINK };
        let template = Template::new(&outer, Some(&link));
        let mut bytes = template.header[..usize::from(template.header_len)].to_vec();
        let total = template.header_len - 14 + inner_len;
        if source.is_ipv4() {
            finish_ipv4(&mut bytes, template.checksum_base, total, id);
        }

        let (ethernet, rest) = Ethernet2Header::from_slice(&bytes).expect("Ethernet");
        prop_assert_eq!([ethernet.source, ethernet.destination], macs);
        let protocol = if udp { IpNumber::UDP } else { IpNumber::GRE };
        let rest = if let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) {
            prop_assert_eq!(ethernet.ether_type, etherparse::EtherType::IPV4);
            let (ip, rest) = Ipv4Header::from_slice(rest).expect("IPv4");
            prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            prop_assert_eq!((ip.protocol, ip.time_to_live), (protocol, ttl));
            prop_assert_eq!((ip.source, ip.destination), (source.octets(), destination.octets()));
            prop_assert_eq!(ip.dscp.value() << 2 | ip.ecn.value(), tos);
            prop_assert_eq!((ip.dont_fragment, ip.more_fragments), (dont_fragment, false));
            prop_assert_eq!((ip.identification, ip.fragment_offset.value()), (id, 0));
            prop_assert_eq!(ip.total_len, total);
            rest
        } else {
            prop_assert_eq!(ethernet.ether_type, etherparse::EtherType::IPV6);
            let (ip, rest) = Ipv6Header::from_slice(rest).expect("IPv6");
            prop_assert_eq!((ip.next_header, ip.hop_limit, ip.traffic_class), (protocol, ttl, tos));
            prop_assert_eq!(IpAddr::from(ip.source), source);
            prop_assert_eq!(IpAddr::from(ip.destination), destination);
            prop_assert_eq!((ip.flow_label.value(), ip.payload_length), (0, 0));
            rest
        };
        let gre = if udp {
            let (header, rest) = UdpHeader::from_slice(rest).expect("UDP");
            prop_assert_eq!((header.source_port, header.destination_port), (0, 4754));
            prop_assert_eq!((header.length, header.checksum), (0, 0));
            rest
        } else {
            rest
        };
        let flags = u8::from(checksum) << 7 | u8::from(key != Key::None) << 5 | u8::from(sequence) << 4;
        let mut wanted = vec![flags, 0, 0x65, 0x58];
        wanted.extend(vec![0; if checksum { 4 } else { 0 }]);
        match key {
            Key::None => {}
            Key::Plain(key) => wanted.extend(key.to_be_bytes()),
            Key::Vsid(vsid) => wanted.extend((vsid << 8).to_be_bytes()),
        }
        wanted.extend(vec![0; if sequence { 4 } else { 0 }]);
        prop_assert_eq!(gre, wanted);
    }
}
