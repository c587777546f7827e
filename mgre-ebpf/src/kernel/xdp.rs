//! An XDP buffer as the pipeline's frame.

use core::ffi::c_void;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::{
    bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_store_bytes,
};
use aya_ebpf::programs::XdpContext;
use bytemuck::AnyBitPattern;
use mgre_common::checksum;
use mgre_common::reason::DropReason;
use mgre_common::table::{Template, template_option, template_shape};
use mgre_common::wire::{EtherType, IPV4_LEN, MacAddr};
use mgre_ebpf::frame::{Bare, Egress, Frame, Resize, Stamp, Strip};
use mgre_ebpf::inner::Inner;

use super::maps::{DEVICES, NEAR_MACS};
use super::wire::{
    TOUCHED, behind, behind_ip, blur, header_at, header_len, is_v6, opaque, plain, udp_header, words,
    write_fields,
};

/// An Ethernet frame without its checksum is never shorter than this on a wire.
pub(super) const MIN_FRAME_LEN: u32 = 60;

/// An XDP buffer. One that may have fragments (`FRAGS`) must ask the kernel for its length.
pub(crate) struct Xdp<const FRAGS: bool> {
    context: *mut xdp_md,
}

impl<const FRAGS: bool> Xdp<FRAGS> {
    /// The program's frame.
    #[inline(always)]
    pub(crate) fn new(context: &XdpContext) -> Self {
        Self { context: context.ctx }
    }

    /// The interface whose hook this is.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the pointer is the program's context.
        unsafe { (*self.context).ingress_ifindex }
    }

    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: the pointer is the program's context.
        unsafe { (*self.context).data as usize }
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: the pointer is the program's context.
        unsafe { (*self.context).data_end as usize }
    }

    /// The packet's first bytes, so many of them, to be written.
    #[inline(always)]
    fn start<const LEN: usize>(&self) -> Result<*mut u8, DropReason> {
        let start = self.data();
        if start + LEN > self.data_end() { Err(DropReason::Headroom) } else { Ok(start as *mut u8) }
    }

    /// Moves the packet's start.
    #[inline(always)]
    fn adjust_head(&self, by: i32) -> Result<(), DropReason> {
        // SAFETY: the pointer is the program's context.
        check(unsafe { bpf_xdp_adjust_head(self.context, by) })
    }

    /// Cuts off what follows the inner frame.
    #[inline(always)]
    fn cut_padding(&self, strip: Strip) -> Result<(), DropReason> {
        let padding = self.len() - (strip.outer_len + strip.inner_len);
        if padding == 0 { Ok(()) } else { self.adjust_tail(-(padding as i32)) }
    }

    /// Moves the packet's end. What is new there is zero.
    #[inline(always)]
    fn adjust_tail(&self, by: i32) -> Result<(), DropReason> {
        // SAFETY: the pointer is the program's context.
        check(unsafe { bpf_xdp_adjust_tail(self.context, by) })
    }

    /// Writes a header at the start of a packet of this length.
    #[inline(always)]
    fn write_outer(&self, template: &Template, packet_len: u32, stamp: Stamp) -> Result<(), DropReason> {
        use plain::{V4, V4_KEYED, V6, V6_KEYED};
        match template.shape {
            template_shape::V4 => self.write_outer_of::<V4, false>(template, packet_len, stamp)?,
            template_shape::V4_KEYED => {
                self.write_outer_of::<V4_KEYED, false>(template, packet_len, stamp)?
            }
            template_shape::V6 => self.write_outer_of::<V6, true>(template, packet_len, stamp)?,
            template_shape::V6_KEYED => self.write_outer_of::<V6_KEYED, true>(template, packet_len, stamp)?,
            _ if !is_v6(template) => self.write_any_outer::<V4, false>(template, packet_len, stamp)?,
            _ => self.write_any_outer::<V6, true>(template, packet_len, stamp)?,
        }
        if template.options & TOUCHED == 0 { Ok(()) } else { self.touch(template, packet_len, stamp) }
    }

    /// The same for a header of so many bytes. Not a byte behind it is written: the inner
    /// frame stays where it is.
    #[inline(always)]
    fn write_outer_of<const OUTER: usize, const V6: bool>(
        &self,
        template: &Template,
        packet_len: u32,
        stamp: Stamp,
    ) -> Result<(), DropReason> {
        let start = self.start::<OUTER>()?;
        // SAFETY: all of it is within the first OUTER bytes of the packet; see `read` for
        // alignment.
        unsafe {
            start.cast::<[u64; 4]>().write(words(template));
            let mut at = 32;
            while at + 8 <= OUTER {
                start.add(at).cast::<u64>().write(header_at(template, at));
                at += 8;
            }
            if at + 4 <= OUTER {
                start.add(at).cast::<u32>().write(header_at(template, at));
                at += 4;
            }
            start.add(at).cast::<u16>().write(header_at(template, at));
            write_fields::<V6>(start, template, packet_len, stamp);
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
    ) -> Result<(), DropReason> {
        let len = header_len::<LEAST>(template)?;
        let header = (&raw const template.header).cast::<c_void>().cast_mut();
        // SAFETY: the pointer is the program's context, and the header is at least so long.
        check(unsafe { bpf_xdp_store_bytes(self.context, 0, header, len) })?;
        let start = self.start::<LEAST>()?;
        // SAFETY: the IP header is within what was just checked.
        unsafe { write_fields::<V6>(start, template, packet_len, stamp) };
        Ok(())
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

    #[inline(always)]
    fn store<T>(&self, offset: u32, value: &T) -> Result<(), DropReason> {
        let from = core::ptr::from_ref(value).cast::<c_void>().cast_mut();
        // SAFETY: the pointer is the program's context, and `from` holds as many bytes as are said.
        check(unsafe { bpf_xdp_store_bytes(self.context, offset, from, size_of::<T>() as u32) })
    }
}

impl<const FRAGS: bool> Frame for Xdp<FRAGS> {
    #[inline(always)]
    fn len(&self) -> u32 {
        if FRAGS {
            // SAFETY: the pointer is the program's context.
            unsafe { bpf_xdp_get_buff_len(self.context) as u32 }
        } else {
            opaque(self.data_end() - self.data()) as u32
        }
    }

    #[inline(always)]
    fn read<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let start = self.data() + offset;
        if start + size_of::<T>() > self.data_end() {
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
        let start = self.data();
        if start + second + size_of::<T>() > self.data_end() {
            return None;
        }
        // SAFETY: as above; the first value ends before the second one.
        Some(unsafe { [((start + first) as *const T).read(), ((start + second) as *const T).read()] })
    }

    #[inline(always)]
    fn read_behind<T: AnyBitPattern>(&self, outer_len: u32, offset: usize) -> Option<T> {
        if outer_len == 0 {
            return self.read(offset);
        }
        let start = behind(self.data(), outer_len, offset);
        if start + size_of::<T>() > self.data_end() {
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
        let start = behind(self.data(), outer_len, 0);
        if start + second + size_of::<T>() > self.data_end() {
            return None;
        }
        // SAFETY: as in `read_two`.
        Some(unsafe { [((start + first) as *const T).read(), ((start + second) as *const T).read()] })
    }

    #[inline(always)]
    fn blur(&self, number: u32) -> u32 {
        blur(number, self.ifindex())
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn has_tag_beside(&self) -> bool {
        false
    }

    #[inline(always)]
    fn tag_beside(&self) -> Option<(EtherType, u16)> {
        None
    }

    #[inline(always)]
    fn is_for_another(&self) -> bool {
        let (Some(macs), Some(to)) = (NEAR_MACS.get(0), self.read::<MacAddr>(0)) else { return true };
        !macs.contain(to)
    }

    #[inline(always)]
    fn carries_ip(&self) -> bool {
        // There is no kernel to take it for anything yet.
        false
    }
}

impl<const FRAGS: bool> Resize for Xdp<FRAGS> {
    type Action = u32;

    #[inline(always)]
    fn strip(&mut self, strip: Strip) -> Result<(), DropReason> {
        self.cut_padding(strip)?;
        // Some drivers send on what is redirected to them as it is.
        if strip.inner_len < MIN_FRAME_LEN {
            self.adjust_tail((MIN_FRAME_LEN - strip.inner_len) as i32)?;
        }
        self.adjust_head(strip.outer_len as i32)
    }

    #[inline(always)]
    fn encapsulate(&mut self, template: &Template, stamp: Stamp) -> Result<(), Bare> {
        let packet_len = u32::from(template.header_len) + self.len();
        self.adjust_head(-i32::from(template.header_len)).map_err(|_| Bare::Refused)?;
        self.write_outer(template, packet_len, stamp).map_err(Bare::Broken)
    }

    #[inline(always)]
    fn relay(&mut self, template: &Template, stamp: Stamp, strip: Strip) -> Result<(), DropReason> {
        self.cut_padding(strip)?;
        if u32::from(template.header_len) != strip.outer_len {
            self.adjust_head(strip.outer_len as i32 - i32::from(template.header_len))?;
        }
        self.write_outer(template, u32::from(template.header_len) + strip.inner_len, stamp)
    }

    #[inline(always)]
    fn remark(&mut self, inner: Inner, tos: u8) -> Result<(), DropReason> {
        let start = behind(self.data(), inner.l3, 0);
        let class = start as *mut u16;
        if inner.version.is_v6() {
            if start + 2 > self.data_end() {
                return Err(DropReason::Malformed);
            }
            // SAFETY: two bytes are within the packet, as just checked.
            unsafe { class.write((u16::from_be(class.read()) & 0xf00f | u16::from(tos) << 4).to_be()) };
            return Ok(());
        }
        if start + IPV4_LEN > self.data_end() {
            return Err(DropReason::Malformed);
        }
        // SAFETY: an IPv4 header is within the packet, as just checked.
        unsafe {
            let old = u16::from_be(class.read());
            let new = old & 0xff00 | u16::from(tos);
            let sum = class.add(5);
            let base = !u16::from_be(sum.read());
            class.write(new.to_be());
            sum.write((!checksum::replace(base, old, new)).to_be());
        }
        Ok(())
    }

    #[inline(always)]
    fn redirect(&mut self, egress: Egress) -> Result<u32, DropReason> {
        // The map has every interface that the tables say takes frames from here.
        DEVICES.redirect(egress.ifindex, 0).map_err(|_| DropReason::RedirectFailed)
    }

    #[inline(always)]
    fn redirect_back(&mut self, egress: Egress) -> Result<u32, DropReason> {
        if egress.ifindex == self.ifindex() { Ok(xdp_action::XDP_TX) } else { self.redirect(egress) }
    }

    #[inline(always)]
    fn drop(&mut self) -> u32 {
        xdp_action::XDP_DROP
    }

    #[inline(always)]
    fn pass(&mut self) -> u32 {
        xdp_action::XDP_PASS
    }
}

#[inline(always)]
fn check(result: i64) -> Result<(), DropReason> {
    if result == 0 { Ok(()) } else { Err(DropReason::Headroom) }
}
