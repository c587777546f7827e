//! What both kinds of buffer write before a frame, and what the verifier needs.

use mgre_common::checksum;
use mgre_common::table::Template;
use mgre_common::wire::ETHERNET_LEN;

/// The first words of a template's header.
#[inline(always)]
pub(super) fn words<const N: usize>(template: &Template) -> [u64; N] {
    const { assert!(N * 8 <= mgre_common::table::TEMPLATE_HEADER_LEN) };
    // SAFETY: the header is long enough, and aligned as the template is.
    unsafe { (&raw const template.header).cast::<[u64; N]>().read() }
}

/// Total length and header checksum of the outer IPv4 packet in a frame of this length.
/// A superframe that does not fit 16 bits says zero, as the kernel's own do.
#[inline(always)]
pub(super) fn ipv4_lengths(template: &Template, packet_len: u32, id: u16) -> (u16, u16) {
    let total = packet_len - ETHERNET_LEN as u32;
    let total = if total > 0xffff { 0 } else { total as u16 };
    (total, checksum::finish_ipv4(template.checksum_base, total, id))
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
