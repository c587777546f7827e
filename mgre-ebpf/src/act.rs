//! Carries a verdict out.

use core::sync::atomic::Ordering;

use mgre_common::reason::{Direction, DropReason};
use mgre_common::table::{Port, Template, port_flag, template_flag};
use mgre_common::target::{Target, TargetKind};

use crate::decide::{self, Last, Verdict};
use crate::flood;
use crate::frame::{Egress, Frame, Replicate, Resize, Side, Stamp, Strip, inner_wire_len, wire_len};
use crate::tables::{Now, Tables};

/// The whole way of a frame from a local interface.
#[inline(always)]
pub fn process_port<F: Replicate, T: Tables>(frame: &mut F, tables: &T, ifindex: u32) -> F::Action {
    let now = tables.now();
    let verdict = decide::from_port::<Last, F, T>(frame, tables, ifindex, now);
    act(frame, tables, verdict, now)
}

/// The whole way of a packet from the underlay.
#[inline(always)]
pub fn process_underlay<F: Replicate, T: Tables>(frame: &mut F, tables: &T) -> F::Action {
    let now = tables.now();
    let verdict = decide::from_underlay::<Last, F, T>(frame, tables, now);
    act(frame, tables, verdict, now)
}

#[inline(always)]
fn act<F: Replicate, T: Tables>(frame: &mut F, tables: &T, verdict: Verdict, now: Now) -> F::Action {
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
        Verdict::Forward { source, to, strip } => match forward(frame, tables, to, strip, now) {
            Ok(action) => action,
            Err(reason) => {
                let (target, direction) = blame(source, to);
                tables.count_drop(target, direction, reason);
                frame.drop()
            }
        },
        Verdict::Flood { source, segment, strip } => {
            let bytes = inner_len(frame, strip);
            flood::flood(frame, tables, source, segment, strip, bytes)
        }
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
fn inner_len<F: Frame>(frame: &F, strip: Option<Strip>) -> u32 {
    strip.map_or_else(|| frame.len(), |strip| strip.inner_len)
}

#[inline(always)]
fn forward<F: Resize, T: Tables>(
    frame: &mut F,
    tables: &T,
    to: Target,
    strip: Option<Strip>,
    now: Now,
) -> Result<F::Action, DropReason> {
    let bytes = inner_len(frame, strip);
    match to.kind() {
        TargetKind::Port(id) => {
            let port = tables.port(id).ok_or(DropReason::Internal)?;
            let egress = port_egress(port, frame.segment_size(), bytes)?;
            if let Some(strip) = strip {
                frame.strip(strip)?;
            }
            let action = frame.redirect(egress)?;
            tables.count_sent(to, bytes);
            Ok(action)
        }
        TargetKind::Adjacency(id) => {
            let template = tables.adjacency(id).ok_or(DropReason::Internal)?.template();
            let action = tunnel(frame, tables, template, to, strip, now)?;
            tables.count_sent(to, bytes);
            Ok(action)
        }
        TargetKind::None => Err(DropReason::Internal),
    }
}

/// Sends a frame into a tunnel: one of our own, or one out of another tunnel.
#[inline(always)]
fn tunnel<F: Resize, T: Tables>(
    frame: &mut F,
    tables: &T,
    template: &Template,
    to: Target,
    strip: Option<Strip>,
    now: Now,
) -> Result<F::Action, DropReason> {
    let id = packet_id(tables, template, to);
    match strip {
        None => {
            let egress = unicast_egress(frame, tables, template, wire_len(frame), now)?;
            frame.encapsulate(template, Stamp::own(id))?;
            frame.redirect(egress)
        }
        Some(strip) => {
            let egress = unicast_egress(frame, tables, template, inner_wire_len(frame, strip), now)?;
            frame.relay(template, Stamp { id, hops: strip.hops - 1 }, strip)?;
            frame.redirect(egress)
        }
    }
}

/// Where a frame of this length on the wire goes through a template, if it may: to the
/// next hop in it as long as the daemon answers for that; then to the one that the
/// kernel finds, which it does for what it takes for an IP packet.
#[inline(always)]
fn unicast_egress<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    template: &Template,
    frame_len: u32,
    now: Now,
) -> Result<Egress, DropReason> {
    let flags = template.flags;
    if flags & template_flag::RESOLVED != 0 && tables.has_lease(now) {
        return adjacency_egress(template, frame_len);
    }
    if flags & template_flag::ROUTED == 0 || !frame.carries_ip() {
        return adjacency_egress(template, frame_len);
    }
    if frame_len > template.max_frame {
        return Err(DropReason::TooBig);
    }
    Ok(Egress { ifindex: template.ifindex, side: Side::Neighbor })
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
    Ok(Egress { ifindex: port.ifindex.load(Ordering::Relaxed), side })
}

/// Where a frame of this length on the wire goes through a template as it is, if it may.
#[inline(always)]
pub(crate) fn adjacency_egress(template: &Template, frame_len: u32) -> Result<Egress, DropReason> {
    if template.flags & template_flag::RESOLVED == 0 {
        return Err(DropReason::NoNextHop);
    }
    if frame_len > template.max_frame {
        return Err(DropReason::TooBig);
    }
    Ok(Egress { ifindex: template.ifindex, side: Side::Out })
}

/// The outer IPv4 identification: zero where nobody may fragment the packet (RFC 6864 4.1).
#[inline(always)]
pub(crate) fn packet_id<T: Tables>(tables: &T, template: &Template, to: Target) -> u16 {
    if template.flags & template_flag::NEEDS_ID != 0 { tables.packet_id(to) } else { 0 }
}
