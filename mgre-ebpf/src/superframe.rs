//! Superframes: packets of many segments, which the kernel or a device cuts when they leave the host (GSO).

use mgre_common::wire::{ETHERNET_LEN, EtherType, IPV6_LEN, IpProtocol, VLAN_TAG_LEN};

use crate::frame::{Frame, Replicate, Strip};
use crate::inner::Inner;

/// In the place of a segment's size: each of the packet's buffers is a segment, as in SCTP (`GSO_BY_FRAGS` of the
/// kernel's include/linux/skbuff.h).
const BY_FRAGMENTS: u32 = 0xffff;

/// The longest packet whose length IPv6's own header can say (RFC 8200 3).
const IPV6_MAX_PAYLOAD: u32 = 65_535;
/// A hop-by-hop header before TCP, of nothing but the length of a jumbogram (RFC 2675 2), up to that length.
const JUMBO_HEADER: [u8; 4] = [6, 0, 0xc2, 4];
const JUMBO_HEADER_LEN: u32 = 8;

/// Whether it is a superframe that must be cut before there is a tunnel around it. The kernel knows the headers of one
/// tunnel at a time; for others it refuses the second one, which shows then.
#[inline(always)]
pub fn is_cut_first<F: Frame>(frame: &F) -> bool {
    match frame.segment_size() {
        0 => false,
        BY_FRAGMENTS => true,
        _ => is_stacked(frame) || !matches!(protocol(frame), IpProtocol::TCP | IpProtocol::UDP),
    }
}

/// The same of one that is flooded, where it is too late to be cut when the kernel refuses: of datagrams it may be
/// those of a program, or another tunnel's.
#[inline(always)]
pub fn is_cut_before_copies<F: Frame>(frame: &F) -> bool {
    is_cut_first(frame) || frame.segment_size() != 0 && protocol(frame) != IpProtocol::TCP
}

/// The same of one that goes from tunnel to tunnel.
#[inline(always)]
pub fn is_cut_on_the_way<F: Frame>(frame: &F) -> bool {
    frame.segment_size() == BY_FRAGMENTS
}

/// What the IP packet in a frame carries; of frames without, nothing that is in use.
#[inline(always)]
fn protocol<F: Frame>(frame: &F) -> IpProtocol {
    const RESERVED: IpProtocol = IpProtocol(255);
    Inner::read(frame, 0).map_or(RESERVED, |inner| inner.protocol(frame, 0))
}

/// Whether it has a tag beside it and another one inside, which the kernel cannot cut once there is a tunnel around
/// both.
#[inline(always)]
fn is_stacked<F: Frame>(frame: &F) -> bool {
    frame.has_tag_beside() && frame.read::<EtherType>(ETHERNET_LEN - 2).is_some_and(EtherType::is_vlan)
}

/// Length of the longest frame on the wire that this one stands for: its own,
/// or that of a full segment of a GSO superframe. A tag beside it counts.
///
/// Where a superframe's headers are of a kind that cannot be told from here
/// (IPv6 extensions), the answer is too short by the transport header, and the
/// device that segments it has the last word.
#[inline(always)]
pub fn wire_len<F: Frame>(frame: &F) -> u32 {
    let tag = if frame.has_tag_beside() { VLAN_TAG_LEN as u32 } else { 0 };
    match frame.segment_size() {
        0 => frame.len() + tag,
        segment => frame.blur(headers_len(frame, 0)) + payload_len(segment) + tag,
    }
}

/// The same for the frame inside of outer headers.
#[inline(always)]
pub fn inner_wire_len<F: Frame>(frame: &F, strip: Strip) -> u32 {
    match frame.segment_size() {
        0 => strip.inner_len,
        segment => frame.blur(headers_len(frame, strip.outer_len)) + payload_len(segment),
    }
}

/// How many packets it will be once it is cut, or more. (Who makes it need not say, as a virtual machine does not.)
#[inline(always)]
pub fn segments<F: Frame>(frame: &F) -> u16 {
    match frame.segment_size() {
        0 => 1,
        size => {
            let segments = frame.len() / size + 1;
            if segments < u16::MAX as u32 { segments as u16 } else { u16::MAX }
        }
    }
}

/// Length of what a segment carries. Where that differs from segment to segment, each is looked at when it is cut off.
#[inline(always)]
const fn payload_len(segment_size: u32) -> u32 {
    if segment_size == BY_FRAGMENTS { 0 } else { segment_size }
}

/// Length of the headers that each segment has, of the frame behind outer headers of this length.
#[inline(always)]
fn headers_len<F: Frame>(frame: &F, outer_len: u32) -> u32 {
    const UDP_LEN: u32 = 8;
    let Some(inner) = Inner::read(frame, outer_len) else { return ETHERNET_LEN as u32 };
    let l3 = inner.l3 as usize;
    let byte = |at: usize| frame.read_behind::<u8>(outer_len, l3 + at);
    let ip_len = if inner.version.is_v6() { 40 } else { u32::from(byte(0).unwrap_or(0) & 0xf) * 4 };
    let transport_len = if inner.protocol(frame, outer_len) == IpProtocol::TCP {
        // Only headers without options have a fixed place for what follows them;
        // with IPv4 options the usual TCP header with timestamps is assumed.
        let offset = match ip_len {
            20 => byte(20 + 12),
            40 => byte(40 + 12),
            _ => None,
        };
        offset.map_or(32, |byte| u32::from(byte >> 4) * 4)
    } else {
        UDP_LEN
    };
    inner.l3 + ip_len + transport_len
}

/// Whether a superframe that comes out of a tunnel is one of IPv6 whose length nothing in it tells, as
/// [`shed_jumbo_header`] leaves it: hosts would take it for an empty packet. It is cut before they get it.
#[inline(always)]
pub fn is_mute<F: Frame>(frame: &F, outer_len: u32) -> bool {
    const LENGTH_AT: usize = 4;
    if frame.segment_size() == 0 || frame.len() <= IPV6_MAX_PAYLOAD {
        return false;
    }
    let Some(inner) = Inner::read(frame, outer_len) else { return false };
    inner.version.is_v6()
        && frame.read_behind::<u16>(outer_len, inner.l3 as usize + LENGTH_AT) == Some(0)
        && inner.protocol(frame, outer_len) != IpProtocol::HOP_BY_HOP
}

/// Takes out the header in which kernels note the length of IPv6 superframes over 64 KiB (BIG TCP), as they do
/// when they cut one. With a tunnel around it they would not find it, and it would be in each segment.
///
/// Where that cannot be done nothing is, and the frame is one that must be cut first.
#[inline(always)]
pub fn shed_jumbo_header<F: Replicate>(frame: &mut F) {
    if frame.segment_size() == 0 || frame.len() <= IPV6_MAX_PAYLOAD {
        return;
    }
    let Some(inner) = Inner::read(frame, 0) else { return };
    // The kernel takes out what is behind an IP header that comes right behind Ethernet's.
    if !inner.version.is_v6() || inner.l3 != ETHERNET_LEN as u32 {
        return;
    }
    let bears_one = inner.protocol(frame, 0) == IpProtocol::HOP_BY_HOP
        && frame.read::<[u8; 4]>(ETHERNET_LEN + IPV6_LEN) == Some(JUMBO_HEADER);
    // If the kernel does not, it is cut first.
    let _done = bears_one && frame.take_out_extension(JUMBO_HEADER_LEN, IpProtocol::TCP);
}
