//! A frame in a vector.

use bytemuck::AnyBitPattern;
use mgre_common::checksum;
use mgre_common::event::TOO_BIG_CAPTURE;
use mgre_common::reason::DropReason;
use mgre_common::table::{OuterFamily, Template, template_option};
use mgre_common::wire::{
    ETHERNET_LEN, EtherType, IPV4_LEN, IPV6_LEN, IpProtocol, MacAddr, UDP_LEN, VLAN_TAG_LEN,
};

use super::world::NEAR_MAC;
use crate::act;
use crate::frame::{Bare, Egress, Excerpt, Frame, Replicate, Resize, Stamp, Step, Strip, Whole};
use crate::handoff::{Chain, Handoff, Next};
use crate::inner::{Inner, Version};
use crate::tables::Tables;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAction {
    /// Sent; copies may have been sent before it.
    Sent(Egress),
    /// Not forwarded.
    Dropped,
    /// Left to the kernel, untouched.
    Passed,
}

/// Operations that are to fail.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    /// [`Resize::strip`] fails.
    pub strip: bool,
    /// [`Resize::encapsulate`] fails.
    pub encapsulate: bool,
    /// It is refused, as for a superframe that bears the marks of another tunnel.
    pub marked: bool,
    /// [`Whole::overwrite`] fails.
    pub overwrite: bool,
    /// [`Replicate::copy_to`] fails for these interfaces.
    pub copy_to: Vec<u32>,
}

/// A frame in memory that checks that it is used as [`Frame`] asks.
#[derive(Clone, Debug, Default)]
pub struct HostFrame {
    bytes: Vec<u8>,
    segment_size: u32,
    tag: Option<[u8; VLAN_TAG_LEN]>,
    /// Length of the outer header that was put on.
    outer_len: usize,
    touched: bool,
    damaged: bool,
    /// What was last noted on it.
    pub mark: u32,
    /// All that was sent, as on the wire, in order.
    pub sent: Vec<(Egress, Vec<u8>)>,
    /// What was noted on each of those.
    pub marks: Vec<u32>,
    /// What is to fail.
    pub failures: Failures,
}

impl HostFrame {
    /// A frame with these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), ..Self::default() }
    }

    /// Makes it a superframe with segments of so many payload bytes.
    pub fn with_segment_size(mut self, segment_size: u32) -> Self {
        self.segment_size = segment_size;
        self
    }

    /// Puts a tag beside it: protocol and control information as on the wire.
    pub fn with_tag(mut self, tag: [u8; VLAN_TAG_LEN]) -> Self {
        self.tag = Some(tag);
        self
    }

    /// Makes operations fail.
    pub fn with_failures(mut self, failures: Failures) -> Self {
        self.failures = failures;
        self
    }

    /// The bytes as they are now, without a tag beside them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn on_the_wire(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Some(tag) = self.tag {
            bytes.splice(12..12, tag);
        }
        bytes
    }

    fn send(&mut self, egress: Egress) {
        assert!(!self.damaged, "a frame was sent after an operation on it failed");
        let mut bytes = self.on_the_wire();
        if egress.vlan != 0 {
            let [high, low] = egress.vlan.to_be_bytes();
            bytes.splice(12..12, [0x81, 0, high, low]);
        }
        self.sent.push((egress, bytes));
        self.marks.push(self.mark);
    }

    fn damage(&mut self) {
        self.touched = true;
        self.damaged = true;
        self.bytes.fill(0xdb);
    }
}

impl Frame for HostFrame {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn read<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let bytes = self.bytes.get(offset..offset.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn segment_size(&self) -> u32 {
        self.segment_size
    }

    fn has_tag_beside(&self) -> bool {
        self.tag.is_some()
    }

    fn tag_beside(&self) -> Option<(EtherType, u16)> {
        let [a, b, high, low] = self.tag?;
        Some((EtherType::from_bytes([a, b]), u16::from_be_bytes([high, low])))
    }

    fn is_taken_for(&self, template: &Template) -> bool {
        let ipv6 = self.read::<EtherType>(12) == Some(EtherType::IPV6);
        ipv6 == (template.family == OuterFamily::Ipv6 as u8)
    }

    fn is_for_another(&self) -> bool {
        self.read::<MacAddr>(0).is_some_and(|to| !to.is_group() && to != NEAR_MAC)
    }

    fn carries_ip(&self) -> bool {
        self.read::<EtherType>(12).is_some_and(|kind| kind == EtherType::IPV4 || kind == EtherType::IPV6)
    }
}

impl Whole for HostFrame {
    fn sum(&self, offset: u32, len: u32) -> Option<u16> {
        let (start, end) = (offset as usize, offset as usize + len as usize);
        Some(checksum::fold(checksum::add_bytes(0, self.bytes.get(start..end)?)))
    }

    fn with_excerpt<R>(work: impl FnOnce(&mut Excerpt) -> R) -> Option<R> {
        Some(work(&mut [0xdbdb; size_of::<Excerpt>() / 2]))
    }

    fn load(&self, offset: u32, len: usize, to: &mut Excerpt) -> bool {
        let bytes = self.bytes.get(offset as usize..offset as usize + len);
        bytes.is_some_and(|bytes| {
            bytemuck::bytes_of_mut(to)[..len].copy_from_slice(bytes);
            true
        })
    }

    fn overwrite(&mut self, len: usize, from: &Excerpt) -> Result<(), DropReason> {
        if self.failures.overwrite {
            self.damage();
            return Err(DropReason::Headroom);
        }
        let bytes = &bytemuck::bytes_of(from)[..len];
        self.bytes.get_mut(..len).ok_or(DropReason::Headroom)?.copy_from_slice(bytes);
        self.touched = true;
        Ok(())
    }

    fn copy_bytes(&self, offset: u32, to: &mut [u8; TOO_BIG_CAPTURE]) -> u32 {
        let bytes = self.bytes.get(offset as usize..).unwrap_or_default();
        let len = bytes.len().min(TOO_BIG_CAPTURE);
        to[..len].copy_from_slice(&bytes[..len]);
        len as u32
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }

    fn seal(&mut self, template: &Template, sequence: u32) -> Result<(), DropReason> {
        assert_eq!(self.outer_len, usize::from(template.header_len), "not encapsulated");
        if template.options & template_option::SEQUENCE != 0 {
            self.bytes[self.outer_len - 4..self.outer_len].copy_from_slice(&sequence.to_be_bytes());
        }
        if template.options & template_option::CHECKSUM != 0 {
            let mut gre_at = ETHERNET_LEN + if self.bytes[12] == 8 { IPV4_LEN } else { IPV6_LEN };
            if template.options & template_option::UDP != 0 {
                gre_at += UDP_LEN;
            }
            let sum = checksum::checksum(&self.bytes[gre_at..]);
            self.bytes[gre_at + 4..gre_at + 6].copy_from_slice(&sum.to_be_bytes());
        }
        Ok(())
    }

    fn replace(
        &mut self,
        at: u32,
        checksum_at: u32,
        odd: bool,
        old: u16,
        new: u16,
    ) -> Result<(), DropReason> {
        let (at, sum_at) = (at as usize, checksum_at as usize);
        assert_eq!(self.bytes[at..at + 2], old.to_be_bytes());
        self.bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
        let [old, new] = [old, new].map(|word| if odd { word.swap_bytes() } else { word });
        let sum = !u16::from_be_bytes([self.bytes[sum_at], self.bytes[sum_at + 1]]);
        let sum = !checksum::replace(sum, old, new);
        self.bytes[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        self.touched = true;
        Ok(())
    }

    fn untag(&mut self) -> Result<(), DropReason> {
        assert!(self.tag.is_some(), "there is no tag");
        self.tag = None;
        self.touched = true;
        Ok(())
    }
}

impl Resize for HostFrame {
    type Action = HostAction;

    fn strip(&mut self, strip: Strip) -> Result<(), DropReason> {
        if self.failures.strip {
            self.damage();
            return Err(DropReason::Headroom);
        }
        let start = strip.outer_len as usize;
        let end = start + strip.inner_len as usize;
        assert!(end <= self.bytes.len(), "the inner frame ends behind the packet");
        assert!(strip.inner_len as usize >= ETHERNET_LEN, "no whole inner header");
        self.bytes = self.bytes[start..end].to_vec();
        self.outer_len = 0;
        self.touched = true;
        Ok(())
    }

    fn encapsulate(&mut self, template: &Template, stamp: Stamp) -> Result<(), Bare> {
        assert_eq!(self.outer_len, 0, "encapsulated already");
        assert!(!self.damaged, "encapsulated after a failure");
        if self.failures.encapsulate {
            self.damage();
            return Err(Bare::Broken(DropReason::Headroom));
        }
        if self.failures.marked {
            return Err(Bare::Refused);
        }
        let inner = self.on_the_wire();
        self.tag = None;
        self.bytes = outer_packet(template, &inner, stamp);
        self.outer_len = template.header_len.into();
        self.touched = true;
        Ok(())
    }

    fn relay(&mut self, template: &Template, stamp: Stamp, strip: Strip) -> Result<(), DropReason> {
        assert_eq!(self.outer_len, 0, "encapsulated already");
        self.strip(strip)?;
        Ok(self.encapsulate(template, stamp)?)
    }

    fn remark(&mut self, inner: Inner, tos: u8) -> Result<(), DropReason> {
        let Inner { version, l3, .. } = inner;
        let ip = self.bytes.get_mut(l3 as usize..).ok_or(DropReason::Malformed)?;
        match version {
            Version::V4 if ip.len() >= IPV4_LEN => {
                let [old, new] = [ip[1], tos].map(|tos| u16::from_be_bytes([ip[0], tos]));
                let sum = !u16::from_be_bytes([ip[10], ip[11]]);
                ip[1] = tos;
                ip[10..12].copy_from_slice(&(!checksum::replace(sum, old, new)).to_be_bytes());
            }
            Version::V6 if ip.len() >= 2 => {
                ip[0] = ip[0] & 0xf0 | tos >> 4;
                ip[1] = ip[1] & 0x0f | tos << 4;
            }
            _ => return Err(DropReason::Malformed),
        }
        self.touched = true;
        Ok(())
    }

    fn redirect(&mut self, egress: Egress) -> Result<HostAction, DropReason> {
        self.send(egress);
        Ok(HostAction::Sent(egress))
    }

    fn drop(&mut self) -> HostAction {
        HostAction::Dropped
    }

    fn pass(&mut self) -> HostAction {
        assert!(!self.touched, "the kernel was handed a frame that had been changed");
        HostAction::Passed
    }
}

impl Replicate for HostFrame {
    fn readdress(&mut self, template: &Template, stamp: Stamp, outer_len: u32) -> Result<(), DropReason> {
        assert_ne!(self.outer_len, 0, "not encapsulated");
        assert_eq!(outer_len as usize, self.outer_len, "not what it was encapsulated with");
        let inner = self.bytes.split_off(self.outer_len);
        self.bytes = outer_packet(template, &inner, stamp);
        self.outer_len = template.header_len.into();
        Ok(())
    }

    fn take_out_extension(&mut self, len: u32, next_header: IpProtocol) -> bool {
        assert_eq!(self.bytes[12..14], [0x86, 0xdd], "not behind Ethernet's header");
        let behind = ETHERNET_LEN + IPV6_LEN;
        self.bytes.drain(behind..behind + len as usize);
        self.bytes[ETHERNET_LEN + 6] = next_header.0;
        true
    }

    fn copy_to(&mut self, egress: Egress) -> Result<(), DropReason> {
        if self.failures.copy_to.contains(&egress.ifindex) {
            return Err(DropReason::RedirectFailed);
        }
        self.send(egress);
        Ok(())
    }

    fn repeat<S: Step>(count: u32, step: &mut S) {
        let _ended_at = (0..count).find(|&index| !step.step(index));
    }
}

impl Chain for HostFrame {
    fn hand_over<T: Tables>(&mut self, tables: &T, next: Next, handoff: Handoff) -> HostAction {
        let handoff = Handoff::from_words(handoff.to_words());
        match next {
            Next::Forward => act::resume_forward(self, tables, handoff),
            Next::Flood => act::resume_flood(self, tables, handoff),
        }
    }
}

/// A template's header, and the frame inside.
fn outer_packet(template: &Template, inner: &[u8], stamp: Stamp) -> Vec<u8> {
    let mut packet = template.header[..usize::from(template.header_len)].to_vec();
    let header_len = packet.len();
    packet.extend(inner);
    let has = |option: u8| template.options & option != 0;
    let ip = &mut packet[ETHERNET_LEN..];
    let len = ip.len();
    // A superframe may be longer than the fields can say.
    let length = |len: usize| u16::try_from(len).unwrap_or(0).to_be_bytes();
    let ip_len = if template.family == OuterFamily::Ipv4 as u8 {
        ip[1] |= stamp.tos;
        ip[2..4].copy_from_slice(&length(len));
        ip[4..6].copy_from_slice(&stamp.id.to_be_bytes());
        ip[6] |= stamp.dont_fragment << 6;
        ip[8] = ip[8].min(stamp.hops);
        ip[10..12].fill(0);
        let sum = checksum::checksum(&ip[..IPV4_LEN]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        IPV4_LEN
    } else {
        ip[0] |= stamp.tos >> 4;
        ip[1] |= stamp.tos << 4;
        ip[4..6].copy_from_slice(&length(len - IPV6_LEN));
        ip[7] = ip[7].min(stamp.hops);
        IPV6_LEN
    };
    if has(template_option::UDP) {
        let udp = &mut packet[ETHERNET_LEN + ip_len..];
        let udp_len = udp.len();
        udp[..2].copy_from_slice(&(0xc000 | stamp.flow as u16 & 0x3fff).to_be_bytes());
        udp[4..6].copy_from_slice(&length(udp_len));
    }
    if has(template_option::FLOW_ID) {
        packet[header_len - 1] = stamp.flow as u8;
    }
    packet
}
