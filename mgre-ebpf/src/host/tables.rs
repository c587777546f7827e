//! Tables in vectors.

use core::cell::{Cell, RefCell};
use core::sync::atomic::Ordering;
use std::collections::{BTreeMap, HashMap};

use mgre_common::cell::AtomicU64;
use mgre_common::counters::{SegmentTraffic, Traffic};
use mgre_common::endpoint::{EndpointIndex, EndpointKey, EndpointSlot, EndpointWords, Owner};
use mgre_common::event::{HELD_INTERVAL_NS, LearnEvent, TOO_BIG_CAPTURE, TooBig, TooBigHead};
use mgre_common::fdb::{Bucket, FdbHash, FdbKey, Slot, hash_shift};
use mgre_common::neighbor::{NeighborEvent, NeighborKey, NeighborRecord, NeighborSlot, Protocol};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::storm::Storm;
use mgre_common::table::{
    Adjacency, Clock, FloodSlot, Indexed, LEASE_JIFFIES, PORT_BY_VLAN, PORT_SLOTS, Port, PortSlot, Segment,
    Sequence, Template, VlanKey,
};
use mgre_common::target::Target;

use super::world::Sink;
use crate::frame::Whole;
use crate::tables::{Now, Tables};

/// Whose frame was dropped, which way it was going, and why.
pub type Drop = (Target, Direction, DropReason);

/// The daemon's tables, in their real layouts, and everything that was counted.
#[derive(Debug)]
pub struct MemoryTables {
    port_slots: Vec<PortSlot>,
    port_index: HashMap<u32, u32>,
    ports: Vec<Port>,
    segments: Vec<Segment>,
    adjacencies: Vec<Adjacency>,
    endpoint_slots: Vec<EndpointSlot>,
    endpoints: HashMap<EndpointWords, u32>,
    flood: Vec<FloodSlot>,
    hash: FdbHash,
    buckets: Vec<Bucket>,
    /// The daemon's clock.
    pub clock: Clock,
    /// Traffic by target.
    pub traffic: RefCell<BTreeMap<Target, Traffic>>,
    /// Drops.
    pub drops: RefCell<BTreeMap<Drop, u64>>,
    /// Flooding by segment.
    pub floods: RefCell<BTreeMap<u32, SegmentTraffic>>,
    /// Everything that was reported.
    pub reports: RefCell<Vec<LearnEvent>>,
    vlan_ports: HashMap<VlanKey, u32>,
    sequences: Vec<Sequence>,
    neighbors: HashMap<NeighborKey, NeighborSlot>,
    /// What hosts said of themselves.
    pub claims: RefCell<Vec<NeighborEvent>>,
    storms: BTreeMap<Target, Storm>,
    /// When a frame of an address that is held was flooded last.
    pub paced: RefCell<BTreeMap<FdbKey, u64>>,
    /// Monotonic time in ns.
    pub nanos: Cell<u64>,
    /// What did not fit.
    pub too_big: RefCell<Vec<TooBig>>,
}

/// Few, so that some endpoints have no place in the index.
const ENDPOINT_SLOTS: u32 = 32;

impl Default for MemoryTables {
    fn default() -> Self {
        const BUCKETS: u32 = 256;
        let clock = Clock::default();
        clock.lease.store(LEASE_JIFFIES, Ordering::Relaxed);
        Self {
            port_slots: (0..PORT_SLOTS).map(|_| PortSlot::default()).collect(),
            port_index: HashMap::new(),
            ports: (0..64).map(|_| Port::default()).collect(),
            segments: (0..64).map(|_| Segment::default()).collect(),
            adjacencies: Vec::new(),
            endpoint_slots: (0..ENDPOINT_SLOTS).map(|_| EndpointSlot::default()).collect(),
            endpoints: HashMap::new(),
            flood: (0..2048).map(|_| FloodSlot::default()).collect(),
            hash: FdbHash {
                shift: hash_shift(BUCKETS),
                multipliers: [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f],
            },
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
            clock,
            traffic: RefCell::default(),
            drops: RefCell::default(),
            floods: RefCell::default(),
            reports: RefCell::default(),
            vlan_ports: HashMap::new(),
            sequences: Vec::new(),
            neighbors: HashMap::new(),
            claims: RefCell::default(),
            storms: BTreeMap::new(),
            paced: RefCell::default(),
            nanos: Cell::new(0),
            too_big: RefCell::default(),
        }
    }
}

impl MemoryTables {
    /// Forgets everything that was counted.
    pub fn reset_counters(&self) {
        self.traffic.borrow_mut().clear();
        self.drops.borrow_mut().clear();
        self.floods.borrow_mut().clear();
        self.reports.borrow_mut().clear();
        self.claims.borrow_mut().clear();
        self.too_big.borrow_mut().clear();
        self.paced.borrow_mut().clear();
    }

    /// How often a frame was dropped so.
    pub fn dropped(&self, target: Target, direction: Direction, reason: DropReason) -> u64 {
        self.drops.borrow().get(&(target, direction, reason)).copied().unwrap_or(0)
    }

    /// Every drop there was.
    pub fn all_dropped(&self) -> u64 {
        self.drops.borrow().values().sum()
    }

    /// A target's traffic.
    pub fn traffic(&self, target: Target) -> Traffic {
        self.traffic.borrow().get(&target).copied().unwrap_or_default()
    }

    /// An address's slot.
    pub fn slot(&self, key: FdbKey) -> Option<&Slot> {
        self.hash.find(key, |index| self.buckets.get(index as usize))
    }
}

/// A table's record, for which room is made.
fn grown<T: Default>(table: &mut Vec<T>, index: u32) -> &mut T {
    let index = index as usize;
    if table.len() <= index {
        table.resize_with(index + 1, T::default);
    }
    &mut table[index]
}

impl Sink for MemoryTables {
    fn clock(&mut self) -> &Clock {
        &self.clock
    }

    fn port_index(&mut self, ifindex: u32, id: u32, segment: Option<u32>) {
        let slot = &self.port_slots[PortSlot::index(ifindex) as usize];
        // The others are found in the map.
        if id == PORT_BY_VLAN {
            slot.set(ifindex, Indexed::BY_VLAN);
        } else if let Some(segment) = segment.filter(|_| id.is_multiple_of(2)) {
            slot.set(ifindex, Indexed { port: id, segment });
        }
        self.port_index.insert(ifindex, id);
    }

    fn vlan_port(&mut self, key: VlanKey, id: u32) {
        self.vlan_ports.insert(key, id);
    }

    fn port(&mut self, id: u32) -> &Port {
        &self.ports[id as usize]
    }

    fn segment(&mut self, id: u32) -> &Segment {
        &self.segments[id as usize]
    }

    fn adjacency(&mut self, id: u32, template: Template) -> &Adjacency {
        let adjacency = grown(&mut self.adjacencies, id);
        // SAFETY: the borrow is exclusive.
        let index = unsafe { Adjacency::write_idle(&raw mut *adjacency, template) };
        adjacency.activate(index);
        grown(&mut self.sequences, id);
        grown(&mut self.adjacencies, id)
    }

    fn endpoint(&mut self, key: EndpointKey, id: u32, owner: Option<Owner>) {
        let slots = self.endpoint_index().slots(&key.words()).map(|slot| &self.endpoint_slots[slot as usize]);
        if let Some(slot) = slots.into_iter().find(|slot| slot.is_free())
            && let Some(owner) = owner
        {
            slot.insert(&key.words(), owner);
        }
        self.endpoints.insert(key.words(), id);
    }

    fn storm(&mut self, source: Target) -> &Storm {
        self.storms.entry(source).or_default()
    }

    fn flood_slot(&mut self, index: u32) -> &FloodSlot {
        grown(&mut self.flood, index)
    }

    fn neighbor(&mut self, key: NeighborKey, record: NeighborRecord) {
        self.neighbors.insert(key, NeighborSlot::new(record));
    }

    fn fdb_hash(&self) -> FdbHash {
        self.hash
    }

    fn fdb_bucket(&mut self, index: u32) -> &Bucket {
        &self.buckets[index as usize]
    }
}

impl Tables for MemoryTables {
    fn port_slot(&self, index: u32) -> Option<&PortSlot> {
        self.port_slots.get(index as usize)
    }

    fn any_port_of(&self, ifindex: u32) -> Option<u32> {
        self.port_index.get(&ifindex).copied()
    }

    fn port(&self, id: u32) -> Option<&Port> {
        self.ports.get(id as usize)
    }

    fn segment(&self, id: u32) -> Option<&Segment> {
        self.segments.get(id as usize)
    }

    fn adjacency(&self, id: u32) -> Option<&Adjacency> {
        self.adjacencies.get(id as usize)
    }

    fn endpoint_index(&self) -> EndpointIndex {
        EndpointIndex::new(ENDPOINT_SLOTS)
    }

    fn endpoint_slot(&self, index: u32) -> Option<&EndpointSlot> {
        self.endpoint_slots.get(index as usize)
    }

    fn any_endpoint(&self, key: &EndpointWords) -> Option<u32> {
        self.endpoints.get(key).copied()
    }

    fn flood_slot(&self, index: u32) -> Option<&FloodSlot> {
        self.flood.get(index as usize)
    }

    fn fdb_hash(&self) -> FdbHash {
        self.hash
    }

    fn fdb_bucket(&self, index: u32) -> Option<&Bucket> {
        self.buckets.get(index as usize)
    }

    fn now(&self) -> Now {
        Now {
            seconds: self.clock.seconds.load(Ordering::Relaxed),
            lease: self.clock.lease.load(Ordering::Relaxed),
        }
    }

    fn jiffies(&self) -> u64 {
        0
    }

    fn count_received(&self, target: Target, bytes: u32, now: Now) {
        let mut rows = self.traffic.borrow_mut();
        let row = rows.entry(target).or_default();
        row.receive_packets += 1;
        row.receive_bytes += u64::from(bytes);
        row.last_receive_seconds = u64::from(now.seconds);
    }

    fn count_sent(&self, target: Target, bytes: u32) {
        let mut rows = self.traffic.borrow_mut();
        let row = rows.entry(target).or_default();
        row.transmit_packets += 1;
        row.transmit_bytes += u64::from(bytes);
    }

    fn count_drop(&self, target: Target, direction: Direction, reason: DropReason) {
        *self.drops.borrow_mut().entry((target, direction, reason)).or_default() += 1;
    }

    fn count_flood(&self, segment: u32, copies: u32, lost: u32) {
        let mut rows = self.floods.borrow_mut();
        let row = rows.entry(segment).or_default();
        row.flood_frames += 1;
        row.flood_copies += u64::from(copies);
        row.flood_lost += u64::from(lost);
    }

    fn vlan_port(&self, key: VlanKey) -> Option<u32> {
        self.vlan_ports.get(&key).copied()
    }

    fn sequence(&self, adjacency: u32) -> Option<&Sequence> {
        self.sequences.get(adjacency as usize)
    }

    fn next_sequence(&self, sequence: &Sequence) -> u32 {
        sequence.sent.fetch_add(1, Ordering::Relaxed) as u32
    }

    fn next_ids(&self, sequence: &Sequence, count: u16) -> u16 {
        let before = sequence.sent.fetch_add(u64::from(count) << Sequence::IDS_SHIFT, Ordering::Relaxed);
        (before >> Sequence::IDS_SHIFT) as u16
    }

    fn slow_interface(&self) -> Option<u32> {
        match self.clock.slow_ifindex.load(Ordering::Relaxed) {
            0 => None,
            ifindex => Some(ifindex),
        }
    }

    fn report_too_big<F: Whole>(&self, frame: &F, outer_len: u32, event: TooBigHead) {
        let mut bytes = [0; TOO_BIG_CAPTURE];
        let captured = frame.copy_bytes(outer_len, &mut bytes).min(event.captured);
        self.too_big.borrow_mut().push(TooBig { head: TooBigHead { captured, ..event }, bytes });
    }

    fn storm(&self, source: Target) -> Option<&Storm> {
        self.storms.get(&source)
    }

    fn nanos(&self) -> u64 {
        self.nanos.get()
    }

    fn paces(&self, source: FdbKey) -> bool {
        let now = self.nanos.get();
        let mut paced = self.paced.borrow_mut();
        if paced.get(&source).is_some_and(|before| now - before < HELD_INTERVAL_NS) {
            return false;
        }
        paced.insert(source, now);
        true
    }

    fn add(&self, word: &AtomicU64, number: u64) {
        word.fetch_add(number, Ordering::Relaxed);
    }

    fn neighbor(&self, key: &NeighborKey) -> Option<&NeighborSlot> {
        self.neighbors.get(key)
    }

    fn report_neighbor(&self, event: &NeighborEvent, _source: Target) {
        self.claims.borrow_mut().push(*event);
    }

    fn count_answered(&self, segment: u32, protocol: Protocol) {
        let mut rows = self.floods.borrow_mut();
        let row = rows.entry(segment).or_default();
        match protocol {
            Protocol::Arp => row.arp_replies += 1,
            Protocol::Nd => row.nd_replies += 1,
        }
    }

    fn report(&self, event: &LearnEvent, _source: Target) {
        self.reports.borrow_mut().push(*event);
    }
}
