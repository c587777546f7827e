//! Packets, made with `etherparse` and by hand, never with the code under test.

use core::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header,
    PacketBuilder, UdpHeader,
};
use mgre_common::wire::MacAddr;

use super::world::{LOCAL, LOCAL_V6, NEAR_MAC, NEXT_HOP_MAC};

/// An Ethernet frame with a payload whose bytes all differ from their neighbours.
pub fn frame(destination: MacAddr, source: MacAddr, ethertype: u16, payload_len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..payload_len).map(|i| (i * 7 + 1) as u8).collect();
    with_payload(destination, source, ethertype, &payload)
}

/// What Linux tunnels over IPv6 put before GRE, behind the next header: an encapsulation limit (RFC 2473 4.1.1), and
/// padding.
pub const ENCAPSULATION_LIMIT: [u8; 7] = [0, 4, 1, 4, 1, 1, 0];

/// A packet over IPv6 with an extension header of eight bytes behind the IP header.
pub fn extended(packet: &[u8], kind: u8, content: [u8; 7]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    let next = std::mem::replace(&mut bytes[20], kind);
    let len = u16::from_be_bytes([bytes[18], bytes[19]]).wrapping_add(8);
    bytes[18..20].copy_from_slice(&len.to_be_bytes());
    bytes.splice(54..54, [next].into_iter().chain(content));
    bytes
}

/// An Ethernet frame with this payload.
pub fn with_payload(destination: MacAddr, source: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let header =
        Ethernet2Header { source: source.0, destination: destination.0, ether_type: EtherType(ethertype) };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// TCP over IPv4 with so many bytes of payload.
pub fn tcp_v4(destination: MacAddr, source: MacAddr, payload_len: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(source.0, destination.0)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(40_000, 80, 1, 1024);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &vec![0x5a; payload_len]).expect("a vector takes all");
    bytes
}

/// UDP over IPv6 with so many bytes of payload.
pub fn udp_v6(destination: MacAddr, source: MacAddr, payload_len: usize) -> Vec<u8> {
    let (from, to) = ([0xfd; 16], [0xfe; 16]);
    let builder = PacketBuilder::ethernet2(source.0, destination.0).ipv6(from, to, 64).udp(40_000, 53);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &vec![0xa5; payload_len]).expect("a vector takes all");
    bytes
}

/// A TCP frame over IPv6. A payload that is too long for its header is not noted there.
pub fn tcp_v6(destination: MacAddr, source: MacAddr, payload_len: usize) -> Vec<u8> {
    let (from, to) = ([0xfd; 16], [0xfe; 16]);
    let builder =
        PacketBuilder::ethernet2(source.0, destination.0).ipv6(from, to, 64).tcp(40_000, 80, 1, 1024);
    let mut bytes = Vec::new();
    let noted = payload_len.min(60_000);
    builder.write(&mut bytes, &vec![0x5a; noted]).expect("a vector takes all");
    bytes.resize(bytes.len() + payload_len - noted, 0x5a);
    bytes
}

/// A frame whose IP packet has this traffic class octet: IPv4 or IPv6, whichever it is, behind
/// whatever tags there are.
pub fn with_tos(frame: &[u8], tos: u8) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let mut at = 12;
    while matches!(bytes[at..at + 2], [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    let ip = &mut bytes[at + 2..];
    if ip[0] >> 4 == 4 {
        ip[1] = tos;
        ip[10..12].fill(0);
        let sum = internet_checksum(&ip[..20]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        ip[0] = 0x60 | tos >> 4;
        ip[1] = tos << 4 | ip[1] & 0xf;
    }
    bytes
}

/// Puts a tag into a frame: its protocol and control information.
pub fn tagged(frame: &[u8], protocol: u16, control: u16) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let [a, b] = protocol.to_be_bytes();
    let [c, d] = control.to_be_bytes();
    bytes.splice(12..12, [a, b, c, d]);
    bytes
}

/// Frames of every kind that a segment carries, all between these two stations.
pub fn kinds(destination: MacAddr, source: MacAddr) -> Vec<(&'static str, Vec<u8>)> {
    let of_type = |ethertype| frame(destination, source, ethertype, 46);
    let ipv4 = tcp_v4(destination, source, 30);
    vec![
        ("ipv6", udp_v6(destination, source, 10)),
        ("arp", of_type(0x0806)),
        ("lldp", of_type(0x88cc)),
        ("mpls", of_type(0x8847)),
        ("unknown ethertype", of_type(0xfff1)),
        ("802.3 length", of_type(46)),
        ("802.1q with ipv4", tagged(&ipv4, 0x8100, 0x6005)),
        ("802.1q with arp", tagged(&of_type(0x0806), 0x8100, 0x0fff)),
        ("802.1ad with 802.1q", tagged(&tagged(&ipv4, 0x8100, 5), 0x88a8, 6)),
        ("802.1ad with ipv6", tagged(&udp_v6(destination, source, 10), 0x88a8, 7)),
        ("broken ipv4", of_type(0x0800)),
        ("ipv4 cut short", frame(destination, source, 0x0800, 7)),
        ("header only", frame(destination, source, 0xfff1, 0)),
        ("ipv4", ipv4),
    ]
}

/// A checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Zero.
    Zero,
    /// As it must be.
    Right,
    /// As it must not be.
    Wrong,
}

/// A UDP header below GRE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Where it comes from.
    pub source_port: u16,
    /// Where it goes.
    pub destination_port: u16,
    /// Its checksum.
    pub checksum: Sum,
}

/// The headers outside, as a peer would make them.
#[derive(Clone, Debug)]
pub struct Outer {
    /// Link-layer destination.
    pub destination_mac: MacAddr,
    /// Link-layer source.
    pub source_mac: MacAddr,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Traffic class: DSCP and ECN.
    pub tos: u8,
    /// Of IPv4: nobody may fragment it.
    pub dont_fragment: bool,
    /// Of IPv4.
    pub identification: u16,
    /// What GRE rests on, if that is not IP.
    pub udp: Option<Udp>,
    /// First word of the GRE header.
    pub flags: u16,
    /// GRE protocol type.
    pub protocol: u16,
    /// The checksum field, if there is one.
    pub checksum: Option<Sum>,
    /// The other optional fields, in order.
    pub fields: Vec<u32>,
}

impl Outer {
    /// A peer's packet to us, with a key or without.
    pub fn from_peer(source: impl Into<IpAddr>, key: Option<u32>) -> Self {
        let source = source.into();
        Self {
            destination_mac: NEAR_MAC,
            source_mac: NEXT_HOP_MAC,
            source,
            destination: local(source),
            ttl: 61,
            tos: 0,
            dont_fragment: true,
            identification: 0,
            udp: None,
            flags: if key.is_some() { 0x2000 } else { 0 },
            protocol: 0x6558,
            checksum: None,
            fields: key.into_iter().collect(),
        }
    }

    /// Our packet to a peer.
    pub fn to_peer(destination: impl Into<IpAddr>, key: Option<u32>) -> Self {
        let destination = destination.into();
        Self {
            destination_mac: NEXT_HOP_MAC,
            source_mac: NEAR_MAC,
            source: local(destination),
            destination,
            ttl: 64,
            ..Self::from_peer(destination, key)
        }
    }

    /// With more flags.
    pub fn flags(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    /// With one more optional field.
    pub fn field(mut self, field: u32) -> Self {
        self.fields.push(field);
        self
    }

    /// With a checksum.
    pub fn checksum(self, checksum: Sum) -> Self {
        Self { checksum: Some(checksum), ..self.flags(0x8000) }
    }

    /// With a sequence number, which is the last field.
    pub fn sequence(self, number: u32) -> Self {
        self.flags(0x1000).field(number)
    }

    /// In UDP, from the lowest port there may be.
    pub fn udp(self, checksum: Sum) -> Self {
        Self { udp: Some(Udp { source_port: 0xc000, destination_port: 4754, checksum }), ..self }
    }

    /// With this traffic class.
    pub fn tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }

    /// The whole packet around a frame.
    pub fn wrap(&self, inner: &[u8]) -> Vec<u8> {
        let gre = self.gre(inner);
        let (protocol, payload) = match self.udp {
            None => (IpNumber::GRE, gre),
            Some(udp) => (IpNumber::UDP, self.in_udp(udp, &gre)),
        };
        let payload_len = u16::try_from(payload.len()).expect("fits a packet");
        let (ethertype, mut ip) = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let mut ip = Ipv4Header::new(payload_len, self.ttl, protocol, source, destination)
                    .expect("fits a packet");
                ip.dscp = IpDscp::try_new(self.tos >> 2).expect("six bits");
                ip.ecn = IpEcn::try_new(self.tos & 3).expect("two bits");
                ip.dont_fragment = self.dont_fragment;
                ip.identification = self.identification;
                ip.header_checksum = ip.calc_header_checksum();
                (0x0800, ip.to_bytes().to_vec())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: payload_len,
                    next_header: protocol,
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                (0x86dd, ip.to_bytes().to_vec())
            }
            _ => panic!("addresses of two families"),
        };
        ip.extend(payload);
        with_payload(self.destination_mac, self.source_mac, ethertype, &ip)
    }

    fn gre(&self, inner: &[u8]) -> Vec<u8> {
        let mut gre = [self.flags.to_be_bytes(), self.protocol.to_be_bytes()].concat();
        if self.checksum.is_some() {
            gre.extend([0; 4]);
        }
        gre.extend(self.fields.iter().flat_map(|field| field.to_be_bytes()));
        gre.extend(inner);
        match self.checksum {
            None | Some(Sum::Zero) => {}
            Some(Sum::Right) => {
                let sum = internet_checksum(&gre);
                gre[4..6].copy_from_slice(&sum.to_be_bytes());
            }
            Some(Sum::Wrong) => {
                let sum = internet_checksum(&gre) ^ 0x0100;
                gre[4..6].copy_from_slice(&sum.to_be_bytes());
            }
        }
        gre
    }

    fn in_udp(&self, udp: Udp, payload: &[u8]) -> Vec<u8> {
        let Udp { source_port, destination_port, .. } = udp;
        let mut header = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let ip = Ipv4Header::new(0, 0, IpNumber::UDP, source, destination).expect("fits a packet");
                UdpHeader::with_ipv4_checksum(source_port, destination_port, &ip, payload)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let ip = Ipv6Header { source, destination, ..Ipv6Header::default() };
                UdpHeader::with_ipv6_checksum(source_port, destination_port, &ip, payload)
            }
            _ => panic!("addresses of two families"),
        }
        .expect("fits a packet");
        match udp.checksum {
            Sum::Zero => header.checksum = 0,
            Sum::Right => {}
            Sum::Wrong => header.checksum ^= 0x0100,
        }
        [&header.to_bytes(), payload].concat()
    }
}

/// Our address of a peer's family.
fn local(peer: IpAddr) -> IpAddr {
    if peer.is_ipv4() { LOCAL.into() } else { LOCAL_V6.into() }
}

/// RFC 1071, as plain as can be.
pub(super) fn internet_checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    let sum = bytes.chunks(2).map(word).sum::<u64>() % 0xffff;
    // A sum that is not zero folds to 0xffff where it is divisible.
    let any = bytes.iter().any(|&byte| byte != 0);
    !(if sum == 0 && any { 0xffff } else { sum as u16 })
}

/// Whether a packet's outer IPv4 header has the checksum that it must have.
pub fn ip_checksum_is_right(packet: &[u8]) -> bool {
    internet_checksum(&packet[14..34]) == 0
}

/// Changes a packet's outer IPv4 header, and makes its checksum right again.
pub fn change_ip(packet: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    change(&mut bytes[14..34]);
    bytes[24..26].fill(0);
    let sum = internet_checksum(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes
}
