//! Storm control: what may be flooded, and that nothing else is held back by it. And what bridges keep to one link.

use std::time::Instant;

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::{self, Capture},
    conservation::{self, Books},
    metrics::Metrics,
    packet::{BROADCAST, MULTICAST, Mac, UNKNOWN, marked},
    skip::skipped,
    topology::{SEGMENT, Spokes, Underlay},
    wait,
};

/// Frames of a storm, and the limit in frames a second.
const FRAMES: usize = 2000;
const LIMIT: u64 = 200;
/// A quarter of a second's worth may come at once.
const BURST: u64 = LIMIT / 4;

/// Where a storm comes from, at the second spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Port,
    Peer,
}

impl From {
    fn limit(self, spokes: &Spokes, limit: &str) -> Result<()> {
        let words: &[&str] = match self {
            Self::Port => &["port", "set", "lan0", "--storm-limit", limit],
            Self::Peer => &["peer", "set", "spoke1", "--storm-limit", limit],
        };
        spokes.spoke(2).daemon.mgre(words).map(|_| ())
    }

    fn send(self, spokes: &Spokes, frames: &[Vec<u8>]) -> Result<()> {
        match self {
            Self::Port => capture::send(&spokes.spoke(2).host, "eth0", frames),
            Self::Peer => {
                let outer = spokes.outer(1, 2);
                let packets = frames.iter().map(|frame| outer.frame(frame)).collect::<Result<Vec<_>>>()?;
                spokes.send_to(2, &packets)
            }
        }
    }

    /// Who sends at this place.
    fn source(self, spokes: &Spokes) -> Mac {
        spokes.spoke(if self == Self::Port { 2 } else { 1 }).host_mac()
    }
}

fn flooded(spokes: &Spokes) -> Result<u64> {
    let metrics = Metrics::over_socket(&spokes.spoke(2).daemon.socket())?;
    let frames = metrics.get("mgre_flood_frames_total", &[("segment", SEGMENT)]);
    Ok(frames.context("no count of flooded frames")? as u64)
}

/// Spokes whose hosts say nothing by themselves and know each other.
fn build() -> Result<Spokes> {
    let spokes = Spokes::new(3, Underlay::Switched)?;
    for spoke in spokes.iter() {
        spoke.host.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        capture::send(&spoke.host, "eth0", &[marked(BROADCAST, spoke.host_mac(), "here I am")])?;
        spoke.wait_fdb_port(spoke.host_mac(), "lan0")?;
    }
    let two = spokes.spoke(2);
    two.wait_fdb_peer(spokes.spoke(1).host_mac(), "spoke1")?;
    two.wait_fdb_peer(spokes.spoke(3).host_mac(), "spoke3")?;
    spokes.spoke(3).wait_fdb_peer(two.host_mac(), "spoke2")?;
    Ok(spokes)
}

/// Sends a storm of all kinds of frames that are flooded; says how many were flooded, and how many might have been at most.
fn storm(spokes: &Spokes, from: From) -> Result<(u64, u64)> {
    let source = from.source(spokes);
    let frames: Vec<Vec<u8>> = (0..FRAMES)
        .map(|number| marked([BROADCAST, MULTICAST, UNKNOWN][number % 3], source, "a storm"))
        .collect();
    let two = spokes.spoke(2);
    let (before, refused, start) = (flooded(spokes)?, two.drops("storm_limit")?, Instant::now());
    from.send(spokes, &frames)?;
    let mut count = 0;
    wait::until("all are flooded or refused", wait::SOON, || {
        count = flooded(spokes)? - before;
        Ok(count + two.drops("storm_limit")? - refused == FRAMES as u64)
    })
    .with_context(|| format!("{from:?}: {count} flooded"))?;
    let earned = (start.elapsed().as_secs_f64() * LIMIT as f64).ceil() as u64;
    Ok((count, BURST + earned + 1))
}

#[test]
fn a_storm_is_limited_and_nothing_else() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build()?;
    let (two, three) = (spokes.spoke(2), spokes.spoke(3));
    for from in [From::Port, From::Peer] {
        let books = Books::open(&spokes)?;
        from.limit(&spokes, &LIMIT.to_string())?;
        let (count, most) = storm(&spokes, from)?;
        assert!((BURST..=most).contains(&count), "{from:?}: {count} flooded, {most} at most");

        // Known unicast from the same place goes all the same, and so do broadcasts from others.
        let (to, at) = if from == From::Port { (three, &three.host) } else { (two, &two.host) };
        let seen = Capture::start(at, "eth0")?;
        let known = marked(to.host_mac(), from.source(&spokes), "to one");
        from.send(&spokes, &vec![known.clone(); FRAMES])?;
        let others = marked(BROADCAST, three.host_mac(), "from another");
        let at_two = Capture::start(&two.host, "eth0")?;
        capture::send(&three.host, "eth0", &vec![&others; FRAMES])?;
        wait::until("others' frames arrive", wait::SOON, || Ok(at_two.arrived(&others) == FRAMES))?;
        wait::until("known unicast arrives", wait::SOON, || Ok(seen.arrived(&known) == FRAMES))?;

        from.limit(&spokes, "off")?;
        assert_eq!(storm(&spokes, from)?.0, FRAMES as u64, "{from:?}: not limited any more");
        books.check(&spokes)?;
    }
    conservation::check_peer(three, two)
}

/// What bridges keep to one link (IEEE 802.1Q 8.6.3): pause frames never pass, the others as the segment says.
#[test]
fn frames_for_bridges_pass_as_the_segment_says() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    const STP: u8 = 0x0;
    const PAUSE: u8 = 0x1;
    const LACP: u8 = 0x2;
    const LLDP: u8 = 0xe;
    let spokes = build()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let frame = |last, ethertype, text: &str| {
        let mut frame = marked([0x01, 0x80, 0xc2, 0, 0, last], one.host_mac(), text);
        frame[12..14].copy_from_slice(&u16::to_be_bytes(ethertype));
        frame
    };
    let kinds = [(STP, 0x0027), (PAUSE, 0x8808), (LACP, 0x8809), (LLDP, 0x88cc)];
    for (policy, passing) in [
        ("forward", &[STP, LACP, LLDP][..]),
        ("drop", &[]),
        ("lldp", &[LLDP]),
        ("stp,lldp", &[STP, LLDP]),
        ("forward", &[STP, LACP, LLDP]),
    ] {
        one.daemon.mgre(&["segment", "set", SEGMENT, "--link-local", policy])?;
        let at_two = Capture::start(&two.host, "eth0")?;
        let before = one.drops("link_local")?;
        for (last, ethertype) in kinds {
            capture::send(&one.host, "eth0", &[frame(last, ethertype, policy)])?;
        }
        // Behind them, so that they have come when this one has.
        let end = marked(two.host_mac(), one.host_mac(), policy);
        capture::send(&one.host, "eth0", &[&end])?;
        at_two.wait_arrival("the last frame", &end)?;
        one.wait_drops("link_local", before + (kinds.len() - passing.len()) as u64)?;
        for (last, ethertype) in kinds {
            let frame = frame(last, ethertype, policy);
            if passing.contains(&last) {
                at_two.wait_arrival(&format!("a frame to {last:#x}, {policy}"), &frame)?;
            }
            assert_eq!(at_two.arrived(&frame), usize::from(passing.contains(&last)), "{last:#x}, {policy}");
        }
    }
    Ok(())
}
