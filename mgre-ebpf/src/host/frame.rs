//! A frame in a vector.

use bytemuck::AnyBitPattern;
use mgre_common::checksum;
use mgre_common::reason::DropReason;
use mgre_common::table::Template;
use mgre_common::wire::{ETHERNET_LEN, EtherType, IPV4_LEN, VLAN_TAG_LEN};

use crate::frame::{Egress, Frame, Replicate, Resize, Stamp, Step, Strip};

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
    /// All that was sent, as on the wire, in order.
    pub sent: Vec<(Egress, Vec<u8>)>,
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
        self.sent.push((egress, self.on_the_wire()));
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

    fn carries_ip(&self) -> bool {
        self.read::<EtherType>(12).is_some_and(|kind| kind == EtherType::IPV4 || kind == EtherType::IPV6)
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

    fn encapsulate(&mut self, template: &Template, stamp: Stamp) -> Result<(), DropReason> {
        assert_eq!(self.outer_len, 0, "encapsulated already");
        assert!(!self.damaged, "encapsulated after a failure");
        if self.failures.encapsulate {
            self.damage();
            return Err(DropReason::Headroom);
        }
        let inner = self.on_the_wire();
        self.tag = None;
        self.bytes = outer_header(template, inner.len(), stamp);
        self.outer_len = self.bytes.len();
        self.bytes.extend(inner);
        self.touched = true;
        Ok(())
    }

    fn relay(&mut self, template: &Template, stamp: Stamp, strip: Strip) -> Result<(), DropReason> {
        assert_eq!(self.outer_len, 0, "encapsulated already");
        self.strip(strip)?;
        self.encapsulate(template, stamp)
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
    fn readdress(&mut self, template: &Template, stamp: Stamp) -> Result<(), DropReason> {
        assert_ne!(self.outer_len, 0, "not encapsulated");
        assert_eq!(usize::from(template.header_len), self.outer_len, "a header of another length");
        let header = outer_header(template, self.bytes.len() - self.outer_len, stamp);
        self.bytes[..self.outer_len].copy_from_slice(&header);
        Ok(())
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

/// A template's header before an inner frame of this length.
fn outer_header(template: &Template, inner_len: usize, stamp: Stamp) -> Vec<u8> {
    let mut header = template.header[..usize::from(template.header_len)].to_vec();
    let total = header.len() - ETHERNET_LEN + inner_len;
    // A superframe may be longer than the field can say.
    let total = u16::try_from(total).unwrap_or(0);
    let ip = &mut header[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[4..6].copy_from_slice(&stamp.id.to_be_bytes());
    ip[8] = ip[8].min(stamp.hops);
    ip[10..12].fill(0);
    let sum = checksum::checksum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}
