//! Loops: which of the spokes that share a LAN stands back.
//!
//! Where an address is seen in two places by turns, there may be a LAN that two ports lead to:
//! of two spokes, or of this one. While addresses are held, a spoke sends **probes** out of its
//! ports, one a second: frames to a group address that says what segment they are about, from an
//! address that says who sent them. Who hears a probe of a lower sender **blocks** the port that it came in
//! by, so that of all ports on that LAN one is left. Nobody can tell when the loop is gone, so
//! a blocked port is tried again after a while, which is longer each time.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use mgre_common::event::LearnEvent;
use mgre_common::target::{Target, TargetKind};
use mgre_common::template::Key;
use mgre_common::wire::{MacAddr, PROBE_GROUPS};

use super::engine::Engine;
use crate::slow::FrameSender;

/// How long a port is blocked the first time.
const BLOCK_SECONDS: u32 = 20;
/// The longest that it ever is.
const MAX_BLOCK_SECONDS: u32 = 640;
/// For so long after a block it is remembered.
const MEMORY_SECONDS: u32 = 1800;

/// The type of probes: IEEE 802's for experiments.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// For whoever sees one in a capture.
const TEXT: &[u8] = b"mgre loop probe";
/// The shortest frame, without its checksum.
const MIN_FRAME: usize = 60;

/// Which ports are blocked, and what was blocked before.
#[derive(Debug)]
pub(super) struct Loops {
    /// How our probes' source addresses begin.
    id: [u8; 4],
    ports: BTreeMap<u32, Block>,
    probes: FrameSender,
}

#[derive(Debug)]
struct Block {
    seconds: u32,
    /// By the clock: when it ends, or when it ended.
    until: u32,
    over: bool,
}

impl Loops {
    /// With an identity of its own.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(super) fn new() -> Result<Self> {
        let mut id = [0; 4];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut id))
            .context("cannot read /dev/urandom")?;
        Ok(Self::with_id(id))
    }

    /// With this one, made that of a locally administered station.
    fn with_id(mut id: [u8; 4]) -> Self {
        id[0] = id[0] & 0xfc | 0x02;
        Self { id, ports: BTreeMap::new(), probes: FrameSender::default() }
    }

    /// The source address of probes out of a port.
    fn sender(&self, port: u32) -> MacAddr {
        let [a, b, c, d] = self.id;
        let [e, f] = (port as u16).to_be_bytes();
        MacAddr([a, b, c, d, e, f])
    }

    /// A probe out of a port.
    fn probe(&self, port: u32, vlan: Option<u16>, key: Key) -> Vec<u8> {
        let mut frame = PROBE_GROUPS.to_vec();
        frame.extend(segment_tag(key).to_be_bytes());
        frame.extend(self.sender(port).0);
        if let Some(vlan) = vlan {
            frame.extend([0x81, 0x00]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend(ETHERTYPE);
        frame.extend(TEXT);
        frame.resize(frame.len().max(MIN_FRAME), 0);
        frame
    }

    /// Whether a port that hears a probe of this sender is to be blocked.
    fn yields(&self, port: u32, sender: MacAddr) -> bool {
        sender.0 < self.sender(port).0
    }

    /// Blocks a port; says for how long.
    fn block(&mut self, port: u32, now: u32) -> u32 {
        let before = self.ports.get(&port).map_or(0, |block| block.seconds);
        let seconds = (2 * before).clamp(BLOCK_SECONDS, MAX_BLOCK_SECONDS);
        self.ports.insert(port, Block { seconds, until: now + seconds, over: false });
        seconds
    }

    /// Ports that are to be tried again; what is long past is forgotten.
    fn ended(&mut self, now: u32) -> Vec<u32> {
        self.ports.retain(|_, block| !block.over || now < block.until + MEMORY_SECONDS);
        let ended = self.ports.iter_mut().filter(|(_, block)| !block.over && now >= block.until);
        ended
            .map(|(port, block)| {
                block.over = true;
                *port
            })
            .collect()
    }

    /// For how long a port stays blocked, if it is.
    pub(super) fn blocked_for(&self, port: u32, now: u32) -> Option<u32> {
        self.ports.get(&port).filter(|block| !block.over).map(|block| block.until.saturating_sub(now))
    }
}

/// What a probe says of the segment that it is about, whose name each spoke chooses.
fn segment_tag(key: Key) -> u16 {
    let text = match key {
        Key::None => "none".to_owned(),
        Key::Plain(key) => format!("key {key}"),
        Key::Vsid(vsid) => format!("vsid {vsid}"),
    };
    crc32fast::hash(text.as_bytes()) as u16
}

impl Engine {
    /// Sends a probe out of every port of the segments in which addresses are held.
    pub(super) fn probe(&mut self) {
        let held = self.held();
        for (name, port) in &self.state.ports {
            let Some(segment) = self.state.segments.get(&port.segment) else { continue };
            if port.created.is_some() || !held.contains_key(&segment.id) {
                continue;
            }
            let Some(record) = self.plan.ports.get(&port.id).filter(|record| record.up) else { continue };
            let frame = self.loops.probe(port.id, port.vlan, segment.wire_key());
            if let Err(error) = self.loops.probes.send(record.ifindex, &frame) {
                tracing::debug!(%error, port = %name, "cannot look for a loop");
            }
        }
    }

    /// Takes note of a probe that a port received.
    pub(super) fn probed(&mut self, event: &LearnEvent, about: u16) {
        let TargetKind::Port(id) = Target::from_bits(event.source).kind() else { return };
        let Some((name, port)) = self.state.port_by_id(id) else { return };
        let Some(segment) = self.state.segments.get(&port.segment) else { return };
        let ours = about == segment_tag(segment.wire_key());
        if !ours || self.observed.blocked.contains(&id) || !self.loops.yields(id, event.key.mac()) {
            return;
        }
        // What no address suffers from is no loop, whatever is said. (One is looked for and none are
        // counted: there may be many probes.)
        if !self.damper.held().any(|hold| hold.key.segment() == segment.id) {
            return;
        }
        let name = name.to_owned();
        let seconds = self.loops.block(id, self.datapath.now());
        tracing::warn!(
            "port {name} is blocked for {seconds} s: another port of segment {} is on the same LAN, a loop",
            port.segment
        );
        self.observed.blocked.insert(id);
        self.stale.told = true;
        self.catch_up_soon();
    }

    /// Tries ports again that were blocked for long enough.
    pub(super) fn unblock(&mut self, now: u32) {
        let state = &self.state;
        self.loops.ports.retain(|id, block| block.over || state.port_by_id(*id).is_some());
        let loops = &self.loops;
        self.observed.blocked.retain(|id| loops.ports.contains_key(id));
        for id in self.loops.ended(now) {
            self.observed.blocked.remove(&id);
            self.stale.told = true;
            self.catch_up_soon();
            if let Some((name, _)) = self.state.port_by_id(id) {
                tracing::info!("port {name} is tried again");
            }
        }
    }

    /// Why a port is blocked, if it is.
    pub(super) fn why_blocked(&self, id: u32) -> Option<String> {
        let seconds = self.loops.blocked_for(id, self.datapath.now())?;
        Some(format!("a loop: another port of the segment is on the same LAN; tried again in {seconds} s"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_say_who_sends_them_and_what_they_are_about() {
        let loops = Loops::with_id([0xff, 1, 2, 3]);
        let frame = loops.probe(0x102, None, Key::Plain(7));
        assert_eq!(frame.len(), MIN_FRAME);
        assert_eq!(frame[..4], [0x03, b'm', b'g', b'r']);
        assert_eq!(frame[4..6], segment_tag(Key::Plain(7)).to_be_bytes());
        assert_eq!(frame[6..14], [0xfe, 1, 2, 3, 1, 2, 0x88, 0xb5]);
        let tagged = loops.probe(1, Some(5), Key::Plain(7));
        assert_eq!(tagged[12..18], [0x81, 0, 0, 5, 0x88, 0xb5]);
        let keys = [Key::None, Key::Plain(0), Key::Plain(7), Key::Vsid(7000), Key::Plain(7000)];
        let tags: std::collections::BTreeSet<u16> = keys.into_iter().map(segment_tag).collect();
        assert_eq!(tags.len(), keys.len());
    }

    #[test]
    fn of_all_ports_on_a_lan_one_is_left() {
        let spokes =
            [Loops::with_id([2, 0, 0, 9]), Loops::with_id([2, 0, 0, 1]), Loops::with_id([6, 0, 0, 0])];
        // Each has two ports on it.
        let ports: Vec<(&Loops, u32)> = spokes.iter().flat_map(|spoke| [(spoke, 4), (spoke, 700)]).collect();
        let left: Vec<usize> = (0..ports.len())
            .filter(|place| {
                let (spoke, port) = ports[*place];
                let others = ports.iter().enumerate().filter(|(other, _)| other != place);
                !others.map(|(_, (other, port))| other.sender(*port)).any(|probe| spoke.yields(port, probe))
            })
            .collect();
        assert_eq!(left, [2], "the first port of the second spoke");
    }

    #[test]
    fn blocks_are_longer_each_time_and_forgotten() {
        let mut loops = Loops::with_id([2, 0, 0, 0]);
        let mut now = 5;
        for seconds in [20, 40, 80, 160, 320, 640, 640] {
            assert_eq!(loops.block(1, now), seconds);
            assert_eq!(loops.blocked_for(1, now + 1), Some(seconds - 1));
            assert!(loops.ended(now + seconds - 1).is_empty());
            now += seconds;
            assert_eq!(loops.ended(now), [1]);
            assert_eq!((loops.ended(now), loops.blocked_for(1, now)), (vec![], None));
        }
        assert!(loops.ended(now + MEMORY_SECONDS).is_empty());
        assert_eq!(loops.block(1, now + MEMORY_SECONDS), 20);
    }
}
