//! Frames to send, and what is in frames that were captured.

use std::net::Ipv4Addr;

use anyhow::Result;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket};

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

/// A gratuitous ARP request: this address is at this MAC (RFC 5227 3).
pub fn announcement(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let octets = address.octets();
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    let mut arp = [&fixed[..], &mac, &octets, &[0; 6], &octets].concat();
    arp.resize(46, 0);
    frame(BROADCAST, mac, 0x0806, &arp)
}

/// Whether the inner UDP or TCP checksum and the IPv4 header's are right. True for other frames.
///
/// # Errors
/// The frame cannot be read.
pub fn checksums_ok(frame: &[u8]) -> Result<bool> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { return Ok(true) };
    let header = ip.header().to_header();
    if header.calc_header_checksum() != header.header_checksum {
        return Ok(false);
    }
    let Some(transport) = &packet.transport else { return Ok(true) };
    Ok(match transport {
        etherparse::TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            header.checksum == 0
                || header.checksum == header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload())?
        }
        etherparse::TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            header.checksum == header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload())?
        }
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
