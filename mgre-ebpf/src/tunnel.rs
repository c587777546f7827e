//! Sends a frame into a tunnel: one of our own, or one out of another tunnel.
//!
//! What cannot be finished here goes by way of the *slow interface*, which the daemon
//! keeps: a frame that needs its inner checksum finished or must not be a superframe
//! (GRE checksums, sequence numbers, a tunnel inside) comes back from there as frames of the wire's size,
//! marked with its target; a packet that must be fragmented outside is sent by the daemon.

use mgre_common::event::TooBigHead;
use mgre_common::reason::DropReason;
use mgre_common::table::{Template, template_flag, template_option};
use mgre_common::target::{Mark, Target, TargetKind};
use mgre_common::wire::{ETHERNET_LEN, EtherType, IPV4_LEN, VLAN_TAG_LEN};

use crate::dress::{Dressing, Outside, Via};
use crate::frame::{Bare, Egress, Frame, Replicate, Resize, Side, Stamp, Strip};
use crate::inner::{Inner, ecn};
use crate::stamp::{Traits, next_sequence, packet_id};
use crate::superframe::{
    inner_wire_len, is_cut_first, is_cut_on_the_way, segments, shed_jumbo_header, wire_len,
};
use crate::tables::{Now, Tables};
use crate::verdict::OutOf;

/// Where a frame came from, where it goes, and the bytes that it counts for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Journey {
    pub(crate) source: Target,
    pub(crate) to: Target,
    pub(crate) bytes: u32,
}

/// Every host must be able to send IPv6 packets of this length (RFC 8200 5).
const IPV6_MIN_MTU: u32 = 1280;

/// What is to become of a frame that is longer than its template takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TooLong {
    /// Its sender is told, and it is dropped.
    Tell,
    /// It goes, and the outer packet in fragments.
    Fragment,
    /// It is dropped.
    Drop,
}

/// Sends a frame to a peer.
#[inline(always)]
pub(crate) fn send<F: Replicate, T: Tables>(
    frame: &mut F,
    tables: &T,
    via: Via<'_>,
    journey: Journey,
    out_of: Option<OutOf>,
    now: Now,
) -> Result<F::Action, DropReason> {
    let template = via.template;
    if out_of.is_none() {
        shed_jumbo_header(frame);
    }
    let (outer_len, frame_len) = match out_of {
        None => (0, wire_len(frame)),
        Some(OutOf { strip, .. }) => (strip.outer_len, inner_wire_len(frame, strip)),
    };
    if template.options != 0 {
        carries(frame, template, outer_len)?;
    }
    if frame_len > template.max_frame {
        too_long(frame, tables, template, journey, outer_len, frame_len)?;
    }
    let cut_first = match out_of {
        None => is_cut_first(frame),
        Some(_) => !frame.may_rest_on(template) || is_cut_on_the_way(frame),
    };
    if needs_finishing(template) || cut_first {
        return to_be_finished(frame, tables, journey, out_of);
    }
    let asks = if out_of.is_some() { frame.is_taken_for(template) } else { frame.carries_ip() };
    let egress =
        if frame_len > template.max_frame { slow(tables)? } else { egress(tables, template, asks, now)? };
    let (traits, hops, outside) = match out_of {
        None => (Traits::read(frame, 0, template.options), u8::MAX, Outside::Nothing),
        Some(out_of) => {
            let traits = relayed_traits(frame, out_of, template.options);
            (traits, out_of.strip.hops - 1, Outside::Received(out_of.strip))
        }
    };
    let stamp = traits.stamp(tables, template, journey.to, hops);
    match frame.dress(tables, Dressing { adjacency: via.id, index: via.index, stamp, outside }) {
        Err(Bare::Refused) if frame.segment_size() != 0 => {
            return to_be_finished(frame, tables, journey, out_of);
        }
        dressed => dressed?,
    }
    finish(frame, tables, journey.to, egress, journey.bytes)
}

/// Sends a frame to a peer that asks for nothing special; does nothing if the frame or the peer needs more than the
/// template's header.
#[inline(always)]
pub(crate) fn send_plain<F: Replicate, T: Tables>(
    frame: &mut F,
    tables: &T,
    template: &Template,
    journey: Journey,
    now: Now,
) -> Option<Result<F::Action, DropReason>> {
    if template.options != 0
        || frame.has_tag_beside()
        || wire_len(frame) > template.max_frame
        || is_cut_first(frame)
    {
        return None;
    }
    let sent = match egress(tables, template, frame.carries_ip(), now) {
        Ok(egress) => match wrap_plain(frame, tables, template, journey.to) {
            Ok(()) => finish(frame, tables, journey.to, egress, journey.bytes),
            Err(Bare::Refused) if frame.segment_size() != 0 => return None,
            Err(bare) => Err(bare.into()),
        },
        Err(reason) => Err(reason),
    };
    Some(sent)
}

/// Puts the header of a template without options on a frame: there is nothing to be taken over but ECN.
#[inline(always)]
fn wrap_plain<F: Resize, T: Tables>(
    frame: &mut F,
    tables: &T,
    template: &Template,
    to: Target,
) -> Result<(), Bare> {
    let id = packet_id(tables, template, to, segments(frame));
    frame.encapsulate(template, Stamp { id, tos: ecn(frame), ..Stamp::PLAIN })
}

/// Sends a frame that came back from the slow interface: one of the wire's size, and with all
/// checksums inside. It goes no more than so many hops.
#[inline(always)]
pub(crate) fn send_finished<F: Replicate, T: Tables>(
    frame: &mut F,
    tables: &T,
    via: Via<'_>,
    mark: Mark,
    now: Now,
) -> Result<F::Action, DropReason> {
    let template = via.template;
    let bytes = frame.len();
    carries(frame, template, 0)?;
    // Who sent what does not fit and may not be fragmented was told before it went there.
    let routed = template.flags & template_flag::ROUTED != 0;
    let egress = if routed && wire_len(frame) > template.max_frame {
        slow(tables)?
    } else {
        egress(tables, template, frame.carries_ip(), now)?
    };
    let traits = Traits::read(frame, 0, template.options);
    let stamp = traits.stamp(tables, template, mark.target, mark.hops);
    frame
        .dress(tables, Dressing { adjacency: via.id, index: via.index, stamp, outside: Outside::Nothing })?;
    if needs_finishing(template) {
        let numbered = template.options & template_option::SEQUENCE != 0;
        frame.seal(template, if numbered { next_sequence(tables, mark.target) } else { 0 })?;
    }
    finish(frame, tables, mark.target, egress, bytes)
}

/// Sends what is ready, and counts it.
#[inline(always)]
pub(crate) fn finish<F: Resize, T: Tables>(
    frame: &mut F,
    tables: &T,
    to: Target,
    egress: Egress,
    bytes: u32,
) -> Result<F::Action, DropReason> {
    let action = frame.redirect(egress)?;
    tables.count_sent(to, bytes);
    Ok(action)
}

/// Whether frames for a peer must be finished before they get its header.
#[inline(always)]
pub(crate) const fn needs_finishing(template: &Template) -> bool {
    template.options & template_option::NEEDS_FINISHING != 0
}

/// The slow interface, for packets that are to be fragmented outside, or finished.
#[inline(always)]
pub(crate) fn slow<T: Tables>(tables: &T) -> Result<Egress, DropReason> {
    let ifindex = tables.slow_interface().ok_or(DropReason::TooBig)?;
    Ok(Egress::new(ifindex, Side::Out))
}

/// NVGRE carries no tag (RFC 7637 3.3).
#[inline(always)]
pub(crate) fn carries<F: Frame>(frame: &F, template: &Template, outer_len: u32) -> Result<(), DropReason> {
    if template.options & template_option::FLOW_ID == 0 {
        return Ok(());
    }
    let ethertype = frame.read_behind::<EtherType>(outer_len, ETHERNET_LEN - 2);
    if frame.has_tag_beside() || ethertype.is_some_and(EtherType::is_vlan) {
        return Err(DropReason::InnerTag);
    }
    Ok(())
}

/// Puts a template's header on a frame, or in the place of those that it came with.
#[inline(always)]
pub(crate) fn wrap<F: Resize, T: Tables>(
    frame: &mut F,
    tables: &T,
    template: &Template,
    to: Target,
    out_of: Option<OutOf>,
) -> Result<(), DropReason> {
    match out_of {
        None if template.options == 0 => Ok(wrap_plain(frame, tables, template, to)?),
        None => {
            let traits = Traits::read(frame, 0, template.options);
            Ok(frame.encapsulate(template, traits.stamp(tables, template, to, u8::MAX))?)
        }
        Some(out_of) => {
            let traits = relayed_traits(frame, out_of, template.options);
            let stamp = traits.stamp(tables, template, to, out_of.strip.hops - 1);
            frame.relay(template, stamp, out_of.strip)
        }
    }
}

/// The traits of a frame that goes from tunnel to tunnel, whose traffic class inside is not
/// brought up to date on the way: what the last outer packet said goes into the next one.
#[inline(always)]
pub(crate) fn relayed_traits<F: Frame>(frame: &F, out_of: OutOf, options: u8) -> Traits {
    let Strip { outer_len, inner_len, .. } = out_of.strip;
    let mut traits = Traits::read(frame, outer_len, options);
    // What stands behind the frame's end is padding, whatever it looks like.
    if inner_len < (ETHERNET_LEN + IPV4_LEN) as u32 {
        traits = Traits { flow: traits.flow, ..Traits::NONE }.blur(frame);
    }
    if out_of.remarks() { Traits { tos: out_of.tos, ..traits } } else { traits }
}

/// Where a frame goes through a template: to the next hop in it as long as the daemon answers
/// for that; then to the one that the kernel finds, which it does for what it takes for a packet
/// of the outer header's kind.
#[inline(always)]
fn egress<T: Tables>(
    tables: &T,
    template: &Template,
    is_taken_for_ip: bool,
    now: Now,
) -> Result<Egress, DropReason> {
    let flags = template.flags;
    let asks = flags & template_flag::ROUTED != 0 && is_taken_for_ip;
    if flags & template_flag::RESOLVED != 0 && (tables.has_lease(now) || !asks) {
        return Ok(Egress::new(template.ifindex, Side::Out));
    }
    if asks { Ok(Egress::new(template.ifindex, Side::Neighbor)) } else { Err(DropReason::NoNextHop) }
}

/// Where a copy of this length on the wire goes through a template, if it may.
#[inline(always)]
pub(crate) fn copy_egress<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    template: &Template,
    outer_len: u32,
    frame_len: u32,
) -> Result<Egress, DropReason> {
    if template.flags & template_flag::RESOLVED == 0 {
        return Err(DropReason::NoNextHop);
    }
    if frame_len <= template.max_frame {
        return Ok(Egress::new(template.ifindex, Side::Out));
    }
    match fate(frame, template, Inner::read(frame, outer_len), outer_len, frame_len) {
        TooLong::Fragment => slow(tables),
        TooLong::Tell | TooLong::Drop => Err(DropReason::TooBig),
    }
}

/// Hands a frame to the slow interface, from where it comes back for its target.
#[inline(always)]
pub(crate) fn to_be_finished<F: Replicate, T: Tables>(
    frame: &mut F,
    tables: &T,
    journey: Journey,
    out_of: Option<OutOf>,
) -> Result<F::Action, DropReason> {
    let ifindex = tables.slow_interface().ok_or(DropReason::Headroom)?;
    if let Some(out_of) = out_of {
        frame.undress(out_of)?;
    }
    let hops = out_of.map_or(u8::MAX, |out_of| out_of.strip.hops.saturating_sub(1));
    frame.set_mark(Mark { target: journey.to, hops }.to_bits());
    frame.redirect(Egress::new(ifindex, Side::Out))
}

/// Sees to a frame that does not fit; those that are to be fragmented outside may go on.
#[inline(always)]
fn too_long<F: Replicate, T: Tables>(
    frame: &mut F,
    tables: &T,
    template: &Template,
    journey: Journey,
    outer_len: u32,
    frame_len: u32,
) -> Result<(), DropReason> {
    if template.flags & template_flag::ROUTED == 0 {
        return Err(DropReason::NoNextHop);
    }
    let inner = Inner::read(frame, outer_len);
    match fate(frame, template, inner, outer_len, frame_len) {
        TooLong::Drop => Err(DropReason::TooBig),
        TooLong::Tell => {
            tell(frame, tables, template, journey, inner, outer_len, frame_len);
            Err(DropReason::TooBig)
        }
        TooLong::Fragment => {
            // On the slow interface, a mark says something else.
            frame.set_mark(0);
            Ok(())
        }
    }
}

#[inline(always)]
fn fate<F: Frame>(
    frame: &F,
    template: &Template,
    inner: Option<Inner>,
    outer_len: u32,
    frame_len: u32,
) -> TooLong {
    let may_fragment =
        if template.flags & template_flag::FRAGMENTS != 0 { TooLong::Fragment } else { TooLong::Drop };
    let Some(inner) = inner else { return may_fragment };
    let tags = if frame.has_tag_beside() { VLAN_TAG_LEN as u32 } else { 0 };
    // RFC 7676 3.2: such a packet must pass, whatever the path takes.
    if inner.version.is_v6() && frame_len - inner.l3 - tags <= IPV6_MIN_MTU {
        return TooLong::Fragment;
    }
    if inner.dont_fragment(frame, outer_len) { TooLong::Tell } else { may_fragment }
}

/// Lets the daemon tell who sent a frame what fits.
#[inline(always)]
fn tell<F: Replicate, T: Tables>(
    frame: &F,
    tables: &T,
    template: &Template,
    journey: Journey,
    inner: Option<Inner>,
    outer_len: u32,
    frame_len: u32,
) {
    let TargetKind::Adjacency(adjacency) = journey.to.kind() else { return };
    let beside = frame.tag_beside();
    let tag_len = if beside.is_some() { VLAN_TAG_LEN as u32 } else { 0 };
    let l3 = inner.map_or(ETHERNET_LEN as u32, |inner| inner.l3) + tag_len;
    let mtu = template.max_frame.saturating_sub(l3);
    let tag = beside.map_or(0, |(protocol, control)| u32::from(protocol.number()) << 16 | u32::from(control));
    let source = journey.source.to_bits();
    tables.report_too_big(
        frame,
        outer_len,
        TooBigHead { source, adjacency, mtu, frame_len, captured: journey.bytes, tag },
    );
}
