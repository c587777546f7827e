//! Looks at all of a socket buffer.

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skb_vlan_pop,
};
use mgre_common::checksum::fold;
use mgre_common::event::TOO_BIG_CAPTURE;
use mgre_common::reason::DropReason;
use mgre_common::table::{Template, template_option};
use mgre_common::target::Target;
use mgre_common::wire::{GRE_FIELD_LEN, GRE_LEN, UDP_LEN};
use mgre_ebpf::frame::{Excerpt, Frame, Replicate, Step, Whole};
use mgre_ebpf::neighbor::{self, Scene};
use mgre_ebpf::tables::Tables;

use super::{Skb, check};
use crate::kernel::maps::{Maps, SCRATCH, SUM_CHUNK};
use crate::kernel::wire::{behind_ip, some_length};

impl Whole for Skb {
    #[inline(always)]
    fn sum(&self, offset: u32, len: u32) -> Option<u16> {
        let mut sum = Sum { skb: self.skb, offset, left: len, sum: 0 };
        let chunks = len.div_ceil(SUM_CHUNK as u32);
        Self::repeat(chunks, &mut sum);
        if sum.left != 0 {
            return None;
        }
        // A checksum does not depend on the byte order, its value does (RFC 1071 2(B)).
        Some(u16::from_be(fold(sum.sum)))
    }

    #[inline(always)]
    fn listen<T: Tables>(&self, _: &T, scene: &Scene) {
        mgre_listen(self.skb, scene.source.to_bits(), scene.segment, place(scene), scene.seconds);
    }

    #[inline(always)]
    fn answer<T: Tables>(&mut self, _: &T, scene: &Scene) -> u32 {
        mgre_answer(self.skb, scene.source.to_bits(), scene.segment, place(scene))
    }

    #[inline(always)]
    fn with_excerpt<R>(work: impl FnOnce(&mut Excerpt) -> R) -> Option<R> {
        const { assert!(size_of::<Excerpt>() <= SUM_CHUNK) };
        // SAFETY: the memory is this CPU's and longer than that, and nobody else uses it before
        // another program may run on this CPU, which only a frame that is sent could start.
        Some(work(unsafe { &mut *SCRATCH.get_ptr_mut(0)?.cast::<Excerpt>() }))
    }

    #[inline(always)]
    fn load(&self, offset: u32, len: usize, to: &mut Excerpt) -> bool {
        let len = len.min(size_of::<Excerpt>()) as u32;
        let to = to.as_mut_ptr().cast();
        // SAFETY: the pointer is the program's context, and `to` has room for the bytes.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), offset, to, len) == 0 }
    }

    #[inline(always)]
    fn overwrite(&mut self, len: usize, from: &Excerpt) -> Result<(), DropReason> {
        let len = len.min(size_of::<Excerpt>()) as u32;
        let from = from.as_ptr().cast();
        // SAFETY: the pointer is the program's context, and `from` has as many bytes.
        check(unsafe { bpf_skb_store_bytes(self.skb, 0, from, len, BPF_F_RECOMPUTE_CSUM.into()) })
    }

    #[inline(always)]
    fn copy_bytes(&self, offset: u32, to: &mut [u8; TOO_BIG_CAPTURE]) -> u32 {
        let there = (self.len() - offset) as usize;
        let there = if there < TOO_BIG_CAPTURE { there } else { TOO_BIG_CAPTURE };
        let Some(len) = some_length::<TOO_BIG_CAPTURE>(there) else { return 0 };
        let to = to.as_mut_ptr();
        // SAFETY: the pointer is the program's context, and `to` has room for the bytes.
        match unsafe { bpf_skb_load_bytes(self.skb.cast(), offset, to.cast(), len as u32) } {
            0 => len as u32,
            _ => 0,
        }
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: the pointer is the program's context.
        unsafe { (*self.skb).mark = mark };
    }

    #[inline(always)]
    fn seal(&mut self, template: &Template, sequence: u32) -> Result<(), DropReason> {
        if template.options & template_option::SEQUENCE != 0 {
            // The last field (RFC 2890 2).
            self.store(u32::from(template.header_len) - GRE_FIELD_LEN as u32, &sequence.to_be())?;
        }
        if template.options & template_option::CHECKSUM != 0 {
            let udp = template.options & template_option::UDP != 0;
            let gre_at = behind_ip(template) + if udp { UDP_LEN as u32 } else { 0 };
            // RFC 2784 2.3: over header and payload, the field itself zero.
            let sum = self.sum(gre_at, self.len() - gre_at).ok_or(DropReason::Headroom)?;
            self.store(gre_at + GRE_LEN as u32, &(!sum).to_be())?;
        }
        Ok(())
    }

    #[inline(always)]
    fn replace(
        &mut self,
        at: u32,
        checksum_at: u32,
        odd: bool,
        old: u16,
        new: u16,
    ) -> Result<(), DropReason> {
        let (mut from, mut to) = (old.to_be(), new.to_be());
        if odd {
            (from, to) = (from.swap_bytes(), to.swap_bytes());
        }
        // An unfinished checksum has nothing of them yet, and the helper knows.
        // SAFETY: the pointer is the program's context.
        check(unsafe { bpf_l4_csum_replace(self.skb, checksum_at, from.into(), to.into(), 2) })?;
        self.store(at, &new.to_be())
    }

    #[inline(always)]
    fn untag(&mut self) -> Result<(), DropReason> {
        // SAFETY: the pointer is the program's context.
        check(unsafe { bpf_skb_vlan_pop(self.skb) })
    }
}

/// Where a frame begins and how long it is, as one number.
#[inline(always)]
const fn place(scene: &Scene) -> u64 {
    (scene.outer_len as u64) << 32 | scene.len as u64
}

/// A scene out of numbers.
#[inline(always)]
const fn scene(source: u32, segment: u32, place: u64, seconds: u32) -> Scene {
    let source = Target::from_bits(source);
    Scene { source, segment, outer_len: (place >> 32) as u32, len: place as u32, seconds }
}

/// [`Whole::listen`]. The verifier looks at a global function by itself, once, whatever its
/// callers know: it has a BTF type, and takes the context and numbers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mgre_listen(skb: *mut __sk_buff, source: u32, segment: u32, at: u64, seconds: u32) -> u32 {
    neighbor::listen(&Skb { skb, ingress: true }, &Maps, &scene(source, segment, at, seconds));
    0
}

/// [`Whole::answer`], likewise. (What it does not use, the compiler would not pass, and the verifier
/// miss: the time.)
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mgre_answer(skb: *mut __sk_buff, source: u32, segment: u32, at: u64) -> u32 {
    neighbor::turn(&mut Skb { skb, ingress: true }, &Maps, &scene(source, segment, at, 0))
}

/// A checksum in the making.
struct Sum {
    skb: *mut __sk_buff,
    offset: u32,
    left: u32,
    sum: u32,
}

impl Step for Sum {
    #[inline(always)]
    fn step(&mut self, _: u32) -> bool {
        let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return false };
        let left = self.left as usize;
        let len = if left < SUM_CHUNK { left } else { SUM_CHUNK };
        if left < SUM_CHUNK {
            // What is left from the chunk before would count. (One by one: there is no `memset`.)
            for at in 0..SUM_CHUNK / 8 {
                // SAFETY: the memory is this CPU's, as long as this, and aligned to words.
                unsafe { scratch.cast::<u64>().add(at).write_volatile(0) };
            }
        }
        let Some(len) = some_length::<SUM_CHUNK>(len) else { return false };
        let to = scratch.cast::<u8>();
        // SAFETY: the pointer is the program's context, and there is room for the bytes.
        if unsafe { bpf_skb_load_bytes(self.skb.cast(), self.offset, to.cast(), len as u32) } != 0 {
            return false;
        }
        // SAFETY: all of the chunk is there.
        let sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, to.cast(), SUM_CHUNK as u32, self.sum) };
        self.sum = sum as u32;
        self.offset += len as u32;
        self.left -= len as u32;
        self.left != 0
    }
}
