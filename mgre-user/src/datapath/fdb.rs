//! The FDB's one writer.

use std::collections::{HashMap, HashSet, VecDeque};

use mgre_common::fdb::{Bucket, FdbHash, FdbKey, QUARANTINE_SECONDS, SEEN_STATIC, SLOTS, Slot};
use mgre_common::target::Target;

use super::shared::SharedArray;

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
