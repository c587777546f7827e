//! From a frame and the tables to a verdict.
//!
//! A hook is the last one, or an early one that leaves to the last what it cannot
//! finish. The last one counts a frame as received and reports its source while it
//! decides; an early one does neither before it knows that it will finish the frame.
//! The age of an address is noted by both: to write that twice is to write it once.

use core::sync::atomic::Ordering;

use mgre_common::endpoint::Owner;
use mgre_common::event::{LearnEvent, PROBE};
use mgre_common::fdb::FdbHash;
use mgre_common::reason::DropReason;
use mgre_common::table::{Indexed, PORT_BY_VLAN, VlanKey, adjacency_flag, port_flag, segment_flag};
use mgre_common::target::{Target, TargetKind};
use mgre_common::wire::GRE_FIELD_LEN;

use crate::frame::{Ethernet, Frame, Strip};
use crate::inner::{ECN, Inner, combine_ecn};
use crate::mss::Opening;
use crate::neighbor::{self, Scene};
use crate::outer::{self, Outer, Packet, claim};
use crate::stage::Admission;
use crate::tables::{Now, Tables};
use crate::verdict::{OutOf, Verdict};

/// A port, and its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    id: u32,
    segment: u32,
}

impl Local {
    /// The port as a target.
    #[inline(always)]
    pub const fn target(self) -> Target {
        Target::port(self.id)
    }
}

/// What a local interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// A port.
    Port(Local),
    /// One that has ports by VLAN.
    ByVlan,
    /// A port that is blocked.
    Blocked(Target),
    /// Not as it should be: what to do with its frames.
    Other(Verdict),
}

/// Which port an interface is.
#[inline(always)]
pub fn interface<T: Tables>(tables: &T, ifindex: u32) -> Interface {
    match tables.indexed_port(ifindex) {
        Some(Indexed::BY_VLAN) => Interface::ByVlan,
        Some(Indexed { port, segment }) => Interface::Port(Local { id: port, segment }),
        None => match tables.any_port_of(ifindex) {
            None => Interface::Other(Verdict::Pass),
            Some(PORT_BY_VLAN) => Interface::ByVlan,
            Some(id) => recorded(tables, id),
        },
    }
}

/// Which port frames of a VLAN come from.
#[inline(always)]
pub fn vlan<T: Tables>(tables: &T, ifindex: u32, vlan: u16) -> Interface {
    match tables.vlan_port(VlanKey::new(ifindex, vlan)) {
        None => Interface::Other(Verdict::Pass),
        Some(id) => recorded(tables, id),
    }
}

/// What a port's record says.
#[inline(always)]
fn recorded<T: Tables>(tables: &T, id: u32) -> Interface {
    let Some(port) = tables.port(id) else {
        return Interface::Other(Verdict::refuse(Target::NONE, DropReason::Internal));
    };
    let flags = port.flags.load(Ordering::Relaxed);
    if flags & port_flag::VALID == 0 {
        return Interface::Other(Verdict::Pass);
    }
    if flags & port_flag::BLOCKED != 0 {
        return Interface::Blocked(Target::port(id));
    }
    Interface::Port(Local { id, segment: port.segment.load(Ordering::Relaxed) })
}

/// A frame from a port, as it is in its segment.
#[inline(always)]
pub fn from_port<S: Admission<F>, F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    port: Local,
    now: Now,
) -> Verdict {
    let source = port.target();
    if !S::EARLY {
        tables.count_received(source, frame.len(), now);
    }
    let Some(ethernet) = Ethernet::read(frame) else {
        return Verdict::refuse(source, DropReason::Malformed);
    };
    let arrival = Arrival { source, segment: port.segment, out_of: None, now };
    arrival.decide::<S, F, T>(frame, tables, &ethernet)
}

/// A packet that the underlay gave us.
#[inline(always)]
pub fn from_underlay<S: Admission<F>, F: Frame, T: Tables>(frame: &F, tables: &T, now: Now) -> Verdict {
    let packet = match outer::parse(frame, tables) {
        Outer::Foreign => return Verdict::Pass,
        _ if S::ARRIVES && frame.is_for_another() => {
            return if S::EARLY { Verdict::Defer } else { Verdict::Pass };
        }
        Outer::From(packet) => packet,
        Outer::Kernel(reason) => return Verdict::PassCounted(reason),
        Outer::Refused(reason) => return Verdict::refuse(Target::NONE, reason),
    };
    let Packet { owner, strip, claims } = packet;
    let strip = Strip { outer_len: frame.blur(strip.outer_len), ..strip };
    let source = Target::adjacency(owner.adjacency);
    let (segment, flags) = match owner {
        Owner { segment: 0, adjacency, .. } => {
            let Some(adjacency) = tables.adjacency(adjacency) else {
                return Verdict::refuse(Target::NONE, DropReason::Internal);
            };
            let flags = adjacency.flags.load(Ordering::Relaxed);
            if flags & adjacency_flag::VALID == 0 {
                return Verdict::refuse(Target::NONE, DropReason::UnknownEndpoint);
            }
            (adjacency.segment.load(Ordering::Relaxed), flags & adjacency_flag::RECEIVE)
        }
        Owner { segment, flags, .. } => (u32::from(segment), u32::from(flags)),
    };
    let summed = claims.makes(claim::CHECKSUM | claim::UDP_CHECKSUM);
    let verified = if summed { S::verify(frame, strip, claims) } else { Ok(()) };
    // What is wrong even there is counted there.
    if S::UNFINISHED && verified.is_err() && tables.slow_interface().is_some() {
        return Verdict::Unfinished { source, bytes: strip.inner_len };
    }
    if !S::EARLY {
        tables.count_received(source, strip.inner_len, now);
    }
    let Some(ethernet) = Ethernet::read_behind(frame, strip.outer_len) else {
        return Verdict::refuse(source, DropReason::Malformed);
    };
    let mut out_of = OutOf::new(strip);
    // Most packets have nothing that needs a closer look.
    if u32::from(claims.bits) | flags | u32::from(strip.tos & ECN) != 0 {
        let clamps = flags & adjacency_flag::CLAMP_MSS != 0;
        if S::EARLY && (claims.bits != 0 || clamps && Opening::read(frame, strip.outer_len).is_some()) {
            return Verdict::Defer;
        }
        match admit_packet(frame, tables, &packet, flags, &ethernet, verified, now) {
            Ok((inner, tos)) => {
                out_of = OutOf { strip, inner, tos, clamps: u32::from(clamps) }.blur(frame);
            }
            Err(reason) => return Verdict::refuse(source, reason),
        }
    }
    let arrival = Arrival { source, segment, out_of: Some(out_of), now };
    arrival.decide::<S, F, T>(frame, tables, &ethernet)
}

/// Checks what a packet claims; says what the packet inside is, and its new traffic class.
#[inline(always)]
fn admit_packet<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    packet: &Packet,
    flags: u32,
    ethernet: &Ethernet,
    verified: Result<(), DropReason>,
    now: Now,
) -> Result<(Inner, u8), DropReason> {
    let Packet { owner, strip, claims } = *packet;
    if flags & adjacency_flag::NVGRE != 0 {
        // RFC 7637 3.2: the C and S bits must be zero. 3.3: no tag inside.
        if claims.makes(claim::CHECKSUM | claim::SEQUENCE) {
            return Err(DropReason::ReservedBits);
        }
        if ethernet.ethertype().is_vlan() {
            return Err(DropReason::InnerTag);
        }
    }
    verified?;
    if claims.makes(claim::SEQUENCE) && flags & adjacency_flag::SEQUENCE != 0 {
        // The last field of the header (RFC 2890 2).
        let at = strip.outer_len - GRE_FIELD_LEN as u32;
        let number = frame.read_behind::<u32>(at, 0).map(u32::from_be).ok_or(DropReason::Malformed)?;
        let sequence = tables.sequence(owner.adjacency).ok_or(DropReason::Internal)?;
        if !sequence.accept(number, now.seconds) {
            return Err(DropReason::SequenceOld);
        }
    }
    let inner = match Inner::read(frame, strip.outer_len) {
        Some(inner) if inner.is_within(strip.inner_len) => inner,
        // What stands behind the frame's end is none of it.
        _ => {
            let OutOf { inner, tos, .. } = OutOf::NOTHING;
            return Ok((inner, tos));
        }
    };
    let ecn = combine_ecn(inner.tos, strip.tos)?;
    let uniform = flags & adjacency_flag::UNIFORM != 0;
    let dscp = if uniform { strip.tos } else { inner.tos } & !ECN;
    Ok((inner, dscp | ecn))
}

/// Whether a segment is one in which frames go from tunnel to tunnel.
#[inline(always)]
pub(crate) fn is_hub<T: Tables>(tables: &T, segment: u32) -> bool {
    let flags = tables.segment(segment).map(|segment| segment.flags.load(Ordering::Relaxed));
    flags.is_some_and(|flags| flags & segment_flag::HUB != 0)
}

/// Whether a segment does not pass frames to one of the addresses that bridges keep to one link.
#[inline(always)]
fn blocks<T: Tables>(tables: &T, segment: u32, group: u32) -> bool {
    let blocked = tables.segment(segment).map(|segment| segment.blocked_groups.load(Ordering::Relaxed));
    blocked.is_some_and(|blocked| blocked >> (group & 15) & 1 != 0)
}

// A source that is not refused, as a number that can be blurred.
const KNOWN: u32 = 0;
const HELD: u32 = 1;
const NEW: u32 = 2;
const ELSEWHERE: u32 = 3;

/// What a frame's source address is.
#[derive(Clone, Copy)]
enum Source {
    /// One that is where the FDB has it.
    Known,
    /// The same, and held there: it was seen elsewhere by turns.
    Held,
    /// One that is new here, and where it is known to be; the daemon is to hear of it.
    New(Target),
    /// One that is held elsewhere, and where; the daemon is to hear of it.
    Elsewhere(Target),
    /// One that the frame may not have.
    Refused(DropReason),
}

/// A frame that arrived in a segment.
struct Arrival {
    source: Target,
    segment: u32,
    out_of: Option<OutOf>,
    now: Now,
}

impl Arrival {
    #[inline(always)]
    fn decide<S: Admission<F>, F: Frame, T: Tables>(
        &self,
        frame: &F,
        tables: &T,
        ethernet: &Ethernet,
    ) -> Verdict {
        let hash = tables.fdb_hash();
        // By the time that the source has been looked up, this one is near, too.
        tables.fdb_ahead(hash, ethernet.destination(self.segment));
        let (kind, known) = match self.admit(tables, hash, ethernet) {
            Source::Refused(reason) => return Verdict::refuse(self.source, reason),
            Source::Known => (KNOWN, Target::NONE),
            Source::Held => (HELD, Target::NONE),
            Source::New(_) | Source::Elsewhere(_) if S::EARLY => return Verdict::Defer,
            Source::New(known) => (NEW, known),
            Source::Elsewhere(known) => (ELSEWHERE, known),
        };
        let outer_len = self.out_of.map_or(0, |out_of| out_of.strip.outer_len);
        let concerns = neighbor::concerns(frame, tables, ethernet, outer_len, self.segment);
        let concerns_neighbors = frame.blur(concerns.into()) != 0;
        if S::EARLY {
            return if concerns_neighbors { Verdict::Defer } else { self.switch(tables, hash, ethernet) };
        }
        let kind = frame.blur(kind);
        let mut event = LearnEvent {
            key: ethernet.source(self.segment),
            source: self.source.to_bits(),
            known: frame.blur(known.to_bits()),
        };
        let verdict = self.switch(tables, hash, ethernet);
        let flooded = matches!(verdict, Verdict::Flood { .. });
        let stopped = match kind {
            KNOWN => false,
            HELD => flooded && !tables.paces(event.key),
            _ => {
                let probe = if kind == NEW { ethernet.probe() } else { None };
                if let Some(about) = probe {
                    event.known = PROBE | about;
                }
                tables.report(&event, self.source);
                event.known & PROBE == PROBE || kind == ELSEWHERE && flooded
            }
        };
        if stopped {
            return Verdict::refuse(self.source, DropReason::Loop);
        }
        // What is held elsewhere is not believed.
        if concerns_neighbors && kind != ELSEWHERE {
            let Self { source, segment, now, .. } = *self;
            let len = self.out_of.map_or_else(|| frame.len(), |out_of| out_of.strip.inner_len);
            S::listen(frame, tables, &Scene { source, segment, outer_len, len, seconds: now.seconds });
        }
        verdict
    }

    #[inline(always)]
    fn switch<T: Tables>(&self, tables: &T, hash: FdbHash, ethernet: &Ethernet) -> Verdict {
        let Self { source, segment, out_of, .. } = *self;
        let flood = Verdict::Flood { source, segment, out_of };
        if ethernet.is_to_group() {
            return match ethernet.link_local_group() {
                Some(group) if blocks(tables, segment, group) => {
                    Verdict::refuse(source, DropReason::LinkLocal)
                }
                _ => flood,
            };
        }
        let to = match tables.fdb(hash, ethernet.destination(segment)) {
            Some(slot) => slot.target(),
            None => Target::NONE,
        };
        if to.is_none() {
            return flood;
        }
        // Its address is where it came from.
        if to == source {
            return Verdict::refuse(source, DropReason::NoTarget);
        }
        if to.is_adjacency()
            && let Some(OutOf { strip, .. }) = out_of
            && let Err(reason) = self.relay(tables, strip)
        {
            return Verdict::refuse(source, reason);
        }
        Verdict::Forward { source, to, out_of }
    }

    /// Whether a frame out of a tunnel may go into another tunnel.
    #[inline(always)]
    fn relay<T: Tables>(&self, tables: &T, strip: Strip) -> Result<(), DropReason> {
        // Split horizon: the other peer has had it from the sender.
        if !is_hub(tables, self.segment) {
            return Err(DropReason::NoTarget);
        }
        // Two hubs that have each other's addresses wrong would pass it to and fro.
        if strip.hops <= 1 { Err(DropReason::TtlExpired) } else { Ok(()) }
    }

    /// Checks the source address.
    #[inline(always)]
    fn admit<T: Tables>(&self, tables: &T, hash: FdbHash, ethernet: &Ethernet) -> Source {
        if !ethernet.is_from_station() {
            return Source::Refused(DropReason::SourceMacInvalid);
        }
        let key = ethernet.source(self.segment);
        if let Some(slot) = tables.fdb(hash, key) {
            let binding = slot.binding();
            let known = binding.target();
            if known == self.source {
                slot.touch(self.now.seconds);
                return if binding.is_held() { Source::Held } else { Source::Known };
            }
            if binding.is_fixed() {
                return Source::Refused(DropReason::StaticMacMoved);
            }
            if binding.is_held() {
                return Source::Elsewhere(known);
            }
            if !known.is_none() {
                return Source::New(known);
            }
        }
        if self.source_full(tables) || self.segment_full(tables) {
            return Source::Refused(DropReason::MacLimit);
        }
        Source::New(Target::NONE)
    }

    #[inline(always)]
    fn source_full<T: Tables>(&self, tables: &T) -> bool {
        const { assert!(port_flag::FULL == adjacency_flag::FULL) };
        let flags = match self.source.kind() {
            TargetKind::Port(id) => tables.port(id).map(|port| &port.flags),
            TargetKind::Adjacency(id) => tables.adjacency(id).map(|adjacency| &adjacency.flags),
            TargetKind::None => None,
        };
        flags.is_some_and(|flags| flags.load(Ordering::Relaxed) & port_flag::FULL != 0)
    }

    #[inline(always)]
    fn segment_full<T: Tables>(&self, tables: &T) -> bool {
        tables
            .segment(self.segment)
            .is_some_and(|segment| segment.flags.load(Ordering::Relaxed) & segment_flag::FULL != 0)
    }
}
