//! What the sender of a packet that is too big is told: ICMP "fragmentation needed" (RFC 792, RFC 1191), or
//! ICMPv6 "packet too big" (RFC 4443 3.2). Pure.
//!
//! The answer goes back the way that the frame came, tags and all. It comes from the address that the packet was
//! for: nothing between two hosts of a segment has an address of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mgre_common::checksum::{add_bytes, checksum, fold};
use mgre_common::wire::{ETHERNET_LEN, EtherType, IPV4_LEN, IPV6_LEN, IpProtocol, MacAddr, VLAN_TAG_LEN};

/// The least MTU of a link that carries IPv6 (RFC 8200 5).
pub const IPV6_MTU_LEAST: u32 = 1280;
/// The least MTU of a link that carries IPv4 (RFC 791 3.2).
const IPV4_MTU_LEAST: u32 = 68;
/// An ICMP error is no longer than any host must take (RFC 1812 4.3.2.3).
const ICMP_MOST: usize = 576;
/// So is an ICMPv6 error (RFC 4443 2.4 (c)).
const ICMPV6_MOST: usize = 1280;
/// Length of the header of an ICMP error.
const ICMP_LEN: usize = 8;
/// Bytes behind the IP header that tell a host whose packet it was (RFC 792).
const QUOTE_LEAST: usize = 8;
/// Tags that a frame may have in it.
const TAGS_MOST: usize = 4;
/// Extension headers that are looked behind.
const EXTENSIONS_MOST: usize = 8;

const FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];
const PACKET_TOO_BIG: [u8; 2] = [2, 0];
/// Precedence "internetwork control" (RFC 1812 4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;
const DONT_FRAGMENT: u8 = 0x40;
const HOP_LIMIT: u8 = 64;

/// Who sent a frame.
pub type Sender = (MacAddr, IpAddr);

/// A frame whose sender may be told that it was too big.
#[derive(Clone, Copy, Debug)]
pub struct Oversize<'a> {
    destination_mac: MacAddr,
    source_mac: MacAddr,
    /// Tags and EtherType.
    between: &'a [u8],
    /// As much of the IP packet as there is, without what pads the frame.
    packet: &'a [u8],
    addresses: Addresses,
}

#[derive(Clone, Copy, Debug)]
enum Addresses {
    V4 { source: Ipv4Addr, destination: Ipv4Addr },
    V6 { source: Ipv6Addr, destination: Ipv6Addr },
}

impl<'a> Oversize<'a> {
    /// From the first bytes of a frame. None if nobody is to be told: because of what it is (RFC 1122 3.2.2,
    /// RFC 4443 2.4 (e)), or because it cannot be understood.
    pub fn new(frame: &'a [u8]) -> Option<Self> {
        let (ethernet, _) = frame.split_first_chunk::<12>()?;
        let destination_mac = MacAddr(*ethernet.first_chunk()?);
        let source_mac = MacAddr(*ethernet.last_chunk()?);
        if destination_mac.is_group() || !source_mac.is_station() {
            return None;
        }
        let (packet_at, kind) = skip_tags(frame)?;
        let packet = frame.get(packet_at..)?;
        let (packet, addresses) = match kind {
            EtherType::IPV4 => ipv4(packet)?,
            EtherType::IPV6 => ipv6(packet)?,
            _ => return None,
        };
        let between = &frame[ethernet.len()..packet_at];
        Some(Self { destination_mac, source_mac, between, packet, addresses })
    }

    /// Who is to be told.
    pub fn sender(&self) -> Sender {
        let source = match self.addresses {
            Addresses::V4 { source, .. } => IpAddr::V4(source),
            Addresses::V6 { source, .. } => IpAddr::V6(source),
        };
        (self.source_mac, source)
    }

    /// The frame that tells. `mtu` is the longest IP packet that fits, in bytes. `tag` stood beside the frame:
    /// the number of its protocol in the upper half, its control information in the lower one; zero for none.
    pub fn answer(&self, mtu: u32, tag: u32) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ETHERNET_LEN + TAGS_MOST * VLAN_TAG_LEN + ICMPV6_MOST);
        frame.extend(self.source_mac.0);
        frame.extend(self.destination_mac.0);
        if tag != 0 {
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(self.between);
        match self.addresses {
            Addresses::V4 { source, destination } => self.put_v4(&mut frame, source, destination, mtu),
            Addresses::V6 { source, destination } => self.put_v6(&mut frame, source, destination, mtu),
        }
        frame
    }

    fn quote(&self, room: usize) -> &[u8] {
        &self.packet[..self.packet.len().min(room)]
    }

    fn put_v4(&self, frame: &mut Vec<u8>, source: Ipv4Addr, destination: Ipv4Addr, mtu: u32) {
        let quote = self.quote(ICMP_MOST - IPV4_LEN - ICMP_LEN);
        let mtu = mtu.clamp(IPV4_MTU_LEAST, u16::MAX.into()) as u16;
        let icmp = message(FRAGMENTATION_NEEDED, mtu.into(), 0, quote);

        let start = frame.len();
        let total = (IPV4_LEN + icmp.len()) as u16;
        frame.extend([0x45, INTERNETWORK_CONTROL]);
        frame.extend(total.to_be_bytes());
        // Never fragmented, so it needs no identification (RFC 6864 4.1).
        frame.extend([0, 0, DONT_FRAGMENT, 0, HOP_LIMIT, IpProtocol::ICMP.0, 0, 0]);
        frame.extend(destination.octets());
        frame.extend(source.octets());
        let sum = checksum(&frame[start..]);
        frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(icmp);
    }

    fn put_v6(&self, frame: &mut Vec<u8>, source: Ipv6Addr, destination: Ipv6Addr, mtu: u32) {
        let quote = self.quote(ICMPV6_MOST - IPV6_LEN - ICMP_LEN);
        let length = (ICMP_LEN + quote.len()) as u32;
        let mut pseudo = add_bytes(0, &destination.octets());
        pseudo = add_bytes(pseudo, &source.octets());
        pseudo += length + u32::from(IpProtocol::ICMPV6.0);
        let icmp = message(PACKET_TOO_BIG, mtu.max(IPV6_MTU_LEAST), pseudo, quote);

        frame.extend([0x60, 0, 0, 0]);
        frame.extend((length as u16).to_be_bytes());
        frame.extend([IpProtocol::ICMPV6.0, HOP_LIMIT]);
        frame.extend(destination.octets());
        frame.extend(source.octets());
        frame.extend(icmp);
    }
}

/// An ICMP message with its checksum, which covers also what `sum` does.
fn message(kind: [u8; 2], value: u32, sum: u32, quote: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(ICMP_LEN + quote.len());
    message.extend(kind);
    message.extend([0, 0]);
    message.extend(value.to_be_bytes());
    message.extend(quote);
    let sum = !fold(add_bytes(sum, &message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// Where the packet behind all tags begins, and what it is.
fn skip_tags(frame: &[u8]) -> Option<(usize, EtherType)> {
    let mut at = ETHERNET_LEN - 2;
    for _ in 0..=TAGS_MOST {
        let kind = EtherType::from_bytes(*frame.get(at..)?.first_chunk()?);
        if !kind.is_vlan() {
            return Some((at + 2, kind));
        }
        at += VLAN_TAG_LEN;
    }
    None
}

/// The packet without what pads it, and its addresses, if its sender may be answered.
fn ipv4(packet: &[u8]) -> Option<(&[u8], Addresses)> {
    let (header, _) = packet.split_first_chunk::<IPV4_LEN>()?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || header_len < IPV4_LEN || checksum(packet.get(..header_len)?) != 0 {
        return None;
    }
    let packet = match u16::from_be_bytes([header[2], header[3]]) {
        // Longer than the field can say (BIG TCP).
        0 => packet,
        total => &packet[..packet.len().min(total.into())],
    };
    let payload = packet.get(header_len..)?;
    let not_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    if not_first || payload.len() < QUOTE_LEAST {
        return None;
    }
    if header[9] == IpProtocol::ICMP.0 && is_icmp_error(payload[0]) {
        return None;
    }
    let (_, [a, b, c, d, e, f, g, h]) = header.split_last_chunk()?;
    let (source, destination) = (Ipv4Addr::new(*a, *b, *c, *d), Ipv4Addr::new(*e, *f, *g, *h));
    let good = is_host(source) && is_host(destination);
    good.then_some((packet, Addresses::V4 { source, destination }))
}

/// Whether an address is one host's, and not this one's own (RFC 1122 3.2.1.3).
fn is_host(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    // 0 is this network, 127 this host, 224 and up are groups, reserved, and everybody.
    !matches!(first, 0 | 127 | 224..)
}

/// Whether an ICMP message reports an error: those of no known kind may do.
const fn is_icmp_error(kind: u8) -> bool {
    !matches!(kind, 0 | 8..=10 | 13..=18)
}

fn ipv6(packet: &[u8]) -> Option<(&[u8], Addresses)> {
    let (header, _) = packet.split_first_chunk::<IPV6_LEN>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let packet = match u16::from_be_bytes([header[4], header[5]]) {
        // Longer than the field can say (RFC 2675).
        0 => packet,
        length => &packet[..packet.len().min(IPV6_LEN + usize::from(length))],
    };
    if packet.len() < IPV6_LEN + QUOTE_LEAST || is_icmpv6_error(header[6], &packet[IPV6_LEN..]) {
        return None;
    }
    let source = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
    let destination = Ipv6Addr::from(*header[24..].first_chunk::<16>()?);
    let good =
        |address: Ipv6Addr| !address.is_unspecified() && !address.is_multicast() && !address.is_loopback();
    let good = good(source) && good(destination);
    good.then_some((packet, Addresses::V6 { source, destination }))
}

/// Whether a packet is an ICMPv6 error or a redirect, or a later fragment, which may be of one, or cannot be
/// understood.
fn is_icmpv6_error(mut protocol: u8, mut rest: &[u8]) -> bool {
    for _ in 0..EXTENSIONS_MOST {
        let length = match IpProtocol(protocol) {
            IpProtocol::ICMPV6 => return rest.first().is_none_or(|kind| *kind < 128 || *kind == 137),
            IpProtocol::HOP_BY_HOP | IpProtocol::ROUTING | IpProtocol::DESTINATION_OPTIONS => {
                rest.get(1).map(|length| 8 + 8 * usize::from(*length))
            }
            IpProtocol::FRAGMENT => {
                let offset = rest.get(2..4).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]) & !7);
                offset.filter(|offset| *offset == 0).map(|_| 8)
            }
            _ => return false,
        };
        let Some(next) = length.and_then(|length| rest.get(length..)) else { return true };
        protocol = rest[0];
        rest = next;
    }
    true
}

#[cfg(test)]
#[path = "icmp_tests.rs"]
mod tests;
