//! A frame as the pipeline sees it.

use bytemuck::AnyBitPattern;
use mgre_common::event::TOO_BIG_CAPTURE;
use mgre_common::fdb::FdbKey;
use mgre_common::reason::DropReason;
use mgre_common::table::Template;
use mgre_common::wire::{ETHERNET_LEN, EtherType, IpProtocol, LINK_LOCAL_GROUPS, PROBE_GROUPS};

use crate::dress::{self, Dressing};
use crate::inner::Inner;
use crate::neighbor::{self, Scene};
use crate::tables::Tables;
use crate::verdict::OutOf;

/// What [`Frame::read_behind`] is asked for is before this: the longest outer headers (78 bytes:
/// IPv6, UDP, GRE with every field), Ethernet with two tags, IPv6, and the start of TCP.
pub const MAX_BEHIND: usize = 256;

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
    pub fn read<F: Frame>(frame: &F) -> Option<Self> {
        let [start, end] = frame.read_two(0, END)?;
        Some(Self { start, end })
    }

    /// Reads the one behind outer headers of this length.
    #[inline(always)]
    pub fn read_behind<F: Frame>(frame: &F, outer_len: u32) -> Option<Self> {
        let [start, end] = frame.read_two_behind(outer_len, 0, END)?;
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

    /// Which one of [`LINK_LOCAL_GROUPS`] it goes to, if it does.
    #[inline(always)]
    pub const fn link_local_group(&self) -> Option<u32> {
        const ALL: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xf0, 0, 0]);
        const FIRST: u64 = {
            let [a, b, c, d, e, f] = LINK_LOCAL_GROUPS.0;
            u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
        };
        if self.start & ALL != FIRST {
            return None;
        }
        Some(self.start.to_ne_bytes()[5] as u32)
    }

    /// What it is about, if it is a loop probe.
    #[inline(always)]
    pub const fn probe(&self) -> Option<u32> {
        let [a, b, c, d, e, f, ..] = self.start.to_ne_bytes();
        if u32::from_ne_bytes([a, b, c, d]) != u32::from_ne_bytes(PROBE_GROUPS) {
            return None;
        }
        Some(u16::from_be_bytes([e, f]) as u32)
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
    /// The VLAN id of the tag that it bears there; zero: none.
    pub vlan: u16,
}

impl Strip {
    /// The same, blurred ([`Frame::blur`]).
    #[inline(always)]
    pub fn blur<F: Frame>(self, frame: &F) -> Self {
        Self {
            outer_len: frame.blur(self.outer_len),
            inner_len: frame.blur(self.inner_len),
            hops: frame.blur(self.hops.into()) as u8,
            tos: frame.blur(self.tos.into()) as u8,
        }
    }
}

impl Egress {
    /// Without a tag.
    #[inline(always)]
    pub const fn new(ifindex: u32, side: Side) -> Self {
        Self { ifindex, side, vlan: 0 }
    }

    /// Side and VLAN id as one word.
    #[inline(always)]
    pub const fn how(self) -> u32 {
        (self.side as u32) << 16 | self.vlan as u32
    }

    /// From an interface and such a word.
    #[inline(always)]
    pub const fn from_parts(ifindex: u32, how: u32) -> Self {
        const RECEIVE: u32 = Side::Receive as u32;
        const PEER: u32 = Side::Peer as u32;
        const NEIGHBOR: u32 = Side::Neighbor as u32;
        let side = match how >> 16 {
            RECEIVE => Side::Receive,
            PEER => Side::Peer,
            NEIGHBOR => Side::Neighbor,
            _ => Side::Out,
        };
        Self { ifindex, side, vlan: how as u16 }
    }
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
    /// The outer packet's traffic class octet: DSCP and ECN.
    pub tos: u8,
}

/// What an outer packet has of its own beside its template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The IPv4 identification.
    pub id: u16,
    /// The most hops that it may go; the template may say fewer.
    pub hops: u8,
    /// Bits of the traffic class octet beside the template's.
    pub tos: u8,
    /// The IPv4 don't-fragment bit, where the template does not have it: 1 or 0.
    pub dont_fragment: u8,
    /// What the flow id (its low 8 bits) or the UDP source port (14 bits) is made of.
    pub flow: u32,
}

impl Stamp {
    /// That of a packet of our own that has nothing special.
    pub const PLAIN: Self = Self { id: 0, hops: u8::MAX, tos: 0, dont_fragment: 0, flow: 0 };
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

    /// Reads a value behind outer headers of a length that is known only when it runs, in
    /// the packet's first [`MAX_BEHIND`] bytes.
    #[inline(always)]
    fn read_behind<T: AnyBitPattern>(&self, outer_len: u32, offset: usize) -> Option<T> {
        self.read(outer_len as usize + offset)
    }

    /// Reads two values, of which the second one ends last.
    #[inline(always)]
    fn read_two<T: AnyBitPattern>(&self, first: usize, second: usize) -> Option<[T; 2]> {
        Some([self.read(first)?, self.read(second)?])
    }

    /// Reads two values behind outer headers, of which the second one ends last.
    #[inline(always)]
    fn read_two_behind<T: AnyBitPattern>(
        &self,
        outer_len: u32,
        first: usize,
        second: usize,
    ) -> Option<[T; 2]> {
        Some([self.read_behind(outer_len, first)?, self.read_behind(outer_len, second)?])
    }

    /// The number as it is, but not what a verifier knows of it: ways through a program that
    /// differ by that alone become one. It is asked for where many ways meet.
    #[inline(always)]
    fn blur(&self, number: u32) -> u32 {
        number
    }

    /// Payload bytes of each segment that a GSO or GRO superframe stands for; 0 for any other frame.
    fn segment_size(&self) -> u32;

    /// Whether the kernel keeps an 802.1Q or 802.1ad tag beside the frame.
    fn has_tag_beside(&self) -> bool;

    /// That tag: its protocol, and its control information.
    fn tag_beside(&self) -> Option<(EtherType, u16)>;

    /// Whether the kernel takes it for an IP packet.
    fn carries_ip(&self) -> bool;

    /// Whether it was sent to another station than the interface that it was received by, which hears it all the same
    /// where it is promiscuous; or may have been, where that is not known.
    fn is_for_another(&self) -> bool;

    /// Whether the kernel takes a packet with an outer header for one of a template's family. It goes on taking it for
    /// what it was when it gets the template's header in the place of that.
    fn is_taken_for(&self, _template: &Template) -> bool {
        true
    }

    /// Whether it may get a template's header in the place of that which it has: not a superframe
    /// that was made for other protocols, by which the kernel would cut it.
    fn may_rest_on(&self, _template: &Template) -> bool {
        true
    }
}

/// Bytes of a frame in pairs, as loaded: as many as a neighbour message has that gives one
/// link-layer address.
pub type Excerpt = [u16; 43];

/// A frame all of whose bytes can be looked at, not its first ones only.
pub trait Whole: Frame {
    /// The folded ones' complement sum (RFC 1071) of so many bytes from an offset on, of no
    /// more than 65,535; nothing if they are not there.
    fn sum(&self, offset: u32, len: u32) -> Option<u16>;

    /// Takes note of what ARP or ND say ([`neighbor::listen`]).
    #[inline(always)]
    fn listen<T: Tables>(&self, tables: &T, scene: &Scene)
    where
        Self: Sized,
    {
        neighbor::listen(self, tables, scene);
    }

    /// Turns a question into its reply ([`neighbor::turn`]).
    #[inline(always)]
    fn answer<T: Tables>(&mut self, tables: &T, scene: &Scene) -> u32
    where
        Self: Sized,
    {
        neighbor::turn(self, tables, scene)
    }

    /// Lends memory for an excerpt. `work` sends no frame.
    fn with_excerpt<R>(work: impl FnOnce(&mut Excerpt) -> R) -> Option<R>;

    /// Copies so many bytes from an offset on, and no fewer; says whether they are there.
    fn load(&self, offset: u32, len: usize, to: &mut Excerpt) -> bool;

    /// Writes so many bytes over the frame's first ones.
    ///
    /// # Errors
    /// The frame does not reach so far, or the kernel could not.
    fn overwrite(&mut self, len: usize, from: &Excerpt) -> Result<(), DropReason>;

    /// Copies as many bytes from an offset on as there are and have room; says how many.
    fn copy_bytes(&self, offset: u32, to: &mut [u8; TOO_BIG_CAPTURE]) -> u32;

    /// Notes on a frame what [`Egress`] cannot say: its target ([`Target`] bits), for
    /// whoever gets it. It is there no more when the frame has left the host.
    ///
    /// [`Target`]: mgre_common::target::Target
    fn set_mark(&mut self, mark: u32);

    /// Fills in the sequence number and the GRE checksum that a template's options ask for, of
    /// a packet that has its header.
    ///
    /// # Errors
    /// The kernel could not; the frame must then be dropped.
    fn seal(&mut self, template: &Template, sequence: u32) -> Result<(), DropReason>;

    /// Replaces two bytes at an offset, and brings the transport checksum that covers them up
    /// to date: one that stands there, and lies an odd number of bytes before them or not.
    ///
    /// # Errors
    /// The kernel could not.
    fn replace(&mut self, at: u32, checksum_at: u32, odd: bool, old: u16, new: u16)
    -> Result<(), DropReason>;

    /// Takes off the outermost tag, which the kernel keeps beside the frame.
    ///
    /// # Errors
    /// The kernel could not; the frame must then be dropped.
    fn untag(&mut self) -> Result<(), DropReason>;
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
    /// The kernel could not.
    fn encapsulate(&mut self, template: &Template, stamp: Stamp) -> Result<(), Bare>;

    /// Puts a template's header in the place of the outer headers that it came with.
    ///
    /// # Errors
    /// The kernel could not; the frame must then be dropped.
    fn relay(&mut self, template: &Template, stamp: Stamp, strip: Strip) -> Result<(), DropReason>;

    /// Changes the traffic class octet of the IP packet in a frame without outer headers.
    ///
    /// # Errors
    /// The frame does not reach so far, or the kernel could not.
    fn remark(&mut self, inner: Inner, tos: u8) -> Result<(), DropReason>;

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
pub trait Replicate: Resize + Whole {
    /// Replaces the outer header that [`Resize::encapsulate`] or [`Resize::relay`] put on.
    /// The old one is so many bytes long. A superframe's stays in its family.
    ///
    /// # Errors
    /// The kernel could not.
    fn readdress(&mut self, template: &Template, stamp: Stamp, outer_len: u32) -> Result<(), DropReason>;

    /// Takes out so many bytes right behind the IPv6 header that follows Ethernet's; that says then what comes next.
    /// Whether it was done; if not, nothing was.
    fn take_out_extension(&mut self, len: u32, next_header: IpProtocol) -> bool;

    /// Sends a copy.
    ///
    /// # Errors
    /// The kernel did not take it.
    fn copy_to(&mut self, egress: Egress) -> Result<(), DropReason>;

    /// Puts an adjacency's header on ([`dress::dress`]).
    ///
    /// # Errors
    /// The kernel could not.
    #[inline(always)]
    fn dress<T: Tables>(&mut self, tables: &T, dressing: Dressing) -> Result<(), Bare>
    where
        Self: Sized,
    {
        let (adjacency, stamp, outside) = dressing.to_words();
        dress::dress(self, tables, Dressing::from_words(adjacency, stamp, outside))
    }

    /// Takes the frame out of a tunnel ([`dress::undress`]).
    ///
    /// # Errors
    /// The kernel could not; the frame must then be dropped.
    #[inline(always)]
    fn undress(&mut self, out_of: OutOf) -> Result<(), DropReason>
    where
        Self: Sized,
    {
        let (lens, change) = dress::out_of_to_words(out_of);
        dress::undress(self, dress::out_of_from_words(lens, change))
    }

    /// Runs `step` for 0, 1, ... below `count`, as long as it says to go on.
    fn repeat<S: Step>(count: u32, step: &mut S);
}

/// Why a frame got no outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bare {
    /// The kernel refuses to make room, as for a superframe that bears the marks of another tunnel. The frame is as it
    /// was.
    Refused,
    /// It failed on the way: the frame must be dropped.
    Broken(DropReason),
}

impl From<Bare> for DropReason {
    #[inline(always)]
    fn from(bare: Bare) -> Self {
        match bare {
            Bare::Refused => Self::Headroom,
            Bare::Broken(reason) => reason,
        }
    }
}

/// One round of [`Replicate::repeat`].
pub trait Step {
    /// Does the round with this number; says whether to go on.
    fn step(&mut self, index: u32) -> bool;
}
