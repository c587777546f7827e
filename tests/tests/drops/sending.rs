//! Frames that cannot be sent to a peer.

use anyhow::Result;
use mgre_common::reason::{Direction, DropReason};
use mgre_tests::{
    packet::{BROADCAST, Datagram, marked},
    skip::skipped,
    topology::{SEGMENT, Spokes},
};

use crate::case::{self, Case, Of, TARGET, here, mgre, run, send_from_host, with_static};

const fn to_peer(
    reason: DropReason,
    peer: &'static str,
    what: &'static str,
    provoke: fn(&Spokes) -> Result<u64>,
) -> Case {
    Case { reason, what, whose: Of::Peer(peer), direction: Direction::Transmit, provoke }
}

pub(crate) const CASES: &[Case] = &[
    to_peer(DropReason::TooBig, "spoke1", "a long frame that is not IP", |spokes| {
        with_static(spokes, ["--peer", "spoke1"], || {
            let mut frame = marked(TARGET, here(spokes).host_mac(), "too long");
            frame.resize(TOO_LONG, 0);
            send_from_host(spokes, &frame)
        })
    }),
    to_peer(DropReason::TooBig, "spoke1", "a long packet whose sender is told", |spokes| {
        with_static(spokes, ["--peer", "spoke1"], || {
            let mut sent = 0;
            for v4 in [true, false] {
                let destination = (TARGET, spokes.spoke(1).host_address(v4));
                let datagram = Datagram::new(here(spokes).host_end(v4), destination);
                let datagram = Datagram { length: TOO_LONG - 14, dont_fragment: true, ..datagram };
                sent += send_from_host(spokes, &datagram.frame()?)?;
            }
            Ok(sent)
        })
    }),
    to_peer(DropReason::TooBig, "spoke1", "a long frame for all", |spokes| {
        let mut frame = marked(BROADCAST, here(spokes).host_mac(), "too long");
        frame.resize(TOO_LONG, 0);
        send_from_host(spokes, &frame)
    }),
    to_peer(
        DropReason::NoNextHop,
        "far",
        "a frame that is not IP, and a neighbour that does not answer",
        |spokes| {
            mgre(spokes, &["peer", "add", "far", "10.0.0.77", "--segment", SEGMENT])?;
            with_static(spokes, ["--peer", "far"], || {
                send_from_host(spokes, &marked(TARGET, here(spokes).host_mac(), "where to?"))
            })
        },
    ),
    to_peer(DropReason::NoNextHop, "far", "a copy for a neighbour that does not answer", |spokes| {
        send_from_host(spokes, &marked(BROADCAST, here(spokes).host_mac(), "where to?"))
    }),
];

/// A frame that fits the ports, but no peer.
const TOO_LONG: usize = 1514;
#[test]
fn frames_that_cannot_be_sent() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = case::build()?;
    here(&spokes).host.ip("link set eth0 mtu 1500")?;
    run(&spokes, CASES)
}
