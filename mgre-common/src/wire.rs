//! Header formats, in network byte order, and the newtypes that keep one
//! protocol field from being taken for another.

use core::fmt;
use core::str::FromStr;

use bytemuck::{Pod, Zeroable};

use crate::reason::DropReason;

/// Length of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// Length of an 802.1Q or 802.1ad tag.
pub const VLAN_TAG_LEN: usize = 4;
/// The VLAN id in the control information of a tag.
pub const VLAN_ID: u16 = 0x0fff;
/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Length of an IPv6 header without extensions.
pub const IPV6_LEN: usize = 40;
/// Length of a UDP header.
pub const UDP_LEN: usize = 8;
/// The UDP port that GRE packets are sent to (RFC 8086 3.1).
pub const GRE_IN_UDP_PORT: u16 = 4754;
/// Length of a GRE header without optional fields.
pub const GRE_LEN: usize = 4;
/// Length of each optional GRE field.
pub const GRE_FIELD_LEN: usize = 4;

/// An EtherType, or a GRE protocol type, which takes its values from the same registry.
/// Two bytes in memory as on the wire.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct EtherType(u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: Self = Self::new(0x0800);
    /// ARP.
    pub const ARP: Self = Self::new(0x0806);
    /// Customer VLAN tag (802.1Q).
    pub const VLAN: Self = Self::new(0x8100);
    /// Service VLAN tag (802.1ad).
    pub const SERVICE_VLAN: Self = Self::new(0x88a8);
    /// IPv6.
    pub const IPV6: Self = Self::new(0x86dd);
    /// Transparent Ethernet bridging: an Ethernet frame inside GRE (RFC 1701, RFC 7637).
    pub const TRANSPARENT_ETHERNET: Self = Self::new(0x6558);

    /// From its number.
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// From two bytes as they stand on the wire.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// From a word loaded from the wire without a change of byte order.
    #[inline(always)]
    pub const fn from_word(word: u16) -> Self {
        Self(word)
    }

    /// As a word to be stored without a change of byte order.
    #[inline(always)]
    pub const fn to_word(self) -> u16 {
        self.0
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }

    /// Whether it announces an 802.1Q or 802.1ad tag.
    #[inline(always)]
    pub const fn is_vlan(self) -> bool {
        self.0 == Self::VLAN.0 || self.0 == Self::SERVICE_VLAN.0
    }
}

impl fmt::Debug for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:04x}", self.number())
    }
}

/// An IP protocol number.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpProtocol(pub u8);

impl IpProtocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: Self = Self(0);
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// GRE.
    pub const GRE: Self = Self(47);
    /// IPv6 routing header.
    pub const ROUTING: Self = Self(43);
    /// IPv6 fragment header.
    pub const FRAGMENT: Self = Self(44);
    /// ICMPv6.
    pub const ICMPV6: Self = Self(58);
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: Self = Self(60);
}

/// A 48-bit MAC address.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All zero: never a valid station address.
    pub const ZERO: Self = Self([0; 6]);
    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the group bit is set: a multicast or broadcast address.
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether a station may send with it: neither group nor zero.
    #[inline(always)]
    pub const fn is_station(self) -> bool {
        !self.is_group() && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The first of the sixteen group addresses whose frames stay on one link between bridges
/// (802.1Q 8.6.3): the last octet's lower half tells them apart.
pub const LINK_LOCAL_GROUPS: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]);

/// How the group addresses begin that loop probes are sent to; the last two octets say which
/// segment they are about.
pub const PROBE_GROUPS: [u8; 4] = [0x03, b'm', b'g', b'r'];

/// That of them which pause frames have (802.3 annex 31B): no bridge passes those on.
pub const PAUSE_GROUP: u32 = 1;

/// The text is not six hexadecimal octets with colons (or dashes) between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacParseError;

impl fmt::Display for MacParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a MAC address is six hexadecimal octets, such as 02:00:5e:10:00:01")
    }
}

impl core::error::Error for MacParseError {}

impl FromStr for MacAddr {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut mac = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut mac {
            let part = parts.next().ok_or(MacParseError)?;
            if !(1..=2).contains(&part.len()) || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MacParseError);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| MacParseError)?;
        }
        parts.next().is_none().then_some(Self(mac)).ok_or(MacParseError)
    }
}

/// First word of a GRE header: flags and version (RFC 2784 2, RFC 2890 2).
///
/// ```text
///  0 1 2 3 4 5 6 7 8 9 A B C D E F
/// |C|R|K|S|s|Recur|  Flags  | Ver |
/// ```
///
/// RFC 2784 2.3 numbers the bits from the left: bits 1-5 (R, K, S, s and the
/// first bit of Recur) must be zero unless RFC 2890 gives them a meaning; bits
/// 6-12 are ignored on receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GreFlags(pub u16);

impl GreFlags {
    /// Checksum present.
    pub const CHECKSUM: u16 = 0x8000;
    /// Routing present (RFC 1701).
    pub const ROUTING: u16 = 0x4000;
    /// Key present (RFC 2890).
    pub const KEY: u16 = 0x2000;
    /// Sequence number present (RFC 2890).
    pub const SEQUENCE: u16 = 0x1000;
    /// Bits 4 and 5, which must be zero.
    pub const MUST_BE_ZERO: u16 = 0x0c00;
    /// The version number.
    pub const VERSION: u16 = 0x0007;

    /// The version number.
    #[inline(always)]
    pub const fn version(self) -> u16 {
        self.0 & Self::VERSION
    }

    /// Whether there is a key field.
    #[inline(always)]
    pub const fn has_key(self) -> bool {
        self.0 & Self::KEY != 0
    }

    /// Whether there is a checksum field.
    #[inline(always)]
    pub const fn has_checksum(self) -> bool {
        self.0 & Self::CHECKSUM != 0
    }

    /// Whether there is a sequence number field.
    #[inline(always)]
    pub const fn has_sequence(self) -> bool {
        self.0 & Self::SEQUENCE != 0
    }

    /// Checks a version 0 header's bits.
    ///
    /// # Errors
    /// The reason to discard the packet.
    #[inline(always)]
    pub const fn validate(self) -> Result<(), DropReason> {
        if self.version() != 0 {
            return Err(DropReason::BadVersion);
        }
        if self.0 & Self::ROUTING != 0 {
            return Err(DropReason::RoutingPresent);
        }
        if self.0 & Self::MUST_BE_ZERO != 0 {
            return Err(DropReason::ReservedBits);
        }
        Ok(())
    }

    /// Length of the header with the optional fields that the flags announce.
    #[inline(always)]
    pub const fn header_len(self) -> usize {
        GRE_LEN
            + GRE_FIELD_LEN
                * (self.has_checksum() as usize + self.has_key() as usize + self.has_sequence() as usize)
    }

    /// Where the key field starts, if there is one.
    #[inline(always)]
    pub const fn key_offset(self) -> usize {
        GRE_LEN + GRE_FIELD_LEN * self.has_checksum() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gre_flags() {
        let all = GreFlags(GreFlags::CHECKSUM | GreFlags::KEY | GreFlags::SEQUENCE);
        assert_eq!((all.header_len(), all.key_offset(), all.validate()), (16, 8, Ok(())));
        assert_eq!((GreFlags(0).header_len(), GreFlags(0).validate()), (4, Ok(())));
        assert_eq!(GreFlags(0x2000).key_offset(), 4);
        assert_eq!(GreFlags(0x4000).validate(), Err(DropReason::RoutingPresent));
        assert_eq!(GreFlags(1).validate(), Err(DropReason::BadVersion));
        for bit in [0x0800, 0x0400] {
            assert_eq!(GreFlags(bit).validate(), Err(DropReason::ReservedBits));
        }
        // RFC 2784 2.3: bits 6-12 are ignored on receipt.
        for bit in 3..=9 {
            assert_eq!(GreFlags(1 << bit).validate(), Ok(()), "bit {bit}");
        }
    }

    #[test]
    fn mac_text() {
        let mac = MacAddr([2, 0, 0x5e, 0x10, 0, 0xff]);
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        assert_eq!("02:00:5e:10:00:ff".parse(), Ok(mac));
        assert_eq!("2-0-5E-10-0-FF".parse(), Ok(mac));
        for bad in ["", "02:00:5e:10:00", "02:00:5e:10:00:ff:00", "02:00:5e:10:00:+f", "02:00:5e:10:00:fff"] {
            assert_eq!(bad.parse::<MacAddr>(), Err(MacParseError), "{bad}");
        }
        assert!(mac.is_station() && !MacAddr::ZERO.is_station() && !MacAddr::BROADCAST.is_station());
    }
}
