//! Frames for a network, good and bad: valid ones of every kind first, and then changes to them.

mod inside;
mod mutate;
mod neighbors;
mod outside;

use mgre_common::target::{Mark, Target};
use mgre_common::wire::MacAddr;
use mgre_ebpf::host::cases::Entrance;
use mgre_ebpf::host::world::{VLAN_INTERFACE, World, station};
use rand::Rng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;

use super::kernel::MANY;
use crate::model::{Input, Moment};

/// Makes frames for a network.
#[derive(Debug)]
pub struct Generator<'a> {
    world: &'a World,
    /// Whether there may be superframes and tags beside the frame, which no test run in the kernel has.
    superframes: bool,
}

impl<'a> Generator<'a> {
    /// Any frames.
    pub fn new(world: &'a World) -> Self {
        Self { world, superframes: true }
    }

    /// Frames as a test run takes them.
    pub fn without_superframes(self) -> Self {
        Self { superframes: false, ..self }
    }

    /// A frame.
    pub fn input(&self, rng: &mut SmallRng) -> Input {
        let mut input = self.valid(rng);
        if rng.random_bool(0.35) {
            let other = if rng.random_bool(0.1) { Some(self.valid(rng).bytes) } else { None };
            mutate::mutate(&mut input, other.as_deref(), rng);
        }
        input
    }

    /// One that is right, as far as it was made here.
    fn valid(&self, rng: &mut SmallRng) -> Input {
        let mut moment = moment(rng);
        if rng.random_bool(0.3) {
            // In the kernel time goes on, so that nearly too many would sometimes be just enough.
            let some = if self.superframes { rng.random_range(0..400) } else { MANY };
            moment.paced = self.superframes && rng.random_bool(0.3);
            moment.flooded = *[0, 31, 32, 249, 250, some].choose(rng).unwrap_or(&0);
            if !self.superframes && moment.flooded != 0 {
                moment.flooded = some;
            }
        }
        match rng.random_range(0..20) {
            0..8 => self.at_port(moment, rng),
            8..17 => Input { entrance: Entrance::Underlay, ..self.outside(moment, rng) },
            17 => Input { entrance: Entrance::Slow(0), ..self.outside(moment, rng) },
            _ => self.finished(moment, rng),
        }
    }

    /// Lengths that some peer's tunnel, or some port, just takes, or does not.
    fn interesting_len(&self, rng: &mut SmallRng) -> usize {
        let near = |len: u32, rng: &mut SmallRng| (len as usize + 2).saturating_sub(rng.random_range(0..5));
        match rng.random_range(0..40) {
            0..24 => rng.random_range(14..120),
            24..30 => {
                let mtu = self.world.peers.choose(rng).and_then(|peer| peer.mtu).unwrap_or(1500);
                let headers = rng.random_range(5..=16) * 4;
                near(mtu.saturating_sub(headers).min(2000), rng)
            }
            30..33 => near(self.world.ports.choose(rng).map_or(100, |port| port.max_frame).min(2000), rng),
            33..35 => near(14 + 1280, rng),
            35..39 => rng.random_range(60..400),
            _ => rng.random_range(14..1600),
        }
    }

    /// A station that a segment knows, in a role (0: behind whom the frame comes from, 1: anywhere), or any address.
    fn mac(&self, segment: u32, source: Option<Target>, rng: &mut SmallRng) -> MacAddr {
        let here = self.world.entries.iter().filter(|entry| u32::from(entry.segment) == segment);
        let known: Vec<MacAddr> = here
            .filter(|entry| source.is_none_or(|source| entry.target == source))
            .map(|entry| entry.mac)
            .collect();
        match known.choose(rng) {
            Some(mac) if rng.random_bool(0.9) => *mac,
            _ => station(rng.random_range(0..20)),
        }
    }

    fn destination(&self, segment: u32, rng: &mut SmallRng) -> MacAddr {
        match rng.random_range(0..40) {
            0..5 => MacAddr::BROADCAST,
            5 => MacAddr([1, 0, 0x5e, 1, 2, 3]),
            6 => MacAddr([0x33, 0x33, 0, 0, 0, 1]),
            7 => MacAddr([1, 0x80, 0xc2, 0, 0, rng.random_range(0..=0x10)]),
            8 => MacAddr(rng.random()),
            9 if rng.random_bool(0.5) => MacAddr([3, b'm', b'g', b'r', rng.random(), rng.random()]),
            _ => self.mac(segment, None, rng),
        }
    }

    fn source(&self, segment: u32, source: Target, rng: &mut SmallRng) -> MacAddr {
        match rng.random_range(0..60) {
            0 => MacAddr::ZERO,
            1 => MacAddr([3, 0, 0, 0, 1, 1]),
            2 => MacAddr(rng.random()),
            3..6 => self.mac(segment, None, rng),
            _ => self.mac(segment, Some(source), rng),
        }
    }

    fn at_port(&self, moment: Moment, rng: &mut SmallRng) -> Input {
        let port = self.world.ports.choose(rng);
        let (segment, source) = port.map_or((1, Target::NONE), |port| (port.segment, Target::port(port.id)));
        let mut ifindex = port.map_or(10, |port| port.ifindex);
        if rng.random_bool(0.02) {
            ifindex = *[VLAN_INTERFACE, 38, 77, 10, 23].choose(rng).unwrap_or(&10);
        }
        let mut tag = None;
        let vlan = port.and_then(|port| port.vlan).unwrap_or(0);
        if self.superframes && (vlan != 0 || rng.random_bool(0.08)) {
            let vlan = if rng.random_bool(0.8) { vlan } else { rng.random_range(0..4096) };
            let control = (vlan | rng.random_range(0_u16..8) << 13).to_be_bytes();
            let protocol = if rng.random_bool(0.9) { [0x81, 0] } else { [0x88, 0xa8] };
            tag = Some([protocol[0], protocol[1], control[0], control[1]]);
        }
        let len = self.interesting_len(rng);
        let (to, from) = (self.destination(segment, rng), self.source(segment, source, rng));
        let mut bytes = match neighbors::message(self.world, segment, from, rng) {
            Some(message) => message,
            None => inside::frame(to, from, len, rng),
        };
        let segment_size = self.superframe(&mut bytes, rng);
        Input { entrance: Entrance::Port(ifindex), bytes, segment_size, tag, moment }
    }

    /// Perhaps makes it a superframe.
    fn superframe(&self, bytes: &mut Vec<u8>, rng: &mut SmallRng) -> u32 {
        if !self.superframes || !rng.random_bool(0.06) {
            return 0;
        }
        let long = match rng.random_range(0..200) {
            0 => rng.random_range(60_000..68_000),
            1..20 => rng.random_range(1000..8000),
            _ => 0,
        };
        bytes.resize(bytes.len() + long, 0x5a);
        *[1, 100, 536, 1000, 1400, 1440, 1448, 9000, 0xffff, rng.random_range(1..3000)]
            .choose(rng)
            .unwrap_or(&1000)
    }

    fn finished(&self, moment: Moment, rng: &mut SmallRng) -> Input {
        let peer = self.world.peers.choose(rng).map(|peer| (Target::adjacency(peer.id), peer.segment));
        let port = self.world.ports.choose(rng).map(|port| (Target::port(port.id), port.segment));
        let chosen = if rng.random_bool(0.8) { peer } else { port };
        let (target, segment) = chosen.unwrap_or((Target::adjacency(0), 1));
        let hops = *[u8::MAX, u8::MAX, 1, 30, 63, 64, 200].choose(rng).unwrap_or(&u8::MAX);
        let mark = match rng.random_range(0..50) {
            0 => rng.random(),
            1 => rng.random_range(1..100),
            2 => Target::adjacency(9999).to_bits(),
            _ => Mark { target, hops }.to_bits(),
        };
        let len = self.interesting_len(rng);
        let (to, from) = (self.destination(segment, rng), self.mac(segment, None, rng));
        let bytes = inside::frame(to, from, len, rng);
        Input { entrance: Entrance::Slow(mark), bytes, segment_size: 0, tag: None, moment }
    }

    fn outside(&self, moment: Moment, rng: &mut SmallRng) -> Input {
        let peer = self.world.peers.choose(rng).copied();
        let peer = peer.unwrap_or_else(|| mgre_ebpf::host::world::PeerSpec::new(0, 1, [192, 0, 2, 2], None));
        let source = Target::adjacency(peer.id);
        let len = self.interesting_len(rng);
        let (to, from) = (self.destination(peer.segment, rng), self.source(peer.segment, source, rng));
        let frame = match neighbors::message(self.world, peer.segment, from, rng) {
            Some(message) => message,
            None => inside::frame(to, from, len, rng),
        };
        let mut bytes = outside::packet(&peer, &frame, moment, rng);
        if rng.random_bool(0.01) {
            // To another station.
            bytes[5] ^= 1;
        }
        let segment_size = self.superframe(&mut bytes, rng);
        let tag = (self.superframes && rng.random_bool(0.01))
            .then(|| [0x81, 0, *[0, 0xa0].choose(rng).unwrap_or(&0), *[0, 5].choose(rng).unwrap_or(&5)]);
        Input { entrance: Entrance::Underlay, bytes, segment_size, tag, moment }
    }
}

fn moment(rng: &mut SmallRng) -> Moment {
    let mut moment = Moment { lease: rng.random_bool(0.92), ..Moment::default() };
    if rng.random_bool(0.4) {
        let number = *[0, 1, u32::MAX, 0x8000_0000, rng.random()].choose(rng).unwrap_or(&0);
        moment.received = Some((number, moment.seconds - rng.random_range(0..14)));
        moment.sent = *[0, 1, u32::MAX, rng.random()].choose(rng).unwrap_or(&0);
    }
    moment
}
