//! The list of cases that the pipeline is tested with on the host, in the kernel:
//! the same bytes, counters, drops and reports must come of them.

use std::collections::BTreeMap;

use super::capture::Capture;
use super::kernel::{DROP, FAR, Kernel, PASS, REDIRECT, drops_between, in_namespace, interfaces};
use mgre_common::target::Target;
use mgre_ebpf::host::cases::{self, Case, End, Entrance, Expected, Output};
use mgre_ebpf::host::world::{UNDERLAY, World};
use mgre_user::datapath::load::{PORT_PROGRAM, UNDERLAY_PROGRAM};

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

struct Bench {
    kernel: Kernel,
    targets: Vec<Target>,
    segments: Vec<u16>,
    /// What is sent out of each interface.
    captures: BTreeMap<u32, Capture>,
}

impl Bench {
    fn new(world: &World) -> Self {
        let mut interfaces: Vec<u32> = world.ports.iter().map(|port| port.ifindex).collect();
        interfaces.push(UNDERLAY);
        let ports = world.ports.iter().map(|port| Target::port(port.id));
        let peers = world.peers.iter().map(|peer| Target::adjacency(peer.id));
        Self {
            kernel: Kernel::new(world),
            targets: [Target::NONE].into_iter().chain(ports).chain(peers).collect(),
            segments: (0..=9).collect(),
            captures: interfaces.into_iter().map(|index| (index, Capture::new(FAR + index))).collect(),
        }
    }

    fn run(&mut self, case: &Case) -> Option<Expected> {
        let (program, ifindex) = match case.entrance {
            Entrance::Port(ifindex) => (PORT_PROGRAM, ifindex),
            Entrance::Underlay => (UNDERLAY_PROGRAM, UNDERLAY),
        };
        let drops: Vec<_> = self.targets.iter().map(|target| self.kernel.drops(*target)).collect();
        let traffic: Vec<_> = self.targets.iter().map(|target| self.kernel.traffic(*target)).collect();
        let flooded: Vec<_> = self.segments.iter().map(|id| self.kernel.flooded(*id)).collect();

        let ran = self.kernel.run(program, ifindex, case.segment_size, &case.bytes)?;

        let mut observed = Expected { reports: self.kernel.reports(), ..Expected::default() };
        for (i, &target) in self.targets.iter().enumerate() {
            observed.drops.extend(drops_between(target, &drops[i], &self.kernel.drops(target)));
            let (before, after) = (traffic[i], self.kernel.traffic(target));
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
        for (&id, (frames, copies)) in self.segments.iter().zip(flooded) {
            let after = self.kernel.flooded(id);
            if after.0 > frames {
                assert_eq!((after.0 - frames, observed.flooded), (1, None));
                observed.flooded = Some((u32::from(id), after.1 - copies));
            }
        }
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
        outputs
    }
}

/// What a test run shows of what must come of a case.
fn as_in_a_test_run(case: &Case) -> Expected {
    let mut expected = case.expected.clone();
    if case.entrance != Entrance::Underlay || expected.end != End::Sent {
        return expected;
    }
    if let Some((_, frame)) = expected.outputs.last_mut() {
        // A tag before IP is put beside the frame, where a test run does not show it.
        let is_vlan = matches!(frame[12..14], [0x81, 0x00] | [0x88, 0xa8]);
        if is_vlan && frame.len() > 18 && matches!(frame[16..18], [0x08, 0x00] | [0x86, 0xdd]) {
            frame.drain(12..16);
        }
    }
    // What is too short for the kernel to take a header off is padded.
    for (_, frame) in &mut expected.outputs {
        if frame.len() < 38 {
            frame.resize(60, 0);
        }
    }
    expected
}
