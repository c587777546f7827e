//! A socket buffer as the pipeline's frame.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM,
    TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_l3_csum_replace, bpf_loop, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data, bpf_skb_store_bytes, bpf_skb_vlan_pop,
    bpf_skb_vlan_push,
};
use aya_ebpf::programs::TcContext;
use bytemuck::AnyBitPattern;
use mgre_common::reason::DropReason;
use mgre_common::table::Template;
use mgre_common::wire::{EtherType, IpProtocol, VLAN_TAG_LEN};
use mgre_ebpf::dress::{Dressing, out_of_to_words};
use mgre_ebpf::frame::{Bare, Egress, Ethernet, Frame, Replicate, Resize, Side, Stamp, Step, Strip, Whole};
use mgre_ebpf::inner::Inner;
use mgre_ebpf::tables::Tables;
use mgre_ebpf::verdict::OutOf;

use super::wire::{behind, blur};

mod chain;
mod encap;
mod strip;
mod whole;

pub(crate) use strip::probe_strip_flags;

/// Headers that must lie in the buffer's linear part: outer Ethernet, IPv6 and
/// GRE, and inside Ethernet, a tag, IPv6 and what of TCP tells its length.
const LINEAR_LEN: u32 = 14 + 40 + 8 + 14 + 4 + 40 + 14;

/// A socket buffer. On its way in (`ingress`) it can be handed to a veth's other end.
pub(crate) struct Skb {
    skb: *mut __sk_buff,
    ingress: bool,
}

macro_rules! field {
    ($self:ident . $field:ident) => {
        // SAFETY: the pointer is the program's context.
        unsafe { (*$self.skb).$field }
    };
}

use field;

impl Skb {
    /// The program's frame, with its headers in linear memory.
    #[inline(always)]
    pub(crate) fn new(context: &TcContext, ingress: bool) -> Self {
        let this = Self { skb: context.skb.skb, ingress };
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

    /// What was noted on it.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        field!(self.mark)
    }

    /// Whether the buffer's protocol is one that `bpf_skb_adjust_room` encapsulates.
    #[inline(always)]
    fn is_ip(&self) -> bool {
        let protocol = field!(self.protocol) as u16;
        protocol == EtherType::IPV4.to_word() || protocol == EtherType::IPV6.to_word()
    }

    /// Has the kernel look at what type a packet without a tag beside it is, which it does when tags
    /// come off: one that goes in, with the help of a second one, and both out again.
    #[inline(always)]
    fn tell_protocol(&self) -> Result<(), DropReason> {
        for _ in 0..2 {
            // SAFETY: the pointer is the program's context.
            check(unsafe { bpf_skb_vlan_push(self.skb, EtherType::VLAN.to_word(), 1) })?;
        }
        for _ in 0..2 {
            // SAFETY: the pointer is the program's context.
            check(unsafe { bpf_skb_vlan_pop(self.skb) })?;
        }
        Ok(())
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
    fn store<T>(&self, offset: u32, value: &T) -> Result<(), DropReason> {
        let from = ptr::from_ref(value).cast::<c_void>();
        // SAFETY: the pointer is the program's context, and `from` holds as many bytes as are said.
        check(unsafe { bpf_skb_store_bytes(self.skb, offset, from, size_of::<T>() as u32, 0) })
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

    /// Puts the tag on that a port's frames bear.
    #[inline(always)]
    fn tag(&self, egress: Egress) -> Result<(), DropReason> {
        if egress.vlan == 0 {
            return Ok(());
        }
        // SAFETY: the pointer is the program's context.
        check(unsafe { bpf_skb_vlan_push(self.skb, EtherType::VLAN.to_word(), egress.vlan) })
    }

    /// The kernel looks the next hop up, and what it does not know it asks for. It goes
    /// by what it takes the packet for, which is not always what we made of it.
    #[inline(always)]
    fn redirect_to_neighbor(&self, ifindex: u32) -> Result<i32, DropReason> {
        if !self.protocol_is_told() {
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

impl Frame for Skb {
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
    fn read_behind<T: AnyBitPattern>(&self, outer_len: u32, offset: usize) -> Option<T> {
        if outer_len == 0 {
            return self.read(offset);
        }
        let start = behind(field!(self.data) as usize, outer_len, offset);
        if start + size_of::<T>() > field!(self.data_end) as usize {
            return None;
        }
        // SAFETY: as in `read`.
        Some(unsafe { (start as *const T).read() })
    }

    #[inline(always)]
    fn read_two_behind<T: AnyBitPattern>(
        &self,
        outer_len: u32,
        first: usize,
        second: usize,
    ) -> Option<[T; 2]> {
        let start = behind(field!(self.data) as usize, outer_len, 0);
        if start + second + size_of::<T>() > field!(self.data_end) as usize {
            return None;
        }
        // SAFETY: as in `read_two`.
        Some(unsafe { [((start + first) as *const T).read(), ((start + second) as *const T).read()] })
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
    fn blur(&self, number: u32) -> u32 {
        blur(number, field!(self.len))
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
    fn tag_beside(&self) -> Option<(EtherType, u16)> {
        if field!(self.vlan_present) == 0 {
            return None;
        }
        Some((EtherType::from_word(field!(self.vlan_proto) as u16), field!(self.vlan_tci) as u16))
    }

    #[inline(always)]
    fn is_for_another(&self) -> bool {
        // `PACKET_OTHERHOST` of include/uapi/linux/if_packet.h.
        const OTHER_HOST: u32 = 3;
        field!(self.pkt_type) == OTHER_HOST
    }

    #[inline(always)]
    fn carries_ip(&self) -> bool {
        self.is_ip()
    }

    #[inline(always)]
    fn is_taken_for(&self, template: &Template) -> bool {
        self.takes_it_for(encap::outer_ethertype(template))
    }

    #[inline(always)]
    fn may_rest_on(&self, template: &Template) -> bool {
        self.segment_size() == 0 || self.rests_on_the_same(template)
    }
}

impl Resize for Skb {
    type Action = i32;

    #[inline(always)]
    fn strip(&mut self, strip: Strip) -> Result<(), DropReason> {
        self.strip_headers(strip)
    }

    #[inline(always)]
    fn encapsulate(&mut self, template: &Template, stamp: Stamp) -> Result<(), Bare> {
        if self.has_tag_beside() {
            return self.encapsulate_tagged(template, stamp);
        }
        self.encapsulate_plain(template, stamp)
    }

    #[inline(always)]
    fn relay(&mut self, template: &Template, stamp: Stamp, strip: Strip) -> Result<(), DropReason> {
        if self.segment_size() == 0 {
            self.resize(strip.outer_len + strip.inner_len)?;
        }
        self.readdress(template, stamp, strip.outer_len)
    }

    #[inline(always)]
    fn remark(&mut self, inner: Inner, tos: u8) -> Result<(), DropReason> {
        const RECOMPUTE: u64 = BPF_F_RECOMPUTE_CSUM as u64;
        // A tag that was before the IP header is beside the frame now.
        let beside = if self.has_tag_beside() { VLAN_TAG_LEN as u32 } else { 0 };
        let l3 = inner.l3 - beside;
        let class = self.read_behind::<u16>(l3, 0).map(u16::from_be).ok_or(DropReason::Malformed)?;
        let ipv6 = inner.version.is_v6();
        let new = if ipv6 { class & 0xf00f | u16::from(tos) << 4 } else { class & 0xff00 | u16::from(tos) };
        // In IPv4, the header's checksum makes up for it: the sum over both, which a device may have told, stays as it
        // is.
        let mut flags = RECOMPUTE;
        if !ipv6 {
            let at = l3 + 10;
            // SAFETY: the pointer is the program's context.
            let done =
                unsafe { bpf_l3_csum_replace(self.skb, at, class.to_be().into(), new.to_be().into(), 2) };
            check(done)?;
            flags = 0;
        }
        let new = new.to_be();
        let from = ptr::from_ref(&new).cast::<c_void>();
        // SAFETY: the pointer is the program's context, and `from` holds two bytes.
        check(unsafe { bpf_skb_store_bytes(self.skb, l3, from, 2, flags) })
    }

    #[inline(always)]
    fn redirect(&mut self, egress: Egress) -> Result<i32, DropReason> {
        self.tag(egress)?;
        if egress.side == Side::Neighbor {
            return self.redirect_to_neighbor(egress.ifindex);
        }
        if self.ingress && egress.side == Side::Peer && self.protocol_is_told() {
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

impl Replicate for Skb {
    #[inline(always)]
    fn readdress(&mut self, template: &Template, stamp: Stamp, outer_len: u32) -> Result<(), DropReason> {
        let inner = Ethernet::read_behind(self, outer_len).ok_or(DropReason::Headroom)?;
        let longer = i32::from(template.header_len) - outer_len as i32;
        // The kernel cuts a superframe by what it was made for.
        if self.segment_size() != 0 && !self.rests_on_the_same(template) {
            return Err(DropReason::Headroom);
        }
        if longer != 0 {
            let keep = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
            self.adjust_room(longer, keep)?;
        }
        self.write_outer(template, self.len(), stamp, inner)
    }

    #[inline(always)]
    fn take_out_extension(&mut self, len: u32, next_header: IpProtocol) -> bool {
        self.take_out_behind_ipv6(len, next_header).is_ok()
    }

    #[inline(always)]
    fn copy_to(&mut self, egress: Egress) -> Result<(), DropReason> {
        self.tag(egress)?;
        // SAFETY: the pointer is the program's context.
        let done = unsafe { bpf_clone_redirect(self.skb, egress.ifindex, redirect_flags(egress)) };
        if egress.vlan != 0 {
            self.untag()?;
        }
        if done == 0 { Ok(()) } else { Err(DropReason::RedirectFailed) }
    }

    #[inline(always)]
    fn dress<T: Tables>(&mut self, _: &T, dressing: Dressing) -> Result<(), Bare> {
        let (adjacency, stamp, outside) = dressing.to_words();
        match chain::mgre_dress(self.skb, adjacency, stamp, outside) {
            chain::DRESSED => Ok(()),
            chain::REFUSED => Err(Bare::Refused),
            _ => Err(Bare::Broken(DropReason::Headroom)),
        }
    }

    #[inline(always)]
    fn undress(&mut self, out_of: OutOf) -> Result<(), DropReason> {
        let (lens, change) = out_of_to_words(out_of);
        check(chain::mgre_undress(self.skb, lens, change).into())
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
