use std::os::unix::fs::symlink;
use std::sync::Arc;

use super::*;
use crate::model::{Change, Ids, PeerSettings, Record, SegmentSettings};

/// A directory with a store in it that has saved a state with one segment.
fn store() -> (tempfile::TempDir, Store, Saved) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(directory.path(), "x").expect("opens");
    assert_eq!(store.load().expect("nothing there"), Saved::default());
    let saved = with(
        &Saved::default(),
        Change::AddSegment { name: "s".into(), settings: SegmentSettings::default() },
    );
    save(&mut store, &Saved::default(), &saved).expect("saves");
    (directory, store, saved)
}

fn with(saved: &Saved, change: Change) -> Saved {
    let state = saved.state.apply(change, &Ids::default()).expect("a state");
    Saved { state, ..saved.clone() }
}

fn with_peer(saved: &Saved, number: u8) -> Saved {
    let settings = PeerSettings {
        remote: Some(format!("192.0.2.{number}")),
        segments: Some(vec!["s".into()]),
        ..PeerSettings::default()
    };
    with(saved, Change::AddPeer { name: format!("p{number}"), settings })
}

fn entry(old: &Saved, new: &Saved) -> Entry {
    Entry { state: Record::between(&old.state, &new.state), promiscuous: None }
}

fn save(store: &mut Store, old: &Saved, new: &Saved) -> Result<()> {
    store.save(&[entry(old, new)], new)
}

fn loaded(directory: &tempfile::TempDir) -> Result<Saved> {
    Store::open(directory.path(), "x").expect("opens").load()
}

fn journal(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("x.journal")
}

#[test]
fn changes_go_to_the_journal_and_come_back_from_it() {
    let (directory, mut store, first) = store();
    let snapshot = fs::read(directory.path().join("x.json")).expect("a snapshot");
    let (one, mut two) = (with_peer(&first, 1), with_peer(&with_peer(&first, 1), 2));
    two.promiscuous.insert("lan0".to_owned());
    save(&mut store, &first, &one).expect("saves");
    let mut second = entry(&one, &two);
    second.promiscuous = Some(two.promiscuous.clone());
    store.save(&[second], &two).expect("saves");
    let three = with(&two, Change::DelPeer { name: "p1".into() });
    save(&mut store, &two, &three).expect("saves");
    assert_eq!(fs::read(directory.path().join("x.json")).expect("the same"), snapshot);
    assert_eq!(loaded(&directory).expect("loads"), three);
    // A crash right after a new snapshot: the journal is replayed on top of it.
    let old = fs::read(journal(&directory)).expect("a journal");
    store.close(&three).expect("closes");
    assert!(!journal(&directory).exists());
    fs::write(journal(&directory), old).expect("written");
    assert_eq!(loaded(&directory).expect("loads"), three);
}

#[test]
fn a_journal_that_outgrows_the_snapshot_ends() {
    let (directory, mut store, first) = store();
    let one = with_peer(&first, 1);
    let there = entry(&first, &one);
    let mut longest = 0;
    for _ in 0..3000 {
        store.save(std::slice::from_ref(&there), &one).expect("saves");
        longest = longest.max(store.length);
        store.tidy(&one).expect("tidies");
    }
    assert!((JOURNAL_LEAST..JOURNAL_LEAST + 1000).contains(&longest), "{longest}");
    assert!(store.length < JOURNAL_LEAST);
    assert_eq!(loaded(&directory).expect("loads"), one);
}

#[test]
fn a_torn_end_is_dropped_and_a_damaged_middle_is_named() {
    let (directory, mut store, first) = store();
    let one = with_peer(&first, 1);
    save(&mut store, &first, &one).expect("saves");
    let whole = fs::read(journal(&directory)).expect("a journal");
    let two = with_peer(&one, 2);
    save(&mut store, &one, &two).expect("saves");
    let both = fs::read(journal(&directory)).expect("a journal");
    for end in whole.len()..both.len() {
        fs::write(journal(&directory), &both[..end]).expect("written");
        assert_eq!(loaded(&directory).expect("loads"), one, "{end} bytes");
        // Blocks that were given to the file and not written.
        let mut zeroed = both.clone();
        zeroed[end..].fill(0);
        fs::write(journal(&directory), &zeroed).expect("written");
        assert_eq!(loaded(&directory).expect("loads"), one, "{end} bytes, then zeros");
    }
    // What comes after a torn end is saved all the same.
    let mut again = Store::open(directory.path(), "x").expect("opens");
    assert_eq!(again.load().expect("loads"), one);
    let other = with_peer(&one, 3);
    save(&mut again, &one, &other).expect("saves");
    assert_eq!(loaded(&directory).expect("loads"), other);

    for index in (0..whole.len() - 1).step_by(7) {
        let mut damaged = both.clone();
        damaged[index] ^= 1;
        fs::write(journal(&directory), &damaged).expect("written");
        let error = format!("{:#}", loaded(&directory).expect_err("damaged"));
        assert!(error.contains("x.journal") && error.contains("line 1"), "{error}");
        assert_eq!(fs::read(journal(&directory)).expect("kept"), damaged);
    }
}

#[test]
fn a_full_disk_changes_nothing() {
    let (directory, mut store, first) = store();
    symlink("/dev/full", journal(&directory)).expect("a link");
    let one = with_peer(&first, 1);
    let error = format!("{:#}", save(&mut store, &first, &one).expect_err("no room"));
    assert!(error.contains("cannot save"), "{error}");
    fs::remove_file(journal(&directory)).expect("removed");
    assert_eq!(loaded(&directory).expect("loads"), first);
    save(&mut store, &first, &one).expect("saves");
    assert_eq!(loaded(&directory).expect("loads"), one);
    // A journal that somebody took away is made good by a snapshot, if there is room for one.
    fs::remove_file(journal(&directory)).expect("removed");
    fs::create_dir(directory.path().join("x.json.new")).expect("made");
    let two = with_peer(&one, 2);
    assert!(save(&mut store, &one, &two).is_err());
    fs::remove_dir(directory.path().join("x.json.new")).expect("removed");
    save(&mut store, &one, &two).expect("saves");
    assert_eq!(loaded(&directory).expect("loads"), two);
}

#[test]
fn what_was_saved_last_can_be_taken_back() {
    let (directory, mut store, first) = store();
    let (one, two) = (with_peer(&first, 1), with_peer(&with_peer(&first, 1), 2));
    let entries = [entry(&first, &one), entry(&one, &two)];
    store.save(&entries, &two).expect("saves");
    store.amend(&entries[..1], &one).expect("amends");
    assert_eq!(loaded(&directory).expect("loads"), one);
    store.save(&entries[1..], &two).expect("saves");
    store.amend(&[], &one).expect("amends");
    assert_eq!(loaded(&directory).expect("loads"), one);
    // Also if it went into a snapshot.
    store.snapshot(&two).expect("saves");
    store.amend(&[], &one).expect("amends");
    assert_eq!(loaded(&directory).expect("loads"), one);
}

#[test]
fn a_damaged_file_is_named_and_kept() {
    let (directory, ..) = store();
    fs::write(directory.path().join("x.json"), "{").expect("written");
    let error = loaded(&directory).expect_err("damaged");
    assert!(error.to_string().contains("x.json"), "{error}");
    assert!(directory.path().join("x.json").exists());
}

#[test]
fn retired_files_are_kept_under_another_name() {
    let (directory, mut store, first) = store();
    let one = with_peer(&first, 1);
    save(&mut store, &first, &one).expect("saves");
    store.retire(&one).expect("retires");
    assert_eq!(loaded(&directory).expect("loads"), Saved::default());
    let aside = fs::read(directory.path().join("x.detached.json")).expect("kept");
    let aside: Saved = serde_json::from_slice(&aside).expect("a state");
    assert_eq!(aside, one);
    assert_eq!(aside.state.peers.get("p1").map(Arc::strong_count), Some(1));
}
