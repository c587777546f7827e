//! The headers outside: whether a packet from the underlay is ours, whose it
//! is, and where the inner frame starts.

use mgre_common::checksum;
use mgre_common::endpoint::{EndpointKey, Owner, endpoint_kind, mapped_v4};
use mgre_common::reason::DropReason;
use mgre_common::wire::{ETHERNET_LEN, EtherType, GreFlags, IPV4_LEN, IpProtocol};

use crate::frame::{Frame, Strip};
use crate::tables::Tables;

/// What the outer headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// A packet of this adjacency.
    From {
        /// The adjacency.
        adjacency: u32,
        /// Its segment, if the index says that.
        segment: Option<u32>,
        /// Its outer headers.
        strip: Strip,
    },
    /// Not for us.
    Foreign,
    /// For us, but the kernel's to handle first.
    Kernel(DropReason),
    /// For us, and not acceptable.
    Refused(DropReason),
}

/// Where the outer IP header starts.
const L3: usize = ETHERNET_LEN;
/// Where the GRE header starts after an IPv4 header without options.
const GRE_V4: usize = L3 + IPV4_LEN;

/// How nearly every GRE header begins: Ethernet inside, and a key or no field at all.
/// What begins so needs no closer look.
const PLAIN_KEYED: u32 = u32::from_ne_bytes([0x20, 0, 0x65, 0x58]);
const PLAIN_KEYLESS: u32 = u32::from_ne_bytes([0, 0, 0x65, 0x58]);

/// An IPv4 header without options, as five words in the order of the wire.
type Ipv4Words = [u32; 5];

/// Parses the outer headers.
///
/// A packet that is not for one of our local addresses is never judged, however
/// it looks: it is the kernel's.
#[inline(always)]
pub fn parse<F: Frame, T: Tables>(frame: &F, tables: &T) -> Outer {
    // A tag beside the frame makes it another interface's.
    if frame.read::<EtherType>(12) != Some(EtherType::IPV4) || frame.has_tag_beside() {
        return Outer::Foreign;
    }
    let Some(ip) = frame.read::<Ipv4Words>(L3) else { return Outer::Foreign };
    let [version_ihl, _, length_high, length_low] = ip[0].to_ne_bytes();
    let [_, protocol, _, _] = ip[2].to_ne_bytes();
    if IpProtocol(protocol) != IpProtocol::GRE || version_ihl >> 4 != 4 {
        return Outer::Foreign;
    }
    let addresses = Addresses { remote: ip[3], local: ip[4] };
    let [_, _, fragment_high, fragment_low] = ip[1].to_ne_bytes();
    // More-fragments or an offset (RFC 791), or options: the kernel's to put together.
    if u16::from_be_bytes([fragment_high, fragment_low]) & 0x3fff != 0 || version_ihl & 0xf != 5 {
        return addresses.ours_or_foreign(tables, Outer::Kernel(DropReason::OuterFragment));
    }
    let total_len = u32::from(u16::from_be_bytes([length_high, length_low]));
    match parse_gre(frame, ip, total_len) {
        Ok(gre) => addresses.find(tables, gre),
        Err(outer) => addresses.ours_or_foreign(tables, outer),
    }
}

/// What the GRE header says.
struct Gre {
    /// As it stands on the wire; zero without one.
    key: u32,
    /// An [`endpoint_kind`].
    kind: u32,
    strip: Strip,
}

#[inline(always)]
fn parse_gre<F: Frame>(frame: &F, ip: Ipv4Words, total_len: u32) -> Result<Gre, Outer> {
    let Some(first) = frame.read::<u32>(GRE_V4) else {
        return Err(Outer::Refused(DropReason::Malformed));
    };
    let [flags_high, flags_low, protocol @ ..] = first.to_ne_bytes();
    let flags = GreFlags(u16::from_be_bytes([flags_high, flags_low]));
    let plain = first == PLAIN_KEYED || first == PLAIN_KEYLESS;
    // Version 1 is PPTP's (RFC 2637), which the kernel may serve.
    if !plain && flags.version() == 1 {
        return Err(Outer::Foreign);
    }
    if !checksum::ipv4_header_ok(ip) {
        return Err(Outer::Refused(DropReason::Checksum));
    }
    if !plain {
        flags.validate().map_err(Outer::Refused)?;
        if flags.has_checksum() {
            return Err(Outer::Refused(DropReason::Checksum));
        }
        if EtherType::from_bytes(protocol) != EtherType::TRANSPARENT_ETHERNET {
            return Err(Outer::Refused(DropReason::UnknownProtocol));
        }
    }
    // A superframe's total length may be zero (it does not fit 16 bits), so its
    // own length counts; no device pads those.
    let packet_len = if frame.segment_size() == 0 { total_len } else { frame.len() - L3 as u32 };
    let headers_len = (IPV4_LEN + flags.header_len()) as u32;
    if packet_len > frame.len() - L3 as u32 || packet_len < headers_len + ETHERNET_LEN as u32 {
        return Err(Outer::Refused(DropReason::Malformed));
    }
    let (key, kind) = if flags.has_key() {
        // No checksum field stands before it: such packets were refused above.
        match frame.read::<u32>(GRE_V4 + 4) {
            Some(key) => (key, endpoint_kind::KEYED),
            None => return Err(Outer::Refused(DropReason::Malformed)),
        }
    } else {
        (0, endpoint_kind::KEYLESS)
    };
    let [hops, ..] = ip[2].to_ne_bytes();
    let strip = Strip { outer_len: L3 as u32 + headers_len, inner_len: packet_len - headers_len, hops };
    Ok(Gre { key, kind, strip })
}

/// The outer addresses, as they stand on the wire.
#[derive(Clone, Copy)]
struct Addresses {
    remote: u32,
    local: u32,
}

impl Addresses {
    #[inline(always)]
    fn find<T: Tables>(self, tables: &T, gre: Gre) -> Outer {
        let words = self.key(gre.key, gre.kind).words();
        if let Some(Owner { adjacency, segment }) = tables.indexed_endpoint(&words) {
            return Outer::From { adjacency, segment: Some(segment), strip: gre.strip };
        }
        match tables.any_endpoint(&words) {
            Some(adjacency) => Outer::From { adjacency, segment: None, strip: gre.strip },
            None => self.unmatched(tables),
        }
    }

    #[inline(always)]
    fn key(self, key: u32, kind: u32) -> EndpointKey {
        EndpointKey { remote: mapped_v4(self.remote), local: mapped_v4(self.local), key, kind }
    }

    /// Nobody's packet: why.
    #[inline(always)]
    fn unmatched<T: Tables>(self, tables: &T) -> Outer {
        let known = tables.any_endpoint(&self.key(0, endpoint_kind::KNOWN).words()).is_some();
        let reason = if known { DropReason::KeyMismatch } else { DropReason::UnknownEndpoint };
        self.ours_or_foreign(tables, Outer::Refused(reason))
    }

    /// `outer`, if the packet is for one of our addresses.
    #[inline(always)]
    fn ours_or_foreign<T: Tables>(self, tables: &T, outer: Outer) -> Outer {
        let local =
            EndpointKey { remote: [0; 4], local: mapped_v4(self.local), key: 0, kind: endpoint_kind::LOCAL };
        if tables.any_endpoint(&local.words()).is_some() { outer } else { Outer::Foreign }
    }
}
