//! Frames to send, and what is in frames that were captured.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{Ethernet2Slice, Ipv4Slice, NetSlice, PacketBuilder, SlicedPacket};

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
/// GRE's protocol type of an Ethernet frame (transparent Ethernet bridging, RFC 1701).
pub const TRANSPARENT_ETHERNET: u16 = 0x6558;
/// IPv4's protocol number of GRE.
pub const IP_PROTOCOL_GRE: u8 = 47;
/// The bit of GRE's first two bytes that says there is a key (RFC 2890 2).
pub const GRE_KEY_PRESENT: u16 = 0x2000;

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

/// A GRE packet that was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gre {
    /// The outer Ethernet destination.
    pub outer_destination: Mac,
    /// The outer Ethernet source.
    pub outer_source: Mac,
    /// The outer IPv4 source.
    pub source: Ipv4Addr,
    /// The outer IPv4 destination.
    pub destination: Ipv4Addr,
    /// The outer TTL.
    pub ttl: u8,
    /// The outer DSCP and ECN.
    pub tos: u8,
    /// The outer don't-fragment bit.
    pub dont_fragment: bool,
    /// The outer IPv4 total length.
    pub total_length: u16,
    /// Whether the outer IPv4 header's checksum is right.
    pub checksum_ok: bool,
    /// GRE's flags and version.
    pub flags: u16,
    /// GRE's protocol type.
    pub protocol: u16,
    /// GRE's key.
    pub key: Option<u32>,
    /// The inner frame.
    pub inner: Vec<u8>,
}

impl Gre {
    /// Reads a GRE packet; none if it is another packet.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        Self::read(frame).ok()
    }

    /// Reads a GRE packet.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(frame: &[u8]) -> Result<Self> {
        let ethernet = Ethernet2Slice::from_slice_without_fcs(frame)?;
        ensure!(ethernet.ether_type().0 == 0x0800, "not IPv4 but {:?}", ethernet.ether_type());
        let payload = ethernet.payload().payload;
        // A superframe of 64 KiB and more would say zero here; none of the tests makes one.
        let ip = Ipv4Slice::from_slice(payload).context("the outer IPv4 packet")?;
        let header = ip.header();
        ensure!(header.protocol().0 == IP_PROTOCOL_GRE, "not GRE but protocol {}", header.protocol().0);
        let gre = ip.payload().payload;
        let [f0, f1, p0, p1, rest @ ..] = gre else { bail!("a GRE header cut short") };
        let flags = u16::from_be_bytes([*f0, *f1]);
        let (key, inner) = if flags & GRE_KEY_PRESENT == 0 {
            (None, rest)
        } else {
            let (key, inner) = rest.split_first_chunk().context("a GRE key cut short")?;
            (Some(u32::from_be_bytes(*key)), inner)
        };
        let owned = header.to_header();
        Ok(Self {
            outer_destination: ethernet.destination(),
            outer_source: ethernet.source(),
            source: header.source_addr(),
            destination: header.destination_addr(),
            ttl: header.ttl(),
            tos: header.dcp().value() << 2 | header.ecn().value(),
            dont_fragment: header.dont_fragment(),
            total_length: header.total_len(),
            checksum_ok: owned.calc_header_checksum() == header.header_checksum(),
            flags,
            protocol: u16::from_be_bytes([*p0, *p1]),
            key,
            inner: inner.to_vec(),
        })
    }

    /// The inner destination.
    pub fn inner_destination(&self) -> Option<Mac> {
        self.inner.first_chunk().copied()
    }

    /// Whether the inner frame is for one station.
    pub fn is_to_station(&self) -> bool {
        self.inner.first().is_some_and(|first| first & 1 == 0)
    }
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
    fn gre_with_a_key_is_read() {
        let inner = marked(BROADCAST, [2, 0, 0, 0, 1, 0x10], "inner");
        let mut gre = [0x20, 0, 0x65, 0x58, 0, 0, 0, 7].to_vec();
        gre.extend(&inner);
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(
            [192, 0, 2, 1],
            [192, 0, 2, 2],
            64,
        );
        let mut packet = Vec::new();
        builder.write(&mut packet, etherparse::IpNumber(IP_PROTOCOL_GRE), &gre).expect("writes");
        let read = Gre::read(&packet).expect("GRE");
        assert_eq!((read.key, read.protocol, read.flags), (Some(7), TRANSPARENT_ETHERNET, GRE_KEY_PRESENT));
        assert_eq!((read.inner, read.checksum_ok, read.ttl), (inner, true, 64));
        assert_eq!(read.source, Ipv4Addr::new(192, 0, 2, 1));
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
}
