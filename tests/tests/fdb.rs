//! The forwarding database: what is learned, told, limited and forgotten.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::{self, Capture},
    daemon::Daemon,
    metrics::Metrics,
    packet::{BROADCAST, Mac, UNKNOWN, mac_text, marked},
    skip::skipped,
    topology::{SEGMENT, Spokes, Underlay},
    traffic, wait,
};
use serde_json::Value;

#[test]
fn entries_say_where_a_host_is() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    one.wait_fdb_port(one.host_mac(), "lan0")?;
    one.wait_fdb_peer(two.host_mac(), "spoke2")?;
    let far = one.fdb(two.host_mac())?.unwrap_or_default();
    assert_eq!(
        (&far["segment"], &far["peer"], &far["port"]),
        (&SEGMENT.into(), &"spoke2".into(), &().into())
    );
    assert_eq!((&far["endpoint"], &far["flags"]), (&"10.0.2.1".into(), &vec!["learned"].into()));
    assert!(far["age_seconds"].as_u64() <= Some(10), "{far}");
    let near = one.fdb(one.host_mac())?.unwrap_or_default();
    assert_eq!((&near["port"], &near["endpoint"]), (&"lan0".into(), &().into()));

    let table = one.daemon.mgre(&["fdb", "show"])?;
    let mut lines = table.lines();
    let heading: Vec<_> = lines.next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(heading, ["SEGMENT", "MAC", "TARGET", "ENDPOINT", "FLAGS", "AGE"], "{table}");
    assert!(lines.any(|line| line.contains(&mac_text(two.host_mac())) && line.contains("spoke2")), "{table}");

    assert_eq!(one.daemon.list(&["fdb", "show", "--peer", "spoke2"])?.len(), 1);
    one.daemon.mgre(&["fdb", "flush", "--peer", "spoke2"])?;
    assert_eq!(one.daemon.list(&["fdb", "show", "--peer", "spoke2"])?.len(), 0);
    assert!(one.fdb(one.host_mac())?.is_some(), "not behind that peer");
    // It is learned again; an address is reported five times a second at most.
    assert!(traffic::ping(&one.host, &["-c", "3", "-i", "0.15", "-W", "5", &two.host_ip()])?.all_came_back());
    one.wait_fdb_peer(two.host_mac(), "spoke2")
}

#[test]
fn static_entries_send_without_flooding_and_never_move() -> Result<()> {
    const SERVER: Mac = [0x02, 0, 0, 0, 0xaa, 0x05];
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Routed)?;
    let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    let mac = mac_text(SERVER);
    one.daemon.mgre(&["fdb", "add", SEGMENT, &mac, "--peer", "spoke2"])?;
    two.daemon.mgre(&["fdb", "add", SEGMENT, &mac, "--port", "lan0"])?;
    let entry = one.fdb(SERVER)?.unwrap_or_default();
    assert_eq!((&entry["peer"], &entry["flags"]), (&"spoke2".into(), &vec!["static"].into()));

    let (at_two, at_three) = (Capture::start(&two.host, "eth0")?, Capture::start(&three.host, "eth0")?);
    let frame = marked(SERVER, one.host_mac(), "to the server");
    capture::send(&one.host, "eth0", &[&frame])?;
    at_two.wait_for("the frame", wait::SOON, |seen| seen.bytes == frame)?;
    // Someone else says to be the server.
    let claim = marked(BROADCAST, SERVER, "a false claim");
    capture::send(&three.host, "eth0", &[&claim])?;
    wait::until("the claim is counted", wait::SOON, || Ok(one.drops("static_mac_moved")? == 1))?;
    wait::until("the claim is counted", wait::SOON, || Ok(two.drops("static_mac_moved")? == 1))?;
    capture::send(&one.host, "eth0", &[&frame])?;
    wait::until("the second frame", wait::SOON, || Ok(at_two.count(|seen| seen.bytes == frame) == 2))?;
    assert_eq!(at_three.count(|seen| seen.bytes == frame), 0, "it is known, not flooded");
    assert_eq!(at_two.count(|seen| seen.bytes == claim), 0);

    // It survives a flush, and goes when told.
    one.daemon.mgre(&["fdb", "flush"])?;
    assert!(one.fdb(SERVER)?.is_some());
    one.daemon.mgre(&["fdb", "del", SEGMENT, &mac])?;
    assert_eq!(one.fdb(SERVER)?, None);
    capture::send(&one.host, "eth0", &[&frame])?;
    at_three.wait_for("it is flooded now", wait::SOON, |seen| seen.bytes == frame)?;
    Ok(())
}

#[test]
fn entries_are_forgotten_when_they_are_old() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    one.daemon.mgre(&["segment", "set", SEGMENT, "--aging", "2"])?;
    let silent: Mac = [0x02, 0, 0, 0, 0xaa, 0x06];
    capture::send(&one.host, "eth0", &[marked(BROADCAST, silent, "and never again")])?;
    one.wait_fdb_port(silent, "lan0")?;
    // While the one is silent, the other speaks.
    for _ in 0..8 {
        assert!(traffic::reaches(&one.host, &two.host_ip())?);
        sleep(Duration::from_millis(500));
        assert!(one.fdb(two.host_mac())?.is_some(), "it speaks and is forgotten");
    }
    wait::until("the silent one is forgotten", wait::SOON, || Ok(one.fdb(silent)?.is_none())).map(|_| ())
}

#[test]
fn a_peer_cannot_fill_the_table() -> Result<()> {
    const LIMIT: u64 = 10;
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    one.wait_fdb_peer(two.host_mac(), "spoke2")?;
    one.daemon.mgre(&["peer", "set", "spoke2", "--max-macs", &LIMIT.to_string()])?;
    let at_one = Capture::start(&one.host, "eth0")?;
    // New stations, until one is too many.
    let station = |number: u8| marked(BROADCAST, [0x02, 0, 0, 0, 0xbb, number], &format!("number {number}"));
    let mut numbers = 0_u8..=255;
    wait::until("the table is full", wait::SOON, || {
        let number = numbers.next().context("256 stations, and none is too many")?;
        capture::send(&two.host, "eth0", &[station(number)])?;
        Ok(one.drops("mac_limit")? > 0)
    })?;
    let learned = one.daemon.list(&["fdb", "show", "--peer", "spoke2"])?.len();
    assert_eq!(learned as u64, LIMIT);
    // And then every one.
    let before = one.drops("mac_limit")?;
    let frames: Vec<_> =
        (0..30).map(|number| marked(BROADCAST, [0x02, 0, 0, 0, 0xbc, number], "late")).collect();
    capture::send(&two.host, "eth0", &frames)?;
    wait::until("they are counted", wait::SOON, || Ok(one.drops("mac_limit")? == before + 30))?;
    assert_eq!(at_one.count(|seen| frames.contains(&seen.bytes)), 0);
    assert_eq!(one.daemon.list(&["fdb", "show", "--peer", "spoke2"])?.len() as u64, LIMIT);
    // Who is known is not concerned, here and there.
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    let rows = one.daemon.list(&["stats", "--drops"])?;
    assert!(rows.iter().any(|row| row["reason"] == "mac_limit" && row["peer"] == "spoke2"), "{rows:?}");

    // When there is room again, it is learned again.
    one.daemon.mgre(&["fdb", "flush", "--peer", "spoke2"])?;
    let late = marked(BROADCAST, UNKNOWN, "late");
    capture::send(&two.host, "eth0", &[&late])?;
    at_one.wait_for("the late one", wait::SOON, |seen| seen.bytes == late)?;
    one.wait_fdb_peer(UNKNOWN, "spoke2")
}

#[test]
fn a_frame_is_not_sent_back_where_it_came_from() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    // Two hosts behind one port: what one sends to the other has already reached it.
    let neighbor: Mac = [0x02, 0, 0, 0, 0xaa, 0x07];
    capture::send(&one.host, "eth0", &[marked(BROADCAST, neighbor, "here I am")])?;
    one.wait_fdb_port(neighbor, "lan0")?;
    let (at_one, at_two) = (Capture::start(&one.host, "eth0")?, Capture::start(&two.host, "eth0")?);
    let frame = marked(neighbor, one.host_mac(), "to the neighbour");
    let before = one.drops("no_target")?;
    capture::send(&one.host, "eth0", &[&frame])?;
    wait::until("it is counted", wait::SOON, || Ok(one.drops("no_target")? == before + 1))?;
    sleep(Duration::from_millis(100));
    assert_eq!(at_one.count(|seen| !seen.outgoing && seen.bytes == frame), 0);
    assert_eq!(at_two.count(|seen| seen.bytes == frame), 0);
    Ok(())
}

#[test]
fn a_new_segment_counts_from_zero() -> Result<()> {
    const MOVING: Mac = [0x02, 0, 0, 0, 0xcc, 1];
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(1, Underlay::Switched)?;
    let one = spokes.spoke(1);
    let other = one.add_host("lan1", [0x02, 0, 0, 0, 1, 0x11])?;
    one.daemon.mgre(&["port", "add", SEGMENT, "lan1"])?;
    let moves = |segment: &str| -> Result<f64> {
        Ok(Metrics::over_socket(&one.daemon.socket())?
            .get("mgre_fdb_moves_total", &[("segment", segment)])
            .unwrap_or(-1.0))
    };
    for (host, port) in [(&one.host, "lan0"), (&other, "lan1")] {
        wait::until("it is learned there", wait::SOON, || {
            capture::send(host, "eth0", &[marked(BROADCAST, MOVING, "here")])?;
            Ok(one.fdb(MOVING)?.is_some_and(|entry| entry["port"] == port))
        })?;
    }
    assert!(moves(SEGMENT)? >= 1.0);
    let old = saved_id(&one.daemon, SEGMENT)?;
    for words in [&["port", "del", "lan0"][..], &["port", "del", "lan1"], &["segment", "del", SEGMENT]] {
        one.daemon.mgre(words)?;
    }
    // Its id rests for a while. With another one there would be nothing to see.
    wait::until("the id is given out again", wait::SOON, || {
        one.daemon.mgre(&["segment", "add", "fresh", "--key", "7"])?;
        let again = saved_id(&one.daemon, "fresh")? == old;
        if !again {
            one.daemon.mgre(&["segment", "del", "fresh"])?;
            sleep(Duration::from_secs(1));
        }
        Ok(again)
    })?;
    assert_eq!(moves("fresh")?, 0.0);
    Ok(())
}

/// The id that a segment has, or had last, by what is saved.
fn saved_id(daemon: &Daemon, segment: &str) -> Result<u64> {
    let state = daemon.path().join("state");
    let snapshot: Value = serde_json::from_slice(&fs::read(state.join("default.json"))?)?;
    let mut states = vec![snapshot["state"].clone()];
    for line in fs::read_to_string(state.join("default.journal")).unwrap_or_default().lines() {
        let json = line.splitn(3, ' ').nth(2).context("a line of another form")?;
        let unit: Value = serde_json::from_str(json)?;
        states.extend(unit["changes"].as_array().into_iter().flatten().map(|change| change["state"].clone()));
    }
    let id = states.iter().rev().find_map(|state| state["segments"][segment]["id"].as_u64());
    id.context("no such segment was saved")
}
