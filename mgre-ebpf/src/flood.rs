//! Head-end replication: one copy for every port and every adjacency of a
//! segment but the one that the frame came from.
//!
//! The list has the ports first. Each target is sent to when the next one is
//! known, so that the last gets the frame itself and not a copy. Ports get the
//! frame as it is; then it is encapsulated once, and each further adjacency costs
//! a new outer header and a copy.

use core::sync::atomic::Ordering;

use mgre_common::reason::{Direction, DropReason};
use mgre_common::table::{FloodList, MAX_FLOOD_TARGETS, Template};
use mgre_common::target::{Target, TargetKind};

use crate::act::{adjacency_egress, blame, packet_id, port_egress};
use crate::frame::{Egress, Replicate, Side, Step, wire_len};
use crate::tables::Tables;

struct Flood<'a, F, T> {
    frame: &'a mut F,
    tables: &'a T,
    source: Target,
    /// Index of the list's first slot.
    start: u32,
    /// Length on the wire, and bytes to count, of the frame before encapsulation.
    frame_len: u32,
    bytes: u32,
    /// The target that the frame is ready for and was not sent to yet.
    pending: Target,
    egress: Egress,
    copies: u32,
    /// Length of the outer header that is on it, if any.
    outer_len: u16,
    /// It could not be encapsulated, and is no longer what it was.
    damaged: bool,
    /// Whether there was anyone to send to.
    tried: bool,
}

/// Sends a frame, already stripped, to all of a segment; each copy counts for so many bytes.
#[inline(always)]
pub fn flood<F: Replicate, T: Tables>(
    frame: &mut F,
    tables: &T,
    source: Target,
    segment: u32,
    bytes: u32,
) -> F::Action {
    let Some(record) = tables.segment(segment) else {
        tables.count_drop(source, Direction::Receive, DropReason::Internal);
        return frame.drop();
    };
    let list = FloodList::from_bits(record.flood.load(Ordering::Acquire));
    // Split horizon: what came out of a tunnel goes into no tunnel.
    let tunnels = if source.is_adjacency() { 0 } else { u32::from(list.adjacencies) };
    let count = (u32::from(list.ports) + tunnels).min(MAX_FLOOD_TARGETS);
    let mut flood = Flood {
        frame_len: wire_len(frame),
        bytes,
        frame,
        tables,
        source,
        start: list.start,
        pending: Target::NONE,
        egress: Egress { ifindex: 0, side: Side::Out },
        copies: 0,
        outer_len: 0,
        damaged: false,
        tried: false,
    };
    F::repeat(count, &mut flood);
    flood.finish(segment)
}

impl<F: Replicate, T: Tables> Step for Flood<'_, F, T> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let Some(slot) = self.tables.flood_slot(self.start + index) else { return false };
        let to = slot.target();
        if to == self.source {
            return true;
        }
        self.tried = true;
        if let Err(reason) = self.send(to) {
            let (target, direction) = blame(self.source, to);
            self.tables.count_drop(target, direction, reason);
        }
        true
    }
}

impl<F: Replicate, T: Tables> Flood<'_, F, T> {
    /// Makes the frame ready for a target, once the one before has its copy.
    #[inline(always)]
    fn send(&mut self, to: Target) -> Result<(), DropReason> {
        match to.kind() {
            TargetKind::Port(id) => {
                let port = self.tables.port(id).ok_or(DropReason::Internal)?;
                let egress = port_egress(self.frame, port)?;
                self.copy_to_pending();
                self.egress = egress;
            }
            TargetKind::Adjacency(id) => {
                let template = self.tables.adjacency(id).ok_or(DropReason::Internal)?.template();
                let egress = adjacency_egress(template, self.frame_len)?;
                self.copy_to_pending();
                self.encapsulate(template, to)?;
                self.egress = egress;
            }
            TargetKind::None => return Err(DropReason::Internal),
        }
        self.pending = to;
        Ok(())
    }

    /// Puts the outer header for a peer on the frame.
    #[inline(always)]
    fn encapsulate(&mut self, template: &Template, to: Target) -> Result<(), DropReason> {
        if self.damaged {
            return Err(DropReason::Headroom);
        }
        let id = packet_id(self.tables, template, to);
        if self.outer_len == 0 {
            self.outer_len = template.header_len;
            let done = self.frame.encapsulate(template, id);
            self.damaged = done.is_err();
            return done;
        }
        // All of a segment's peers have a key, or none has.
        if self.outer_len != template.header_len {
            return Err(DropReason::Internal);
        }
        self.frame.readdress(template, id)
    }

    #[inline(always)]
    fn copy_to_pending(&mut self) {
        let to = self.pending;
        if to.is_none() {
            return;
        }
        self.pending = Target::NONE;
        match self.frame.copy_to(self.egress) {
            Ok(()) => self.sent(to),
            Err(reason) => {
                let (target, direction) = blame(self.source, to);
                self.tables.count_drop(target, direction, reason);
            }
        }
    }

    #[inline(always)]
    fn sent(&mut self, to: Target) {
        self.tables.count(to, Direction::Transmit, self.bytes);
        self.copies += 1;
    }

    #[inline(always)]
    fn finish(mut self, segment: u32) -> F::Action {
        let to = self.pending;
        if to.is_none() {
            if !self.tried {
                self.tables.count_drop(self.source, Direction::Receive, DropReason::NoTarget);
            }
            self.tables.count_flood(segment, self.copies);
            return self.frame.drop();
        }
        let sent = self.frame.redirect(self.egress);
        match &sent {
            Ok(_) => self.sent(to),
            Err(reason) => {
                let (target, direction) = blame(self.source, to);
                self.tables.count_drop(target, direction, *reason);
            }
        }
        self.tables.count_flood(segment, self.copies);
        sent.unwrap_or_else(|_| self.frame.drop())
    }
}
