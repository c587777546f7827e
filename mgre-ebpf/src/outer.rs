//! The headers outside: whether a packet from the underlay is ours, whose it
//! is, and where the inner frame starts.

use core::mem::MaybeUninit;

use mgre_common::checksum;
use mgre_common::endpoint::{
    EndpointKey, EndpointWords, Owner, VSID_MASK, endpoint_kind, local_flag, mapped_v4,
};
use mgre_common::reason::DropReason;
use mgre_common::table::adjacency_flag;
use mgre_common::wire::{
    ETHERNET_LEN, EtherType, GRE_IN_UDP_PORT, GRE_LEN, GreFlags, IPV4_LEN, IPV6_LEN, IpProtocol, UDP_LEN,
    VLAN_ID,
};

use crate::frame::{Frame, Strip};
use crate::tables::Tables;

/// What the outer headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// A packet of a peer.
    From(Packet),
    /// Not for us.
    Foreign,
    /// For one of our addresses, but the kernel's.
    Kernel(DropReason),
    /// For us, and not acceptable.
    Refused(DropReason),
}

/// A packet of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Whose it is; its segment is zero if the index did not say that.
    pub owner: Owner,
    /// Its outer headers.
    pub strip: Strip,
    /// What is to be looked at before it is accepted.
    pub claims: Claims,
}

/// What a packet says of itself that must be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Where the GRE header starts.
    pub gre_at: u32,
    /// [`claim`] bits.
    pub bits: u8,
}

/// Bits of [`Claims::bits`]; those of GRE are where they stand in the header.
pub mod claim {
    /// A GRE checksum.
    pub const CHECKSUM: u8 = 0x80;
    /// A sequence number.
    pub const SEQUENCE: u8 = 0x10;
    /// A UDP checksum.
    pub const UDP_CHECKSUM: u8 = 0x01;
}

impl Claims {
    /// Whether it makes one of these claims.
    #[inline(always)]
    pub const fn makes(&self, claims: u8) -> bool {
        self.bits & claims != 0
    }
}

/// Where the outer IP header starts.
const L3: usize = ETHERNET_LEN;
/// Where an IPv4 header without options ends.
const BEHIND_V4: usize = L3 + IPV4_LEN;
/// Where an IPv6 header ends.
const BEHIND_V6: usize = L3 + IPV6_LEN;

/// How nearly every GRE header begins: Ethernet inside, and a key or no field at all.
/// What begins so needs no closer look.
const PLAIN_KEYED: u32 = u32::from_ne_bytes([0x20, 0, 0x65, 0x58]);
const PLAIN_KEYLESS: u32 = u32::from_ne_bytes([0, 0, 0x65, 0x58]);

/// An IPv4 header without options, as five words in the order of the wire.
type Ipv4Words = [u32; 5];
/// An IPv6 header.
type Ipv6Words = [u32; 10];

/// Where an endpoint stands while a map is asked for it.
type Lookup = MaybeUninit<EndpointWords>;

/// The address that a packet is for, and whose it is or what else it is.
type Judged = ([u32; 4], Result<Packet, Outer>);

/// Whether a tag names no VLAN.
#[inline(always)]
const fn is_priority_tag((protocol, control): (EtherType, u16)) -> bool {
    protocol.to_word() == EtherType::VLAN.to_word() && control & VLAN_ID == 0
}

/// Of a packet whose address does not matter.
const FOREIGN: Judged = ([0; 4], Err(Outer::Foreign));

/// Parses the outer headers.
///
/// A packet that is not for one of our local addresses is never judged, however
/// it looks: it is the kernel's.
#[inline(always)]
pub fn parse<F: Frame, T: Tables>(frame: &F, tables: &T) -> Outer {
    // A tag beside the frame makes it another interface's, but for one that tells a priority alone (IEEE 802.1Q 6.9).
    if frame.tag_beside().is_some_and(|tag| !is_priority_tag(tag)) {
        return Outer::Foreign;
    }
    // One for all that is looked up in a map: a program has little stack.
    let mut slot = Lookup::uninit();
    let (local, judged) = match frame.read::<EtherType>(12) {
        Some(EtherType::IPV4) => parse_v4(frame, tables, &mut slot),
        Some(EtherType::IPV6) => parse_v6(frame, tables, &mut slot),
        _ => return Outer::Foreign,
    };
    match judged {
        Ok(packet) => Outer::From(packet),
        Err(Outer::Foreign) => Outer::Foreign,
        // Only what is for one of our addresses is judged.
        Err(outer) => {
            let kind = endpoint_kind::LOCAL;
            let key = EndpointKey { remote: [0; 4], local, key: 0, kind };
            match (tables.any_endpoint(slot.write(key.words())), outer) {
                (None, _) => Outer::Foreign,
                (Some(flags), Outer::Refused(reason))
                    if flags & local_flag::PASS_FOREIGN != 0 && reason.may_be_anothers() =>
                {
                    Outer::Kernel(DropReason::ForeignGre)
                }
                (Some(_), outer) => outer,
            }
        }
    }
}

#[inline(always)]
fn parse_v4<F: Frame, T: Tables>(frame: &F, tables: &T, slot: &mut Lookup) -> Judged {
    let Some(ip) = frame.read::<Ipv4Words>(L3) else { return FOREIGN };
    let [version_ihl, tos, length_high, length_low] = ip[0].to_ne_bytes();
    let [hops, protocol, ..] = ip[2].to_ne_bytes();
    if version_ihl >> 4 != 4 {
        return FOREIGN;
    }
    let addresses = Addresses { remote: mapped_v4(ip[3]), local: mapped_v4(ip[4]) };
    let [_, _, fragment_high, fragment_low] = ip[1].to_ne_bytes();
    // More-fragments or an offset (RFC 791), or options: the kernel's to put together.
    let fragment = u16::from_be_bytes([fragment_high, fragment_low]) & 0x3fff;
    let whole = fragment == 0 && version_ihl & 0xf == 5;
    let packet = Ip {
        payload_len: u32::from(u16::from_be_bytes([length_high, length_low])).wrapping_sub(IPV4_LEN as u32),
        tos,
        hops,
    };
    let judged = match IpProtocol(protocol) {
        IpProtocol::GRE if whole => {
            let header_ok = checksum::ipv4_header_ok(ip);
            addresses.judge::<BEHIND_V4, F, T>(frame, tables, slot, packet, header_ok, None)
        }
        IpProtocol::GRE => Err(Outer::Kernel(DropReason::OuterFragment)),
        // Only a packet's first fragment says whose it is, and with options it is elsewhere.
        IpProtocol::UDP if version_ihl & 0xf == 5 && fragment & 0x1fff == 0 => {
            match Udp::read(frame, BEHIND_V4) {
                None => Err(Outer::Foreign),
                Some(_) if fragment != 0 => Err(Outer::Kernel(DropReason::OuterFragment)),
                udp => {
                    let header_ok = checksum::ipv4_header_ok(ip);
                    addresses
                        .judge::<{ BEHIND_V4 + UDP_LEN }, F, T>(frame, tables, slot, packet, header_ok, udp)
                }
            }
        }
        _ => Err(Outer::Foreign),
    };
    (addresses.local, judged)
}

#[inline(always)]
fn parse_v6<F: Frame, T: Tables>(frame: &F, tables: &T, slot: &mut Lookup) -> Judged {
    let Some(ip) = frame.read::<Ipv6Words>(L3) else { return FOREIGN };
    let [first, second, ..] = ip[0].to_ne_bytes();
    let [length_high, length_low, next_header, hops] = ip[1].to_ne_bytes();
    if first >> 4 != 6 {
        return FOREIGN;
    }
    // So the tables hold IPv4 addresses. No packet on a wire may have one (RFC 4291 2.5.5.2), and
    // one that has it is not for an IPv4 address of ours.
    let [mapped @ .., _] = mapped_v4(0);
    if ip[8] == mapped[2] && ip[6] | ip[7] == 0 {
        return FOREIGN;
    }
    let addresses = Addresses { remote: [ip[2], ip[3], ip[4], ip[5]], local: [ip[6], ip[7], ip[8], ip[9]] };
    let packet = Ip {
        payload_len: u32::from(u16::from_be_bytes([length_high, length_low])),
        tos: first << 4 | second >> 4,
        hops,
    };
    // A UDP header is as long as such options, so one look at what follows does for both.
    const { assert!(LIMIT_LEN == UDP_LEN) };
    let next_header = IpProtocol(next_header);
    let udp = if next_header == IpProtocol::UDP { Udp::read(frame, BEHIND_V6) } else { None };
    let carries_limit = next_header == IpProtocol::DESTINATION_OPTIONS
        && frame.read::<u64>(BEHIND_V6).is_some_and(is_encapsulation_limit);
    let judged = match next_header {
        IpProtocol::GRE => addresses.judge::<BEHIND_V6, F, T>(frame, tables, slot, packet, true, None),
        IpProtocol::UDP | IpProtocol::DESTINATION_OPTIONS if carries_limit || udp.is_some() => {
            let payload_len =
                packet.payload_len.wrapping_sub(if carries_limit { LIMIT_LEN as u32 } else { 0 });
            let packet = Ip { payload_len, ..packet };
            addresses.judge::<{ BEHIND_V6 + LIMIT_LEN }, F, T>(frame, tables, slot, packet, true, udp)
        }
        IpProtocol::HOP_BY_HOP
        | IpProtocol::ROUTING
        | IpProtocol::FRAGMENT
        | IpProtocol::DESTINATION_OPTIONS
            if frame.read::<u8>(BEHIND_V6) == Some(IpProtocol::GRE.0) =>
        {
            Err(Outer::Kernel(DropReason::OuterFragment))
        }
        // Only a packet's first fragment says whose it is.
        IpProtocol::FRAGMENT
            if frame.read::<[u8; 4]>(BEHIND_V6).is_some_and(|[next, _, high, low]| {
                next == IpProtocol::UDP.0 && high == 0 && low & 0xf8 == 0
            }) && Udp::read(frame, BEHIND_V6 + FRAGMENT_LEN).is_some() =>
        {
            Err(Outer::Kernel(DropReason::OuterFragment))
        }
        _ => Err(Outer::Foreign),
    };
    (addresses.local, judged)
}

/// Length of a destination options header that says how many more tunnels a packet may enter, and no more (RFC 2473
/// 4.1.1): what Linux tunnels over IPv6 put before GRE, unless they are told not to.
const LIMIT_LEN: usize = 8;

/// Whether a destination options header in front of GRE is such a one. The limit itself is for those who put the packet
/// into another tunnel; here it leaves one.
#[inline(always)]
fn is_encapsulation_limit(header: u64) -> bool {
    /// Next header and length; the option, its length and the limit; and a PadN of one byte (RFC 8200 4.2).
    const HEADER: u64 = u64::from_ne_bytes([IpProtocol::GRE.0, 0, 4, 1, 0, 1, 1, 0]);
    const WITHOUT_LIMIT: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff]);
    header & WITHOUT_LIMIT == HEADER
}

/// Length of an IPv6 fragment header.
const FRAGMENT_LEN: usize = 8;

/// What is wanted of an IP header.
#[derive(Clone, Copy)]
struct Ip {
    /// Bytes behind the header.
    payload_len: u32,
    tos: u8,
    hops: u8,
}

/// What is wanted of the UDP header before GRE (RFC 8086 3.2).
#[derive(Clone, Copy)]
struct Udp {
    len: u32,
    has_checksum: bool,
}

impl Udp {
    /// Reads one, if it is for GRE's port.
    #[inline(always)]
    fn read<F: Frame>(frame: &F, at: usize) -> Option<Self> {
        let [ports, rest] = frame.read::<[u32; 2]>(at)?;
        let [_, _, port_high, port_low] = ports.to_ne_bytes();
        if u16::from_be_bytes([port_high, port_low]) != GRE_IN_UDP_PORT {
            return None;
        }
        let [length_high, length_low, sum @ ..] = rest.to_ne_bytes();
        let len = u32::from(u16::from_be_bytes([length_high, length_low]));
        Some(Self { len, has_checksum: sum != [0, 0] })
    }
}

/// What the GRE header says.
struct Gre {
    /// As it stands on the wire; zero without one.
    key: u32,
    /// An [`endpoint_kind`].
    kind: u32,
    strip: Strip,
    claims: Claims,
}

/// Looks at the GRE header that starts at `AT`.
#[inline(always)]
fn parse_gre<const AT: usize, F: Frame>(
    frame: &F,
    ip: Ip,
    header_ok: bool,
    udp: Option<Udp>,
) -> Result<Gre, Outer> {
    // The shortest header and what follows it are as long as two words.
    let Some([first, second]) = frame.read::<[u32; 2]>(AT) else {
        return Err(too_short::<AT, F>(frame));
    };
    let [flags_high, flags_low, protocol @ ..] = first.to_ne_bytes();
    let flags = GreFlags(u16::from_be_bytes([flags_high, flags_low]));
    let plain = first == PLAIN_KEYED || first == PLAIN_KEYLESS;
    // Version 1 is PPTP's (RFC 2637), which the kernel may serve.
    if !plain && flags.version() == 1 {
        return Err(Outer::Foreign);
    }
    if !header_ok {
        return Err(Outer::Refused(DropReason::Checksum));
    }
    if !plain {
        flags.validate().map_err(Outer::Refused)?;
        if EtherType::from_bytes(protocol) != EtherType::TRANSPARENT_ETHERNET {
            return Err(Outer::Refused(DropReason::UnknownProtocol));
        }
    }
    let gre_len = gre_len(flags_high);
    let before = (AT - L3) as u32;
    // A superframe's total length may be zero (it does not fit 16 bits), so its
    // own length counts; no device pads those.
    let there = frame.len() - AT as u32;
    let payload_len = if frame.segment_size() != 0 {
        there
    } else {
        // What the IP header says, less a UDP header.
        ip.payload_len.wrapping_sub(if udp.is_some() { UDP_LEN as u32 } else { 0 })
    };
    let udp_ok = udp
        .is_none_or(|udp| frame.segment_size() != 0 || udp.len.wrapping_sub(UDP_LEN as u32) == payload_len);
    if payload_len > there || payload_len < gre_len + ETHERNET_LEN as u32 || !udp_ok {
        return Err(Outer::Refused(DropReason::Malformed));
    }
    let kind = if flags.has_key() { endpoint_kind::KEYED } else { endpoint_kind::KEYLESS };
    let key = match (flags.has_key(), flags.has_checksum()) {
        (false, _) => 0,
        (true, false) => second,
        (true, true) => frame.read::<u32>(AT + 8).ok_or(Outer::Refused(DropReason::Malformed))?,
    };
    Ok(Gre {
        key,
        kind,
        strip: Strip {
            outer_len: L3 as u32 + before + gre_len,
            inner_len: payload_len - gre_len,
            hops: ip.hops,
            tos: ip.tos,
        },
        claims: Claims {
            gre_at: AT as u32,
            bits: flags_high & (claim::CHECKSUM | claim::SEQUENCE)
                | if udp.is_some_and(|udp| udp.has_checksum) { claim::UDP_CHECKSUM } else { 0 },
        },
    })
}

/// The length of a GRE header, from its first octet. Reckoned without a branch: the
/// verifier then goes on with one range of lengths instead of with each of them.
#[inline(always)]
const fn gre_len(flags: u8) -> u32 {
    let flags = flags as u32;
    // C, K and S announce four bytes each.
    GRE_LEN as u32 + (flags >> 5 & 4) + (flags >> 3 & 4) + (flags >> 2 & 4)
}

/// What to make of a packet that ends within its GRE header.
#[inline(always)]
fn too_short<const AT: usize, F: Frame>(frame: &F) -> Outer {
    match frame.read::<u8>(AT + 1) {
        Some(flags) if flags as u16 & GreFlags::VERSION == 1 => Outer::Foreign,
        _ => Outer::Refused(DropReason::Malformed),
    }
}

/// The outer addresses, as they stand on the wire.
#[derive(Clone, Copy)]
struct Addresses {
    remote: [u32; 4],
    local: [u32; 4],
}

impl Addresses {
    /// Whose a packet with these addresses is whose GRE header starts at `AT`.
    #[inline(always)]
    fn judge<const AT: usize, F: Frame, T: Tables>(
        self,
        frame: &F,
        tables: &T,
        slot: &mut Lookup,
        ip: Ip,
        header_ok: bool,
        udp: Option<Udp>,
    ) -> Result<Packet, Outer> {
        let Gre { key, kind, strip, claims } = parse_gre::<AT, F>(frame, ip, header_ok, udp)?;
        let owner = self.owner(tables, slot, key, kind)?;
        Ok(Packet { owner, strip, claims })
    }

    #[inline(always)]
    fn owner<T: Tables>(self, tables: &T, slot: &mut Lookup, key: u32, kind: u32) -> Result<Owner, Outer> {
        let words = self.key(key, kind).words();
        if let Some(owner) = tables.indexed_endpoint(&words) {
            return Ok(owner);
        }
        let vsid = self.key(key & VSID_MASK, endpoint_kind::VSID).words();
        let keyed = kind == endpoint_kind::KEYED;
        if keyed && let Some(owner) = tables.indexed_endpoint(&vsid) {
            return Ok(owner);
        }
        let mut found = tables.any_endpoint(slot.write(words));
        if found.is_none() && keyed {
            found = tables.any_endpoint(slot.write(vsid));
        }
        if let Some(adjacency) = found {
            return Ok(Owner { adjacency, segment: 0, flags: 0 });
        }
        // Nobody's packet: why.
        let known = slot.write(self.key(0, endpoint_kind::KNOWN).words());
        let known = tables.any_endpoint(known).is_some();
        let reason = if known { DropReason::KeyMismatch } else { DropReason::UnknownEndpoint };
        Err(Outer::Refused(reason))
    }

    #[inline(always)]
    fn key(self, key: u32, kind: u32) -> EndpointKey {
        EndpointKey { remote: self.remote, local: self.local, key, kind }
    }
}

const _: () = assert!(adjacency_flag::RECEIVE <= u16::MAX as u32);
