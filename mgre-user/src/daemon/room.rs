//! What tables have room for. A change of the configuration that does not fit is refused; what comes by itself (a name
//! that resolves, an interface's new address) gets in as far as it can and holds up nothing else.

use std::cmp::Reverse;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use mgre_common::fdb::FdbKey;

use super::engine::Engine;
use crate::api::messages::Problem;
use crate::datapath::fdb::{Entry, Fdb};
use crate::plan::{FixedEntry, Plan};

/// What a plan had to do without, for want of room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Without {
    entries: usize,
    endpoints: usize,
}

impl Engine {
    /// Checks that the tables have room for what is new in a plan. What was learned stays.
    ///
    /// # Errors
    /// They have not.
    pub(super) fn check_room(&self, next: &Plan) -> Result<(), Problem> {
        // While an address is exchanged for another, endpoints of both are there.
        let exchanged = 2 * self.options.adjacencies as usize;
        let room = self.datapath.endpoints.capacity().saturating_sub(exchanged);
        let (now, then) = (self.compiled.plan.endpoints.len(), next.endpoints.len());
        if then > room && then > now {
            return Err(Problem::conflict(format!(
                "no room for the peers' endpoints, one for each of this host's addresses ({then} of {room}): start the daemon with more (--adjacencies), or remove an underlay's address"
            )));
        }
        let (mut there, mut new) = (i64::from(self.datapath.fdb.len()), 0);
        // What was left out before is no reason to refuse what adds nothing.
        for item in self.compiled.plan.fixed.diff(&next.fixed) {
            match item {
                DiffItem::Add(key, _) if self.datapath.fdb.find(*key).is_none() => new += 1,
                DiffItem::Remove(key, _) if self.datapath.fdb.find(*key).is_some() => there -= 1,
                DiffItem::Add(..) | DiffItem::Remove(..) | DiffItem::Update { .. } => {}
            }
        }
        let capacity = self.datapath.fdb.capacity();
        if new == 0 || there + new <= i64::from(capacity) {
            return Ok(());
        }
        Err(Problem::conflict(format!(
            "the FDB is full ({there} of {capacity} entries): flush what was learned (mgre fdb flush), or start the daemon with more (--fdb-entries)"
        )))
    }

    /// Leaves out of a plan what there is no room for. Given entries take the place of those learned.
    pub(super) fn fit(&mut self, plan: &mut Plan, removed: &mut Vec<Entry>) {
        let fixed = fit_entries(&mut self.datapath.fdb, &self.plan.fixed, &mut plan.fixed, removed);
        let endpoints =
            fit_map(self.datapath.endpoints.capacity(), &self.plan.endpoints, &mut plan.endpoints);
        let without = Without { entries: fixed, endpoints };
        if without != self.without {
            if fixed > 0 {
                tracing::error!("the FDB has no room for {fixed} of the addresses given (--fdb-entries)");
            }
            if endpoints > 0 {
                tracing::error!("no room for {endpoints} of the peers' endpoints (--adjacencies)");
            }
        }
        self.without = without;
    }
}

/// Makes room for what a map gains, as if it had so much, or leaves it out; says how many.
fn fit_map<K: Ord + Clone, V: Clone + PartialEq>(
    room: usize,
    old: &OrdMap<K, V>,
    new: &mut OrdMap<K, V>,
) -> usize {
    let excess = new.len().saturating_sub(room);
    if excess == 0 {
        return 0;
    }
    let added: Vec<K> = old
        .diff(new)
        .filter_map(|item| if let DiffItem::Add(key, _) = item { Some(key.clone()) } else { None })
        .collect();
    let out = added.iter().rev().take(excess);
    out.map(|key| new.remove(key)).count()
}

fn fit_entries(
    fdb: &mut Fdb,
    old: &OrdMap<FdbKey, FixedEntry>,
    new: &mut OrdMap<FdbKey, FixedEntry>,
    removed: &mut Vec<Entry>,
) -> usize {
    let (mut added, mut gone) = (Vec::new(), Vec::new());
    for item in old.diff(new) {
        match item {
            DiffItem::Add(key, _) if fdb.find(*key).is_none() => added.push(*key),
            DiffItem::Remove(key, _) => gone.push(*key),
            DiffItem::Add(..) | DiffItem::Update { .. } => {}
        }
    }
    let room = |fdb: &Fdb| fdb.capacity().saturating_sub(fdb.len()) as usize;
    if added.len() > room(fdb) {
        // Those that go anyway make room first.
        removed.extend(gone.into_iter().filter_map(|key| fdb.remove(key)));
    }
    let wanted = added.len().saturating_sub(room(fdb));
    if wanted > 0 {
        removed.extend(evict(fdb, wanted));
    }
    let excess = added.len().saturating_sub(room(fdb));
    added.iter().rev().take(excess).map(|key| new.remove(key)).count()
}

/// Forgets so many of the addresses that were learned, those first that were seen longest ago.
fn evict(fdb: &mut Fdb, count: usize) -> Vec<Entry> {
    let mut learned: Vec<Entry> = fdb.iter().filter(|entry| entry.seen.is_some()).collect();
    learned.sort_unstable_by_key(|entry| Reverse(entry.seen));
    let oldest = learned.split_off(learned.len().saturating_sub(count));
    oldest.iter().filter_map(|entry| fdb.remove(entry.key)).collect()
}

#[cfg(test)]
mod tests {
    use mgre_common::target::Target;
    use mgre_common::wire::MacAddr;

    use super::*;

    fn key(number: u8) -> FdbKey {
        FdbKey::new(1, MacAddr([2, 0, 0, 0, 0, number]))
    }

    fn fixed(numbers: std::ops::Range<u8>) -> OrdMap<FdbKey, FixedEntry> {
        let entry = |number| (key(number), FixedEntry { target: Target::port(number.into()), local: false });
        numbers.map(entry).collect()
    }

    #[test]
    fn given_entries_take_the_place_of_those_seen_longest_ago() {
        let mut fdb = Fdb::in_memory(8);
        for (number, seen) in [(100, 5), (101, 1), (102, 9), (103, 2), (104, 7)] {
            fdb.set(key(number), Target::port(0), Some(seen)).expect("room");
        }
        for number in 0..3 {
            fdb.set(key(number), Target::port(number.into()), None).expect("room");
        }
        let (old, mut new, mut removed) = (fixed(0..3), fixed(0..5), Vec::new());
        assert_eq!(fit_entries(&mut fdb, &old, &mut new, &mut removed), 0);
        assert_eq!(new, fixed(0..5), "nothing is left out");
        let mut gone: Vec<_> = removed.iter().map(|entry| entry.seen).collect();
        gone.sort_unstable();
        assert_eq!(gone, [Some(1), Some(2)]);

        // Where all are given, those that are new are left out.
        let (mut new, mut removed) = (fixed(0..12), Vec::new());
        assert_eq!(fit_entries(&mut fdb, &old, &mut new, &mut removed), 4);
        assert_eq!((new, removed.len()), (fixed(0..8), 3));
        // One that takes the place of another that is given needs no room of its own.
        let mut exchanged = fixed(1..8);
        exchanged.insert(key(50), FixedEntry { target: Target::port(50), local: false });
        let mut removed = Vec::new();
        for number in 3..8 {
            fdb.set(key(number), Target::port(number.into()), None).expect("room");
        }
        assert_eq!(fit_entries(&mut fdb, &fixed(0..8), &mut exchanged, &mut removed), 0);
        assert!(exchanged.contains_key(&key(50)) && removed.len() == 1);
        // One that has got less needs no room.
        let (mut new, mut removed) = (fixed(0..2), Vec::new());
        assert_eq!(fit_entries(&mut fdb, &old, &mut new, &mut removed), 0);
        assert_eq!((new, removed.len()), (fixed(0..2), 0));
    }

    #[test]
    fn what_a_map_has_no_room_for_is_left_out() {
        let numbers = |range: std::ops::Range<u32>| range.map(|key| (key, ())).collect::<OrdMap<u32, ()>>();
        let mut new = numbers(0..10);
        assert_eq!((fit_map(10, &numbers(0..4), &mut new), new.len()), (0, 10));
        assert_eq!((fit_map(7, &numbers(2..6), &mut new), new), (3, numbers(0..7)));
        let mut fewer = numbers(0..9);
        assert_eq!(
            (fit_map(7, &numbers(0..12), &mut fewer), fewer.len()),
            (0, 9),
            "nothing new to leave out"
        );
    }
}
