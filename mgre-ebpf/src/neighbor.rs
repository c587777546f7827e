//! ARP and IPv6 neighbour discovery, in segments that suppress them.
//!
//! What hosts say of themselves is listened to wherever it comes from, and reported if it is
//! news. A question that comes from a port and would be flooded is answered from the table, if
//! that knows who has the address, nobody contests it, and the FDB has the MAC address elsewhere
//! than the asker. The frame itself becomes the reply.
//!
//! Not answered is what only the owner may answer: probes for duplicates (RFC 5227 2.1.1, RFC
//! 4862 5.4: no sender address), announcements (RFC 5227 3), and questions to the owner alone,
//! which are not flooded anyway. All that is not of the usual form is flooded, too.

use core::sync::atomic::Ordering;

use mgre_common::fdb::FdbKey;
use mgre_common::neighbor::{Binding, NeighborEvent, NeighborKey, Protocol, neighbor_flag};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::table::segment_flag;
use mgre_common::target::Target;
use mgre_common::wire::{ETHERNET_LEN, EtherType, IpProtocol, MacAddr};

use crate::act::port_egress;
use crate::frame::{Ethernet, Excerpt, Frame, Replicate, Whole};
use crate::tables::{Now, Tables};

/// Where a frame is.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// Where it came from.
    pub source: Target,
    /// The segment.
    pub segment: u32,
    /// Bytes of outer headers before it.
    pub outer_len: u32,
    /// Its length without them; what is behind it is no part of it.
    pub len: u32,
    /// The clock.
    pub seconds: u32,
}

/// Bytes of an Ethernet frame with ARP for IPv4 in it.
const ARP_FRAME: usize = 42;
/// Bytes of one with a neighbour message and one link-layer address option.
const ND_FRAME: usize = size_of::<Excerpt>();

/// Where in both the sender's MAC address is.
const SENDER: usize = 3;

/// Places in a frame with ARP (RFC 826).
mod arp {
    pub(super) const HARDWARE: usize = 7;
    pub(super) const PROTOCOL: usize = 8;
    pub(super) const LENGTHS: usize = 9;
    pub(super) const OPERATION: usize = 10;
    pub(super) const SENDER_MAC: usize = 11;
    pub(super) const SENDER_IP: usize = 14;
    pub(super) const TARGET_MAC: usize = 16;
    pub(super) const TARGET_IP: usize = 19;

    pub(super) const REQUEST: u16 = 1_u16.to_be();
    pub(super) const REPLY: u16 = 2_u16.to_be();
}

/// Places in one with a neighbour message (RFC 8200 3, RFC 4861 4.3, 4.4, 4.6.1).
mod nd {
    pub(super) const VERSION: usize = 7;
    pub(super) const LENGTH: usize = 9;
    pub(super) const NEXT_AND_HOPS: usize = 10;
    pub(super) const SOURCE: usize = 11;
    pub(super) const DESTINATION: usize = 19;
    pub(super) const TYPE: usize = 27;
    pub(super) const CHECKSUM: usize = 28;
    pub(super) const FLAGS: usize = 29;
    pub(super) const TARGET: usize = 31;
    pub(super) const OPTION: usize = 39;
    pub(super) const OPTION_MAC: usize = 40;
    pub(super) const END: usize = 43;

    pub(super) const MESSAGE_LEN: u16 = 32;
    /// Type and code.
    pub(super) const SOLICITATION: u16 = u16::from_ne_bytes([135, 0]);
    pub(super) const ADVERTISEMENT: u16 = u16::from_ne_bytes([136, 0]);
    /// Type, and length in units of 8 bytes.
    pub(super) const SOURCE_OPTION: u16 = u16::from_ne_bytes([1, 1]);
    pub(super) const TARGET_OPTION: u16 = u16::from_ne_bytes([2, 1]);
    /// R and S.
    pub(super) const ROUTER: u16 = u16::from_ne_bytes([0x80, 0]);
    pub(super) const SOLICITED: u16 = u16::from_ne_bytes([0x40, 0]);
}

/// Whether a frame is to be looked at: it may be ARP or ND, and is in a segment that
/// suppresses them. Other frames pay for a look at their type.
#[inline(always)]
pub fn concerns<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    ethernet: &Ethernet,
    outer_len: u32,
    segment: u32,
) -> bool {
    const NEXT_HEADER: usize = ETHERNET_LEN + 6;
    let ethertype = ethernet.ethertype();
    let mut may = u32::from(ethertype == EtherType::ARP);
    if ethertype == EtherType::IPV6
        && let Some([_, next]) = frame.read_two_behind::<u8>(outer_len, ETHERNET_LEN, NEXT_HEADER)
    {
        may = u32::from(next == IpProtocol::ICMPV6.0);
    }
    frame.blur(may) != 0
        && tables
            .segment(segment)
            .is_some_and(|segment| segment.flags.load(Ordering::Relaxed) & segment_flag::SUPPRESS != 0)
}

/// Three pairs of bytes, as a MAC address.
#[inline(always)]
const fn mac(a: u16, b: u16, c: u16) -> MacAddr {
    let ([a, b], [c, d], [e, f]) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes());
    MacAddr([a, b, c, d, e, f])
}

/// A MAC address as three pairs of bytes.
#[inline(always)]
const fn pairs(mac: MacAddr) -> [u16; 3] {
    let [a, b, c, d, e, f] = mac.0;
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])]
}

/// Whether an IPv4 address can be a host's: not of 0.0.0.0/8 or 127.0.0.0/8, and no group's.
#[inline(always)]
const fn is_host_v4(high: u16) -> bool {
    let [first, _] = high.to_ne_bytes();
    first != 0 && first != 127 && first < 224
}

/// Whether an IPv6 address can be a host's: not of ::/64, where the unspecified, the loopback
/// and mapped addresses are, and no group's.
#[inline(always)]
const fn is_host_v6(address: [u16; 8]) -> bool {
    let [a, b, c, d, ..] = address;
    a.to_ne_bytes()[0] != 0xff && a | b | c | d != 0
}

/// The address at a place of a frame.
#[inline(always)]
const fn address_at(frame: &Excerpt, at: usize) -> [u16; 8] {
    let f = frame;
    [f[at], f[at + 1], f[at + 2], f[at + 3], f[at + 4], f[at + 5], f[at + 6], f[at + 7]]
}

/// Copies as many of a frame's first bytes, if it is so long.
#[inline(always)]
fn load<F: Whole>(frame: &F, scene: &Scene, len: usize, to: &mut Excerpt) -> bool {
    scene.len >= len as u32 && frame.load(scene.outer_len, len, to)
}

/// Reads ARP for IPv4 over Ethernet, from whom it says it is from.
#[inline(always)]
fn read_arp<F: Whole>(frame: &F, scene: &Scene, f: &mut Excerpt) -> bool {
    load(frame, scene, ARP_FRAME, f)
        && f[6] == EtherType::ARP.to_word()
        && f[arp::HARDWARE] == 1_u16.to_be()
        && f[arp::PROTOCOL] == EtherType::IPV4.to_word()
        && f[arp::LENGTHS] == u16::from_ne_bytes([6, 4])
        && f[arp::SENDER_MAC] == f[SENDER]
        && f[arp::SENDER_MAC + 1] == f[SENDER + 1]
        && f[arp::SENDER_MAC + 2] == f[SENDER + 2]
        && is_host_v4(f[arp::SENDER_IP])
}

/// Reads a neighbour message of this type with no option but this one, which has the sender's
/// MAC address (RFC 4861 7.1).
#[inline(always)]
fn read_nd<F: Whole>(frame: &F, scene: &Scene, kind: u16, option: u16, f: &mut Excerpt) -> bool {
    load(frame, scene, ND_FRAME, f)
        && f[6] == EtherType::IPV6.to_word()
        && f[nd::VERSION].to_ne_bytes()[0] >> 4 == 6
        && f[nd::LENGTH] == nd::MESSAGE_LEN.to_be()
        && f[nd::NEXT_AND_HOPS] == u16::from_ne_bytes([IpProtocol::ICMPV6.0, 255])
        && f[nd::TYPE] == kind
        && f[nd::OPTION] == option
        && f[nd::OPTION_MAC] == f[SENDER]
        && f[nd::OPTION_MAC + 1] == f[SENDER + 1]
        && f[nd::OPTION_MAC + 2] == f[SENDER + 2]
        && is_host_v6(address_at(f, nd::SOURCE))
        && is_host_v6(address_at(f, nd::TARGET))
        && nd_sum(f) == 0xffff
}

/// The folded sum of pseudo header and message (RFC 8200 8.1), in the machine's byte order.
#[inline(always)]
fn nd_sum(f: &Excerpt) -> u16 {
    let [high, low] = (nd::MESSAGE_LEN + IpProtocol::ICMPV6.0 as u16).to_be_bytes();
    let mut sum = u32::from(u16::from_ne_bytes([high, low]));
    let mut at = nd::SOURCE;
    while at < nd::END {
        sum += u32::from(f[at]);
        at += 1;
    }
    mgre_common::checksum::fold(sum)
}

/// Whose address a frame claims, and the flags; the frame's sender has it.
#[inline(always)]
fn read_claim<F: Whole>(frame: &F, scene: &Scene, f: &mut Excerpt) -> Option<(NeighborKey, u16)> {
    let segment = scene.segment as u16;
    if read_arp(frame, scene, f) {
        if f[arp::OPERATION] != arp::REQUEST && f[arp::OPERATION] != arp::REPLY {
            return None;
        }
        return Some((NeighborKey::from_v4(segment, [f[arp::SENDER_IP], f[arp::SENDER_IP + 1]]), 0));
    }
    if !read_nd(frame, scene, nd::ADVERTISEMENT, nd::TARGET_OPTION, f) {
        return None;
    }
    let flags = if f[nd::FLAGS] & nd::ROUTER != 0 { neighbor_flag::ROUTER } else { 0 };
    Some((NeighborKey::from_v6(segment, address_at(f, nd::TARGET)), flags))
}

/// Takes note of what a host says of itself: a frame that [`concerns`] picked, from a source that
/// was admitted. What has a tag is said in another network than the segment's own.
#[inline(always)]
pub fn listen<F: Whole, T: Tables>(frame: &F, tables: &T, scene: &Scene) {
    if scene.outer_len == 0 && frame.has_tag_beside() {
        return;
    }
    F::with_excerpt(|f| {
        if let Some((key, flags)) = read_claim(frame, scene, f) {
            hear(tables, scene, &key, mac(f[SENDER], f[SENDER + 1], f[SENDER + 2]), flags);
        }
    });
}

/// Takes note that somebody claims an address.
#[inline(always)]
fn hear<T: Tables>(tables: &T, scene: &Scene, key: &NeighborKey, mac: MacAddr, flags: u16) {
    let binding = Binding::new(mac, flags);
    if let Some(known) = tables.neighbor(key) {
        if known.binding() == binding && !known.is_contested() {
            known.touch(scene.seconds);
            return;
        }
        if known.binding().mac() != mac {
            // From here on the old one is not answered with.
            known.contest();
        }
    }
    let event = NeighborEvent {
        key: FdbKey::new(key.segment, mac),
        address: key.address,
        source: scene.source.to_bits(),
        flags: flags.into(),
    };
    tables.report_neighbor(&event, scene.source);
}

/// Who has an address, if that may be answered to who asks from there.
#[inline(always)]
fn known<T: Tables>(tables: &T, key: &NeighborKey, asker: Target) -> Option<Binding> {
    let known = tables.neighbor(key)?;
    if known.is_contested() {
        return None;
    }
    let binding = known.binding();
    let place = tables.fdb(tables.fdb_hash(), FdbKey::new(key.segment, binding.mac()))?.target();
    // On the asker's own LAN the host hears the question, and answers it.
    (!place.is_none() && place != asker).then_some(binding)
}

/// Turns a question into its reply. Says how it was asked; 0: it stays as it is, and is flooded.
// A number, because that is what a function of its own can return in the kernel.
#[inline(always)]
pub fn turn<F: Whole, T: Tables>(frame: &mut F, tables: &T, scene: &Scene) -> u32 {
    let turned = F::with_excerpt(|f| {
        if read_arp(frame, scene, f) {
            turn_arp(frame, tables, scene, f)
        } else if read_nd(frame, scene, nd::SOLICITATION, nd::SOURCE_OPTION, f) {
            turn_nd(frame, tables, scene, f)
        } else {
            STAYS
        }
    });
    turned.unwrap_or(STAYS)
}

/// What [`turn`] says.
const STAYS: u32 = 0;
const ARP_REPLY: u32 = 1;
const ND_REPLY: u32 = 2;
const SPOILT: u32 = 3;

#[inline(always)]
fn turn_arp<F: Whole, T: Tables>(frame: &mut F, tables: &T, scene: &Scene, f: &mut Excerpt) -> u32 {
    let wanted = [f[arp::TARGET_IP], f[arp::TARGET_IP + 1]];
    let asker = [f[arp::SENDER_IP], f[arp::SENDER_IP + 1]];
    if f[arp::OPERATION] != arp::REQUEST || wanted == asker || !is_host_v4(wanted[0]) {
        return STAYS;
    }
    let key = NeighborKey::from_v4(scene.segment as u16, wanted);
    let Some(binding) = known(tables, &key, scene.source) else { return STAYS };
    let owner = pairs(binding.mac());
    let mut at = 0;
    while at < 3 {
        let to = f[SENDER + at];
        f[at] = to;
        f[arp::TARGET_MAC + at] = to;
        f[SENDER + at] = owner[at];
        f[arp::SENDER_MAC + at] = owner[at];
        at += 1;
    }
    f[arp::OPERATION] = arp::REPLY;
    [f[arp::SENDER_IP], f[arp::SENDER_IP + 1]] = wanted;
    [f[arp::TARGET_IP], f[arp::TARGET_IP + 1]] = asker;
    if frame.overwrite(ARP_FRAME, f).is_err() { SPOILT } else { ARP_REPLY }
}

#[inline(always)]
fn turn_nd<F: Whole, T: Tables>(frame: &mut F, tables: &T, scene: &Scene, f: &mut Excerpt) -> u32 {
    let key = NeighborKey::from_v6(scene.segment as u16, address_at(f, nd::TARGET));
    if key.address == address_at(f, nd::SOURCE) {
        return STAYS;
    }
    let Some(binding) = known(tables, &key, scene.source) else { return STAYS };
    let owner = pairs(binding.mac());
    let mut at = 0;
    while at < 3 {
        f[at] = f[SENDER + at];
        f[SENDER + at] = owner[at];
        f[nd::OPTION_MAC + at] = owner[at];
        at += 1;
    }
    // Version 6, and nothing of class and flow label, which were the question's.
    f[nd::VERSION] = u16::from_ne_bytes([0x60, 0]);
    f[nd::VERSION + 1] = 0;
    let mut at = 0;
    while at < 8 {
        f[nd::DESTINATION + at] = f[nd::SOURCE + at];
        f[nd::SOURCE + at] = f[nd::TARGET + at];
        at += 1;
    }
    f[nd::TYPE] = nd::ADVERTISEMENT;
    // Not overriding: what the owner himself says has the last word (RFC 4861 7.2.4).
    let router = if binding.flags() & neighbor_flag::ROUTER != 0 { nd::ROUTER } else { 0 };
    f[nd::FLAGS] = nd::SOLICITED | router;
    f[nd::FLAGS + 1] = 0;
    f[nd::OPTION] = nd::TARGET_OPTION;
    f[nd::CHECKSUM] = 0;
    f[nd::CHECKSUM] = !nd_sum(f);
    if frame.overwrite(ND_FRAME, f).is_err() { SPOILT } else { ND_REPLY }
}

/// Answers a question from a port that would be flooded, if it can be.
#[inline(always)]
pub(crate) fn answer<F: Replicate, T: Tables>(
    frame: &mut F,
    tables: &T,
    port: Target,
    id: u32,
    segment: u32,
    now: Now,
) -> Option<F::Action> {
    let ethernet = Ethernet::read(frame)?;
    // What is asked of one station alone it is to answer itself, wherever it is.
    let to_all = ethernet.is_to_group() && !frame.has_tag_beside();
    if !to_all || !concerns(frame, tables, &ethernet, 0, segment) {
        return None;
    }
    let bytes = frame.len();
    let egress = port_egress(tables.port(id)?, frame.segment_size(), bytes).ok()?;
    let scene = Scene { source: port, segment, outer_len: 0, len: bytes, seconds: now.seconds };
    let protocol = match frame.answer(tables, &scene) {
        STAYS => return None,
        ARP_REPLY => Protocol::Arp,
        ND_REPLY => Protocol::Nd,
        _ => return Some(lost(frame, tables, port, DropReason::Headroom)),
    };
    tables.count_answered(segment, protocol);
    match frame.redirect(egress) {
        Ok(action) => {
            tables.count_sent(port, bytes);
            Some(action)
        }
        Err(reason) => Some(lost(frame, tables, port, reason)),
    }
}

#[inline(always)]
fn lost<F: Replicate, T: Tables>(frame: &mut F, tables: &T, port: Target, reason: DropReason) -> F::Action {
    tables.count_drop(port, Direction::Receive, reason);
    frame.drop()
}
