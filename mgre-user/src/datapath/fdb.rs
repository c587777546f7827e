//! The FDB's one writer.

use std::collections::{HashMap, HashSet, VecDeque};

use mgre_common::fdb::{Bucket, FdbHash, FdbKey, QUARANTINE_SECONDS, SEEN_STATIC, SLOTS, Slot};
use mgre_common::target::Target;

use super::shared::SharedArray;
use super::wait_for_programs;

/// There is no room for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the FDB is full")]
pub struct Full;

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Segment and address.
    pub key: FdbKey,
    /// Where it points.
    pub target: Target,
    /// When the address was last seen, by the clock; none if the entry does not age.
    pub seen: Option<u32>,
}

/// Writes the FDB that the datapath reads, by the protocol of [`mgre_common::fdb`].
/// The table itself is the only list of entries there is; beside it stand only
/// counts, and the slots that rest.
#[derive(Debug)]
pub struct Fdb {
    table: SharedArray<Bucket>,
    hash: FdbHash,
    capacity: u32,
    entries: u32,
    learned: HashMap<Target, u32>,
    learned_in: HashMap<u16, u32>,
    resting: VecDeque<(u64, u32)>,
    resting_slots: HashSet<u64>,
}

impl Fdb {
    /// Over an empty table.
    pub fn new(table: SharedArray<Bucket>, hash: FdbHash, capacity: u32) -> Self {
        Self {
            table,
            hash,
            capacity,
            entries: 0,
            learned: HashMap::new(),
            learned_in: HashMap::new(),
            resting: VecDeque::new(),
            resting_slots: HashSet::new(),
        }
    }

    /// How many entries there are.
    pub const fn len(&self) -> u32 {
        self.entries
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// How many there may be.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// How many addresses were learned from a target.
    pub fn learned_from(&self, target: Target) -> u32 {
        self.learned.get(&target).copied().unwrap_or(0)
    }

    /// How many addresses were learned in a segment.
    pub fn learned_in(&self, segment: u16) -> u32 {
        self.learned_in.get(&segment).copied().unwrap_or(0)
    }

    fn slot(&self, key: FdbKey) -> Option<&Slot> {
        self.hash.find(key, |index| self.table.get(index))
    }

    /// The entry of a key.
    pub fn find(&self, key: FdbKey) -> Option<Entry> {
        self.slot(key).map(slot_entry)
    }

    /// Adds an entry, or replaces the one that is there. `seen` is none for one that does not age.
    ///
    /// # Errors
    /// No room.
    pub fn set(&mut self, key: FdbKey, target: Target, seen: Option<u32>) -> Result<(), Full> {
        let stamp = seen.unwrap_or(SEEN_STATIC);
        if let Some(old) = self.find(key) {
            if let Some(slot) = self.slot(key) {
                slot.retarget(target, stamp);
            }
            self.count(&old, false);
        } else {
            if self.entries >= self.capacity {
                return Err(Full);
            }
            if self.free_slot(key).is_none() {
                self.make_room(key)?;
            }
            self.free_slot(key).ok_or(Full)?.insert(key, target, stamp);
        }
        self.count(&Entry { key, target, seen }, true);
        Ok(())
    }

    /// Where a new entry goes: its first bucket while that has room to spare, so that
    /// most lookups touch one cache line; else the emptier of the two.
    fn free_slot(&self, key: FdbKey) -> Option<&Slot> {
        let choices = [0, 1].map(|choice| self.hash.bucket(key, choice));
        let free = choices.map(|bucket| self.free_in(bucket).count());
        let bucket = if free[0] >= SLOTS / 2 || free[0] >= free[1] { choices[0] } else { choices[1] };
        self.free_in(bucket).next()
    }

    /// Makes room in one of a key's buckets when both are full: moves an entry that
    /// has room in its other bucket. A reader finds it in the one or in the other
    /// at all times, and its old slot is free once no reader is left that saw it there.
    fn make_room(&mut self, key: FdbKey) -> Result<(), Full> {
        let (number, slot, moved, to) = [0, 1]
            .into_iter()
            .map(|choice| self.hash.bucket(key, choice))
            .flat_map(|bucket| {
                let slots = self.table.get(bucket).map(|bucket| &bucket.slots).into_iter().flatten();
                slots.enumerate().map(move |(index, slot)| (bucket, slot_number(bucket, index), slot))
            })
            .filter(|(_, _, slot)| !slot.holds(FdbKey::EMPTY))
            .find_map(|(bucket, number, slot)| {
                let other = [0, 1]
                    .into_iter()
                    .map(|choice| self.hash.bucket(slot.key(), choice))
                    .find(|other| *other != bucket)?;
                Some((number, slot, slot_entry(slot), self.free_in(other).next()?))
            })
            .ok_or(Full)?;
        to.insert(moved.key, moved.target, moved.seen.unwrap_or(SEEN_STATIC));
        slot.clear();
        wait_for_programs();
        // Nobody reads it any more: it need not rest.
        self.resting_slots.remove(&number);
        Ok(())
    }

    fn free_in(&self, bucket: u32) -> impl Iterator<Item = &Slot> {
        let slots = self.table.get(bucket).map(|bucket| bucket.slots.as_slice()).unwrap_or_default();
        slots
            .iter()
            .enumerate()
            .filter(move |(index, slot)| {
                slot.holds(FdbKey::EMPTY) && !self.resting_slots.contains(&slot_number(bucket, *index))
            })
            .map(|(_, slot)| slot)
    }

    /// Removes an entry.
    pub fn remove(&mut self, key: FdbKey, now: u32) -> Option<Entry> {
        let (number, removed) = [0, 1].into_iter().find_map(|choice| {
            let bucket = self.hash.bucket(key, choice);
            let slots = &self.table.get(bucket)?.slots;
            let index = slots.iter().position(|slot| slot.holds(key))?;
            let removed = slot_entry(&slots[index]);
            slots[index].clear();
            Some((slot_number(bucket, index), removed))
        })?;
        self.resting.push_back((number, now));
        self.resting_slots.insert(number);
        self.count(&removed, false);
        Some(removed)
    }

    /// Removes every entry that `which` picks, and says which they were.
    pub fn remove_where(&mut self, now: u32, which: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let picked: Vec<Entry> = self.iter().filter(which).collect();
        picked.iter().filter_map(|entry| self.remove(entry.key, now)).collect()
    }

    /// Lets slots that have rested be used again.
    pub fn wake(&mut self, now: u32) {
        while let Some(&(number, since)) = self.resting.front() {
            if now.saturating_sub(since) < QUARANTINE_SECONDS {
                break;
            }
            self.resting.pop_front();
            self.resting_slots.remove(&number);
        }
    }

    /// Every entry.
    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        (0..self.table.len())
            .filter_map(|index| self.table.get(index))
            .flat_map(|bucket| &bucket.slots)
            .filter(|slot| !slot.holds(FdbKey::EMPTY))
            .map(slot_entry)
    }

    fn count(&mut self, entry: &Entry, added: bool) {
        let step = |count: &mut u32| {
            *count = if added { *count + 1 } else { count.saturating_sub(1) };
            *count
        };
        step(&mut self.entries);
        if entry.seen.is_none() {
            return;
        }
        if step(self.learned.entry(entry.target).or_default()) == 0 {
            self.learned.remove(&entry.target);
        }
        let segment = entry.key.segment();
        if step(self.learned_in.entry(segment).or_default()) == 0 {
            self.learned_in.remove(&segment);
        }
    }
}

fn slot_number(bucket: u32, index: usize) -> u64 {
    u64::from(bucket) * SLOTS as u64 + index as u64
}

/// A slot as an entry.
pub(super) fn slot_entry(slot: &Slot) -> Entry {
    let seen = Some(slot.seen()).filter(|seen| *seen != SEEN_STATIC);
    Entry { key: slot.key(), target: slot.target(), seen }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mgre_common::fdb::{buckets_for, hash_shift};
    use mgre_common::wire::MacAddr;
    use proptest::prelude::*;

    use super::*;

    fn fdb(capacity: u32) -> Fdb {
        let buckets = buckets_for(capacity);
        let multipliers = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];
        let hash = FdbHash { shift: hash_shift(buckets), multipliers };
        Fdb::new(SharedArray::anonymous(buckets), hash, capacity)
    }

    fn key(number: u32) -> FdbKey {
        let [a, b, c, d] = number.to_be_bytes();
        FdbKey::new(1 + (number % 3) as u16, MacAddr([2, 0, a, b, c, d]))
    }

    #[test]
    fn holds_as_many_as_it_says_and_then_refuses() {
        let mut fdb = fdb(20_000);
        for number in 0..20_000 {
            fdb.set(key(number), Target::port(number), Some(1)).expect("room");
        }
        assert_eq!(fdb.set(key(20_000), Target::port(1), Some(1)), Err(Full));
        assert_eq!((fdb.len(), fdb.iter().count()), (20_000, 20_000));
        for number in 0..20_000 {
            assert_eq!(fdb.find(key(number)).map(|entry| entry.target), Some(Target::port(number)));
        }
    }

    #[test]
    fn an_entry_moves_aside_and_is_never_missed() {
        // As full as it gets: without moves, some of these have no room.
        let mut fdb = fdb(128 * 1024);
        let count = fdb.capacity;
        for number in 0..count {
            fdb.set(key(number), Target::port(number), None).expect("room");
        }
        for number in 0..count {
            let found = fdb.find(key(number)).map(|entry| (entry.target, entry.seen));
            assert_eq!(found, Some((Target::port(number), None)));
        }
    }

    #[test]
    fn a_slot_rests_before_it_is_used_again() {
        let mut fdb = fdb(1);
        for round in 0..64 {
            fdb.set(key(round), Target::port(1), Some(round)).expect("room");
            let used = fdb.slot(key(round)).map(std::ptr::from_ref).expect("there");
            fdb.remove(key(round), 5).expect("there");
            // The same key again at once goes elsewhere, while there is elsewhere.
            if round < 4 {
                fdb.set(key(round), Target::port(2), Some(round)).expect("room");
                assert_ne!(fdb.slot(key(round)).map(std::ptr::from_ref), Some(used));
                fdb.remove(key(round), 5).expect("there");
            }
            fdb.wake(5 + QUARANTINE_SECONDS);
            assert!(fdb.resting.is_empty());
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u32, bool),
        Remove(u32),
        RemoveTarget(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u32..40, 0u32..4, any::<bool>()).prop_map(|(n, t, s)| Step::Set(n, t, s)),
            2 => (0u32..40).prop_map(Step::Remove),
            1 => (0u32..4).prop_map(Step::RemoveTarget),
        ]
    }

    proptest! {
        #[test]
        fn does_what_a_map_does(steps in prop::collection::vec(step(), 0..200)) {
            let mut fdb = fdb(64);
            let mut model: BTreeMap<FdbKey, Entry> = BTreeMap::new();
            for (now, step) in steps.into_iter().enumerate() {
                // Each step is long after the one before.
                let now = now as u32 * QUARANTINE_SECONDS;
                fdb.wake(now);
                match step {
                    Step::Set(number, target, learned) => {
                        let entry =
                            Entry { key: key(number), target: Target::port(target), seen: learned.then_some(now) };
                        fdb.set(entry.key, entry.target, entry.seen).expect("room");
                        model.insert(entry.key, entry);
                    }
                    Step::Remove(number) => {
                        prop_assert_eq!(fdb.remove(key(number), now), model.remove(&key(number)));
                    }
                    Step::RemoveTarget(target) => {
                        let target = Target::port(target);
                        let removed = fdb.remove_where(now, |entry| entry.target == target);
                        let before = model.len();
                        model.retain(|_, entry| entry.target != target);
                        prop_assert_eq!(removed.len(), before - model.len());
                    }
                }
                let mut entries: Vec<Entry> = fdb.iter().collect();
                entries.sort_by_key(|entry| entry.key);
                prop_assert_eq!(entries, model.values().copied().collect::<Vec<_>>());
                prop_assert_eq!(fdb.len() as usize, model.len());
                for target in (0..4).map(Target::port) {
                    let learned =
                        model.values().filter(|entry| entry.target == target && entry.seen.is_some()).count();
                    prop_assert_eq!(fdb.learned_from(target) as usize, learned);
                }
            }
        }
    }
}
