//! Which ids are free.
//!
//! The datapath and frames on their way may still know an id for a moment after
//! its owner is gone, so an id that was lately freed rests before it is used
//! again. The engine says which ones do.

use imbl::OrdSet;
use mgre_common::table::DEFAULT_ADJACENCIES;

/// What the model needs to know to give out ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Segment ids that rest.
    pub resting_segments: OrdSet<u32>,
    /// Port ids that rest.
    pub resting_ports: OrdSet<u32>,
    /// Adjacency ids that rest.
    pub resting_adjacencies: OrdSet<u32>,
    /// Adjacencies that the instance has room for; ids are below it.
    pub adjacency_capacity: u32,
}

impl Default for Ids {
    fn default() -> Self {
        Self {
            resting_segments: OrdSet::new(),
            resting_ports: OrdSet::new(),
            resting_adjacencies: OrdSet::new(),
            adjacency_capacity: DEFAULT_ADJACENCIES,
        }
    }
}

/// Used ids. Mostly they have no gaps, so the gaps are what is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct IdSet {
    /// One more than the highest used id, or zero.
    end: u32,
    /// Unused ids below `end`.
    gaps: OrdSet<u32>,
}

impl IdSet {
    /// Adds an id. To add one that is there changes nothing.
    pub(super) fn insert(&mut self, id: u32) {
        if id < self.end {
            self.gaps.remove(&id);
            return;
        }
        self.gaps.extend(self.end..id);
        self.end = id + 1;
    }

    /// Takes an id out. To take out one that is not there changes nothing.
    pub(super) fn remove(&mut self, id: u32) {
        if id >= self.end {
            return;
        }
        self.gaps.insert(id);
        while self.end > 0 && self.gaps.remove(&(self.end - 1)).is_some() {
            self.end -= 1;
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        self.end - self.gaps.len() as u32
    }

    /// Ids from `first` to below `end` that are not used, from the lowest.
    fn free(&self, first: u32, end: u32) -> impl Iterator<Item = u32> {
        self.gaps.range(first..).copied().chain(self.end.max(first)..end).take_while(move |id| *id < end)
    }
}

/// Gives out the lowest id that is neither used nor resting. Ids are not given
/// back: those freed while it lives rest too, so the lowest one only grows.
#[derive(Debug)]
pub(super) struct Pool {
    used: IdSet,
    resting: OrdSet<u32>,
    next: u32,
    end: u32,
}

impl Pool {
    /// Ids from `first` to below `end`.
    pub(super) fn new(first: u32, end: u32, used: &IdSet, resting: &OrdSet<u32>) -> Self {
        Self { used: used.clone(), resting: resting.clone(), next: first, end }
    }

    /// The lowest free id, or none.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        let id = self.used.free(self.next, self.end).find(|id| !self.resting.contains(id))?;
        self.next = id + 1;
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lowest_free_first() {
        let mut used = IdSet::default();
        [2, 9].into_iter().for_each(|id| used.insert(id));
        let mut pool = Pool::new(1, 6, &used, &[3_u32].into_iter().collect());
        assert_eq!([(); 4].map(|()| pool.allocate()), [Some(1), Some(4), Some(5), None]);
    }

    proptest! {
        #[test]
        fn a_set_of_ids_is_a_set(steps in prop::collection::vec((any::<bool>(), 0_u32..20), 0..60), first in 0_u32..20, end in 0_u32..25) {
            let (mut ids, mut model) = (IdSet::default(), BTreeSet::new());
            for (add, id) in steps {
                if add {
                    ids.insert(id);
                    model.insert(id);
                } else {
                    ids.remove(id);
                    model.remove(&id);
                }
                prop_assert_eq!(ids.len() as usize, model.len());
            }
            let free: Vec<u32> = (first..end).filter(|id| !model.contains(id)).collect();
            prop_assert_eq!(ids.free(first, end).collect::<Vec<_>>(), free);
            let mut same = IdSet::default();
            model.into_iter().rev().for_each(|id| same.insert(id));
            prop_assert_eq!(ids, same);
        }
    }
}
