//! Where the state is saved: full, read-only, or not what it should be.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use mgre_tests::{
    daemon::{self, Daemon, Options},
    disk::Disk,
    http::request,
    lone::Lone,
    netns::Netns,
    skip::skipped,
    topology::SEGMENT,
};

/// Room of the file system for the state.
const ROOM: u32 = 128 * 1024;

/// A daemon whose state is on a small file system of its own.
fn on_a_small_disk() -> Result<(Lone, Disk)> {
    Lone::prepared(Options::default(), |folder| Disk::mount(&folder.join("state"), ROOM))
}

/// What is in force, but for numbers that count.
fn in_force(daemon: &Daemon) -> Result<[String; 3]> {
    Ok([daemon.mgre(&["export"])?, daemon.mgre(&["fdb", "show"])?, daemon.mgre(&["underlay", "show"])?])
}

/// Adds peers until one is refused; its number, and why.
fn add_until_refused(lone: &Lone, from: usize) -> Result<(usize, String)> {
    for number in from..from + 2000 {
        let (name, remote) = (format!("p{number}"), format!("10.1.{}.{}", number / 250, 1 + number % 250));
        let outcome = lone.daemon.outcome(&["peer", "add", &name, &remote, "--segment", SEGMENT])?;
        if outcome.code != Some(0) {
            assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
            return Ok((number, outcome.stderr));
        }
    }
    anyhow::bail!("2,000 peers, and none is refused")
}

#[test]
fn a_full_disk_refuses_changes_until_there_is_room() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (mut lone, disk) = on_a_small_disk()?;
    // Without a snapshot.
    disk.fill()?;
    let before = in_force(&lone.daemon)?;
    let outcome = lone.daemon.outcome(&["segment", "add", SEGMENT, "--key", "7"])?;
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    for word in ["cannot save", "default.json", "No space left", "nothing was changed"] {
        assert!(outcome.stderr.contains(word), "{outcome:?}");
    }
    assert_eq!(in_force(&lone.daemon)?, before);
    disk.empty()?;
    lone.set_up()?;

    // In the journal, which is torn where the room ends.
    disk.fill()?;
    let (number, why) = add_until_refused(&lone, 0)?;
    assert!(why.contains("cannot save") && why.contains("default.journal"), "{why}");
    assert!(why.contains("No space left") && why.contains("nothing was changed"), "{why}");
    let full = in_force(&lone.daemon)?;
    assert!(!full[0].contains(&format!("\"p{number}\"")), "what was refused is in force");
    let body = r#"{"remote": "10.9.9.9", "segments": ["lan"], "ttl": 9}"#;
    let answer = request(&lone.daemon.socket(), "PUT", "/v1/peers/other", body)?;
    assert_eq!((answer.status, &answer.body["status"]), (507, &507.into()), "{answer:?}");
    // What must be made before it can be saved is taken away again.
    let links = || lone.netns.run(&["ip", "-oneline", "link", "show"]);
    let links_before = links()?.lines().count();
    let outcome = lone.daemon.outcome(&["port", "create", SEGMENT, "ov0", "--address", "10.77.0.9/24"])?;
    assert!(outcome.code == Some(1) && outcome.stderr.contains("No space left"), "{outcome:?}");
    assert_eq!(links()?.lines().count(), links_before);
    assert!(!links()?.contains("ov0"));
    let document = lone.daemon.path().join("empty.toml");
    fs::write(&document, "")?;
    let apply = ["apply", document.to_str().context("a path")?];
    assert_eq!(lone.daemon.outcome(&apply)?.code, Some(1), "less cannot be saved either");
    assert_eq!(in_force(&lone.daemon)?, full);
    assert_eq!(lone.peer("b")?["state"], "up");

    // What was answered for is there after a crash, and nothing else.
    lone.daemon.kill()?;
    lone.daemon.start_again()?;
    assert_eq!(in_force(&lone.daemon)?, full);
    // With room, everything works, without a restart.
    disk.empty()?;
    lone.daemon.mgre(&["peer", "add", "late", "10.0.0.3", "--segment", SEGMENT])?;
    lone.daemon.mgre(&["port", "create", SEGMENT, "ov0"])?;
    let late = in_force(&lone.daemon)?;
    // Nor does a clean end on a full disk lose anything.
    disk.fill()?;
    assert_eq!(lone.daemon.stop()?.code(), Some(0));
    lone.daemon.start_again()?;
    assert_eq!(in_force(&lone.daemon)?, late);
    Ok(())
}

#[test]
fn a_disk_that_cannot_be_written_refuses_changes() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (mut lone, disk) = on_a_small_disk()?;
    lone.set_up()?;
    let before = in_force(&lone.daemon)?;
    disk.set_writable(false)?;
    let refused = |lone: &Lone| -> Result<()> {
        for words in [&["peer", "del", "b"][..], &["segment", "set", SEGMENT, "--aging", "7"]] {
            let outcome = lone.daemon.outcome(words)?;
            assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
            assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
        }
        assert_eq!(in_force(&lone.daemon)?, before);
        Ok(())
    };
    refused(&lone)?;
    // It starts so, too: frames go first.
    lone.daemon.kill()?;
    lone.daemon.start_again()?;
    let log = lone.daemon.log();
    assert!(log.contains("changes will be refused"), "{log}");
    lone.wait_up()?;
    refused(&lone)?;
    disk.set_writable(true)?;
    lone.daemon.mgre(&["peer", "del", "b"])?;

    // The snapshot cannot take the place of a folder; what is there stays.
    lone.daemon.stop()?;
    let (snapshot, aside) = (disk.path().join("default.json"), disk.path().join("aside"));
    lone.daemon.start_again()?;
    let now = in_force(&lone.daemon)?;
    fs::rename(&snapshot, &aside)?;
    fs::create_dir(&snapshot)?;
    fs::remove_file(disk.path().join("default.journal")).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    lone.daemon.mgre(&["segment", "add", "other", "--key", "8"])?;
    fs::remove_file(disk.path().join("default.journal"))?;
    let outcome = lone.daemon.outcome(&["segment", "add", "another", "--key", "9"])?;
    assert!(outcome.code == Some(1) && outcome.stderr.contains("default.json"), "{outcome:?}");
    assert!(!disk.path().join("default.json.new").exists(), "half a snapshot is left");
    fs::remove_dir(&snapshot)?;
    lone.daemon.mgre(&["segment", "add", "another", "--key", "9"])?;
    for name in ["other", "another"] {
        lone.daemon.mgre(&["segment", "del", name])?;
    }
    assert_eq!(in_force(&lone.daemon)?, now);
    Ok(())
}

/// The same command, that does not run for ever where it should end at once.
fn limited(command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited.arg("20").arg(command.get_program()).args(command.get_args());
    limited
}

#[test]
fn a_state_that_cannot_be_understood_is_left_as_it_is() -> Result<()> {
    const SNAPSHOT: &str = "default.json";
    const JOURNAL: &str = "default.journal";
    if skipped() {
        return Ok(());
    }
    let (mut lone, ()) = Lone::prepared(Options::default(), |_| Ok(()))?;
    lone.set_up()?;
    lone.daemon.kill()?;
    let folder = lone.daemon.path().join("state");
    let good = [SNAPSHOT, JOURNAL].map(|name| fs::read(folder.join(name)).unwrap_or_default());
    assert!(good.iter().all(|bytes| !bytes.is_empty()));
    let [snapshot, journal] = &good;
    let future =
        String::from_utf8_lossy(snapshot).replacen("\"version\": ", "\"version\": 9", 1).into_bytes();
    assert_ne!(&future, snapshot);
    let mut damaged = journal.clone();
    damaged[20] ^= 1;
    let cases: [(&str, Vec<u8>, &[&str]); 7] = [
        (SNAPSHOT, snapshot[..snapshot.len() / 2].to_vec(), &[SNAPSHOT, "mend it, or move it away"]),
        (SNAPSHOT, Vec::new(), &[SNAPSHOT, "mend it, or move it away"]),
        (SNAPSHOT, vec![0; 4096], &[SNAPSHOT, "mend it, or move it away"]),
        (SNAPSHOT, vec![0xff; 4096], &[SNAPSHOT, "mend it, or move it away"]),
        (SNAPSHOT, b"{\"state\": []}".to_vec(), &[SNAPSHOT, "mend it, or move it away"]),
        (SNAPSHOT, future, &[SNAPSHOT, "format version 92, this program reads 1 to 2"]),
        (JOURNAL, damaged, &[JOURNAL, "line 1 is damaged"]),
    ];
    let start = |lone: &Lone, words: &[&str]| -> Result<()> {
        let outcome = daemon::outcome(&mut limited(&lone.daemon.daemon_command()?))?;
        let last = outcome.stderr.lines().last().unwrap_or_default();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
        assert!(words.iter().all(|word| last.contains(word)), "{words:?}: {outcome:?}");
        Ok(())
    };
    for (name, bytes, words) in cases {
        fs::write(folder.join(name), &bytes)?;
        start(&lone, words)?;
        assert_eq!(fs::read(folder.join(name))?, bytes, "it was changed");
        fs::write(folder.join(SNAPSHOT), snapshot)?;
        fs::write(folder.join(JOURNAL), journal)?;
    }
    for name in [SNAPSHOT, JOURNAL] {
        fs::rename(folder.join(name), folder.join("aside"))?;
        fs::create_dir(folder.join(name))?;
        start(&lone, &[name, "Is a directory"])?;
        fs::remove_dir(folder.join(name))?;
        fs::rename(folder.join("aside"), folder.join(name))?;
    }
    lone.daemon.start_again()?;
    lone.wait_up()
}

#[test]
fn a_folder_that_is_none_is_said_so() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let netns = Netns::new("lone")?;
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("state"), "a file")?;
    let error = Daemon::start_in(&netns, Options::default(), folder.path());
    // The folder cannot be made by the test either; so the daemon is started by hand.
    assert!(error.is_err());
    let mut command = netns.command(daemon::program()?.to_str().context("a path")?);
    command.args([
        "--run-dir",
        "run",
        "daemon",
        "--state-dir",
        "state",
        "--bpffs",
        "bpf",
        "--metrics",
        "off",
    ]);
    let outcome = daemon::outcome(limited(&command).current_dir(folder.path()))?;
    nix::mount::umount(&folder.path().join("bpf")).ok();
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let last = outcome.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("cannot make state: File exists"), "{outcome:?}");
    Ok(())
}
