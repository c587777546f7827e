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

use crate::act::{blame, packet_id};
use crate::decide::{self, Early, Verdict};
use crate::frame::{Egress, Resize, Side, Stamp, Strip};
use crate::tables::{Now, Tables};

/// The way of a frame from a local interface.
#[inline(always)]
pub fn process_port<F: Resize, T: Tables>(frame: &mut F, tables: &T, ifindex: u32) -> F::Action {
    let now = tables.now();
    let verdict = decide::from_port::<Early, F, T>(frame, tables, ifindex, now);
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
        Verdict::Forward { source, to, strip } => {
            let bytes = strip.map_or_else(|| frame.len(), |strip| strip.inner_len);
            let Some(way) = way(tables, to, bytes, now) else { return frame.pass() };
            tables.count_received(source, bytes, now);
            match send(frame, tables, &way, to, strip) {
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
fn way<T: Tables>(tables: &T, to: Target, bytes: u32, now: Now) -> Option<Way<'_>> {
    match to.kind() {
        TargetKind::Port(id) => port_way(tables.port(id)?, bytes),
        TargetKind::Adjacency(id) => {
            let template = tables.adjacency(id)?.template();
            let needed = template_flag::RESOLVED | template_flag::EXPRESS;
            let fits =
                template.flags & needed == needed && bytes <= template.max_frame && tables.has_lease(now);
            fits.then_some(Way::Adjacency(template))
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
    fits.then_some(Way::Port(Egress { ifindex, side: Side::Out }))
}

#[inline(always)]
fn send<F: Resize, T: Tables>(
    frame: &mut F,
    tables: &T,
    way: &Way<'_>,
    to: Target,
    strip: Option<Strip>,
) -> Result<F::Action, DropReason> {
    match way {
        Way::Port(egress) => {
            if let Some(strip) = strip {
                frame.strip(strip)?;
            }
            frame.redirect(*egress)
        }
        Way::Adjacency(template) => {
            let id = packet_id(tables, template, to);
            let egress = Egress { ifindex: template.ifindex, side: Side::Out };
            match strip {
                None => {
                    frame.encapsulate(template, Stamp::own(id))?;
                    frame.redirect(egress)
                }
                Some(strip) => {
                    frame.relay(template, Stamp { id, hops: strip.hops - 1 }, strip)?;
                    let back = template.flags & template_flag::SENDS_BACK != 0;
                    if back { frame.redirect_back(egress) } else { frame.redirect(egress) }
                }
            }
        }
    }
}
