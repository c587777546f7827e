//! A frame as the pipeline sees it.

use bytemuck::AnyBitPattern;
use mgre_common::fdb::FdbKey;
use mgre_common::reason::DropReason;
use mgre_common::table::Template;
use mgre_common::wire::{ETHERNET_LEN, EtherType, VLAN_TAG_LEN};

/// An Ethernet header without tags, as seven words loaded from the wire.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Ethernet([u16; 7]);

const _: () = assert!(size_of::<Ethernet>() == ETHERNET_LEN);

impl Ethernet {
    /// The destination in a segment.
    #[inline(always)]
    pub const fn destination(&self, segment: u32) -> FdbKey {
        FdbKey::from_words(segment as u16, [self.0[0], self.0[1], self.0[2]])
    }

    /// The source in a segment.
    #[inline(always)]
    pub const fn source(&self, segment: u32) -> FdbKey {
        FdbKey::from_words(segment as u16, [self.0[3], self.0[4], self.0[5]])
    }

    /// Whether it goes to a group.
    #[inline(always)]
    pub const fn is_to_group(&self) -> bool {
        self.0[0].to_ne_bytes()[0] & 1 != 0
    }

    /// Whether its source is neither a group nor zero.
    #[inline(always)]
    pub const fn is_from_station(&self) -> bool {
        self.0[3].to_ne_bytes()[0] & 1 == 0 && self.0[3] | self.0[4] | self.0[5] != 0
    }

    /// The type of what follows.
    #[inline(always)]
    pub const fn ethertype(&self) -> EtherType {
        EtherType::from_word(self.0[6])
    }

    /// The same with another type.
    #[inline(always)]
    pub const fn with_ethertype(mut self, ethertype: EtherType) -> Self {
        self.0[6] = ethertype.to_word();
        self
    }
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

    /// Payload bytes of each segment that a GSO or GRO superframe stands for; 0 for any other frame.
    fn segment_size(&self) -> u32;

    /// Whether the kernel keeps an 802.1Q or 802.1ad tag beside the frame.
    fn has_tag_beside(&self) -> bool;
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
    fn encapsulate(&mut self, template: &Template, id: u16) -> Result<(), DropReason>;

    /// Sends the frame, which is then gone.
    ///
    /// # Errors
    /// The hook cannot send there; the frame must then be dropped.
    fn redirect(&mut self, egress: Egress) -> Result<Self::Action, DropReason>;

    /// Ends it: not forwarded.
    fn drop(&mut self) -> Self::Action;

    /// Leaves it, untouched, to the kernel.
    fn pass(&mut self) -> Self::Action;
}

/// A frame that copies can be made of.
pub trait Replicate: Resize {
    /// Replaces the outer header that [`Resize::encapsulate`] put on. The caller sees
    /// to it that the new one is as long as the old one.
    ///
    /// # Errors
    /// The kernel could not.
    fn readdress(&mut self, template: &Template, id: u16) -> Result<(), DropReason>;

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
        segment => superframe_headers_len(frame) + segment + tag,
    }
}

#[inline(always)]
fn superframe_headers_len<F: Frame>(frame: &F) -> u32 {
    let ethertype = frame.read::<EtherType>(12);
    if ethertype.is_some_and(EtherType::is_vlan) {
        let inner = frame.read::<EtherType>(ETHERNET_LEN + 2);
        return ip_headers_len::<F, { ETHERNET_LEN + VLAN_TAG_LEN }>(frame, inner);
    }
    ip_headers_len::<F, ETHERNET_LEN>(frame, ethertype)
}

#[inline(always)]
fn ip_headers_len<F: Frame, const L3: usize>(frame: &F, ethertype: Option<EtherType>) -> u32 {
    const TCP: u8 = 6;
    const UDP_LEN: u32 = 8;
    let (ip_len, protocol) = match ethertype {
        Some(EtherType::IPV4) => {
            (u32::from(frame.read::<u8>(L3).unwrap_or(0) & 0xf) * 4, frame.read::<u8>(L3 + 9).unwrap_or(0))
        }
        Some(EtherType::IPV6) => (40, frame.read::<u8>(L3 + 6).unwrap_or(0)),
        _ => return L3 as u32,
    };
    let transport_len = if protocol == TCP {
        // Only headers without options have a fixed place for what follows them;
        // with IPv4 options the usual TCP header with timestamps is assumed.
        let offset = match ip_len {
            20 => frame.read::<u8>(L3 + 20 + 12),
            40 => frame.read::<u8>(L3 + 40 + 12),
            _ => None,
        };
        offset.map_or(32, |byte| u32::from(byte >> 4) * 4)
    } else {
        UDP_LEN
    };
    L3 as u32 + ip_len + transport_len
}
