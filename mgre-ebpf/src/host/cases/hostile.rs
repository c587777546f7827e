//! Storms, addresses that are held, and what bridges keep to one link.

use mgre_common::reason::DropReason;
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use super::Case;
use crate::host::packet::{Outer, frame};
use crate::host::world::{peer_v4, station};

/// The GRE key of the segment that all this is in.
const KEY: u32 = 37;

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = storms();
    cases.extend(held());
    cases.extend(link_local());
    cases
}

/// A frame at the port with this id.
fn at_port(name: &str, id: u32, to: MacAddr, from: MacAddr) -> (Case, Vec<u8>) {
    let bytes = frame(to, from, 0x0806, 46);
    (Case::port(name, id + 10, bytes.clone()).received(Target::port(id), bytes.len()), bytes)
}

/// A frame from the peer with this id.
fn from_peer(name: &str, id: u32, to: MacAddr, from: MacAddr) -> (Case, Vec<u8>) {
    let inner = frame(to, from, 0x0806, 46);
    let packet = Outer::from_peer(peer_v4(id), Some(KEY)).wrap(&inner);
    (Case::underlay(name, packet).received(Target::adjacency(id), inner.len()), inner)
}

/// It goes to both peers.
fn to_peers(case: Case, bytes: &[u8]) -> Case {
    case.into_tunnel(37, peer_v4(37), Some(KEY), bytes).into_tunnel(38, peer_v4(38), Some(KEY), bytes)
}

fn storms() -> Vec<Case> {
    let mut cases = Vec::new();
    let (case, bytes) =
        at_port("a broadcast within its port's storm limit", 28, MacAddr::BROADCAST, station(1));
    cases.push(to_peers(case.out_of_port(29, &bytes), &bytes).flooded(17));
    for (name, to) in [
        ("a broadcast over its port's storm limit", MacAddr::BROADCAST),
        ("a multicast over its port's storm limit", MacAddr([1, 0, 0x5e, 0, 0, 1])),
        ("an unknown destination over its port's storm limit", station(200)),
    ] {
        let (case, _) = at_port(name, 29, to, station(2));
        cases.push(case.refused(Target::port(29), DropReason::StormLimit));
        let (case, _) = from_peer(&name.replace("port", "peer"), 38, to, station(38));
        cases.push(case.refused(Target::adjacency(38), DropReason::StormLimit));
    }
    let (case, bytes) = at_port("known unicast over its port's storm limit", 29, station(1), station(2));
    cases.push(case.out_of_port(28, &bytes));
    let (case, bytes) = from_peer("known unicast over its peer's storm limit", 38, station(1), station(38));
    cases.push(case.out_of_port(28, &bytes));
    let (case, bytes) = from_peer("a broadcast of another peer", 37, MacAddr::BROADCAST, station(37));
    cases.push(case.out_of_port(28, &bytes).out_of_port(29, &bytes).flooded(17));
    cases
}

/// Station 5 is held at port 28, station 6 behind peer 37.
fn held() -> Vec<Case> {
    let (here, other_port, peer) = (Target::port(28), Target::port(29), Target::adjacency(37));
    let mut cases = Vec::new();
    let (case, bytes) = at_port("a held address where it is held", 28, station(2), station(5));
    cases.push(case.out_of_port(29, &bytes));
    let (case, bytes) = at_port("it speaks to all for the first time", 28, MacAddr::BROADCAST, station(5));
    cases.push(to_peers(case.out_of_port(29, &bytes), &bytes).flooded(17));
    let (case, bytes) = at_port("a held address at another port, to a station", 29, station(1), station(5));
    cases.push(case.out_of_port(28, &bytes).reported(17, station(5), other_port, here));
    let (case, _) = from_peer("a held address behind a peer, to all", 37, MacAddr::BROADCAST, station(5));
    cases.push(case.stopped(17, station(5), peer, here));

    let (case, bytes) = from_peer("an address held behind a peer, from there", 37, station(1), station(6));
    cases.push(case.out_of_port(28, &bytes));
    let (case, _) =
        at_port("an address held behind a peer, at a port, to nobody known", 28, station(200), station(6));
    cases.push(case.stopped(17, station(6), here, peer));
    let (case, bytes) = at_port("a frame to an address held behind a peer", 28, station(6), station(1));
    cases.push(case.into_tunnel(37, peer_v4(37), Some(KEY), &bytes));
    cases
}

fn link_local() -> Vec<Case> {
    let mut cases = Vec::new();
    let group = |last| MacAddr([0x01, 0x80, 0xc2, 0, 0, last]);
    for last in [0, 1, 2, 3, 0x0d, 0x0f] {
        let name = format!("a frame to {} is kept to its link", group(last));
        let (case, _) = at_port(&name, 28, group(last), station(1));
        cases.push(case.refused(Target::port(28), DropReason::LinkLocal));
        let (case, _) = from_peer(&format!("{name}, from a peer"), 37, group(last), station(37));
        cases.push(case.refused(Target::adjacency(37), DropReason::LinkLocal));
    }
    // LLDP, which the segment passes, and neighbours of the sixteen addresses.
    for to in [
        group(0x0e),
        group(0x10),
        group(0x20),
        MacAddr([0x01, 0x80, 0xc2, 0, 1, 0]),
        MacAddr([0x01, 0, 0x0c, 0xcc, 0xcc, 0xcc]),
    ] {
        let (case, bytes) = at_port(&format!("a frame to {to} passes"), 28, to, station(1));
        cases.push(to_peers(case.out_of_port(29, &bytes), &bytes).flooded(17));
    }
    cases
}
