//! The maps of the loaded programs: filled with a network, and read.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};
use mgre_common::counters::row_of;
use mgre_common::endpoint::{EndpointIndex, EndpointKey, EndpointWords, Owner};
use mgre_common::event::{LearnEvent, TooBig};
use mgre_common::fdb::{Bucket, FdbHash, FdbKey, SEEN_STATIC};
use mgre_common::neighbor::{NeighborKey, NeighborRecord};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::storm::Storm;
use mgre_common::table::{
    Adjacency, Clock, FloodSlot, Indexed, NO_ROW, PORT_BY_VLAN, Port, PortSlot, Segment, Template, VlanKey,
    adjacency_flag,
};
use mgre_common::target::Target;
use mgre_ebpf::host::cases::captured;
use mgre_ebpf::host::tables::Drop;
use mgre_ebpf::host::world::{Sink, StormSpec, World};
use mgre_user::datapath::load::{self, Capacity, Loaded};
use mgre_user::datapath::shared::{Shared, SharedArray};
use nix::time::{ClockId, clock_gettime};

use super::super::host::{UNSEEN, numbers, paid, received_word};
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

fn empty<K: aya::Pod>(map: &mut HashMap<MapData, K, u32>) -> Result<()> {
    for key in map.keys().collect::<Result<Vec<_>, _>>()? {
        map.remove(&key)?;
    }
    Ok(())
}

impl Bench {
    /// Loads the programs.
    pub(super) fn load() -> Result<Self> {
        let object = mgre_user::object::object().map_err(anyhow::Error::msg)?;
        let loaded = load::load(object, CAPACITY)?;
        Ok(Self { loaded, targets: Vec::new(), segments: 0, numbered: Vec::new(), storms: Vec::new() })
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
        empty::<EndpointWords>(tables.endpoints.as_mut().context("no endpoints")?)?;
        let mut world = world.clone();
        for entry in world.entries.iter_mut().filter(|entry| entry.seen != SEEN_STATIC) {
            entry.seen = UNSEEN;
        }
        world.install(self);
        let ports = world.ports.iter().map(|port| Target::port(port.id));
        let peers = world.peers.iter().map(|peer| Target::adjacency(peer.id));
        self.targets = [Target::NONE].into_iter().chain(ports).chain(peers).collect();
        self.segments = world.segments.len() as u32;
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
    pub(super) fn counted(&self, moment: Moment, refreshed: Option<FdbKey>) -> Result<Outcome, String> {
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
                if row.flood_frames == 0 {
                    continue;
                }
                if (row.flood_frames, seen.flooded) != (1, None) {
                    return Err(format!("flooded twice: {row:?}, {:?}", seen.flooded));
                }
                seen.flooded = Some((segment, row.flood_copies));
                (row.flood_frames, row.flood_copies) = (0, 0);
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
        Ok(seen)
    }

    /// Drops as they are counted: those of what is no target by nobody's row, those of a target that no table has room
    /// for not at all.
    pub(super) fn with_rows(&self, drops: BTreeMap<Drop, u64>) -> BTreeMap<Drop, u64> {
        let rows = drops.into_iter().filter_map(|((target, direction, reason), count)| {
            let target = if row_of(target) == NO_ROW { Target::NONE } else { target };
            self.targets.contains(&target).then_some(((target, direction, reason), count))
        });
        rows.collect()
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

    /// Addresses reported since the last call.
    pub(super) fn reports(&mut self) -> Vec<LearnEvent> {
        let Some(ring) = self.loaded.events.as_mut() else { return Vec::new() };
        std::iter::from_fn(|| ring.next().map(|event| bytemuck::pod_read_unaligned(&event))).collect()
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
        tables.endpoints.as_mut().expect(ROOM).insert(key.words(), id, 0).expect(ROOM);
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
