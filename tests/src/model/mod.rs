//! What must come of a frame: encapsulation, decapsulation and switching as `docs/wire.md`, `docs/architecture.md` and
//! the RFCs say them, written apart from the pipeline, with nothing of its code.
//!
//! - [`network`]: who there is;
//! - `inner`: the IP packet inside a frame; `mss`: what opens a TCP connection;
//! - `received`: packets from the underlay;
//! - `switch`: a frame in its segment: learning, forwarding, hubs;
//! - `neighbors`: ARP and ND, listened to and answered;
//! - `flood`: copies for all of a segment;
//! - `tunnel`: into a tunnel, and what does not fit; `header`: the headers outside;
//! - [`flaw`]: rules that the model can be told to get wrong, to see whether that is noticed.
//!
//! A rule of its own (what a source may do, which addresses pass) belongs into `switch`, where a frame arrives in its
//! segment.
//!
//! The words are those of the pipeline's tests ([`World`], [`Entrance`], [`Egress`], [`Target`], [`DropReason`]):
//! names and numbers, nothing that decides anything.

pub mod flaw;
mod flood;
mod header;
mod inner;
mod mss;
mod neighbors;
pub mod network;
mod received;
mod switch;
mod tunnel;

use std::collections::BTreeMap;

use mgre_common::event::{LearnEvent, TooBigHead};
use mgre_common::fdb::FdbKey;
use mgre_common::neighbor::{NeighborEvent, NeighborKey, Protocol};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::{Mark, Target};
use mgre_ebpf::frame::Egress;
use mgre_ebpf::host::cases::{End, Entrance};
use mgre_ebpf::host::tables::Drop;
use mgre_ebpf::host::world::World;

use flaw::Flaw;
pub use header::Free;
use network::Network;

/// A frame, where it comes in, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Where it comes in.
    pub entrance: Entrance,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Payload bytes of a segment, if it is a superframe; else zero.
    pub segment_size: u32,
    /// A tag beside it: protocol and control information as on the wire.
    pub tag: Option<[u8; 4]>,
    /// When.
    pub moment: Moment,
}

/// What is so when a frame comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The daemon's clock.
    pub seconds: u32,
    /// Whether the daemon answers for the next hops.
    pub lease: bool,
    /// The last sequence number that each peer with such was heard with, and when that was, in seconds.
    pub received: Option<(u32, u32)>,
    /// The number that the next packet to each of them has.
    pub sent: u32,
    /// How many frames each source that has a storm limit had flooded just now.
    pub flooded: u16,
    /// Whether a frame of the address that this one is from was flooded just now, for an address that is held.
    pub paced: bool,
}

impl Default for Moment {
    fn default() -> Self {
        Self { seconds: 50, lease: true, received: None, sent: 0, flooded: 0, paced: false }
    }
}

/// A frame that is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Where to.
    pub egress: Egress,
    /// Its bytes, as on the wire.
    pub bytes: Vec<u8>,
    /// What is noted on it ([`mgre_common::target::Mark`]).
    pub mark: u32,
}

/// Numbers of a peer with sequence numbers: the last one received and when, and the next to be sent.
pub type Numbers = (Option<(u32, u32)>, u32);

/// The segment that a frame is flooded in, the copies, and how many of them could not be made.
pub type Flooded = (u32, u64, u64);

/// The segment in which a question is answered, and how was asked.
pub type Answered = (u32, Protocol);

/// Everything that comes of a frame. What is not here must not happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How it ends. Where it is sent, the last output is the frame itself.
    pub end: End,
    /// Whose receive counters count it, and how many bytes.
    pub received: Option<(Target, u64)>,
    /// What is sent, in order.
    pub outputs: Vec<Output>,
    /// Whose transmit counters count how many frames and bytes.
    pub transmitted: BTreeMap<Target, (u64, u64)>,
    /// What is dropped, and how often.
    pub drops: BTreeMap<Drop, u64>,
    /// Addresses that the daemon is told of.
    pub reports: Vec<LearnEvent>,
    /// How it is flooded.
    pub flooded: Option<Flooded>,
    /// How it is answered.
    pub answered: Option<Answered>,
    /// What hosts say of themselves, of which the daemon is told.
    pub claims: Vec<NeighborEvent>,
    /// The binding whose age is noted.
    pub confirmed: Option<NeighborKey>,
    /// The binding that is contested from now on.
    pub contested: Option<NeighborKey>,
    /// What the daemon is told of a frame that does not fit, and the frame's first bytes.
    pub too_big: Vec<(TooBigHead, Vec<u8>)>,
    /// The address whose age is noted.
    pub seen: Option<FdbKey>,
    /// Peers whose sequence numbers changed.
    pub numbers: BTreeMap<u32, Numbers>,
    /// Whose storm limit it is counted against.
    pub charged: Option<Target>,
}

/// What the model says of a frame.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// What must come of it; what is free is zero.
    pub outcome: Outcome,
    /// What is free in each output.
    pub free: Vec<Free>,
    /// The flow that the frame is of, where an output says so: a hash of what makes a flow.
    pub flow: Option<u64>,
    /// An address that is held, and would be paced: whether it is depends on what was flooded before.
    pub paced: Option<FdbKey>,
}

/// The model of a network.
#[derive(Debug)]
pub struct Model {
    network: Network,
    flaw: Option<Flaw>,
}

impl Model {
    /// Of this one.
    pub fn new(world: &World) -> Self {
        Self { network: Network::new(world), flaw: None }
    }

    /// The same with a rule that is wrong.
    pub fn with_flaw(self, flaw: Flaw) -> Self {
        Self { flaw: Some(flaw), ..self }
    }

    /// What must come of a frame.
    pub fn predict(&self, input: &Input) -> Prediction {
        let outcome = Outcome::default();
        let mut run = Run {
            network: &self.network,
            flaw: self.flaw,
            input,
            outcome,
            free: Vec::new(),
            flow: None,
            paced: None,
        };
        match input.entrance {
            Entrance::Port(ifindex) => run.at_port(ifindex),
            Entrance::Underlay => run.at_underlay(),
            Entrance::Slow(mark @ (0 | Mark::UNFINISHED)) => {
                run.at_underlay();
                if run.outcome.end == End::Passed {
                    // The kernel has had it, and what it had was counted then.
                    run.outcome = Outcome { end: End::Dropped, ..Outcome::default() };
                    if mark != 0 {
                        // It was a peer's a moment ago.
                        run.count(Target::NONE, Direction::Receive, DropReason::UnknownEndpoint);
                    }
                }
            }
            Entrance::Slow(mark) => run.at_slow_interface(mark),
        }
        Prediction { outcome: run.outcome, free: run.free, flow: run.flow, paced: run.paced }
    }
}

/// A frame on its way, and what has come of it so far.
struct Run<'a> {
    network: &'a Network,
    flaw: Option<Flaw>,
    input: &'a Input,
    outcome: Outcome,
    free: Vec<Free>,
    flow: Option<u64>,
    paced: Option<FdbKey>,
}

/// A frame as it is in its segment.
#[derive(Clone, Debug)]
struct Frame {
    bytes: Vec<u8>,
    tag: Option<[u8; 4]>,
    segment_size: u32,
}

impl Frame {
    /// With the tag beside it in its place.
    fn on_the_wire(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Some(tag) = self.tag {
            bytes.splice(12..12, tag);
        }
        bytes
    }

    fn is_superframe(&self) -> bool {
        self.segment_size != 0
    }
}

impl<'a> Run<'a> {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// It ends here, counted.
    fn end(&mut self, target: Target, direction: Direction, reason: DropReason) {
        self.outcome.end = End::Dropped;
        self.count(target, direction, reason);
    }

    /// It ends on its way in.
    fn refuse(&mut self, source: Target, reason: DropReason) {
        self.end(source, Direction::Receive, reason);
    }

    fn count(&mut self, target: Target, direction: Direction, reason: DropReason) {
        *self.outcome.drops.entry((target, direction, reason)).or_default() += 1;
    }

    /// A frame is sent.
    fn output(&mut self, egress: Egress, bytes: Vec<u8>, mark: u32, free: Free) {
        self.outcome.end = End::Sent;
        self.outcome.outputs.push(Output { egress, bytes, mark });
        self.free.push(free);
    }

    /// It is counted as sent.
    fn transmitted(&mut self, to: Target, bytes: usize) {
        let row = self.outcome.transmitted.entry(to).or_default();
        row.0 += 1;
        row.1 += bytes as u64;
    }
}

/// A big-endian word of a slice, if it reaches so far.
fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The Internet checksum (RFC 1071) of what is in order if its sum is 0xffff, so that this is 0 then.
fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = etherparse::checksum::Sum16BitWords::new();
    for part in parts {
        sum = sum.add_slice(part);
    }
    sum.ones_complement().to_be()
}

/// The Internet checksum of bytes whose checksum field is zero.
pub fn checksum_of(bytes: &[u8]) -> u16 {
    internet_checksum(&[bytes])
}
