//! The short way of known unicast through an early hook (XDP).
//!
//! Only a frame that can be finished here is changed or counted: its source is
//! known, it has one target, and the target's interface takes frames from such a
//! hook. Everything else is left, untouched, to the last hook, which decides anew.
//! Packets from nobody we know are dropped here already.

use core::sync::atomic::Ordering;

use mgre_common::reason::DropReason;
use mgre_common::table::{Port, Template, port_flag, template_flag};
use mgre_common::target::{Target, TargetKind};

use crate::act::{blame, take_out};
use crate::decide::{self, Early, Interface, OutOf, Verdict};
use crate::frame::{Egress, Frame, Resize, Side};
use crate::tables::{Now, Tables};
use crate::tunnel;

/// The way of a frame from a local interface.
#[inline(always)]
pub fn process_port<F: Resize, T: Tables>(frame: &mut F, tables: &T, ifindex: u32) -> F::Action {
    let now = tables.now();
    let verdict = match decide::interface(tables, ifindex) {
        Interface::Port(port) => decide::from_port::<Early, F, T>(frame, tables, port, now),
        Interface::Other(verdict) => verdict,
        // Whose tag it is, the last hook sees.
        Interface::ByVlan => Verdict::Defer,
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
            let Some(way) = way(frame, tables, to, bytes, out_of, now) else { return frame.pass() };
            tables.count_received(source, bytes, now);
            match send(frame, tables, &way, to, out_of) {
                Ok(action) => {
                    tables.count_sent(to, bytes);
                    action
                }
                Err(reason) => {
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
        | Verdict::Pass
        | Verdict::PassCounted(_) => frame.pass(),
    }
}

/// How a frame reaches its target.
enum Way<'a> {
    Port(Egress),
    Adjacency(&'a Template),
}

/// The way to a target, if a frame of this length can take it from here.
#[inline(always)]
fn way<'a, F: Frame, T: Tables>(
    frame: &F,
    tables: &'a T,
    to: Target,
    bytes: u32,
    out_of: Option<OutOf>,
    now: Now,
) -> Option<Way<'a>> {
    match to.kind() {
        TargetKind::Port(id) => port_way(tables.port(id)?, bytes),
        TargetKind::Adjacency(id) => {
            let template = tables.adjacency(id)?.template();
            let needed = template_flag::RESOLVED | template_flag::EXPRESS;
            let fits =
                template.flags & needed == needed && bytes <= template.max_frame && tables.has_lease(now);
            if !fits {
                return None;
            }
            let outer_len = out_of.map_or(0, |out_of| out_of.strip.outer_len);
            tunnel::carries(frame, template, outer_len).ok()?;
            Some(Way::Adjacency(template))
        }
        TargetKind::None => None,
    }
}

#[inline(always)]
fn port_way<'a>(port: &Port, bytes: u32) -> Option<Way<'a>> {
    let needed = port_flag::VALID | port_flag::UP | port_flag::EXPRESS;
    let fits = port.flags.load(Ordering::Relaxed) & needed == needed
        && bytes <= port.max_frame.load(Ordering::Relaxed);
    let ifindex = port.ifindex.load(Ordering::Relaxed);
    fits.then_some(Way::Port(Egress::new(ifindex, Side::Out)))
}

#[inline(always)]
fn send<F: Resize, T: Tables>(
    frame: &mut F,
    tables: &T,
    way: &Way<'_>,
    to: Target,
    out_of: Option<OutOf>,
) -> Result<F::Action, DropReason> {
    match way {
        Way::Port(egress) => {
            if let Some(out_of) = out_of {
                take_out(frame, out_of)?;
            }
            frame.redirect(*egress)
        }
        Way::Adjacency(template) => {
            tunnel::wrap(frame, tables, template, to, out_of)?;
            let egress = Egress::new(template.ifindex, Side::Out);
            // What came out of a tunnel may go back where it came from.
            let back = out_of.is_some() && template.flags & template_flag::SENDS_BACK != 0;
            if back { frame.redirect_back(egress) } else { frame.redirect(egress) }
        }
    }
}
