//! The flood lists' one writer.
//!
//! A segment's list is a run of slots, published as one word. It has room to
//! grow, so that a new adjacency is one more slot and a new count. One that goes
//! has its slot taken over by the last, and the count falls; a frame being
//! flooded at that moment may reach the last one twice, and misses none. When
//! ports change, or the room is used up, the list is written anew elsewhere, and
//! its old slots rest before they are used again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use mgre_common::fdb::QUARANTINE_SECONDS;
use mgre_common::table::{FloodList, FloodSlot};
use mgre_common::target::Target;

use super::shared::SharedArray;
use crate::plan::FloodTargets;

const LEAST_ROOM: u32 = 8;

/// A list as it stands in the slots.
#[derive(Clone, Debug)]
struct Placed {
    start: u32,
    room: u32,
    ports: Vec<u32>,
    adjacencies: Vec<u32>,
}

impl Placed {
    fn published(&self) -> FloodList {
        FloodList {
            start: self.start,
            ports: self.ports.len() as u16,
            adjacencies: self.adjacencies.len() as u16,
        }
    }
}

/// Writes the flood lists.
#[derive(Debug)]
pub struct Floods {
    slots: SharedArray<FloodSlot>,
    lists: HashMap<u16, Placed>,
    /// Free runs: start to length.
    free: BTreeMap<u32, u32>,
    resting: VecDeque<(u32, u32, u32)>,
}

impl Floods {
    /// Over unused slots.
    pub fn new(slots: SharedArray<FloodSlot>) -> Self {
        let free = BTreeMap::from([(0, slots.len())]);
        Self { slots, lists: HashMap::new(), free, resting: VecDeque::new() }
    }

    /// Makes a segment's list hold these targets, publishing each step by `publish`.
    ///
    /// # Errors
    /// The slots are used up; the list is as it was.
    pub fn set(
        &mut self,
        segment: u16,
        targets: &FloodTargets,
        now: u32,
        publish: impl Fn(FloodList),
    ) -> Result<()> {
        let count = (targets.ports.len() + targets.adjacencies.len()) as u32;
        match self.lists.get_mut(&segment) {
            Some(placed) if placed.ports == targets.ports && placed.room >= count => {
                update(&self.slots, placed, &targets.adjacencies, publish);
                Ok(())
            }
            _ => self.replace(segment, targets, count, now, publish),
        }
    }

    fn replace(
        &mut self,
        segment: u16,
        targets: &FloodTargets,
        count: u32,
        now: u32,
        publish: impl Fn(FloodList),
    ) -> Result<()> {
        let room = (count + count / 2).max(LEAST_ROOM).next_power_of_two();
        let start = self.allocate(room).with_context(|| {
            format!("no room for a flood list of {count} targets now; try again in some seconds")
        })?;
        let placed =
            Placed { start, room, ports: targets.ports.clone(), adjacencies: targets.adjacencies.clone() };
        let ports = placed.ports.iter().map(|id| Target::port(*id));
        let adjacencies = placed.adjacencies.iter().map(|id| Target::adjacency(*id));
        for (index, target) in ports.chain(adjacencies).enumerate() {
            write(&self.slots, start + index as u32, target);
        }
        publish(placed.published());
        if let Some(old) = self.lists.insert(segment, placed) {
            self.resting.push_back((old.start, old.room, now));
        }
        Ok(())
    }

    /// Ends a segment's list. Publish the empty one first.
    pub fn remove(&mut self, segment: u16, now: u32) {
        if let Some(old) = self.lists.remove(&segment) {
            self.resting.push_back((old.start, old.room, now));
        }
    }

    /// Lets slots that have rested be used again.
    pub fn wake(&mut self, now: u32) {
        while let Some(&(start, room, since)) = self.resting.front() {
            if now.saturating_sub(since) < QUARANTINE_SECONDS {
                break;
            }
            self.resting.pop_front();
            self.release(start, room);
        }
    }

    fn allocate(&mut self, room: u32) -> Option<u32> {
        let (start, len) =
            self.free.iter().find(|(_, len)| **len >= room).map(|(start, len)| (*start, *len))?;
        self.free.remove(&start);
        if len > room {
            self.free.insert(start + room, len - room);
        }
        Some(start)
    }

    fn release(&mut self, start: u32, len: u32) {
        let (mut start, mut len) = (start, len);
        if let Some(after) = self.free.remove(&(start + len)) {
            len += after;
        }
        let before = self.free.range(..start).next_back().map(|(start, len)| (*start, *len));
        if let Some((before, before_len)) = before
            && before + before_len == start
        {
            start = before;
            len += before_len;
        }
        self.free.insert(start, len);
    }
}

/// Changes a list's adjacencies in place.
fn update(slots: &SharedArray<FloodSlot>, placed: &mut Placed, wanted: &[u32], publish: impl Fn(FloodList)) {
    let first = placed.start + placed.ports.len() as u32;
    let keep: std::collections::HashSet<u32> = wanted.iter().copied().collect();
    let mut index = 0;
    while index < placed.adjacencies.len() {
        if keep.contains(&placed.adjacencies[index]) {
            index += 1;
            continue;
        }
        placed.adjacencies.swap_remove(index);
        if let Some(last) = placed.adjacencies.get(index) {
            write(slots, first + index as u32, Target::adjacency(*last));
        }
        publish(placed.published());
    }
    let have: std::collections::HashSet<u32> = placed.adjacencies.iter().copied().collect();
    for id in wanted.iter().filter(|id| !have.contains(id)) {
        write(slots, first + placed.adjacencies.len() as u32, Target::adjacency(*id));
        placed.adjacencies.push(*id);
    }
    publish(placed.published());
}

fn write(slots: &SharedArray<FloodSlot>, index: u32, target: Target) {
    if let Some(slot) = slots.get(index) {
        slot.0.store(target.to_bits(), Ordering::Release);
    }
}
