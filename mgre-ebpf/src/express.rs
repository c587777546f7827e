//! The short way of known unicast through an early hook (XDP).
//!
//! Only a frame that can be finished here is changed or counted: its source is
//! known, it has one target, and the target's interface takes frames from such a
//! hook. Everything else is left, untouched, to the last hook, which decides anew.
//! Packets from nobody we know are dropped here already.

use core::sync::atomic::Ordering;

use mgre_common::reason::DropReason;
use mgre_common::table::{port_flag, template_flag, template_option};
use mgre_common::target::TargetKind;

use crate::act::blame;
use crate::decide::{self, Interface};
use crate::dress::undress;
use crate::frame::{Egress, Resize, Side};
use crate::mss::Opening;
use crate::stage::Early;
use crate::tables::{Now, Tables};
use crate::tunnel::{self, Journey};
use crate::verdict::{OutOf, Verdict};

/// The way of a frame from a local interface.
#[inline(always)]
pub fn process_port<F: Resize, T: Tables>(frame: &mut F, tables: &T, ifindex: u32) -> F::Action {
    let now = tables.now();
    let verdict = match decide::interface(tables, ifindex) {
        Interface::Port(port) => decide::from_port::<Early, F, T>(frame, tables, port, now),
        Interface::Other(verdict) => verdict,
        // Whose tag it is, the last hook sees.
        Interface::ByVlan | Interface::Blocked(_) => Verdict::Defer,
    };
    act(frame, tables, verdict, now)
}

/// The way of a packet from the underlay.
#[inline(always)]
pub fn process_underlay<F: Resize, T: Tables>(frame: &mut F, tables: &T) -> F::Action {
    let now = tables.now();
    let verdict = decide::from_underlay::<Early, F, T>(frame, tables, now);
    act(frame, tables, verdict, now)
}

#[inline(always)]
fn act<F: Resize, T: Tables>(frame: &mut F, tables: &T, verdict: Verdict, now: Now) -> F::Action {
    match verdict {
        Verdict::Drop { target, direction, reason } if target.is_none() => {
            tables.count_drop(target, direction, reason);
            frame.drop()
        }
        Verdict::Forward { source, to, out_of } => {
            let bytes = out_of.map_or_else(|| frame.len(), |out_of| out_of.strip.inner_len);
            let journey = Journey { source, to, bytes };
            let sent = match to.kind() {
                TargetKind::Port(id) => to_port(frame, tables, id, journey, out_of, now),
                TargetKind::Adjacency(id) => to_peer(frame, tables, id, journey, out_of, now),
                TargetKind::None => Err(None),
            };
            match sent {
                Ok(action) => {
                    tables.count_sent(to, bytes);
                    action
                }
                Err(None) => frame.pass(),
                Err(Some(reason)) => {
                    let (target, direction) = blame(source, to);
                    tables.count_drop(target, direction, reason);
                    frame.drop()
                }
            }
        }
        // What else is dropped is counted as received first, by the hook that counts.
        Verdict::Drop { .. }
        | Verdict::Flood { .. }
        | Verdict::Defer
        | Verdict::Unfinished { .. }
        | Verdict::Pass
        | Verdict::PassCounted(_) => frame.pass(),
    }
}

/// Delivers a frame, if it can be done from here; nothing is touched otherwise.
///
/// # Errors
/// It cannot, or it was begun and a reason says what went wrong.
#[inline(always)]
fn to_port<F: Resize, T: Tables>(
    frame: &mut F,
    tables: &T,
    id: u32,
    journey: Journey,
    out_of: Option<OutOf>,
    now: Now,
) -> Result<F::Action, Option<DropReason>> {
    let port = tables.port(id).ok_or(None)?;
    // A tag is put on by the last hook. And who takes frames from here is known for as long as the daemon looks.
    let needed = port_flag::VALID | port_flag::UP | port_flag::EXPRESS;
    if port.flags.load(Ordering::Relaxed) & (needed | port_flag::TAGGED) != needed
        || journey.bytes > port.max_frame.load(Ordering::Relaxed)
        || !tables.has_lease(now)
    {
        return Err(None);
    }
    tables.count_received(journey.source, journey.bytes, now);
    if let Some(out_of) = out_of {
        undress(frame, out_of)?;
    }
    Ok(frame.redirect(Egress::new(port.ifindex.load(Ordering::Relaxed), Side::Out))?)
}

/// The same into a tunnel.
///
/// # Errors
/// As [`to_port`].
#[inline(always)]
fn to_peer<F: Resize, T: Tables>(
    frame: &mut F,
    tables: &T,
    id: u32,
    journey: Journey,
    out_of: Option<OutOf>,
    now: Now,
) -> Result<F::Action, Option<DropReason>> {
    let template = tables.adjacency(id).ok_or(None)?.template();
    let needed = template_flag::RESOLVED | template_flag::EXPRESS;
    if template.flags & needed != needed || journey.bytes > template.max_frame || !tables.has_lease(now) {
        return Err(None);
    }
    let outer_len = out_of.map_or(0, |out_of| out_of.strip.outer_len);
    if template.options != 0 {
        let clamps = template.options & template_option::CLAMP_MSS != 0;
        if tunnel::carries(frame, template, outer_len).is_err()
            || clamps && Opening::read(frame, outer_len).is_some()
        {
            return Err(None);
        }
    }
    tables.count_received(journey.source, journey.bytes, now);
    tunnel::wrap(frame, tables, template, journey.to, out_of)?;
    let egress = Egress::new(template.ifindex, Side::Out);
    // What came out of a tunnel may go back where it came from.
    let back = out_of.is_some() && template.flags & template_flag::SENDS_BACK != 0;
    Ok(if back { frame.redirect_back(egress)? } else { frame.redirect(egress)? })
}
