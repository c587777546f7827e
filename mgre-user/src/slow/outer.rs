//! Outer packets that the kernel had to put together, or had options: made such that the datapath takes them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mgre_common::checksum::{add_bytes, checksum, fold};
use mgre_common::wire::{
    ETHERNET_LEN, EtherType, GRE_IN_UDP_PORT, IPV4_LEN, IPV6_LEN, IpProtocol, MacAddr, UDP_LEN,
};

const DONT_FRAGMENT: u8 = 0x40;

/// What the IP header of a packet said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who sent it.
    pub remote: IpAddr,
    /// For whom it was, of the same family.
    pub local: IpAddr,
    /// DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// What it carries.
    pub protocol: IpProtocol,
    /// Whether it said that it must not be fragmented.
    pub dont_fragment: bool,
}

/// Takes an IPv4 packet apart: header, and what stands behind it. None if it is none.
pub fn take_v4(packet: &[u8]) -> Option<(Header, &[u8])> {
    let (ip, _) = packet.split_first_chunk::<IPV4_LEN>()?;
    let header_len = usize::from(ip[0] & 0xf) * 4;
    if ip[0] >> 4 != 4 || header_len < IPV4_LEN {
        return None;
    }
    let header = Header {
        remote: IpAddr::V4(Ipv4Addr::from(*ip[12..].first_chunk::<4>()?)),
        local: IpAddr::V4(Ipv4Addr::from(*ip[16..].first_chunk::<4>()?)),
        tos: ip[1],
        ttl: ip[8],
        protocol: IpProtocol(ip[9]),
        dont_fragment: ip[6] & DONT_FRAGMENT != 0,
    };
    Some((header, packet.get(header_len..)?))
}

/// The UDP header of a GRE-in-UDP packet whose checksum was right. `None` if it does not fit.
///
/// Over IPv4 it has no checksum: it was looked at. Over IPv6 that is for tunnels that both ends agreed on
/// (RFC 8086 6), so it has one.
pub fn udp_header(header: &Header, source_port: u16, payload: &[u8]) -> Option<[u8; UDP_LEN]> {
    let length = u16::try_from(UDP_LEN + payload.len()).ok()?;
    let mut udp = [0; UDP_LEN];
    udp[..2].copy_from_slice(&source_port.to_be_bytes());
    udp[2..4].copy_from_slice(&GRE_IN_UDP_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&length.to_be_bytes());
    if let (IpAddr::V6(remote), IpAddr::V6(local)) = (header.remote, header.local) {
        let mut sum = u32::from(length) + u32::from(IpProtocol::UDP.0);
        sum = add_bytes(add_bytes(sum, &remote.octets()), &local.octets());
        let sum = !fold(add_bytes(add_bytes(sum, &udp), payload));
        // Zero would say that there is none (RFC 768).
        let sum = if sum == 0 { u16::MAX } else { sum };
        udp[6..].copy_from_slice(&sum.to_be_bytes());
    }
    Some(udp)
}

/// An Ethernet frame with a packet that has no options and is no fragment. `None` if it is too long for one.
pub fn frame(macs: [MacAddr; 2], header: &Header, parts: [&[u8]; 2]) -> Option<Vec<u8>> {
    let [destination, source] = macs;
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(ETHERNET_LEN + IPV6_LEN + length);
    frame.extend(destination.0);
    frame.extend(source.0);
    match (header.remote, header.local) {
        (IpAddr::V4(remote), IpAddr::V4(local)) => {
            frame.extend(EtherType::IPV4.number().to_be_bytes());
            frame.extend([0x45, header.tos]);
            frame.extend(u16::try_from(IPV4_LEN + length).ok()?.to_be_bytes());
            let fragment = if header.dont_fragment { DONT_FRAGMENT } else { 0 };
            frame.extend([0, 0, fragment, 0, header.ttl, header.protocol.0, 0, 0]);
            frame.extend(remote.octets());
            frame.extend(local.octets());
            let sum = checksum(&frame[ETHERNET_LEN..]);
            frame[ETHERNET_LEN + 10..ETHERNET_LEN + 12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(remote), IpAddr::V6(local)) => {
            frame.extend(EtherType::IPV6.number().to_be_bytes());
            frame.extend([0x60 | header.tos >> 4, header.tos << 4, 0, 0]);
            frame.extend(u16::try_from(length).ok()?.to_be_bytes());
            frame.extend([header.protocol.0, header.ttl]);
            frame.extend(remote.octets());
            frame.extend(local.octets());
        }
        _ => return None,
    }
    parts.iter().for_each(|part| frame.extend(*part));
    Some(frame)
}

/// Where an outer packet goes and what stands behind its IP header, from an Ethernet frame of ours.
pub fn sent(frame: &[u8]) -> Option<Sent<'_>> {
    let (ethernet, packet) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    match EtherType::from_bytes(*ethernet.last_chunk()?) {
        EtherType::IPV4 => {
            let (header, rest) = take_v4(packet)?;
            // Seen from the other side.
            Some(Sent { remote: header.local, local: header.remote, packet, rest })
        }
        EtherType::IPV6 => {
            let (ip, rest) = packet.split_first_chunk::<IPV6_LEN>()?;
            let local = IpAddr::V6(Ipv6Addr::from(*ip[8..].first_chunk::<16>()?));
            let remote = IpAddr::V6(Ipv6Addr::from(*ip[24..].first_chunk::<16>()?));
            Some(Sent { remote, local, packet, rest })
        }
        _ => None,
    }
}

/// An outer packet that we send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent<'a> {
    /// For whom it is.
    pub remote: IpAddr,
    /// Who we are.
    pub local: IpAddr,
    /// All of it, from its IP header on.
    pub packet: &'a [u8],
    /// What stands behind the IP header.
    pub rest: &'a [u8],
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    const MACS: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];

    fn header(v6: bool, protocol: IpProtocol) -> Header {
        let parse = |text: &str| text.parse().expect("an address");
        let (remote, local) = if v6 { ("2001:db8::2", "2001:db8::1") } else { ("192.0.2.2", "192.0.2.1") };
        let (remote, local) = (parse(remote), parse(local));
        Header { remote, local, tos: 0xb9, ttl: 17, protocol, dont_fragment: true }
    }

    #[test]
    fn options_go_and_the_rest_stays() {
        let mut packet = vec![0x46, 0xb9, 0, 32, 0, 9, 0x40, 0, 17, 47, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
        packet.extend([7, 3, 4, 0]);
        packet.extend([0, 0, 0x65, 0x58, 1, 2, 3, 4]);
        let (taken, rest) = take_v4(&packet).expect("a packet");
        assert_eq!(taken, header(false, IpProtocol::GRE));
        assert_eq!(rest, [0, 0, 0x65, 0x58, 1, 2, 3, 4]);
        let frame = frame(MACS, &taken, [&[], rest]).expect("a frame");
        let sliced = SlicedPacket::from_ethernet(&frame).expect("a frame");
        let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("no IPv4") };
        let ip = ip.header().to_header();
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!((ip.options.len(), ip.total_len, ip.time_to_live), (0, 28, 17));
        assert_eq!((ip.dscp.value() << 2 | ip.ecn.value(), ip.dont_fragment), (0xb9, true));
        assert_eq!((ip.source, ip.destination), ([192, 0, 2, 2], [192, 0, 2, 1]));
        assert_eq!(frame[34..], *rest);
    }

    #[test]
    fn a_udp_header_as_another_implementation_reads_it() {
        let payload = [0, 0, 0x65, 0x58, 1, 2, 3, 4, 5];
        for v6 in [false, true] {
            let header = header(v6, IpProtocol::UDP);
            let udp = udp_header(&header, 50_000, &payload).expect("a header");
            let frame = frame(MACS, &header, [&udp, &payload]).expect("a frame");
            let sliced = SlicedPacket::from_ethernet(&frame).expect("a frame");
            let Some(TransportSlice::Udp(found)) = &sliced.transport else { panic!("no UDP") };
            assert_eq!((found.source_port(), found.destination_port()), (50_000, 4754));
            assert_eq!((found.length(), found.payload()), (17, &payload[..]));
            match sliced.net {
                Some(NetSlice::Ipv4(_)) => assert_eq!(found.checksum(), 0),
                Some(NetSlice::Ipv6(ip)) => {
                    let header = ip.header().to_header();
                    let wanted = found.to_header().calc_checksum_ipv6(&header, &payload).expect("a checksum");
                    assert_eq!(found.checksum(), wanted);
                    assert_eq!((header.traffic_class, header.hop_limit), (0xb9, 17));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_we_send_is_seen_from_our_side() {
        let mut frame = Vec::new();
        let payload = [0, 0, 0x65, 0x58];
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
        builder.write(&mut frame, IpNumber::GRE, &payload).expect("written");
        let found = sent(&frame).expect("a packet");
        assert_eq!(
            (found.remote.to_string(), found.local.to_string()),
            ("192.0.2.2".into(), "192.0.2.1".into())
        );
        assert_eq!((found.packet, found.rest), (&frame[14..], &payload[..]));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes: Vec<u8>, first: u8) {
            take_v4(&bytes);
            sent(&bytes);
            let mut bytes = bytes;
            if bytes.len() > 15 {
                bytes[12..14].copy_from_slice(&[8, 0]);
                bytes[14] = first;
            }
            sent(&bytes);
        }
    }
}
