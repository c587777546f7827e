//! Head-end replication: one copy for every port and every adjacency of a
//! segment but the one that the frame came from.
//!
//! The list has the ports first. Each target is sent to when the next one is
//! known, so that the last gets the frame itself and not a copy. Ports get the
//! frame as it is, and so do peers that it is finished for on the slow interface; then
//! it is encapsulated once, and each further adjacency costs
//! a new outer header and a copy. What a hub sends on goes to the tunnels first, its
//! outer header rewritten for each, and is stripped for the others then.

use core::sync::atomic::Ordering;

use mgre_common::reason::{Direction, DropReason};
use mgre_common::table::{FloodList, MAX_FLOOD_TARGETS, Template, segment_flag};
use mgre_common::target::{Mark, Target, TargetKind};

use crate::act::{blame, port_egress};
use crate::decide::is_hub;
use crate::dress::{Dressing, Outside, Via};
use crate::frame::{Egress, Replicate, Side, Step, Strip};
use crate::handoff::Handoff;
use crate::stamp::Traits;
use crate::superframe::{inner_wire_len, is_cut_before_copies, is_cut_on_the_way, wire_len};
use crate::tables::Tables;
use crate::tunnel::{carries, copy_egress, needs_finishing, relayed_traits};
use crate::verdict::OutOf;

/// A flooded frame's peers may have any options, so all that any asks for is looked up.
const ALL: u8 = u8::MAX;

struct Flood<'a, F, T> {
    frame: &'a mut F,
    tables: &'a T,
    source: Target,
    /// Index of the list's first slot; ports in the list.
    start: u32,
    ports: u32,
    /// How many slots are gone through for who gets the frame as it is, and how many for who
    /// gets it with a header.
    bare: u32,
    wrapped: u32,
    /// Length on the wire, and bytes to count, of the frame inside.
    frame_len: u32,
    bytes: u32,
    /// The most hops that copies may go.
    hops: u8,
    /// What their outer headers take over from the frame.
    traits: Traits,
    /// The target that the frame is ready for and was not sent to yet ([`Target`] bits).
    pending: u32,
    /// Where that is: the interface, and [`Egress::how`].
    ifindex: u32,
    how: u32,
    /// Copies made, and copies that could not be.
    copies: u32,
    lost: u32,
    /// The outer headers that it came with.
    out_of: OutOf,
    /// Length of the outer header that we put on it, if any.
    outer_len: u32,
    /// [`state`] bits.
    state: u32,
}

/// What has become of a frame so far.
mod state {
    /// It still has the outer headers that it came with.
    pub(super) const RECEIVED: u32 = 1 << 0;
    /// It could not be resized, and is no longer what it was.
    pub(super) const DAMAGED: u32 = 1 << 1;
    /// There was someone to send to.
    pub(super) const TRIED: u32 = 1 << 2;
    /// What is pending is counted as sent when it comes back from the slow interface.
    pub(super) const COUNTED_LATER: u32 = 1 << 3;
    /// It must be cut before there is a tunnel around it, whatever the peer.
    pub(super) const CUT_FIRST: u32 = 1 << 4;
    /// Who gets it with a header comes before who gets it as it is.
    pub(super) const WRAPPED_FIRST: u32 = 1 << 5;
}

/// Sends a frame to all of the segment that it is handed over for.
#[inline(always)]
pub fn flood<F: Replicate, T: Tables>(frame: &mut F, tables: &T, handoff: &Handoff) -> F::Action {
    let Handoff { source, to: segment, .. } = *handoff;
    let mut flood = Flood {
        frame,
        tables,
        source,
        start: 0,
        ports: 0,
        bare: 0,
        wrapped: 0,
        frame_len: 0,
        bytes: 0,
        hops: u8::MAX,
        traits: Traits::NONE,
        pending: 0,
        ifindex: 0,
        how: 0,
        copies: 0,
        lost: 0,
        out_of: OutOf::NOTHING,
        outer_len: 0,
        state: 0,
    };
    if let Err(reason) = flood.prepare(segment, handoff.out_of) {
        tables.count_drop(source, Direction::Receive, reason);
        return flood.frame.drop();
    }
    let rounds = (flood.bare + flood.wrapped).min(2 * MAX_FLOOD_TARGETS);
    // Of a count whose range is known, verifiers from 7.0 on walk every round.
    F::repeat(flood.frame.blur(rounds), &mut flood);
    flood.finish(segment)
}

impl<F: Replicate, T: Tables> Step for Flood<'_, F, T> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        // Rounds for the one, and then for the other. (Reckoned, so that there is no branch.)
        let wrapped_first = (self.state / state::WRAPPED_FIRST) & 1;
        let bare = index.wrapping_sub(self.wrapped * wrapped_first);
        let wrapped = index.wrapping_sub(self.bare * (wrapped_first ^ 1));
        let as_it_is = bare < self.bare;
        let place = if as_it_is { bare } else { self.ports + wrapped };
        let Some(slot) = self.tables.flood_slot(self.start + place) else {
            self.state |= state::TRIED;
            self.lose(Target::NONE, DropReason::Internal);
            return false;
        };
        let to = slot.target();
        if to == self.source {
            return true;
        }
        self.state |= state::TRIED;
        if let Err(reason) = self.send(to, as_it_is) {
            self.lose(to, reason);
        }
        self.blur();
        true
    }
}

impl<F: Replicate, T: Tables> Flood<'_, F, T> {
    /// Makes ready to send the first copy. Numbers are noted as soon as they are known: a program has little stack.
    #[inline(always)]
    fn prepare(&mut self, segment: u32, out_of: Option<OutOf>) -> Result<(), DropReason> {
        if !self.tables.admits_flood(self.source) {
            return Err(DropReason::StormLimit);
        }
        let record = self.tables.segment(segment).ok_or(DropReason::Internal)?;
        let list = FloodList::from_bits(record.flood.load(Ordering::Acquire));
        self.start = list.start;
        self.ports = u32::from(list.ports);
        self.bytes = out_of.map_or_else(|| self.frame.len(), |out_of| out_of.strip.inner_len);
        let tunnels = u32::from(list.adjacencies).min(MAX_FLOOD_TARGETS.saturating_sub(self.ports));
        match out_of {
            None => {
                self.wrapped = tunnels;
                if is_cut_before_copies(self.frame) {
                    self.state = state::CUT_FIRST;
                }
                self.traits = Traits::read(self.frame, 0, ALL);
                self.frame_len = wire_len(self.frame);
            }
            // Split horizon: what came out of a tunnel goes into no tunnel, but in a hub. There
            // it has half its hops to go: where hubs form a ring, copies make copies.
            Some(out_of) if out_of.strip.hops > 1 && is_hub(self.tables, segment) => {
                self.wrapped = tunnels;
                self.hops = out_of.strip.hops / 2;
                self.state = state::RECEIVED | state::WRAPPED_FIRST;
                if is_cut_on_the_way(self.frame) {
                    self.state |= state::CUT_FIRST;
                }
                self.out_of = out_of;
                self.traits = relayed_traits(self.frame, out_of, ALL);
                self.frame_len = inner_wire_len(self.frame, out_of.strip);
            }
            // Ports look at nothing but the bytes.
            Some(out_of) => {
                self.frame.undress(out_of)?;
                self.frame_len = self.bytes;
            }
        }
        let finishes = record.flags.load(Ordering::Relaxed) & segment_flag::FINISHES != 0;
        self.bare =
            if finishes || self.has(state::CUT_FIRST) { self.ports + self.wrapped } else { self.ports };
        // However it came, one state stands for all.
        self.source = Target::from_bits(self.frame.blur(self.source.to_bits()));
        self.traits = self.traits.blur(self.frame);
        self.out_of = self.out_of.blur(self.frame);
        self.hops = self.frame.blur(self.hops.into()) as u8;
        for number in [&mut self.bare, &mut self.wrapped, &mut self.frame_len, &mut self.bytes] {
            *number = self.frame.blur(*number);
        }
        self.blur();
        Ok(())
    }

    /// Makes the frame ready for a target, once the one before has its copy. Whoever gets
    /// it as it is has a round of his own.
    #[inline(always)]
    fn send(&mut self, to: Target, as_it_is: bool) -> Result<(), DropReason> {
        match to.kind() {
            TargetKind::Port(id) => {
                let port = self.tables.port(id).ok_or(DropReason::Internal)?;
                let egress = port_egress(port, self.frame.segment_size(), self.bytes)?;
                self.copy_to_pending();
                self.bare()?;
                self.is_ready(to, egress, false);
            }
            TargetKind::Adjacency(id) => {
                let via = Via::find(self.tables, id).ok_or(DropReason::Internal)?;
                let template = via.template;
                let finishes = self.finishes(template);
                if finishes != as_it_is {
                    // The peer has its copy in the other round, if there is one: a segment may
                    // have got its first such peer while this frame was on its way.
                    let lost = !as_it_is && self.bare <= self.ports;
                    return if lost { Err(DropReason::Headroom) } else { Ok(()) };
                }
                let egress = self.tunnel_egress(template)?;
                self.copy_to_pending();
                self.frame.set_mark(0);
                if finishes {
                    self.bare()?;
                    self.frame.set_mark(Mark { target: to, hops: self.hops }.to_bits());
                } else {
                    self.encapsulate(via, to)?;
                }
                self.is_ready(to, egress, finishes);
            }
            TargetKind::None => return Err(DropReason::Internal),
        }
        Ok(())
    }

    /// Notes that the frame is what a target is to have.
    #[inline(always)]
    fn is_ready(&mut self, to: Target, egress: Egress, counted_later: bool) {
        self.pending = to.to_bits();
        self.ifindex = egress.ifindex;
        self.how = egress.how();
        self.state &= !state::COUNTED_LATER;
        if counted_later {
            self.state |= state::COUNTED_LATER;
        }
    }

    /// What is pending, and where it goes; then nothing is.
    #[inline(always)]
    fn take_pending(&mut self) -> Option<(Target, Egress)> {
        let to = Target::from_bits(self.pending);
        self.pending = 0;
        if to.is_none() {
            return None;
        }
        Some((to, Egress::from_parts(self.ifindex, self.how)))
    }

    #[inline(always)]
    fn has(&self, bit: u32) -> bool {
        self.state & bit != 0
    }

    /// Whether it goes to a peer by the slow interface.
    #[inline(always)]
    fn finishes(&self, template: &Template) -> bool {
        needs_finishing(template) || self.has(state::CUT_FIRST)
    }

    /// Whether the frame has the outer headers that it came with, of which it is now relieved.
    #[inline(always)]
    fn take_received(&mut self) -> bool {
        let had = self.has(state::RECEIVED);
        self.state &= !state::RECEIVED;
        had
    }

    /// However it came to be so, what is so is all that matters.
    #[inline(always)]
    fn blur(&mut self) {
        self.pending = self.frame.blur(self.pending);
        self.ifindex = self.frame.blur(self.ifindex);
        self.how = self.frame.blur(self.how);
        self.outer_len = self.frame.blur(self.outer_len);
        self.state = self.frame.blur(self.state);
        self.copies = self.frame.blur(self.copies);
        self.lost = self.frame.blur(self.lost);
    }

    /// Where the next copy goes through a template.
    #[inline(always)]
    fn tunnel_egress(&self, template: &Template) -> Result<Egress, DropReason> {
        let behind = if self.has(state::RECEIVED) { self.out_of.strip.outer_len } else { self.outer_len };
        if template.options != 0 {
            carries(self.frame, template, behind)?;
        }
        let egress = copy_egress(self.frame, self.tables, template, behind, self.frame_len)?;
        if !self.finishes(template) {
            return Ok(egress);
        }
        let slow = self.tables.slow_interface().ok_or(DropReason::Headroom)?;
        Ok(Egress::new(slow, Side::Out))
    }

    /// Takes off what outer headers there are; what the tunnel that it came through left to do is
    /// done then.
    #[inline(always)]
    fn bare(&mut self) -> Result<(), DropReason> {
        let Strip { mut outer_len, mut inner_len, .. } = self.out_of.strip;
        if !self.take_received() {
            if self.outer_len == 0 {
                return Ok(());
            }
            // A tag that was beside it is in it now.
            (outer_len, inner_len) = (self.outer_len, self.frame.len() - self.outer_len);
            self.outer_len = 0;
        }
        let (outer_len, inner_len) = (self.frame.blur(outer_len), self.frame.blur(inner_len));
        let strip = Strip { outer_len, inner_len, hops: 0, tos: 0 };
        let OutOf { inner, tos, .. } = self.out_of;
        self.resized(|frame, _| frame.undress(OutOf { inner, tos, ..OutOf::new(strip) }))
    }

    /// Puts the outer header for a peer on the frame.
    #[inline(always)]
    fn encapsulate(&mut self, via: Via<'_>, to: Target) -> Result<(), DropReason> {
        let Via { id: adjacency, index, template } = via;
        let stamp = self.traits.stamp(self.tables, template, to, self.hops);
        let outside = if self.outer_len != 0 {
            Outside::Ours(self.outer_len)
        } else if self.take_received() {
            Outside::Received(self.out_of.strip)
        } else {
            Outside::Nothing
        };
        self.outer_len = template.header_len.into();
        self.resized(|frame, tables| Ok(frame.dress(tables, Dressing { adjacency, index, stamp, outside })?))
    }

    #[inline(always)]
    fn resized(
        &mut self,
        resize: impl FnOnce(&mut F, &T) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        if self.has(state::DAMAGED) {
            return Err(DropReason::Headroom);
        }
        let done = resize(self.frame, self.tables);
        if done.is_err() {
            self.state |= state::DAMAGED;
        }
        done
    }

    #[inline(always)]
    fn copy_to_pending(&mut self) {
        let Some((to, egress)) = self.take_pending() else { return };
        match self.frame.copy_to(egress) {
            Ok(()) => self.sent(to),
            Err(reason) => self.lose(to, reason),
        }
    }

    /// Counts a copy that nobody gets.
    #[inline(always)]
    fn lose(&mut self, to: Target, reason: DropReason) {
        let (target, direction) = blame(self.source, to);
        self.tables.count_drop(target, direction, reason);
        self.lost += 1;
    }

    #[inline(always)]
    fn sent(&mut self, to: Target) {
        if !self.has(state::COUNTED_LATER) {
            self.tables.count_sent(to, self.bytes);
        }
        self.copies += 1;
    }

    #[inline(always)]
    fn finish(mut self, segment: u32) -> F::Action {
        let Some((to, egress)) = self.take_pending() else {
            if self.has(state::TRIED) {
                self.tables.count_flood(segment, self.copies, self.lost);
            } else {
                // It was dropped and not flooded: it counts once.
                self.tables.count_drop(self.source, Direction::Receive, DropReason::NoTarget);
            }
            return self.frame.drop();
        };
        let sent = self.frame.redirect(egress);
        match &sent {
            Ok(_) => self.sent(to),
            Err(reason) => self.lose(to, *reason),
        }
        self.tables.count_flood(segment, self.copies, self.lost);
        sent.unwrap_or_else(|_| self.frame.drop())
    }
}
