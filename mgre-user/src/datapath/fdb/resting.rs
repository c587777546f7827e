//! Slots that were emptied and that a running program may still look at.

use std::mem;

use mgre_common::fdb::{QUARANTINE_SECONDS, SLOTS};

use super::Place;

/// A bit for each slot, twice: what was emptied lately, and what was emptied before
/// that. After a quarantine the older ones are free, and the younger are the older:
/// a slot rests for one quarantine at least, and for two at most.
#[derive(Debug)]
pub(super) struct Resting {
    young: Bits,
    old: Bits,
    turned: u32,
}

#[derive(Debug)]
struct Bits {
    words: Vec<u64>,
    count: u32,
}

impl Resting {
    /// For a table of so many buckets, of which none rests.
    pub(super) fn new(buckets: u32) -> Self {
        Self { young: Bits::new(buckets), old: Bits::new(buckets), turned: 0 }
    }

    /// How many slots rest.
    pub(super) const fn len(&self) -> u32 {
        self.young.count + self.old.count
    }

    /// Whether a slot rests.
    pub(super) fn contains(&self, place: Place) -> bool {
        self.young.contains(place) || self.old.contains(place)
    }

    /// A slot was emptied.
    pub(super) fn insert(&mut self, place: Place) {
        self.young.insert(place);
    }

    /// A second has passed.
    pub(super) fn wake(&mut self, now: u32) {
        if now.saturating_sub(self.turned) >= QUARANTINE_SECONDS {
            self.turned = now;
            self.old.clear();
            mem::swap(&mut self.young, &mut self.old);
        }
    }

    /// Every program that ran when the last slot was emptied has ended.
    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

impl Bits {
    fn new(buckets: u32) -> Self {
        Self { words: vec![0; (buckets as usize * SLOTS).div_ceil(64)], count: 0 }
    }

    const fn position(place: Place) -> (usize, u64) {
        let number = place.bucket as usize * SLOTS + place.index;
        (number / 64, 1 << (number % 64))
    }

    fn contains(&self, place: Place) -> bool {
        let (word, bit) = Self::position(place);
        self.count > 0 && self.words[word] & bit != 0
    }

    fn insert(&mut self, place: Place) {
        let (word, bit) = Self::position(place);
        self.count += u32::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    fn clear(&mut self) {
        if mem::take(&mut self.count) > 0 {
            self.words.fill(0);
        }
    }
}
