//! The pipeline over ordinary memory.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use mgre_common::counters::SegmentTraffic;
use mgre_common::fdb::{FdbKey, SEEN_STATIC};
use mgre_common::neighbor::{NeighborKey, NeighborRecord, Protocol};
use mgre_common::table::{LEASE_JIFFIES, adjacency_flag, port_flag};
use mgre_ebpf::frame::Side;
use mgre_ebpf::host::cases::{End, Entrance, captured};
use mgre_ebpf::host::frame::{HostAction, HostFrame};
use mgre_ebpf::host::tables::MemoryTables;
use mgre_ebpf::host::world::{Sink as _, StormSpec, World};
use mgre_ebpf::tables::Tables as _;
use mgre_ebpf::{act, express};

use super::compare::Comparison;
use crate::model::{Answered, Flooded, Input, Model, Moment, Numbers, Outcome, Output, Prediction};

/// The monotonic clock, which stands.
const NOW_NS: u64 = 1 << 40;
/// Length of an Ethernet header.
const HEADER_LEN: usize = 14;
/// The age that all addresses have before a frame comes.
pub(super) const UNSEEN: u32 = 1;

/// A network's tables, for the last hook alone and for the early one before it.
#[derive(Debug)]
pub struct Host {
    last: MemoryTables,
    early: MemoryTables,
    /// Peers that have sequence numbers.
    numbered: Vec<u32>,
    addresses: Vec<FdbKey>,
    storms: Vec<StormSpec>,
    held: Vec<FdbKey>,
    neighbors: Vec<(NeighborKey, NeighborRecord)>,
    model: Model,
    comparison: Comparison,
    /// Runs of the pipeline so far.
    pub executions: u64,
    /// Frames that the early hook finished.
    pub early_finished: u64,
}

/// Every interface outside takes frames from an early hook.
pub(super) fn with_early_hooks(world: &World) -> World {
    let mut world = world.clone();
    for port in &mut world.ports {
        if port.flags & port_flag::HOST == 0 {
            port.flags |= port_flag::EXPRESS;
        }
    }
    for peer in &mut world.peers {
        peer.express = true;
    }
    world
}

impl Host {
    /// Of this network.
    pub fn new(world: &World, model: Model) -> Self {
        let mut world = world.clone();
        for entry in &mut world.entries {
            if entry.seen != SEEN_STATIC {
                entry.seen = UNSEEN;
            }
        }
        let (mut last, mut early) = (MemoryTables::default(), MemoryTables::default());
        world.install(&mut last);
        with_early_hooks(&world).install(&mut early);
        let numbered = world
            .peers
            .iter()
            .filter(|peer| peer.sequence || peer.flags & adjacency_flag::SEQUENCE != 0)
            .map(|peer| peer.id)
            .collect();
        let moving = world.entries.iter().filter(|entry| entry.seen == UNSEEN);
        let addresses = moving.map(|entry| FdbKey::new(entry.segment, entry.mac)).collect();
        let comparison = Comparison::default();
        let storms = world.storms.clone();
        let neighbors = world.neighbors.clone();
        let held = world.entries.iter().filter(|entry| entry.held);
        let held = held.map(|entry| FdbKey::new(entry.segment, entry.mac)).collect();
        Self {
            last,
            early,
            numbered,
            addresses,
            storms,
            held,
            neighbors,
            model,
            comparison,
            executions: 0,
            early_finished: 0,
        }
    }

    /// Runs a frame through the last hook, or through the early one first, and compares with the model.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&mut self, input: &Input, early: bool) -> Result<Prediction, String> {
        let longer;
        let mut input = input;
        if input.bytes.len() < HEADER_LEN && matches!(input.entrance, Entrance::Slow(_)) {
            // No interface gives a frame without a header, and of ours this one is.
            longer = Input {
                bytes: [&input.bytes, &[0; HEADER_LEN][input.bytes.len()..]].concat(),
                ..input.clone()
            };
            input = &longer;
        }
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let prediction = self.model.predict(input);
            self.run(input, early, &prediction).map(|()| prediction)
        }));
        match ran {
            Ok(result) => result,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                Err(format!("panic: {}", text.unwrap_or_default()))
            }
        }
    }

    /// Whether some binding is not what it must be.
    pub fn stray_binding(&self) -> Option<NeighborKey> {
        let strays = |(key, record): &&(NeighborKey, NeighborRecord)| {
            let is = |tables: &MemoryTables| tables.neighbor(key).map(|slot| slot.record());
            [&self.last, &self.early].into_iter().any(|tables| is(tables) != Some(*record))
        };
        self.neighbors.iter().find(strays).map(|(key, _)| *key)
    }

    /// Whether some address has another age than it must have.
    pub fn stray_age(&self) -> Option<FdbKey> {
        let tables = [&self.last, &self.early];
        let strays = |key: &&FdbKey| {
            tables.iter().any(|tables| tables.slot(**key).is_some_and(|slot| slot.seen() != UNSEEN))
        };
        self.addresses.iter().find(strays).copied()
    }

    fn run(&mut self, input: &Input, early: bool, prediction: &Prediction) -> Result<(), String> {
        // XDP gets neither superframes nor tags beside the frame.
        let early = early && input.segment_size == 0 && input.tag.is_none();
        let tables = if early { &self.early } else { &self.last };
        prepare(tables, &self.numbered, &self.storms, &self.held, input.moment);
        let mut frame = HostFrame::new(input.bytes.as_slice()).with_segment_size(input.segment_size);
        if let Some(tag) = input.tag {
            frame = frame.with_tag(tag);
        }
        let mut finished = None;
        if early {
            let action = match input.entrance {
                Entrance::Port(ifindex) => express::process_port(&mut frame, tables, ifindex),
                Entrance::Underlay => express::process_underlay(&mut frame, tables),
                Entrance::Slow(_) => HostAction::Passed,
            };
            self.executions += 1;
            if action == HostAction::Passed {
                // It is left as it was; ages may have been noted already.
                let mut seen = self.observed(action, &mut frame, tables, input.moment, prediction);
                seen.seen = None;
                if seen != Outcome::default() || frame.bytes() != input.bytes {
                    return Err(format!(
                        "left by the early hook, but not before something was done: {seen:x?}"
                    ));
                }
            } else {
                self.early_finished += 1;
                finished = Some(action);
            }
        }
        let action = finished.unwrap_or_else(|| {
            self.executions += 1;
            match input.entrance {
                Entrance::Port(ifindex) => act::process_port(&mut frame, tables, ifindex),
                Entrance::Underlay => act::process_underlay(&mut frame, tables),
                Entrance::Slow(mark) => act::process_slow(&mut frame, tables, mark),
            }
        });
        let mut seen = self.observed(action, &mut frame, tables, input.moment, prediction);
        if finished.is_some() {
            reach_peers(prediction, &mut seen);
        }
        let result = self.comparison.check(prediction, &mut seen);
        let tables = if early { &self.early } else { &self.last };
        if let Some(slot) = prediction.outcome.seen.and_then(|key| tables.slot(key)) {
            slot.touch(UNSEEN);
        }
        let tables = if early { &mut self.early } else { &mut self.last };
        for key in prediction.outcome.confirmed.iter().chain(&prediction.outcome.contested) {
            if let Some((key, record)) = self.neighbors.iter().find(|(other, _)| other == key) {
                tables.neighbor(*key, *record);
            }
        }
        result.map_err(|difference| {
            let hook = if finished.is_some() { "the early hook" } else { "the last hook" };
            format!("{hook}:\n{difference}")
        })
    }

    /// What happened.
    fn observed(
        &self,
        action: HostAction,
        frame: &mut HostFrame,
        tables: &MemoryTables,
        moment: Moment,
        prediction: &Prediction,
    ) -> Outcome {
        let end = match action {
            HostAction::Passed => End::Passed,
            HostAction::Dropped => End::Dropped,
            HostAction::Sent(_) => End::Sent,
        };
        let marks = std::mem::take(&mut frame.marks);
        let outputs = std::mem::take(&mut frame.sent).into_iter().zip(marks);
        let outputs = outputs.map(|((egress, bytes), mark)| Output { egress, bytes, mark }).collect();
        let mut received = None;
        let mut transmitted = BTreeMap::new();
        for (target, row) in tables.traffic.borrow().iter() {
            if row.receive_packets > 0 {
                assert_eq!((row.receive_packets, received), (1, None), "received twice");
                received = Some((*target, row.receive_bytes));
            }
            if row.transmit_packets > 0 {
                transmitted.insert(*target, (row.transmit_packets, row.transmit_bytes));
            }
        }
        let floods = tables.floods.borrow();
        assert!(floods.len() <= 1, "flooded twice");
        let (flooded, answered) =
            floods.iter().next().map_or((None, None), |(id, row)| segment_row(*id, row));
        let wanted = &prediction.outcome;
        let binding = |key: &NeighborKey| Some(tables.neighbor(key)?.record());
        let confirmed =
            wanted.confirmed.filter(|key| binding(key).is_some_and(|record| record.seen == moment.seconds));
        let contested =
            wanted.contested.filter(|key| binding(key).is_some_and(|record| record.contested != 0));
        let seen = prediction
            .outcome
            .seen
            .filter(|key| tables.slot(*key).is_some_and(|slot| slot.seen() == moment.seconds));
        let changed = |id: &u32| {
            let sequence = tables.sequence(*id)?;
            let (received, sent) =
                (sequence.received.load(Ordering::Relaxed), sequence.sent.load(Ordering::Relaxed));
            Some((*id, numbers(received, sent, moment)?))
        };
        let charge = |storm: &&StormSpec| {
            let word = tables.storm(storm.source).map(|word| word.paid().load(Ordering::Relaxed));
            word != Some(paid(storm, NOW_NS, moment))
        };
        Outcome {
            end,
            received,
            outputs,
            transmitted,
            drops: tables.drops.borrow().clone(),
            reports: tables.reports.borrow().clone(),
            flooded,
            answered,
            claims: tables.claims.borrow().clone(),
            confirmed,
            contested,
            too_big: tables.too_big.borrow().iter().map(captured).collect(),
            seen,
            numbers: self.numbered.iter().filter_map(changed).collect(),
            charged: self.storms.iter().find(charge).map(|storm| storm.source),
        }
    }
}

/// What a segment's counters say of one frame: flooded with so many copies made and lost, or answered.
pub(super) fn segment_row(id: u32, row: &SegmentTraffic) -> (Option<Flooded>, Option<Answered>) {
    let SegmentTraffic { flood_frames, flood_copies, flood_lost, arp_replies, nd_replies } = *row;
    assert!(flood_frames + arp_replies + nd_replies <= 1, "counted twice: {row:?}");
    let protocol = if arp_replies != 0 { Protocol::Arp } else { Protocol::Nd };
    let flooded = (flood_frames + flood_copies + flood_lost != 0).then_some((id, flood_copies, flood_lost));
    (flooded, (arp_replies + nd_replies != 0).then_some((id, protocol)))
}

/// Makes the tables what they are at a moment.
fn prepare(tables: &MemoryTables, numbered: &[u32], storms: &[StormSpec], held: &[FdbKey], moment: Moment) {
    tables.reset_counters();
    tables.clock.seconds.store(moment.seconds, Ordering::Relaxed);
    tables.clock.lease.store(if moment.lease { LEASE_JIFFIES } else { 0 }, Ordering::Relaxed);
    tables.nanos.set(NOW_NS);
    for storm in storms {
        if let Some(word) = tables.storm(storm.source) {
            word.paid().store(paid(storm, NOW_NS, moment), Ordering::Relaxed);
        }
    }
    if moment.paced {
        tables.paced.borrow_mut().extend(held.iter().map(|key| (*key, NOW_NS)));
    }
    let received = received_word(moment.received);
    for sequence in numbered.iter().filter_map(|id| tables.sequence(*id)) {
        sequence.sent.store(moment.sent.into(), Ordering::Relaxed);
        sequence.received.store(received, Ordering::Relaxed);
    }
}

/// XDP has no way to a veth's other end, and sends out of this one.
fn reach_peers(prediction: &Prediction, seen: &mut Outcome) {
    for (seen, wanted) in seen.outputs.iter_mut().zip(&prediction.outcome.outputs) {
        if (seen.egress.side, wanted.egress.side) == (Side::Out, Side::Peer) {
            seen.egress.side = Side::Peer;
        }
    }
}

/// Until when the frames are paid for that a source had flooded at a time.
pub(super) fn paid(storm: &StormSpec, now_ns: u64, moment: Moment) -> u64 {
    if storm.exhausted {
        return u64::MAX / 2;
    }
    now_ns + u64::from(moment.flooded) * (1_000_000_000 / u64::from(storm.limit))
}

/// How the table notes the last number received.
pub(super) fn received_word(received: Option<(u32, u32)>) -> u64 {
    received.map_or(0, |(number, at)| u64::from(at.wrapping_add(1)) << 32 | u64::from(number))
}

/// What is noted of numbers that changed.
pub(super) fn numbers(received: u64, sent: u64, moment: Moment) -> Option<Numbers> {
    if received == received_word(moment.received) && sent == u64::from(moment.sent) {
        return None;
    }
    let last = (received != 0).then_some((received as u32, ((received >> 32) as u32).wrapping_sub(1)));
    Some((last, sent as u32))
}
