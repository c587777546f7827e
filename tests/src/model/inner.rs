//! The IP packet inside a frame, and the flow that a frame is of.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::{Frame, word};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
/// A segment size that says that each buffer is a segment.
const BY_BUFFERS: u32 = 0xffff;

/// Whether an EtherType is that of 802.1Q or 802.1ad.
pub(super) fn is_tag(ethertype: u16) -> bool {
    ethertype == 0x8100 || ethertype == 0x88a8
}

/// Whether it is that of IP.
pub(super) fn is_ip(ethertype: u16) -> bool {
    ethertype == IPV4 || ethertype == IPV6
}

/// An IP packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ip {
    /// Where in the frame it starts.
    pub(super) at: usize,
    pub(super) v6: bool,
    /// The traffic class octet: DSCP and ECN.
    pub(super) class: u8,
}

impl Ip {
    /// The one in a frame, behind up to so many tags; its first two octets are there at least.
    pub(super) fn find(frame: &[u8], tags: usize) -> Option<Self> {
        let mut at = 14;
        for _ in 0..tags {
            if is_tag(word(frame, at - 2)?) {
                at += 4;
            }
        }
        let start = word(frame, at)?;
        match (word(frame, at - 2)?, start >> 12) {
            (IPV4, 4) => Some(Self { at, v6: false, class: start as u8 }),
            (IPV6, 6) => Some(Self { at, v6: true, class: (start >> 4) as u8 }),
            _ => None,
        }
    }

    /// Whether its header, without options or extensions, is there.
    pub(super) fn is_whole(&self, frame: &[u8]) -> bool {
        self.at + if self.v6 { 40 } else { 20 } <= frame.len()
    }

    /// Nobody may fragment it: IPv4 that says so, and any IPv6.
    pub(super) fn dont_fragment(&self, frame: &[u8]) -> bool {
        self.v6 || frame.get(self.at + 6).is_some_and(|flags| flags & 0x40 != 0)
    }

    /// Gives it another traffic class, and brings IPv4's header checksum up to date (RFC 1624 3).
    pub(super) fn set_class(&self, frame: &mut [u8], class: u8) {
        let ip = &mut frame[self.at..];
        if self.v6 {
            ip[0] = ip[0] & 0xf0 | class >> 4;
            ip[1] = ip[1] & 0x0f | class << 4;
            return;
        }
        let (old, new) = ([ip[0], ip[1]], [ip[0], class]);
        ip[1] = class;
        let sum =
            updated(u16::from_be_bytes([ip[10], ip[11]]), u16::from_be_bytes(old), u16::from_be_bytes(new));
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }

    /// The length of its header.
    fn header_len(&self, frame: &[u8]) -> usize {
        if self.v6 { 40 } else { usize::from(frame.get(self.at).map_or(0, |first| first & 15)) * 4 }
    }

    /// The protocol that it says it carries.
    fn protocol(&self, frame: &[u8]) -> u8 {
        frame.get(self.at + if self.v6 { 6 } else { 9 }).copied().unwrap_or(0)
    }

    /// Whether it is a fragment.
    fn is_fragment(&self, frame: &[u8]) -> bool {
        !self.v6 && word(frame, self.at + 6).is_some_and(|field| field & 0x3fff != 0)
    }

    /// Where TCP starts, if it is a whole packet of that.
    pub(super) fn tcp_at(&self, frame: &[u8]) -> Option<usize> {
        let len = self.header_len(frame);
        (self.protocol(frame) == TCP && !self.is_fragment(frame) && len >= 20).then_some(self.at + len)
    }
}

/// A checksum after a word under it changed (RFC 1624 3, equation 3).
pub(super) fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Frame {
    /// The IP packet in it, behind up to two tags, of which one may be beside it.
    pub(super) fn ip(&self) -> Option<Ip> {
        Ip::find(&self.bytes, 2 - usize::from(self.tag.is_some()))
    }

    /// Whether it has no room for an IPv4 header.
    pub(super) fn is_short(&self) -> bool {
        self.bytes.len() < 14 + 20
    }

    /// The length on the wire of the frame, or of each that a superframe stands for: its headers, and a segment.
    /// Where IP has options, TCP is taken for the usual one with timestamps.
    pub(super) fn wire_len(&self) -> usize {
        let tag = if self.tag.is_some() { 4 } else { 0 };
        if !self.is_superframe() {
            return self.bytes.len() + tag;
        }
        let headers = match self.ip() {
            None => 14,
            Some(ip) => {
                let len = ip.header_len(&self.bytes);
                let usual = len == if ip.v6 { 40 } else { 20 };
                let offset = self.bytes.get(ip.at + len + 12).filter(|_| usual || len == 40 || len == 20);
                let transport = match (ip.protocol(&self.bytes), offset) {
                    (TCP, Some(offset)) => usize::from(offset >> 4) * 4,
                    (TCP, None) => 32,
                    _ => 8,
                };
                ip.at + len + transport
            }
        };
        let segment = if self.segment_size == BY_BUFFERS { 0 } else { self.segment_size as usize };
        headers + segment + tag
    }

    /// A superframe that the kernel cannot cut once a tunnel is around it: with a tag beside it and one inside, cut by
    /// its buffers, or of what is not TCP. UDP may be; if it is flooded, nobody finds out.
    pub(super) fn is_cut_first(&self, flooded: bool) -> bool {
        let stacked = self.tag.is_some() && word(&self.bytes, 12).is_some_and(is_tag);
        let simple = match self.ip().map(|ip| ip.protocol(&self.bytes)) {
            Some(TCP) => true,
            Some(UDP) => !flooded,
            _ => false,
        };
        self.is_superframe() && (stacked || self.segment_size == BY_BUFFERS || !simple)
    }

    /// A superframe of IPv6 that tells its length nowhere.
    pub(super) fn is_mute(&self) -> bool {
        let ip = self.ip().filter(|ip| ip.v6 && self.is_superframe());
        ip.is_some_and(|ip| word(&self.bytes, ip.at + 4) == Some(0) && ip.protocol(&self.bytes) != 0)
    }

    /// The same of one that goes from tunnel to tunnel.
    pub(super) fn is_cut_on_the_way(&self) -> bool {
        self.segment_size == BY_BUFFERS
    }

    /// What all frames of a flow have in common; nothing of headers that are cut short, which are of no flow.
    pub(super) fn flow(&self) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        let bytes = &self.bytes;
        match self.ip() {
            None => bytes.get(..12).hash(&mut hasher),
            Some(ip) if !ip.is_whole(bytes) => return None,
            Some(ip) => {
                let protocol = ip.protocol(bytes);
                protocol.hash(&mut hasher);
                if ip.v6 {
                    (bytes[ip.at + 1] & 15, &bytes[ip.at + 2..ip.at + 4]).hash(&mut hasher);
                    bytes[ip.at + 8..ip.at + 40].hash(&mut hasher);
                } else {
                    bytes[ip.at + 12..ip.at + 20].hash(&mut hasher);
                }
                let at = ip.at + ip.header_len(bytes);
                // Behind options nobody looks for ports.
                let usual = ip.v6 || at == ip.at + 20;
                if matches!(protocol, TCP | UDP | SCTP) && !ip.is_fragment(bytes) && usual {
                    bytes.get(at..at + 4)?.hash(&mut hasher);
                }
            }
        }
        Some(hasher.finish())
    }
}
