//! Puts outer headers on a socket buffer.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_GRE, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_ADJ_ROOM_NO_CSUM_RESET, bpf_adj_room_mode::BPF_ADJ_ROOM_NET,
};
use aya_ebpf::helpers::{bpf_skb_adjust_room, bpf_skb_store_bytes, bpf_skb_vlan_pop, bpf_skb_vlan_push};
use mgre_common::reason::DropReason;
use mgre_common::table::{Template, template_option, template_shape};
use mgre_common::wire::{ETHERNET_LEN, EtherType, IpProtocol, VLAN_TAG_LEN};
use mgre_ebpf::frame::{Bare, Ethernet, Frame, Stamp};
use mgre_ebpf::inner::Inner;

use super::{Skb, check, field};
use crate::kernel::wire::{TOUCHED, behind_ip, header_len, is_v6, plain, udp_header, words, write_fields};

/// Tags taken from beside a frame; the kernel puts the next one there each time.
const MAX_TAGS: usize = 2;

/// Ethernet, IPv4 and UDP: no shorter frame has a checksum that a device could be left to finish.
const MIN_MARKED_LEN: u32 = 14 + 20 + 8;

impl Skb {
    /// Makes room for a template's header and an inner Ethernet header longer by `tags_len`, so
    /// that superframes stay superframes where there are any.
    #[inline(always)]
    fn grow(&self, template: &Template, tags_len: u32) -> Result<(), DropReason> {
        let by = u32::from(template.header_len) + tags_len;
        let keep = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
        // What has no room for a checksum needs no marks, and with them the kernel would not pad it at the far end.
        if self.is_ip() && self.len() >= MIN_MARKED_LEN {
            let inner_l2 = (ETHERNET_LEN as u64 + u64::from(tags_len)) << 56;
            let l3 =
                if is_v6(template) { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 };
            let udp = template.options & template_option::UDP != 0;
            let l4 = if udp { BPF_F_ADJ_ROOM_ENCAP_L4_UDP } else { BPF_F_ADJ_ROOM_ENCAP_L4_GRE };
            let encap = u64::from(l3 | l4 | BPF_F_ADJ_ROOM_ENCAP_L2_ETH);
            let done = self.adjust_room(by as i32, keep | encap | inner_l2);
            if done.is_ok() {
                return done;
            }
        }
        if self.segment_size() == 0 {
            // Any ethertype; and IP that still bears the marks of a tunnel that it left, or needs none.
            if !self.takes_it_for(outer_ethertype(template)) {
                self.pass_off_as(outer_ethertype(template))?;
            }
            return self.adjust_room(by as i32, keep);
        }
        // A superframe that left a GRE tunnel before: its marks are those that it
        // needs now, so room is all that is missing. Marks of another tunnel, which is inside, are not.
        let marked = Inner::read(self, 0).is_some_and(|inner| inner.protocol(self, 0) == IpProtocol::TCP);
        if marked && tags_len == 0 && self.takes_it_for(outer_ethertype(template)) {
            return self.adjust_room(by as i32, keep);
        }
        Err(DropReason::Headroom)
    }

    /// Has the kernel take it for a packet of this type, of which its header is to be one: the
    /// kernel gives room to IP alone, here and later for a header of another length.
    #[inline(always)]
    pub(super) fn pass_off_as(&self, ethertype: EtherType) -> Result<(), DropReason> {
        const TYPE_AT: u32 = ETHERNET_LEN as u32 - 2;
        self.store(TYPE_AT, &ethertype.to_word())?;
        self.tell_protocol()
    }

    /// Whether the kernel takes it for a packet of this type.
    #[inline(always)]
    pub(super) fn takes_it_for(&self, ethertype: EtherType) -> bool {
        field!(self.protocol) as u16 == ethertype.to_word()
    }

    /// [`Resize::encapsulate`] for a frame without a tag beside it.
    #[inline(always)]
    pub(super) fn encapsulate_plain(&self, template: &Template, stamp: Stamp) -> Result<(), Bare> {
        let inner = Ethernet::read(self).ok_or(Bare::Broken(DropReason::Malformed))?;
        let packet_len = u32::from(template.header_len) + self.len();
        self.grow(template, 0).map_err(|_| Bare::Refused)?;
        self.write_outer(template, packet_len, stamp, inner).map_err(Bare::Broken)
    }

    /// Writes the outer header of a packet of this length, and the inner Ethernet header behind it.
    #[inline(always)]
    pub(super) fn write_outer(
        &self,
        template: &Template,
        packet_len: u32,
        stamp: Stamp,
        inner: Ethernet,
    ) -> Result<(), DropReason> {
        use plain::{V4, V4_KEYED, V6, V6_KEYED};
        match template.shape {
            template_shape::V4 => self.write_outer_of::<V4, 6, false>(template, packet_len, stamp, inner)?,
            template_shape::V4_KEYED => {
                self.write_outer_of::<V4_KEYED, 6, false>(template, packet_len, stamp, inner)?;
            }
            template_shape::V6 => self.write_outer_of::<V6, 8, true>(template, packet_len, stamp, inner)?,
            template_shape::V6_KEYED => {
                self.write_outer_of::<V6_KEYED, 8, true>(template, packet_len, stamp, inner)?;
            }
            _ if !is_v6(template) => self.write_any_outer::<V4, false>(template, packet_len, stamp, inner)?,
            _ => self.write_any_outer::<V6, true>(template, packet_len, stamp, inner)?,
        }
        if template.options & TOUCHED == 0 { Ok(()) } else { self.touch(template, packet_len, stamp) }
    }

    /// The same for a header of `OUTER` bytes, which end in the last of so many words.
    #[inline(always)]
    fn write_outer_of<const OUTER: usize, const WORDS: usize, const V6: bool>(
        &self,
        template: &Template,
        packet_len: u32,
        stamp: Stamp,
        inner: Ethernet,
    ) -> Result<(), DropReason> {
        const { assert!(OUTER <= WORDS * 8 && WORDS * 8 <= OUTER + ETHERNET_LEN) };
        let start = self.start::<OUTER>()?;
        // SAFETY: all of it is within OUTER and an Ethernet header, as just checked; see
        // `read` for alignment.
        unsafe {
            // Whole words, past the header's end; the inner header overwrites that.
            start.cast::<[u64; WORDS]>().write(words(template));
            write_fields::<V6>(start, template, packet_len, stamp);
            for (at, value) in inner.writes() {
                start.add(OUTER + at).cast::<u64>().write(value);
            }
        }
        Ok(())
    }

    /// The same for a header of any length, which is at least `LEAST`.
    #[inline(always)]
    fn write_any_outer<const LEAST: usize, const V6: bool>(
        &self,
        template: &Template,
        packet_len: u32,
        stamp: Stamp,
        inner: Ethernet,
    ) -> Result<(), DropReason> {
        let len = header_len::<LEAST>(template)?;
        let header = (&raw const template.header).cast::<c_void>();
        // SAFETY: the pointer is the program's context, and the header is at least so long.
        check(unsafe { bpf_skb_store_bytes(self.skb, 0, header, len, 0) })?;
        for (at, value) in inner.writes() {
            self.store(u32::from(template.header_len) + at as u32, &value)?;
        }
        let start = self.start::<LEAST>()?;
        // SAFETY: the IP header is within what was just checked.
        unsafe { write_fields::<V6>(start, template, packet_len, stamp) };
        Ok(())
    }

    /// The packet's first bytes, `OUTER` and an Ethernet header, to be written.
    #[inline(always)]
    fn start<const OUTER: usize>(&self) -> Result<*mut u8, DropReason> {
        let start = field!(self.data) as usize;
        if start + OUTER + ETHERNET_LEN > field!(self.data_end) as usize {
            return Err(DropReason::Headroom);
        }
        Ok(start as *mut u8)
    }

    /// Fills in what options ask for.
    #[inline(always)]
    fn touch(&self, template: &Template, packet_len: u32, stamp: Stamp) -> Result<(), DropReason> {
        if template.options & template_option::UDP != 0 {
            self.store(behind_ip(template), &udp_header(template, packet_len, stamp.flow))?;
        }
        if template.options & template_option::FLOW_ID != 0 {
            self.store(u32::from(template.header_len) - 1, &(stamp.flow as u8))?;
        }
        Ok(())
    }

    /// [`Resize::encapsulate`] for a frame with a tag beside it, which goes inside.
    #[inline(always)]
    pub(super) fn encapsulate_tagged(&self, template: &Template, stamp: Stamp) -> Result<(), Bare> {
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
            check(unsafe { bpf_skb_vlan_pop(self.skb) }).map_err(Bare::Broken)?;
        }
        if field!(self.vlan_present) != 0 {
            return Err(Bare::Broken(DropReason::Headroom));
        }
        let inner = Ethernet::read(self).ok_or(Bare::Broken(DropReason::Malformed))?;
        if self.grow(template, tags_len).is_err() {
            self.put_back(tags, tags_len).map_err(Bare::Broken)?;
            return Err(Bare::Refused);
        }
        let packet_len = self.len();
        self.write_tagged(template, packet_len, stamp, inner, (tags, tags_len)).map_err(Bare::Broken)
    }

    /// Writes an outer header, and an inner Ethernet header with tags behind it.
    #[inline(always)]
    fn write_tagged(
        &self,
        template: &Template,
        packet_len: u32,
        stamp: Stamp,
        inner: Ethernet,
        (tags, tags_len): ([[u8; VLAN_TAG_LEN]; MAX_TAGS], u32),
    ) -> Result<(), DropReason> {
        const MACS_LEN: u32 = 12;
        let tags_at = u32::from(template.header_len) + MACS_LEN;
        // The checksum, if there is one, covers them.
        self.store(tags_at, &tags[0])?;
        if tags_len as usize > VLAN_TAG_LEN {
            self.store(tags_at + VLAN_TAG_LEN as u32, &tags[1])?;
        }
        self.store(tags_at + tags_len, &inner.ethertype().to_word())?;
        let [high, low, ..] = tags[0];
        let inner = inner.with_ethertype(EtherType::from_bytes([high, low]));
        self.write_outer(template, packet_len, stamp, inner)
    }

    /// Takes out what stands right behind an IPv6 header, which then says what comes next. The kernel refuses before it
    /// changes anything.
    #[inline(always)]
    pub(super) fn take_out_behind_ipv6(&self, len: u32, next_header: IpProtocol) -> Result<(), DropReason> {
        const NEXT_HEADER_AT: u32 = ETHERNET_LEN as u32 + 6;
        let keep = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        // SAFETY: the pointer is the program's context.
        check(unsafe { bpf_skb_adjust_room(self.skb, -(len as i32), BPF_ADJ_ROOM_NET, keep) })?;
        self.store(NEXT_HEADER_AT, &next_header)
    }

    /// Puts tags beside a frame that were taken from there. (Not in a loop over them: its state would lie on the stack,
    /// and Linux 6.1's verifier takes the rounds for the same and refuses the program.)
    #[inline(always)]
    fn put_back(&self, tags: [[u8; VLAN_TAG_LEN]; MAX_TAGS], tags_len: u32) -> Result<(), DropReason> {
        if tags_len as usize > VLAN_TAG_LEN {
            self.push_tag(tags[1])?;
        }
        self.push_tag(tags[0])
    }

    #[inline(always)]
    fn push_tag(&self, [a, b, high, low]: [u8; VLAN_TAG_LEN]) -> Result<(), DropReason> {
        let (protocol, control) = (u16::from_ne_bytes([a, b]), u16::from_be_bytes([high, low]));
        // SAFETY: the pointer is the program's context.
        check(unsafe { bpf_skb_vlan_push(self.skb, protocol, control) })
    }

    /// Whether the outer headers that it has and a template's are of the same protocols.
    #[inline(always)]
    pub(super) fn rests_on_the_same(&self, template: &Template) -> bool {
        let at = if is_v6(template) { ETHERNET_LEN + 6 } else { ETHERNET_LEN + 9 };
        self.takes_it_for(outer_ethertype(template)) && self.read::<u8>(at) == Some(template.header[at])
    }
}

/// The type of a template's outer packets.
#[inline(always)]
pub(super) fn outer_ethertype(template: &Template) -> EtherType {
    if is_v6(template) { EtherType::IPV6 } else { EtherType::IPV4 }
}
