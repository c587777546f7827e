//! The engine's part in learning: takes events, carries decisions out, ages.

use std::collections::BTreeMap;
use std::ops::Range;

use aya::maps::{MapData, RingBuf};
use mgre_common::event::LearnEvent;
use mgre_common::fdb::FdbKey;
use mgre_common::neighbor::NeighborEvent;
use mgre_common::tally::segment;
use mgre_common::target::{Target, TargetKind};
use mgre_common::wire::MacAddr;

use super::engine::Engine;
use crate::api::messages::{EventKind, HeldView, Place};
use crate::datapath::fdb::Entry;
use crate::learn::{Decision, Known, Sighting, decide};

/// Events taken in one go, before the engine looks at what else there is to do.
const BATCH: usize = 1024;

impl Engine {
    /// Takes events from the ring; says whether it is empty.
    pub(super) fn learn(&mut self, ring: &mut RingBuf<MapData>) -> bool {
        for _ in 0..BATCH {
            let Some(item) = ring.next() else { return true };
            let claim = bytemuck::try_pod_read_unaligned::<NeighborEvent>(&item);
            let event = bytemuck::try_pod_read_unaligned::<LearnEvent>(&item);
            drop(item);
            match (event, claim) {
                (Ok(event), _) => self.learn_one(&event),
                (_, Ok(claim)) => self.hear(&claim),
                (Err(error), _) => tracing::error!(%error, "an event of the wrong size"),
            }
        }
        false
    }

    fn learn_one(&mut self, event: &LearnEvent) {
        self.datapath.tallies.count_event();
        if let Some(about) = event.probe() {
            return self.probed(event, about);
        }
        let (key, source) = (event.key, Target::from_bits(event.source));
        // The event may be older than the last change.
        if self.segment_of(source) != Some(key.segment()) {
            return;
        }
        let known = match self.datapath.fdb.find(key) {
            None => Known::Nothing,
            Some(Entry { seen: None, .. }) => Known::Fixed,
            Some(Entry { seen: Some(seen), held: true, target, .. }) => Known::Held(target, seen),
            Some(entry) => Known::Learned(entry.target),
        };
        let Some(segment) = self.segment_quota(key.segment()) else { return };
        let now = self.datapath.now();
        let peer = self.peer_quota(source).map(|(_, quota)| quota);
        let sighting = Sighting { key, source, now };
        match decide(&mut self.damper, sighting, known, peer, segment) {
            Decision::Nothing | Decision::Refuse | Decision::Stay => {}
            Decision::Hold(home) => self.hold(key, home),
            Decision::Learn => self.set_learned(key, source, None),
            Decision::Move => {
                self.datapath.tallies.count(key.segment(), segment::MOVES);
                let from = match known {
                    Known::Learned(target) | Known::Held(target, _) => Some(target),
                    Known::Nothing | Known::Fixed => None,
                };
                self.set_learned(key, source, from);
                if matches!(known, Known::Held(..)) {
                    self.datapath.fdb.hold(key, true);
                }
            }
        }
    }

    fn set_learned(&mut self, key: FdbKey, target: Target, from: Option<Target>) {
        let now = self.datapath.now();
        if self.datapath.fdb.set(key, target, Some(now)).is_err() {
            // Said once a second: there may be thousands.
            self.unlearned += 1;
            return;
        }
        let entry = Entry { key, target, seen: Some(now), held: false };
        match from.and_then(|from| self.index.place(from)) {
            Some(from) => {
                self.emit_fdb(&entry, |segment, mac, place| EventKind::FdbMoved { segment, mac, place, from })
            }
            None => {
                self.emit_fdb(&entry, |segment, mac, place| EventKind::FdbLearned { segment, mac, place })
            }
        }
        self.update_peer(target);
        if let Some(from) = from {
            self.update_peer(from);
        }
        self.update_segment(key.segment());
    }

    /// Holds an address at a place: it was seen there and elsewhere by turns.
    fn hold(&mut self, key: FdbKey, home: Target) {
        let known = self.datapath.fdb.find(key).map(|entry| entry.target);
        if let Some(known) = known.filter(|known| *known != home) {
            // The place may be gone by now.
            if self.segment_of(home) != Some(key.segment()) {
                return self.damper.forget_address(key);
            }
            self.set_learned(key, home, Some(known));
        }
        self.datapath.fdb.hold(key, true);
        self.datapath.tallies.count(key.segment(), segment::HOLDS);
        if self.newly_held.is_empty() {
            self.probe();
        }
        let Some(hold) = self.damper.hold(key) else { return };
        let Some(other) = self.index.place(hold.other) else { return };
        self.newly_held.push(hold);
        let seconds = hold.quiet_seconds;
        let entry = Entry { key, target: home, seen: None, held: true };
        self.emit_fdb(&entry, |segment, mac, place| EventKind::FdbHeld {
            segment,
            mac,
            place,
            other,
            seconds,
        });
    }

    /// Lets go what has been quiet, and says in the log what was not. Called once a second.
    pub(super) fn damp(&mut self, now: u32) {
        for key in self.damper.forget(now) {
            self.datapath.fdb.hold(key, false);
            if let Some(entry) = self.datapath.fdb.find(key) {
                self.emit_fdb(&entry, |segment, mac, place| EventKind::FdbReleased { segment, mac, place });
            }
        }
        self.unblock(now);
        self.probe();
        let held = std::mem::take(&mut self.newly_held);
        let Some(first) = held.first() else { return };
        let segment = self.index.segment(first.key.segment()).unwrap_or("?");
        let place =
            |target| self.index.place(target).map_or_else(|| "?".to_owned(), |place| place.to_string());
        tracing::warn!(
            "{} in segment {segment} is seen at {} and at {} by turns, and held at the first: a loop, or an \
             address used twice{}",
            first.key.mac(),
            place(first.home),
            place(first.other),
            if held.len() > 1 { format!(" (and {} other addresses)", held.len() - 1) } else { String::new() },
        );
    }

    /// How many addresses are held, by segment.
    pub(super) fn held(&self) -> BTreeMap<u16, u64> {
        let mut counts = BTreeMap::new();
        for hold in self.damper.held() {
            *counts.entry(hold.key.segment()).or_default() += 1;
        }
        counts
    }

    /// The same with the segments' names.
    pub(super) fn held_views(&self) -> Vec<HeldView> {
        let view = |(id, addresses): (u16, u64)| {
            Some(HeldView { segment: self.index.segment(id)?.to_owned(), addresses })
        };
        self.held().into_iter().filter_map(view).collect()
    }

    /// Forgets addresses that were not seen for their segment's ageing time. Called
    /// once a second, and looks at a share of the table: all of it takes milliseconds
    /// when it is large.
    pub(super) fn age(&mut self, now: u32) {
        let ages: std::collections::HashMap<u16, u32> =
            self.state.segments.values().map(|segment| (segment.id, segment.aging_seconds)).collect();
        let Some(shortest) = ages.values().min() else { return };
        // An entry may live an eighth longer than it should, at most half a minute.
        let every = (shortest / 8).clamp(1, 30);
        if self.datapath.fdb.is_empty() {
            return;
        }
        let share = share(self.datapath.fdb.buckets(), now, every);
        let aged = self.datapath.fdb.remove_in(share, |entry| {
            let limit = ages.get(&entry.key.segment()).copied().unwrap_or(0);
            entry.seen.is_some_and(|seen| now.saturating_sub(seen) >= limit)
        });
        for entry in &aged {
            self.emit_fdb(entry, |segment, mac, place| EventKind::FdbAged { segment, mac, place });
        }
        self.forget_neighbors(&aged);
        self.touched.entries(&aged);
        self.update_limits();
    }

    /// The segment that a port or an adjacency is in.
    fn segment_of(&self, target: Target) -> Option<u16> {
        match target.kind() {
            TargetKind::Port(id) => self.plan.ports.get(&id).map(|port| port.segment),
            TargetKind::Adjacency(id) => self.plan.adjacencies.get(&id).map(|record| record.segment),
            TargetKind::None => None,
        }
    }

    /// Tells those who listen about an FDB entry, if its segment and place still have names.
    pub(super) fn emit_fdb(&self, entry: &Entry, kind: impl FnOnce(String, MacAddr, Place) -> EventKind) {
        if !self.is_heard() {
            return;
        }
        let segment = self.index.segment(entry.key.segment());
        if let (Some(segment), Some(place)) = (segment, self.index.place(entry.target)) {
            self.emit(kind(segment.to_owned(), entry.key.mac(), place));
        }
    }
}

/// Which of so many buckets it is the turn of: each of them once in `every` seconds.
fn share(buckets: u32, now: u32, every: u32) -> Range<u32> {
    let start = |part: u32| (u64::from(buckets) * u64::from(part) / u64::from(every)) as u32;
    let part = now % every;
    start(part)..start(part + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_has_its_turn() {
        for (buckets, every) in [(17, 30), (1088, 1), (557_056, 30), (u32::MAX, 7)] {
            let mut next = 0;
            for now in 5 * every..6 * every {
                let share = share(buckets, now, every);
                assert_eq!(share.start, next);
                next = share.end;
            }
            assert_eq!(next, buckets);
        }
    }
}
