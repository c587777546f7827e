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
use imbl::OrdSet;
use imbl::ordset::DiffItem;
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
    /// What it holds.
    targets: FloodTargets,
    /// The adjacencies in the order of their slots, and where each is in it.
    order: Vec<u32>,
    position: HashMap<u32, usize>,
}

impl Placed {
    fn published(&self) -> FloodList {
        FloodList {
            start: self.start,
            ports: self.targets.ports.len() as u16,
            adjacencies: self.order.len() as u16,
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
            Some(placed) if placed.targets.ports == targets.ports && placed.room >= count => {
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
        let order: Vec<u32> = targets.adjacencies.iter().copied().collect();
        let position = order.iter().enumerate().map(|(index, id)| (*id, index)).collect();
        let placed = Placed { start, room, targets: targets.clone(), order, position };
        let ports = placed.targets.ports.iter().map(|id| Target::port(*id));
        let adjacencies = placed.order.iter().map(|id| Target::adjacency(*id));
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
fn update(
    slots: &SharedArray<FloodSlot>,
    placed: &mut Placed,
    wanted: &OrdSet<u32>,
    publish: impl Fn(FloodList),
) {
    let first = placed.start + placed.targets.ports.len() as u32;
    let had = std::mem::replace(&mut placed.targets.adjacencies, wanted.clone());
    for item in had.diff(wanted) {
        let DiffItem::Remove(id) = item else { continue };
        let Some(index) = placed.position.remove(id) else { continue };
        placed.order.swap_remove(index);
        if let Some(last) = placed.order.get(index) {
            write(slots, first + index as u32, Target::adjacency(*last));
            placed.position.insert(*last, index);
        }
        publish(placed.published());
    }
    for item in had.diff(wanted) {
        let DiffItem::Add(id) = item else { continue };
        write(slots, first + placed.order.len() as u32, Target::adjacency(*id));
        placed.position.insert(*id, placed.order.len());
        placed.order.push(*id);
    }
    publish(placed.published());
}

fn write(slots: &SharedArray<FloodSlot>, index: u32, target: Target) {
    if let Some(slot) = slots.get(index) {
        slot.0.store(target.to_bits(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What a datapath program reads in a published list.
    fn read(slots: &SharedArray<FloodSlot>, list: FloodList) -> Vec<Target> {
        let count = u32::from(list.ports) + u32::from(list.adjacencies);
        (list.start..list.start + count).filter_map(|index| slots.get(index)).map(FloodSlot::target).collect()
    }

    proptest! {
        #[test]
        fn a_published_list_is_always_whole(
            lists in prop::collection::vec(
                (1u16..4, prop::collection::btree_set(0u32..6, 0..4), prop::collection::btree_set(0u32..40, 0..30)),
                1..40,
            ),
        ) {
            let mut floods = Floods::new(SharedArray::anonymous(4096));
            let published = RefCell::new(std::collections::HashMap::<u16, FloodList>::new());
            for (now, (segment, ports, adjacencies)) in lists.into_iter().enumerate() {
                let before: BTreeSet<Target> = published
                    .borrow()
                    .get(&segment)
                    .map(|list| read(&floods.slots, *list).into_iter().collect())
                    .unwrap_or_default();
                let targets = FloodTargets {
                    ports: ports.iter().copied().collect(),
                    adjacencies: adjacencies.iter().copied().collect(),
                    ..FloodTargets::default()
                };
                let wanted: BTreeSet<Target> = ports
                    .iter()
                    .map(|id| Target::port(*id))
                    .chain(adjacencies.iter().map(|id| Target::adjacency(*id)))
                    .collect();
                let steps = Cell::new(0);
                let now = now as u32 * QUARANTINE_SECONDS;
                floods.wake(now);
                floods.set(segment, &targets, now, |list| {
                    published.borrow_mut().insert(segment, list);
                    steps.set(steps.get() + 1);
                }).expect("room");
                let list = published.borrow()[&segment];
                let after = read(&floods.slots, list);
                prop_assert_eq!(after.len(), wanted.len(), "each once");
                prop_assert_eq!(after.iter().copied().collect::<BTreeSet<_>>(), wanted.clone());
                prop_assert!(after.iter().take(list.ports.into()).all(|target| !target.is_adjacency()));
                prop_assert!(steps.get() > 0 || before == wanted);
            }
        }
    }

    #[test]
    fn slots_come_back() {
        let mut floods = Floods::new(SharedArray::anonymous(64));
        for round in 0..200 {
            let now = round * QUARANTINE_SECONDS;
            floods.wake(now);
            let targets = FloodTargets {
                ports: [round].into_iter().collect(),
                adjacencies: (0_u32..20).collect(),
                ..FloodTargets::default()
            };
            floods.set(1, &targets, now, |_| {}).expect("room");
        }
        floods.remove(1, 1000);
        floods.wake(1000 + QUARANTINE_SECONDS);
        assert_eq!(floods.free, BTreeMap::from([(0, 64)]));
    }

    #[test]
    fn no_room_is_an_error_and_changes_nothing() {
        let mut floods = Floods::new(SharedArray::anonymous(32));
        let small = FloodTargets {
            ports: [1_u32].into_iter().collect(),
            adjacencies: [1_u32, 2].into_iter().collect(),
            ..FloodTargets::default()
        };
        floods.set(1, &small, 0, |_| {}).expect("room");
        let large = FloodTargets {
            ports: [1_u32].into_iter().collect(),
            adjacencies: (0_u32..40).collect(),
            ..FloodTargets::default()
        };
        floods.set(1, &large, 0, |_| panic!("published")).expect_err("no room");
        assert_eq!(floods.lists[&1].order, [1, 2]);
    }
}
