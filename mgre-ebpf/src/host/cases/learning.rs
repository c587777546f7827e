//! What is reported, and what may not be learned.
//!
//! Every source address here is in one case only: the kernel reports an address
//! once in a while.

use mgre_common::reason::DropReason;
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use super::Case;
use crate::host::packet::{Outer, frame};
use crate::host::world::{PEER_A, PEER_B, station};

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = told();
    cases.extend(invalid_sources());
    cases.extend(limits());
    cases
}

/// A frame to station 1 from this source, in a packet of this peer.
fn from_peer(name: &str, endpoint: [u8; 4], key: u32, source: Target, mac: MacAddr) -> (Case, Vec<u8>) {
    let inner = frame(station(1), mac, 0x0806, 46);
    let packet = Outer::from_peer(endpoint, Some(key)).wrap(&inner);
    (Case::underlay(name, packet).received(source, inner.len()), inner)
}

/// A frame from this source at the port with this id.
fn from_port(name: &str, id: u32, mac: MacAddr, destination: MacAddr) -> (Case, Vec<u8>) {
    let bytes = frame(destination, mac, 0x0806, 46);
    (Case::port(name, id + 10, bytes.clone()).received(Target::port(id), bytes.len()), bytes)
}

fn told() -> Vec<Case> {
    let (port, peer) = (Target::port(1), Target::adjacency(1));
    let mut cases = Vec::new();

    let (case, bytes) = from_port("a new address at a port", 1, station(100), station(1));
    cases.push(case.out_of_port(0, &bytes).reported(1, station(100), port, Target::NONE));
    let (case, inner) = from_peer("a new address behind a peer", PEER_B, 7, peer, station(101));
    cases.push(case.out_of_port(0, &inner).reported(1, station(101), peer, Target::NONE));

    // Station 3 is known behind peer A, station 2 at port 1.
    let (case, bytes) = from_port("an address moved from a peer to a port", 1, station(3), station(1));
    cases.push(case.out_of_port(0, &bytes).reported(1, station(3), port, Target::adjacency(0)));
    let (case, inner) = from_peer("an address moved to another peer", PEER_B, 7, peer, station(3));
    cases.push(case.out_of_port(0, &inner).reported(1, station(3), peer, Target::adjacency(0)));
    let (case, inner) = from_peer("an address moved from a port to a peer", PEER_B, 7, peer, station(2));
    cases.push(case.out_of_port(0, &inner).reported(1, station(2), peer, port));

    // Station 5 is a static entry of port 1.
    let (case, bytes) = from_port("a static address where it belongs", 1, station(5), station(1));
    cases.push(case.out_of_port(0, &bytes));
    let (case, _) = from_port("a static address at another port", 0, station(5), station(1));
    cases.push(case.refused(Target::port(0), DropReason::StaticMacMoved));
    let (case, _) = from_peer("a static address behind a peer", PEER_B, 7, peer, station(5));
    cases.push(case.refused(peer, DropReason::StaticMacMoved));
    cases
}

fn invalid_sources() -> Vec<Case> {
    let sources = [
        ("zero", MacAddr::ZERO),
        ("broadcast", MacAddr::BROADCAST),
        ("a group", MacAddr([3, 0, 0, 0, 1, 1])),
    ];
    let mut cases = Vec::new();
    for (name, mac) in sources {
        for (to, destination) in [("a station", station(3)), ("all", MacAddr::BROADCAST)] {
            let (case, _) = from_port(&format!("{name} as the source, to {to}"), 0, mac, destination);
            cases.push(case.refused(Target::port(0), DropReason::SourceMacInvalid));
        }
        let source = Target::adjacency(0);
        let (case, _) = from_peer(&format!("{name} as the source behind a peer"), PEER_A, 7, source, mac);
        cases.push(case.refused(source, DropReason::SourceMacInvalid));
    }
    cases
}

fn limits() -> Vec<Case> {
    let (full_port, full_peer) = (Target::port(7), Target::adjacency(7));
    let mut cases = Vec::new();

    let (case, _) = from_port("a new address at a full port", 7, station(110), station(2));
    cases.push(case.refused(full_port, DropReason::MacLimit));
    let (case, bytes) = from_port("a known address at a full port", 7, station(1), station(2));
    cases.push(case.out_of_port(8, &bytes));
    let (case, bytes) = from_port("an address moved to a full port", 7, station(3), station(2));
    cases.push(case.out_of_port(8, &bytes).reported(5, station(3), full_port, full_peer));
    let (case, bytes) = from_port("a new address at a port that is not full", 8, station(111), station(1));
    cases.push(case.out_of_port(7, &bytes).reported(5, station(111), Target::port(8), Target::NONE));

    let (case, _) = from_peer("a new address behind a full peer", PEER_A, 11, full_peer, station(112));
    cases.push(case.refused(full_peer, DropReason::MacLimit));
    let (case, inner) = from_peer("a known address behind a full peer", PEER_A, 11, full_peer, station(3));
    cases.push(case.out_of_port(7, &inner));

    let (port, peer) = (Target::port(9), Target::adjacency(8));
    let (case, _) = from_port("a new address in a full segment", 9, station(113), station(3));
    cases.push(case.refused(port, DropReason::MacLimit));
    let (case, _) =
        from_peer("a new address behind a peer of a full segment", PEER_A, 12, peer, station(114));
    cases.push(case.refused(peer, DropReason::MacLimit));
    let (case, inner) = from_peer("a known address in a full segment", PEER_A, 12, peer, station(3));
    cases.push(case.out_of_port(9, &inner));
    cases
}
