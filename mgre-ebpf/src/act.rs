//! Carries a verdict out.

use core::sync::atomic::Ordering;

use mgre_common::reason::{Direction, DropReason};
use mgre_common::table::{Port, adjacency_flag, port_flag, template_option};
use mgre_common::target::{Mark, Target, TargetKind};
use mgre_common::wire::{EtherType, VLAN_ID};

use crate::decide::{self, Interface};
use crate::dress::Via;
use crate::frame::{Egress, Frame, Replicate, Resize, Side, Whole};
use crate::handoff::{Chain, Handoff, Next};
use crate::stage::{Last, Returned};
use crate::superframe::is_mute;
use crate::tables::{Now, Tables};
use crate::tunnel::Journey;
use crate::verdict::{OutOf, Verdict};
use crate::{flood, mss, neighbor, tunnel};

/// The whole way of a frame from a local interface.
#[inline(always)]
pub fn process_port<F: Chain, T: Tables>(frame: &mut F, tables: &T, ifindex: u32) -> F::Action {
    let now = tables.now();
    let mut interface = decide::interface(tables, ifindex);
    if interface == Interface::ByVlan {
        let tag = frame.tag_beside().filter(|(protocol, _)| *protocol == EtherType::VLAN);
        let vlan = tag.map_or(0, |(_, control)| control & VLAN_ID);
        interface = decide::vlan(tables, ifindex, vlan);
        if tag.is_some()
            && let Interface::Port(port) = interface
            && let Err(reason) = frame.untag()
        {
            tables.count_received(port.target(), frame.len(), now);
            tables.count_drop(port.target(), Direction::Receive, reason);
            return frame.drop();
        }
    }
    let verdict = match interface {
        Interface::Port(port) => decide::from_port::<Last, F, T>(frame, tables, port, now),
        Interface::Other(verdict) => verdict,
        Interface::ByVlan => Verdict::Pass,
        Interface::Blocked(target) => {
            tables.count_received(target, frame.len(), now);
            Verdict::Drop { target, direction: Direction::Receive, reason: DropReason::Loop }
        }
    };
    if let Verdict::Flood { source, segment, .. } = verdict
        && let TargetKind::Port(id) = source.kind()
        && let Some(action) = neighbor::answer(frame, tables, source, id, segment, now)
    {
        return action;
    }
    act(frame, tables, verdict, now)
}

/// The whole way of a packet from the underlay.
#[inline(always)]
pub fn process_underlay<F: Chain, T: Tables>(frame: &mut F, tables: &T) -> F::Action {
    let now = tables.now();
    let verdict = decide::from_underlay::<Last, F, T>(frame, tables, now);
    let verdict = relieve(frame, verdict);
    act(frame, tables, verdict, now)
}

/// Takes a tag from beside an outer packet: it is none of the frame's inside.
#[inline(always)]
fn relieve<F: Whole>(frame: &mut F, verdict: Verdict) -> Verdict {
    match verdict.goes_on_from() {
        Some(target) if frame.has_tag_beside() => match frame.untag() {
            Ok(()) => verdict,
            Err(reason) => Verdict::Drop { target, direction: Direction::Receive, reason },
        },
        _ => verdict,
    }
}

#[inline(always)]
fn act<F: Chain, T: Tables>(frame: &mut F, tables: &T, verdict: Verdict, now: Now) -> F::Action {
    match verdict {
        Verdict::Pass | Verdict::Defer => frame.pass(),
        Verdict::PassCounted(reason) => {
            tables.count_drop(Target::NONE, Direction::Receive, reason);
            frame.pass()
        }
        Verdict::Drop { target, direction, reason } => {
            tables.count_drop(target, direction, reason);
            frame.drop()
        }
        Verdict::Unfinished { source, bytes } => {
            frame.set_mark(Mark::UNFINISHED);
            let sent = tunnel::slow(tables).and_then(|egress| frame.redirect(egress));
            sent.unwrap_or_else(|reason| {
                // Else it is counted when it comes back.
                tables.count_received(source, bytes, now);
                tables.count_drop(source, Direction::Receive, reason);
                frame.drop()
            })
        }
        Verdict::Forward { source, to, out_of } => {
            match forward_plain(frame, tables, source, to, out_of, now) {
                Some(done) => ended(frame, tables, source, to, done),
                None => frame.hand_over(tables, Next::Forward, Handoff { source, to: to.to_bits(), out_of }),
            }
        }
        Verdict::Flood { source, segment, out_of } => {
            frame.hand_over(tables, Next::Flood, Handoff { source, to: segment, out_of })
        }
    }
}

/// Goes on with a frame that is to be forwarded.
#[inline(always)]
pub fn resume_forward<F: Replicate, T: Tables>(frame: &mut F, tables: &T, handoff: Handoff) -> F::Action {
    let Handoff { source, to, out_of } = handoff;
    let to = Target::from_bits(to);
    let done = forward(frame, tables, source, to, out_of, tables.now());
    ended(frame, tables, source, to, done)
}

/// Goes on with a frame that is to be flooded.
#[inline(always)]
pub fn resume_flood<F: Replicate, T: Tables>(frame: &mut F, tables: &T, handoff: Handoff) -> F::Action {
    flood::flood(frame, tables, &handoff)
}

/// What came of forwarding a frame.
#[inline(always)]
fn ended<F: Resize, T: Tables>(
    frame: &mut F,
    tables: &T,
    source: Target,
    to: Target,
    done: Result<F::Action, DropReason>,
) -> F::Action {
    match done {
        Ok(action) => action,
        Err(reason) => {
            let (target, direction) = blame(source, to);
            tables.count_drop(target, direction, reason);
            frame.drop()
        }
    }
}

/// The whole way of a frame that came by the slow interface: one that was cut and finished
/// there, or that the daemon made, and bears its target as a mark; or without a mark an outer
/// packet that the daemon got from the kernel, or with a mark of its own one whose checksum may not have been finished.
#[inline(always)]
pub fn process_slow<F: Chain, T: Tables>(frame: &mut F, tables: &T, mark: u32) -> F::Action {
    let now = tables.now();
    if mark == 0 || mark == Mark::UNFINISHED {
        frame.set_mark(0);
        let verdict = decide::from_underlay::<Returned, F, T>(frame, tables, now);
        return match verdict {
            // The kernel has had it, or it is one that the daemon sends on; but of an unfinished one there is no other.
            Verdict::Pass | Verdict::PassCounted(_) | Verdict::Defer => {
                if mark == Mark::UNFINISHED {
                    tables.count_drop(Target::NONE, Direction::Receive, DropReason::UnknownEndpoint);
                }
                frame.drop()
            }
            verdict => {
                let verdict = relieve(frame, verdict);
                act(frame, tables, verdict, now)
            }
        };
    }
    frame.set_mark(0);
    let mark = Mark::from_bits(mark);
    match marked(frame, tables, mark, now) {
        Ok(action) => action,
        Err(reason) => {
            tables.count_drop(mark.target, Direction::Transmit, reason);
            frame.drop()
        }
    }
}

#[inline(always)]
fn marked<F: Replicate, T: Tables>(
    frame: &mut F,
    tables: &T,
    mark: Mark,
    now: Now,
) -> Result<F::Action, DropReason> {
    match mark.target.kind() {
        TargetKind::Port(id) => {
            let bytes = frame.len();
            let egress = way_to_port(frame, tables, id, bytes)?;
            tunnel::finish(frame, tables, mark.target, egress, bytes)
        }
        TargetKind::Adjacency(id) => {
            let adjacency = tables.adjacency(id).ok_or(DropReason::Internal)?;
            if adjacency.flags.load(Ordering::Relaxed) & adjacency_flag::VALID == 0 {
                return Err(DropReason::Internal);
            }
            let via = Via::find(tables, id).ok_or(DropReason::Internal)?;
            tunnel::send_finished(frame, tables, via, mark, now)
        }
        TargetKind::None => Err(DropReason::Internal),
    }
}

/// Whose counter counts a frame that was lost between the two: the tunnel's
/// where there is one.
#[inline(always)]
pub(crate) fn blame(source: Target, to: Target) -> (Target, Direction) {
    if to.is_adjacency() { (to, Direction::Transmit) } else { (source, Direction::Receive) }
}

/// The length to count: that of the frame inside, before the kernel pads it or
/// puts its tag beside it.
#[inline(always)]
fn inner_len<F: Frame>(frame: &F, out_of: Option<OutOf>) -> u32 {
    out_of.map_or_else(|| frame.len(), |out_of| out_of.strip.inner_len)
}

/// Forwards a frame that needs nothing beside its headers, as nearly all; others are left as they are.
#[inline(always)]
fn forward_plain<F: Replicate, T: Tables>(
    frame: &mut F,
    tables: &T,
    source: Target,
    to: Target,
    out_of: Option<OutOf>,
    now: Now,
) -> Option<Result<F::Action, DropReason>> {
    let bytes = inner_len(frame, out_of);
    match (to.kind(), out_of) {
        (TargetKind::Port(_), Some(out_of))
            if out_of.remarks() || out_of.clamps != 0 || is_mute(frame, out_of.strip.outer_len) =>
        {
            None
        }
        (TargetKind::Port(id), _) => Some(deliver(frame, tables, to, id, out_of, bytes)),
        (TargetKind::Adjacency(id), None) => {
            let Some(adjacency) = tables.adjacency(id) else { return Some(Err(DropReason::Internal)) };
            tunnel::send_plain(frame, tables, adjacency.template(), Journey { source, to, bytes }, now)
        }
        (TargetKind::Adjacency(_) | TargetKind::None, _) => None,
    }
}

/// Delivers a frame to a port that gets it as it came, or as it was inside a tunnel.
#[inline(always)]
fn deliver<F: Resize, T: Tables>(
    frame: &mut F,
    tables: &T,
    to: Target,
    id: u32,
    out_of: Option<OutOf>,
    bytes: u32,
) -> Result<F::Action, DropReason> {
    let egress = way_to_port(frame, tables, id, bytes)?;
    if let Some(out_of) = out_of {
        frame.strip(out_of.strip)?;
    }
    tunnel::finish(frame, tables, to, egress, bytes)
}

/// Where a frame that counts for so many bytes goes to get to a port.
#[inline(always)]
fn way_to_port<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    id: u32,
    bytes: u32,
) -> Result<Egress, DropReason> {
    port_egress(tables.port(id).ok_or(DropReason::Internal)?, frame.segment_size(), bytes)
}

#[inline(always)]
fn forward<F: Replicate, T: Tables>(
    frame: &mut F,
    tables: &T,
    source: Target,
    to: Target,
    out_of: Option<OutOf>,
    now: Now,
) -> Result<F::Action, DropReason> {
    let bytes = inner_len(frame, out_of);
    match to.kind() {
        TargetKind::Port(id) => {
            let egress = way_to_port(frame, tables, id, bytes)?;
            if let Some(out_of) = out_of {
                if is_mute(frame, out_of.strip.outer_len) {
                    return tunnel::to_be_finished(
                        frame,
                        tables,
                        Journey { source, to, bytes },
                        Some(out_of),
                    );
                }
                frame.undress(out_of)?;
                if out_of.clamps != 0
                    && let TargetKind::Adjacency(id) = source.kind()
                    && let Some(adjacency) = tables.adjacency(id)
                {
                    mss::clamp(frame, adjacency.template());
                }
            }
            tunnel::finish(frame, tables, to, egress, bytes)
        }
        TargetKind::Adjacency(id) => {
            let via = Via::find(tables, id).ok_or(DropReason::Internal)?;
            let template = via.template;
            if template.options & template_option::CLAMP_MSS != 0 && out_of.is_none() {
                mss::clamp(frame, template);
            }
            tunnel::send(frame, tables, via, Journey { source, to, bytes }, out_of, now)
        }
        TargetKind::None => Err(DropReason::Internal),
    }
}

/// Where a frame for a port goes, if it may.
#[inline(always)]
pub(crate) fn port_egress(port: &Port, segment_size: u32, len: u32) -> Result<Egress, DropReason> {
    let flags = port.flags.load(Ordering::Relaxed);
    if flags & (port_flag::VALID | port_flag::UP) != port_flag::VALID | port_flag::UP {
        return Err(DropReason::RedirectFailed);
    }
    // A superframe is cut to fit by whoever sends it on.
    if segment_size == 0 && len > port.max_frame.load(Ordering::Relaxed) {
        return Err(DropReason::TooBig);
    }
    let side = match flags & (port_flag::HOST | port_flag::PEER) {
        0 => Side::Out,
        port_flag::PEER => Side::Peer,
        _ => Side::Receive,
    };
    let vlan = if flags & port_flag::TAGGED == 0 { 0 } else { port_flag::vlan(flags) };
    Ok(Egress { ifindex: port.ifindex.load(Ordering::Relaxed), side, vlan })
}
