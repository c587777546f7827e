//! The IP packet inside a frame, as far as a tunnel must know it: its traffic class
//! (RFC 6040, RFC 2983), whether it may be fragmented, and which flow it is of.

use mgre_common::reason::DropReason;
use mgre_common::wire::{ETHERNET_LEN, EtherType, IPV4_LEN, IPV6_LEN, IpProtocol, VLAN_TAG_LEN};

use crate::frame::Frame;

/// The two bits of ECN in a traffic class octet.
pub const ECN: u8 = 3;
/// Congestion experienced.
pub const CE: u8 = 3;
/// ECN-capable transport, codepoint 1.
const ECT_1: u8 = 1;
/// ECN-capable transport, codepoint 0.
const ECT_0: u8 = 2;

/// Whether an IP packet is one of IPv6. (A number, so that it can be blurred.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(u8);

impl Version {
    /// IPv4.
    pub const V4: Self = Self(4);
    /// IPv6.
    pub const V6: Self = Self(6);

    /// Whether it is IPv6.
    #[inline(always)]
    pub const fn is_v6(self) -> bool {
        self.0 == Self::V6.0
    }
}

/// Where a frame's IP packet starts, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Its version.
    pub version: Version,
    /// Bytes between the start of the frame inside and the IP header: an Ethernet header, and tags.
    pub l3: u32,
    /// Its traffic class octet: DSCP and ECN.
    pub tos: u8,
}

impl Inner {
    /// The same, blurred ([`Frame::blur`]).
    #[inline(always)]
    pub fn blur<F: Frame>(self, frame: &F) -> Self {
        Self {
            version: Version(frame.blur(self.version.0.into()) as u8),
            l3: frame.blur(self.l3),
            tos: frame.blur(self.tos.into()) as u8,
        }
    }

    /// The IP packet in the frame that begins behind so many bytes of outer headers, if there
    /// is one, behind no more than two tags.
    #[inline(always)]
    pub fn read<F: Frame>(frame: &F, outer_len: u32) -> Option<Self> {
        const TYPE_AT: usize = ETHERNET_LEN - 2;
        let mut l3 = ETHERNET_LEN as u32;
        let mut ethertype = frame.read_behind::<EtherType>(outer_len, TYPE_AT)?;
        if ethertype.is_vlan() {
            (l3, ethertype) = behind_tags(frame, outer_len)?;
        }
        if ethertype != EtherType::IPV4 && ethertype != EtherType::IPV6 {
            return None;
        }
        let [first, second] = frame.read_behind::<u16>(outer_len, l3 as usize)?.to_ne_bytes();
        let (version, tos) = match (ethertype, first >> 4) {
            (EtherType::IPV4, 4) => (Version::V4, second),
            (EtherType::IPV6, 6) => (Version::V6, first << 4 | second >> 4),
            _ => return None,
        };
        Some(Self { version, l3, tos })
    }

    /// Whether its header, without options or extensions, is in a frame of this length.
    #[inline(always)]
    pub const fn is_within(&self, frame_len: u32) -> bool {
        let header_len = if self.version.is_v6() { IPV6_LEN } else { IPV4_LEN };
        self.l3 + header_len as u32 <= frame_len
    }

    /// The protocol that it says it carries; of IPv6 packets, what follows the fixed header. None is 0, as where it is
    /// cut short.
    #[inline(always)]
    pub fn protocol<F: Frame>(&self, frame: &F, outer_len: u32) -> IpProtocol {
        let at = if self.version.is_v6() { 6 } else { 9 };
        IpProtocol(frame.read_behind::<u8>(outer_len, self.l3 as usize + at).unwrap_or(0))
    }

    /// Whether nobody may fragment it: an IPv4 packet that says so, and any IPv6 packet.
    #[inline(always)]
    pub fn dont_fragment<F: Frame>(&self, frame: &F, outer_len: u32) -> bool {
        const FLAGS_AT: usize = 6;
        const DONT_FRAGMENT: u8 = 0x40;
        self.version.is_v6()
            || frame
                .read_behind::<u8>(outer_len, self.l3 as usize + FLAGS_AT)
                .is_some_and(|flags| flags & DONT_FRAGMENT != 0)
    }
}

/// Where the IP header may be behind tags, and the type that the last one says.
#[inline(always)]
fn behind_tags<F: Frame>(frame: &F, outer_len: u32) -> Option<(u32, EtherType)> {
    const FIRST: usize = ETHERNET_LEN + VLAN_TAG_LEN;
    let ethertype = frame.read_behind::<EtherType>(outer_len, FIRST - 2)?;
    if !ethertype.is_vlan() {
        return Some((FIRST as u32, ethertype));
    }
    // A tag beside the frame is one of two.
    if outer_len == 0 && frame.has_tag_beside() {
        return None;
    }
    const SECOND: usize = FIRST + VLAN_TAG_LEN;
    Some((SECOND as u32, frame.read_behind::<EtherType>(outer_len, SECOND - 2)?))
}

/// The ECN field of the IP packet in a frame without outer headers; zero if there is none.
#[inline(always)]
pub fn ecn<F: Frame>(frame: &F) -> u8 {
    const TYPE_AT: usize = ETHERNET_LEN - 2;
    // The type, and the first two octets of what follows it.
    let Some([ethertype, class]) = frame.read_two::<u16>(TYPE_AT, ETHERNET_LEN) else { return 0 };
    let [first, second] = class.to_ne_bytes();
    match EtherType::from_word(ethertype) {
        EtherType::IPV4 if first >> 4 == 4 => second & ECN,
        EtherType::IPV6 if first >> 4 == 6 => second >> 4 & ECN,
        tag if tag.is_vlan() => Inner::read(frame, 0).map_or(0, |inner| inner.tos & ECN),
        _ => 0,
    }
}

/// The ECN field of a packet that left a tunnel, from those inside and outside.
///
/// # Errors
/// The packet must be dropped: congestion was met, and who sent the packet inside would not
/// hear of it (RFC 6040 4.2).
#[inline(always)]
pub const fn combine_ecn(inside: u8, outside: u8) -> Result<u8, DropReason> {
    match (inside & ECN, outside & ECN) {
        (0, CE) => Err(DropReason::Ecn),
        (0, _) => Ok(0),
        (_, CE) => Ok(CE),
        (ECT_0, ECT_1) => Ok(ECT_1),
        (inside, _) => Ok(inside),
    }
}

/// A number that all packets of a flow have in common, and that flows differ by: from
/// addresses and ports, or from MAC addresses where there are none. Its low bits are good.
#[inline(always)]
pub fn flow<F: Frame>(frame: &F, outer_len: u32) -> u32 {
    let macs = frame.read_behind::<[u32; 3]>(outer_len, 0).unwrap_or([0; 3]);
    let sum = match Inner::read(frame, outer_len) {
        Some(Inner { version, l3, .. }) if version.is_v6() => ipv6_flow(frame, outer_len, l3 as usize),
        Some(Inner { l3, .. }) => ipv4_flow(frame, outer_len, l3 as usize),
        None => mix(u64::from(macs[0]) << 32 | u64::from(macs[1]), u64::from(macs[2])),
    };
    (sum ^ sum >> 32) as u32
}

#[inline(always)]
const fn mix(sum: u64, word: u64) -> u64 {
    let sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    sum ^ sum >> 29
}

/// Whether ports stand at the start of what follows an IP header.
#[inline(always)]
const fn has_ports(protocol: u8) -> bool {
    const SCTP: u8 = 132;
    protocol == IpProtocol::TCP.0 || protocol == IpProtocol::UDP.0 || protocol == SCTP
}

#[inline(always)]
fn ipv4_flow<F: Frame>(frame: &F, outer_len: u32, l3: usize) -> u64 {
    let Some(words) = frame.read_behind::<[u32; 5]>(outer_len, l3) else { return 0 };
    let [version_ihl, ..] = words[0].to_ne_bytes();
    let [_, _, flags, offset] = words[1].to_ne_bytes();
    let [_, protocol, ..] = words[2].to_ne_bytes();
    let sum = mix(u64::from(words[3]) << 32 | u64::from(words[4]), u64::from(protocol));
    // Only a packet's first fragment has ports, so all of them do without.
    let whole = flags & 0x3f == 0 && offset == 0;
    if !whole || version_ihl & 0xf != 5 || !has_ports(protocol) {
        return sum;
    }
    mix(sum, u64::from(frame.read_behind::<u32>(outer_len, l3 + 20).unwrap_or(0)))
}

#[inline(always)]
fn ipv6_flow<F: Frame>(frame: &F, outer_len: u32, l3: usize) -> u64 {
    let Some(words) = frame.read_behind::<[u32; 10]>(outer_len, l3) else { return 0 };
    let pair = |at: usize| u64::from(words[at]) << 32 | u64::from(words[at + 1]);
    let [_, _, next_header, _] = words[1].to_ne_bytes();
    // The flow label is the same for a whole flow (RFC 6437 2).
    let label = u32::from_be(words[0]) & 0xf_ffff;
    let sum = mix(mix(pair(2), pair(4)), u64::from(label) << 8 | u64::from(next_header));
    let sum = mix(mix(sum, pair(6)), pair(8));
    if !has_ports(next_header) {
        return sum;
    }
    mix(sum, u64::from(frame.read_behind::<u32>(outer_len, l3 + 40).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of RFC 6040 4.2: rows are what came inside, columns what came outside,
    /// both in the order Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn rfc_6040_4_2_the_whole_table() {
        const ORDER: [u8; 4] = [0, ECT_0, ECT_1, CE];
        let drop = Err(DropReason::Ecn);
        let table = [
            [Ok(0), Ok(0), Ok(0), drop],
            [Ok(ECT_0), Ok(ECT_0), Ok(ECT_1), Ok(CE)],
            [Ok(ECT_1), Ok(ECT_1), Ok(ECT_1), Ok(CE)],
            [Ok(CE), Ok(CE), Ok(CE), Ok(CE)],
        ];
        for (inside, row) in ORDER.into_iter().zip(table) {
            for (outside, wanted) in ORDER.into_iter().zip(row) {
                assert_eq!(combine_ecn(inside, outside), wanted, "{inside} inside {outside}");
                // What DSCP there is makes no difference.
                assert_eq!(combine_ecn(inside | 0xb8, outside | 0x28), wanted);
            }
        }
    }
}
