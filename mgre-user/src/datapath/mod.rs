//! The daemon's side of the datapath: loads, fills, attaches and reads it.

pub mod attach;
mod calls;
pub mod cause;
mod clsact;
pub mod counters;
pub mod endpoints;
pub mod fdb;
pub mod flood;
pub mod handed;
pub mod handover;
pub mod link;
pub mod load;
pub mod neighbors;
pub mod pins;
pub mod refusal;
pub mod shared;
pub mod tallies;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::MapError;
use mgre_common::counters::row_of;
use mgre_common::endpoint::Owner;
use mgre_common::table::{
    Adjacency, FloodList, Indexed, PORT_BY_VLAN, PortSlot, VlanKey, adjacency_flag, port_flag, segment_flag,
    template_option,
};
use mgre_common::target::{Target, TargetKind};

use self::attach::{Attachments, Placement};
use self::counters::{Counters, TakenOver};
use self::endpoints::Endpoints;
use self::fdb::{Entry, Fdb};
use self::flood::Floods;
use self::handover::{Predecessor, inherit_sequence};
use self::load::{Loaded, Tables};
use self::neighbors::NeighborTable;
use self::tallies::Tallies;
use crate::plan::{
    AdjacencyRecord, Attachment, EndpointOwner, FloodTargets, Hook, Op, Plan, PortIndex, PortRecord, TcHook,
};

/// The datapath of one instance.
#[derive(Debug)]
pub struct Datapath {
    programs: Ebpf,
    tables: Tables,
    floods: Floods,
    /// Whose packets are whose.
    pub endpoints: Endpoints,
    attachments: Attachments,
    counters: Counters,
    /// The tables of an earlier daemon whose programs may still run, and what was taken over from them.
    predecessor: Option<(Predecessor, TakenOver)>,
    /// Adjacencies whose idle template may still be in use by a running program.
    switched: HashMap<u32, ()>,
    /// The forwarding database.
    pub fdb: Fdb,
    /// Who has which address.
    pub neighbors: NeighborTable,
    /// What the daemon counts.
    pub tallies: Tallies,
}

impl Datapath {
    /// Takes over what was loaded.
    ///
    /// # Errors
    /// The tables cannot be mapped, or the directory for pins not made.
    pub fn new(loaded: Loaded, placement: Placement, fdb_capacity: u32) -> Result<Self> {
        let hash = loaded.fdb_hash();
        let Loaded { programs, mut tables, calls, config, .. } = loaded;
        let fdb = Fdb::new(tables.fdb.take().context("the FDB is taken")?, hash, fdb_capacity);
        let neighbors = NeighborTable::new(tables.neighbors.take().context("the neighbours are taken")?);
        let floods = Floods::new(tables.flood.take().context("the flood lists are taken")?);
        let endpoints = Endpoints::new(
            tables.endpoints.take().context("the endpoints are taken")?,
            tables.endpoint_slots.take().context("the endpoint index is taken")?,
        );
        let tallies = Tallies::new(tables.tallies.take().context("the tallies are taken")?);
        let counters = Counters::new(&tables, &config);
        Ok(Self {
            programs,
            tables,
            floods,
            endpoints,
            attachments: Attachments::new(placement, calls.context("the program array is taken")?)?,
            counters,
            predecessor: None,
            switched: HashMap::new(),
            fdb,
            neighbors,
            tallies,
        })
    }

    /// The clock, in seconds.
    pub fn now(&self) -> u32 {
        self.tables.clock.get(0).map_or(0, |clock| clock.seconds.load(Ordering::Relaxed))
    }

    /// Sets the clock, and lets what has rested be used again.
    pub fn set_clock(&mut self, seconds: u32) {
        if let Some(clock) = self.tables.clock.get(0) {
            clock.seconds.store(seconds, Ordering::Relaxed);
        }
        self.fdb.wake(seconds);
        self.floods.wake(seconds);
        self.endpoints.wake(seconds);
        if let Err(error) = load::renew_lease(&mut self.programs).and_then(|()| self.tallies.beat()) {
            tracing::warn!("{error:#}");
        }
    }

    /// The counters.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes one step of a plan. The FDB entries that went with it are added to `removed`.
    ///
    /// # Errors
    /// The kernel refuses it; then the step was not taken.
    pub fn apply(&mut self, op: &Op, removed: &mut Vec<Entry>) -> Result<()> {
        let now = self.now();
        match op {
            Op::Attach { ifindex, hook, attachment } => {
                self.attachments.attach(&mut self.programs, *ifindex, *hook, attachment)?;
            }
            Op::SetSlow(ifindex) => self.set_slow(*ifindex),
            Op::SetNearMacs(macs) => {
                self.tables.near_macs.get(0).context("no place for addresses")?.set(macs.iter().copied())
            }
            Op::AddDevice(ifindex) => self.tables.devices.insert(*ifindex, *ifindex, None, 0)?,
            // An interface that is gone took its entry with it.
            Op::RemoveDevice(ifindex) => self.tables.devices.remove(*ifindex).or_else(not_there)?,
            Op::Detach { ifindex, hook } => self.attachments.detach(*ifindex, *hook)?,
            Op::SetAdjacency(id, record) => self.set_adjacency(*id, record)?,
            Op::RemoveAdjacency(id) => {
                if let Some(adjacency) = self.tables.adjacencies.get(*id) {
                    adjacency.flags.store(0, Ordering::Release);
                }
                // Who gets the number next begins anew.
                if let Some(sequence) = self.tables.sequences.get(*id) {
                    sequence.sent.store(0, Ordering::Relaxed);
                    sequence.received.store(0, Ordering::Relaxed);
                }
                self.set_storm(Target::adjacency(*id), 0);
                self.forget(Target::adjacency(*id), removed);
            }
            Op::SetPort(id, record) => self.set_port(*id, record, removed)?,
            Op::RemovePort(id) => {
                if let Some(port) = self.tables.ports.get(*id) {
                    port.flags.store(0, Ordering::Release);
                }
                self.set_storm(Target::port(*id), 0);
                self.forget(Target::port(*id), removed);
            }
            Op::SetPortIndex(ifindex, to) => self.set_port_index(*ifindex, *to)?,
            Op::RemovePortIndex(ifindex) => self.remove_port_index(*ifindex)?,
            Op::SetVlanPort((ifindex, vlan), id) => {
                self.tables.vlan_ports.insert(VlanKey::new(*ifindex, *vlan), id, 0)?;
            }
            Op::RemoveVlanPort((ifindex, vlan)) => {
                self.tables.vlan_ports.remove(&VlanKey::new(*ifindex, *vlan)).or_else(not_there)?;
            }
            Op::SetEndpoint(key, EndpointOwner { adjacency, flags }) => {
                let segment = if key.is_indexed() {
                    let record = self.tables.adjacencies.get(*adjacency).context("no such adjacency")?;
                    record.segment.load(Ordering::Relaxed) as u16
                } else {
                    0
                };
                self.endpoints.set(
                    key,
                    Owner { adjacency: *adjacency, segment, flags: *flags as u16 },
                    now,
                )?;
            }
            Op::RemoveEndpoint(key) => self.endpoints.remove(key, now)?,
            Op::SetFlood(segment, targets) => self.set_flood(*segment, targets, now)?,
            Op::RemoveSegment(segment) => self.remove_segment(*segment, now, removed),
            Op::SetFixed(key, entry) => self.fdb.set(*key, entry.target, None)?,
            Op::RemoveFixed(key) => removed.extend(self.fdb.remove(*key)),
        }
        Ok(())
    }

    /// Forgets everything learned from a target that is gone, and its numbers.
    fn forget(&mut self, target: Target, removed: &mut Vec<Entry>) {
        // Entries that were given are removed by steps of their own.
        if self.fdb.learned_from(target) > 0 {
            removed.extend(self.fdb.remove_where(|entry| entry.target == target));
        }
        self.counters().clear(target);
    }

    /// A pair without programs would lose what it is given.
    fn set_slow(&self, ifindex: u32) {
        let works = self.attachments.all_attached(Hook::Slow);
        if let Some(clock) = self.tables.clock.get(0) {
            clock.slow_ifindex.store(if works { ifindex } else { 0 }, Ordering::Release);
        }
    }

    /// Sets how many frames a second a source may have flooded; zero for as many as it sends.
    fn set_storm(&self, source: Target, frames_per_second: u32) {
        if let Some(storm) = self.tables.storms.get(row_of(source)) {
            storm.set(frames_per_second);
        }
    }

    fn set_adjacency(&mut self, id: u32, record: &AdjacencyRecord) -> Result<()> {
        if self.switched.contains_key(&id) {
            // The idle template was in force until lately: wait until no program that
            // began then still runs.
            wait_for_programs();
            self.switched.clear();
        }
        if record.template.options & template_option::NEEDS_FINISHING != 0
            && let Some(segment) = self.tables.segments.get(record.segment.into())
        {
            // It stays for as long as the segment does: it costs a flooded frame little.
            set_flag(&segment.flags, segment_flag::FINISHES, true);
        }
        let adjacency = self.tables.adjacencies.ptr(id).context("no such adjacency")?;
        // SAFETY: this is the one writer, and the idle template has rested.
        let index = unsafe { Adjacency::write_idle(adjacency.as_ptr(), record.template) };
        // SAFETY: the pointer is the table's.
        let adjacency = unsafe { adjacency.as_ref() };
        self.set_storm(Target::adjacency(id), record.storm_limit);
        adjacency.segment.store(record.segment.into(), Ordering::Relaxed);
        adjacency.activate(index);
        self.switched.insert(id, ());
        let full = adjacency.flags.load(Ordering::Relaxed) & adjacency_flag::FULL;
        adjacency.flags.store(adjacency_flag::VALID | full | record.flags, Ordering::Release);
        Ok(())
    }

    fn set_port_index(&mut self, ifindex: u32, to: PortIndex) -> Result<()> {
        let (id, indexed) = match to {
            PortIndex::Port(port) => {
                let record = self.tables.ports.get(port).context("no such port")?;
                (port, Indexed { port, segment: record.segment.load(Ordering::Relaxed) })
            }
            PortIndex::ByVlan => (PORT_BY_VLAN, Indexed::BY_VLAN),
        };
        self.tables.port_index.insert(ifindex, id, 0)?;
        let slot = self.tables.port_slots.get(PortSlot::index(ifindex)).context("no such slot")?;
        let blocked = match to {
            PortIndex::Port(port) => self.tables.ports.get(port),
            PortIndex::ByVlan => None,
        };
        if blocked.is_some_and(|port| port.flags.load(Ordering::Relaxed) & port_flag::BLOCKED != 0) {
            return Ok(());
        }
        // Another interface may have it: this one is found in the hash map then.
        if slot.is_free() || slot.find(ifindex).is_some() {
            slot.set(ifindex, indexed);
        }
        Ok(())
    }

    fn remove_port_index(&mut self, ifindex: u32) -> Result<()> {
        let slot = self.tables.port_slots.get(PortSlot::index(ifindex));
        if let Some(slot) = slot.filter(|slot| slot.find(ifindex).is_some()) {
            slot.clear();
        }
        Ok(self.tables.port_index.remove(&ifindex).or_else(not_there)?)
    }

    fn set_port(&mut self, id: u32, record: &PortRecord, removed: &mut Vec<Entry>) -> Result<()> {
        self.set_storm(Target::port(id), record.storm_limit);
        let port = self.tables.ports.get(id).context("no such port")?;
        let was = port.flags.load(Ordering::Relaxed);
        let (was_up, was_blocked) = (was & port_flag::UP != 0, was & port_flag::BLOCKED != 0);
        port.ifindex.store(record.ifindex, Ordering::Relaxed);
        port.segment.store(record.segment.into(), Ordering::Relaxed);
        port.max_frame.store(record.max_frame, Ordering::Relaxed);
        let mut flags = port_flag::VALID | u32::from(record.vlan) << port_flag::VLAN_SHIFT;
        for (on, bit) in [
            (record.vlan != 0, port_flag::TAGGED),
            (record.up, port_flag::UP),
            (record.blocked, port_flag::BLOCKED),
            (record.host, port_flag::HOST),
            (record.peer, port_flag::PEER),
            (record.express, port_flag::EXPRESS),
        ] {
            flags |= if on { bit } else { 0 };
        }
        port.flags.store(flags, Ordering::Release);
        let slot = self.tables.port_slots.get(PortSlot::index(record.ifindex));
        let indexed = Indexed { port: id, segment: record.segment.into() };
        if let Some(slot) = slot {
            let is_its = slot.find(record.ifindex).is_some_and(|to| to.port == id && to != Indexed::BY_VLAN);
            if is_its && record.blocked {
                // The index knows of no flags: it is found in the hash map, and its record read.
                slot.clear();
            } else if is_its || was_blocked && slot.is_free() && record.vlan == 0 {
                slot.set(record.ifindex, indexed);
            }
        }
        if was_up && !record.up {
            // As a bridge does: nobody can be behind it now.
            let target = Target::port(id);
            let learned = |entry: &Entry| entry.target == target && entry.seen.is_some();
            removed.extend(self.fdb.remove_where(learned));
        }
        Ok(())
    }

    fn set_flood(&mut self, segment: u16, targets: &FloodTargets, now: u32) -> Result<()> {
        let record = self.tables.segments.get(segment.into()).context("no such segment")?;
        self.floods
            .set(segment, targets, now, |list| record.flood.store(list.to_bits(), Ordering::Release))?;
        record.blocked_groups.store(targets.blocked_groups.into(), Ordering::Relaxed);
        set_flag(&record.flags, segment_flag::HUB, targets.hub);
        set_flag(&record.flags, segment_flag::SUPPRESS, targets.suppress);
        set_flag(&record.flags, segment_flag::VALID, true);
        Ok(())
    }

    fn remove_segment(&mut self, segment: u16, now: u32, removed: &mut Vec<Entry>) {
        if let Some(record) = self.tables.segments.get(segment.into()) {
            record.flags.store(0, Ordering::Release);
            record.flood.store(FloodList::default().to_bits(), Ordering::Release);
        }
        self.floods.remove(segment, now);
        removed.extend(self.fdb.remove_where(|entry| entry.key.segment() == segment));
        self.counters().clear_segment(segment);
    }

    /// Says whether a port or a peer's adjacency may have no more addresses learned.
    pub fn set_full(&self, target: Target, full: bool) {
        let flags = match target.kind() {
            TargetKind::Port(id) => self.tables.ports.get(id).map(|port| &port.flags),
            TargetKind::Adjacency(id) => self.tables.adjacencies.get(id).map(|adjacency| &adjacency.flags),
            TargetKind::None => None,
        };
        const { assert!(port_flag::FULL == adjacency_flag::FULL) };
        if let Some(flags) = flags {
            set_flag(flags, adjacency_flag::FULL, full);
        }
    }

    /// Says whether a segment may have no more addresses learned.
    pub fn set_segment_full(&self, segment: u16, full: bool) {
        if let Some(record) = self.tables.segments.get(segment.into()) {
            set_flag(&record.flags, segment_flag::FULL, full);
        }
    }

    /// Takes over what an earlier daemon of the instance had learned and counted, as
    /// far as a plan has a place for it. Programs are not attached by this.
    ///
    /// # Errors
    /// There is something to take over, but it cannot be looked at.
    pub fn inherit(&mut self, plan: &Plan) -> Result<()> {
        let remains = self.attachments.left_behind()?;
        let Some(from) = Predecessor::find(&remains)? else { return Ok(()) };
        // Before the clock is set, which says that the daemon lives.
        let tallies = handover::tallies(&remains).and_then(|tallies| match tallies {
            Some(tallies) => self.tallies.inherit(&tallies, plan.floods.keys().copied(), from.now()),
            None => Ok(()),
        });
        if let Err(error) = tallies {
            tracing::warn!("what the daemon before counted itself is lost: {error:#}");
        }
        self.set_clock(from.now());
        let segment_of = |target: Target| match target.kind() {
            TargetKind::Port(id) => plan.ports.get(&id).map(|port| port.segment),
            TargetKind::Adjacency(id) => plan.adjacencies.get(&id).map(|record| record.segment),
            TargetKind::None => None,
        };
        // There may be less room than there was; entries that were given have theirs.
        let room = self.fdb.capacity() as usize - plan.fixed.len().min(self.fdb.capacity() as usize);
        let kept = |entry: &Entry| segment_of(entry.target) == Some(entry.key.segment());
        for entry in from.learned().filter(kept).take(room) {
            self.fdb.set(entry.key, entry.target, entry.seen)?;
        }
        let counters = self.counters();
        let mut taken = TakenOver::default();
        let ports = plan.ports.keys().map(|id| Target::port(*id));
        let adjacencies = plan.adjacencies.keys().map(|id| Target::adjacency(*id));
        for target in ports.chain(adjacencies).chain([Target::NONE]) {
            counters.inherit(&from, target, &mut taken);
        }
        plan.floods.keys().for_each(|segment| counters.inherit_segment(&from, *segment, &mut taken));
        if let Some(sequences) = handover::sequences(&remains)? {
            for id in plan.adjacencies.keys() {
                if let (Some(from), Some(to)) = (sequences.get(*id), self.tables.sequences.get(*id)) {
                    inherit_sequence(from, to);
                }
            }
        }
        self.predecessor = Some((from, taken));
        Ok(())
    }

    /// Why the kernel refused a program that an interface does without.
    pub fn refusal(&self, ifindex: u32, hook: Hook) -> Option<&str> {
        self.attachments.refusal(ifindex, hook)
    }

    /// The hook of programs for socket buffers.
    pub const fn tc_hook(&self) -> TcHook {
        self.attachments.tc_hook()
    }

    /// The neighbours that an earlier daemon knew, if its programs have a table of them.
    ///
    /// # Errors
    /// There are programs, but they cannot be looked at.
    pub fn left_behind_neighbors(&mut self) -> Result<Option<NeighborTable>> {
        NeighborTable::left_behind(&self.attachments.left_behind()?)
    }

    /// Puts back filters that somebody else removed, on some interfaces or on all. Says where that was.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mend(&mut self, interfaces: Option<&BTreeSet<u32>>) -> Result<Vec<u32>> {
        self.attachments.mend(&mut self.programs, interfaces)
    }

    /// Attaches again what somebody else took off; `lost` are interfaces that had an XDP program of ours and have none.
    /// Says where that was.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mend_links(
        &mut self,
        wanted: &BTreeMap<(u32, Hook), Attachment>,
        lost: &BTreeSet<u32>,
    ) -> Result<Vec<u32>> {
        self.attachments.mend_links(&mut self.programs, wanted, lost)
    }

    /// Interfaces that have an XDP program of ours.
    pub fn xdp_interfaces(&self) -> impl Iterator<Item = u32> {
        self.attachments.xdp_interfaces()
    }

    /// Swaps out what an earlier daemon left attached and is not wanted any more. Everything that is wanted is
    /// attached; what the earlier programs counted up to their end is taken over now.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn detach_unused(&mut self) -> Result<()> {
        self.attachments.detach_unused()?;
        if let Some((from, taken)) = self.predecessor.take() {
            wait_for_programs();
            self.counters.catch_up(&from, &taken);
        }
        // No program goes on in those any more.
        self.attachments.forget_other_calls()?;
        if let Err(error) = self.attachments.hand_over(&self.tables.handed) {
            tracing::warn!("a restart may lose what is learned and counted until then: {error:#}");
        }
        Ok(())
    }

    /// Takes every program off and removes the pins.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn detach_all(&mut self) -> Result<()> {
        self.attachments.detach_all()
    }
}

/// To remove what is not there is no failure: steps that were not taken are undone too.
fn not_there(error: MapError) -> Result<(), MapError> {
    match error {
        MapError::KeyNotFound => Ok(()),
        MapError::SyscallError(error) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        error => Err(error),
    }
}

fn set_flag(flags: &std::sync::atomic::AtomicU32, bit: u32, on: bool) {
    if on {
        flags.fetch_or(bit, Ordering::Release);
    } else {
        flags.fetch_and(!bit, Ordering::Release);
    }
}

/// Returns when every datapath program that runs now has ended: they run inside
/// RCU read sections, and this command waits for those (membarrier(2), which is
/// `synchronize_rcu` there).
pub(crate) fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Not on kernels with nohz_full CPUs: wait far longer than a program runs.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
