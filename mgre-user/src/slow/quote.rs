//! What a router says of one of our packets: that it was too big for the next link (RFC 1191, RFC 8201), or that it has
//! no way to the peer (RFC 792, RFC 4443 3.1). Pure.
//!
//! Anybody can send such a message, so it is taken only if it quotes a packet that we could have sent: from one of
//! our endpoints to a peer's, with the GRE header that goes there (RFC 5927 4, RFC 8201 6).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mgre_common::checksum::checksum;
use mgre_common::table::template_option;
use mgre_common::wire::{IPV4_LEN, IPV6_LEN, IpProtocol};

use super::known::{Known, is_begun_by};

/// Length of the header of an ICMP error.
const ICMP_LEN: usize = 8;
/// Length of an IPv6 fragment header.
const FRAGMENT_LEN: usize = 8;
/// MTUs of links, for routers that do not say theirs (RFC 1191 7.1).
const PLATEAUS: [u32; 11] = [65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68];

/// A path that is narrower than a packet was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Narrow {
    /// The endpoint that it leads to.
    pub remote: IpAddr,
    /// The longest IP packet that goes there, in bytes.
    pub mtu: u32,
}

/// What a router says of the path to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is narrower than a packet was.
    Narrow(Narrow),
    /// It ends at the router.
    NoWay {
        /// The endpoint that it would lead to.
        remote: IpAddr,
    },
}

/// Whether a message of a family may be about a packet that was too big, or for which there was no way: by that network
/// or to that host (ICMP), no route or no such neighbour (ICMPv6).
pub fn is_about_path(v6: bool, message: &[u8]) -> bool {
    match v6 {
        false => matches!(message, [3, 4 | 0 | 1, ..]),
        true => matches!(message, [2, 0, ..] | [1, 0 | 3, ..]),
    }
}

/// Reads an ICMP message, from its type on. None if it is no such message, or not about a packet of ours.
pub fn read_v4(message: &[u8], known: &Known) -> Option<Said> {
    let (header, quote) = message.split_first_chunk::<ICMP_LEN>()?;
    if !is_about_path(false, message) || checksum(message) != 0 {
        return None;
    }
    let (ip, rest) = quote.split_first_chunk::<IPV4_LEN>()?;
    let total = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
    // We send no options, and only a first fragment has the header.
    if ip[0] != 0x45 || u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0 {
        return None;
    }
    let mtu = match (header[1], u16::from_be_bytes([header[6], header[7]])) {
        (4, 0) => Some(PLATEAUS.into_iter().find(|plateau| *plateau < total)?),
        (4, mtu) => Some(mtu.into()),
        _ => None,
    };
    let local = IpAddr::V4(Ipv4Addr::from(*ip[12..].first_chunk::<4>()?));
    let remote = IpAddr::V4(Ipv4Addr::from(*ip[16..].first_chunk::<4>()?));
    judge(known, Quote { remote, local, protocol: ip[9], rest }, mtu, total)
}

/// Reads an ICMPv6 message, from its type on, whose checksum is right. None as for [`read_v4`].
pub fn read_v6(message: &[u8], known: &Known) -> Option<Said> {
    let (header, quote) = message.split_first_chunk::<ICMP_LEN>()?;
    if !is_about_path(true, message) {
        return None;
    }
    let mtu = (header[0] == 2).then_some(u32::from_be_bytes(*header.last_chunk()?));
    let (ip, rest) = quote.split_first_chunk::<IPV6_LEN>()?;
    if ip[0] >> 4 != 6 {
        return None;
    }
    let total = IPV6_LEN as u32 + u32::from(u16::from_be_bytes([ip[4], ip[5]]));
    let (protocol, rest) = match IpProtocol(ip[6]) {
        // Cut by the slow path; only the first has the header.
        IpProtocol::FRAGMENT => {
            let (fragment, rest) = rest.split_first_chunk::<FRAGMENT_LEN>()?;
            if u16::from_be_bytes([fragment[2], fragment[3]]) & !7 != 0 {
                return None;
            }
            (fragment[0], rest)
        }
        IpProtocol(protocol) => (protocol, rest),
    };
    let local = IpAddr::V6(Ipv6Addr::from(*ip[8..].first_chunk::<16>()?));
    let remote = IpAddr::V6(Ipv6Addr::from(*ip[24..].first_chunk::<16>()?));
    judge(known, Quote { remote, local, protocol, rest }, mtu, total)
}

/// A quoted packet.
struct Quote<'a> {
    remote: IpAddr,
    local: IpAddr,
    protocol: u8,
    /// What stands behind its IP header.
    rest: &'a [u8],
}

/// `mtu`: of a packet that was too big.
fn judge(known: &Known, quote: Quote<'_>, mtu: Option<u32>, total: u32) -> Option<Said> {
    // A packet that fits is not too big.
    if mtu.is_some_and(|mtu| mtu >= total) {
        return None;
    }
    let remote = quote.remote;
    let ours = known.templates(quote.remote, quote.local).any(|template| {
        let udp = template.options & template_option::UDP != 0;
        let protocol = if udp { IpProtocol::UDP } else { IpProtocol::GRE };
        quote.protocol == protocol.0 && is_begun_by(template, quote.rest)
    });
    ours.then_some(mtu.map_or(Said::NoWay { remote }, |mtu| Said::Narrow(Narrow { remote, mtu })))
}

#[cfg(test)]
#[path = "quote_tests.rs"]
mod tests;
