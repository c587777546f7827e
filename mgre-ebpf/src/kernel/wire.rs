//! What both kinds of buffer write before a frame, and what the verifier needs.

use mgre_common::checksum;
use mgre_common::table::Template;
use mgre_common::wire::ETHERNET_LEN;
use mgre_ebpf::frame::Stamp;

/// Where an IPv4 header behind Ethernet has its time to live.
pub(super) const TTL: usize = ETHERNET_LEN + 8;

/// The first words of a template's header.
#[inline(always)]
pub(super) fn words<const N: usize>(template: &Template) -> [u64; N] {
    const { assert!(N * 8 <= mgre_common::table::TEMPLATE_HEADER_LEN) };
    // SAFETY: the header is long enough, and aligned as the template is.
    unsafe { (&raw const template.header).cast::<[u64; N]>().read() }
}

/// A value in a template's header, at a multiple of its alignment.
#[inline(always)]
pub(super) fn header_at<T: bytemuck::AnyBitPattern>(template: &Template, at: usize) -> T {
    assert!(at + size_of::<T>() <= mgre_common::table::TEMPLATE_HEADER_LEN);
    assert!(at.is_multiple_of(align_of::<T>()));
    // SAFETY: it is within the header, as just checked, any bits are a value, and the
    // header is aligned as the template is.
    unsafe { (&raw const template.header).cast::<u8>().add(at).cast::<T>().read() }
}

/// What an outer IPv4 header has beside its template's bytes.
pub(super) struct Ipv4Fields {
    /// Total length; zero for a superframe that does not fit 16 bits, as in the kernel's own.
    pub(super) total: u16,
    /// Time to live, if it is not the template's.
    pub(super) hops: Option<u8>,
    /// Header checksum.
    pub(super) checksum: u16,
}

/// The fields of the outer header of a frame of this length.
#[inline(always)]
pub(super) fn ipv4_fields(template: &Template, packet_len: u32, stamp: Stamp) -> Ipv4Fields {
    let total = packet_len - ETHERNET_LEN as u32;
    let total = if total > 0xffff { 0 } else { total as u16 };
    let hops = template.header[TTL];
    // For packets of our own the compiler knows that this is not so.
    if stamp.hops < hops {
        let base =
            checksum::replace(template.checksum_base, u16::from(hops) << 8, u16::from(stamp.hops) << 8);
        let checksum = checksum::finish_ipv4(base, total, stamp.id);
        return Ipv4Fields { total, hops: Some(stamp.hops), checksum };
    }
    Ipv4Fields { total, hops: None, checksum: checksum::finish_ipv4(template.checksum_base, total, stamp.id) }
}

/// A number that the compiler knows nothing of. It keeps a check that the compiler
/// would find needless and the verifier wants (an enum's range, which the verifier
/// sees as a byte), and a difference of two pointers that the compiler would take
/// apart into sums that the verifier forbids.
#[inline(always)]
pub(super) fn opaque(number: usize) -> usize {
    let mut number = number;
    // SAFETY: the instruction does nothing.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack)) };
    number
}
