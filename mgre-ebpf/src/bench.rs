//! The eBPF object that the benchmark measures programs with: the same tables and
//! pipeline, and entry points that a test run can repeat.
//!
//! A test run does not put the packet back between two runs, so what moves its start
//! is paired with what moves it back. What the pairing and the choice of an address
//! cost is measured by programs that do nothing else.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod kernel;
mod programs;

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, xdp_action, xdp_md};
use aya_ebpf::helpers::{bpf_clone_redirect, bpf_loop, bpf_xdp_adjust_head};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{TcContext, XdpContext};
use mgre_common::bench::{LOOKUPS, OUTER_LEN_V4, OUTER_LEN_V6, Settings, Step};
use mgre_common::fdb::FdbKey;
use mgre_ebpf::express;
use mgre_ebpf::tables::Tables;

use kernel::{Maps, Xdp};

#[map(name = "bench_steps")]
static STEPS: Array<Step> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "bench_settings")]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "bench_hash")]
static HASH: HashMap<u64, u64> = HashMap::with_max_entries(1, 0);

#[inline(always)]
fn settings() -> Option<&'static mut Settings> {
    // SAFETY: one CPU runs one of these programs at a time.
    SETTINGS.get_ptr_mut(0).map(|settings| unsafe { &mut *settings })
}

/// The next step of the sequence.
#[inline(always)]
fn next() -> Option<&'static Step> {
    let settings = settings()?;
    settings.position += 1;
    STEPS.get(settings.position & settings.mask)
}

/// How an address is looked up.
trait Lookup {
    fn look_up(key: u64) -> u64;
}

/// Not at all.
struct Nothing;

/// In mgre's FDB.
struct Fdb;

/// In a `BPF_MAP_TYPE_HASH`.
struct Hash;

impl Lookup for Nothing {
    #[inline(always)]
    fn look_up(key: u64) -> u64 {
        key
    }
}

impl Lookup for Fdb {
    #[inline(always)]
    fn look_up(key: u64) -> u64 {
        Maps.fdb(Maps.fdb_hash(), FdbKey(key)).map_or(0, |slot| u64::from(slot.target().to_bits()))
    }
}

impl Lookup for Hash {
    #[inline(always)]
    fn look_up(key: u64) -> u64 {
        // SAFETY: the value is one word, which the kernel writes whole.
        unsafe { HASH.get(key) }.copied().unwrap_or(0)
    }
}

/// What goes from one lookup to the next.
struct Run {
    position: u32,
    mask: u32,
    /// All ones if a lookup is to wait for the one before, else zero.
    wait: u64,
    sum: u64,
}

/// Looks [`LOOKUPS`] addresses up. With `WAIT` each has to wait for the one before, as
/// the lookups of one packet do; without, the machine overlaps them.
#[inline(always)]
fn look_up_many<L: Lookup, const WAIT: bool>() -> u32 {
    unsafe extern "C" fn round<L: Lookup, const WAIT: bool>(index: u32, run: *mut Run) -> i64 {
        // SAFETY: `bpf_loop` hands over the pointer that it was given below.
        let run = unsafe { &mut *run };
        let waited = if WAIT { (run.sum & run.wait) as u32 } else { 0 };
        let Some(step) = STEPS.get((run.position + index + waited) & run.mask) else { return 1 };
        let found = L::look_up(step.key);
        run.sum = if WAIT { found } else { run.sum + found };
        0
    }
    let Some(settings) = settings() else { return xdp_action::XDP_ABORTED };
    let mut run = Run { position: settings.position, mask: settings.mask, wait: settings.zero, sum: 0 };
    settings.position += LOOKUPS;
    let round: unsafe extern "C" fn(u32, *mut Run) -> i64 = round::<L, WAIT>;
    // SAFETY: `run` outlives the call, and nothing else uses it meanwhile.
    unsafe { bpf_loop(LOOKUPS, round as *mut c_void, (&raw mut run).cast(), 0) };
    settings.sum += run.sum;
    xdp_action::XDP_TX
}

macro_rules! lookups {
    ($($name:ident: $lookup:ty, $wait:literal;)*) => {
        $(
            #[xdp]
            fn $name(_context: XdpContext) -> u32 {
                look_up_many::<$lookup, $wait>()
            }
        )*
    };
}

lookups! {
    bench_by_none: Nothing, false;
    bench_by_none_w: Nothing, true;
    bench_by_fdb: Fdb, false;
    bench_by_fdb_w: Fdb, true;
    bench_by_hash: Hash, false;
    bench_by_hash_w: Hash, true;
}

/// The least that a program can do.
#[xdp]
fn bench_empty(_context: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

#[inline(always)]
fn move_start(context: *mut xdp_md, by: i32) -> bool {
    // SAFETY: the pointer is the program's context.
    unsafe { bpf_xdp_adjust_head(context, by) == 0 }
}

/// Writes a value into the packet.
#[inline(always)]
fn write<T>(context: *mut xdp_md, offset: usize, value: T) -> bool {
    // SAFETY: the pointer is the program's context.
    let (data, data_end) = unsafe { ((*context).data as usize, (*context).data_end as usize) };
    if data + offset + size_of::<T>() > data_end {
        return false;
    }
    // SAFETY: the bytes are within the packet, as just checked. A store to a packet need
    // not be aligned where the verifier accepts the program.
    unsafe { ((data + offset) as *mut T).write(value) };
    true
}

/// Makes the packet one to the step's address.
#[inline(always)]
fn address(context: *mut xdp_md, step: &Step) -> bool {
    write(context, 0, step.key as u32) && write(context, 4, (step.key >> 32) as u16)
}

/// Bytes of the outer headers of this underlay.
#[inline(always)]
fn outer_len() -> i32 {
    if is_v6() { OUTER_LEN_V6 } else { OUTER_LEN_V4 }
}

#[inline(always)]
fn is_v6() -> bool {
    settings().is_some_and(|settings| settings.v6 != 0)
}

/// Makes the packet one from the step's peer and address.
#[inline(always)]
fn send_from(context: *mut xdp_md, step: &Step) -> bool {
    const SOURCE_V4: usize = OUTER_LEN_V4 as usize + 6;
    const SOURCE_V6: usize = OUTER_LEN_V6 as usize + 6;
    let (low, high) = (step.key as u32, (step.key >> 32) as u16);
    if is_v6() {
        return write(context, 14 + 8 + 12, step.remote)
            && write(context, SOURCE_V6, low)
            && write(context, SOURCE_V6 + 4, high);
    }
    write(context, 14 + 10, step.checksum)
        && write(context, 14 + 12, step.remote)
        && write(context, SOURCE_V4, low)
        && write(context, SOURCE_V4 + 4, high)
}

#[inline(always)]
fn done(ok: bool) -> u32 {
    if ok { xdp_action::XDP_TX } else { xdp_action::XDP_ABORTED }
}

/// Addresses a packet, and that is all.
#[xdp]
fn bench_address(context: XdpContext) -> u32 {
    done(next().is_some_and(|step| address(context.ctx, step)))
}

/// Addresses a packet, moves its start and moves it back.
#[xdp]
fn bench_move(context: XdpContext) -> u32 {
    done(
        next().is_some_and(|step| address(context.ctx, step))
            && move_start(context.ctx, -outer_len())
            && move_start(context.ctx, outer_len()),
    )
}

/// Addresses a packet, encapsulates it and moves its start back.
#[xdp]
fn bench_encap(context: XdpContext) -> u32 {
    if !next().is_some_and(|step| address(context.ctx, step)) {
        return xdp_action::XDP_ABORTED;
    }
    let mut frame = Xdp::<false>::new(&context);
    let ifindex = frame.ifindex();
    let action = express::process_port(&mut frame, &Maps, ifindex);
    done(action == xdp_action::XDP_REDIRECT && move_start(context.ctx, outer_len()))
}

/// Makes a packet one of a peer's, and that is all.
#[xdp]
fn bench_send_from(context: XdpContext) -> u32 {
    done(next().is_some_and(|step| send_from(context.ctx, step)))
}

/// Makes a packet one of a peer's, strips it and moves its start back: the outer headers
/// are still there.
#[xdp]
fn bench_decap(context: XdpContext) -> u32 {
    if !next().is_some_and(|step| send_from(context.ctx, step)) {
        return xdp_action::XDP_ABORTED;
    }
    let action = express::process_underlay(&mut Xdp::<false>::new(&context), &Maps);
    done(action == xdp_action::XDP_REDIRECT && move_start(context.ctx, -outer_len()))
}

/// Sends copies of a frame as it is: what no replication can beat.
#[classifier]
fn bench_clone(context: TcContext) -> i32 {
    unsafe extern "C" fn round(_index: u32, context: *mut (*mut aya_ebpf::bindings::__sk_buff, u32)) -> i64 {
        // SAFETY: `bpf_loop` hands over the pointer that it was given below.
        let (skb, ifindex) = unsafe { *context };
        // SAFETY: the pointer is the program's context.
        unsafe { bpf_clone_redirect(skb, ifindex, 0) };
        0
    }
    let Some(settings) = settings() else { return 2 };
    let mut run = (context.skb.skb, settings.ifindex);
    let round: unsafe extern "C" fn(u32, *mut (*mut aya_ebpf::bindings::__sk_buff, u32)) -> i64 = round;
    // SAFETY: `run` outlives the call, and nothing else uses it meanwhile.
    unsafe { bpf_loop(settings.copies, round as *mut c_void, (&raw mut run).cast(), 0) };
    2
}
