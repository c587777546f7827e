//! A socket buffer as the pipeline's frame.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_GRE,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_loop, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room,
    bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    bpf_skb_vlan_pop, bpf_skb_vlan_push,
};
use aya_ebpf::programs::TcContext;
use bytemuck::AnyBitPattern;
use mgre_common::reason::DropReason;
use mgre_common::table::Template;
use mgre_common::wire::{ETHERNET_LEN, EtherType, VLAN_TAG_LEN};
use mgre_ebpf::frame::{Egress, Ethernet, Frame, Replicate, Resize, Side, Stamp, Step, Strip};

use super::maps::config;
use super::wire::{TTL, ipv4_fields, words};

/// Kernel 6.2 (commit d219df60a70e): sets the buffer's protocol when headers come off.
const DECAP_L3_IPV4: u64 = 1 << 7;
const DECAP_L3_IPV6: u64 = 1 << 8;
/// Kernels after 6.18: clears the marks of the encapsulation as well.
const DECAP_L4_GRE: u64 = 1 << 9;
/// A program's return value has no room for flags below this bit anyway.
const PROBE_SHIFT: u32 = 7;

/// Headers that must lie in the buffer's linear part: outer Ethernet, IPv4 and
/// GRE, and inside Ethernet, a tag, IPv6 and what of TCP tells its length.
const LINEAR_LEN: u32 = 14 + 20 + 8 + 14 + 4 + 40 + 14;

/// An Ethernet frame without its checksum is never shorter than this on a wire.
const MIN_FRAME_LEN: u32 = 60;

/// The kernel strips only what leaves an IPv4 header's length behind Ethernet and a tag.
const MIN_STRIP_LEN: u32 = 14 + 4 + 20;

/// Tags taken from beside a frame; the kernel puts the next one there each time.
const MAX_TAGS: usize = 2;

/// A socket buffer. On its way in (`INGRESS`) it can be handed to a veth's other end.
pub(crate) struct Skb<const INGRESS: bool> {
    skb: *mut __sk_buff,
}

macro_rules! field {
    ($self:ident . $field:ident) => {
        // SAFETY: the pointer is the program's context.
        unsafe { (*$self.skb).$field }
    };
}

impl<const INGRESS: bool> Skb<INGRESS> {
    /// The program's frame, with its headers in linear memory.
    #[inline(always)]
    pub(crate) fn new(context: &TcContext) -> Self {
        let this = Self { skb: context.skb.skb };
        let linear = field!(this.data_end) - field!(this.data);
        if linear < LINEAR_LEN && linear < this.len() {
            let wanted = if this.len() < LINEAR_LEN { this.len() } else { LINEAR_LEN };
            // A failure leaves the frame short, and short it is handled.
            // SAFETY: the pointer is the program's context.
            unsafe { bpf_skb_pull_data(this.skb, wanted) };
        }
        this
    }

    /// The interface whose hook this is.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        field!(self.ifindex)
    }

    /// Whether the buffer's protocol is one that `bpf_skb_adjust_room` encapsulates.
    #[inline(always)]
    fn is_ip(&self) -> bool {
        let protocol = field!(self.protocol) as u16;
        protocol == EtherType::IPV4.to_word() || protocol == EtherType::IPV6.to_word()
    }

    /// Whether the kernel knows what the frame carries. After headers came off it may
    /// still take the frame for what was outside; a device that gets it looks anew, but
    /// a veth's other end, reached without crossing the pair, does not.
    #[inline(always)]
    fn protocol_is_told(&self) -> bool {
        self.read::<u16>(12) == Some(field!(self.protocol) as u16)
    }

    #[inline(always)]
    fn adjust_room(&self, by: i32, flags: u64) -> Result<(), DropReason> {
        // SAFETY: the pointer is the program's context.
        check(unsafe { bpf_skb_adjust_room(self.skb, by, BPF_ADJ_ROOM_MAC, flags) })
    }

    #[inline(always)]
    fn store(&self, offset: u32, bytes: &[u8]) -> Result<(), DropReason> {
        let from = bytes.as_ptr().cast::<c_void>();
        // SAFETY: the pointer is the program's context, and `from` holds as many bytes as are said.
        check(unsafe { bpf_skb_store_bytes(self.skb, offset, from, bytes.len() as u32, 0) })
    }

    /// Writes a value into the linear part.
    #[inline(always)]
    fn write<T>(&self, offset: usize, value: T) -> Result<(), DropReason> {
        let start = field!(self.data) as usize + offset;
        if start + size_of::<T>() > field!(self.data_end) as usize {
            return Err(DropReason::Headroom);
        }
        // SAFETY: the bytes are within the packet, as just checked; see `read` for alignment.
        unsafe { (start as *mut T).write(value) };
        Ok(())
    }

    #[inline(always)]
    fn write_ethernet(&self, offset: usize, header: Ethernet) -> Result<(), DropReason> {
        let [(start, first), (end, second)] = header.writes();
        self.write(offset + start, first)?;
        self.write(offset + end, second)
    }

    /// Makes room for `outer_len` bytes of outer header and an inner Ethernet header
    /// longer by `tags_len`, so that superframes stay superframes where there are any.
    #[inline(always)]
    fn grow(&self, outer_len: u32, tags_len: u32) -> Result<(), DropReason> {
        let by = outer_len + tags_len;
        let keep = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
        if self.is_ip() {
            let inner_l2 = (ETHERNET_LEN as u64 + u64::from(tags_len)) << 56;
            let encap =
                BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_GRE | BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
            let done = self.adjust_room(by as i32, keep | u64::from(encap) | inner_l2);
            if done.is_ok() {
                return done;
            }
        }
        if self.segment_size() == 0 {
            // Any ethertype; and IP that still bears the marks of a tunnel that it left.
            // SAFETY: the pointer is the program's context.
            return check(unsafe { bpf_skb_change_head(self.skb, by, 0) });
        }
        // A superframe that left a GRE tunnel before: its marks are those that it
        // needs now, so room is all that is missing.
        let ipv4 = EtherType::IPV4.to_word();
        if tags_len == 0 && field!(self.protocol) as u16 == ipv4 {
            return self.adjust_room(by as i32, keep);
        }
        Err(DropReason::Headroom)
    }

    /// The common case of [`Resize::encapsulate`]: no tag, and a header length known
    /// to the compiler.
    #[inline(always)]
    fn encapsulate_by<const OUTER: usize>(
        &self,
        template: &Template,
        stamp: Stamp,
    ) -> Result<(), DropReason> {
        let inner = Ethernet::read(self, 0).ok_or(DropReason::Malformed)?;
        let inner_len = self.len();
        self.grow(OUTER as u32, 0)?;
        self.write_outer::<OUTER>(template, OUTER as u32 + inner_len, stamp, inner)
    }

    /// Writes the outer header, and the inner Ethernet header behind it.
    #[inline(always)]
    fn write_outer<const OUTER: usize>(
        &self,
        template: &Template,
        packet_len: u32,
        stamp: Stamp,
        inner: Ethernet,
    ) -> Result<(), DropReason> {
        let fields = ipv4_fields(template, packet_len, stamp);
        let start = field!(self.data) as usize;
        if start + OUTER + ETHERNET_LEN > field!(self.data_end) as usize {
            return Err(DropReason::Headroom);
        }
        let start = start as *mut u8;
        // SAFETY: all of it is within OUTER and an Ethernet header, as just checked; see
        // `read` for alignment.
        unsafe {
            // Whole words, past the header's end; the inner header overwrites that.
            start.cast::<[u64; 6]>().write(words(template));
            start.add(ETHERNET_LEN + 2).cast::<[u16; 2]>().write([fields.total.to_be(), stamp.id.to_be()]);
            start.add(ETHERNET_LEN + 10).cast::<u16>().write(fields.checksum.to_be());
            if let Some(hops) = fields.hops {
                start.add(TTL).write(hops);
            }
            for (at, value) in inner.writes() {
                start.add(OUTER + at).cast::<u64>().write(value);
            }
        }
        Ok(())
    }

    /// [`Resize::encapsulate`] for a frame with a tag beside it, which goes inside.
    #[inline(always)]
    fn encapsulate_tagged<const OUTER: usize>(
        &self,
        template: &Template,
        stamp: Stamp,
    ) -> Result<(), DropReason> {
        let mut tags = [[0_u8; VLAN_TAG_LEN]; MAX_TAGS];
        let mut tags_len = 0;
        for tag in &mut tags {
            if field!(self.vlan_present) == 0 {
                break;
            }
            let [a, b] = (field!(self.vlan_proto) as u16).to_ne_bytes();
            let [c, d] = (field!(self.vlan_tci) as u16).to_be_bytes();
            *tag = [a, b, c, d];
            tags_len += VLAN_TAG_LEN as u32;
            // SAFETY: the pointer is the program's context.
            check(unsafe { bpf_skb_vlan_pop(self.skb) })?;
        }
        if field!(self.vlan_present) != 0 {
            return Err(DropReason::Headroom);
        }
        let inner = Ethernet::read(self, 0).ok_or(DropReason::Malformed)?;
        let inner_len = self.len() + tags_len;
        self.grow(OUTER as u32, tags_len)?;
        self.write_outer::<OUTER>(template, OUTER as u32 + inner_len, stamp, inner)?;
        const MACS_LEN: u32 = 12;
        let tags_at = OUTER as u32 + MACS_LEN;
        self.store(tags_at, &tags[0])?;
        if tags_len as usize > VLAN_TAG_LEN {
            self.store(tags_at + VLAN_TAG_LEN as u32, &tags[1])?;
        }
        self.store(tags_at + tags_len, &inner.ethertype().to_word().to_ne_bytes())
    }

    #[inline(always)]
    fn readdress_by<const OUTER: usize>(&self, template: &Template, stamp: Stamp) -> Result<(), DropReason> {
        let inner = Ethernet::read(self, OUTER).ok_or(DropReason::Headroom)?;
        self.write_outer::<OUTER>(template, self.len(), stamp, inner)
    }

    /// The inner Ethernet header behind outer headers of this length. The lengths are
    /// told apart so that each read has a constant offset.
    #[inline(always)]
    fn inner_ethernet(&self, outer_len: u32) -> Option<Ethernet> {
        match outer_len {
            38 => Ethernet::read(self, 38),
            42 => Ethernet::read(self, 42),
            46 => Ethernet::read(self, 46),
            _ => None,
        }
    }

    /// The tag at the start of a stripped frame and the type behind it, if it is one
    /// that the kernel should keep beside the frame: IP inside, so that a superframe
    /// can be cut.
    #[inline(always)]
    fn inner_tag(&self, strip: Strip, inner: &Ethernet) -> Option<[u8; VLAN_TAG_LEN]> {
        // What stands behind a frame's end is padding, and no tag.
        if !inner.ethertype().is_vlan() || strip.inner_len < (ETHERNET_LEN + VLAN_TAG_LEN) as u32 {
            return None;
        }
        let mut tag = [0_u8; VLAN_TAG_LEN];
        let to = tag.as_mut_ptr().cast::<c_void>();
        let at = strip.outer_len + ETHERNET_LEN as u32;
        // SAFETY: the pointer is the program's context, and `to` has room for the bytes.
        let read = unsafe { bpf_skb_load_bytes(self.skb.cast(), at, to, VLAN_TAG_LEN as u32) };
        let ethertype = EtherType::from_bytes([tag[2], tag[3]]);
        (read == 0 && (ethertype == EtherType::IPV4 || ethertype == EtherType::IPV6)).then_some(tag)
    }

    /// Cuts link-layer padding off, and pads what is too short for the kernel to strip.
    #[inline(always)]
    fn fit(&self, strip: Strip) -> Result<(), DropReason> {
        if self.segment_size() != 0 {
            return Ok(());
        }
        self.resize(strip.outer_len + strip.inner_len)?;
        if strip.inner_len < MIN_STRIP_LEN {
            // With zeros: what stood behind the frame was cut off before.
            self.resize(strip.outer_len + MIN_FRAME_LEN)?;
        }
        Ok(())
    }

    /// The kernel looks the next hop up, and what it does not know it asks for. It goes
    /// by what it takes the packet for, which is not always what we made of it.
    #[inline(always)]
    fn redirect_to_neighbor(&self, ifindex: u32) -> Result<i32, DropReason> {
        if field!(self.protocol) as u16 != EtherType::IPV4.to_word() {
            return Err(DropReason::NoNextHop);
        }
        // SAFETY: without a next hop given, no pointer is read.
        Ok(unsafe { bpf_redirect_neigh(ifindex, ptr::null_mut(), 0, 0) as i32 })
    }

    #[inline(always)]
    fn resize(&self, len: u32) -> Result<(), DropReason> {
        if len == self.len() {
            return Ok(());
        }
        // SAFETY: the pointer is the program's context.
        check(unsafe { bpf_skb_change_tail(self.skb, len, 0) })
    }
}

impl<const INGRESS: bool> Frame for Skb<INGRESS> {
    #[inline(always)]
    fn len(&self) -> u32 {
        field!(self.len)
    }

    #[inline(always)]
    fn read<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let start = field!(self.data) as usize + offset;
        if start + size_of::<T>() > field!(self.data_end) as usize {
            return None;
        }
        // SAFETY: the bytes are within the packet, as just checked, and any are a `T`.
        // A load from a packet need not be aligned: on machines where it must be, the
        // verifier refuses the program.
        Some(unsafe { (start as *const T).read() })
    }

    #[inline(always)]
    fn read_two<T: AnyBitPattern>(&self, first: usize, second: usize) -> Option<[T; 2]> {
        // One look at where the packet ends is enough.
        let start = field!(self.data) as usize;
        if start + second + size_of::<T>() > field!(self.data_end) as usize {
            return None;
        }
        // SAFETY: as above; the first value ends before the second one.
        Some(unsafe { [((start + first) as *const T).read(), ((start + second) as *const T).read()] })
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        field!(self.gso_size)
    }

    #[inline(always)]
    fn has_tag_beside(&self) -> bool {
        field!(self.vlan_present) != 0
    }

    #[inline(always)]
    fn carries_ip(&self) -> bool {
        self.is_ip()
    }
}

impl<const INGRESS: bool> Resize for Skb<INGRESS> {
    type Action = i32;

    #[inline(always)]
    fn strip(&mut self, strip: Strip) -> Result<(), DropReason> {
        let mut inner = self.inner_ethernet(strip.outer_len).ok_or(DropReason::Malformed)?;
        let tag = self.inner_tag(strip, &inner);
        self.fit(strip)?;
        let mut outer_len = strip.outer_len;
        let mut payload_len = strip.inner_len - ETHERNET_LEN as u32;
        let outer_ethertype = inner.ethertype();
        if let Some(tag) = tag {
            outer_len += VLAN_TAG_LEN as u32;
            payload_len -= VLAN_TAG_LEN as u32;
            inner = inner.with_ethertype(EtherType::from_bytes([tag[2], tag[3]]));
        }
        // With these, the kernel insists on a whole IP header behind what it strips.
        let decap = match inner.ethertype() {
            EtherType::IPV4 if payload_len >= 20 => DECAP_L3_IPV4 | DECAP_L4_GRE,
            EtherType::IPV6 if payload_len >= 40 => DECAP_L3_IPV6 | DECAP_L4_GRE,
            _ => DECAP_L4_GRE,
        };
        let flags = decap & u64::from(config().strip_flags) | u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        self.adjust_room(-(outer_len as i32), flags)?;
        self.write_ethernet(0, inner)?;
        if let Some([high, low, ..]) = tag {
            let protocol = outer_ethertype.to_word();
            let tci = u16::from_be_bytes([high, low]);
            // SAFETY: the pointer is the program's context.
            check(unsafe { bpf_skb_vlan_push(self.skb, protocol, tci) })?;
        }
        Ok(())
    }

    #[inline(always)]
    fn encapsulate(&mut self, template: &Template, stamp: Stamp) -> Result<(), DropReason> {
        match (template.header_len, self.has_tag_beside()) {
            (38, false) => self.encapsulate_by::<38>(template, stamp),
            (42, false) => self.encapsulate_by::<42>(template, stamp),
            (38, true) => self.encapsulate_tagged::<38>(template, stamp),
            (42, true) => self.encapsulate_tagged::<42>(template, stamp),
            _ => Err(DropReason::Internal),
        }
    }

    #[inline(always)]
    fn relay(&mut self, template: &Template, stamp: Stamp, strip: Strip) -> Result<(), DropReason> {
        if self.segment_size() == 0 {
            self.resize(strip.outer_len + strip.inner_len)?;
        }
        let longer = i32::from(template.header_len) - strip.outer_len as i32;
        if longer != 0 {
            let keep = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
            self.adjust_room(longer, keep)?;
        }
        self.readdress(template, stamp)
    }

    #[inline(always)]
    fn redirect(&mut self, egress: Egress) -> Result<i32, DropReason> {
        if egress.side == Side::Neighbor {
            return self.redirect_to_neighbor(egress.ifindex);
        }
        if INGRESS && egress.side == Side::Peer && self.protocol_is_told() {
            // SAFETY: no pointer is passed.
            return Ok(unsafe { bpf_redirect_peer(egress.ifindex, 0) as i32 });
        }
        // SAFETY: no pointer is passed.
        Ok(unsafe { bpf_redirect(egress.ifindex, redirect_flags(egress)) as i32 })
    }

    #[inline(always)]
    fn drop(&mut self) -> i32 {
        TC_ACT_SHOT
    }

    #[inline(always)]
    fn pass(&mut self) -> i32 {
        TC_ACT_UNSPEC
    }
}

impl<const INGRESS: bool> Replicate for Skb<INGRESS> {
    #[inline(always)]
    fn readdress(&mut self, template: &Template, stamp: Stamp) -> Result<(), DropReason> {
        match template.header_len {
            38 => self.readdress_by::<38>(template, stamp),
            42 => self.readdress_by::<42>(template, stamp),
            _ => Err(DropReason::Internal),
        }
    }

    #[inline(always)]
    fn copy_to(&mut self, egress: Egress) -> Result<(), DropReason> {
        // SAFETY: the pointer is the program's context.
        match unsafe { bpf_clone_redirect(self.skb, egress.ifindex, redirect_flags(egress)) } {
            0 => Ok(()),
            _ => Err(DropReason::RedirectFailed),
        }
    }

    #[inline(always)]
    fn repeat<S: Step>(count: u32, step: &mut S) {
        unsafe extern "C" fn round<S: Step>(index: u32, step: *mut S) -> i64 {
            // SAFETY: `bpf_loop` hands over the pointer that it was given below.
            i64::from(!unsafe { &mut *step }.step(index))
        }
        let round: unsafe extern "C" fn(u32, *mut S) -> i64 = round::<S>;
        // SAFETY: `step` outlives the call, and nothing else uses it meanwhile.
        unsafe { bpf_loop(count, round as *mut c_void, (&raw mut *step).cast(), 0) };
    }
}

#[inline(always)]
fn redirect_flags(egress: Egress) -> u64 {
    if egress.side == Side::Receive { u64::from(BPF_F_INGRESS) } else { 0 }
}

#[inline(always)]
fn check(result: i64) -> Result<(), DropReason> {
    if result == 0 { Ok(()) } else { Err(DropReason::Headroom) }
}

/// Which of the flags for taking headers off the kernel knows: each is tried on the test packet.
pub(crate) fn probe_strip_flags(skb: &Skb<true>) -> i32 {
    let mut known = 0;
    for flags in [DECAP_L3_IPV4, DECAP_L3_IPV6, DECAP_L4_GRE] {
        if skb.adjust_room(-4, flags | u64::from(BPF_F_ADJ_ROOM_FIXED_GSO)).is_ok() {
            known |= flags;
        }
    }
    (known >> PROBE_SHIFT) as i32
}
