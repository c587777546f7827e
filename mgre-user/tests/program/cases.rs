//! The list of cases that the pipeline is tested with on the host, in the kernel:
//! the same bytes, counters, drops and reports must come of them.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::xdp::XdpMode;
use mgre_user::datapath::load::{self, Loaded, xdp};

use super::capture::Capture;
use super::kernel::{
    DROP, FAR, Kernel, NO_PORT, PASS, REDIRECT, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX, drops_between,
    in_namespace, interfaces,
};
use mgre_common::counters::{Drops, SegmentTraffic, Traffic};
use mgre_common::event::TOO_BIG_INTERVAL_NS;
use mgre_common::target::Target;
use mgre_ebpf::frame::Egress;
use mgre_ebpf::host::cases::{self, Case, End, Entrance, Expected, Output};
use mgre_ebpf::host::world::{SLOW, UNDERLAY, World};
use mgre_user::datapath::load::{
    PORT_PROGRAM, SLOW_PROGRAM, UNDERLAY_PROGRAM, XDP_PORT_PROGRAMS, XDP_UNDERLAY_PROGRAMS,
};

#[test]
fn the_kernel_does_what_the_host_does() {
    in_namespace(|| {
        let world = World::standard();
        interfaces(&world);
        let mut bench = Bench::new(&world);
        let (mut failed, mut ran, mut refused) = (0, 0, 0);
        for case in cases::all() {
            if case.host_only.is_some() {
                continue;
            }
            let expected = as_in_a_test_run(&case);
            let Some(observed) = bench.run(&case) else {
                refused += 1;
                continue;
            };
            ran += 1;
            if observed != expected {
                failed += 1;
                println!("{}:\n expected {expected:x?}\n observed {observed:x?}", case.name);
            }
        }
        for (ifindex, capture) in &bench.captures {
            assert_eq!(capture.next(20), None, "one more frame out of interface {ifindex}");
        }
        println!("{ran} cases ran in the kernel; {refused} are too short for a test run");
        assert_eq!(failed, 0, "cases failed");
    });
}

/// The XDP programs finish what the pipeline's early hook finishes on the host, with
/// the same bytes and counters, and leave everything else as it was.
#[test]
fn the_kernels_early_hook_does_what_the_hosts_does() {
    in_namespace(|| {
        let world = World::express();
        interfaces(&world);
        let mut bench = Bench::new(&world);
        for interface in bench.captures.keys().chain([&NO_PORT]) {
            let Loaded { tables, programs, .. } = &mut bench.kernel.loaded;
            tables.devices.insert(*interface, *interface, None, 0).unwrap();
            // A test run wants an interface that is ready for XDP.
            let any = xdp(programs, XDP_PORT_PROGRAMS[0]).unwrap();
            any.attach_to_if_index(*interface, XdpMode::Driver).unwrap();
        }
        for programs in [0, 1].map(|which| (XDP_PORT_PROGRAMS[which], XDP_UNDERLAY_PROGRAMS[which])) {
            let (mut failed, mut finished) = (0, 0);
            for case in cases::all() {
                // A test run takes no frame without a header.
                let slow = matches!(case.entrance, Entrance::Slow(_));
                if slow || case.host_only.is_some() || case.bytes.len() < 14 {
                    continue;
                }
                let (all, early) = case.run_early_on_host();
                let mut expected = if early { all } else { Expected::default() };
                // What comes out of a tunnel is as long as drivers need it.
                for (egress, frame) in &mut expected.outputs {
                    if case.entrance == Entrance::Underlay && egress.ifindex != UNDERLAY && frame.len() < 60 {
                        frame.resize(60, 0);
                    }
                }
                let observed = bench.run_xdp(&case, programs);
                finished += u32::from(early);
                if observed != expected {
                    failed += 1;
                    println!("{}:\n expected {expected:x?}\n observed {observed:x?}", case.name);
                }
            }
            println!("{finished} cases are finished by {programs:?}");
            assert_eq!(failed, 0, "cases failed");
            assert!(finished > 100, "{finished}");
        }
    });
}

struct Bench {
    kernel: Kernel,
    /// When the lease on next hops was.
    renewed: Instant,
    targets: Vec<Target>,
    segments: Vec<u16>,
    /// What is sent out of each interface.
    captures: BTreeMap<u32, Capture>,
}

impl Bench {
    fn new(world: &World) -> Self {
        let mut interfaces: BTreeSet<u32> = world.ports.iter().map(|port| port.ifindex).collect();
        interfaces.extend([UNDERLAY, SLOW]);
        let ports = world.ports.iter().map(|port| Target::port(port.id));
        let peers = world.peers.iter().map(|peer| Target::adjacency(peer.id));
        Self {
            kernel: Kernel::new(world),
            renewed: Instant::now(),
            targets: [Target::NONE].into_iter().chain(ports).chain(peers).collect(),
            segments: world.segments.iter().map(|(id, _)| *id as u16).collect(),
            captures: interfaces.into_iter().map(|index| (index, Capture::new(FAR + index))).collect(),
        }
    }

    fn run(&mut self, case: &Case) -> Option<Expected> {
        let (program, ifindex, mark) = match case.entrance {
            Entrance::Port(ifindex) => (PORT_PROGRAM, ifindex, 0),
            Entrance::Underlay => (UNDERLAY_PROGRAM, UNDERLAY, 0),
            Entrance::Slow(mark) => (SLOW_PROGRAM, SLOW, mark),
        };
        if !case.expected.too_big.is_empty() {
            // Or it would be one report too many from its source.
            thread::sleep(Duration::from_nanos(2 * TOO_BIG_INTERVAL_NS));
        }
        self.renew_lease();
        let before = self.numbers();
        let ran = self.kernel.run_marked(program, ifindex, case.segment_size, mark, &case.bytes)?;
        let mut observed = self.since(&before);
        observed.mark = ran.mark;
        observed.end = match ran.action {
            PASS => End::Passed,
            DROP => End::Dropped,
            REDIRECT => End::Sent,
            action => panic!("{}: action {action}", case.name),
        };
        if observed.end == End::Passed {
            assert_eq!(ran.bytes, case.bytes, "{}: passed, but not untouched", case.name);
        }
        observed.outputs = self.outputs(case, observed.end, ran.bytes);
        Some(observed)
    }

    fn run_xdp(&mut self, case: &Case, (port, underlay): (&str, &str)) -> Expected {
        let (program, ifindex) = match case.entrance {
            Entrance::Port(ifindex) => (port, ifindex),
            Entrance::Underlay => (underlay, UNDERLAY),
            Entrance::Slow(_) => panic!("the slow interface has no early hook"),
        };
        self.renew_lease();
        let before = self.numbers();
        let ran = self.kernel.run_xdp(program, ifindex, &case.bytes);
        let mut observed = self.since(&before);
        observed.end = match ran.action {
            XDP_PASS => End::Passed,
            XDP_DROP => End::Dropped,
            XDP_TX | XDP_REDIRECT => End::Sent,
            action => panic!("{}: action {action}", case.name),
        };
        if observed.end == End::Passed {
            assert_eq!(ran.bytes, case.bytes, "{}: passed, but not untouched", case.name);
        }
        if let (End::Sent, Some((egress, _))) = (observed.end, case.expected.outputs.last()) {
            let sends_back = case.expected.transmitted.keys().all(|to| to.to_bits().is_multiple_of(2));
            let back = egress.ifindex == ifindex && sends_back;
            assert_eq!(ran.action, if back { XDP_TX } else { XDP_REDIRECT }, "{}", case.name);
            observed.outputs.push((*egress, cases::settled(*egress, ran.bytes)));
        }
        observed
    }

    /// All cases together may take longer than a lease does.
    fn renew_lease(&mut self) {
        if self.renewed.elapsed() > Duration::from_secs(1) {
            load::renew_lease(&mut self.kernel.loaded.programs).unwrap();
            self.renewed = Instant::now();
        }
    }

    fn numbers(&self) -> Numbers {
        Numbers {
            drops: self.targets.iter().map(|target| self.kernel.drops(*target)).collect(),
            traffic: self.targets.iter().map(|target| self.kernel.traffic(*target)).collect(),
            flooded: self.segments.iter().map(|id| self.kernel.flooded(*id)).collect(),
        }
    }

    /// What was counted and reported since then.
    fn since(&mut self, numbers: &Numbers) -> Expected {
        let (reports, claims) = self.kernel.reports();
        let mut observed = Expected {
            reports,
            claims,
            too_big: self.kernel.too_big().iter().map(cases::captured).collect(),
            ..Expected::default()
        };
        for (i, &target) in self.targets.iter().enumerate() {
            observed.drops.extend(drops_between(target, &numbers.drops[i], &self.kernel.drops(target)));
            let (before, after) = (numbers.traffic[i], self.kernel.traffic(target));
            if after.receive_packets > before.receive_packets {
                assert_eq!((after.receive_packets - before.receive_packets, observed.received), (1, None));
                observed.received = Some((target, after.receive_bytes - before.receive_bytes));
            }
            let packets = after.transmit_packets - before.transmit_packets;
            if packets > 0 {
                let bytes = after.transmit_bytes - before.transmit_bytes;
                observed.transmitted.insert(target, (packets, bytes));
            }
        }
        observed.drops.sort();
        for (&id, before) in self.segments.iter().zip(&numbers.flooded) {
            let after = self.kernel.flooded(id);
            let flooded = SegmentTraffic {
                flood_frames: after.flood_frames - before.flood_frames,
                flood_copies: after.flood_copies - before.flood_copies,
                flood_lost: after.flood_lost - before.flood_lost,
                arp_replies: after.arp_replies - before.arp_replies,
                nd_replies: after.nd_replies - before.nd_replies,
            };
            let id = u32::from(id);
            if flooded.flood_frames > 0 {
                assert_eq!((flooded.flood_frames, observed.flooded), (1, None));
                observed.flooded = Some((id, flooded.flood_copies));
            }
            observed.answered = observed.answered.or(cases::answered(&flooded).map(|asked| (id, asked)));
        }
        observed
    }

    /// Copies are sent; the frame itself only seems to be: a test run cannot tell where.
    fn outputs(&self, case: &Case, end: End, last: Vec<u8>) -> Vec<Output> {
        let expected = &case.expected.outputs;
        let copies = expected.len() - usize::from(case.expected.end == End::Sent && !expected.is_empty());
        let mut outputs: Vec<Output> = expected[..copies]
            .iter()
            .filter_map(|(egress, _)| self.captures[&egress.ifindex].next(1000).map(|bytes| (*egress, bytes)))
            .collect();
        for (ifindex, capture) in &self.captures {
            assert_eq!(capture.next(0), None, "{}: one more out of interface {ifindex}", case.name);
        }
        if let (End::Sent, Some((egress, _))) = (end, expected.last()) {
            outputs.push((*egress, last));
        }
        outputs.into_iter().map(|(egress, bytes)| (egress, cases::settled(egress, bytes))).collect()
    }
}

/// Everything that is counted.
struct Numbers {
    drops: Vec<Drops>,
    traffic: Vec<Traffic>,
    flooded: Vec<SegmentTraffic>,
}

/// What a test run shows of what must come of a case.
fn as_in_a_test_run(case: &Case) -> Expected {
    let mut expected = case.expected.clone();
    if expected.end != End::Sent {
        return expected;
    }
    // A tag that is put on is beside the frame, too.
    if let Some((Egress { vlan: 1.., .. }, frame)) = expected.outputs.last_mut() {
        frame.drain(12..16);
    }
    if !matches!(case.entrance, Entrance::Underlay | Entrance::Slow(0)) {
        return expected;
    }
    if let Some((Egress { vlan: 0, .. }, frame)) = expected.outputs.last_mut() {
        // A tag before IP is put beside the frame, where a test run does not show it.
        let is_vlan = matches!(frame[12..14], [0x81, 0x00] | [0x88, 0xa8]);
        if is_vlan && frame.len() > 18 && matches!(frame[16..18], [0x08, 0x00] | [0x86, 0xdd]) {
            frame.drain(12..16);
        }
    }
    // What is too short for the kernel to take a header off is padded: it wants to leave an IPv4 header and a tag's
    // room.
    for (_, frame) in &mut expected.outputs {
        if frame.len() < 38 {
            frame.resize(60, 0);
        }
    }
    expected
}
