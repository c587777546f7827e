//! TCP's maximum segment size (RFC 9293 3.7.1), lowered to what fits through a tunnel.

use super::inner::updated;
use super::{Frame, word};

/// A TCP header without options, of which some fields are used.
const TCP_LEN: usize = 20;
const CHECKSUM_AT: usize = 16;

/// Lowers what a frame that opens a connection asks for, if it is more than fits into a frame of this length (tags
/// included) with IP and TCP headers without options (RFC 6691 2).
pub(super) fn lower(frame: &mut Frame, max_frame: usize) {
    let Some(ip) = frame.ip() else { return };
    let tag_len = if frame.tag.is_some() { 4 } else { 0 };
    let frame = frame.bytes.as_mut_slice();
    let Some(tcp) = ip.tcp_at(frame) else { return };
    let Some([offset, flags]) = word(frame, tcp + 12).map(u16::to_be_bytes) else { return };
    if flags & 2 == 0 {
        return;
    }
    let Some(limit) = max_frame.checked_sub(tag_len + ip.at + if ip.v6 { 40 } else { 20 } + TCP_LEN) else {
        return;
    };
    if limit == 0 {
        return;
    }
    let limit = u16::try_from(limit).unwrap_or(u16::MAX);
    let Some(at) = option(&frame[tcp..], usize::from(offset >> 4) * 4) else { return };
    let Some(size) = word(frame, tcp + at).filter(|size| *size > limit) else { return };
    frame[tcp + at..tcp + at + 2].copy_from_slice(&limit.to_be_bytes());
    // Where the word is not aligned to the checksum's words, its octets change places (RFC 1071 2 B).
    let turn = |number: u16| if at % 2 == 1 { number.swap_bytes() } else { number };
    let sum = word(frame, tcp + CHECKSUM_AT).map_or(0, |sum| updated(sum, turn(size), turn(limit)));
    frame[tcp + CHECKSUM_AT..tcp + CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Where the number is in the option that says the maximum segment size.
fn option(tcp: &[u8], header_len: usize) -> Option<usize> {
    let mut at = TCP_LEN;
    while at < header_len {
        let [kind, len] = word(tcp, at)?.to_be_bytes();
        match (kind, usize::from(len)) {
            (1, _) => at += 1,
            (0, _) | (_, 0 | 1) => return None,
            (2, 4) if at + 4 <= header_len => return Some(at + 2),
            (_, len) => at += len,
        }
    }
    None
}
