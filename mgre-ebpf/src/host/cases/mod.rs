//! What goes in and what must come out, in [`World::standard`].
//!
//! - [`underlay`]: outer headers, good and bad;
//! - [`port`]: frames from ports: forwarding, flooding, limits;
//! - [`hub`]: from tunnel to tunnel;
//! - [`hostile`]: storms, loops, and what bridges keep to one link;
//! - [`learning`]: what is reported, and what may not be learned;
//! - [`wire`]: IPv6 outside, and peers of different kinds in one segment;
//! - [`classes`]: ECN and DSCP, out and in;
//! - [`neighbors`]: ARP and ND that are answered, and that are not;
//! - [`options`]: what a peer's options ask for, and what is checked on receipt;
//! - [`sizes`]: what does not fit a tunnel;
//! - [`slow`]: what comes by the slow interface;
//! - [`vlan`]: ports by VLAN.

pub mod classes;
pub mod hostile;
pub mod hub;
pub mod learning;
pub mod neighbors;
pub mod options;
pub mod port;
pub mod sizes;
pub mod slow;
pub mod underlay;
pub mod vlan;
pub mod wire;

use core::net::IpAddr;
use std::collections::BTreeMap;

use mgre_common::counters::{SegmentTraffic, Traffic};
use mgre_common::event::{LearnEvent, PROBE, TOO_BIG_CAPTURE, TooBig, TooBigHead};
use mgre_common::fdb::FdbKey;
use mgre_common::neighbor::{NeighborEvent, Protocol};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::{Mark, Target};
use mgre_common::wire::MacAddr;

use super::frame::{HostAction, HostFrame};
use super::packet::{Outer, change_ip, ip_checksum_is_right};
use super::tables::{Drop, MemoryTables};
use super::world::{SLOW, UNDERLAY, VSID, World};
use crate::frame::{Egress, Side};
use crate::{act, express};

/// Which program a frame goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// The ports' program, on this interface.
    Port(u32),
    /// The underlay's program.
    Underlay,
    /// The slow interface's program, with this mark.
    Slow(u32),
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
    /// The segment in which it is answered, and how it asked.
    pub answered: Option<(u32, Protocol)>,
    /// What the daemon is told that hosts say of themselves.
    pub claims: Vec<NeighborEvent>,
    /// What is noted on it in the end ([`Mark`]).
    pub mark: u32,
    /// What the daemon is told of a frame that does not fit, and the frame's first bytes.
    pub too_big: Vec<(TooBigHead, Vec<u8>)>,
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
    cases.extend(wire::cases());
    cases.extend(classes::cases());
    cases.extend(options::cases());
    cases.extend(sizes::cases());
    cases.extend(slow::cases());
    cases.extend(vlan::cases());
    cases.extend(neighbors::cases());
    cases.extend(hostile::cases());
    cases
}

/// A packet without what each has of its own and the flow decides: identification, UDP source
/// port and NVGRE's flow id are made what a builder makes them that leaves them alone.
pub fn settled(egress: Egress, mut bytes: Vec<u8>) -> Vec<u8> {
    if !matches!(egress.ifindex, UNDERLAY | SLOW) {
        return bytes;
    }
    let (protocol, mut at) = match bytes.get(12..14) {
        Some([8, 0]) if bytes.len() > 34 => (bytes[23], 34),
        Some([0x86, 0xdd]) if bytes.len() > 54 => (bytes[20], 54),
        _ => return bytes,
    };
    let may_be_fragmented = at == 34 && bytes[20] & 0x40 == 0;
    if may_be_fragmented && ip_checksum_is_right(&bytes) {
        bytes = change_ip(&bytes, |ip| ip[4..6].fill(0));
    }
    if protocol == 17 && bytes[at + 2..at + 4] == 4754_u16.to_be_bytes() {
        assert!(bytes[at] >= 0xc0, "a source port below 49152 (RFC 8086 3.2.1)");
        bytes[at..at + 2].copy_from_slice(&[0xc0, 0]);
        at += 8;
    }
    if bytes[at..].starts_with(&[0x20, 0, 0x65, 0x58])
        && bytes[at + 4..at + 7] == (VSID << 8).to_be_bytes()[..3]
    {
        bytes[at + 7] = 0;
    }
    bytes
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

    /// A frame that the slow interface gives us, which is dropped so far.
    fn slow(name: impl Into<String>, mark: u32, bytes: Vec<u8>) -> Self {
        Self { entrance: Entrance::Slow(mark), ..Self::port(name, 0, bytes) }.dropped()
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
    fn into_tunnel(self, id: u32, endpoint: impl Into<IpAddr>, key: Option<u32>, inner: &[u8]) -> Self {
        self.into_tunnel_as(id, &Outer::to_peer(endpoint, key), inner)
    }

    /// A copy goes to a peer with these headers.
    fn into_tunnel_as(self, id: u32, outer: &Outer, inner: &[u8]) -> Self {
        self.send(Target::adjacency(id), Egress::new(UNDERLAY, Side::Out), outer.wrap(inner))
    }

    /// A packet for a peer goes to the daemon, which fragments it.
    fn left_to_fragment(self, id: u32, outer: &Outer, inner: &[u8]) -> Self {
        self.send(Target::adjacency(id), Egress::new(SLOW, Side::Out), outer.wrap(inner))
    }

    /// A frame for a peer goes to the slow interface, to come back finished; it is counted then.
    fn left_to_finish(mut self, id: u32, hops: u8, inner: &[u8]) -> Self {
        self.expected.end = End::Sent;
        self.expected.mark = Mark { target: Target::adjacency(id), hops }.to_bits();
        self.expected.outputs.push((Egress::new(SLOW, Side::Out), inner.to_vec()));
        self
    }

    /// A packet goes to the slow interface as it is, so that its checksum is finished; it is counted then.
    fn left_unfinished(mut self, bytes: &[u8]) -> Self {
        self.expected.end = End::Sent;
        self.expected.mark = Mark::UNFINISHED;
        self.expected.outputs.push((Egress::new(SLOW, Side::Out), bytes.to_vec()));
        self
    }

    /// It does not fit the tunnel to a peer, and its sender is to hear how long an IP packet may be.
    fn told(self, id: u32, mtu: u32, inner: &[u8]) -> Self {
        self.told_of(id, mtu, inner.len() as u32, inner)
    }

    /// The same of frames of this length that a superframe stands for.
    fn told_of(mut self, id: u32, mtu: u32, frame_len: u32, inner: &[u8]) -> Self {
        let (source, _) = self.expected.received.expect("what does not fit was received");
        let bytes = inner[..inner.len().min(TOO_BIG_CAPTURE)].to_vec();
        let head = TooBigHead {
            source: source.to_bits(),
            adjacency: id,
            mtu,
            frame_len,
            captured: bytes.len() as u32,
            tag: self.tag.map_or(0, u32::from_be_bytes),
        };
        self.expected.too_big.push((head, bytes));
        self.dropped().counted(Target::adjacency(id), Direction::Transmit, DropReason::TooBig)
    }

    /// A packet goes to a peer by a next hop that the kernel finds.
    fn by_neighbor(self, id: u32, endpoint: impl Into<IpAddr>, key: Option<u32>, inner: &[u8]) -> Self {
        let egress = Egress::new(UNDERLAY, Side::Neighbor);
        let outer = Outer { destination_mac: MacAddr::ZERO, ..Outer::to_peer(endpoint, key) };
        self.send(Target::adjacency(id), egress, outer.wrap(inner))
    }

    fn send(self, target: Target, egress: Egress, bytes: Vec<u8>) -> Self {
        let (_, counted) = self.expected.received.expect("what is sent was received");
        self.send_counted(target, egress, bytes, counted)
    }

    /// The same, counted as so many bytes.
    fn send_counted(mut self, target: Target, egress: Egress, bytes: Vec<u8>, counted: u64) -> Self {
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

    /// It would have been flooded, but its source is held elsewhere: that is reported.
    fn stopped(self, segment: u16, mac: MacAddr, source: Target, known: Target) -> Self {
        self.refused(source, DropReason::Loop).reported(segment, mac, source, known)
    }

    /// It is a loop probe: the daemon hears of it, and nobody else.
    fn probed(self, segment: u16, mac: MacAddr, source: Target, about: u32) -> Self {
        let mut case = self.refused(source, DropReason::Loop).reported(segment, mac, source, Target::NONE);
        for event in &mut case.expected.reports {
            event.known = PROBE | about;
        }
        case
    }

    /// Runs it on the host.
    pub fn run_on_host(&self) -> Expected {
        let mut tables = MemoryTables::default();
        World::standard().install(&mut tables);
        let mut frame = self.frame();
        let action = self.at_last_hook(&mut frame, &tables);
        self.check_balance(&frame, &tables);
        observed(action, &frame, &tables)
    }

    /// Whether nothing vanished and nothing counts twice: `docs/counters.md`.
    fn check_balance(&self, frame: &HostFrame, tables: &MemoryTables) {
        let traffic = tables.traffic.borrow();
        let sum = |what: fn(&Traffic) -> u64| traffic.values().map(what).sum::<u64>();
        let (received, counted) = (sum(|row| row.receive_packets), sum(|row| row.transmit_packets));
        let drops = tables.drops.borrow();
        let dropped: u64 =
            drops.iter().filter(|((target, ..), _)| !target.is_none()).map(|(_, times)| times).sum();
        let floods = tables.floods.borrow();
        let flood = floods.values().copied().next().unwrap_or_default();
        // What comes back from the slow interface with a mark was received before.
        let with_target = |mark: u32| mark != 0 && mark != Mark::UNFINISHED;
        let returned = u64::from(matches!(self.entrance, Entrance::Slow(mark) if with_target(mark)));
        // A packet that is not finished is received when it comes back.
        let returned = returned + u64::from(frame.mark == Mark::UNFINISHED);
        let sent = frame.sent.len() as u64;
        assert_eq!(
            received + returned + flood.flood_copies + flood.flood_lost,
            sent + flood.flood_frames + dropped,
            "{}: {traffic:?} {drops:?} {flood:?}",
            self.name
        );
        // What is not counted as sent is when it comes back.
        let handed = frame.sent.iter().filter(|(egress, _)| egress.ifindex == SLOW).count() as u64;
        assert!(counted <= sent && sent <= counted + handed, "{}: {traffic:?}", self.name);
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
            Entrance::Slow(_) => HostAction::Passed,
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
            Entrance::Slow(mark) => act::process_slow(frame, tables, mark),
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
        outputs: frame
            .sent
            .iter()
            .map(|(egress, bytes)| (*egress, settled(*egress, bytes.clone())))
            .collect(),
        transmitted,
        drops: drops.iter().flat_map(|(drop, &times)| vec![*drop; times as usize]).collect(),
        reports: tables.reports.borrow().clone(),
        flooded: tables
            .floods
            .borrow()
            .iter()
            .find_map(|(id, row)| (row.flood_frames > 0).then_some((*id, row.flood_copies))),
        answered: tables.floods.borrow().iter().find_map(|(id, row)| Some((*id, answered(row)?))),
        claims: tables.claims.borrow().clone(),
        mark: frame.mark,
        too_big: tables.too_big.borrow().iter().map(captured).collect(),
    };
    assert_eq!(received.next(), None, "a frame was received twice");
    observed
}

/// How a question was asked, if one was answered.
pub const fn answered(row: &SegmentTraffic) -> Option<Protocol> {
    match (row.arp_replies, row.nd_replies) {
        (1, 0) => Some(Protocol::Arp),
        (0, 1) => Some(Protocol::Nd),
        _ => None,
    }
}

/// What a report says, and the bytes that it has.
pub fn captured(event: &TooBig) -> (TooBigHead, Vec<u8>) {
    (event.head, event.bytes[..event.head.captured as usize].to_vec())
}
