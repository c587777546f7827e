//! The FDB's one writer.

mod resting;

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;

use mgre_common::fdb::{Bucket, FdbHash, FdbKey, SEEN_STATIC, SLOTS, Slot};
use mgre_common::target::Target;

use self::resting::Resting;
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
    /// Whether it does not move for now.
    pub held: bool,
}

/// One slot of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    bucket: u32,
    index: usize,
}

/// One in so many slots may rest before the writer waits for programs to end
/// rather than fill the stash.
const RESTING_SHARE: u32 = 16;

/// Writes the FDB that the datapath reads, by the protocol of [`mgre_common::fdb`].
/// The table itself is the only list of entries there is; beside it stand only
/// counts, and two bits for each slot.
#[derive(Debug)]
pub struct Fdb {
    table: SharedArray<Bucket>,
    hash: FdbHash,
    capacity: u32,
    entries: u32,
    learned: HashMap<Target, u32>,
    learned_in: HashMap<u16, u32>,
    resting: Resting,
}

impl Fdb {
    /// Over an empty table.
    pub fn new(table: SharedArray<Bucket>, hash: FdbHash, capacity: u32) -> Self {
        let resting = Resting::new(table.len());
        Self {
            table,
            hash,
            capacity,
            entries: 0,
            learned: HashMap::new(),
            learned_in: HashMap::new(),
            resting,
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

    /// One in ordinary memory.
    #[cfg(test)]
    pub(crate) fn in_memory(capacity: u32) -> Self {
        let buckets = mgre_common::fdb::buckets_for(capacity);
        let shift = mgre_common::fdb::hash_shift(buckets);
        let hash = FdbHash { shift, multipliers: [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f] };
        Self::new(SharedArray::anonymous(mgre_common::fdb::table_len(buckets)), hash, capacity)
    }

    /// How many addresses were learned from a target.
    pub fn learned_from(&self, target: Target) -> u32 {
        self.learned.get(&target).copied().unwrap_or(0)
    }

    /// How many addresses were learned in a segment.
    pub fn learned_in(&self, segment: u16) -> u32 {
        self.learned_in.get(&segment).copied().unwrap_or(0)
    }

    /// How many buckets the table has, the stash among them.
    pub const fn buckets(&self) -> u32 {
        self.table.len()
    }

    fn slot(&self, key: FdbKey) -> Option<&Slot> {
        self.hash.find(key, |index| self.table.get(index))
    }

    fn place_of(&self, key: FdbKey) -> Option<Place> {
        let last = Cell::new(0);
        self.hash.find(key, |bucket| {
            last.set(bucket);
            self.table.get(bucket)
        })?;
        // It was found in the bucket that was looked at last.
        let bucket = last.get();
        let index = self.table.get(bucket)?.slots.iter().position(|slot| slot.holds(key))?;
        Some(Place { bucket, index })
    }

    fn at(&self, place: Place) -> Option<&Slot> {
        self.table.get(place.bucket)?.slots.get(place.index)
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
        if let Some(slot) = self.slot(key) {
            let old = slot_entry(slot);
            slot.retarget(target, stamp);
            self.count(&old, false);
        } else {
            let place = self.room_for(key)?;
            self.at(place).ok_or(Full)?.insert(key, target, stamp);
            if place.bucket >= self.hash.buckets() {
                self.mark(self.hash.bucket(key, 0), true);
            }
        }
        self.count(&Entry { key, target, seen, held: false }, true);
        Ok(())
    }

    /// Holds an entry where it is, or lets it go; nothing if there is none.
    pub fn hold(&mut self, key: FdbKey, held: bool) {
        if let Some(slot) = self.slot(key) {
            slot.hold(held);
        }
    }

    /// A free slot for a new entry: in its own buckets, or in the stash; and after
    /// what rests there has been let rest, or something was moved.
    fn room_for(&mut self, key: FdbKey) -> Result<Place, Full> {
        if self.entries >= self.capacity {
            return Err(Full);
        }
        if let Some(place) = self.own_room(key) {
            return Ok(place);
        }
        if self.resting.len() > self.table.len() * SLOTS as u32 / RESTING_SHARE {
            self.let_rest();
        }
        let stash = self.hash.stash(self.hash.bucket(key, 0));
        if let Some(place) = self.own_room(key).or_else(|| self.free_in(stash).next()) {
            return Ok(place);
        }
        self.let_rest();
        self.own_room(key).or_else(|| self.free_in(stash).next()).or_else(|| self.move_aside(key)).ok_or(Full)
    }

    /// Where a new entry goes: its home bucket while that has room to spare, so that
    /// most lookups touch one cache line; else the emptier of the two.
    fn own_room(&self, key: FdbKey) -> Option<Place> {
        let choices = [0, 1].map(|choice| self.hash.bucket(key, choice));
        let free = choices.map(|bucket| self.free_in(bucket).count());
        let bucket = if free[0] >= SLOTS / 2 || free[0] >= free[1] { choices[0] } else { choices[1] };
        self.free_in(bucket).next()
    }

    fn free_in(&self, bucket: u32) -> impl Iterator<Item = Place> {
        self.places_in(bucket)
            .filter(|(place, slot)| slot.holds(FdbKey::EMPTY) && !self.resting.contains(*place))
            .map(|(place, _)| place)
    }

    fn places_in(&self, bucket: u32) -> impl Iterator<Item = (Place, &Slot)> {
        let slots = self.table.get(bucket).map(|bucket| bucket.slots.as_slice()).unwrap_or_default();
        slots.iter().enumerate().map(move |(index, slot)| (Place { bucket, index }, slot))
    }

    /// Waits until no program is left that may look at a slot that rests.
    fn let_rest(&mut self) {
        if self.resting.len() > 0 {
            wait_for_programs();
            self.resting.clear();
        }
    }

    /// Makes room in one of a key's buckets when they and the stash are full: moves
    /// an entry that has room in its other bucket. Readers find it at all times, and
    /// its old slot is free when no reader is left that saw it there.
    fn move_aside(&self, key: FdbKey) -> Option<Place> {
        let choices = [0, 1].map(|choice| self.hash.bucket(key, choice));
        let (place, slot, to) =
            choices.into_iter().flat_map(|bucket| self.places_in(bucket)).find_map(|(place, slot)| {
                let buckets = [0, 1].map(|choice| self.hash.bucket(slot.key(), choice));
                let other = buckets.into_iter().find(|other| *other != place.bucket)?;
                Some((place, slot, self.at(self.free_in(other).next()?)?))
            })?;
        to.stage(slot.target(), slot.seen());
        to.hold(slot.binding().is_held());
        wait_for_programs();
        to.publish(slot.key());
        wait_for_programs();
        slot.unpublish();
        wait_for_programs();
        slot.unstage();
        wait_for_programs();
        Some(place)
    }

    fn mark(&self, home: u32, overflowed: bool) {
        if let Some(bucket) = self.table.get(home) {
            bucket.set_overflowed(overflowed);
        }
    }

    /// Removes an entry.
    pub fn remove(&mut self, key: FdbKey) -> Option<Entry> {
        let place = self.place_of(key)?;
        self.vacate(place)
    }

    fn vacate(&mut self, place: Place) -> Option<Entry> {
        let slot = self.at(place)?;
        let removed = slot_entry(slot);
        slot.clear();
        self.resting.insert(place);
        if place.bucket >= self.hash.buckets() {
            let home = self.hash.bucket(removed.key, 0);
            let is_last = self
                .places_in(place.bucket)
                .all(|(_, slot)| slot.holds(FdbKey::EMPTY) || self.hash.bucket(slot.key(), 0) != home);
            if is_last {
                self.mark(home, false);
            }
        }
        self.count(&removed, false);
        Some(removed)
    }

    /// Removes every entry that `which` picks, and says which they were.
    pub fn remove_where(&mut self, which: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        self.remove_in(0..self.buckets(), which)
    }

    /// The same, in some of the buckets.
    pub fn remove_in(&mut self, buckets: Range<u32>, which: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let mut removed = Vec::new();
        for bucket in buckets {
            for index in 0..SLOTS {
                let place = Place { bucket, index };
                let picked =
                    self.at(place).is_some_and(|slot| !slot.holds(FdbKey::EMPTY) && which(&slot_entry(slot)));
                if picked {
                    removed.extend(self.vacate(place));
                }
            }
        }
        removed
    }

    /// Lets slots that have rested be used again.
    pub fn wake(&mut self, now: u32) {
        self.resting.wake(now);
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

/// A slot as an entry.
pub(super) fn slot_entry(slot: &Slot) -> Entry {
    let seen = Some(slot.seen()).filter(|seen| *seen != SEEN_STATIC);
    Entry { key: slot.key(), target: slot.target(), seen, held: slot.binding().is_held() }
}

#[cfg(test)]
mod tests;
