//! The maps of the loaded programs: filled with a network, and read.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData, PerCpuArray, PerCpuValues};
use mgre_common::counters::{SegmentTraffic, row_of};
use mgre_common::endpoint::{EndpointIndex, EndpointKey, EndpointWords, Owner};
use mgre_common::event::{LearnEvent, RECENT_SLOTS, REPORT_BURST, TooBig};
use mgre_common::fdb::{Bucket, FdbHash, FdbKey, SEEN_STATIC};
use mgre_common::neighbor::{NeighborEvent, NeighborKey, NeighborRecord};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::storm::Storm;
use mgre_common::table::{
    Adjacency, Clock, FloodSlot, Indexed, MAX_PORTS, PORT_BY_VLAN, Port, PortSlot, Segment, Template,
    VlanKey, adjacency_flag,
};
use mgre_common::target::Target;
use mgre_ebpf::host::cases::captured;
use mgre_ebpf::host::tables::Drop;
use mgre_ebpf::host::world::{Sink, StormSpec, World};
use mgre_user::datapath::load::{self, Capacity, Loaded};
use mgre_user::datapath::shared::{Shared, SharedArray};
use nix::time::{ClockId, clock_gettime};

use super::super::host::{UNSEEN, numbers, paid, received_word, segment_row};
use super::Notices;
use crate::model::{Moment, Outcome};

const CAPACITY: Capacity = Capacity { fdb_entries: 1000, adjacencies: 100 };

/// The programs, their tables, and whose counters there are.
pub(super) struct Bench {
    pub(super) loaded: Loaded,
    targets: Vec<Target>,
    segments: u32,
    numbered: Vec<u32>,
    /// Storm limits, and until when the frames of each are paid for before a frame comes.
    storms: Vec<(StormSpec, u64)>,
    neighbors: Vec<(NeighborKey, NeighborRecord)>,
    /// What was reported lately.
    recent: PerCpuArray<MapData, [u64; 2]>,
    /// An empty slot of it, for each CPU.
    nothing: Vec<[u64; 2]>,
}

/// Zeroes every value of a map.
fn clear<T: Shared>(array: &SharedArray<T>) {
    for index in 0..array.len() {
        if let Some(value) = array.ptr(index) {
            // SAFETY: a live value of the map, which no program and no reference uses now; zero is a value of all.
            unsafe { value.as_ptr().write_bytes(0, 1) };
        }
    }
}

/// The clock that the programs see.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE);
    now.map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

fn empty<K: aya::Pod, V: aya::Pod>(map: &mut HashMap<MapData, K, V>) -> Result<()> {
    for key in map.keys().collect::<Result<Vec<_>, _>>()? {
        map.remove(&key)?;
    }
    Ok(())
}

impl Bench {
    /// Loads the programs.
    pub(super) fn load() -> Result<Self> {
        let object = mgre_user::object::object().map_err(anyhow::Error::msg)?;
        let mut loaded = load::load(object, CAPACITY)?;
        let recent = loaded.programs.take_map("mgre_recent").context("the object has no mgre_recent")?;
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
        Ok(Self {
            loaded,
            targets: Vec::new(),
            segments: 0,
            numbered: Vec::new(),
            storms: Vec::new(),
            neighbors: Vec::new(),
            recent: PerCpuArray::try_from(recent)?,
            nothing: vec![[0; 2]; cpus],
        })
    }

    /// Makes the tables those of this network, and of no other.
    pub(super) fn fill(&mut self, world: &World) -> Result<()> {
        let tables = &mut self.loaded.tables;
        clear(&tables.ports);
        clear(&tables.segments);
        clear(&tables.adjacencies);
        clear(&tables.port_slots);
        clear(&tables.sequences);
        clear(&tables.storms);
        clear(&tables.traffic);
        clear(&tables.drops);
        clear(&tables.segment_traffic);
        for array in tables.flood.iter() {
            clear(array);
        }
        for array in tables.fdb.iter() {
            clear(array);
        }
        for array in tables.endpoint_slots.iter() {
            clear(array);
        }
        empty(&mut tables.port_index)?;
        empty(&mut tables.vlan_ports)?;
        empty(tables.neighbors.as_mut().context("no neighbours")?)?;
        empty::<EndpointWords, u32>(&mut tables.endpoints.as_mut().context("no endpoints")?.map)?;
        let mut world = world.clone();
        for entry in world.entries.iter_mut().filter(|entry| entry.seen != SEEN_STATIC) {
            entry.seen = UNSEEN;
        }
        world.install(self);
        let ports = world.ports.iter().map(|port| Target::port(port.id));
        let peers = world.peers.iter().map(|peer| Target::adjacency(peer.id));
        self.targets = [Target::NONE].into_iter().chain(ports).chain(peers).collect();
        self.segments = world.segments.iter().map(|(id, _)| *id).max().unwrap_or(0);
        self.neighbors.clone_from(&world.neighbors);
        self.storms = world.storms.iter().map(|storm| (*storm, 0)).collect();
        let numbered =
            world.peers.iter().filter(|peer| peer.sequence || peer.flags & adjacency_flag::SEQUENCE != 0);
        self.numbered = numbered.map(|peer| peer.id).collect();
        Ok(())
    }

    /// Makes the tables what they are at a moment.
    pub(super) fn prepare(&mut self, moment: Moment) {
        let tables = &self.loaded.tables;
        if let Some(clock) = tables.clock.get(0) {
            clock.seconds.store(moment.seconds, Ordering::Relaxed);
            clock.lease.store(if moment.lease { u64::MAX } else { 0 }, Ordering::Relaxed);
        }
        let now = if self.storms.is_empty() { 0 } else { now_ns() };
        for (storm, before) in &mut self.storms {
            // The kernel's clock goes on; what was paid long ago is paid.
            *before = if moment.flooded == 0 && !storm.exhausted { 0 } else { paid(storm, now, moment) };
            if let Some(word) = tables.storms.get(row_of(storm.source)) {
                word.paid().store(*before, Ordering::Relaxed);
            }
        }
        for sequence in self.numbered.iter().filter_map(|id| tables.sequences.get(*id)) {
            sequence.sent.store(moment.sent.into(), Ordering::Relaxed);
            sequence.received.store(received_word(moment.received), Ordering::Relaxed);
        }
    }

    /// What was counted and noted since the last call; all of it is zero then.
    pub(super) fn counted(&mut self, moment: Moment, wanted: &Outcome) -> Result<Outcome, String> {
        let refreshed = wanted.seen;
        let mut seen = Outcome::default();
        for target in &self.targets {
            self.take_traffic(*target, &mut seen)?;
            self.take_drops(*target, &mut seen);
        }
        let tables = &self.loaded.tables;
        let cpus = self.loaded.config.traffic_rows;
        for segment in 0..=self.segments {
            for row in segment * cpus..(segment + 1) * cpus {
                let Some(row) = tables.segment_traffic.ptr(row) else { continue };
                // SAFETY: a live value; no program runs now, and nobody else writes.
                let row = unsafe { &mut *row.as_ptr() };
                let row = std::mem::take(row);
                if row == SegmentTraffic::default() {
                    continue;
                }
                if (seen.flooded, seen.answered) != (None, None) {
                    return Err(format!("counted twice: {row:?}, {seen:?}"));
                }
                (seen.flooded, seen.answered) = segment_row(segment, &row);
            }
        }
        for id in &self.numbered {
            let Some(sequence) = tables.sequences.get(*id) else { continue };
            let (received, sent) =
                (sequence.received.load(Ordering::Relaxed), sequence.sent.load(Ordering::Relaxed));
            if let Some(numbers) = numbers(received, sent, moment) {
                seen.numbers.insert(*id, numbers);
            }
        }
        let charged = |(storm, before): &&(StormSpec, u64)| {
            let word = tables.storms.get(row_of(storm.source));
            word.is_some_and(|word| word.paid().load(Ordering::Relaxed) != *before)
        };
        seen.charged = self.storms.iter().find(charged).map(|(storm, _)| storm.source);
        let slot = refreshed.and_then(|key| {
            let fdb = tables.fdb.as_ref()?;
            self.loaded.fdb_hash().find(key, |index| fdb.get(index))
        });
        if let Some(slot) = slot.filter(|slot| slot.seen() == moment.seconds) {
            slot.touch(UNSEEN);
            seen.seen = refreshed;
        }
        self.take_binding(moment, wanted, &mut seen)?;
        Ok(seen)
    }

    /// What was noted of a binding; it is what it was then.
    fn take_binding(&mut self, moment: Moment, wanted: &Outcome, seen: &mut Outcome) -> Result<(), String> {
        let Some(key) = wanted.confirmed.or(wanted.contested) else { return Ok(()) };
        let map = self.loaded.tables.neighbors.as_mut().ok_or("no neighbours")?;
        let record = map.get(&key, 0).map_err(|error| error.to_string())?;
        let before = self.neighbors.iter().find(|(other, _)| *other == key);
        let (_, before) = before.ok_or("a binding that nobody made")?;
        seen.confirmed = wanted.confirmed.filter(|_| record.seen == moment.seconds);
        seen.contested = wanted.contested.filter(|_| record.contested != before.contested);
        if record != *before {
            map.insert(key, before, 0).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Whether some binding is not what it must be.
    pub(super) fn stray_binding(&self) -> Option<NeighborKey> {
        let map = self.loaded.tables.neighbors.as_ref()?;
        let strays = |(key, record): &&(NeighborKey, NeighborRecord)| map.get(key, 0).ok() != Some(*record);
        self.neighbors.iter().find(strays).map(|(key, _)| *key)
    }

    /// Makes the programs forget that they told of something.
    pub(super) fn forget(&mut self, tags: &[u64]) -> Result<()> {
        for tag in tags {
            self.recent.set(recent_slot(*tag), PerCpuValues::try_from(self.nothing.clone())?, 0)?;
        }
        Ok(())
    }

    /// Drops as they are counted: those of a target for which no table has room by nobody's row. Rows of targets that
    /// there are not are not read.
    pub(super) fn with_rows(&self, drops: BTreeMap<Drop, u64>) -> BTreeMap<Drop, u64> {
        let mut rows = BTreeMap::new();
        for ((target, direction, reason), count) in drops {
            let has_row = (1..1 + MAX_PORTS + CAPACITY.adjacencies).contains(&row_of(target));
            let target = if has_row { target } else { Target::NONE };
            if self.targets.contains(&target) {
                *rows.entry((target, direction, reason)).or_default() += count;
            }
        }
        rows
    }

    fn take_traffic(&self, target: Target, seen: &mut Outcome) -> Result<(), String> {
        let cpus = self.loaded.config.traffic_rows;
        let first = row_of(target) * cpus;
        for row in first..first + cpus {
            let Some(row) = self.loaded.tables.traffic.ptr(row) else { continue };
            // SAFETY: a live value; no program runs now, and nobody else writes.
            let row = unsafe { &mut *row.as_ptr() };
            if row.receive_packets != 0 {
                if (row.receive_packets, seen.received) != (1, None) {
                    return Err(format!("received twice: {row:?}, {:?}", seen.received));
                }
                seen.received = Some((target, row.receive_bytes));
                (row.receive_packets, row.receive_bytes) = (0, 0);
                if row.reports_lost != 0 {
                    return Err(format!("{} reports lost", std::mem::take(&mut row.reports_lost)));
                }
                // Frames come faster here than a source may report addresses.
                row.report_tokens = REPORT_BURST;
            }
            if row.transmit_packets != 0 {
                seen.transmitted.insert(target, (row.transmit_packets, row.transmit_bytes));
                (row.transmit_packets, row.transmit_bytes) = (0, 0);
            }
        }
        Ok(())
    }

    fn take_drops(&self, target: Target, seen: &mut Outcome) {
        let shards = self.loaded.config.drop_shard_mask + 1;
        let first = row_of(target) * shards;
        for row in first..first + shards {
            let Some(row) = self.loaded.tables.drops.ptr(row) else { continue };
            // SAFETY: a live value; no program runs now, and nobody else writes.
            let row = unsafe { &mut *row.as_ptr() };
            if row.packets.as_flattened().iter().all(|count| *count == 0) {
                continue;
            }
            for direction in Direction::ALL {
                for reason in DropReason::ALL {
                    let count = std::mem::take(&mut row.packets[direction as usize][reason.index()]);
                    if count != 0 {
                        *seen.drops.entry((target, direction, *reason)).or_default() += count;
                    }
                }
            }
        }
    }

    /// Addresses, and claims, reported since the last call.
    pub(super) fn reports(&mut self) -> (Vec<LearnEvent>, Vec<NeighborEvent>) {
        let (mut reports, mut claims) = (Vec::new(), Vec::new());
        while let Some(event) = self.loaded.events.as_mut().and_then(|ring| ring.next()) {
            // They are told apart by their length.
            match event.len() {
                16 => reports.push(bytemuck::pod_read_unaligned(&event)),
                _ => claims.push(bytemuck::pod_read_unaligned(&event)),
            }
        }
        (reports, claims)
    }

    /// Frames that did not fit, reported since the last call.
    pub(super) fn too_big(&mut self) -> Notices {
        let Some(ring) = self.loaded.too_big.as_mut() else { return Vec::new() };
        std::iter::from_fn(|| {
            ring.next().map(|event| captured(&bytemuck::pod_read_unaligned::<TooBig>(&event)))
        })
        .collect()
    }
}

/// What the programs note of things that they told of lately: a tag for each, in one of some slots.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) fn recent_slot(tag: u64) -> u32 {
    (tag.wrapping_mul(GOLDEN) >> 40) as u32 & (RECENT_SLOTS - 1)
}

pub(super) fn report_tag(event: &LearnEvent) -> u64 {
    event.key.0 ^ u64::from(event.source).wrapping_mul(GOLDEN)
}

pub(super) fn claim_tag(event: &NeighborEvent) -> u64 {
    let start = event.key.0 ^ u64::from(event.source).wrapping_mul(GOLDEN);
    let mix = |tag: u64, pair: &u16| (tag ^ u64::from(*pair)).wrapping_mul(GOLDEN).rotate_left(23);
    event.address.iter().fold(start, mix) ^ u64::from(event.flags) << 32
}

pub(super) fn held_tag(key: FdbKey) -> u64 {
    key.0 ^ 0x6865_6c64_0000_0000
}

pub(super) fn too_big_tag(frame: &[u8]) -> u64 {
    let word = |at: usize| frame.get(at..at + 8).map_or(0, bytemuck::pod_read_unaligned::<u64>);
    word(0) ^ word(8).rotate_left(32) ^ 0x746f_6f20_6269_6700
}

/// A map has room for all that a network describes.
const ROOM: &str = "the network fits the maps";

impl Sink for Bench {
    fn clock(&mut self) -> &Clock {
        self.loaded.tables.clock.get(0).expect(ROOM)
    }

    fn port_index(&mut self, ifindex: u32, id: u32, segment: Option<u32>) {
        let tables = &mut self.loaded.tables;
        let slot = tables.port_slots.get(PortSlot::index(ifindex)).expect(ROOM);
        // The others are found in the hash map.
        if id == PORT_BY_VLAN {
            slot.set(ifindex, Indexed::BY_VLAN);
        } else if let Some(segment) = segment.filter(|_| id.is_multiple_of(2)) {
            slot.set(ifindex, Indexed { port: id, segment });
        }
        tables.port_index.insert(ifindex, id, 0).expect(ROOM);
    }

    fn vlan_port(&mut self, key: VlanKey, id: u32) {
        self.loaded.tables.vlan_ports.insert(key, id, 0).expect(ROOM);
    }

    fn port(&mut self, id: u32) -> &Port {
        self.loaded.tables.ports.get(id).expect(ROOM)
    }

    fn segment(&mut self, id: u32) -> &Segment {
        self.loaded.tables.segments.get(id).expect(ROOM)
    }

    fn adjacency(&mut self, id: u32, template: Template) -> &Adjacency {
        let adjacencies = &self.loaded.tables.adjacencies;
        // SAFETY: the map is alive, and no program runs yet.
        let index = unsafe { Adjacency::write_idle(adjacencies.ptr(id).expect(ROOM).as_ptr(), template) };
        let adjacency = adjacencies.get(id).expect(ROOM);
        adjacency.activate(index);
        adjacency
    }

    fn endpoint(&mut self, key: EndpointKey, id: u32, owner: Option<Owner>) {
        let tables = &mut self.loaded.tables;
        let slots = EndpointIndex { shift: self.loaded.config.endpoint_shift }.slots(&key.words());
        let mut slots = slots.into_iter().filter_map(|slot| tables.endpoint_slots.as_ref()?.get(slot));
        if let Some(owner) = owner
            && let Some(slot) = slots.find(|slot| slot.is_free())
        {
            slot.insert(&key.words(), owner);
        }
        tables.endpoints.as_mut().expect(ROOM).map.insert(key.words(), id, 0).expect(ROOM);
    }

    fn storm(&mut self, source: Target) -> &Storm {
        self.loaded.tables.storms.get(row_of(source)).expect(ROOM)
    }

    fn flood_slot(&mut self, index: u32) -> &FloodSlot {
        self.loaded.tables.flood.as_ref().expect(ROOM).get(index).expect(ROOM)
    }

    fn neighbor(&mut self, key: NeighborKey, record: NeighborRecord) {
        self.loaded.tables.neighbors.as_mut().expect(ROOM).insert(key, record, 0).expect(ROOM);
    }

    fn fdb_hash(&self) -> FdbHash {
        self.loaded.fdb_hash()
    }

    fn fdb_bucket(&mut self, index: u32) -> &Bucket {
        self.loaded.tables.fdb.as_ref().expect(ROOM).get(index).expect(ROOM)
    }
}
