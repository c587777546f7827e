//! The real programs in the kernel, with tables filled from a described network
//! and real interfaces to send to, all in a network namespace of their own.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, TestRunResult};
use mgre_common::counters::{Drops, SegmentTraffic, Traffic, row_of};
use mgre_common::endpoint::{EndpointIndex, EndpointKey, Owner};
use mgre_common::event::{LearnEvent, TooBig};
use mgre_common::fdb::{Bucket, FdbHash};
use mgre_common::neighbor::{NeighborEvent, NeighborKey, NeighborRecord};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::storm::Storm;
use mgre_common::table::{
    Adjacency, Clock, FloodSlot, Indexed, PORT_BY_VLAN, Port, PortSlot, Segment, Template, VlanKey,
};
use mgre_common::target::Target;
use mgre_ebpf::host::world::{NEAR_MAC, SLOW, Sink, UNDERLAY, World};
use mgre_user::datapath::counters::Counters;
use mgre_user::datapath::load::{self, Capacity, Loaded, classifier, xdp};
use nix::sched::{CloneFlags, unshare};

/// `TC_ACT_UNSPEC`: on with the next program, or the stack.
pub(crate) const PASS: i32 = -1;
/// `TC_ACT_SHOT`.
pub(crate) const DROP: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub(crate) const REDIRECT: i32 = 7;

/// `XDP_DROP`.
pub(crate) const XDP_DROP: i32 = 1;
/// `XDP_PASS`.
pub(crate) const XDP_PASS: i32 = 2;
/// `XDP_TX`: back out of the interface that it came in by.
pub(crate) const XDP_TX: i32 = 3;
/// `XDP_REDIRECT`.
pub(crate) const XDP_REDIRECT: i32 = 4;

/// The far end of the port with this id is the interface with this much more.
pub(crate) const FAR: u32 = 200;
/// A test run may refuse packets shorter than the Ethernet and IP headers that they say they have.
fn min_packet(packet: &[u8]) -> usize {
    if packet.get(12..14) == Some(&[0x86, 0xdd]) { 54 } else { 34 }
}
/// An interface that is no port.
pub(crate) const NO_PORT: u32 = 77;

/// Room for adjacencies, or for as many as a network has.
const ADJACENCIES: u32 = 600;

/// The programs and their tables.
pub(crate) struct Kernel {
    pub(crate) loaded: Loaded,
}

/// What a program did to a packet.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) action: i32,
    pub(crate) bytes: Vec<u8>,
    /// Of a socket buffer: what is noted on it.
    pub(crate) mark: u32,
}

/// Runs a test in a network namespace that lives as long as its thread.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: needs root to load eBPF programs and to make a network namespace");
        return;
    }
    if let Err(missing) = mgre_user::object::object() {
        println!("SKIP: {missing}");
        return;
    }
    let result = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` on lines of commands.
pub(crate) fn ip(lines: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip refuses:\n{lines}");
}

/// Makes a pair of interfaces for each port and for the underlay. IPv6 is off, so
/// that the kernel says nothing of its own.
pub(crate) fn interfaces(world: &World) {
    for which in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
    }
    let mut indices: BTreeSet<u32> = world.ports.iter().map(|port| port.ifindex).collect();
    indices.extend([UNDERLAY, SLOW, NO_PORT]);
    let lines: String = indices
        .into_iter()
        .map(|index| {
            let far = FAR + index;
            format!(
                "link add near{index} index {index} type veth peer name far{index} index {far}\n\
                 link set near{index} up\nlink set far{index} up\n"
            )
        })
        .collect();
    ip(&lines);
    ip(&format!("link set near{UNDERLAY} address {NEAR_MAC}\n"));
}

/// What a test run may set of `struct __sk_buff`, and reads again.
fn context(ifindex: u32, segment_size: u32, mark: u32) -> [u8; 192] {
    const IFINDEX: usize = 40;
    const GSO_SIZE: usize = 176;
    let mut context = [0_u8; 192];
    for (at, value) in [(MARK, mark), (IFINDEX, ifindex), (GSO_SIZE, segment_size)] {
        context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    context
}

/// Where the mark is in it.
const MARK: usize = 8;

/// Runs a program on a packet as if it had come in on an interface, so many times:
/// what one run does to the packet, the next one finds.
pub(crate) fn test_run(
    program: &SchedClassifier,
    ifindex: u32,
    segment_size: u32,
    packet: &[u8],
    out: &mut [u8],
    repeat: u32,
) -> Result<TestRunResult, ProgramError> {
    let context = context(ifindex, segment_size, 0);
    program.test_run(TestRunOptions {
        data_in: Some(packet),
        data_out: Some(out),
        ctx_in: Some(&context),
        repeat,
        ..TestRunOptions::default()
    })
}

impl Kernel {
    /// Loads the programs and fills the tables.
    pub(crate) fn new(world: &World) -> Self {
        Self::with_room(world, 1000)
    }

    /// The same, with room for so many FDB entries.
    pub(crate) fn with_room(world: &World, fdb_entries: u32) -> Self {
        let object = mgre_user::object::object().unwrap();
        let adjacencies = ADJACENCIES.max(world.peers.len() as u32);
        let capacity = Capacity { fdb_entries, adjacencies };
        let mut this = Self { loaded: load::load(object, capacity).unwrap() };
        load::renew_lease(&mut this.loaded.programs).unwrap();
        this.loaded.tables.near_macs.get(0).unwrap().set([NEAR_MAC]);
        world.install(&mut this);
        this
    }

    /// Runs a program on a packet as if it had come in on an interface.
    /// None where the kernel makes no socket buffer of so short a packet.
    pub(crate) fn run(
        &mut self,
        program: &str,
        ifindex: u32,
        segment_size: u32,
        packet: &[u8],
    ) -> Option<Ran> {
        self.run_marked(program, ifindex, segment_size, 0, packet)
    }

    /// The same with a mark on it.
    pub(crate) fn run_marked(
        &mut self,
        program: &str,
        ifindex: u32,
        segment_size: u32,
        mark: u32,
        packet: &[u8],
    ) -> Option<Ran> {
        let mut out = vec![0; 64 * 1024];
        let before = context(ifindex, segment_size, mark);
        let mut after = before;
        let program = classifier(&mut self.loaded.programs, program).unwrap();
        let result = program.test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&before),
            ctx_out: Some(&mut after),
            ..TestRunOptions::default()
        });
        let result = match result {
            Ok(result) => result,
            Err(ProgramError::SyscallError(error))
                if packet.len() < min_packet(packet)
                    && error.io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                return None;
            }
            Err(error) => panic!("{} bytes: {error:?}", packet.len()),
        };
        out.truncate(result.data_size_out as usize);
        let mark = u32::from_ne_bytes(after[MARK..MARK + 4].try_into().unwrap());
        Some(Ran { action: result.return_value.cast_signed(), bytes: out, mark })
    }

    /// Runs an XDP program on a packet as if it had come in on an interface.
    pub(crate) fn run_xdp(&mut self, program: &str, ifindex: u32, packet: &[u8]) -> Ran {
        // The fields of `struct xdp_md` that a test run may set.
        const DATA_END: usize = 4;
        const INGRESS_IFINDEX: usize = 12;
        let mut context = [0_u8; 24];
        context[DATA_END..DATA_END + 4].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
        context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        let mut out = vec![0; 4096];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let result = xdp(&mut self.loaded.programs, program).unwrap().test_run(options);
        let result = result.unwrap_or_else(|error| panic!("{program} on {ifindex}: {error}"));
        out.truncate(result.data_size_out as usize);
        Ran { action: result.return_value.cast_signed(), bytes: out, mark: 0 }
    }

    fn counters(&self) -> Counters {
        Counters::new(&self.loaded.tables, &self.loaded.config)
    }

    /// A target's traffic so far.
    pub(crate) fn traffic(&self, target: Target) -> Traffic {
        self.counters().traffic(target)
    }

    /// A target's drops so far.
    pub(crate) fn drops(&self, target: Target) -> Drops {
        self.counters().drops(target)
    }

    /// What was flooded and answered in a segment so far.
    pub(crate) fn flooded(&self, segment: u16) -> SegmentTraffic {
        self.counters().segment(segment)
    }

    /// Frames that did not fit, reported since the last call.
    pub(crate) fn too_big(&mut self) -> Vec<TooBig> {
        std::iter::from_fn(|| {
            self.loaded.too_big.as_mut()?.next().map(|event| bytemuck::pod_read_unaligned(&event))
        })
        .collect()
    }

    /// What was reported since the last call: addresses, and what hosts say of themselves.
    pub(crate) fn reports(&mut self) -> (Vec<LearnEvent>, Vec<NeighborEvent>) {
        let (mut reports, mut claims) = (Vec::new(), Vec::new());
        while let Some(event) = self.loaded.events.as_mut().and_then(|events| events.next()) {
            if event.len() == size_of::<NeighborEvent>() {
                claims.push(bytemuck::pod_read_unaligned(&event));
            } else {
                reports.push(bytemuck::pod_read_unaligned(&event));
            }
        }
        (reports, claims)
    }
}

/// Every drop that one row of counters has more than another.
pub(crate) fn drops_between(
    target: Target,
    before: &Drops,
    after: &Drops,
) -> Vec<(Target, Direction, DropReason)> {
    let mut drops = Vec::new();
    for direction in Direction::ALL {
        for reason in DropReason::ALL {
            let times = after.get(direction, *reason) - before.get(direction, *reason);
            drops.extend((0..times).map(|_| (target, direction, *reason)));
        }
    }
    drops
}

impl Sink for Kernel {
    fn clock(&mut self) -> &Clock {
        self.loaded.tables.clock.get(0).unwrap()
    }

    fn port_index(&mut self, ifindex: u32, id: u32, segment: Option<u32>) {
        // The others are found in the hash map.
        let slot = self.loaded.tables.port_slots.get(PortSlot::index(ifindex)).unwrap();
        if id == PORT_BY_VLAN {
            slot.set(ifindex, Indexed::BY_VLAN);
        } else if let Some(segment) = segment.filter(|_| id.is_multiple_of(2)) {
            slot.set(ifindex, Indexed { port: id, segment });
        }
        self.loaded.tables.port_index.insert(ifindex, id, 0).unwrap();
    }

    fn vlan_port(&mut self, key: VlanKey, id: u32) {
        self.loaded.tables.vlan_ports.insert(key, id, 0).unwrap();
    }

    fn port(&mut self, id: u32) -> &Port {
        self.loaded.tables.ports.get(id).unwrap()
    }

    fn segment(&mut self, id: u32) -> &Segment {
        self.loaded.tables.segments.get(id).unwrap()
    }

    fn adjacency(&mut self, id: u32, template: Template) -> &Adjacency {
        let adjacency = self.loaded.tables.adjacencies.ptr(id).unwrap();
        // SAFETY: the map is alive, and no program runs yet.
        let index = unsafe { Adjacency::write_idle(adjacency.as_ptr(), template) };
        let adjacency = self.loaded.tables.adjacencies.get(id).unwrap();
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
        tables.endpoints.as_mut().unwrap().map.insert(key.words(), id, 0).unwrap();
    }

    fn storm(&mut self, source: Target) -> &Storm {
        self.loaded.tables.storms.get(row_of(source)).unwrap()
    }

    fn flood_slot(&mut self, index: u32) -> &FloodSlot {
        self.loaded.tables.flood.as_ref().unwrap().get(index).unwrap()
    }

    fn neighbor(&mut self, key: NeighborKey, record: NeighborRecord) {
        self.loaded.tables.neighbors.as_mut().unwrap().insert(key, record, 0).unwrap();
    }

    fn fdb_hash(&self) -> FdbHash {
        self.loaded.fdb_hash()
    }

    fn fdb_bucket(&mut self, index: u32) -> &Bucket {
        self.loaded.tables.fdb.as_ref().unwrap().get(index).unwrap()
    }
}
