//! The writer, over ordinary memory.

use std::collections::BTreeMap;

use mgre_common::fdb::{MAX_ENTRIES, QUARANTINE_SECONDS, buckets_for, hash_shift, table_len};
use mgre_common::wire::MacAddr;
use proptest::prelude::*;

use super::*;

const MULTIPLIERS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];

fn fdb(capacity: u32) -> Fdb {
    fdb_with(capacity, MULTIPLIERS)
}

fn fdb_with(capacity: u32, multipliers: [u64; 2]) -> Fdb {
    let buckets = buckets_for(capacity);
    let hash = FdbHash { shift: hash_shift(buckets), multipliers };
    Fdb::new(SharedArray::anonymous(table_len(buckets)), hash, capacity)
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
fn a_slot_rests_before_it_is_used_again() {
    let mut fdb = fdb(1);
    for round in 0..64 {
        let now = 8 * round;
        fdb.wake(now);
        let mut used = Vec::new();
        // The same key again at once goes elsewhere, while there is elsewhere.
        for _ in 0..SLOTS {
            fdb.set(key(round), Target::port(1), Some(round)).expect("room");
            let place = fdb.place_of(key(round)).expect("there");
            assert!(!used.contains(&place), "{place:?} has not rested");
            used.push(place);
            fdb.wake(now + 1);
            fdb.remove(key(round)).expect("there");
        }
        fdb.wake(now + QUARANTINE_SECONDS);
        assert_eq!(fdb.resting.len(), 4, "emptied a second ago");
        fdb.wake(now + 2 * QUARANTINE_SECONDS);
        assert_eq!(fdb.resting.len(), 0);
    }
}

/// Keys whose home is the first bucket and whose second is the other one.
fn keys_of(hash: FdbHash, home: u32, second: Option<u32>) -> impl Iterator<Item = FdbKey> {
    (0..).map(key).filter(move |key| {
        hash.bucket(*key, 0) == home && second.is_none_or(|second| hash.bucket(*key, 1) == second)
    })
}

#[test]
fn what_has_no_room_is_in_the_stash_and_its_home_says_so() {
    let mut fdb = fdb(64);
    let keys: Vec<FdbKey> = keys_of(fdb.hash, 3, Some(9)).take(3 * SLOTS).collect();
    for (number, key) in keys.iter().enumerate() {
        fdb.set(*key, Target::port(number as u32), None).expect("room");
        assert_eq!(fdb.table.get(3).expect("a bucket").overflowed(), number >= 2 * SLOTS);
    }
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(fdb.find(*key).map(|entry| entry.target), Some(Target::port(number as u32)));
    }
    // Nothing can move aside for one more.
    let more = keys_of(fdb.hash, 3, Some(9)).nth(3 * SLOTS).expect("endless");
    assert_eq!(fdb.set(more, Target::port(1), None), Err(Full));
    // An entry of another home does not keep the mark.
    let (last, stashed) = (keys[3 * SLOTS - 1], &keys[2 * SLOTS..3 * SLOTS - 1]);
    fdb.remove(last).expect("there");
    fdb.wake(10);
    fdb.wake(20);
    let other = keys_of(fdb.hash, 4, None).next().expect("endless");
    let place = fdb.free_in(fdb.hash.stash(4)).next().expect("room in the same bucket of the stash");
    fdb.at(place).expect("a slot").insert(other, Target::port(1), 1);
    for key in stashed {
        assert!(fdb.table.get(3).expect("a bucket").overflowed());
        fdb.remove(*key).expect("there");
    }
    assert!(!fdb.table.get(3).expect("a bucket").overflowed());
    assert!(keys[..2 * SLOTS].iter().all(|key| fdb.find(*key).is_some()));
}

#[test]
fn an_entry_moves_aside_where_the_stash_is_full_too() {
    let mut fdb = fdb(64);
    let crowd: Vec<FdbKey> = keys_of(fdb.hash, 3, Some(9)).take(3 * SLOTS).collect();
    // The first one in the bucket can go elsewhere.
    let guest = keys_of(fdb.hash, 9, Some(12)).next().expect("endless");
    fdb.set(guest, Target::port(99), Some(7)).expect("room");
    for key in &crowd {
        fdb.set(*key, Target::port(1), None).expect("room");
    }
    assert_eq!(fdb.place_of(guest).map(|place| place.bucket), Some(12));
    assert_eq!(
        fdb.find(guest),
        Some(Entry { key: guest, target: Target::port(99), seen: Some(7), held: false })
    );
    assert!(crowd.iter().all(|key| fdb.find(*key).is_some()));
}

/// Kinds of addresses that there are many of.
fn family(kind: u32, base: u32, number: u32) -> FdbKey {
    let [a, b, c, d] = base.wrapping_add(number).to_be_bytes();
    match kind {
        // One vendor's, in sequence.
        0 => FdbKey::new(1, MacAddr([2, 0, a, b, c, d])),
        // The same few hundred in every segment.
        1 => FdbKey::new(1 + (number % 4096) as u16, MacAddr([2, 0, 0, a, 0, (number >> 12) as u8])),
        // Made of an IPv4 address, a bit of it never set.
        2 => FdbKey::new(1, MacAddr([2, 0x42, a & 0x7f, b, d, c])),
        // Those that differ at the front alone.
        3 => FdbKey::new(9, MacAddr([b << 1, c, d, a, 0, 1])),
        // At random.
        _ => {
            let mixed = (u64::from(base) << 32 | u64::from(number)).wrapping_mul(0xd6e8_feb8_6659_fd93);
            let [a, b, c, d, e, f, ..] =
                (mixed ^ mixed >> 29).wrapping_mul(0xd6e8_feb8_6659_fd93).to_be_bytes();
            FdbKey::new(1 + (number % 3) as u16, MacAddr([a & 0xfe | 2, b, c, d, e, f]))
        }
    }
}

/// Cache lines that a lookup reads, and what it finds.
fn look_up(fdb: &Fdb, key: FdbKey) -> (usize, Option<Target>) {
    let lines = Cell::new(0);
    let slot = fdb.hash.find(key, |bucket| {
        lines.set(lines.get() + 1);
        fdb.table.get(bucket)
    });
    (lines.get(), slot.map(Slot::target))
}

/// How many of so many keys are found, each where it should be, in one line, in two and in three.
fn lines_touched(fdb: &Fdb, count: u32, key: impl Fn(u32) -> FdbKey) -> [u32; 3] {
    let mut lines = [0; 3];
    for number in 0..count {
        let (touched, target) = look_up(fdb, key(number));
        assert_eq!(target, Some(Target::port(number)));
        lines[touched - 1] += 1;
    }
    lines
}

/// Fills a table up, removes and adds without a pause, and looks that nothing is
/// lost. Says in how many lines entries are found, first and last.
fn fill_and_churn(capacity: u32, multipliers: [u64; 2], kind: u32, base: u32) -> [[u32; 3]; 2] {
    let mut fdb = fdb_with(capacity, multipliers);
    let key = |number| family(kind, base, number);
    let next = |number| family(kind, base, capacity + number);
    for number in 0..capacity {
        fdb.set(key(number), Target::port(number), Some(1)).expect("room");
    }
    assert_eq!(fdb.set(next(capacity), Target::port(1), Some(1)), Err(Full));
    let filled = lines_touched(&fdb, capacity, key);
    // Every entry makes way for another one, and no slot has rested.
    for number in 0..capacity {
        fdb.remove(key(number)).expect("it is there");
        fdb.set(next(number), Target::port(number), Some(1)).expect("room");
    }
    let churned = lines_touched(&fdb, capacity, next);
    assert!((0..capacity).all(|number| look_up(&fdb, key(number)).1.is_none()));
    assert_eq!(fdb.iter().count(), capacity as usize);
    // All at once, and all again.
    assert_eq!(fdb.remove_where(|_| true).len(), capacity as usize);
    assert!((0..fdb.hash.buckets()).all(|home| !fdb.table.get(home).expect("a bucket").overflowed()));
    for number in 0..capacity {
        fdb.set(key(number), Target::port(number), None).expect("room");
    }
    lines_touched(&fdb, capacity, key);
    [filled, churned]
}

#[test]
fn nothing_is_lost_in_a_full_table_whatever_the_addresses() {
    let capacity = 16 * 1024;
    for kind in 0..5 {
        let lines = fill_and_churn(capacity, MULTIPLIERS, kind, 77 << 16);
        println!("kind {kind}: found in one, two and three lines, filled and churned: {lines:?}");
        let [filled, churned] = lines;
        assert!(filled[0] > capacity / 10 * 8 && filled[2] < capacity / 500, "{filled:?}");
        assert!(churned[0] > capacity / 10 * 5 && churned[2] < capacity / 20, "{churned:?}");
    }
}

/// At half full there is nothing left to chance: the stash lasts for longer.
#[test]
fn the_stash_lasts_beyond_capacity() {
    for capacity in [1024, 16 * 1024, 128 * 1024] {
        for base in 0..4 {
            let slots = 2 * capacity;
            let mut fdb = fdb(capacity);
            fdb.capacity = slots;
            let (mut stashed, mut at_capacity) = (0, 0);
            for number in 0.. {
                let key = family(4, base, number);
                let stash = fdb.hash.stash(fdb.hash.bucket(key, 0));
                if fdb.own_room(key).is_none() {
                    stashed += 1;
                    if fdb.free_in(stash).next().is_none() {
                        break;
                    }
                }
                fdb.set(key, Target::port(1), None).expect("room");
                at_capacity = if number < capacity { stashed } else { at_capacity };
            }
            let load = f64::from(fdb.len()) / f64::from(slots);
            println!("{capacity}: {at_capacity} stashed at half full, the first has no room at {load:.3}");
            assert!(load > 0.55 && at_capacity <= capacity / 1000, "{load} {at_capacity}");
        }
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
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn nothing_is_lost_whatever_was_drawn(
        first in any::<u64>(), second in any::<u64>(), kind in 0u32..5, base in any::<u32>(),
        capacity in prop::sample::select(vec![32u32, 100, 1024, 4096]),
    ) {
        fill_and_churn(capacity, [first | 1, second | 1], kind, base);
    }

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
                        Entry { key: key(number), target: Target::port(target), seen: learned.then_some(now), held: false };
                    fdb.set(entry.key, entry.target, entry.seen).expect("room");
                    model.insert(entry.key, entry);
                }
                Step::Remove(number) => {
                    prop_assert_eq!(fdb.remove(key(number)), model.remove(&key(number)));
                }
                Step::RemoveTarget(target) => {
                    let target = Target::port(target);
                    let removed = fdb.remove_where(|entry| entry.target == target);
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

/// Bytes of memory that this process has in use.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux says");
    let pages: usize = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

#[test]
fn a_million_entries() {
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        work();
        println!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    };
    let mut fdb = fdb(MAX_ENTRIES);
    let before = resident();
    timed("insert", &mut || {
        for number in 0..MAX_ENTRIES {
            fdb.set(family(4, 0, number), Target::port(number % 1024), Some(1)).expect("room");
        }
    });
    let bytes = (resident() - before) as f64 / f64::from(MAX_ENTRIES);
    println!("{bytes:.1} bytes for an entry, the table's {} among them", 64 * fdb.buckets() / MAX_ENTRIES);
    timed("look each up", &mut || {
        let found = (0..MAX_ENTRIES).filter(|number| fdb.find(family(4, 0, *number)).is_some());
        assert_eq!(found.count(), MAX_ENTRIES as usize);
    });
    timed("an ageing scan that finds nothing", &mut || {
        assert_eq!(fdb.remove_where(|entry| entry.seen.is_some_and(|seen| seen > 1)).len(), 0);
    });
    timed("a flush", &mut || {
        assert_eq!(fdb.remove_where(|_| true).len(), MAX_ENTRIES as usize);
    });
    timed("insert anew at once", &mut || {
        for number in 0..MAX_ENTRIES {
            fdb.set(family(4, 0, number), Target::port(number % 1024), Some(1)).expect("room");
        }
    });
}
