//! Makes outer-header templates: what the daemon knows of a peer and its next
//! hop becomes the bytes that the datapath puts before a frame.

use bytemuck::Zeroable;

use crate::checksum;
use crate::table::{OuterFamily, TEMPLATE_HEADER_LEN, Template, template_flag};
use crate::wire::{ETHERNET_LEN, EtherType, GRE_FIELD_LEN, GRE_LEN, GreFlags, IPV4_LEN, IpProtocol, MacAddr};

/// The outer header's fields that do not depend on the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OuterV4 {
    /// Our underlay address, as on the wire.
    pub source: [u8; 4],
    /// The peer's endpoint, as on the wire.
    pub destination: [u8; 4],
    /// Time to live.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// The GRE key; keyless is not key 0 (RFC 2890 2.1).
    pub key: Option<u32>,
    /// Nobody on the way may fragment the outer packet. Without it, every packet
    /// gets an identification of its own (RFC 6864).
    pub dont_fragment: bool,
}

/// The way to the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// The interface to send out of.
    pub ifindex: u32,
    /// That interface's address.
    pub source_mac: MacAddr,
    /// The next hop's address, once it is known.
    pub destination_mac: Option<MacAddr>,
    /// The longest IP packet that may go there, in bytes.
    pub mtu: u32,
}

const DONT_FRAGMENT: u8 = 0x40;
const VERSION_AND_IHL: u8 = 0x45;

/// Bytes of outer IPv4 and GRE header, with or without a key.
pub const fn overhead(key: bool) -> u32 {
    (IPV4_LEN + GRE_LEN + if key { GRE_FIELD_LEN } else { 0 }) as u32
}

/// The IP MTU that hosts in a segment may use over an underlay with this MTU:
/// what is left behind the outer headers and the inner Ethernet header. Frames
/// with an 802.1Q tag need four bytes more.
pub const fn overlay_mtu(underlay_mtu: u32, key: bool) -> u32 {
    max_frame(underlay_mtu, key).saturating_sub(ETHERNET_LEN as u32)
}

/// The longest inner frame, Ethernet header included, over an underlay with this MTU.
const fn max_frame(underlay_mtu: u32, key: bool) -> u32 {
    underlay_mtu.saturating_sub(overhead(key))
}

impl Template {
    /// Ethernet, IPv4 and GRE. With no `link` the template is one that sends nothing;
    /// with one whose next hop is not known it is one for which the kernel is asked
    /// ([`template_flag`]).
    pub fn gre_v4(outer: &OuterV4, link: Option<&Link>) -> Self {
        let mut template = Self::zeroed();
        let mut writer = Writer { header: &mut template.header, len: 0 };

        let next_hop = link.and_then(|link| link.destination_mac);
        writer.put(&next_hop.unwrap_or(MacAddr::ZERO).0);
        writer.put(&link.map_or(MacAddr::ZERO, |link| link.source_mac).0);
        writer.put(&EtherType::IPV4.number().to_be_bytes());

        // Total length, identification and checksum stay zero.
        let fragment = if outer.dont_fragment { DONT_FRAGMENT } else { 0 };
        writer.put(&[VERSION_AND_IHL, outer.tos, 0, 0]);
        writer.put(&[0, 0, fragment, 0]);
        writer.put(&[outer.ttl, IpProtocol::GRE.0, 0, 0]);
        writer.put(&outer.source);
        writer.put(&outer.destination);

        // No checksum, no sequence number: superframes stay whole only without them.
        let flags = if outer.key.is_some() { GreFlags::KEY } else { 0 };
        writer.put(&flags.to_be_bytes());
        writer.put(&EtherType::TRANSPARENT_ETHERNET.number().to_be_bytes());
        if let Some(key) = outer.key {
            writer.put(&key.to_be_bytes());
        }

        template.header_len = writer.len as u16;
        let ip = &template.header[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN];
        template.checksum_base = checksum::fold(checksum::add_bytes(0, ip));
        template.family = OuterFamily::Ipv4 as u8;
        if !outer.dont_fragment {
            template.flags |= template_flag::NEEDS_ID;
        }
        if let Some(link) = link {
            template.flags |= template_flag::ROUTED;
            if next_hop.is_some() {
                template.flags |= template_flag::RESOLVED;
            }
            template.ifindex = link.ifindex;
            template.max_frame = max_frame(link.mtu, outer.key.is_some());
        }
        template
    }
}

struct Writer<'a> {
    header: &'a mut [u8; TEMPLATE_HEADER_LEN],
    len: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.header[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Ethernet2Header, IpNumber, Ipv4Header};
    use proptest::prelude::*;

    const LINK: Link = Link {
        ifindex: 7,
        source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        destination_mac: Some(MacAddr([2, 0, 0, 0, 0, 2])),
        mtu: 1500,
    };

    fn outer(key: Option<u32>) -> OuterV4 {
        OuterV4 {
            source: [192, 0, 2, 1],
            destination: [192, 0, 2, 2],
            ttl: 64,
            tos: 0xb8,
            key,
            dont_fragment: true,
        }
    }

    /// The header as a datapath would finish it for an inner frame of this length.
    fn finished(template: &Template, inner_len: u16, id: u16) -> Vec<u8> {
        let mut bytes = template.header[..usize::from(template.header_len)].to_vec();
        let total = template.header_len - 14 + inner_len;
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
        bytes[18..20].copy_from_slice(&id.to_be_bytes());
        let sum = checksum::finish_ipv4(template.checksum_base, total, id);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    #[test]
    fn sizes() {
        assert_eq!((overhead(false), overhead(true)), (24, 28));
        assert_eq!((overlay_mtu(1500, true), overlay_mtu(1500, false)), (1458, 1462));
        assert_eq!(overlay_mtu(20, true), 0);
        let keyed = Template::gre_v4(&outer(Some(0)), Some(&LINK));
        let keyless = Template::gre_v4(&outer(None), Some(&LINK));
        assert_eq!((keyed.header_len, keyed.max_frame), (42, 1472));
        assert_eq!((keyless.header_len, keyless.max_frame), (38, 1476));
        let tiny = Link { mtu: 10, ..LINK };
        assert_eq!(Template::gre_v4(&outer(None), Some(&tiny)).max_frame, 0);
    }

    #[test]
    fn key_zero_is_not_keyless() {
        let keyed = Template::gre_v4(&outer(Some(0)), Some(&LINK));
        assert_eq!(keyed.header[34..42], [0x20, 0, 0x65, 0x58, 0, 0, 0, 0]);
        let keyless = Template::gre_v4(&outer(None), Some(&LINK));
        assert_eq!(keyless.header[34..42], [0, 0, 0x65, 0x58, 0, 0, 0, 0]);
    }

    #[test]
    fn flags_say_what_the_datapath_has_to_do() {
        let fragmentable = OuterV4 { dont_fragment: false, ..outer(None) };
        let usual = template_flag::RESOLVED | template_flag::ROUTED;
        assert_eq!(Template::gre_v4(&outer(None), Some(&LINK)).flags, usual);
        assert_eq!(Template::gre_v4(&fragmentable, Some(&LINK)).flags, usual | template_flag::NEEDS_ID);
        let asked = Template::gre_v4(&outer(None), Some(&Link { destination_mac: None, ..LINK }));
        assert_eq!((asked.flags, asked.ifindex, asked.max_frame), (template_flag::ROUTED, 7, 1476));
        let unresolved = Template::gre_v4(&outer(Some(1)), None);
        assert_eq!((unresolved.flags, unresolved.ifindex, unresolved.max_frame), (0, 0, 0));
        assert_eq!(unresolved.header_len, 42);
    }

    proptest! {
        /// Checked against a parser and a checksum that are not ours.
        #[test]
        fn is_what_another_implementation_reads(
            source: [u8; 4], destination: [u8; 4], ttl: u8, tos: u8, key: Option<u32>,
            dont_fragment: bool, macs: [[u8; 6]; 2], inner_len in 14_u16..9000, id: u16,
        ) {
            let outer = OuterV4 { source, destination, ttl, tos, key, dont_fragment };
            let link = Link { source_mac: MacAddr(macs[0]), destination_mac: Some(MacAddr(macs[1])), ..LINK };
            let template = Template::gre_v4(&outer, Some(&link));
            let bytes = finished(&template, inner_len, id);

            let (ethernet, rest) = Ethernet2Header::from_slice(&bytes).expect("Ethernet");
            prop_assert_eq!([ethernet.source, ethernet.destination], macs);
            prop_assert_eq!(ethernet.ether_type, etherparse::EtherType::IPV4);
            let (ip, gre) = Ipv4Header::from_slice(rest).expect("IPv4");
            prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            prop_assert_eq!(ip.protocol, IpNumber::GRE);
            prop_assert_eq!((ip.source, ip.destination), (source, destination));
            prop_assert_eq!((ip.time_to_live, ip.dscp.value() << 2 | ip.ecn.value()), (ttl, tos));
            prop_assert_eq!((ip.dont_fragment, ip.more_fragments), (dont_fragment, false));
            prop_assert_eq!((ip.identification, ip.fragment_offset.value()), (id, 0));
            prop_assert_eq!(usize::from(ip.total_len), 20 + gre.len() + usize::from(inner_len));
            let mut wanted = vec![if key.is_some() { 0x20 } else { 0 }, 0, 0x65, 0x58];
            wanted.extend(key.iter().flat_map(|key| key.to_be_bytes()));
            prop_assert_eq!(gre, wanted);
        }
    }
}
