//! The maps, and the tables made of them.
//!
//! Sizes given here are the least; the daemon sets the real ones when it loads.

use core::ptr;
use core::sync::atomic::Ordering;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMapHash, HashMap, PerCpuArray, RingBuf};
use mgre_common::cell::AtomicU64;
use mgre_common::counters::{Drops, SegmentTraffic, Traffic, row_of};
use mgre_common::endpoint::{EndpointIndex, EndpointSlot, EndpointWords};
use mgre_common::event::{
    HELD_INTERVAL_NS, LearnEvent, RECENT_SLOTS, REPORT_BURST, REPORT_INTERVAL_NS, REPORT_REFILL_NS, Recent,
    TOO_BIG_INTERVAL_NS, TooBig, TooBigHead,
};
use mgre_common::fdb::{Bucket, FdbHash, FdbKey};
use mgre_common::near::NearMacs;
use mgre_common::neighbor::{MAX_NEIGHBORS, NeighborEvent, NeighborKey, NeighborSlot, Protocol};
use mgre_common::reason::{Direction, DropReason, REASON_SLOTS};
use mgre_common::storm::Storm;
use mgre_common::table::{
    Adjacency, Clock, Config, FLOOD_SLOTS, FloodSlot, LEASE_JIFFIES, MAX_PORTS, MAX_SEGMENTS, PORT_SLOTS,
    Port, PortSlot, Segment, Sequence, VlanKey,
};
use mgre_common::tally::Tally;
use mgre_common::target::Target;
use mgre_ebpf::frame::Whole;
use mgre_ebpf::tables::{Now, Tables};

use super::wire::opaque;

const SHARED: u32 = BPF_F_MMAPABLE;

/// Bytes that `bpf_csum_diff` takes at once on any kernel.
pub(super) const SUM_CHUNK: usize = 512;

#[map(name = "mgre_port_slot")]
static PORT_INDEX: Array<PortSlot> = Array::with_max_entries(PORT_SLOTS, SHARED);
#[map(name = "mgre_port_idx")]
static PORTS_BY_INTERFACE: HashMap<u32, u32> = HashMap::with_max_entries(MAX_PORTS, 0);
#[map(name = "mgre_devices")]
pub(super) static DEVICES: DevMapHash = DevMapHash::with_max_entries(2 * MAX_PORTS, 0);
#[map(name = "mgre_ports")]
static PORTS: Array<Port> = Array::with_max_entries(MAX_PORTS, SHARED);
#[map(name = "mgre_segments")]
static SEGMENTS: Array<Segment> = Array::with_max_entries(MAX_SEGMENTS + 1, SHARED);
#[map(name = "mgre_adjs")]
static ADJACENCIES: Array<Adjacency> = Array::with_max_entries(1, SHARED);
#[map(name = "mgre_endpoints")]
static ENDPOINTS: HashMap<EndpointWords, u32> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map(name = "mgre_ep_slot")]
static ENDPOINT_SLOTS: Array<EndpointSlot> = Array::with_max_entries(32, SHARED);
#[map(name = "mgre_flood")]
static FLOOD: Array<FloodSlot> = Array::with_max_entries(FLOOD_SLOTS, SHARED);
#[map(name = "mgre_fdb")]
static FDB: Array<Bucket> = Array::with_max_entries(16, SHARED);
#[map(name = "mgre_near_mac")]
pub(super) static NEAR_MACS: Array<NearMacs> = Array::with_max_entries(1, SHARED);
#[map(name = "mgre_clock")]
static CLOCK: Array<Clock> = Array::with_max_entries(1, SHARED);
#[map(name = "mgre_traffic")]
static TRAFFIC: Array<Traffic> = Array::with_max_entries(1, SHARED);
#[map(name = "mgre_drops")]
static DROPS: Array<Drops> = Array::with_max_entries(1, SHARED);
#[map(name = "mgre_seg_stats")]
static SEGMENT_TRAFFIC: Array<SegmentTraffic> = Array::with_max_entries(1, SHARED);
#[map(name = "mgre_tallies")]
static TALLIES: Array<Tally> = Array::with_max_entries(1 + MAX_SEGMENTS, SHARED);
#[map(name = "mgre_events")]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);
/// What the next chunk of a packet is summed from, and what is looked at of a neighbour message.
#[map(name = "mgre_scratch")]
pub(super) static SCRATCH: PerCpuArray<[u8; SUM_CHUNK]> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "mgre_port_vlan")]
static VLAN_PORTS: HashMap<VlanKey, u32> = HashMap::with_max_entries(MAX_PORTS, 0);
#[map(name = "mgre_sequence")]
static SEQUENCES: Array<Sequence> = Array::with_max_entries(1, SHARED);
#[map(name = "mgre_too_big")]
static TOO_BIG: RingBuf = RingBuf::with_byte_size(1 << 18, 0);
#[map(name = "mgre_neighbors")]
static NEIGHBORS: HashMap<NeighborKey, NeighborSlot> =
    HashMap::with_max_entries(MAX_NEIGHBORS, BPF_F_NO_PREALLOC);
#[map(name = "mgre_storm")]
static STORMS: Array<Storm> = Array::with_max_entries(1, SHARED);
#[map(name = "mgre_recent")]
static RECENT: PerCpuArray<Recent> = PerCpuArray::with_max_entries(RECENT_SLOTS, 0);

/// Set by the daemon before it loads the programs.
#[unsafe(no_mangle)]
static CONFIG: Config = Config {
    fdb_multipliers: [1, 1],
    fdb_shift: 63,
    traffic_rows: 1,
    drop_shard_mask: 0,
    strip_flags: 0,
    endpoint_shift: 63,
    reserved: 0,
};

/// The configuration. Read as volatile, so that the compiler does not take the
/// values above for it; the verifier does know the real ones, and folds them.
#[inline(always)]
pub(super) fn config() -> Config {
    // SAFETY: a valid static.
    unsafe { ptr::read_volatile(&raw const CONFIG) }
}

macro_rules! config_field {
    ($field:ident) => {
        // SAFETY: a valid static.
        unsafe { ptr::read_volatile(&raw const CONFIG.$field) }
    };
}

/// The tables that the daemon keeps, in the kernel's maps.
pub(crate) struct Maps;

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: no argument, no side effect.
    unsafe { bpf_get_smp_processor_id() }
}

#[inline(always)]
fn jiffies() -> u64 {
    // SAFETY: no argument, no side effect.
    unsafe { bpf_jiffies64() }
}

/// Monotonic time, as of the last tick.
#[inline(always)]
fn nanos() -> u64 {
    // SAFETY: no argument, no side effect.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Renews the lease on next hops.
pub(crate) fn renew_lease() {
    if let Some(clock) = CLOCK.get(0) {
        clock.lease.store(jiffies() + LEASE_JIFFIES, Ordering::Relaxed);
    }
}

/// The row of a target for this CPU.
#[inline(always)]
fn traffic(target: Target) -> Option<*mut Traffic> {
    TRAFFIC.get_ptr_mut(row_of(target) * config_field!(traffic_rows) + cpu())
}

impl Tables for Maps {
    #[inline(always)]
    fn port_slot(&self, index: u32) -> Option<&PortSlot> {
        PORT_INDEX.get(index)
    }

    #[inline(always)]
    fn any_port_of(&self, ifindex: u32) -> Option<u32> {
        // SAFETY: the value is one word, which the kernel writes whole.
        unsafe { PORTS_BY_INTERFACE.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn port(&self, id: u32) -> Option<&Port> {
        PORTS.get(id)
    }

    #[inline(always)]
    fn segment(&self, id: u32) -> Option<&Segment> {
        SEGMENTS.get(id)
    }

    #[inline(always)]
    fn adjacency(&self, id: u32) -> Option<&Adjacency> {
        ADJACENCIES.get(id)
    }

    #[inline(always)]
    fn endpoint_index(&self) -> EndpointIndex {
        EndpointIndex { shift: config_field!(endpoint_shift) }
    }

    #[inline(always)]
    fn endpoint_slot(&self, index: u32) -> Option<&EndpointSlot> {
        ENDPOINT_SLOTS.get(index)
    }

    #[inline(always)]
    fn any_endpoint(&self, key: &EndpointWords) -> Option<u32> {
        // SAFETY: the value is one word, which the kernel writes whole.
        unsafe { ENDPOINTS.get(key) }.copied()
    }

    #[inline(always)]
    fn flood_slot(&self, index: u32) -> Option<&FloodSlot> {
        FLOOD.get(index)
    }

    #[inline(always)]
    fn fdb_hash(&self) -> FdbHash {
        FdbHash { shift: config_field!(fdb_shift), multipliers: config_field!(fdb_multipliers) }
    }

    #[inline(always)]
    fn fdb_bucket(&self, index: u32) -> Option<&Bucket> {
        FDB.get(index)
    }

    #[inline(always)]
    fn now(&self) -> Now {
        let Some(clock) = CLOCK.get(0) else { return Now::default() };
        Now { seconds: clock.seconds.load(Ordering::Relaxed), lease: clock.lease.load(Ordering::Relaxed) }
    }

    #[inline(always)]
    fn jiffies(&self) -> u64 {
        jiffies()
    }

    #[inline(always)]
    fn count_received(&self, target: Target, bytes: u32, now: Now) {
        let Some(row) = traffic(target) else { return };
        // SAFETY: the row is this CPU's, and a program is not interrupted by another
        // one on the same hook.
        let row = unsafe { &mut *row };
        row.receive_packets += 1;
        row.receive_bytes += u64::from(bytes);
        let seconds = u64::from(now.seconds);
        if row.last_receive_seconds != seconds {
            row.last_receive_seconds = seconds;
        }
    }

    #[inline(always)]
    fn count_sent(&self, target: Target, bytes: u32) {
        let Some(row) = traffic(target) else { return };
        // SAFETY: as above.
        let row = unsafe { &mut *row };
        row.transmit_packets += 1;
        row.transmit_bytes += u64::from(bytes);
    }

    #[inline(always)]
    fn count_drop(&self, target: Target, direction: Direction, reason: DropReason) {
        let mask = config_field!(drop_shard_mask);
        let shard = cpu() & mask;
        // A target without a row is one that a table is wrong about. Its frame is nobody's then, and counted.
        let row = DROPS.get_ptr_mut(row_of(target) * (mask + 1) + shard);
        let Some(row) = row.or_else(|| DROPS.get_ptr_mut(shard)) else { return };
        let index = opaque(direction as usize * REASON_SLOTS + reason.index());
        if index >= 2 * REASON_SLOTS {
            return;
        }
        // SAFETY: `index` is within the row's two times REASON_SLOTS counters.
        unsafe { atomic_increment(row.cast::<u64>().add(index)) };
    }

    #[inline(always)]
    fn count_flood(&self, segment: u32, copies: u32, lost: u32) {
        if let Some(row) = SEGMENT_TRAFFIC.get_ptr_mut(segment * config_field!(traffic_rows) + cpu()) {
            // SAFETY: the row is this CPU's.
            let row = unsafe { &mut *row };
            row.flood_frames += 1;
            row.flood_copies += u64::from(copies);
            row.flood_lost += u64::from(lost);
        }
    }

    #[inline(always)]
    fn vlan_port(&self, key: VlanKey) -> Option<u32> {
        // SAFETY: the value is one word, which the kernel writes whole.
        unsafe { VLAN_PORTS.get(key) }.copied()
    }

    #[inline(always)]
    fn sequence(&self, adjacency: u32) -> Option<&Sequence> {
        SEQUENCES.get(adjacency)
    }

    #[inline(always)]
    fn next_sequence(&self, sequence: &Sequence) -> u32 {
        // SAFETY: the counter is valid, and everybody adds to it so.
        unsafe { atomic_fetch_add((&raw const sequence.sent).cast_mut().cast(), 1) as u32 }
    }

    #[inline(always)]
    fn next_ids(&self, sequence: &Sequence, count: u16) -> u16 {
        let count = u64::from(count) << Sequence::IDS_SHIFT;
        // SAFETY: as above.
        let before = unsafe { atomic_fetch_add((&raw const sequence.sent).cast_mut().cast(), count) };
        (before >> Sequence::IDS_SHIFT) as u16
    }

    #[inline(always)]
    fn slow_interface(&self) -> Option<u32> {
        match CLOCK.get(0)?.slow_ifindex.load(Ordering::Relaxed) {
            0 => None,
            ifindex => Some(ifindex),
        }
    }

    #[inline(always)]
    fn report_too_big<F: Whole>(&self, frame: &F, outer_len: u32, event: TooBigHead) {
        let [first, second] = frame.read_behind::<[u64; 2]>(outer_len, 0).unwrap_or_default();
        // Addresses, type and the first octets of what is inside: something that is not zero.
        let tag = first ^ second.rotate_left(32) ^ TOO_BIG_MARK;
        let now = nanos();
        let Some(recent) = recent(tag) else { return };
        if recent.tag == tag && now - recent.reported_ns < TOO_BIG_INTERVAL_NS {
            return;
        }
        let Some(mut entry) = TOO_BIG.reserve::<TooBig>(0) else { return };
        let to = entry.as_mut_ptr();
        // SAFETY: the entry is ours until it is submitted; its bytes are written before they
        // are read, as many as `captured` says.
        unsafe {
            let captured = frame.copy_bytes(outer_len, &mut (*to).bytes);
            let captured = if captured < event.captured { captured } else { event.captured };
            (&raw mut (*to).head).write(TooBigHead { captured, ..event });
        }
        entry.submit(0);
        recent.tag = tag;
        recent.reported_ns = now;
    }

    #[inline(always)]
    fn storm(&self, source: Target) -> Option<&Storm> {
        STORMS.get(row_of(source))
    }

    #[inline(always)]
    fn nanos(&self) -> u64 {
        nanos()
    }

    #[inline(always)]
    fn paces(&self, source: FdbKey) -> bool {
        let tag = source.0 ^ HELD_MARK;
        let now = nanos();
        let Some(recent) = recent(tag) else { return false };
        if recent.tag == tag && now - recent.reported_ns < HELD_INTERVAL_NS {
            return false;
        }
        recent.tag = tag;
        recent.reported_ns = now;
        true
    }

    #[inline(always)]
    fn add(&self, word: &AtomicU64, number: u64) {
        // SAFETY: the word is valid, and everybody adds to it so; a store beside that may
        // lose what one frame adds.
        unsafe { atomic_fetch_add((&raw const *word).cast_mut().cast(), number) };
    }

    #[inline(always)]
    fn report(&self, event: &LearnEvent, source: Target) {
        let tag = event.key.0 ^ (event.source as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        tell(tag, event, source);
    }

    #[inline(always)]
    fn neighbor(&self, key: &NeighborKey) -> Option<&NeighborSlot> {
        // SAFETY: all of it is atomics; the memory stays for as long as the program runs.
        unsafe { NEIGHBORS.get(key) }
    }

    #[inline(always)]
    fn report_neighbor(&self, event: &NeighborEvent, source: Target) {
        let mut tag = event.key.0 ^ (event.source as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for pair in event.address {
            tag = (tag ^ pair as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        }
        tell(tag ^ (event.flags as u64) << 32, event, source);
    }

    #[inline(always)]
    fn count_answered(&self, segment: u32, protocol: Protocol) {
        if let Some(row) = SEGMENT_TRAFFIC.get_ptr_mut(segment * config_field!(traffic_rows) + cpu()) {
            // SAFETY: the row is this CPU's.
            let row = unsafe { &mut *row };
            match protocol {
                Protocol::Arp => row.arp_replies += 1,
                Protocol::Nd => row.nd_replies += 1,
            }
        }
    }
}

/// Tells the daemon of something, unless it was told lately or the source has told too much.
#[inline(always)]
fn tell<E: 'static>(tag: u64, event: &E, source: Target) {
    let now = nanos();
    let Some(recent) = recent(tag) else { return };
    if recent.tag == tag && now - recent.reported_ns < REPORT_INTERVAL_NS {
        return;
    }
    let Some(row) = traffic(source) else { return };
    // SAFETY: the row is this CPU's.
    let row = unsafe { &mut *row };
    if !take_token(row, now) || EVENTS.output::<E>(event, 0).is_err() {
        row.reports_lost += 1;
        return;
    }
    recent.tag = tag;
    recent.reported_ns = now;
}

/// Adds one to a counter that other CPUs write too. The target's `AtomicU64` has
/// no such operation, its instruction set does.
///
/// # Safety
/// The counter is valid, and nobody accesses it but atomically.
#[inline(always)]
unsafe fn atomic_increment(counter: *mut u64) {
    // SAFETY: per the contract; the instruction touches nothing else.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) 1_u64, options(nostack));
    }
}

/// Adds to a counter that other CPUs write too; gives what it was before.
///
/// # Safety
/// As for [`atomic_increment`].
#[inline(always)]
unsafe fn atomic_fetch_add(counter: *mut u64, number: u64) -> u64 {
    let mut number = number;
    // SAFETY: per the contract; the instruction touches nothing else.
    unsafe {
        core::arch::asm!(
            "{0} = atomic_fetch_add((u64 *)({1} + 0), {0})",
            inout(reg) number, in(reg) counter, options(nostack)
        );
    }
    number
}

/// Tells floods of held addresses from reports.
const HELD_MARK: u64 = 0x6865_6c64_0000_0000;

/// Tells reports of what did not fit from reports of addresses.
const TOO_BIG_MARK: u64 = 0x746f_6f20_6269_6700;

/// Where it stands when something was last reported.
#[inline(always)]
fn recent<'a>(tag: u64) -> Option<&'a mut Recent> {
    let slot = (tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 & (RECENT_SLOTS - 1);
    // SAFETY: the slot is this CPU's.
    Some(unsafe { &mut *RECENT.get_ptr_mut(slot)? })
}

/// Takes a token out of a source's bucket.
#[inline(always)]
fn take_token(row: &mut Traffic, now: u64) -> bool {
    let earned = (now - row.report_refilled_ns) / REPORT_REFILL_NS;
    if earned > 0 {
        let tokens = row.report_tokens + earned;
        row.report_tokens = if tokens > REPORT_BURST { REPORT_BURST } else { tokens };
        row.report_refilled_ns = now;
    }
    if row.report_tokens == 0 {
        return false;
    }
    row.report_tokens -= 1;
    true
}
