//! GRE packets: those that were captured, read field by field, and those that a peer of another make would send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{
    Ethernet2Slice, IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6FragmentHeader, Ipv6Header,
    Ipv6HeaderSlice, UdpHeader, checksum::Sum16BitWords,
};

use crate::packet::{Mac, same_sum};

/// GRE's protocol type of an Ethernet frame (transparent Ethernet bridging, RFC 1701).
pub const TRANSPARENT_ETHERNET: u16 = 0x6558;
/// IP's protocol number of GRE.
pub const IP_PROTOCOL_GRE: u8 = 47;
/// IP's protocol number of UDP.
pub const IP_PROTOCOL_UDP: u8 = 17;
/// The port of GRE in UDP (RFC 8086 8.3).
pub const GRE_UDP_PORT: u16 = 4754;
/// The bit of GRE's first two bytes that says there is a checksum (RFC 2784 2.2).
pub const GRE_CHECKSUM_PRESENT: u16 = 0x8000;
/// The bit that says there is a key (RFC 2890 2).
pub const GRE_KEY_PRESENT: u16 = 0x2000;
/// The bit that says there is a sequence number (RFC 2890 2).
pub const GRE_SEQUENCE_PRESENT: u16 = 0x1000;

/// The UDP header of a GRE packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// The source port.
    pub source_port: u16,
    /// The destination port.
    pub destination_port: u16,
    /// Whether there is a checksum.
    pub has_checksum: bool,
    /// Whether it is right.
    pub checksum_ok: bool,
}

/// A GRE packet that was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gre {
    /// The outer Ethernet destination.
    pub outer_destination: Mac,
    /// The outer Ethernet source.
    pub outer_source: Mac,
    /// The outer IP source.
    pub source: IpAddr,
    /// The outer IP destination.
    pub destination: IpAddr,
    /// The outer TTL or hop limit.
    pub ttl: u8,
    /// The outer DSCP and ECN.
    pub tos: u8,
    /// The outer don't-fragment bit; true over IPv6.
    pub dont_fragment: bool,
    /// The outer IPv4 identification; zero over IPv6.
    pub identification: u16,
    /// Length of the outer IP packet, its header included.
    pub total_length: u16,
    /// Whether the outer IPv4 header's checksum is right; true over IPv6.
    pub checksum_ok: bool,
    /// What GRE rests on, where it is not IP itself.
    pub udp: Option<Udp>,
    /// GRE's flags and version.
    pub flags: u16,
    /// GRE's protocol type.
    pub protocol: u16,
    /// Whether GRE's checksum is right, if it has one.
    pub gre_checksum_ok: Option<bool>,
    /// GRE's key.
    pub key: Option<u32>,
    /// GRE's sequence number.
    pub sequence: Option<u32>,
    /// The inner frame.
    pub inner: Vec<u8>,
}

/// What stands before GRE's header, as far as both families have it.
struct Ip<'a> {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    tos: u8,
    dont_fragment: bool,
    identification: u16,
    total_length: usize,
    checksum_ok: bool,
    protocol: u8,
    payload: &'a [u8],
}

fn read_v4(packet: &[u8]) -> Result<Ip<'_>> {
    let slice = Ipv4HeaderSlice::from_slice(packet).context("the outer IPv4 header")?;
    let header = slice.to_header();
    ensure!(!header.is_fragmenting_payload(), "a fragment");
    // A superframe of 64 KiB and more would say zero here; none of the tests makes one.
    let total_length = usize::from(header.total_len);
    let payload = packet.get(slice.slice().len()..total_length).context("cut short")?;
    Ok(Ip {
        source: Ipv4Addr::from(header.source).into(),
        destination: Ipv4Addr::from(header.destination).into(),
        ttl: header.time_to_live,
        tos: header.dscp.value() << 2 | header.ecn.value(),
        dont_fragment: header.dont_fragment,
        identification: header.identification,
        total_length,
        checksum_ok: header.calc_header_checksum() == header.header_checksum,
        protocol: header.protocol.0,
        payload,
    })
}

fn read_v6(packet: &[u8]) -> Result<Ip<'_>> {
    let header = Ipv6HeaderSlice::from_slice(packet).context("the outer IPv6 header")?.to_header();
    let total_length = Ipv6Header::LEN + usize::from(header.payload_length);
    Ok(Ip {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        ttl: header.hop_limit,
        tos: header.traffic_class,
        dont_fragment: true,
        identification: 0,
        total_length,
        checksum_ok: true,
        protocol: header.next_header.0,
        payload: packet.get(Ipv6Header::LEN..total_length).context("cut short")?,
    })
}

fn read_udp<'a>(ip: &Ip<'a>) -> Result<(Udp, &'a [u8])> {
    let (header, payload) = UdpHeader::from_slice(ip.payload).context("the outer UDP header")?;
    ensure!(header.destination_port == GRE_UDP_PORT, "UDP to port {}", header.destination_port);
    ensure!(usize::from(header.length) == ip.payload.len(), "{} bytes in UDP", header.length);
    let udp = Udp {
        source_port: header.source_port,
        destination_port: header.destination_port,
        has_checksum: header.checksum != 0,
        checksum_ok: same_sum(header.checksum, udp_checksum(ip.source, ip.destination, &header, payload)?),
    };
    Ok((udp, payload))
}

fn udp_checksum(source: IpAddr, destination: IpAddr, header: &UdpHeader, payload: &[u8]) -> Result<u16> {
    Ok(match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), payload)?
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), payload)?
        }
        _ => bail!("{source} and {destination} are of two families"),
    })
}

/// The Internet checksum of a GRE header and what follows, its own field taken for zero (RFC 2784 2.4).
fn gre_checksum(gre: &[u8]) -> u16 {
    let (before, after) = gre.split_at(4);
    let sum = Sum16BitWords::new().add_slice(before).add_slice(after.get(2..).unwrap_or_default());
    sum.ones_complement().to_be()
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
        let packet = ethernet.payload().payload;
        let ip = match ethernet.ether_type().0 {
            0x0800 => read_v4(packet)?,
            0x86dd => read_v6(packet)?,
            _ => bail!("not IP but {:?}", ethernet.ether_type()),
        };
        let (udp, gre) = match ip.protocol {
            IP_PROTOCOL_GRE => (None, ip.payload),
            IP_PROTOCOL_UDP => {
                let (udp, gre) = read_udp(&ip)?;
                (Some(udp), gre)
            }
            protocol => bail!("not GRE but protocol {protocol}"),
        };
        let [f0, f1, p0, p1, rest @ ..] = gre else { bail!("a GRE header cut short") };
        let flags = u16::from_be_bytes([*f0, *f1]);
        let mut rest = rest;
        let mut field = |bit: u16| -> Result<Option<u32>> {
            if flags & bit == 0 {
                return Ok(None);
            }
            let (field, after) = rest.split_first_chunk().context("a GRE field cut short")?;
            rest = after;
            Ok(Some(u32::from_be_bytes(*field)))
        };
        let checksum = field(GRE_CHECKSUM_PRESENT)?;
        let (key, sequence) = (field(GRE_KEY_PRESENT)?, field(GRE_SEQUENCE_PRESENT)?);
        Ok(Self {
            outer_destination: ethernet.destination(),
            outer_source: ethernet.source(),
            source: ip.source,
            destination: ip.destination,
            ttl: ip.ttl,
            tos: ip.tos,
            dont_fragment: ip.dont_fragment,
            identification: ip.identification,
            total_length: ip.total_length.try_into()?,
            checksum_ok: ip.checksum_ok,
            udp,
            flags,
            protocol: u16::from_be_bytes([*p0, *p1]),
            // The two bytes behind the checksum are sent as zero (RFC 2784 2.6).
            gre_checksum_ok: checksum
                .map(|field| field & 0xffff == 0 && same_sum((field >> 16) as u16, gre_checksum(gre))),
            key,
            sequence,
            inner: rest.to_vec(),
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

/// A GRE packet as a peer of another make sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The outer Ethernet source.
    pub source_mac: Mac,
    /// The outer Ethernet destination.
    pub destination_mac: Mac,
    /// The outer IP source.
    pub source: IpAddr,
    /// The outer IP destination, of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// What tells an IP packet's fragments from another's.
    pub identification: u16,
    /// IPv4's don't-fragment bit.
    pub dont_fragment: bool,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// The source port, if GRE rests on UDP.
    pub udp: Option<u16>,
    /// Bits of GRE's first two bytes besides those that the fields below set.
    pub flags: u16,
    /// GRE's protocol type.
    pub protocol: u16,
    /// With GRE's checksum.
    pub checksum: bool,
    /// GRE's key.
    pub key: Option<u32>,
    /// GRE's sequence number.
    pub sequence: Option<u32>,
}

impl Outer {
    /// Plain GRE with this key and nothing else.
    pub fn new(macs: (Mac, Mac), source: IpAddr, destination: IpAddr, key: Option<u32>) -> Self {
        Self {
            source_mac: macs.0,
            destination_mac: macs.1,
            source,
            destination,
            ttl: 64,
            tos: 0,
            identification: 0,
            dont_fragment: false,
            options: Vec::new(),
            udp: None,
            flags: 0,
            protocol: TRANSPARENT_ETHERNET,
            checksum: false,
            key,
            sequence: None,
        }
    }

    /// GRE's header and a frame in it.
    pub fn gre(&self, inner: &[u8]) -> Vec<u8> {
        let flag = |is: bool, bit: u16| if is { bit } else { 0 };
        let flags = self.flags
            | flag(self.checksum, GRE_CHECKSUM_PRESENT)
            | flag(self.key.is_some(), GRE_KEY_PRESENT)
            | flag(self.sequence.is_some(), GRE_SEQUENCE_PRESENT);
        let mut gre = [flags.to_be_bytes(), self.protocol.to_be_bytes()].concat();
        let fields = [self.checksum.then_some(0), self.key, self.sequence];
        gre.extend(fields.into_iter().flatten().flat_map(u32::to_be_bytes));
        gre.extend(inner);
        if self.checksum {
            let checksum = gre_checksum(&gre);
            gre[4..6].copy_from_slice(&checksum.to_be_bytes());
        }
        gre
    }

    /// What the outer IP packet carries, and its protocol.
    fn payload(&self, inner: &[u8]) -> Result<(u8, Vec<u8>)> {
        let gre = self.gre(inner);
        let Some(source_port) = self.udp else { return Ok((IP_PROTOCOL_GRE, gre)) };
        let length = u16::try_from(UdpHeader::LEN + gre.len())?;
        let mut header = UdpHeader { source_port, destination_port: GRE_UDP_PORT, length, checksum: 0 };
        header.checksum = udp_checksum(self.source, self.destination, &header, &gre)?;
        Ok((IP_PROTOCOL_UDP, [&header.to_bytes()[..], &gre].concat()))
    }

    /// The packet with a frame in it, ready to be sent.
    ///
    /// # Errors
    /// It is too long for an IP packet, or the addresses are of two families.
    pub fn frame(&self, inner: &[u8]) -> Result<Vec<u8>> {
        let (protocol, payload) = self.payload(inner)?;
        self.ip(protocol, &payload, None)
    }

    /// The packet with a frame in it, in fragments that carry so many bytes each: a multiple of eight.
    ///
    /// # Errors
    /// As [`Outer::frame`].
    pub fn fragments(&self, inner: &[u8], bytes: usize) -> Result<Vec<Vec<u8>>> {
        let (protocol, payload) = self.payload(inner)?;
        let chunks: Vec<&[u8]> = payload.chunks(bytes).collect();
        let fragment = |(index, chunk): (usize, &&[u8])| {
            let offset = IpFragOffset::try_new(u16::try_from(index * bytes / 8)?)?;
            self.ip(protocol, chunk, Some((offset, index + 1 < chunks.len())))
        };
        chunks.iter().enumerate().map(fragment).collect()
    }

    fn ip(&self, protocol: u8, payload: &[u8], fragment: Option<(IpFragOffset, bool)>) -> Result<Vec<u8>> {
        let mut frame = [self.destination_mac, self.source_mac].concat();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let mut header = Ipv4Header::new(0, self.ttl, IpNumber(protocol), source, destination)?;
                header.options = self.options[..].try_into()?;
                header.set_payload_len(payload.len())?;
                header.dscp = (self.tos >> 2).try_into()?;
                header.ecn = (self.tos & 3).try_into()?;
                header.identification = self.identification;
                header.dont_fragment = self.dont_fragment;
                (header.fragment_offset, header.more_fragments) =
                    fragment.unwrap_or((IpFragOffset::ZERO, false));
                header.header_checksum = header.calc_header_checksum();
                frame.extend([0x08, 0x00]);
                frame.extend(header.to_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (fragment_offset, more_fragments) = fragment.unwrap_or((IpFragOffset::ZERO, false));
                let extension = Ipv6FragmentHeader {
                    next_header: IpNumber(protocol),
                    fragment_offset,
                    more_fragments,
                    identification: self.identification.into(),
                };
                let extension = if fragment.is_some() { &extension.to_bytes()[..] } else { &[] };
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    payload_length: u16::try_from(extension.len() + payload.len())?,
                    next_header: if extension.is_empty() {
                        IpNumber(protocol)
                    } else {
                        IpNumber::IPV6_FRAGMENTATION_HEADER
                    },
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                frame.extend([0x86, 0xdd]);
                frame.extend(header.to_bytes());
                frame.extend(extension);
            }
            (source, destination) => bail!("{source} and {destination} are of two families"),
        }
        frame.extend(payload);
        Ok(frame)
    }
}

/// An address of the underlay in IPv6.
pub const fn v6(network: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, network, 0, 0, 0, host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{BROADCAST, marked};

    const MACS: (Mac, Mac) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

    fn outer(version: u8) -> Outer {
        let v4 = |host| IpAddr::V4(Ipv4Addr::new(192, 0, 2, host));
        let (source, destination) = if version == 4 { (v4(1), v4(2)) } else { (v6(0, 1), v6(0, 2)) };
        Outer::new(MACS, source, destination, Some(7))
    }

    #[test]
    fn what_is_made_is_read() {
        let inner = marked(BROADCAST, [2, 0, 0, 0, 1, 0x10], "inner");
        for version in [4, 6] {
            for bits in 0..16_u16 {
                let made = Outer {
                    tos: 0xb9,
                    ttl: 9,
                    checksum: bits & 1 != 0,
                    key: (bits & 2 != 0).then_some(0xdead_beef),
                    sequence: (bits & 4 != 0).then_some(3),
                    udp: (bits & 8 != 0).then_some(50_000),
                    ..outer(version)
                };
                let read = Gre::read(&made.frame(&inner).expect("short")).expect("GRE");
                assert_eq!((read.source, read.destination), (made.source, made.destination));
                assert_eq!((read.outer_source, read.outer_destination), MACS);
                assert_eq!((read.ttl, read.tos, read.checksum_ok), (9, 0xb9, true));
                assert_eq!((read.key, read.sequence, read.inner), (made.key, made.sequence, inner.clone()));
                assert_eq!(read.gre_checksum_ok, made.checksum.then_some(true));
                assert_eq!(read.protocol, TRANSPARENT_ETHERNET);
                let udp = read.udp.map(|udp| (udp.source_port, udp.has_checksum, udp.checksum_ok));
                assert_eq!(udp, made.udp.map(|port| (port, true, true)));
            }
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_standards() {
        // RFC 2784 2.1 and RFC 2890 2: C, K and S, the checksum and two reserved bytes, key, sequence number.
        let made = Outer { checksum: true, sequence: Some(1), ..outer(4) };
        let gre = made.gre(&[0xff; 6]);
        assert_eq!(gre[..4], [0xb0, 0x00, 0x65, 0x58]);
        assert_eq!(gre[6..16], [0, 0, 0, 0, 0, 7, 0, 0, 0, 1]);
        // b000 + 6558 + 0007 + 0001 and three times ffff, folded: 1561; its complement.
        assert_eq!(gre[4..6], [0xea, 0x9e]);
    }

    #[test]
    fn a_wrong_checksum_is_seen() {
        let made = Outer { checksum: true, ..outer(4) };
        let mut frame = made.frame(&marked(BROADCAST, MACS.0, "x")).expect("short");
        if let Some(last) = frame.last_mut() {
            *last ^= 1;
        }
        assert_eq!(Gre::read(&frame).expect("GRE").gre_checksum_ok, Some(false));
    }

    #[test]
    fn fragments_put_together_are_the_packet() {
        for version in [4, 6] {
            let made = Outer { identification: 77, ..outer(version) };
            let inner = vec![0xa5; 1000];
            let fragments = made.fragments(&inner, 400).expect("short");
            assert_eq!(fragments.len(), 3);
            let header = if version == 4 { 14 + 20 } else { 14 + 40 + 8 };
            let together: Vec<u8> = fragments.iter().flat_map(|one| one[header..].to_vec()).collect();
            assert_eq!(together, made.gre(&inner));
            assert!(fragments.iter().all(|one| Gre::parse(one).is_none()));
        }
    }
}
