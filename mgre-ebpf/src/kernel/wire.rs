//! What both kinds of buffer write before a frame, and what the verifier needs.

use mgre_common::checksum;
use mgre_common::reason::DropReason;
use mgre_common::table::{OuterFamily, TEMPLATE_HEADER_LEN, Template, template_option};
use mgre_common::template::DONT_FRAGMENT;
use mgre_common::wire::{ETHERNET_LEN, GRE_IN_UDP_PORT, IPV4_LEN, IPV6_LEN};
use mgre_ebpf::frame::{MAX_BEHIND, Stamp};

/// The first words of a template's header.
#[inline(always)]
pub(super) fn words<const N: usize>(template: &Template) -> [u64; N] {
    const { assert!(N * 8 <= TEMPLATE_HEADER_LEN) };
    // SAFETY: the header is long enough, and aligned as the template is.
    unsafe { (&raw const template.header).cast::<[u64; N]>().read() }
}

/// A value in a template's header, at a multiple of its alignment.
#[inline(always)]
pub(super) fn header_at<T: bytemuck::AnyBitPattern>(template: &Template, at: usize) -> T {
    assert!(at + size_of::<T>() <= TEMPLATE_HEADER_LEN);
    assert!(at.is_multiple_of(align_of::<T>()));
    // SAFETY: it is within the header, as just checked, any bits are a value, and the
    // header is aligned as the template is.
    unsafe { (&raw const template.header).cast::<u8>().add(at).cast::<T>().read() }
}

/// The lengths of the headers that there is code for ([`mgre_common::table::template_shape`]).
pub(super) mod plain {
    /// IPv4 and GRE.
    pub(crate) const V4: usize = 14 + 20 + 4;
    /// IPv4 and GRE with a key.
    pub(crate) const V4_KEYED: usize = V4 + 4;
    /// IPv6 and GRE.
    pub(crate) const V6: usize = 14 + 40 + 4;
    /// IPv6 and GRE with a key.
    pub(crate) const V6_KEYED: usize = V6 + 4;
}

/// Whether a template rests on IPv6.
#[inline(always)]
pub(super) fn is_v6(template: &Template) -> bool {
    template.family == OuterFamily::Ipv6 as u8
}

/// Options for which a header must be touched after it is written.
pub(super) const TOUCHED: u8 = template_option::FLOW_ID | template_option::UDP;

/// Writes what an outer IP header of a packet of this length has of its own, behind its
/// template's bytes.
///
/// # Safety
/// `start` is the start of a packet that begins with the template's bytes, in memory that can
/// be written.
#[inline(always)]
pub(super) unsafe fn write_fields<const V6: bool>(
    start: *mut u8,
    template: &Template,
    packet_len: u32,
    stamp: Stamp,
) {
    // SAFETY: all of it is in the header, per the contract; alignment is as for any access
    // to a packet.
    unsafe {
        if V6 {
            write_ipv6(start.add(ETHERNET_LEN), template, packet_len, stamp);
        } else {
            write_ipv4(start.add(ETHERNET_LEN), template, packet_len, stamp);
        }
    }
}

/// A superframe that does not fit 16 bits says zero, as in the kernel's own.
#[inline(always)]
const fn length(len: u32) -> u16 {
    if len > 0xffff { 0 } else { len as u16 }
}

/// # Safety
/// `ip` is an IPv4 header that can be written.
#[inline(always)]
unsafe fn write_ipv4(ip: *mut u8, template: &Template, packet_len: u32, stamp: Stamp) {
    let total = length(packet_len - ETHERNET_LEN as u32);
    // The template has zero where the packet has something of its own.
    let mut base = u32::from(template.checksum_base)
        + u32::from(total)
        + u32::from(stamp.id)
        + u32::from(stamp.tos)
        + (u32::from(stamp.dont_fragment) << DONT_FRAGMENT_SHIFT);
    // SAFETY: all of it is in the header, per the contract.
    unsafe {
        ip.add(1).write(template.header[ETHERNET_LEN + 1] | stamp.tos);
        ip.add(2).cast::<[u16; 2]>().write([total.to_be(), stamp.id.to_be()]);
        // For most packets the compiler knows that these two are not so.
        if stamp.dont_fragment != 0 {
            ip.add(6).write(DONT_FRAGMENT);
        }
        let ttl = template.header[ETHERNET_LEN + 8];
        if stamp.hops < ttl {
            ip.add(8).write(stamp.hops);
            base += u32::from(!(u16::from(ttl) << 8)) + (u32::from(stamp.hops) << 8);
        }
        ip.add(10).cast::<u16>().write((!checksum::fold(base)).to_be());
    }
}

/// Where the don't-fragment bit is in the word that has it.
const DONT_FRAGMENT_SHIFT: u32 = DONT_FRAGMENT.trailing_zeros() + 8;

/// # Safety
/// `ip` is an IPv6 header that can be written.
#[inline(always)]
unsafe fn write_ipv6(ip: *mut u8, template: &Template, packet_len: u32, stamp: Stamp) {
    let class = u16::from_be(header_at(template, ETHERNET_LEN)) | u16::from(stamp.tos) << 4;
    // SAFETY: all of it is in the header, per the contract.
    unsafe {
        ip.cast::<u16>().write(class.to_be());
        ip.add(4).cast::<u16>().write(length(packet_len - (ETHERNET_LEN + IPV6_LEN) as u32).to_be());
        if stamp.hops < template.header[ETHERNET_LEN + 7] {
            ip.add(7).write(stamp.hops);
        }
    }
}

/// Where GRE starts behind an IP header.
#[inline(always)]
pub(super) fn behind_ip(template: &Template) -> u32 {
    (ETHERNET_LEN + if is_v6(template) { IPV6_LEN } else { IPV4_LEN }) as u32
}

/// The UDP header before GRE: source port, destination port, length, and no checksum, which
/// is what superframes can have (RFC 8086 6.2, RFC 6936 5).
#[inline(always)]
pub(super) fn udp_header(template: &Template, packet_len: u32, flow: u32) -> [u16; 4] {
    let length = length(packet_len - behind_ip(template));
    // Of the dynamic ports, 14 bits of flow (RFC 8086 3.2.1).
    let source = 0xc000 | flow as u16 & 0x3fff;
    [source.to_be(), GRE_IN_UDP_PORT.to_be(), length.to_be(), 0]
}

/// Where a packet that starts there has a byte behind headers whose length is known only when
/// it runs. The verifier wants one register that is both checked against the packet's end and
/// read from, so the compiler must not know what it is made of.
#[inline(always)]
pub(super) fn behind(start: usize, outer_len: u32, offset: usize) -> usize {
    opaque(start + ((outer_len as usize + offset) & (MAX_BEHIND - 1)))
}

const _: () = assert!(MAX_BEHIND.is_power_of_two());

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

/// The length of a template's header, which is at least `LEAST`. The verifier must learn both bounds of the number
/// itself: the compiler makes of a range one comparison of a difference, from which verifiers before 6.18 learn
/// nothing.
#[inline(always)]
pub(super) fn header_len<const LEAST: usize>(template: &Template) -> Result<u32, DropReason> {
    let len = opaque(usize::from(template.header_len));
    if len < LEAST {
        return Err(DropReason::Internal);
    }
    let len = opaque(len);
    if len > TEMPLATE_HEADER_LEN { Err(DropReason::Internal) } else { Ok(len as u32) }
}

/// A length that is at least one and at most `MAX`, if it is. That it is not zero, verifiers before 6.4 do not learn
/// from a comparison with zero; that a sum of one is not, they know.
#[inline(always)]
pub(super) fn some_length<const MAX: usize>(len: usize) -> Option<usize> {
    let less = opaque(len.wrapping_sub(1));
    if less >= MAX { None } else { Some(opaque(less) + 1) }
}

/// The number as it is, of which the verifier knows nothing any more: it does not see that
/// adding the bits of another one twice adds nothing.
#[inline(always)]
pub(super) fn blur(number: u32, by: u32) -> u32 {
    let mut number = u64::from(number);
    // SAFETY: the instructions change nothing but the number.
    unsafe {
        core::arch::asm!(
            "{0} ^= {1}", "{0} ^= {1}",
            inout(reg) number, in(reg) u64::from(by), options(pure, nomem, nostack)
        );
    }
    number as u32
}
