//! Tells the datapath which peers and segments may have no more addresses learned.

use std::collections::HashSet;

use mgre_common::target::Target;

use super::engine::Engine;
use crate::datapath::fdb::Entry;
use crate::learn::Quota;
use crate::model::{Peer, State};

/// Where the count of addresses, or the limit, may have changed.
#[derive(Debug, Default)]
pub(super) struct Touched(HashSet<(Target, u16)>);

impl Touched {
    /// A target in a segment; [`Target::NONE`] for the segment alone.
    pub(super) fn insert(&mut self, target: Target, segment: u16) {
        self.0.insert((target, segment));
    }

    /// Where these entries are or were.
    pub(super) fn entries(&mut self, entries: &[Entry]) {
        self.0.extend(entries.iter().map(|entry| (entry.target, entry.key.segment())));
    }

    /// Peers and segments that are not the same in two states.
    pub(super) fn states(&mut self, old: &State, new: &State) {
        use imbl::ordmap::DiffItem;
        for item in old.segments.diff(&new.segments) {
            if let DiffItem::Update { new: (_, segment), .. } = item {
                self.insert(Target::NONE, segment.id);
            }
        }
        for item in old.peers.diff(&new.peers) {
            let DiffItem::Update { new: (_, peer), .. } = item else { continue };
            for (segment, id) in &peer.segments {
                if let Some(segment) = new.segments.get(segment) {
                    self.insert(Target::adjacency(*id), segment.id);
                }
            }
        }
    }
}

impl Engine {
    pub(super) fn segment_quota(&self, id: u16) -> Option<Quota> {
        let segment = self.state.segments.get(self.index.segment(id)?)?;
        Some(Quota { learned: self.datapath.fdb.learned_in(id), limit: segment.max_macs })
    }

    /// The peer that an adjacency is of, and its quota over all its segments.
    pub(super) fn peer_quota(&self, target: Target) -> Option<(&Peer, Quota)> {
        let peer = self.state.peers.get(self.index.peer(target)?)?;
        let targets = peer.segments.values().map(|id| Target::adjacency(*id));
        let learned = targets.map(|target| self.datapath.fdb.learned_from(target)).sum();
        Some((peer, Quota { learned, limit: peer.max_macs }))
    }

    /// Tells the datapath about whatever was touched.
    pub(super) fn update_limits(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        let segments: HashSet<u16> = touched.0.iter().map(|(_, segment)| *segment).collect();
        for (target, _) in touched.0 {
            self.update_peer(target);
        }
        segments.into_iter().for_each(|segment| self.update_segment(segment));
    }

    /// Whether the peer that an adjacency is of may have more.
    pub(super) fn update_peer(&mut self, target: Target) {
        let Some((peer, quota)) = self.peer_quota(target) else { return };
        let full = quota.is_full();
        let differs = |id: &&u32| self.full.contains(&Target::adjacency(**id)) != full;
        let changed: Vec<Target> =
            peer.segments.values().filter(differs).map(|id| Target::adjacency(*id)).collect();
        for target in changed {
            if full {
                self.full.insert(target)
            } else {
                self.full.remove(&target)
            };
            self.datapath.set_full(target, full);
        }
    }

    /// Whether a segment may have more.
    pub(super) fn update_segment(&mut self, id: u16) {
        let Some(full) = self.segment_quota(id).map(Quota::is_full) else { return };
        let changed = if full { self.full_segments.insert(id) } else { self.full_segments.remove(&id) };
        if changed {
            self.datapath.set_segment_full(id, full);
        }
    }
}
