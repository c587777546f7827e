//! From the kernel's messages to this crate's types. Pure; only the attributes that are needed are looked at.

use std::net::IpAddr;

use libc::{
    AF_INET, AF_INET6, ARPHRD_ETHER, IFF_LOOPBACK, IFF_LOWER_UP, IFF_PROMISC, IFF_RUNNING, IFF_UP,
    IFLA_ADDRESS, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO,
    IFLA_MASTER, IFLA_MTU, IFLA_STATS64, IFLA_XDP, NTF_EXT_LEARNED, NUD_DELAY, NUD_NOARP, NUD_PERMANENT,
    NUD_PROBE, NUD_REACHABLE, NUD_STALE, RTA_CACHEINFO, RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTA_PREFSRC,
    RTA_VIA, RTN_ANYCAST, RTN_LOCAL, RTN_UNICAST,
};
use mgre_common::wire::MacAddr;
use netlink_packet_core::NlasIterator;
use netlink_packet_route::neighbour::NeighbourExtFlags;

use super::{Address, Link, Neighbor, Route};

/// `RTM_F_CLONED` and `RTAX_MTU` of include/uapi/linux/rtnetlink.h.
const RTM_F_CLONED: u32 = 0x200;
const RTAX_MTU: u16 = 2;
/// `IFLA_XDP_PROG_ID` of include/uapi/linux/if_link.h.
const XDP_PROGRAM_ID: u16 = 4;
/// Of include/uapi/linux/neighbour.h.
const NDA_PROTOCOL: u16 = 12;
/// Of include/uapi/linux/neighbour.h, since Linux 5.16.
const NDA_FLAGS_EXT: u16 = 15;

/// States in which an entry's link-layer address may be used (`NUD_VALID` of include/net/neighbour.h).
const USABLE: u16 = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT | NUD_NOARP;

/// Attributes in a buffer: type without flag bits, value. Ends at the first malformed one.
pub(super) fn attributes(buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(buffer).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let (kind, length) = (attribute.kind(), attribute.length().into());
        Some((kind, attribute.into_inner().get(4..length)?))
    })
}

/// A string attribute, without its terminating zero. `None` if it is empty.
pub(super) fn text(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    (end > 0).then(|| String::from_utf8_lossy(&value[..end]).into_owned())
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        16 => value.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}

/// `RTA_VIA`: a gateway of another address family, after that family's number.
fn via(value: &[u8]) -> Option<IpAddr> {
    address(value.get(2..)?)
}

fn mac(value: &[u8]) -> Option<MacAddr> {
    value.try_into().ok().map(MacAddr)
}

/// A link from `struct ifinfomsg` and its attributes.
pub(super) fn link(payload: &[u8]) -> Option<Link> {
    let (header, rest) = payload.split_first_chunk::<16>()?;
    let flags = number(&header[8..12])?;
    let has = |flag: libc::c_int| flags & flag as u32 != 0;
    let mut link = Link {
        index: number(&header[4..8])?,
        ethernet: u16::from_ne_bytes([header[2], header[3]]) == ARPHRD_ETHER,
        up: has(IFF_UP),
        running: has(IFF_RUNNING) && has(IFF_LOWER_UP),
        promiscuous: has(IFF_PROMISC),
        loopback: has(IFF_LOOPBACK),
        ..Link::default()
    };
    let mut elsewhere = false;
    for (kind, value) in attributes(rest) {
        match kind {
            IFLA_IFNAME => link.name = text(value)?,
            IFLA_ADDRESS => link.mac = mac(value),
            IFLA_MTU => link.mtu = number(value)?,
            IFLA_IFALIAS => link.alias = text(value),
            IFLA_MASTER => link.controller = number(value).filter(|index| *index != 0),
            IFLA_LINK => link.peer_index = number(value).filter(|index| *index != 0),
            IFLA_LINK_NETNSID => elsewhere = true,
            IFLA_XDP => {
                link.xdp_program =
                    attributes(value).find(|(kind, _)| *kind == XDP_PROGRAM_ID).and_then(|(_, v)| number(v));
            }
            IFLA_LINKINFO => {
                link.kind =
                    attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND).and_then(|(_, v)| text(v));
            }
            _ => {}
        }
    }
    if elsewhere {
        link.peer_index = None;
    }
    Some(link)
}

/// How many packets an interface was given and the kernel had no room for, of the same message.
pub(super) fn received_and_dropped(payload: &[u8]) -> Option<u64> {
    /// Where `rx_dropped` is in `struct rtnl_link_stats64`.
    const AT: usize = 6 * 8;
    let (_, value) = attributes(payload.get(16..)?).find(|(kind, _)| *kind == IFLA_STATS64)?;
    Some(u64::from_ne_bytes(*value.get(AT..)?.first_chunk()?))
}

/// An address from `struct ifaddrmsg` and its attributes.
pub(super) fn interface_address(payload: &[u8]) -> Option<Address> {
    let (header, rest) = payload.split_first_chunk::<8>()?;
    let (mut local, mut other) = (None, None);
    for (kind, value) in attributes(rest) {
        match kind {
            // On a point-to-point link IFA_ADDRESS is the far end's and IFA_LOCAL is ours; IPv6 mostly
            // sends IFA_ADDRESS alone.
            libc::IFA_LOCAL => local = address(value),
            libc::IFA_ADDRESS => other = address(value),
            _ => {}
        }
    }
    Some(Address {
        ifindex: number(&header[4..8])?,
        address: local.or(other)?,
        prefix_len: header[1],
        duplicate: u32::from(header[2]) & libc::IFA_F_DADFAILED != 0,
    })
}

/// What a route lookup found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A route a packet can take, or that ends on this host.
    Usable(Route),
    /// Unreachable, prohibited, blackhole, broadcast, multicast.
    Unusable,
}

/// A route from `struct rtmsg` and its attributes. The MTU that the kernel learned of a path is left out: it takes
/// the word of whoever quotes some packet between the two addresses.
pub(super) fn route(payload: &[u8]) -> Option<Found> {
    let (header, rest) = payload.split_first_chunk::<12>()?;
    let kind = header[7];
    if ![RTN_UNICAST, RTN_LOCAL, RTN_ANYCAST].contains(&kind) {
        return Some(Found::Unusable);
    }
    let mut route = Route { local: kind != RTN_UNICAST, ..Route::default() };
    let mut expires = false;
    for (kind, value) in attributes(rest) {
        match kind {
            RTA_OIF => route.ifindex = number(value)?,
            RTA_GATEWAY => route.gateway = address(value),
            RTA_VIA => route.gateway = via(value),
            RTA_PREFSRC => route.preferred_source = address(value),
            RTA_METRICS => {
                route.mtu = attributes(value)
                    .find(|(kind, _)| *kind == RTAX_MTU)
                    .and_then(|(_, value)| number(value))
                    .filter(|mtu| *mtu != 0);
            }
            RTA_CACHEINFO => expires = value.get(8..12).and_then(number).is_some_and(|left| left != 0),
            _ => {}
        }
    }
    // An IPv6 route that a router announced expires too, but is no copy of another.
    if expires && number(&header[8..12])? & RTM_F_CLONED != 0 {
        route.mtu = None;
    }
    Some(Found::Usable(route))
}

/// An entry of the IPv4 or IPv6 neighbour table, with what decides whether it is ours to keep.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NeighborEntry {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
    pub(super) neighbor: Neighbor,
    /// It is never asked for: `PERMANENT` or `NOARP`.
    pub(super) fixed: bool,
    /// `NTF_EXT_LEARNED`: it does not count against the table's limits.
    pub(super) learned: bool,
    /// `NTF_EXT_MANAGED`: the kernel keeps it resolved.
    pub(super) managed: bool,
    /// `NDA_PROTOCOL`: who made it; 0 if nobody said.
    pub(super) protocol: u8,
}

/// A neighbour from `struct ndmsg` and its attributes. `None` for anything but an IP neighbour,
/// such as a bridge's forwarding entry or a proxy entry.
pub(super) fn neighbor(payload: &[u8]) -> Option<NeighborEntry> {
    let (header, rest) = payload.split_first_chunk::<12>()?;
    let family = libc::c_int::from(header[0]);
    let state = u16::from_ne_bytes([header[8], header[9]]);
    let flags = header[10];
    if !matches!(family, AF_INET | AF_INET6) || flags & libc::NTF_PROXY != 0 {
        return None;
    }
    let (mut destination, mut entry_mac, mut protocol, mut extended) = (None, None, 0, 0);
    for (kind, value) in attributes(rest) {
        match kind {
            libc::NDA_DST => destination = address(value),
            libc::NDA_LLADDR => entry_mac = mac(value),
            NDA_PROTOCOL => protocol = *value.first()?,
            NDA_FLAGS_EXT => extended = number(value)?,
            _ => {}
        }
    }
    Some(NeighborEntry {
        ifindex: number(&header[4..8])?,
        address: destination?,
        neighbor: Neighbor { mac: entry_mac, usable: state & USABLE != 0 },
        fixed: state & (NUD_PERMANENT | NUD_NOARP) != 0,
        learned: flags & NTF_EXT_LEARNED != 0,
        managed: extended & NeighbourExtFlags::Managed.bits() != 0,
        protocol,
    })
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
