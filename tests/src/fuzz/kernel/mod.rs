//! The loaded programs, in test runs, in a network namespace of their own.
//!
//! A test run says what became of the frame itself: the program's verdict, its bytes, its mark; not where it goes.
//! Copies are really sent, and arrive at the far ends of pairs of interfaces, where all of them are read, with their
//! marks. Counters, ages and sequence numbers are read, and made zero, in the memory that the maps share.
//!
//! - `tables`: fills the maps, and reads what was counted;
//! - `capture`: what copies come out of which interface.
//!
//! **What a test run does differently.** The kernel pads what it strips to Ethernet's least length, and puts a tag
//! before an IP packet beside the frame, where a test run does not show it. It refuses frames shorter than the IP
//! header that their type announces.
//!
//! **What is told once in a while.** The programs note in a table what they told of; the slots that a frame will use
//! are made empty before it, so that everything must be told. Now and then the same frame comes again at once, and
//! nothing may be told.

mod capture;
mod tables;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::xdp::XdpMode;
use aya::programs::{ProgramError, TestRun as _, TestRunOptions};
use mgre_ebpf::frame::{Egress, Side};
use mgre_ebpf::host::cases::{End, Entrance};
use mgre_ebpf::host::world::{NEAR_MAC, SLOW, UNDERLAY, VLAN_INTERFACE, World};
use mgre_user::datapath::load::{
    PORT_PROGRAM, SLOW_PROGRAM, UNDERLAY_PROGRAM, XDP_PORT_PROGRAMS, XDP_UNDERLAY_PROGRAMS, classifier, xdp,
};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::Sample;
use super::compare::Comparison;
use super::generate::Generator;
use super::host::with_early_hooks;
use super::run::{Budget, Difference, Statistics};
use super::worlds::{MAX_PORTS, STANDARD, world};
use crate::model::flaw::Flaw;
use crate::model::{Input, Model, Moment, Outcome, Output, Prediction};
use crate::wait;
use capture::{Capture, Copy};
use tables::{Bench, claim_tag, held_tag, recent_slot, report_tag, too_big_tag};

/// The far end of an interface is the one with this much more.
const FAR: u32 = 200;
/// An interface that is no port.
const NO_PORT: u32 = 77;
/// Frames in one network before the next one.
const IN_ONE_WORLD: u64 = 20_000;
/// The least time for which what was told is not told again, less than the programs say, for their coarse clock.
const NOT_AGAIN: Duration = Duration::from_millis(3);
/// So many flooded frames that none is left for seconds where there is a low limit.
pub(super) const MANY: u16 = 0x7fff;
/// How long a copy may take to come.
const COPY_TIMEOUT: Duration = Duration::from_secs(2);
/// The shortest frame that the kernel leaves when it strips.
const MIN_FRAME: usize = 60;

/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT`.
const TC: [i32; 3] = [-1, 2, 7];
/// `XDP_PASS`, `XDP_DROP`, `XDP_REDIRECT`, `XDP_TX`.
const XDP: [i32; 4] = [2, 1, 4, 3];

/// The programs in a namespace, with a network in their tables.
struct Kernel {
    bench: Bench,
    capture: Capture,
    comparison: Comparison,
    model: Model,
    out: Vec<u8>,
    statistics: Statistics,
}

/// How a frame was run.
struct Ran {
    action: i32,
    bytes: Vec<u8>,
    mark: u32,
}

/// Why loaded programs cannot be run here, if they cannot.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root to load eBPF programs and to make a network namespace".into());
    }
    mgre_user::object::object().err().map(|error| error.to_string())
}

/// Runs the loaded programs against the model, with a seed, until the budget is spent. The thread is in a network
/// namespace of its own then, and bound to one CPU.
///
/// # Errors
/// A difference.
pub fn in_kernel(seed: u64, budget: Budget, flaw: Option<Flaw>) -> Result<Statistics, Box<Difference>> {
    let refused = |error: anyhow::Error| {
        let sample = super::code::decode(&[]);
        Box::new(Difference { sample, what: format!("{error:#}") })
    };
    let mut kernel = Kernel::new(seed as usize).map_err(refused)?;
    let start = Instant::now();
    let mut rng = SmallRng::seed_from_u64(seed);
    while kernel.statistics.executions < budget.executions && start.elapsed() < budget.time {
        let number = if kernel.statistics.worlds.is_multiple_of(4) { STANDARD } else { rng.random() };
        let description = world(number);
        kernel.enter(&description, flaw).map_err(refused)?;
        let generator = Generator::new(&description).without_superframes();
        let end = budget.executions.min(kernel.statistics.executions + IN_ONE_WORLD);
        while kernel.statistics.executions < end {
            let input = generator.input(&mut rng);
            if let Err(what) = kernel.check(&input, &mut rng) {
                return Err(Box::new(Difference { sample: Sample { world: number, input }, what }));
            }
        }
        if let Some(binding) = kernel.bench.stray_binding() {
            let sample = Sample { world: number, input: generator.input(&mut rng) };
            return Err(Box::new(Difference { sample, what: format!("{binding:?} is not what it must be") }));
        }
    }
    kernel.statistics.time = start.elapsed();
    Ok(kernel.statistics)
}

/// Runs samples.
///
/// # Errors
/// A difference.
pub fn replay(samples: &[Sample]) -> Result<Statistics, Box<Difference>> {
    let fails = |sample: &Sample, what: String| Box::new(Difference { sample: sample.clone(), what });
    let Some(first) = samples.first() else { return Ok(Statistics::default()) };
    let mut kernel = Kernel::new(0).map_err(|error| fails(first, format!("{error:#}")))?;
    let mut rng = SmallRng::seed_from_u64(1);
    for sample in samples.iter().filter(|sample| sample.input.segment_size == 0 && sample.input.tag.is_none())
    {
        let entered = kernel.enter(&world(sample.world), None);
        entered.map_err(|error| fails(sample, format!("{error:#}")))?;
        // The kernel's clock goes on: just too many frames would be just few enough.
        let flooded = if sample.input.moment.flooded == 0 { 0 } else { MANY };
        let moment = Moment { flooded, paced: false, ..sample.input.moment };
        let input = Input { moment, ..sample.input.clone() };
        for _ in 0..3 {
            kernel.check(&input, &mut rng).map_err(|what| fails(sample, what))?;
        }
    }
    Ok(kernel.statistics)
}

/// Every interface that some network has.
fn interfaces() -> BTreeSet<u32> {
    (0..MAX_PORTS).map(|id| id + 10).chain([VLAN_INTERFACE, UNDERLAY, SLOW, NO_PORT]).collect()
}

fn make_interfaces() -> Result<()> {
    for which in ["all", "default"] {
        // The kernel is to say nothing of its own.
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1")?;
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    let mut lines = String::new();
    for index in interfaces() {
        let far = FAR + index;
        lines += &format!(
            "link add near{index} index {index} mtu 3400 type veth peer name far{index} index {far} mtu 3400\n\
             link set near{index} up\nlink set far{index} up\n"
        );
    }
    lines += &format!("link set near{UNDERLAY} address {NEAR_MAC}\n");
    ip.stdin.take().context("ip has no input")?.write_all(lines.as_bytes())?;
    ensure!(ip.wait()?.success(), "ip refuses to make interfaces");
    Ok(())
}

impl Kernel {
    fn new(cpu: usize) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let mut set = CpuSet::new();
        set.set(cpu % std::thread::available_parallelism()?.get())?;
        sched_setaffinity(Pid::from_raw(0), &set)?;
        make_interfaces()?;
        let mut bench = Bench::load()?;
        bench.loaded.tables.near_macs.get(0).context("a map of one")?.set([NEAR_MAC]);
        for interface in interfaces() {
            bench.loaded.tables.devices.insert(interface, interface, None, 0)?;
            // A test run wants an interface that is ready for XDP.
            let any = xdp(&mut bench.loaded.programs, XDP_PORT_PROGRAMS[0])?;
            any.attach_to_if_index(interface, XdpMode::Driver)?;
        }
        Ok(Self {
            bench,
            capture: Capture::new()?,
            comparison: Comparison::default(),
            model: Model::new(&World::default()),
            out: vec![0; 16 * 1024],
            statistics: Statistics::default(),
        })
    }

    fn enter(&mut self, world: &World, flaw: Option<Flaw>) -> Result<()> {
        self.bench.fill(&with_early_hooks(world))?;
        self.model = Model::new(world);
        if let Some(flaw) = flaw {
            self.model = std::mem::replace(&mut self.model, Model::new(&World::default())).with_flaw(flaw);
        }
        self.comparison.forget();
        self.statistics.worlds += 1;
        Ok(())
    }

    fn check(&mut self, input: &Input, rng: &mut SmallRng) -> Result<(), String> {
        if input.bytes.len() < 14 || has_three_tags(&input.bytes) {
            return Ok(());
        }
        let mut prediction = self.model.predict(input);
        if is_cut_in_a_tag(&input.bytes)
            || prediction.outcome.outputs.iter().any(|output| is_cut_in_a_tag(&output.bytes))
        {
            return Ok(());
        }
        if is_runt(&prediction.outcome) {
            return Ok(());
        }
        prediction.outcome.drops = self.bench.with_rows(prediction.outcome.drops);
        let slow = matches!(input.entrance, Entrance::Slow(_));
        // A mark that somebody else put on a frame says nothing to anybody.
        let mark = match input.entrance {
            Entrance::Slow(mark) => mark,
            _ if rng.random_bool(0.1) => rng.random(),
            _ => 0,
        };
        self.bench.prepare(input.moment);
        if !slow && rng.random_bool(0.4) {
            let which = usize::from(rng.random::<bool>());
            let ran = self.run_early(input, which).map_err(|error| format!("the early hook: {error:#}"))?;
            let mut seen = self.seen(input, &prediction, &ran, XDP, true)?;
            if seen.end == End::Passed {
                seen.seen = None;
                return if seen == Outcome::default() {
                    Ok(())
                } else {
                    Err(format!("left by the early hook, but not before something was done: {seen:x?}"))
                };
            }
            self.statistics.early += 1;
            self.statistics.note(&prediction);
            return self
                .comparison
                .check(&prediction, &mut seen)
                .map_err(|what| format!("the early hook:\n{what}"));
        }
        let tags = tags(&prediction);
        self.bench.forget(&tags).map_err(|error| error.to_string())?;
        let came = Instant::now();
        let difference = |what: String| format!("the last hook:\n{what}");
        if !self.run_last(input, mark, &prediction).map_err(difference)? {
            return Ok(());
        }
        self.statistics.note(&prediction);
        let alone = tags.iter().map(|tag| recent_slot(*tag)).collect::<BTreeSet<_>>().len() == tags.len();
        if tags.is_empty() || !alone || !rng.random_bool(0.1) {
            return Ok(());
        }
        // The same again, so soon that nobody is told, and that it is flooded for no address that is held.
        let moment = Moment { paced: true, ..input.moment };
        let mut again = self.model.predict(&Input { moment, ..input.clone() });
        again.outcome.drops = self.bench.with_rows(again.outcome.drops);
        again.outcome.reports.clear();
        again.outcome.claims.clear();
        again.outcome.too_big.clear();
        self.bench.prepare(input.moment);
        let result = self.run_last(input, mark, &again);
        if came.elapsed() > NOT_AGAIN {
            // It was not so soon after all.
            return Ok(());
        }
        result.map(drop).map_err(|what| format!("the last hook, again:\n{what}"))
    }

    /// Runs a frame through the last hook, and compares; says whether the kernel took it.
    fn run_last(&mut self, input: &Input, mark: u32, prediction: &Prediction) -> Result<bool, String> {
        let Some(ran) = self.run(input, mark).map_err(|error| format!("{error:#}"))? else {
            return Ok(false);
        };
        let mut seen = self.seen(input, prediction, &ran, [TC[0], TC[1], TC[2], TC[2]], false)?;
        self.comparison.check(prediction, &mut seen)?;
        Ok(true)
    }

    /// Runs a frame; nothing where the kernel makes no socket buffer of so short a one.
    fn run(&mut self, input: &Input, mark: u32) -> Result<Option<Ran>> {
        const MARK: usize = 8;
        const IFINDEX: usize = 40;
        let (program, ifindex) = match input.entrance {
            Entrance::Port(ifindex) => (PORT_PROGRAM, ifindex),
            Entrance::Underlay => (UNDERLAY_PROGRAM, UNDERLAY),
            Entrance::Slow(_) => (SLOW_PROGRAM, SLOW),
        };
        let mut before = [0_u8; 192];
        before[MARK..MARK + 4].copy_from_slice(&mark.to_ne_bytes());
        before[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        let mut after = before;
        let options = TestRunOptions {
            data_in: Some(&input.bytes),
            data_out: Some(&mut self.out),
            ctx_in: Some(&before),
            ctx_out: Some(&mut after),
            ..TestRunOptions::default()
        };
        let result = match classifier(&mut self.bench.loaded.programs, program)?.test_run(options) {
            Err(ProgramError::SyscallError(error))
                if input.bytes.len() < 54 && error.io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                return Ok(None);
            }
            result => result?,
        };
        self.statistics.executions += 1;
        let bytes = self.out[..result.data_size_out as usize].to_vec();
        let mark = u32::from_ne_bytes([after[MARK], after[MARK + 1], after[MARK + 2], after[MARK + 3]]);
        Ok(Some(Ran { action: result.return_value.cast_signed(), bytes, mark }))
    }

    fn run_early(&mut self, input: &Input, which: usize) -> Result<Ran> {
        const DATA_END: usize = 4;
        const INGRESS_IFINDEX: usize = 12;
        let (program, ifindex) = match input.entrance {
            Entrance::Port(ifindex) => (XDP_PORT_PROGRAMS[which], ifindex),
            _ => (XDP_UNDERLAY_PROGRAMS[which], UNDERLAY),
        };
        let mut context = [0_u8; 24];
        context[DATA_END..DATA_END + 4].copy_from_slice(&(input.bytes.len() as u32).to_ne_bytes());
        context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&input.bytes),
            data_out: Some(&mut self.out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let result = xdp(&mut self.bench.loaded.programs, program)?.test_run(options)?;
        self.statistics.executions += 1;
        let bytes = self.out[..result.data_size_out as usize].to_vec();
        Ok(Ran { action: result.return_value.cast_signed(), bytes, mark: 0 })
    }

    /// What happened, in the words of what must happen. What a test run does not show is taken as it must be.
    fn seen(
        &mut self,
        input: &Input,
        prediction: &Prediction,
        ran: &Ran,
        actions: [i32; 4],
        early: bool,
    ) -> Result<Outcome, String> {
        let [pass, drop, redirect, back] = actions;
        let end = match ran.action {
            action if action == pass => End::Passed,
            action if action == drop => End::Dropped,
            action if action == redirect || action == back => End::Sent,
            action => return Err(format!("action {action}")),
        };
        if end == End::Passed && ran.bytes != input.bytes {
            return Err("passed, but not untouched".into());
        }
        let wanted = &prediction.outcome;
        let mut seen = self.bench.counted(input.moment, wanted)?;
        seen.end = end;
        (seen.reports, seen.claims) = self.bench.reports();
        seen.too_big = self.bench.too_big();
        let copies = match seen.flooded {
            Some((_, copies, _)) => copies as usize - usize::from(end == End::Sent),
            None => 0,
        };
        for number in 0..copies {
            let wanted = wanted.outputs.get(number);
            self.statistics.copies_seen.1 += 1;
            let copy = self
                .capture
                .next(wait::patient(COPY_TIMEOUT))
                .map_err(|error| format!("copy {number}: {error}"))?;
            seen.outputs.push(arrived(&copy, wanted));
            self.statistics.copies_seen.0 += 1;
        }
        if end == End::Sent {
            let last = wanted.outputs.last();
            let egress = last.map_or(Egress::new(0, Side::Out), |last| last.egress);
            let bytes = match last {
                Some(last) if early => without_padding(ran.bytes.clone(), &last.bytes),
                _ if early => ran.bytes.clone(),
                _ => as_on_the_wire(&ran.bytes, last),
            };
            // Only the slow interface's programs look at a mark.
            let says = egress.ifindex == SLOW && !early;
            let mark = if says { ran.mark } else { last.map_or(0, |last| last.mark) };
            seen.outputs.push(Output { egress, bytes, mark });
        }
        if self.statistics.executions.is_multiple_of(16) {
            self.capture.nothing_more()?;
        }
        Ok(seen)
    }
}

/// What the programs note when they tell of what comes of a frame, or flood it for an address that is held.
fn tags(prediction: &Prediction) -> Vec<u64> {
    let outcome = &prediction.outcome;
    let reports = outcome.reports.iter().map(report_tag);
    let claims = outcome.claims.iter().map(claim_tag);
    let too_big = outcome.too_big.iter().map(|(_, bytes)| too_big_tag(bytes));
    reports.chain(claims).chain(too_big).chain(prediction.paced.map(held_tag)).collect()
}

/// Whether there are three tags in a row. The programs take two from beside a frame, as which the kernel gives them one
/// by one; a frame with a third one is dropped (`headroom`) where it was put beside, which here depends on who got a
/// copy before.
fn has_three_tags(bytes: &[u8]) -> bool {
    let tag = |at: &[u8]| matches!(at, [0x81, 0, ..] | [0x88, 0xa8, ..]);
    bytes.windows(10).any(|part| tag(part) && tag(&part[4..]) && tag(&part[8..]))
}

/// Whether a frame ends within its tags, or just behind them. The kernel gives it to nobody who listens, unless the tag
/// is beside it, and moves none of its tags there (`skb_vlan_untag()`, `skb_vlan_pop()`).
fn is_cut_in_a_tag(frame: &[u8]) -> bool {
    let mut at = 12;
    while matches!(frame.get(at..), Some([0x81, 0, ..] | [0x88, 0xa8, ..])) {
        at += 4;
    }
    at > 12 && frame.len() < at + 4
}

/// Whether it is a frame of fewer than 16 bytes that may get one header in the place of another: between headers of the
/// longest kind and the shortest the kernel would leave less than an IPv6 header, and refuses (`headroom`), which
/// depends on who comes after whom.
fn is_runt(outcome: &Outcome) -> bool {
    outcome.received.is_some_and(|(_, bytes)| bytes < 16)
}

/// Reports of frames that do not fit.
type Notices = Vec<(mgre_common::event::TooBigHead, Vec<u8>)>;

/// A copy, where it came from: what is sent out of an interface arrives at its far end.
fn arrived(copy: &Copy, wanted: Option<&Output>) -> Output {
    let (ifindex, side) =
        if copy.ifindex >= FAR { (copy.ifindex - FAR, Side::Out) } else { (copy.ifindex, Side::Receive) };
    let mut egress = Egress::new(ifindex, side);
    let mut bytes = copy.bytes.clone();
    let mut mark = copy.mark;
    if let Some(wanted) = wanted {
        // A copy is sent out of the near end of a pair, and bears the tag that it is to have.
        if wanted.egress.side == Side::Peer && side == Side::Out {
            egress.side = Side::Peer;
        }
        egress.vlan = wanted.egress.vlan;
        bytes = without_padding(bytes, &wanted.bytes);
        if wanted.egress.ifindex != SLOW {
            mark = wanted.mark;
        }
    }
    Output { egress, bytes, mark }
}

/// The kernel pads with zeros what is too short for it to strip, and the early hook what is too short for a wire.
fn without_padding(mut bytes: Vec<u8>, wanted: &[u8]) -> Vec<u8> {
    let padded = bytes.len() >= MIN_FRAME && bytes.len() <= MIN_FRAME + 8 && wanted.len() < bytes.len();
    if padded && bytes[wanted.len()..].iter().all(|byte| *byte == 0) && bytes.starts_with(wanted) {
        bytes.truncate(wanted.len());
    }
    bytes
}

/// A test run shows no tag that is beside the frame: one that is put on, and one before an IP packet.
fn as_on_the_wire(bytes: &[u8], wanted: Option<&Output>) -> Vec<u8> {
    let bytes = bytes.to_vec();
    let Some(wanted) = wanted else { return bytes };
    if let Some(tag @ ([0x81, 0, ..] | [0x88, 0xa8, ..])) = wanted.bytes.get(12..16)
        // It is that one if what is behind it comes next.
        && bytes.get(12..14) == wanted.bytes.get(16..18)
    {
        let with = [&bytes[..12], tag, &bytes[12..]].concat();
        let with = without_padding(with, &wanted.bytes);
        // There may be one like it in the frame.
        if bytes.get(12..16) != Some(tag) || with == wanted.bytes {
            return with;
        }
    }
    without_padding(bytes, &wanted.bytes)
}
