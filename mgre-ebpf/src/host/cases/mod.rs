//! What goes in and what must come out, in [`World::standard`].
//!
//! - [`underlay`]: outer headers, good and bad;
//! - [`port`]: frames from ports: forwarding, flooding, limits;
//! - [`hub`]: from tunnel to tunnel;
//! - [`learning`]: what is reported, and what may not be learned.

pub mod hub;
pub mod learning;
pub mod port;
pub mod underlay;

use std::collections::BTreeMap;

use mgre_common::event::LearnEvent;
use mgre_common::fdb::FdbKey;
use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use super::frame::{HostAction, HostFrame};
use super::packet::Outer;
use super::tables::{Drop, MemoryTables};
use super::world::{UNDERLAY, World};
use crate::frame::{Egress, Side};
use crate::{act, express};

/// Which program a frame goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// The ports' program, on this interface.
    Port(u32),
    /// The underlay's program.
    Underlay,
}

/// How a frame ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// Left to the kernel.
    #[default]
    Passed,
    /// Not forwarded, or only by copies.
    Dropped,
    /// Sent: the last output is the frame itself.
    Sent,
}

/// One copy that is sent, and its bytes as on the wire.
pub type Output = (Egress, Vec<u8>);

/// Frames and bytes.
pub type Amount = (u64, u64);

/// Everything that happens to a frame. What is not here must not happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// How it ends.
    pub end: End,
    /// Whose receive counters count it, and how many bytes.
    pub received: Option<(Target, u64)>,
    /// What is sent, in order.
    pub outputs: Vec<Output>,
    /// Whose transmit counters count them, and how much.
    pub transmitted: BTreeMap<Target, Amount>,
    /// What is dropped.
    pub drops: Vec<Drop>,
    /// What the daemon is told.
    pub reports: Vec<LearnEvent>,
    /// The segment that it is flooded in, and the copies.
    pub flooded: Option<(u32, u64)>,
}

/// A frame, and what must come of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// Where it comes in.
    pub entrance: Entrance,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Payload bytes of a segment, if it is a superframe.
    pub segment_size: u32,
    /// A tag beside it.
    pub tag: Option<[u8; 4]>,
    /// Why a kernel's test run cannot show it.
    pub host_only: Option<&'static str>,
    /// What must come of it.
    pub expected: Expected,
}

/// A test run cannot make such frames.
const NO_TAG_IN_TEST_RUN: &str = "a test run cannot put a tag beside a frame";
/// As above.
const NO_GSO_TYPE_IN_TEST_RUN: &str = "a test run's superframes have no type, and are not resized";

/// Every case.
pub fn all() -> Vec<Case> {
    let mut cases = underlay::cases();
    cases.extend(port::cases());
    cases.extend(learning::cases());
    cases.extend(hub::cases());
    cases
}

impl Case {
    /// A frame that a port gives us, which is passed so far.
    fn port(name: impl Into<String>, ifindex: u32, bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            entrance: Entrance::Port(ifindex),
            bytes,
            segment_size: 0,
            tag: None,
            host_only: None,
            expected: Expected::default(),
        }
    }

    /// A packet that the underlay gives us, which is passed so far.
    fn underlay(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { entrance: Entrance::Underlay, ..Self::port(name, 0, bytes) }
    }

    fn superframe(mut self, segment_size: u32) -> Self {
        self.segment_size = segment_size;
        self.host_only = Some(NO_GSO_TYPE_IN_TEST_RUN);
        self
    }

    fn tag(mut self, tag: [u8; 4]) -> Self {
        self.tag = Some(tag);
        self.host_only = Some(NO_TAG_IN_TEST_RUN);
        self
    }

    fn host_only(mut self, why: &'static str) -> Self {
        self.host_only = Some(why);
        self
    }

    /// It is counted as received.
    fn received(mut self, source: Target, bytes: usize) -> Self {
        self.expected.received = Some((source, bytes as u64));
        self
    }

    /// It is not passed.
    fn dropped(mut self) -> Self {
        self.expected.end = End::Dropped;
        self
    }

    /// Something is counted as dropped.
    fn counted(mut self, target: Target, direction: Direction, reason: DropReason) -> Self {
        self.expected.drops.push((target, direction, reason));
        self.expected.drops.sort();
        self
    }

    /// It is dropped on the way in.
    fn refused(self, target: Target, reason: DropReason) -> Self {
        self.dropped().counted(target, Direction::Receive, reason)
    }

    /// It is dropped, and nobody is to blame.
    fn refused_by_nobody(self, reason: DropReason) -> Self {
        self.refused(Target::NONE, reason)
    }

    /// A copy goes out of a port.
    fn out_of_port(self, id: u32, bytes: &[u8]) -> Self {
        self.send(
            Target::port(id),
            Egress::new(id + 10, if id == 12 { Side::Receive } else { Side::Out }),
            bytes.to_vec(),
        )
    }

    /// A copy goes to a peer.
    fn into_tunnel(self, id: u32, endpoint: [u8; 4], key: Option<u32>, inner: &[u8]) -> Self {
        let egress = Egress::new(UNDERLAY, Side::Out);
        // The identification is zero and DF set, as `etherparse` makes them too.
        let bytes = Outer::to_peer(endpoint, key).wrap(inner);
        self.send(Target::adjacency(id), egress, bytes)
    }

    /// A packet goes to a peer by a next hop that the kernel finds.
    fn by_neighbor(self, id: u32, endpoint: [u8; 4], key: Option<u32>, inner: &[u8]) -> Self {
        let egress = Egress::new(UNDERLAY, Side::Neighbor);
        let outer = Outer { destination_mac: MacAddr::ZERO, ..Outer::to_peer(endpoint, key) };
        self.send(Target::adjacency(id), egress, outer.wrap(inner))
    }

    fn send(mut self, target: Target, egress: Egress, bytes: Vec<u8>) -> Self {
        let (_, counted) = self.expected.received.expect("what is sent was received");
        let (packets, total) = self.expected.transmitted.entry(target).or_default();
        *packets += 1;
        *total += counted;
        self.expected.end = End::Sent;
        self.expected.outputs.push((egress, bytes));
        self
    }

    fn flooded(mut self, segment: u32) -> Self {
        self.expected.flooded = Some((segment, self.expected.outputs.len() as u64));
        self
    }

    fn reported(mut self, segment: u16, mac: MacAddr, source: Target, known: Target) -> Self {
        let event =
            LearnEvent { key: FdbKey::new(segment, mac), source: source.to_bits(), known: known.to_bits() };
        self.expected.reports.push(event);
        self
    }

    /// Runs it on the host.
    pub fn run_on_host(&self) -> Expected {
        let mut tables = MemoryTables::default();
        World::standard().install(&mut tables);
        let mut frame = self.frame();
        let action = self.at_last_hook(&mut frame, &tables);
        observed(action, &frame, &tables)
    }

    /// Runs it on the host through an early hook, and through the last one if that leaves
    /// it; says whether it did not. All interfaces take frames from an early hook.
    pub fn run_early_on_host(&self) -> (Expected, bool) {
        let mut tables = MemoryTables::default();
        World::express().install(&mut tables);
        let mut frame = self.frame();
        let action = match self.entrance {
            Entrance::Port(ifindex) => express::process_port(&mut frame, &tables, ifindex),
            Entrance::Underlay => express::process_underlay(&mut frame, &tables),
        };
        if action != HostAction::Passed {
            return (observed(action, &frame, &tables), true);
        }
        let nothing = observed(action, &frame, &tables);
        assert_eq!(
            nothing,
            Expected::default(),
            "{}: it was left, but not before something was done",
            self.name
        );
        let action = self.at_last_hook(&mut frame, &tables);
        (observed(action, &frame, &tables), false)
    }

    fn frame(&self) -> HostFrame {
        let frame = HostFrame::new(self.bytes.clone()).with_segment_size(self.segment_size);
        match self.tag {
            Some(tag) => frame.with_tag(tag),
            None => frame,
        }
    }

    fn at_last_hook(&self, frame: &mut HostFrame, tables: &MemoryTables) -> HostAction {
        match self.entrance {
            Entrance::Port(ifindex) => act::process_port(frame, tables, ifindex),
            Entrance::Underlay => act::process_underlay(frame, tables),
        }
    }
}

/// What happened, in the words of what is expected.
fn observed(action: HostAction, frame: &HostFrame, tables: &MemoryTables) -> Expected {
    let end = match action {
        HostAction::Passed => End::Passed,
        HostAction::Dropped => End::Dropped,
        HostAction::Sent(_) => End::Sent,
    };
    let traffic = tables.traffic.borrow();
    let mut received = traffic
        .iter()
        .filter(|(_, row)| row.receive_packets > 0)
        .map(|(target, row)| (*target, row.receive_bytes));
    let transmitted = traffic
        .iter()
        .filter(|(_, row)| row.transmit_packets > 0)
        .map(|(target, row)| (*target, (row.transmit_packets, row.transmit_bytes)))
        .collect();
    let drops = tables.drops.borrow();
    let observed = Expected {
        end,
        received: received.next(),
        outputs: frame.sent.clone(),
        transmitted,
        drops: drops.iter().flat_map(|(drop, &times)| vec![*drop; times as usize]).collect(),
        reports: tables.reports.borrow().clone(),
        flooded: tables.floods.borrow().iter().next().map(|(id, row)| (*id, row.flood_copies)),
    };
    assert_eq!(received.next(), None, "a frame was received twice");
    observed
}
