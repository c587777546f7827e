//! A frame as the pipeline sees it.

use bytemuck::AnyBitPattern;
use mgre_common::fdb::FdbKey;
use mgre_common::reason::DropReason;
use mgre_common::table::Template;
use mgre_common::wire::{ETHERNET_LEN, EtherType, VLAN_TAG_LEN};

/// An Ethernet header without tags, as two loads of eight bytes from the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// From the first byte on: the destination and a part of the source.
    start: u64,
    /// Up to the last byte: the source and the type.
    end: u64,
}

/// Where the second load begins.
const END: usize = ETHERNET_LEN - 8;

#[cfg(target_endian = "little")]
const TYPE_SHIFT: u32 = 48;
#[cfg(target_endian = "big")]
const TYPE_SHIFT: u32 = 0;

impl Ethernet {
    /// Reads one, or nothing if the frame does not reach so far.
    #[inline(always)]
    pub fn read<F: Frame>(frame: &F, offset: usize) -> Option<Self> {
        let [start, end] = frame.read_two(offset, offset + END)?;
        Some(Self { start, end })
    }

    /// Two values and how far from the start each is to be written.
    #[inline(always)]
    pub const fn writes(&self) -> [(usize, u64); 2] {
        [(0, self.start), (END, self.end)]
    }

    /// The destination in a segment.
    #[inline(always)]
    pub const fn destination(&self, segment: u32) -> FdbKey {
        FdbKey::from_load(segment as u16, self.start)
    }

    /// The source in a segment.
    #[inline(always)]
    pub const fn source(&self, segment: u32) -> FdbKey {
        FdbKey::from_load(segment as u16, self.end)
    }

    /// Whether it goes to a group.
    #[inline(always)]
    pub const fn is_to_group(&self) -> bool {
        is_group(self.start)
    }

    /// Whether its source is neither a group nor zero.
    #[inline(always)]
    pub const fn is_from_station(&self) -> bool {
        !is_group(self.end) && FdbKey::from_load(0, self.end).0 != 0
    }

    /// The type of what follows.
    #[inline(always)]
    pub const fn ethertype(&self) -> EtherType {
        EtherType::from_word((self.end >> TYPE_SHIFT) as u16)
    }

    /// The same with another type.
    #[inline(always)]
    pub const fn with_ethertype(mut self, ethertype: EtherType) -> Self {
        self.end &= !(0xffff << TYPE_SHIFT);
        self.end |= (ethertype.to_word() as u64) << TYPE_SHIFT;
        self
    }
}

/// Whether the address at the start of a load is a group's.
#[inline(always)]
const fn is_group(load: u64) -> bool {
    load.to_ne_bytes()[0] & 1 != 0
}

/// Which side of an interface a frame is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Out of it.
    Out,
    /// Into its receive path, as if it had come from outside.
    Receive,
    /// Into the receive path of its other end, which is in another network
    /// namespace. Where a hook cannot, it sends as for [`Side::Out`].
    Peer,
    /// Out of it, to the neighbour that the kernel finds for the IP packet that it is.
    Neighbor,
}

/// Where a frame is sent: an interface, and which side of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// The interface.
    pub ifindex: u32,
    /// The side.
    pub side: Side,
}

/// What to take off the front of a received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strip {
    /// Bytes before the inner Ethernet header.
    pub outer_len: u32,
    /// Length of the inner frame; what follows it is link-layer padding.
    pub inner_len: u32,
    /// Hops that the outer packet had left (TTL).
    pub hops: u8,
}

/// What an outer packet has of its own beside its template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The IPv4 identification.
    pub id: u16,
    /// The most hops that it may go; the template may say fewer.
    pub hops: u8,
}

impl Stamp {
    /// That of a packet of our own.
    #[inline(always)]
    pub const fn own(id: u16) -> Self {
        Self { id, hops: u8::MAX }
    }
}

/// A frame that can be read. All offsets are from the Ethernet header's first byte.
pub trait Frame {
    /// Bytes in the frame. A tag that the kernel keeps beside it is not in them.
    fn len(&self) -> u32;

    /// Whether there is no byte in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a value, or nothing if the frame does not reach so far.
    fn read<T: AnyBitPattern>(&self, offset: usize) -> Option<T>;

    /// Reads two values, of which the second one ends last.
    #[inline(always)]
    fn read_two<T: AnyBitPattern>(&self, first: usize, second: usize) -> Option<[T; 2]> {
        Some([self.read(first)?, self.read(second)?])
    }

    /// Payload bytes of each segment that a GSO or GRO superframe stands for; 0 for any other frame.
    fn segment_size(&self) -> u32;

    /// Whether the kernel keeps an 802.1Q or 802.1ad tag beside the frame.
    fn has_tag_beside(&self) -> bool;

    /// Whether the kernel takes it for an IP packet.
    fn carries_ip(&self) -> bool;
}

/// A frame that can be resized and sent.
pub trait Resize: Frame {
    /// What the program returns to the kernel.
    type Action;

    /// Takes the outer headers off.
    ///
    /// # Errors
    /// The kernel could not; the frame must then be dropped.
    fn strip(&mut self, strip: Strip) -> Result<(), DropReason>;

    /// Puts a template's header, lengths and checksum filled in, before the frame.
    /// A tag beside the frame goes into it.
    ///
    /// # Errors
    /// The kernel could not; the frame must then be dropped.
    fn encapsulate(&mut self, template: &Template, stamp: Stamp) -> Result<(), DropReason>;

    /// Puts a template's header in the place of the outer headers that it came with.
    ///
    /// # Errors
    /// The kernel could not; the frame must then be dropped.
    fn relay(&mut self, template: &Template, stamp: Stamp, strip: Strip) -> Result<(), DropReason>;

    /// Sends the frame, which is then gone.
    ///
    /// # Errors
    /// The hook cannot send there; the frame must then be dropped.
    fn redirect(&mut self, egress: Egress) -> Result<Self::Action, DropReason>;

    /// The same for one that may go back out of the interface that it came in by.
    ///
    /// # Errors
    /// The hook cannot send there; the frame must then be dropped.
    #[inline(always)]
    fn redirect_back(&mut self, egress: Egress) -> Result<Self::Action, DropReason> {
        self.redirect(egress)
    }

    /// Ends it: not forwarded.
    fn drop(&mut self) -> Self::Action;

    /// Leaves it, untouched, to the kernel.
    fn pass(&mut self) -> Self::Action;
}

/// A frame that copies can be made of.
pub trait Replicate: Resize {
    /// Replaces the outer header that [`Resize::encapsulate`] or [`Resize::relay`] put on.
    /// The caller sees to it that the new one is as long as the old one.
    ///
    /// # Errors
    /// The kernel could not.
    fn readdress(&mut self, template: &Template, stamp: Stamp) -> Result<(), DropReason>;

    /// Sends a copy.
    ///
    /// # Errors
    /// The kernel did not take it.
    fn copy_to(&mut self, egress: Egress) -> Result<(), DropReason>;

    /// Runs `step` for 0, 1, ... below `count`, as long as it says to go on.
    fn repeat<S: Step>(count: u32, step: &mut S);
}

/// One round of [`Replicate::repeat`].
pub trait Step {
    /// Does the round with this number; says whether to go on.
    fn step(&mut self, index: u32) -> bool;
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
        segment => superframe_headers_len(frame, 0) + segment + tag,
    }
}

/// The same for the frame inside of outer headers.
#[inline(always)]
pub fn inner_wire_len<F: Frame>(frame: &F, strip: Strip) -> u32 {
    match (frame.segment_size(), strip.outer_len) {
        (0, _) => strip.inner_len,
        // Told apart, each length is a constant that the bounds checks need.
        (segment, 38) => superframe_headers_len(frame, 38) + segment,
        (segment, 42) => superframe_headers_len(frame, 42) + segment,
        (segment, _) => superframe_headers_len(frame, 46) + segment,
    }
}

/// Length of the headers that each segment has, from the Ethernet header at `start`,
/// which is to be a constant.
#[inline(always)]
fn superframe_headers_len<F: Frame>(frame: &F, start: usize) -> u32 {
    let ethertype = frame.read::<EtherType>(start + 12);
    let l3 = start + ETHERNET_LEN;
    if ethertype.is_some_and(EtherType::is_vlan) {
        let inner = frame.read::<EtherType>(l3 + 2);
        return ip_headers_len(frame, l3 + VLAN_TAG_LEN, inner) - start as u32;
    }
    ip_headers_len(frame, l3, ethertype) - start as u32
}

#[inline(always)]
fn ip_headers_len<F: Frame>(frame: &F, l3: usize, ethertype: Option<EtherType>) -> u32 {
    const TCP: u8 = 6;
    const UDP_LEN: u32 = 8;
    let (ip_len, protocol) = match ethertype {
        Some(EtherType::IPV4) => {
            (u32::from(frame.read::<u8>(l3).unwrap_or(0) & 0xf) * 4, frame.read::<u8>(l3 + 9).unwrap_or(0))
        }
        Some(EtherType::IPV6) => (40, frame.read::<u8>(l3 + 6).unwrap_or(0)),
        _ => return l3 as u32,
    };
    let transport_len = if protocol == TCP {
        // Only headers without options have a fixed place for what follows them;
        // with IPv4 options the usual TCP header with timestamps is assumed.
        let offset = match ip_len {
            20 => frame.read::<u8>(l3 + 20 + 12),
            40 => frame.read::<u8>(l3 + 40 + 12),
            _ => None,
        };
        offset.map_or(32, |byte| u32::from(byte >> 4) * 4)
    } else {
        UDP_LEN
    };
    l3 as u32 + ip_len + transport_len
}
