//! "Your packet is too big": ICMP fragmentation needed (RFC 1191 4) and ICMPv6 packet too big (RFC 4443 3.2).

use std::net::IpAddr;

use anyhow::{Result, bail};
use etherparse::{
    Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
    icmpv4::DestUnreachableHeader,
};

use crate::packet::Mac;

/// Such a message, that was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooBig {
    /// The Ethernet source.
    pub source_mac: Mac,
    /// The Ethernet destination.
    pub destination_mac: Mac,
    /// Who says it.
    pub source: IpAddr,
    /// Who is told.
    pub destination: IpAddr,
    /// The MTU that it tells.
    pub mtu: u32,
    /// The packet that is too big, or its beginning.
    pub quote: Vec<u8>,
    /// Whether its checksums are right: of IPv4's header, and of ICMP.
    pub checksums_ok: bool,
    /// Length of its IP packet.
    pub total_length: usize,
}

impl TooBig {
    /// Reads such a message; none if it is another packet. VLAN tags before it are passed over.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let (destination_mac, source_mac) = (frame.get(..6)?, frame.get(6..12)?);
        let (source, destination, header_ok, header_len): (IpAddr, IpAddr, bool, usize) = match &packet.net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header().to_header();
                let ok = header.calc_header_checksum() == header.header_checksum;
                (
                    ip.header().source_addr().into(),
                    ip.header().destination_addr().into(),
                    ok,
                    header.header_len(),
                )
            }
            Some(NetSlice::Ipv6(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into(), true, 40)
            }
            _ => return None,
        };
        let (mtu, quote, icmp_ok, icmp_len) = match &packet.transport {
            Some(TransportSlice::Icmpv4(icmp)) => {
                let kind = icmp.icmp_type();
                let Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu,
                }) = kind
                else {
                    return None;
                };
                let ok = kind.calc_checksum(icmp.payload()) == icmp.checksum();
                (next_hop_mtu.into(), icmp.payload(), ok, icmp.slice().len())
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                let Icmpv6Type::PacketTooBig { mtu } = icmp.icmp_type() else { return None };
                let (IpAddr::V6(from), IpAddr::V6(to)) = (source, destination) else { return None };
                let ok = icmp.is_checksum_valid(from.octets(), to.octets());
                (mtu, icmp.payload(), ok, icmp.slice().len())
            }
            _ => return None,
        };
        Some(Self {
            source_mac: source_mac.try_into().ok()?,
            destination_mac: destination_mac.try_into().ok()?,
            source,
            destination,
            mtu,
            quote: quote.to_vec(),
            checksums_ok: header_ok && icmp_ok,
            total_length: header_len + icmp_len,
        })
    }
}

/// A frame that says it: from a router, or from somebody who claims to be one.
///
/// # Errors
/// The addresses are of two families, or the MTU is none of theirs.
pub fn too_big(
    (source_mac, source): (Mac, IpAddr),
    (destination_mac, destination): (Mac, IpAddr),
    mtu: u32,
    quote: &[u8],
) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2(source_mac, destination_mac);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu.try_into()? };
            let builder = ethernet.ipv4(source.octets(), destination.octets(), 64);
            builder.icmpv4(Icmpv4Type::DestinationUnreachable(kind)).write(&mut frame, quote)?;
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let builder = ethernet.ipv6(source.octets(), destination.octets(), 64);
            builder.icmpv6(Icmpv6Type::PacketTooBig { mtu }).write(&mut frame, quote)?;
        }
        (source, destination) => bail!("{source} and {destination} are of two families"),
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::gre::v6;

    #[test]
    fn what_is_made_is_read() {
        let v4 = |host| IpAddr::V4(Ipv4Addr::new(192, 0, 2, host));
        for (source, destination) in [(v4(1), v4(2)), (v6(0, 1), v6(0, 2))] {
            let (from, to) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
            let mut frame = too_big((from, source), (to, destination), 1300, &[0x45; 40]).expect("short");
            let read = TooBig::parse(&frame).expect("it is one");
            assert_eq!((read.source, read.destination), (source, destination));
            assert_eq!((read.source_mac, read.destination_mac), (from, to));
            assert_eq!((read.mtu, read.checksums_ok, read.quote.len()), (1300, true, 40));
            assert_eq!(read.total_length, frame.len() - 14);
            if let Some(last) = frame.last_mut() {
                *last ^= 1;
            }
            assert!(!TooBig::parse(&frame).expect("it is one").checksums_ok);
        }
    }
}
