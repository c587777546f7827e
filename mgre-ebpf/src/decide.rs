//! From a frame and the tables to a verdict.
//!
//! A hook is the last one, or an early one that leaves to the last what it cannot
//! finish. The last one counts a frame as received and reports its source while it
//! decides; an early one does neither before it knows that it will finish the frame.
//! The age of an address is noted by both: to write that twice is to write it once.

use core::sync::atomic::Ordering;

use mgre_common::event::LearnEvent;
use mgre_common::fdb::FdbHash;
use mgre_common::reason::{Direction, DropReason};
use mgre_common::table::{Indexed, adjacency_flag, port_flag, segment_flag};
use mgre_common::target::{Target, TargetKind};
use mgre_common::wire::ETHERNET_LEN;

use crate::frame::{Ethernet, Frame, Strip};
use crate::outer::{self, Outer};
use crate::tables::{Now, Tables};

/// What is to happen to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to one port or adjacency.
    Forward {
        /// Where it came from.
        source: Target,
        /// Where it goes.
        to: Target,
        /// Outer headers to take off first.
        strip: Option<Strip>,
    },
    /// It goes to all of a segment.
    Flood {
        /// Where it came from, and does not go back to.
        source: Target,
        /// The segment.
        segment: u32,
        /// Outer headers to take off first.
        strip: Option<Strip>,
    },
    /// It is the next hook's to decide.
    Defer,
    /// It is not for us.
    Pass,
    /// The kernel handles it, and that is counted.
    PassCounted(DropReason),
    /// It ends here.
    Drop {
        /// Whose counter counts it.
        target: Target,
        /// Which way it was going.
        direction: Direction,
        /// Why.
        reason: DropReason,
    },
}

/// Which hook decides.
pub trait Stage {
    /// Whether another hook comes after it.
    const EARLY: bool;
}

/// The hook that every frame can be finished at: TC.
#[derive(Clone, Copy, Debug)]
pub struct Last;

/// A hook before that, for known unicast: XDP.
#[derive(Clone, Copy, Debug)]
pub struct Early;

impl Stage for Last {
    const EARLY: bool = false;
}

impl Stage for Early {
    const EARLY: bool = true;
}

impl Verdict {
    #[inline(always)]
    const fn refuse(target: Target, reason: DropReason) -> Self {
        Self::Drop { target, direction: Direction::Receive, reason }
    }
}

/// A frame that a local interface gave us.
#[inline(always)]
pub fn from_port<S: Stage, F: Frame, T: Tables>(frame: &F, tables: &T, ifindex: u32, now: Now) -> Verdict {
    let (id, segment) = match tables.indexed_port(ifindex) {
        Some(Indexed { port, segment }) => (port, segment),
        None => {
            let Some(id) = tables.any_port_of(ifindex) else { return Verdict::Pass };
            let Some(port) = tables.port(id) else {
                return Verdict::refuse(Target::port(id), DropReason::Internal);
            };
            if port.flags.load(Ordering::Relaxed) & port_flag::VALID == 0 {
                return Verdict::Pass;
            }
            (id, port.segment.load(Ordering::Relaxed))
        }
    };
    let source = Target::port(id);
    let Some(ethernet) = Ethernet::read(frame, 0) else {
        return Verdict::refuse(source, DropReason::Malformed);
    };
    let arrival = Arrival { source, segment, strip: None, now };
    arrival.decide::<S, T>(tables, &ethernet, frame.len())
}

/// A packet that the underlay gave us.
#[inline(always)]
pub fn from_underlay<S: Stage, F: Frame, T: Tables>(frame: &F, tables: &T, now: Now) -> Verdict {
    let (id, segment, strip) = match outer::parse(frame, tables) {
        Outer::From { adjacency, segment, strip } => (adjacency, segment, strip),
        Outer::Foreign => return Verdict::Pass,
        Outer::Kernel(reason) => return Verdict::PassCounted(reason),
        Outer::Refused(reason) => return Verdict::refuse(Target::NONE, reason),
    };
    let source = Target::adjacency(id);
    let segment = match segment {
        Some(segment) => segment,
        None => {
            let Some(adjacency) = tables.adjacency(id) else {
                return Verdict::refuse(source, DropReason::Internal);
            };
            if adjacency.flags.load(Ordering::Relaxed) & adjacency_flag::VALID == 0 {
                return Verdict::refuse(Target::NONE, DropReason::UnknownEndpoint);
            }
            adjacency.segment.load(Ordering::Relaxed)
        }
    };
    // The outer headers' length is one of a few; told apart, each is a constant
    // that the bounds check needs.
    let ethernet = match strip.outer_len {
        38 => Ethernet::read(frame, 38),
        42 => Ethernet::read(frame, 42),
        46 => Ethernet::read(frame, 46),
        _ => None,
    };
    let Some(ethernet) = ethernet else { return Verdict::refuse(source, DropReason::Malformed) };
    let arrival = Arrival { source, segment, strip: Some(strip), now };
    arrival.decide::<S, T>(tables, &ethernet, strip.inner_len)
}

const _: () = assert!(ETHERNET_LEN + 20 + 4 == 38);

/// Whether a segment is one in which frames go from tunnel to tunnel.
#[inline(always)]
pub(crate) fn is_hub<T: Tables>(tables: &T, segment: u32) -> bool {
    let flags = tables.segment(segment).map(|segment| segment.flags.load(Ordering::Relaxed));
    flags.is_some_and(|flags| flags & segment_flag::HUB != 0)
}

/// A frame that arrived in a segment.
struct Arrival {
    source: Target,
    segment: u32,
    strip: Option<Strip>,
    now: Now,
}

impl Arrival {
    #[inline(always)]
    fn decide<S: Stage, T: Tables>(&self, tables: &T, ethernet: &Ethernet, bytes: u32) -> Verdict {
        if !S::EARLY {
            tables.count_received(self.source, bytes, self.now);
        }
        let hash = tables.fdb_hash();
        // By the time that the source has been looked up, this one is near, too.
        tables.fdb_ahead(hash, ethernet.destination(self.segment));
        match self.admit(tables, hash, ethernet) {
            Ok(None) => {}
            Ok(Some(_)) if S::EARLY => return Verdict::Defer,
            Ok(Some(event)) => tables.report(&event, self.source),
            Err(reason) => return Verdict::refuse(self.source, reason),
        }
        self.switch(tables, hash, ethernet)
    }

    #[inline(always)]
    fn switch<T: Tables>(&self, tables: &T, hash: FdbHash, ethernet: &Ethernet) -> Verdict {
        let Self { source, segment, strip, .. } = *self;
        let flood = Verdict::Flood { source, segment, strip };
        if ethernet.is_to_group() {
            return flood;
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
            && let Some(strip) = strip
            && let Err(reason) = self.relay(tables, strip)
        {
            return Verdict::refuse(source, reason);
        }
        Verdict::Forward { source, to, strip }
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

    /// Checks the source address; says what to report if it is new here.
    #[inline(always)]
    fn admit<T: Tables>(
        &self,
        tables: &T,
        hash: FdbHash,
        ethernet: &Ethernet,
    ) -> Result<Option<LearnEvent>, DropReason> {
        if !ethernet.is_from_station() {
            return Err(DropReason::SourceMacInvalid);
        }
        let key = ethernet.source(self.segment);
        let mut known = Target::NONE;
        if let Some(slot) = tables.fdb(hash, key) {
            let binding = slot.binding();
            known = binding.target();
            if known == self.source {
                slot.touch(self.now.seconds);
                return Ok(None);
            }
            if binding.is_fixed() {
                return Err(DropReason::StaticMacMoved);
            }
        }
        if known.is_none() && (self.source_full(tables) || self.segment_full(tables)) {
            return Err(DropReason::MacLimit);
        }
        Ok(Some(LearnEvent { key, source: self.source.to_bits(), known: known.to_bits() }))
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
