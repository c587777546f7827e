//! An XDP buffer as the pipeline's frame.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use bytemuck::AnyBitPattern;
use mgre_common::reason::DropReason;
use mgre_common::table::Template;
use mgre_common::wire::ETHERNET_LEN;
use mgre_ebpf::frame::{Egress, Frame, Resize, Stamp, Strip};

use super::maps::DEVICES;
use super::wire::{TTL, header_at, ipv4_fields, opaque, words};

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
        if padding == 0 {
            return Ok(());
        }
        // SAFETY: the pointer is the program's context.
        check(unsafe { bpf_xdp_adjust_tail(self.context, -(padding as i32)) })
    }

    /// Writes a header at the start of a packet of this length.
    #[inline(always)]
    fn write_outer(&self, template: &Template, packet_len: u32, stamp: Stamp) -> Result<(), DropReason> {
        match template.header_len {
            38 => self.write_outer_of::<38>(template, packet_len, stamp),
            42 => self.write_outer_of::<42>(template, packet_len, stamp),
            _ => Err(DropReason::Internal),
        }
    }

    /// The same for a header of so many bytes. Not a byte behind it is written: the inner
    /// frame stays where it is.
    #[inline(always)]
    fn write_outer_of<const OUTER: usize>(
        &self,
        template: &Template,
        packet_len: u32,
        stamp: Stamp,
    ) -> Result<(), DropReason> {
        let fields = ipv4_fields(template, packet_len, stamp);
        let start = self.start::<OUTER>()?;
        // SAFETY: all of it is within the first OUTER bytes of the packet; see `read` for
        // alignment.
        unsafe {
            start.cast::<[u64; 4]>().write(words(template));
            let mut at = 32;
            while at + 4 <= OUTER {
                start.add(at).cast::<u32>().write(header_at(template, at));
                at += 4;
            }
            start.add(at).cast::<u16>().write(header_at(template, at));
            start.add(ETHERNET_LEN + 2).cast::<[u16; 2]>().write([fields.total.to_be(), stamp.id.to_be()]);
            start.add(ETHERNET_LEN + 10).cast::<u16>().write(fields.checksum.to_be());
            if let Some(hops) = fields.hops {
                start.add(TTL).write(hops);
            }
        }
        Ok(())
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
    fn segment_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn has_tag_beside(&self) -> bool {
        false
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
        self.adjust_head(strip.outer_len as i32)
    }

    #[inline(always)]
    fn encapsulate(&mut self, template: &Template, stamp: Stamp) -> Result<(), DropReason> {
        let packet_len = u32::from(template.header_len) + self.len();
        self.adjust_head(-i32::from(template.header_len))?;
        self.write_outer(template, packet_len, stamp)
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
