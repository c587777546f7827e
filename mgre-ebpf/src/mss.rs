//! Lowers TCP's maximum segment size (RFC 9293 3.7.1) to what fits through a tunnel, in the
//! segments that open a connection, whichever way they go.

use mgre_common::table::Template;
use mgre_common::wire::{IPV4_LEN, IPV6_LEN, IpProtocol, VLAN_TAG_LEN};

use crate::frame::{Frame, Replicate, Step};
use crate::inner::Inner;

/// A TCP header without options.
const TCP_LEN: usize = 20;
/// Where it has its checksum.
const CHECKSUM_AT: u32 = 16;
/// A header has room for so many bytes of options, each of which may be padding.
const MAX_OPTIONS: u32 = 40;

/// A TCP header that opens a connection, and what is before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Bytes before what follows an IP header without options.
    l4: u32,
    /// Bytes before the TCP header.
    tcp: u32,
    /// Bytes of the TCP header.
    len: u32,
}

impl Opening {
    /// The one in the frame behind so many bytes of outer headers, if there is one (whole, that
    /// is in no fragment). What it says is counted from the start of the frame inside.
    #[inline(always)]
    pub fn read<F: Frame>(frame: &F, outer_len: u32) -> Option<Self> {
        const SYN: u8 = 0x02;
        let Inner { version, l3, .. } = Inner::read(frame, outer_len)?;
        let byte = |at: usize| frame.read_behind::<u8>(outer_len, at);
        let ip = l3 as usize;
        let (ip_len, protocol, whole) = if version.is_v6() {
            (40, byte(ip + 6)?, true)
        } else {
            let [flags, offset] = frame.read_behind::<u16>(outer_len, ip + 6)?.to_ne_bytes();
            (u32::from(byte(ip)? & 0xf) * 4, byte(ip + 9)?, flags & 0x3f == 0 && offset == 0)
        };
        if protocol != IpProtocol::TCP.0 || !whole || ip_len < 20 {
            return None;
        }
        let tcp = frame.blur(l3 + ip_len);
        let [len, flags] = frame.read_behind::<u16>(outer_len + tcp, 12)?.to_ne_bytes();
        if flags & SYN == 0 {
            return None;
        }
        let len = u32::from(len >> 4) * 4;
        let least = if version.is_v6() { IPV6_LEN } else { IPV4_LEN };
        Some(Self { l4: l3 + least as u32, tcp, len })
    }
}

/// Looks through options for the maximum segment size.
struct Search<'a, F> {
    frame: &'a mut F,
    opening: Opening,
    /// The largest that may be asked for.
    limit: u16,
    /// Where the next option is, from the TCP header on.
    next: u32,
}

impl<F: Replicate> Step for Search<'_, F> {
    #[inline(always)]
    fn step(&mut self, _: u32) -> bool {
        const END: u8 = 0;
        const PADDING: u8 = 1;
        const SIZE: u8 = 2;
        let Opening { tcp, len, .. } = self.opening;
        let next = self.frame.blur(self.next);
        if next >= len {
            return false;
        }
        let at = tcp + next;
        // Where only one octet is left, it is no option that matters.
        let Some(start) = self.frame.read_behind::<u16>(at, 0) else { return false };
        let [kind, option_len] = start.to_ne_bytes();
        if kind == PADDING {
            self.next = next + 1;
            return true;
        }
        if kind == END || option_len < 2 {
            return false;
        }
        if kind == SIZE && option_len == 4 && next + 4 <= len {
            self.lower(tcp, next + 2);
            return false;
        }
        self.next = next + u32::from(option_len);
        true
    }
}

impl<F: Replicate> Search<'_, F> {
    /// Lowers the number that is so far behind the start of the TCP header.
    #[inline(always)]
    fn lower(&mut self, tcp: u32, at: u32) {
        let Some(word) = self.frame.read_behind::<u16>(tcp + at, 0) else { return };
        let size = u16::from_be(word);
        if size > self.limit {
            // A frame that cannot be changed goes as it came.
            let _left = self.frame.replace(tcp + at, tcp + CHECKSUM_AT, at & 1 != 0, size, self.limit);
        }
    }
}

/// Lowers the maximum segment size in a frame without outer headers to what fits through
/// a template, if the frame opens a connection.
#[inline(always)]
pub fn clamp<F: Replicate>(frame: &mut F, template: &Template) {
    let Some(opening) = Opening::read(frame, 0) else { return };
    // IP and TCP headers without options, as for any maximum segment size (RFC 6691 2).
    let tag = if frame.has_tag_beside() { VLAN_TAG_LEN as u32 } else { 0 };
    let headers = tag + opening.l4 + TCP_LEN as u32;
    let room = template.max_frame;
    if room <= headers {
        return;
    }
    let limit = room - headers;
    let limit = if limit > 0xffff { u16::MAX } else { limit as u16 };
    let mut search = Search { frame, opening, limit, next: TCP_LEN as u32 };
    F::repeat(MAX_OPTIONS, &mut search);
}
