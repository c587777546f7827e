//! Makes outer-header templates: what the daemon knows of a peer and its next
//! hop becomes the bytes that the datapath puts before a frame.

use core::net::IpAddr;

use bytemuck::Zeroable;

use crate::checksum;
use crate::table::{
    OuterFamily, TEMPLATE_HEADER_LEN, Template, template_flag, template_option, template_shape,
};
use crate::wire::{
    ETHERNET_LEN, EtherType, GRE_FIELD_LEN, GRE_IN_UDP_PORT, GRE_LEN, GreFlags, IPV4_LEN, IPV6_LEN,
    IpProtocol, MacAddr, UDP_LEN,
};

/// What tells a segment's packets from another's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// No key field, which is not the same as key 0 (RFC 2890 2.1).
    #[default]
    None,
    /// A key field with this number.
    Plain(u32),
    /// NVGRE: a key field with this virtual subnet id (24 bits) and a flow id (RFC 7637 3.2).
    Vsid(u32),
}

impl Key {
    /// The key field as on the wire, a flow id zero; zero also where there is no field.
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Plain(key) => key.to_be(),
            Self::Vsid(vsid) => (vsid << 8).to_be(),
        }
    }
}

/// DSCP of outer packets (RFC 2983). ECN is always that of the frame inside (RFC 6040 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tos {
    /// The pipe model: this octet, its two ECN bits zero.
    Fixed(u8),
    /// The uniform model: that of the IP packet inside, zero where there is none.
    Inherit,
}

/// Whether an outer IPv4 packet forbids fragmentation on its way. Where it does not, it
/// has an identification of its own (RFC 6864 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DontFragment {
    /// It does.
    Set,
    /// It does not.
    Unset,
    /// It does where the packet inside is IPv6, or IPv4 that does.
    Inherit,
}

/// What GRE rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// IP.
    #[default]
    Gre,
    /// UDP (RFC 8086).
    GreUdp,
}

/// The outer header's fields that do not depend on the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outer {
    /// Our underlay address.
    pub source: IpAddr,
    /// The peer's endpoint, of the same family.
    pub destination: IpAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// DSCP.
    pub tos: Tos,
    /// Of IPv4 packets; IPv6 ones are never fragmented on their way.
    pub dont_fragment: DontFragment,
    /// The segment's.
    pub key: Key,
    /// With a checksum (RFC 2784 2.2).
    pub checksum: bool,
    /// With sequence numbers (RFC 2890 2.2).
    pub sequence: bool,
    /// What GRE rests on.
    pub encapsulation: Encapsulation,
}

impl Outer {
    /// Bytes of outer IP, UDP and GRE header.
    pub const fn overhead(&self) -> u32 {
        let ip = if self.destination.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
        let udp = if matches!(self.encapsulation, Encapsulation::GreUdp) { UDP_LEN } else { 0 };
        (ip + udp + GreFlags(self.flags()).header_len()) as u32
    }

    const fn flags(&self) -> u16 {
        let key = if matches!(self.key, Key::None) { 0 } else { GreFlags::KEY };
        let checksum = if self.checksum { GreFlags::CHECKSUM } else { 0 };
        let sequence = if self.sequence { GreFlags::SEQUENCE } else { 0 };
        key | checksum | sequence
    }

    /// A [`template_shape`].
    fn shape(&self) -> u8 {
        let plain = !self.checksum && !self.sequence && self.encapsulation == Encapsulation::Gre;
        match (plain, self.destination.is_ipv4(), self.key) {
            (false, ..) => template_shape::ANY,
            (true, true, Key::None) => template_shape::V4,
            (true, true, _) => template_shape::V4_KEYED,
            (true, false, Key::None) => template_shape::V6,
            (true, false, _) => template_shape::V6_KEYED,
        }
    }

    /// [`template_option`] bits.
    fn options(&self) -> u8 {
        let v4 = self.destination.is_ipv4();
        let options = [
            (self.checksum, template_option::CHECKSUM),
            (self.sequence, template_option::SEQUENCE),
            (self.tos == Tos::Inherit, template_option::INHERIT_TOS),
            (v4 && self.dont_fragment == DontFragment::Inherit, template_option::INHERIT_DF),
            (matches!(self.key, Key::Vsid(_)), template_option::FLOW_ID),
            (self.encapsulation == Encapsulation::GreUdp, template_option::UDP),
        ];
        options.iter().filter(|(is, _)| *is).fold(0, |options, (_, option)| options | option)
    }
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

/// The don't-fragment bit in the upper octet of an IPv4 header's flags.
pub const DONT_FRAGMENT: u8 = 0x40;
const VERSION_AND_IHL: u8 = 0x45;

/// The IP MTU that hosts in a segment may use over an underlay with this MTU:
/// what is left behind the outer headers ([`Outer::overhead`]) and the inner Ethernet
/// header. Frames with an 802.1Q tag need four bytes more.
pub const fn overlay_mtu(underlay_mtu: u32, overhead: u32) -> u32 {
    underlay_mtu.saturating_sub(overhead).saturating_sub(ETHERNET_LEN as u32)
}

impl Template {
    /// Ethernet, IP, perhaps UDP, and GRE. With no `link` the template is one that sends
    /// nothing; with one whose next hop is not known it is one for which the kernel is asked
    /// ([`template_flag`]).
    ///
    /// Lengths, the IPv4 identification and all checksums stay zero, and so do the sequence
    /// number, the flow id and the UDP source port.
    pub fn new(outer: &Outer, link: Option<&Link>) -> Self {
        let mut template = Self::zeroed();
        template.options = outer.options();
        template.shape = outer.shape();
        let mut writer = Writer { header: &mut template.header, len: 0 };

        let next_hop = link.and_then(|link| link.destination_mac);
        writer.put(&next_hop.unwrap_or(MacAddr::ZERO).0);
        writer.put(&link.map_or(MacAddr::ZERO, |link| link.source_mac).0);
        template.family = writer.put_ip(outer) as u8;
        if outer.encapsulation == Encapsulation::GreUdp {
            writer.put(&[0, 0]);
            writer.put(&GRE_IN_UDP_PORT.to_be_bytes());
            writer.put(&[0; 4]);
        }
        writer.put_gre(outer);

        template.header_len = writer.len as u16;
        if outer.dont_fragment != DontFragment::Set {
            template.flags |= template_flag::FRAGMENTS;
        }
        if template.family == OuterFamily::Ipv4 as u8 {
            let ip = &template.header[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN];
            template.checksum_base = checksum::fold(checksum::add_bytes(0, ip));
            if outer.dont_fragment != DontFragment::Set {
                template.flags |= template_flag::NEEDS_ID;
            }
        }
        if let Some(link) = link {
            template.flags |= template_flag::ROUTED;
            if next_hop.is_some() {
                template.flags |= template_flag::RESOLVED;
            }
            template.ifindex = link.ifindex;
            template.max_frame = link.mtu.saturating_sub(outer.overhead());
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

    /// The EtherType and the IP header. Of two families the destination's counts.
    fn put_ip(&mut self, outer: &Outer) -> OuterFamily {
        let tos = match outer.tos {
            Tos::Fixed(tos) => tos,
            Tos::Inherit => 0,
        };
        let protocol = match outer.encapsulation {
            Encapsulation::Gre => IpProtocol::GRE,
            Encapsulation::GreUdp => IpProtocol::UDP,
        };
        match (outer.source, outer.destination) {
            (source, IpAddr::V4(destination)) => {
                let source = if let IpAddr::V4(source) = source { source.octets() } else { [0; 4] };
                self.put(&EtherType::IPV4.number().to_be_bytes());
                let fragment = if outer.dont_fragment == DontFragment::Set { DONT_FRAGMENT } else { 0 };
                self.put(&[VERSION_AND_IHL, tos, 0, 0]);
                self.put(&[0, 0, fragment, 0]);
                self.put(&[outer.ttl, protocol.0, 0, 0]);
                self.put(&source);
                self.put(&destination.octets());
                OuterFamily::Ipv4
            }
            (source, IpAddr::V6(destination)) => {
                let source = if let IpAddr::V6(source) = source { source.octets() } else { [0; 16] };
                self.put(&EtherType::IPV6.number().to_be_bytes());
                self.put(&[0x60 | tos >> 4, tos << 4, 0, 0]);
                self.put(&[0, 0, protocol.0, outer.ttl]);
                self.put(&source);
                self.put(&destination.octets());
                OuterFamily::Ipv6
            }
        }
    }

    fn put_gre(&mut self, outer: &Outer) {
        self.put(&outer.flags().to_be_bytes());
        self.put(&EtherType::TRANSPARENT_ETHERNET.number().to_be_bytes());
        if outer.checksum {
            self.put(&[0; GRE_FIELD_LEN]);
        }
        if outer.key != Key::None {
            self.put(&outer.key.to_wire().to_ne_bytes());
        }
        if outer.sequence {
            self.put(&[0; GRE_FIELD_LEN]);
        }
    }
}

const _: () = assert!(ETHERNET_LEN + IPV6_LEN + UDP_LEN + GRE_LEN + 3 * GRE_FIELD_LEN <= TEMPLATE_HEADER_LEN);

#[cfg(test)]
mod tests;
