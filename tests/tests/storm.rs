//! What may be flooded: storm limits, and the addresses that bridges keep to one link.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::{self, Capture},
    packet::{self, BROADCAST, MULTICAST, Mac, UNKNOWN, marked},
    skip::skipped,
    spoke::Spoke,
    topology::{Layout, SEGMENT, Spokes, Underlay},
    traffic, wait,
};

/// How many frames a storm has.
const FRAMES: usize = 2000;
/// A limit that lets few of them through: a quarter of a second's frames at once, and so many a second.
const LIMIT: u64 = 200;

/// How long a frame that must not come is waited for.
const QUIET: Duration = Duration::from_millis(300);

/// Frames to everybody, to some, and to nobody known, each one of its own.
fn storm(source: Mac) -> Vec<Vec<u8>> {
    let to = [BROADCAST, MULTICAST, UNKNOWN];
    (0..FRAMES).map(|number| marked(to[number % to.len()], source, &format!("storm {number}"))).collect()
}

/// A counter of one of the rows of `stats --drops`.
fn storm_drops(spoke: &Spoke, key: &str, name: &str) -> Result<u64> {
    let rows = spoke.daemon.list(&["stats", "--drops"])?;
    let row = rows.iter().find(|row| row["reason"] == "storm_limit" && row[key] == name);
    Ok(row.and_then(|row| row["packets"].as_u64()).unwrap_or(0))
}

/// What of a storm came through: at least a burst, and no more than the limit says of the time that it took.
fn is_limited(passed: u64, elapsed: Duration) -> bool {
    let most = LIMIT / 4 + (LIMIT as f64 * elapsed.as_secs_f64()) as u64 + 2;
    (LIMIT / 4..=most).contains(&passed)
}

#[test]
fn a_ports_storm_is_limited_and_nothing_else() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    one.daemon.mgre(&["port", "set", "lan0", "--storm-limit", &LIMIT.to_string()])?;
    assert_eq!(one.daemon.list(&["port", "show"])?[0]["storm_limit"], LIMIT);
    assert!(one.daemon.mgre(&["port", "show"])?.contains("storm-limit=200"));
    assert!(one.daemon.mgre(&["export"])?.contains("storm_limit = 200"));
    let frames = storm(one.host_mac());
    let at_two = Capture::start(&two.host, "eth0")?;
    let arrived =
        |capture: &Capture| capture.count(|seen| !seen.outgoing && frames.contains(&seen.bytes)) as u64;

    // Known unicast has no limit.
    let over = AtomicBool::new(false);
    let (pings, elapsed) = thread::scope(|scope| -> Result<_> {
        let pinging = scope.spawn(|| {
            let pings =
                traffic::ping(&one.host, &["-q", "-c", "50", "-i", "0.01", "-W", "5", &two.host_ip()]);
            over.store(true, Ordering::Relaxed);
            pings
        });
        let start = Instant::now();
        capture::send(&one.host, "eth0", &frames)?;
        let dropped = || storm_drops(one, "port", "lan0");
        wait::until("all frames were seen", wait::SOON, || {
            Ok(dropped()? + arrived(&at_two) >= FRAMES as u64)
        })?;
        let elapsed = start.elapsed();
        Ok((pinging.join().expect("a thread")?, elapsed))
    })?;
    assert!(pings.all_came_back(), "{pings:?}");
    let (passed, dropped) = (arrived(&at_two), storm_drops(one, "port", "lan0")?);
    assert!(is_limited(passed, elapsed), "{passed} passed in {elapsed:?}");
    assert_eq!(passed + dropped, FRAMES as u64);

    one.daemon.mgre(&["port", "set", "lan0", "--storm-limit", "off"])?;
    let at_two = Capture::start(&two.host, "eth0")?;
    capture::send(&one.host, "eth0", &frames)?;
    wait::until("all of them pass", wait::SOON, || Ok(arrived(&at_two) == FRAMES as u64))?;
    assert_eq!(storm_drops(one, "port", "lan0")?, dropped);
    assert!(!one.daemon.mgre(&["export"])?.contains("storm_limit"));
    Ok(())
}

#[test]
fn a_peers_storm_does_not_use_up_another_peers_share() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Switched)?;
    let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    assert!(traffic::reaches(&two.host, &one.host_ip())?);
    for peer in ["spoke2", "spoke3"] {
        one.daemon.mgre(&["peer", "set", peer, "--storm-limit", &LIMIT.to_string()])?;
    }
    assert_eq!(one.peer("spoke2")?["storm_limit"], LIMIT);
    let frames = storm(two.host_mac());
    let at_one = Capture::start(&one.host, "eth0")?;
    let arrived = || at_one.count(|seen| !seen.outgoing && frames.contains(&seen.bytes)) as u64;
    let start = Instant::now();
    let outer: Vec<Vec<u8>> =
        frames.iter().map(|frame| spokes.outer(2, 1).frame(frame)).collect::<Result<_>>()?;
    spokes.send_to(1, &outer)?;
    let dropped = || storm_drops(one, "peer", "spoke2");
    wait::until("all frames were seen", wait::SOON, || Ok(dropped()? + arrived() >= FRAMES as u64))?;
    let elapsed = start.elapsed();
    assert!(is_limited(arrived(), elapsed), "{} passed in {elapsed:?}", arrived());
    assert_eq!(arrived() + dropped()?, FRAMES as u64);

    // Another peer's broadcasts pass, and so does what is for a station.
    let frame = marked(BROADCAST, three.host_mac(), "of another peer");
    capture::send(&three.host, "eth0", &[&frame])?;
    at_one.wait_arrival("a broadcast of the other peer", &frame)?;
    assert_eq!(storm_drops(one, "peer", "spoke3")?, 0);
    assert!(traffic::reaches(&two.host, &one.host_ip())?);

    let outcome = one.daemon.outcome(&["peer", "set", "spoke2", "--storm-limit", "0"])?;
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("a storm limit is a number of frames a second"), "{outcome:?}");
    assert_eq!(one.peer("spoke2")?["storm_limit"], LIMIT, "nothing is changed");
    Ok(())
}

/// To which of the sixteen addresses frames pass.
fn groups_that_pass(spokes: &Spokes) -> Result<Vec<u8>> {
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let at_two = Capture::start(&two.host, "eth0")?;
    let before = one.drops("link_local")?;
    let frames: Vec<(u8, Vec<u8>)> = (0..16)
        .map(|last| {
            let ethertype = if last == 1 { 0x8808 } else { packet::ETHERTYPE_EXPERIMENT };
            (last, packet::frame([1, 0x80, 0xc2, 0, 0, last], one.host_mac(), ethertype, &[last; 60]))
        })
        .collect();
    for (_, frame) in &frames {
        capture::send(&one.host, "eth0", &[frame])?;
    }
    // The last of what is sent.
    let end = marked(BROADCAST, one.host_mac(), "the end");
    capture::send(&one.host, "eth0", &[&end])?;
    at_two.wait_arrival("the end", &end)?;
    sleep(wait::quiet(QUIET));
    let passed: Vec<u8> =
        frames.iter().filter(|(_, frame)| at_two.arrived(frame) == 1).map(|(last, _)| *last).collect();
    assert_eq!(one.drops("link_local")? - before, 16 - passed.len() as u64, "what does not pass is counted");
    Ok(passed)
}

#[test]
fn what_bridges_keep_to_one_link_passes_as_the_segment_says() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Layout::new(2, Underlay::Switched).build()?;
    assert!(traffic::reaches(&spokes.spoke(1).host, &spokes.spoke(2).host_ip())?);
    let set = |policy: &str| -> Result<()> {
        spokes.iter().try_for_each(|spoke| {
            spoke.daemon.mgre(&["segment", "set", SEGMENT, "--link-local", policy]).map(|_| ())
        })
    };
    let all_but_pause: Vec<u8> = (0..16).filter(|last| *last != 1).collect();
    assert_eq!(groups_that_pass(&spokes)?, all_but_pause);
    set("drop")?;
    assert_eq!(groups_that_pass(&spokes)?, Vec::<u8>::new());
    assert_eq!(spokes.spoke(1).daemon.list(&["segment", "show"])?[0]["link_local"], "drop");
    set("stp,lldp")?;
    assert_eq!(groups_that_pass(&spokes)?, [0, 0xe]);
    assert!(spokes.spoke(1).daemon.mgre(&["export"])?.contains("link_local = \"stp,lldp\""));
    assert!(spokes.spoke(1).daemon.mgre(&["segment", "show"])?.contains("link-local=stp,lldp"));
    let outcome =
        spokes.spoke(1).daemon.outcome(&["segment", "set", SEGMENT, "--link-local", "stp,pause"])?;
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert_eq!(groups_that_pass(&spokes)?, [0, 0xe]);

    // The policy is the receiver's, too.
    spokes.spoke(1).daemon.mgre(&["segment", "set", SEGMENT, "--link-local", "forward"])?;
    let before = spokes.spoke(2).drops("link_local")?;
    let frame = packet::frame([1, 0x80, 0xc2, 0, 0, 3], spokes.spoke(1).host_mac(), 0x888e, &[3; 60]);
    capture::send(&spokes.spoke(1).host, "eth0", &[&frame])?;
    wait::until("the other spoke drops it", wait::SOON, || {
        Ok(spokes.spoke(2).drops("link_local")? == before + 1)
    })
    .context("EAPOL")?;
    Ok(())
}
