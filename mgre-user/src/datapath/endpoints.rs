//! The one writer of the endpoints: of the hash map that has all of them, and of the
//! index before it ([`mgre_common::endpoint`]).

use std::collections::{HashSet, VecDeque};

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, Map, MapData};
use mgre_common::endpoint::{EndpointIndex, EndpointKey, EndpointSlot, EndpointWords, Owner};
use mgre_common::fdb::QUARANTINE_SECONDS;

use super::not_there;
use super::shared::SharedArray;

/// The hash map that has all of them.
#[derive(Debug)]
pub struct EndpointMap {
    /// The map itself.
    pub map: HashMap<MapData, EndpointWords, u32>,
    capacity: usize,
}

impl EndpointMap {
    /// # Errors
    /// It is another kind of map.
    pub fn new(map: Map) -> Result<Self> {
        let capacity = match &map {
            Map::HashMap(data) => data.info()?.max_entries() as usize,
            _ => bail!("the endpoints are not in a hash map"),
        };
        Ok(Self { map: HashMap::try_from(map)?, capacity })
    }
}

/// Writes the endpoints.
#[derive(Debug)]
pub struct Endpoints {
    all: EndpointMap,
    index: Index,
}

impl Endpoints {
    /// Over empty tables.
    pub fn new(all: EndpointMap, slots: SharedArray<EndpointSlot>) -> Self {
        Self { all, index: Index::new(slots) }
    }

    /// How many there is room for.
    pub const fn capacity(&self) -> usize {
        self.all.capacity
    }

    /// Makes an endpoint an adjacency's.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn set(&mut self, key: &EndpointKey, owner: Owner, now: u32) -> Result<()> {
        self.all.map.insert(key.words(), owner.adjacency, 0).context("no room for the peer's endpoint")?;
        self.index.set(key, owner, now);
        Ok(())
    }

    /// Forgets an endpoint.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&mut self, key: &EndpointKey, now: u32) -> Result<()> {
        self.index.remove(key, now);
        Ok(self.all.map.remove(&key.words()).or_else(not_there)?)
    }

    /// Lets slots that have rested be used again.
    pub fn wake(&mut self, now: u32) {
        self.index.wake(now);
    }
}

/// Writes the index.
#[derive(Debug)]
struct Index {
    slots: SharedArray<EndpointSlot>,
    hash: EndpointIndex,
    resting: HashSet<u32>,
    since: VecDeque<(u32, u32)>,
}

impl Index {
    fn new(slots: SharedArray<EndpointSlot>) -> Self {
        let hash = EndpointIndex::new(slots.len());
        Self { slots, hash, resting: HashSet::new(), since: VecDeque::new() }
    }

    /// An endpoint for which there is no place is found in the hash map alone.
    fn set(&mut self, key: &EndpointKey, owner: Owner, now: u32) {
        if !key.is_indexed() {
            return;
        }
        self.wake(now);
        let words = key.words();
        if let Some(slot) = self.hash.find(&words, |slot| self.slots.get(slot)) {
            slot.give(owner);
            return;
        }
        let rested = self.hash.slots(&words).into_iter().filter(|slot| !self.resting.contains(slot));
        let free = rested.filter_map(|slot| self.slots.get(slot)).find(|slot| slot.is_free());
        if let Some(slot) = free {
            slot.insert(&words, owner);
        }
    }

    fn remove(&mut self, key: &EndpointKey, now: u32) {
        let words = key.words();
        for index in self.hash.slots(&words) {
            if let Some(slot) = self.slots.get(index).filter(|slot| slot.holds(&words)) {
                slot.clear();
                self.resting.insert(index);
                self.since.push_back((index, now));
                return;
            }
        }
    }

    fn wake(&mut self, now: u32) {
        while let Some((index, since)) = self.since.front()
            && now.saturating_sub(*since) >= QUARANTINE_SECONDS
        {
            self.resting.remove(index);
            self.since.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use mgre_common::endpoint::{endpoint_kind, mapped_v4};

    use super::*;

    fn key(remote: u32) -> EndpointKey {
        EndpointKey { remote: mapped_v4(remote), local: mapped_v4(1), key: 7, kind: endpoint_kind::KEYED }
    }

    fn owner(adjacency: u32) -> Owner {
        Owner { adjacency, segment: 1, flags: 0 }
    }

    fn found(index: &Index, key: &EndpointKey) -> Option<u32> {
        let slot = index.hash.find(&key.words(), |slot| index.slots.get(slot))?;
        slot.owner().map(|owner| owner.adjacency)
    }

    #[test]
    fn set_moved_and_removed() {
        let mut index = Index::new(SharedArray::anonymous(64));
        index.set(&key(1), owner(5), 1);
        assert_eq!(found(&index, &key(1)), Some(5));
        index.set(&key(1), owner(6), 1);
        assert_eq!(found(&index, &key(1)), Some(6));
        index.remove(&key(1), 1);
        index.remove(&key(1), 1);
        assert_eq!(found(&index, &key(1)), None);
        let known = EndpointKey { kind: endpoint_kind::KNOWN, ..key(2) };
        index.set(&known, owner(0), 1);
        assert_eq!(found(&index, &known), None, "such endpoints are in the hash map alone");
    }

    /// A reader may still be looking at the adjacency of a slot that was cleared.
    #[test]
    fn a_slot_rests_before_it_is_used_again() {
        let mut index = Index::new(SharedArray::anonymous(4));
        for remote in 0..4 {
            index.set(&key(remote), owner(remote), 1);
        }
        let placed: Vec<u32> = (0..4).filter(|remote| found(&index, &key(*remote)).is_some()).collect();
        placed.iter().for_each(|remote| index.remove(&key(*remote), 1));
        for remote in 0..4 {
            index.set(&key(remote), owner(remote), QUARANTINE_SECONDS);
            assert_eq!(found(&index, &key(remote)).is_some(), !placed.contains(&remote) && placed.len() < 4);
        }
        for remote in placed {
            index.set(&key(remote), owner(remote), 1 + QUARANTINE_SECONDS);
            assert_eq!(found(&index, &key(remote)), Some(remote));
        }
    }
}
