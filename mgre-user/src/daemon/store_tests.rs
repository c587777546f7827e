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
        longest = longest.max(store.end.length);
        store.tidy(&one).expect("tidies");
    }
    assert!((JOURNAL_LEAST..JOURNAL_LEAST + 1000).contains(&longest), "{longest}");
    assert!(store.end.length < JOURNAL_LEAST);
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

/// Three changes in a journal, and a snapshot before them.
fn three() -> (tempfile::TempDir, Vec<u8>, Saved) {
    let (directory, mut store, first) = store();
    let mut now = first;
    for number in 1..4 {
        let next = with_peer(&now, number);
        save(&mut store, &now, &next).expect("saves");
        now = next;
    }
    let bytes = fs::read(journal(&directory)).expect("a journal");
    (directory, bytes, now)
}

#[test]
fn no_change_that_was_answered_for_is_lost_in_silence() {
    let (directory, bytes, saved) = three();
    for index in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1 << bit;
            fs::write(journal(&directory), &damaged).expect("written");
            match loaded(&directory) {
                // A digit of a checksum in the other case.
                Ok(found) => assert_eq!(found, saved, "bit {bit} of byte {index}"),
                Err(error) => assert!(format!("{error:#}").contains("x.journal"), "{error:#}"),
            }
        }
    }
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    for order in [&[1, 2][..], &[0, 2], &[1, 0, 2], &[0, 2, 1], &[0, 0, 1, 2], &[0, 1, 2, 1]] {
        let other: Vec<u8> = order.iter().flat_map(|line| lines[*line]).copied().collect();
        fs::write(journal(&directory), other).expect("written");
        let error = format!("{:#}", loaded(&directory).expect_err("other lines"));
        assert!(error.contains("is damaged"), "{order:?}: {error}");
    }
}

#[test]
fn a_snapshot_that_is_not_what_was_saved_is_refused() {
    let (directory, mut store, first) = store();
    let one = with_peer(&first, 1);
    save(&mut store, &first, &one).expect("saves");
    store.close(&one).expect("closes");
    let path = directory.path().join("x.json");
    let good = fs::read(&path).expect("a snapshot");
    for index in 0..good.len() {
        for bit in 0..8 {
            let mut damaged = good.clone();
            damaged[index] ^= 1 << bit;
            fs::write(&path, &damaged).expect("written");
            match loaded(&directory) {
                Ok(found) => assert_eq!(found, one, "bit {bit} of byte {index}"),
                Err(error) => assert!(format!("{error:#}").contains("x.json"), "{error:#}"),
            }
        }
    }
    // Whoever mends it takes the checksum out. Older versions wrote none.
    let text = String::from_utf8(good).expect("text");
    let mended = text.replace("192.0.2.1", "192.0.2.9");
    fs::write(&path, &mended).expect("written");
    let error = format!("{:#}", loaded(&directory).expect_err("changed"));
    assert!(error.contains("checksum"), "{error}");
    let without: String = mended.lines().filter(|line| !line.contains("checksum")).collect();
    fs::write(&path, without).expect("written");
    let found = loaded(&directory).expect("loads");
    assert_eq!(found.state.peers.get("p1").map(|peer| peer.remote.clone()), Some("192.0.2.9".into()));
}

#[test]
fn a_journal_and_a_snapshot_of_different_times_do_not_go_together() {
    let (directory, mut store, first) = store();
    let path = directory.path().join("x.json");
    let (one, two) = (with_peer(&first, 1), with_peer(&with_peer(&first, 1), 2));
    let oldest = fs::read(&path).expect("a snapshot");
    save(&mut store, &first, &one).expect("saves");
    let old = fs::read(journal(&directory)).expect("a journal");
    store.snapshot(&one).expect("saves");
    save(&mut store, &one, &two).expect("saves");
    let (snapshot, new) =
        (fs::read(&path).expect("a snapshot"), fs::read(journal(&directory)).expect("a journal"));
    fs::write(&path, oldest).expect("written");
    let error = format!("{:#}", loaded(&directory).expect_err("an old snapshot"));
    assert!(error.contains("newer snapshot"), "{error}");
    fs::write(&path, snapshot).expect("written");
    assert_eq!(loaded(&directory).expect("loads"), two);
    // What is in the snapshot is not done again, even if it was undone since.
    fs::write(journal(&directory), old).expect("written");
    let mut store = Store::open(directory.path(), "x").expect("opens");
    assert_eq!(store.load().expect("loads"), one);
    // A crash before the old one is removed, then changes.
    save(&mut store, &one, &two).expect("saves");
    assert_eq!(loaded(&directory).expect("loads"), two);
    assert!(!new.is_empty());
}

#[test]
fn a_journal_of_an_older_version_is_read_once() {
    let (directory, _, first) = store();
    let one = with_peer(&first, 1);
    let json = serde_json::json!({"version": 1, "changes": [entry(&first, &one)]}).to_string();
    let line = format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
    fs::write(journal(&directory), &line).expect("written");
    let mut store = Store::open(directory.path(), "x").expect("opens");
    assert_eq!(store.load().expect("loads"), one);
    let two = with_peer(&one, 2);
    save(&mut store, &one, &two).expect("saves");
    assert!(!journal(&directory).exists(), "a snapshot says everything");
    assert_eq!(loaded(&directory).expect("loads"), two);
    fs::write(journal(&directory), &line.as_bytes()[..line.len() - 9]).expect("written");
    assert_eq!(loaded(&directory).expect("loads"), two, "a torn end");
}

#[test]
fn nobody_else_reads_what_is_saved() {
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let outer = tempfile::tempdir().expect("a directory");
    let folder = outer.path().join("state");
    let mut store = Store::open(&folder, "x").expect("opens");
    let first = with(
        &Saved::default(),
        Change::AddSegment { name: "s".into(), settings: SegmentSettings::default() },
    );
    let snapshot = folder.join("x.json");
    // What a link leads to is somebody's, and stays.
    let elsewhere = outer.path().join("elsewhere");
    fs::write(&elsewhere, "theirs").expect("written");
    symlink(&elsewhere, folder.join("x.json.new")).expect("a link");
    save(&mut store, &Saved::default(), &first).expect("saves");
    assert_eq!(fs::read(&elsewhere).expect("there"), b"theirs");
    assert!(fs::symlink_metadata(&snapshot).expect("there").is_file());
    save(&mut store, &first, &with_peer(&first, 1)).expect("saves");
    let journal = folder.join("x.journal");
    assert_eq!((mode(&folder), mode(&snapshot), mode(&journal)), (0o700, 0o600, 0o600));
    // Those of an older version.
    for path in [&snapshot, &journal] {
        fs::set_permissions(path, Permissions::from_mode(0o644)).expect("changed");
    }
    Store::open(&folder, "x").expect("opens");
    assert_eq!((mode(&snapshot), mode(&journal)), (0o600, 0o600));
}

#[test]
fn a_journal_that_cannot_be_written_changes_nothing() {
    let (directory, mut store, first) = store();
    fs::create_dir(journal(&directory)).expect("stands in the way");
    let one = with_peer(&first, 1);
    let error = format!("{:#}", save(&mut store, &first, &one).expect_err("no room"));
    assert!(error.contains("cannot save"), "{error}");
    fs::remove_dir(journal(&directory)).expect("removed");
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
fn files_of_both_versions_are_read_and_of_no_newer_one() {
    let versions = |from: u32, to: u32| {
        let (directory, mut store, first) = store();
        let one = with_peer(&first, 1);
        save(&mut store, &first, &one).expect("saves");
        store.close(&one).expect("a snapshot");
        let path = directory.path().join("x.json");
        let text = fs::read_to_string(&path).expect("there");
        let (here, there) = (format!("\"version\": {from}"), format!("\"version\": {to}"));
        assert!(text.contains(&here), "{text}");
        // Without the checksum, as whoever mends it does.
        let text: Vec<&str> = text.lines().filter(|line| !line.contains("\"checksum\"")).collect();
        fs::write(&path, text.join("\n").replacen(&here, &there, 1)).expect("written");
        let json =
            serde_json::json!({"version": to, "changes": [entry(&one, &with_peer(&one, 2))]}).to_string();
        let sum = crc32fast::hash(json.as_bytes());
        let journal = journal::read(format!("{sum:08x} {json}\n").as_bytes());
        (loaded(&directory).map(|saved| saved == one), journal.map(|journal| journal.entries.len()))
    };
    for version in [1, 2] {
        let (snapshot, journal) = versions(2, version);
        assert!(snapshot.expect("read") && journal.expect("read") == 1, "{version}");
    }
    let (snapshot, journal) = versions(2, 3);
    assert!(
        format!("{:#}", snapshot.expect_err("newer")).contains("format version 3, this program reads 1 to 2")
    );
    assert!(format!("{:#}", journal.expect_err("newer")).contains("format version 3"));
}

#[test]
fn what_was_put_aside_stays_until_there_is_something_newer() {
    let (directory, mut store, first) = store();
    store.retire(&first).expect("retires");
    let aside = |name: &str| directory.path().join(name);
    assert!(!store.put_aside().expect("nothing to do"));
    assert!(aside("x.detached.json").exists(), "the only copy");
    fs::write(aside("x.detached.journal"), "of another").expect("written");
    fs::write(aside("x.json"), "newer").expect("written");
    assert!(store.put_aside().expect("puts aside"));
    assert_eq!(fs::read(aside("x.detached.json")).expect("there"), b"newer");
    assert!(!aside("x.detached.journal").exists(), "it goes with another snapshot");
}

#[test]
fn a_journal_that_is_a_link_is_not_followed() {
    let (directory, mut store, first) = store();
    let one = with_peer(&first, 1);
    let elsewhere = directory.path().join("elsewhere");
    fs::write(&elsewhere, "").expect("written");
    symlink(&elsewhere, directory.path().join("x.journal")).expect("linked");
    save(&mut store, &first, &one).expect("saves");
    assert_eq!(fs::read(&elsewhere).expect("there"), b"");
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
    let (_, aside) = snapshot::parse(&aside).expect("a state");
    assert_eq!(aside, one);
    assert_eq!(aside.state.peers.get("p1").map(Arc::strong_count), Some(1));
}
