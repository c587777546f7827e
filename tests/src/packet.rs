//! Frames to send, and what is in frames that were captured.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, bail};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, NetSlice, PacketBuilder,
    SlicedPacket, TransportSlice,
};

pub use crate::gre::{GRE_KEY_PRESENT, Gre, IP_PROTOCOL_GRE, TRANSPARENT_ETHERNET};

/// A MAC address.
pub type Mac = [u8; 6];

/// The group of all.
pub const BROADCAST: Mac = [0xff; 6];
/// A group of some.
pub const MULTICAST: Mac = [0x01, 0x00, 0x5e, 0x01, 0x02, 0x03];
/// Nobody's address.
pub const UNKNOWN: Mac = [0x02, 0, 0, 0, 0xee, 0xee];
/// IEEE's EtherType for experiments.
pub const ETHERTYPE_EXPERIMENT: u16 = 0x88b5;

/// A MAC address as text.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A frame of any type.
pub fn frame(destination: Mac, source: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &ethertype.to_be_bytes(), payload].concat()
}

/// A frame of the experiments' type that is told from others by its text.
pub fn marked(destination: Mac, source: Mac, text: &str) -> Vec<u8> {
    let mut payload = text.as_bytes().to_vec();
    // The shortest frame that Ethernet carries.
    payload.resize(payload.len().max(46), 0);
    frame(destination, source, ETHERTYPE_EXPERIMENT, &payload)
}

/// The same frame with a VLAN tag in front.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let mut tagged = frame.to_vec();
    tagged.splice(12..12, [&0x8100_u16.to_be_bytes()[..], &vlan.to_be_bytes()].concat());
    tagged
}

/// An IPv4 UDP frame.
///
/// # Errors
/// The payload is too long for one.
pub fn udp(
    (source, source_ip): (Mac, Ipv4Addr),
    (destination, destination_ip): (Mac, Ipv4Addr),
    payload: &[u8],
) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(source, destination)
        .ipv4(source_ip.octets(), destination_ip.octets(), 8)
        .udp(4789, 4789);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload)?;
    Ok(frame)
}

/// A UDP datagram in IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sends it: MAC and IP address.
    pub source: (Mac, IpAddr),
    /// Who is to get it; of the same family.
    pub destination: (Mac, IpAddr),
    /// Source and destination port.
    pub ports: (u16, u16),
    /// DSCP and ECN.
    pub tos: u8,
    /// IPv4's don't-fragment bit.
    pub dont_fragment: bool,
    /// Length of the whole IP packet.
    pub length: usize,
}

impl Datagram {
    /// A short one.
    pub fn new(source: (Mac, IpAddr), destination: (Mac, IpAddr)) -> Self {
        Self { source, destination, ports: (4000, 4001), tos: 0, dont_fragment: false, length: 100 }
    }

    /// Its frame, with all checksums.
    ///
    /// # Errors
    /// The addresses are of two families, or the length is none.
    pub fn frame(&self) -> Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(self.source.0, self.destination.0);
        let mut frame = Vec::new();
        let mut write = |builder: etherparse::PacketBuilderStep<IpHeaders>, header: usize| -> Result<()> {
            let length = self.length.checked_sub(header + 8).context("too short")?;
            let payload: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
            Ok(builder.udp(self.ports.0, self.ports.1).write(&mut frame, &payload)?)
        };
        match (self.source.1, self.destination.1) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header =
                    Ipv4Header::new(0, 64, IpNumber::UDP, source.octets(), destination.octets())?;
                (header.dscp, header.ecn) = ((self.tos >> 2).try_into()?, (self.tos & 3).try_into()?);
                header.dont_fragment = self.dont_fragment;
                write(ethernet.ip(IpHeaders::Ipv4(header, Ipv4Extensions::default())), 20)?;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    hop_limit: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                write(ethernet.ip(IpHeaders::Ipv6(header, Ipv6Extensions::default())), 40)?;
            }
            (source, destination) => bail!("{source} and {destination} are of two families"),
        }
        Ok(frame)
    }
}

/// DSCP and ECN of the IP packet in a frame; none if there is no IP in it.
pub fn tos(frame: &[u8]) -> Option<u8> {
    match SlicedPacket::from_ethernet(frame).ok()?.net? {
        NetSlice::Ipv4(ip) => Some(ip.header().dcp().value() << 2 | ip.header().ecn().value()),
        NetSlice::Ipv6(ip) => Some(ip.header().to_header().traffic_class),
        _ => None,
    }
}

/// A gratuitous ARP request: this address is at this MAC (RFC 5227 3).
pub fn announcement(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let octets = address.octets();
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    let mut arp = [&fixed[..], &mac, &octets, &[0; 6], &octets].concat();
    arp.resize(46, 0);
    frame(BROADCAST, mac, 0x0806, &arp)
}

/// Whether the UDP or TCP checksum of a frame and its IPv4 header's are right. True for other frames.
///
/// # Errors
/// The frame cannot be read.
pub fn checksums_ok(frame: &[u8]) -> Result<bool> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    match (&packet.net, &packet.transport) {
        (Some(NetSlice::Ipv4(ip)), transport) => {
            let header = ip.header().to_header();
            let transport_ok = match transport {
                Some(TransportSlice::Udp(udp)) => {
                    let (udp, data) = (udp.to_header(), udp.payload());
                    udp.checksum == 0 || same_sum(udp.checksum, udp.calc_checksum_ipv4(&header, data)?)
                }
                Some(TransportSlice::Tcp(tcp)) => {
                    same_sum(tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&header, tcp.payload())?)
                }
                _ => true,
            };
            Ok(transport_ok && header.calc_header_checksum() == header.header_checksum)
        }
        (Some(NetSlice::Ipv6(ip)), transport) => {
            let header = ip.header().to_header();
            Ok(match transport {
                Some(TransportSlice::Udp(udp)) => {
                    let (udp, data) = (udp.to_header(), udp.payload());
                    // None at all is not allowed (RFC 8200 8.1).
                    udp.checksum != 0 && same_sum(udp.checksum, udp.calc_checksum_ipv6(&header, data)?)
                }
                Some(TransportSlice::Tcp(tcp)) => {
                    same_sum(tcp.checksum(), tcp.to_header().calc_checksum_ipv6(&header, tcp.payload())?)
                }
                _ => true,
            })
        }
        _ => Ok(true),
    }
}

/// Whether two checksums are the same number. Zero has two forms in ones' complement (RFC 1071), and the kernel writes
/// the other one where a sum comes to zero, in TCP's header too.
pub const fn same_sum(one: u16, other: u16) -> bool {
    one % 0xffff == other % 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_has_two_forms() {
        assert!(same_sum(0, 0xffff) && same_sum(0xffff, 0) && same_sum(7, 7));
        assert!(!same_sum(0, 0xfffe) && !same_sum(1, 0xffff));
    }

    #[test]
    fn wrong_checksums_are_seen() {
        let one = ([2, 0, 0, 0, 1, 0x10], Ipv4Addr::new(10, 77, 0, 1));
        let two = ([2, 0, 0, 0, 2, 0x10], Ipv4Addr::new(10, 77, 0, 2));
        let mut frame = udp(one, two, b"payload").expect("writes");
        assert!(checksums_ok(&frame).expect("reads"));
        if let Some(last) = frame.last_mut() {
            *last ^= 1;
        }
        assert!(!checksums_ok(&frame).expect("reads"));
    }

    #[test]
    fn a_tag_stands_before_the_type() {
        let plain = marked(BROADCAST, UNKNOWN, "x");
        let tagged = tagged(&plain, 100);
        assert_eq!(tagged[12..18], [0x81, 0, 0, 100, 0x88, 0xb5]);
        assert_eq!(tagged.len(), plain.len() + 4);
    }

    #[test]
    fn datagrams_of_both_families_are_right() {
        let ends = |last: u16| {
            let mac = [2, 0, 0, 0, last as u8, 0x10];
            [(mac, IpAddr::from([10, 77, 0, last as u8])), (mac, crate::gre::v6(0x77, last))]
        };
        for (source, destination) in ends(1).into_iter().zip(ends(2)) {
            let datagram = Datagram { tos: 0xb9, length: 500, ..Datagram::new(source, destination) };
            let mut frame = datagram.frame().expect("one family");
            assert_eq!((frame.len(), tos(&frame)), (514, Some(0xb9)));
            assert!(checksums_ok(&frame).expect("reads"));
            if let Some(last) = frame.last_mut() {
                *last ^= 1;
            }
            assert!(!checksums_ok(&frame).expect("reads"));
        }
    }
}
