//! Which ids are free.
//!
//! The datapath and frames on their way may still know an id for a moment after
//! its owner is gone, so an id that was lately freed rests before it is used
//! again. The engine says which ones do.

use std::collections::BTreeSet;

use mgre_common::table::DEFAULT_ADJACENCIES;

/// What the model needs to know to give out ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Segment ids that rest.
    pub resting_segments: BTreeSet<u16>,
    /// Port ids that rest.
    pub resting_ports: BTreeSet<u32>,
    /// Adjacency ids that rest.
    pub resting_adjacencies: BTreeSet<u32>,
    /// Adjacencies that the instance has room for; ids are below it.
    pub adjacency_capacity: u32,
}

impl Default for Ids {
    fn default() -> Self {
        Self {
            resting_segments: BTreeSet::new(),
            resting_ports: BTreeSet::new(),
            resting_adjacencies: BTreeSet::new(),
            adjacency_capacity: DEFAULT_ADJACENCIES,
        }
    }
}

/// Gives out the lowest id that is neither used nor resting. Ids are not given
/// back: those freed while it lives rest too, so the lowest one only grows.
#[derive(Debug)]
pub(super) struct Pool {
    taken: BTreeSet<u32>,
    next: u32,
    end: u32,
}

impl Pool {
    /// Ids from `first` to below `end`.
    pub(super) fn new(first: u32, end: u32, taken: impl Iterator<Item = u32>) -> Self {
        Self { taken: taken.collect(), next: first, end }
    }

    /// The lowest free id, or none.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        while self.next < self.end {
            let id = self.next;
            self.next += 1;
            if !self.taken.contains(&id) {
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_free_first() {
        let mut pool = Pool::new(1, 6, [2, 3, 9].into_iter());
        assert_eq!([(); 4].map(|()| pool.allocate()), [Some(1), Some(4), Some(5), None]);
    }
}
