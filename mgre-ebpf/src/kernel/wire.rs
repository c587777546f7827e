//! What both kinds of buffer write before a frame, and what the verifier needs.

use mgre_common::checksum;
use mgre_common::table::{OuterFamily, Template, template_option};
use mgre_common::template::DONT_FRAGMENT;
use mgre_common::wire::{ETHERNET_LEN, GRE_IN_UDP_PORT, IPV4_LEN, IPV6_LEN};
use mgre_ebpf::frame::{MAX_BEHIND, Stamp};

/// Where an IPv4 header behind Ethernet has its time to live.
const TTL: usize = ETHERNET_LEN + 8;
/// Where an IPv6 header behind Ethernet has its hop limit.
const HOP_LIMIT: usize = ETHERNET_LEN + 7;

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

/// The lengths of an outer header that are written in one go: those without options. Each
/// is of one family.
pub(super) mod plain {
    /// IPv4 and GRE.
    pub(crate) const V4: u16 = 14 + 20 + 4;
    /// IPv4 and GRE with a key.
    pub(crate) const V4_KEYED: u16 = V4 + 4;
    /// IPv6 and GRE.
    pub(crate) const V6: u16 = 14 + 40 + 4;
    /// IPv6 and GRE with a key.
    pub(crate) const V6_KEYED: u16 = V6 + 4;
}

/// Whether a template rests on IPv6.
#[inline(always)]
pub(super) fn is_v6(template: &Template) -> bool {
    template.family == OuterFamily::Ipv6 as u8
}

/// Options for which a header must be touched after it is written.
pub(super) const TOUCHED: u8 = template_option::FLOW_ID | template_option::UDP;

/// What an outer IP header has beside its template's bytes, as words ready to be stored.
#[derive(Clone, Copy)]
pub(super) struct Fields {
    /// The second octet of an IPv4 header, the first two of an IPv6 header: traffic class.
    pub(super) class: u16,
    /// Total length, or payload length; zero for a superframe that does not fit 16 bits, as
    /// in the kernel's own.
    pub(super) length: u16,
    /// IPv4: identification.
    pub(super) id: u16,
    /// IPv4: flags and offset.
    pub(super) fragment: u16,
    /// Time to live, or hop limit.
    pub(super) hops: u8,
    /// IPv4: header checksum.
    pub(super) checksum: u16,
}

/// The fields of an outer header of `V6` or IPv4 before a packet of this length.
#[inline(always)]
pub(super) fn fields<const V6: bool>(template: &Template, packet_len: u32, stamp: Stamp) -> Fields {
    let header = &template.header;
    let before = ETHERNET_LEN + if V6 { IPV6_LEN } else { 0 };
    let length = packet_len - before as u32;
    let length = if length > 0xffff { 0 } else { length as u16 };
    let tos = u16::from(stamp.tos);
    if V6 {
        let class = u16::from_be_bytes([header[ETHERNET_LEN], header[ETHERNET_LEN + 1]]) | tos << 4;
        let limit = header[HOP_LIMIT];
        let hops = if stamp.hops < limit { stamp.hops } else { limit };
        return Fields {
            class: class.to_be(),
            length: length.to_be(),
            id: 0,
            fragment: 0,
            hops,
            checksum: 0,
        };
    }
    let dont_fragment = u16::from(stamp.dont_fragment) << (DONT_FRAGMENT.trailing_zeros() + 8);
    // The template has neither where the packet may have its own.
    let own = u32::from(tos) + u32::from(dont_fragment) + u32::from(length) + u32::from(stamp.id);
    let ttl = header[TTL];
    let mut base = u32::from(template.checksum_base) + own;
    let mut hops = ttl;
    // For packets of our own the compiler knows that this is not so.
    if stamp.hops < ttl {
        hops = stamp.hops;
        base += u32::from(!(u16::from(ttl) << 8)) + (u32::from(hops) << 8);
    }
    Fields {
        class: u16::from(header[ETHERNET_LEN + 1]) | tos,
        length: length.to_be(),
        id: stamp.id.to_be(),
        fragment: (u16::from(header[ETHERNET_LEN + 6]) << 8 | dont_fragment).to_be(),
        hops,
        checksum: (!checksum::fold(base)).to_be(),
    }
}

/// Writes an outer IP header's own fields into a packet that begins with its template's bytes.
///
/// # Safety
/// `start` is the start of a packet that has the whole header in memory that can be written.
#[inline(always)]
pub(super) unsafe fn write_fields<const V6: bool>(start: *mut u8, fields: Fields) {
    // SAFETY: all of it is in the header, per the contract; alignment is as for any access
    // to a packet.
    unsafe {
        if V6 {
            start.add(ETHERNET_LEN).cast::<u16>().write(fields.class);
            start.add(ETHERNET_LEN + 4).cast::<u16>().write(fields.length);
            start.add(HOP_LIMIT).write(fields.hops);
            return;
        }
        start.add(ETHERNET_LEN + 1).write(fields.class as u8);
        start.add(ETHERNET_LEN + 2).cast::<[u16; 2]>().write([fields.length, fields.id]);
        start.add(ETHERNET_LEN + 6).cast::<u16>().write(fields.fragment);
        start.add(TTL).write(fields.hops);
        start.add(ETHERNET_LEN + 10).cast::<u16>().write(fields.checksum);
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
    let length = packet_len - behind_ip(template);
    let length = if length > 0xffff { 0 } else { length as u16 };
    // Of the dynamic ports, 14 bits of flow (RFC 8086 3.2.1).
    let source = 0xc000 | flow as u16 & 0x3fff;
    [source.to_be(), GRE_IN_UDP_PORT.to_be(), length.to_be(), 0]
}

/// Where a packet that starts there has a byte behind headers whose length is known only when
/// it runs. The verifier wants one register that is both checked against the packet's end and
/// read from, so the compiler must not know what it is made of.
#[inline(always)]
pub(super) fn behind(start: usize, outer_len: u32, offset: usize) -> usize {
    opaque(start + (outer_len as usize + offset & MAX_BEHIND - 1))
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
