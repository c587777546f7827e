//! Frames that are dropped for what they are, once it is known who they come from.

use anyhow::Result;
use mgre_common::reason::{Direction, DropReason};
use mgre_tests::{
    gre::Outer,
    packet::{BROADCAST, Datagram, MULTICAST, Mac, marked},
    skip::skipped,
    topology::{SEGMENT, Spokes},
};

use crate::case::{
    self, Case, Of, SENDER, TARGET, here, mgre, outer, run, send, send_from_host, settle, with_static,
};

const fn of_peer(reason: DropReason, what: &'static str, provoke: fn(&Spokes) -> Result<u64>) -> Case {
    Case { reason, what, whose: Of::Peer("spoke1"), direction: Direction::Receive, provoke }
}

const fn of_port(reason: DropReason, what: &'static str, provoke: fn(&Spokes) -> Result<u64>) -> Case {
    Case { reason, what, whose: Of::Port("lan0"), direction: Direction::Receive, provoke }
}

pub(crate) const CASES: &[Case] = &[
    of_peer(DropReason::Checksum, "a wrong GRE checksum", |spokes| {
        send(spokes, &[damaged(&Outer { checksum: true, ..outer(spokes) })?])
    }),
    of_peer(DropReason::Checksum, "a wrong UDP checksum", |spokes| {
        send(spokes, &[damaged(&Outer { udp: Some(50_000), ..outer(spokes) })?])
    }),
    of_peer(DropReason::SequenceOld, "numbers that were there before", |spokes| {
        mgre(spokes, &["peer", "set", "spoke1", "--seq"])?;
        let packet = |number| Outer { sequence: Some(number), ..outer(spokes) }.frame(&frame());
        spokes.send_to(2, &[packet(100)?])?;
        let sent = send(spokes, &[packet(100)?, packet(99)?, packet(0)?])?;
        settle(spokes)?;
        mgre(spokes, &["peer", "set", "spoke1", "--seq=false"])?;
        Ok(sent)
    }),
    of_peer(DropReason::SourceMacInvalid, "groups and nobody as source, from a peer", |spokes| {
        let from = |source: Mac| outer(spokes).frame(&marked(BROADCAST, source, "whose?"));
        send(spokes, &[from(BROADCAST)?, from(MULTICAST)?, from([0; 6])?])
    }),
    of_port(DropReason::SourceMacInvalid, "a group as source, from a port", |spokes| {
        send_from_host(spokes, &marked(BROADCAST, MULTICAST, "whose?"))
    }),
    of_peer(DropReason::StaticMacMoved, "an address that was given to a port", |spokes| {
        with_static(spokes, ["--port", "lan0"], || {
            send(spokes, &[outer(spokes).frame(&marked(BROADCAST, TARGET, "stolen"))?])
        })
    }),
    of_port(DropReason::StaticMacMoved, "an address that was given to a peer", |spokes| {
        with_static(spokes, ["--peer", "spoke1"], || {
            send_from_host(spokes, &marked(BROADCAST, TARGET, "stolen"))
        })
    }),
    of_peer(DropReason::MacLimit, "one address more than a peer may have", |spokes| {
        let known = outer(spokes).frame(&marked(BROADCAST, SENDER, "known"))?;
        spokes.send_to(2, &[known])?;
        here(spokes).wait_fdb_peer(SENDER, "spoke1")?;
        mgre(spokes, &["peer", "set", "spoke1", "--max-macs", "1"])?;
        let sent = send(spokes, &[outer(spokes).frame(&marked(BROADCAST, TARGET, "too many"))?])?;
        settle(spokes)?;
        mgre(spokes, &["peer", "set", "spoke1", "--max-macs", "1024"])?;
        Ok(sent)
    }),
    of_port(DropReason::MacLimit, "one address more than a segment may have", |spokes| {
        send_from_host(spokes, &marked(BROADCAST, here(spokes).host_mac(), "known"))?;
        here(spokes).wait_fdb_port(here(spokes).host_mac(), "lan0")?;
        mgre(spokes, &["segment", "set", SEGMENT, "--max-macs", "1"])?;
        let sent = send_from_host(spokes, &marked(BROADCAST, TARGET, "too many"))?;
        settle(spokes)?;
        mgre(spokes, &["segment", "set", SEGMENT, "--max-macs", "8192"])?;
        Ok(sent)
    }),
    of_peer(DropReason::Ecn, "congestion outside of packets that do not know of it", |spokes| {
        let datagram = |v4| {
            let there = spokes.spoke(1).host_end(v4);
            let inner = Datagram::new(there, here(spokes).host_end(v4)).frame()?;
            Outer { tos: 3, ..outer(spokes) }.frame(&inner)
        };
        send(spokes, &[datagram(true)?, datagram(false)?])
    }),
    of_peer(DropReason::NoTarget, "a frame for somebody behind its sender", |spokes| {
        with_static(spokes, ["--peer", "spoke1"], || {
            send(spokes, &[outer(spokes).frame(&marked(TARGET, SENDER, "back"))?])
        })
    }),
    of_port(DropReason::NoTarget, "a frame for somebody at its own port", |spokes| {
        with_static(spokes, ["--port", "lan0"], || {
            let source = here(spokes).host_mac();
            send_from_host(spokes, &marked(TARGET, source, "back"))
        })
    }),
    of_peer(DropReason::NoTarget, "a frame for somebody behind another peer", |spokes| {
        with_far(spokes, || send(spokes, &[outer(spokes).frame(&marked(TARGET, SENDER, "split horizon"))?]))
    }),
    of_peer(DropReason::TtlExpired, "a packet for another peer with no hop left", |spokes| {
        mgre(spokes, &["segment", "set", SEGMENT, "--hub"])?;
        let sent = with_far(spokes, || {
            let inner = marked(TARGET, SENDER, "no further");
            send(spokes, &[Outer { ttl: 1, ..outer(spokes) }.frame(&inner)?])
        })?;
        mgre(spokes, &["segment", "set", SEGMENT, "--hub=false"])?;
        Ok(sent)
    }),
    of_peer(DropReason::TooBig, "a frame that its port does not take", |spokes| {
        with_static(spokes, ["--port", "lan0"], || {
            here(spokes).netns.ip("link set lan0 mtu 1000")?;
            wait_mtu(spokes, 1000)?;
            let mut inner = marked(TARGET, SENDER, "too long");
            inner.resize(1200, 0);
            let sent = send(spokes, &[outer(spokes).frame(&inner)?])?;
            settle(spokes)?;
            here(spokes).netns.ip("link set lan0 mtu 1500")?;
            wait_mtu(spokes, 1500)?;
            Ok(sent)
        })
    }),
];

fn frame() -> Vec<u8> {
    marked(BROADCAST, SENDER, "dropped")
}

/// A packet whose last byte is not what its checksum says.
fn damaged(outer: &Outer) -> Result<Vec<u8>> {
    let mut packet = outer.frame(&frame())?;
    if let Some(last) = packet.last_mut() {
        *last ^= 1;
    }
    Ok(packet)
}

/// Does something while there is a peer at an address where nobody answers, with [`TARGET`] behind it.
///
/// # Errors
/// There cannot be one, or what is done fails.
pub(crate) fn with_far(spokes: &Spokes, act: impl FnOnce() -> Result<u64>) -> Result<u64> {
    mgre(spokes, &["peer", "add", "far", "10.0.0.77", "--segment", SEGMENT])?;
    let sent = with_static(spokes, ["--peer", "far"], act)?;
    mgre(spokes, &["peer", "del", "far"])?;
    Ok(sent)
}

/// Waits until the daemon knows of a port's MTU.
fn wait_mtu(spokes: &Spokes, mtu: u32) -> Result<()> {
    let ports = mgre_tests::tables::open::<mgre_common::table::Port>(&here(spokes).daemon, "mgre_ports")?;
    mgre_tests::wait::until("the port's MTU is known", mgre_tests::wait::SOON, || {
        let frames = (0..ports.len()).filter_map(|id| ports.get(id));
        let mut frames = frames.map(|port| port.max_frame.load(std::sync::atomic::Ordering::Relaxed));
        Ok(frames.any(|frame| (mtu + 14..mtu + 22).contains(&frame)))
    })
    .map(|_| ())
}

#[test]
fn frames_dropped_for_what_they_are() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    run(&case::build()?, CASES)
}
