//! Packets, made with `etherparse` and by hand, never with the code under test.

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, PacketBuilder};
use mgre_common::wire::MacAddr;

use super::world::{LOCAL, NEAR_MAC, NEXT_HOP_MAC};

/// An Ethernet frame with a payload whose bytes all differ from their neighbours.
pub fn frame(destination: MacAddr, source: MacAddr, ethertype: u16, payload_len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..payload_len).map(|i| (i * 7 + 1) as u8).collect();
    with_payload(destination, source, ethertype, &payload)
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

/// The headers outside, as a peer would make them.
#[derive(Clone, Debug)]
pub struct Outer {
    /// Link-layer destination.
    pub destination_mac: MacAddr,
    /// Link-layer source.
    pub source_mac: MacAddr,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Time to live.
    pub ttl: u8,
    /// First word of the GRE header.
    pub flags: u16,
    /// GRE protocol type.
    pub protocol: u16,
    /// The optional fields, in order.
    pub fields: Vec<u32>,
}

impl Outer {
    /// A peer's packet to us, with a key or without.
    pub fn from_peer(source: [u8; 4], key: Option<u32>) -> Self {
        Self {
            destination_mac: NEAR_MAC,
            source_mac: NEXT_HOP_MAC,
            source,
            destination: LOCAL,
            ttl: 61,
            flags: if key.is_some() { 0x2000 } else { 0 },
            protocol: 0x6558,
            fields: key.into_iter().collect(),
        }
    }

    /// Our packet to a peer.
    pub fn to_peer(destination: [u8; 4], key: Option<u32>) -> Self {
        Self {
            destination_mac: NEXT_HOP_MAC,
            source_mac: NEAR_MAC,
            source: LOCAL,
            destination,
            ttl: 64,
            ..Self::from_peer(LOCAL, key)
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

    /// The whole packet around a frame.
    pub fn wrap(&self, inner: &[u8]) -> Vec<u8> {
        let gre_len = 4 + 4 * self.fields.len();
        let payload_len = u16::try_from(gre_len + inner.len()).expect("fits a packet");
        let mut ip = Ipv4Header::new(payload_len, self.ttl, IpNumber::GRE, self.source, self.destination)
            .expect("fits a packet");
        ip.header_checksum = ip.calc_header_checksum();
        let mut bytes = with_payload(self.destination_mac, self.source_mac, 0x0800, &ip.to_bytes());
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.protocol.to_be_bytes());
        bytes.extend(self.fields.iter().flat_map(|field| field.to_be_bytes()));
        bytes.extend(inner);
        bytes
    }
}

/// Changes a packet's outer IPv4 header, and makes its checksum right again.
pub fn change_ip(packet: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    change(&mut bytes[14..34]);
    bytes[24..26].fill(0);
    let sum = bytes[14..34].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes
}
