//! The memory protocol, in every order of its loads and stores.
//!
//! Loom runs a model through the interleavings of its threads, and gives relaxed
//! loads the older values too that the memory model allows. A reader is what a
//! datapath program does. That a slot rests, or that the writer waits for a grace
//! period, is that all readers have ended which began before; those that begin in
//! between see what was stored before the wait, as those of the next step do.

use loom::sync::Arc;
use loom::{model, thread};

use super::*;

const OLD: Target = Target::port(1);
const NEW: Target = Target::adjacency(2);

/// Two buckets, and one that is the stash.
struct Table {
    hash: FdbHash,
    buckets: Vec<Bucket>,
}

impl Table {
    fn new() -> Arc<Self> {
        let multipliers = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];
        let hash = FdbHash { shift: hash_shift(2), multipliers };
        Arc::new(Self { hash, buckets: (0..3).map(|_| Bucket::default()).collect() })
    }

    /// The keys whose home is one bucket and whose second is the other.
    fn keys(&self, home: u32) -> impl Iterator<Item = FdbKey> + '_ {
        (1..)
            .map(FdbKey)
            .filter(move |key| [0, 1].map(|choice| self.hash.bucket(*key, choice)) == [home, 1 - home])
    }

    fn key(&self) -> FdbKey {
        self.keys(0).next().expect("endless")
    }

    fn other_key(&self) -> FdbKey {
        self.keys(0).nth(1).expect("endless")
    }

    fn third_key(&self) -> FdbKey {
        self.keys(0).nth(2).expect("endless")
    }

    fn slot(&self, bucket: usize) -> &Slot {
        &self.buckets[bucket].slots[0]
    }

    /// What a program makes of an address: none is a miss.
    fn look_up(&self, key: FdbKey) -> Option<Target> {
        let slot = self.hash.find(key, |number| self.buckets.get(number as usize))?;
        let target = slot.target();
        slot.touch(7);
        Some(target).filter(|target| !target.is_none())
    }
}

/// Writes while a program looks an address up, and then waits for the program.
fn during(table: &Arc<Table>, key: FdbKey, write: impl FnOnce(&Table)) -> Option<Target> {
    let reader = {
        let table = Arc::clone(table);
        thread::spawn(move || table.look_up(key))
    };
    write(table);
    reader.join().expect("the reader ends")
}

#[test]
fn an_entry_that_is_inserted_appears_whole() {
    model(|| {
        let table = Table::new();
        let found = during(&table, table.key(), |table| table.slot(0).insert(table.key(), NEW, 1));
        assert!([None, Some(NEW)].contains(&found));
        assert_eq!(table.look_up(table.key()), Some(NEW));
        assert_eq!(table.look_up(table.other_key()), None);
    });
}

#[test]
fn an_entry_that_is_pointed_elsewhere_points_to_one_or_the_other() {
    model(|| {
        let table = Table::new();
        table.slot(0).insert(table.key(), OLD, 1);
        let reader = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                let slot = table.slot(0);
                slot.touch(7);
                slot.binding()
            })
        };
        table.slot(0).retarget(NEW, SEEN_STATIC);
        let seen = reader.join().expect("the reader ends");
        assert!([(OLD, false), (NEW, true)].contains(&(seen.target(), seen.is_fixed())));
        // However late the age is stored, it is fixed.
        assert_eq!((table.slot(0).target(), table.slot(0).seen()), (NEW, SEEN_STATIC));
    });
}

/// A slot is emptied, and used for another key; whether it rests in between is told.
fn use_again(rests: bool, looked_up: fn(&Table) -> FdbKey) {
    let table = Table::new();
    table.slot(0).insert(table.key(), OLD, 1);
    let reuse = |table: &Table| table.slot(0).insert(table.other_key(), NEW, 1);
    let key = looked_up(&table);
    let found = if rests {
        let before = during(&table, key, |table| table.slot(0).clear());
        [before, during(&table, key, reuse)]
    } else {
        let at_once = |table: &Table| {
            table.slot(0).clear();
            reuse(table);
        };
        [during(&table, key, at_once), None]
    };
    let right = if key == table.key() { OLD } else { NEW };
    assert!(found.iter().flatten().all(|target| *target == right), "a target of another key: {found:?}");
    assert_eq!((table.look_up(table.key()), table.look_up(table.other_key())), (None, Some(NEW)));
}

#[test]
fn a_slot_that_has_rested_gives_nobody_a_target_of_another_key() {
    model(|| use_again(true, Table::key));
    model(|| use_again(true, Table::other_key));
}

#[test]
#[should_panic(expected = "a target of another key")]
fn a_slot_that_has_not_rested_gives_its_old_key_the_new_target() {
    model(|| use_again(false, Table::key));
}

#[test]
#[should_panic(expected = "a target of another key")]
fn a_slot_that_has_not_rested_gives_its_new_key_the_old_target() {
    model(|| use_again(false, Table::other_key));
}

/// A step of the writer's.
type Step = fn(&Table, FdbKey);

/// The steps of a move out of bucket 0, and the first use of the slot that is left.
const MOVE: [Step; 5] = [
    |table, _| table.slot(1).stage(OLD, 1),
    |table, key| table.slot(1).publish(key),
    |table, _| table.slot(0).unpublish(),
    |table, _| table.slot(0).unstage(),
    |table, _| table.slot(0).insert(table.third_key(), NEW, 1),
];

/// An entry moves to its other bucket, in steps after each of which the writer
/// waits; a program looks it up during one of them.
fn move_aside(home: u32, steps: &[&[Step]], watched: usize) {
    let table = Table::new();
    let key = table.keys(home).next().expect("endless");
    table.slot(0).insert(key, OLD, 1);
    for (number, parts) in steps.iter().enumerate() {
        let step = |table: &Table| parts.iter().for_each(|part| part(table, key));
        if number == watched {
            assert_eq!(during(&table, key, step), Some(OLD), "an entry that moves is missed");
        } else {
            step(&table);
        }
    }
    assert_eq!(table.look_up(key), Some(OLD));
}

#[test]
fn an_entry_that_moves_is_never_missed() {
    // Out of its home bucket, and out of its second one.
    for home in [0, 1] {
        for watched in 0..MOVE.len() {
            model(move || {
                let steps = MOVE.each_ref().map(std::slice::from_ref);
                move_aside(home, &steps, watched);
            });
        }
    }
}

#[test]
#[should_panic(expected = "an entry that moves is missed")]
fn an_entry_that_moves_home_without_a_wait_is_missed() {
    model(|| move_aside(1, &[&MOVE[..3]], 0));
}

#[test]
#[should_panic(expected = "an entry that moves is missed")]
fn an_entry_whose_old_slot_is_emptied_at_once_is_missed() {
    model(|| move_aside(0, &[&MOVE[..1], &MOVE[1..2], &MOVE[2..4]], 2));
}

#[test]
fn the_stash_is_looked_at_while_it_holds_an_entry() {
    const STEPS: [(Step, [Option<Target>; 2]); 4] = [
        (
            |table, key| {
                table.buckets[2].slots[0].insert(key, NEW, 1);
                table.buckets[0].set_overflowed(true);
            },
            [None, Some(NEW)],
        ),
        // Another one of the same home comes, and one into the slot that the mark is beside.
        (
            |table, _| {
                table.buckets[2].slots[1].insert(table.other_key(), OLD, 1);
                table.buckets[0].set_overflowed(true);
                table.slot(0).insert(table.third_key(), OLD, 1);
            },
            [Some(NEW); 2],
        ),
        (
            |table, _| {
                table.buckets[2].slots[1].clear();
                table.slot(0).clear();
            },
            [Some(NEW); 2],
        ),
        (
            |table, _| {
                table.buckets[2].slots[0].clear();
                table.buckets[0].set_overflowed(false);
            },
            [Some(NEW), None],
        ),
    ];
    for watched in 0..STEPS.len() {
        model(move || {
            let table = Table::new();
            let key = table.key();
            for (number, (step, expected)) in STEPS.iter().enumerate() {
                if number == watched {
                    let found = during(&table, key, |table| step(table, key));
                    assert!(expected.contains(&found), "{found:?} in step {number}");
                } else {
                    step(&table, key);
                }
            }
            assert_eq!(table.look_up(key), None);
        });
    }
}
