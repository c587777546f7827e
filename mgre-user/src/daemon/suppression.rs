//! The engine's part in answering ARP and ND: takes claims, carries decisions out, forgets.

use std::collections::HashMap;

use mgre_common::neighbor::{NeighborEvent, NeighborKey, NeighborRecord, neighbor_flag};
use mgre_common::tally::segment;
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use super::engine::Engine;
use crate::api::messages::{EventKind, NeighborFilter, NeighborFlag, NeighborView, Problem};
use crate::datapath::fdb::Entry;
use crate::neighbors::{Claim, Decision};

impl Engine {
    /// Takes a claim that the datapath reports.
    pub(super) fn hear(&mut self, event: &NeighborEvent) {
        let claim = Claim {
            key: event.neighbor(),
            binding: event.binding(),
            source: Target::from_bits(event.source),
        };
        // It may be older than the last change, or of one whose MAC address was not learned.
        if !self.suppresses(claim.key.segment) || self.place_of(&claim) != Some(claim.source) {
            return;
        }
        let now = self.datapath.now();
        match self.neighbors.hear(&claim, now) {
            Decision::Learn => {
                if self.write(&claim, now) {
                    self.tell(&claim.key, |segment, this| EventKind::NeighborLearned {
                        segment,
                        address: claim.key.address(),
                        mac: claim.binding.mac(),
                        place: this.index.place(claim.source).unwrap_or_default(),
                    });
                }
            }
            Decision::Renew => drop(self.write(&claim, now)),
            Decision::Move(old_mac) => {
                if self.write(&claim, now) {
                    self.tell(&claim.key, |segment, this| EventKind::NeighborMoved {
                        segment,
                        address: claim.key.address(),
                        mac: claim.binding.mac(),
                        place: this.index.place(claim.source).unwrap_or_default(),
                        old_mac,
                    });
                }
            }
            Decision::Duplicate(other) => self.found_duplicate(&claim, other),
            // The datapath has marked it, and so it stays.
            Decision::Wait | Decision::Refuse => {}
        }
    }

    fn found_duplicate(&mut self, claim: &Claim, other: MacAddr) {
        let (address, mac) = (claim.key.address(), claim.binding.mac());
        self.datapath.tallies.count(claim.key.segment, segment::DUPLICATES);
        let now = self.datapath.now();
        let segment = self.index.segment(claim.key.segment).unwrap_or("?");
        self.duplicates_told.say(now, || {
            tracing::warn!(segment, %address, %mac, %other, "two hosts have one address");
        });
        self.tell(&claim.key, |segment, _| EventKind::NeighborDuplicate {
            segment,
            address,
            mac,
            other_mac: other,
        });
    }

    fn suppresses(&self, segment: u16) -> bool {
        self.plan.floods.get(&segment).is_some_and(|targets| targets.suppress)
    }

    /// Where the FDB has a claimant's MAC address.
    fn place_of(&self, claim: &Claim) -> Option<Target> {
        self.datapath.fdb.find(claim.host()).map(|entry| entry.target)
    }

    /// Writes down what is believed; says whether that could be done.
    fn write(&mut self, claim: &Claim, now: u32) -> bool {
        let record = NeighborRecord { binding: claim.binding, seen: now, contested: 0 };
        let written = self.datapath.neighbors.set(&claim.key, record);
        if let Err(error) = &written {
            tracing::debug!("{error:#}");
            self.neighbors.remove(&claim.key);
            self.datapath.neighbors.remove(&claim.key);
        }
        written.is_ok()
    }

    fn forget_neighbor(&mut self, key: &NeighborKey) {
        self.datapath.neighbors.remove(key);
        if let Some(known) = self.neighbors.remove(key) {
            let (address, mac) = (key.address(), known.binding.mac());
            self.tell(key, |segment, _| EventKind::NeighborRemoved { segment, address, mac });
        }
    }

    /// Forgets the addresses of hosts that left the FDB.
    pub(super) fn forget_neighbors(&mut self, removed: &[Entry]) {
        if self.neighbors.is_empty() {
            return;
        }
        for key in removed.iter().flat_map(|entry| self.neighbors.of_host(entry.key)).collect::<Vec<_>>() {
            self.forget_neighbor(&key);
        }
    }

    /// Forgets all addresses in a segment that suppresses ARP and ND no more.
    pub(super) fn forget_segment_neighbors(&mut self, segment: u16) {
        if self.neighbors.count_in(segment) > 0 {
            self.neighbors.in_segment(segment).iter().for_each(|key| self.forget_neighbor(key));
        }
    }

    /// Forgets what was not confirmed for its segment's ageing time, and ends disputes. Called once
    /// a second.
    pub(super) fn age_neighbors(&mut self, now: u32) {
        self.neighbors.settle(now).iter().for_each(|key| self.forget_neighbor(key));
        let mut aging: HashMap<u16, u32> = HashMap::new();
        while let Some(key) = self.neighbors.next_due(now) {
            let limit = *aging.entry(key.segment).or_insert_with(|| self.aging_of(key.segment));
            let seen = self.datapath.neighbors.get(&key).map_or(0, |record| record.seen);
            if !self.neighbors.stays(key, seen, limit, now) {
                self.forget_neighbor(&key);
            }
        }
    }

    fn aging_of(&self, segment: u16) -> u32 {
        let segment = self.index.segment(segment).and_then(|name| self.state.segments.get(name));
        segment.map_or(0, |segment| segment.aging_seconds)
    }

    /// Takes over what an earlier daemon had learned, as far as the FDB knows the hosts.
    ///
    /// # Errors
    /// There is something to take over, but it cannot be looked at.
    pub(super) fn inherit_neighbors(&mut self) -> anyhow::Result<()> {
        let Some(from) = self.datapath.left_behind_neighbors()? else { return Ok(()) };
        let now = self.datapath.now();
        for (key, record) in from.iter() {
            let mut claim = Claim { key, binding: record.binding, source: Target::NONE };
            let suppresses =
                self.compiled.plan.floods.get(&key.segment).is_some_and(|targets| targets.suppress);
            let Some(place) = self.place_of(&claim).filter(|_| suppresses) else { continue };
            claim.source = place;
            // Who is contested stays so until somebody claims the address again.
            if self.neighbors.hear(&claim, now) == Decision::Learn
                && let Err(error) = self.datapath.neighbors.set(&key, record)
            {
                self.neighbors.remove(&key);
                return Err(error);
            }
        }
        Ok(())
    }

    /// What is known, by segment and address.
    pub(super) fn list_neighbors(&self, filter: &NeighborFilter) -> Result<Vec<NeighborView>, Problem> {
        let only = match &filter.segment {
            None => None,
            Some(name) => {
                let segment = self.state.segments.get(name);
                Some(segment.ok_or_else(|| Problem::not_found(format!("there is no segment {name}")))?.id)
            }
        };
        let now = self.datapath.now();
        let mut views: Vec<NeighborView> = self
            .neighbors
            .iter()
            .filter(|(key, _)| only.is_none_or(|only| key.segment == only))
            .filter_map(|(key, known)| {
                let claim = Claim { key: *key, binding: known.binding, source: Target::NONE };
                let place = self.index.place(self.place_of(&claim)?)?;
                let record = self.datapath.neighbors.get(key)?;
                let flags = [
                    (known.binding.flags() & neighbor_flag::ROUTER != 0).then_some(NeighborFlag::Router),
                    known.is_duplicate().then_some(NeighborFlag::Duplicate),
                ];
                Some(NeighborView {
                    segment: self.index.segment(key.segment)?.to_owned(),
                    address: key.address(),
                    mac: known.binding.mac(),
                    peer: place.peer,
                    port: place.port,
                    flags: flags.into_iter().flatten().collect(),
                    age_seconds: u64::from(now.saturating_sub(record.seen)),
                })
            })
            .collect();
        views.sort_unstable_by(|a, b| (&a.segment, a.address).cmp(&(&b.segment, b.address)));
        Ok(views)
    }

    /// Tells those who listen, if the segment still has a name.
    fn tell(&self, key: &NeighborKey, kind: impl FnOnce(String, &Self) -> EventKind) {
        if self.is_heard()
            && let Some(segment) = self.index.segment(key.segment)
        {
            self.emit(kind(segment.to_owned(), self));
        }
    }
}

/// Says something at most once in a while.
#[derive(Debug, Default)]
pub(super) struct Sparingly(Option<u32>);

impl Sparingly {
    /// Seconds between two times.
    const PAUSE: u32 = 10;

    fn say(&mut self, now: u32, what: impl FnOnce()) {
        if self.0.is_none_or(|last| now.saturating_sub(last) >= Self::PAUSE) {
            self.0 = Some(now);
            what();
        }
    }
}
