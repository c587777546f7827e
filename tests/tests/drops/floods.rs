//! Frames that a segment is spared: storms, loops, and what bridges keep to one link.

use anyhow::{Context as _, Result};
use mgre_common::reason::{Direction, DropReason};
use mgre_tests::{
    metrics::Metrics,
    packet::{BROADCAST, Mac, marked},
    skip::skipped,
    topology::{SEGMENT, Spokes},
    wait,
};

use crate::case::{self, Case, FRAMES, Of, SENDER, here, mgre, outer, run, send, send_from_host, settle};

const fn case(
    reason: DropReason,
    whose: Of,
    what: &'static str,
    provoke: fn(&Spokes) -> Result<u64>,
) -> Case {
    Case { reason, what, whose, direction: Direction::Receive, provoke }
}

const PEER: Of = Of::Peer("spoke1");
const PORT: Of = Of::Port("lan0");

pub(crate) const CASES: &[Case] = &[
    case(DropReason::StormLimit, PORT, "broadcasts of a port", |spokes| {
        mgre(spokes, &["port", "set", "lan0", "--storm-limit", "1"])?;
        let refused = not_flooded(spokes, || {
            let frame = marked(BROADCAST, here(spokes).host_mac(), "a storm");
            repeat(|| send_from_host(spokes, &frame))
        })?;
        mgre(spokes, &["port", "set", "lan0", "--storm-limit", "off"])?;
        Ok(refused)
    }),
    case(DropReason::StormLimit, PEER, "broadcasts of a peer", |spokes| {
        mgre(spokes, &["peer", "set", "spoke1", "--storm-limit", "1"])?;
        let refused = not_flooded(spokes, || {
            let packet = outer(spokes).frame(&marked(BROADCAST, SENDER, "a storm"))?;
            repeat(|| send(spokes, std::slice::from_ref(&packet)))
        })?;
        mgre(spokes, &["peer", "set", "spoke1", "--storm-limit", "off"])?;
        Ok(refused)
    }),
    case(
        DropReason::LinkLocal,
        PORT,
        "a pause frame of a port, and spanning tree where it is not to pass",
        |spokes| {
            let to = |last| marked(link_local(last), here(spokes).host_mac(), "to a bridge");
            let paused = send_from_host(spokes, &to(1))?;
            settle(spokes)?;
            mgre(spokes, &["segment", "set", SEGMENT, "--link-local", "lldp"])?;
            let dropped = send_from_host(spokes, &to(0))?;
            // This one passes.
            send_from_host(spokes, &to(0xe))?;
            settle(spokes)?;
            mgre(spokes, &["segment", "set", SEGMENT, "--link-local", "forward"])?;
            Ok(paused + dropped)
        },
    ),
    case(DropReason::LinkLocal, PEER, "the same of a peer", |spokes| {
        let to = |last| outer(spokes).frame(&marked(link_local(last), SENDER, "to a bridge"));
        let paused = send(spokes, &[to(1)?])?;
        settle(spokes)?;
        mgre(spokes, &["segment", "set", SEGMENT, "--link-local", "drop"])?;
        let dropped = send(spokes, &[to(0)?, to(0xe)?])?;
        settle(spokes)?;
        mgre(spokes, &["segment", "set", SEGMENT, "--link-local", "forward"])?;
        Ok(paused + dropped)
    }),
    case(DropReason::Loop, PEER, "an address that is held at a port, from a peer", |spokes| {
        not_flooded(spokes, || {
            let frame = marked(BROADCAST, LOOPING, "round and round");
            let packet = outer(spokes).frame(&frame)?;
            // It was at the port before it was anywhere else.
            let mut sent = send_from_host(spokes, &frame)?;
            here(spokes).wait_fdb_port(LOOPING, "lan0")?;
            wait::until("the address is held", wait::SOON, || {
                // As often as reports of one address are taken.
                spokes.send_to(case::HERE, &[&packet])?;
                mgre_tests::capture::send(&here(spokes).host, "eth0", &[&frame])?;
                sent += 2;
                std::thread::sleep(REPORTED_AGAIN);
                let entry = here(spokes).fdb(LOOPING)?;
                Ok(entry.is_some_and(|entry| {
                    entry["port"] == "lan0"
                        && entry["flags"].as_array().is_some_and(|flags| flags.contains(&"held".into()))
                }))
            })?;
            Ok(sent + send(spokes, &[packet])?)
        })
    }),
];

/// How long after a report of an address the next one is taken.
const REPORTED_AGAIN: std::time::Duration = std::time::Duration::from_millis(220);
/// Seen in two places.
const LOOPING: Mac = [0x02, 0, 0, 0, 0xcc, 0x03];

/// One of the addresses that bridges do not forward (IEEE 802.1Q 8.6.3).
const fn link_local(last: u8) -> Mac {
    [0x01, 0x80, 0xc2, 0, 0, last]
}

/// Sends more often than a limit lets through at once.
fn repeat(send: impl Fn() -> Result<u64>) -> Result<u64> {
    const AT_ONCE: u64 = 32;
    (0..AT_ONCE.div_ceil(FRAMES) + 1).map(|_| send()).sum()
}

/// How many of the frames sent were not flooded.
fn not_flooded(spokes: &Spokes, send: impl FnOnce() -> Result<u64>) -> Result<u64> {
    let flooded = || -> Result<u64> {
        let metrics = Metrics::over_socket(&here(spokes).daemon.socket())?;
        let frames = metrics.get("mgre_flood_frames_total", &[("segment", SEGMENT)]);
        Ok(frames.context("no count of flooded frames")? as u64)
    };
    let before = flooded()?;
    let sent = send()?;
    settle(spokes)?;
    Ok(sent - (flooded()? - before))
}

#[test]
fn frames_that_a_segment_is_spared() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    run(&case::build()?, CASES)
}
