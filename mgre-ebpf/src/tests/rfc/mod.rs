//! What the standards ask of a GRE endpoint, a test for each line of the table in `docs/wire.md`.

mod classes;
mod gre;
mod nvgre;
mod sizes;

use mgre_common::target::Mark;

use crate::act;
use crate::frame::Egress;
use crate::host::cases::{self, Case};
use crate::host::frame::{HostAction, HostFrame};
use crate::host::tables::{Drop, MemoryTables};
use crate::host::world::{UNDERLAY, World};

/// The network of the cases.
struct Bench {
    tables: MemoryTables,
}

/// What became of a frame.
struct Ran {
    action: HostAction,
    sent: Vec<(Egress, Vec<u8>)>,
    /// What was noted on each of those.
    marks: Vec<u32>,
    drops: Vec<Drop>,
}

impl Bench {
    fn new() -> Self {
        let mut tables = MemoryTables::default();
        World::standard().install(&mut tables);
        Self { tables }
    }

    /// A packet from the underlay; one whose checksum may not be finished comes back from the slow interface as it is.
    fn receive(&self, packet: Vec<u8>) -> Ran {
        let ran = self.run(packet, act::process_underlay);
        if ran.marks != [Mark::UNFINISHED] {
            return ran;
        }
        assert!(ran.drops.is_empty(), "counted before it was finished: {:?}", ran.drops);
        self.finish(Mark::UNFINISHED, ran.only())
    }

    /// A frame from a port.
    fn transmit(&self, ifindex: u32, bytes: Vec<u8>) -> Ran {
        self.run(bytes, |frame, tables| act::process_port(frame, tables, ifindex))
    }

    /// A frame back from the slow interface.
    fn finish(&self, mark: u32, bytes: Vec<u8>) -> Ran {
        self.run(bytes, |frame, tables| act::process_slow(frame, tables, mark))
    }

    fn run(&self, bytes: Vec<u8>, process: impl Fn(&mut HostFrame, &MemoryTables) -> HostAction) -> Ran {
        self.tables.reset_counters();
        let mut frame = HostFrame::new(bytes);
        let action = process(&mut frame, &self.tables);
        let drops = self.tables.drops.borrow().keys().copied().collect();
        Ran { action, sent: frame.sent, marks: frame.marks, drops }
    }
}

impl Ran {
    /// The one frame that was sent.
    fn only(mut self) -> Vec<u8> {
        assert_eq!((self.sent.len(), &self.drops[..]), (1, &[][..]));
        self.sent.remove(0).1
    }
}

/// Runs every case with this in its name, of which there must be so many.
fn hold(part: &str, count: usize) -> Vec<Case> {
    let cases: Vec<_> = cases::all().into_iter().filter(|case| case.name.contains(part)).collect();
    assert_eq!(cases.len(), count, "cases with {part:?}");
    for case in &cases {
        assert_eq!(case.run_on_host(), case.expected, "{}", case.name);
    }
    cases
}

/// Every packet that any case sends out of the underlay.
fn all_packets() -> Vec<Vec<u8>> {
    let outputs = cases::all().into_iter().flat_map(|case| case.run_on_host().outputs);
    let packets: Vec<_> =
        outputs.filter(|(egress, _)| egress.ifindex == UNDERLAY).map(|(_, bytes)| bytes).collect();
    assert!(packets.len() > 100, "{}", packets.len());
    packets
}

/// Where the GRE header of a packet starts.
fn gre_at(packet: &[u8]) -> usize {
    let (protocol, at) = if packet[12] == 8 { (packet[23], 34) } else { (packet[20], 54) };
    if protocol == 17 { at + 8 } else { at }
}

/// The ones' complement sum of some bytes (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
