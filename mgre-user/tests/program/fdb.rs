//! The programs look addresses up while the FDB's writer changes them at full speed.
//!
//! Frames from port 0 are for addresses at other ports, whose counters tell where
//! they were sent; a frame that goes to a port is not changed, so one call runs the
//! program many times. The other ports are in another segment than the addresses, so
//! that flooding reaches nobody: a frame for an address that is not known is dropped.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::SchedClassifier;
use mgre_common::fdb::{FdbHash, FdbKey, MAX_ENTRIES, SLOTS};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;
use mgre_ebpf::host::packet::tcp_v4;
use mgre_ebpf::host::world::{PortSpec, World, station};
use mgre_user::datapath::fdb::Fdb;
use mgre_user::datapath::load::{PORT_PROGRAM, classifier};

use super::kernel::{Kernel, REDIRECT, in_namespace, interfaces, test_run};

/// For how long, and for how long at most where the machine is busy.
const ENOUGH: Duration = Duration::from_secs(2);
const TOO_LONG: Duration = Duration::from_secs(20);
/// Runs of the program in a call.
const REPEAT: u32 = 500;
/// The interface of port 0.
const PORT: u32 = 10;
const SEGMENT: u16 = 1;
const PORTS: u32 = 5;

fn network() -> World {
    let segment = |id| if id == 0 { SEGMENT.into() } else { 2 };
    World {
        ports: (0..PORTS).map(|id| PortSpec::new(id, segment(id))).collect(),
        segments: vec![(SEGMENT.into(), 1), (2, 1)],
        ..World::default()
    }
}

fn mac(number: u32) -> MacAddr {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddr([2, 7, a, b, c, d])
}

fn key(mac: MacAddr) -> FdbKey {
    FdbKey::new(SEGMENT, mac)
}

/// A table's buckets that the sender of the frames is not in.
fn buckets(hash: FdbHash) -> Vec<u32> {
    let sender = [0, 1].map(|choice| hash.bucket(key(station(1)), choice));
    (0..hash.buckets()).filter(|bucket| !sender.contains(bucket)).collect()
}

/// Addresses by their home bucket and their second one.
fn by_buckets(hash: FdbHash) -> BTreeMap<[u32; 2], Vec<MacAddr>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for mac in (0..65_536).map(mac) {
        found.entry([0, 1].map(|choice| hash.bucket(key(mac), choice))).or_default().push(mac);
    }
    found
}

/// Which address the readers send frames to.
#[derive(Default)]
struct Turn {
    address: AtomicUsize,
    /// Which one a reader was last at.
    read: AtomicUsize,
    /// Calls whose last frame was sent somewhere.
    sent: AtomicUsize,
    stop: AtomicBool,
}

impl Turn {
    /// Has the readers turn to an address, and returns when one has.
    fn to(&self, address: usize) {
        let start = Instant::now();
        self.address.store(address, Ordering::Relaxed);
        while self.read.load(Ordering::Relaxed) != address && start.elapsed() < TOO_LONG {
            thread::yield_now();
        }
    }
}

/// What became of the frames: how many there were, and how many went to each port.
#[derive(Debug)]
struct Frames {
    all: u64,
    sent: Vec<u64>,
}

/// Readers send frames to one of these addresses at a time, until the writer is
/// done. The first one is there when they begin, at port 1.
fn hammer(
    capacity: u32,
    addresses: impl FnOnce(FdbHash) -> Vec<MacAddr>,
    write: impl FnOnce(&mut Fdb, &[FdbKey], &Turn),
) -> Frames {
    let world = network();
    interfaces(&world);
    let mut kernel = Kernel::with_room(&world, capacity);
    let hash = kernel.loaded.fdb_hash();
    let mut fdb = Fdb::new(kernel.loaded.tables.fdb.take().unwrap(), hash, capacity);
    let addresses = addresses(hash);
    let keys: Vec<FdbKey> = addresses.iter().copied().map(key).collect();
    fdb.set(key(station(1)), Target::port(0), None).unwrap();
    fdb.set(keys[0], Target::port(1), Some(1)).unwrap();

    let program: &SchedClassifier = classifier(&mut kernel.loaded.programs, PORT_PROGRAM).unwrap();
    let frames: Vec<Vec<u8>> = addresses.iter().map(|mac| tcp_v4(*mac, station(1), 10)).collect();
    let turn = Turn::default();
    let read = || {
        let mut out = vec![0; 512];
        while !turn.stop.load(Ordering::Relaxed) {
            let address = turn.address.load(Ordering::Relaxed);
            turn.read.store(address, Ordering::Relaxed);
            let frame = &frames[address];
            let result = test_run(program, PORT, 0, frame, &mut out, REPEAT).unwrap();
            if result.return_value.cast_signed() == REDIRECT {
                turn.sent.fetch_add(1, Ordering::Relaxed);
            }
            assert_eq!(out[..frame.len()], frame[..], "the frame has changed");
        }
    };
    let readers = thread::available_parallelism().map_or(1, |cpus| cpus.get() - 1).clamp(1, 4);
    thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(read);
        }
        // The readers end however the writer does.
        let written = catch_unwind(AssertUnwindSafe(|| write(&mut fdb, &keys, &turn)));
        turn.stop.store(true, Ordering::Relaxed);
        written.unwrap();
    });
    Frames {
        all: kernel.traffic(Target::port(0)).receive_packets,
        sent: (0..PORTS).map(|id| kernel.traffic(Target::port(id)).transmit_packets).collect(),
    }
}

/// Addresses at ports 1 or 2, which the frames are for, and each with one at ports 3
/// or 4 that has the same buckets: they take turns in the same slots.
#[test]
fn no_program_takes_a_target_of_another_address() {
    const LEAST: u64 = 2_000;
    in_namespace(|| {
        let (mut inserted, mut moved) = (0_u64, 0_u64);
        let frames = hammer(
            2048,
            |hash| {
                let twins = by_buckets(hash).into_values().filter(|macs| macs.len() > 1);
                twins.take(512).flat_map(|macs| [macs[0], macs[1]]).collect()
            },
            |fdb, keys, turn| {
                let start = Instant::now();
                fdb.remove(keys[0]).unwrap();
                for pair in (0..keys.len() / 2).cycle() {
                    let met = inserted > LEAST && turn.sent.load(Ordering::Relaxed) > 20;
                    if start.elapsed() > ENOUGH && (met || start.elapsed() > TOO_LONG) {
                        break;
                    }
                    fdb.wake(start.elapsed().as_secs() as u32);
                    turn.to(2 * pair);
                    for number in 0..2 * SLOTS {
                        let key = keys[2 * pair + number % 2];
                        let ports = [1, 2].map(|port| Target::port(port + number as u32 % 2 * 2));
                        for turn in 0..4 {
                            fdb.set(key, ports[turn % 2], Some(1)).unwrap();
                        }
                        fdb.remove(key).unwrap();
                        inserted += 1;
                        moved += 3;
                    }
                }
            },
        );
        println!("{frames:?}; {inserted} times inserted and removed, {moved} times pointed elsewhere");
        assert_eq!((frames.sent[3], frames.sent[4]), (0, 0), "a target of another address");
        assert!(frames.sent[1] > 100 && frames.sent[2] > 100, "{frames:?}");
        assert!(frames.sent[1] + frames.sent[2] + 1000 < frames.all, "{frames:?}");
        assert!(inserted >= LEAST, "{inserted}");
    });
}

/// An address can be in either of two buckets, and by turns a crowd fills the one
/// and the other, and the stash.
#[test]
fn no_program_misses_an_address_whose_entry_moves() {
    const LEAST: u64 = 10;
    const CROWD: usize = 3 * SLOTS;
    in_namespace(|| {
        let mut moves = 0;
        let frames = hammer(
            32,
            |hash| {
                let (buckets, found) = (buckets(hash), by_buckets(hash));
                let some = |home: usize, second: usize, count: usize| {
                    found[&[buckets[home], buckets[second]]][..count].to_vec()
                };
                [some(0, 1, 1), some(0, 2, CROWD), some(1, 3, CROWD)].concat()
            },
            |fdb, keys, _| {
                let start = Instant::now();
                while start.elapsed() < ENOUGH || moves < LEAST && start.elapsed() < TOO_LONG {
                    for crowd in keys[1..].chunks(CROWD) {
                        // With the first address, that is one more than there are slots: it has moved.
                        for key in crowd {
                            fdb.set(*key, Target::port(2), Some(1)).unwrap();
                        }
                        moves += 1;
                        for key in crowd {
                            fdb.remove(*key).unwrap();
                        }
                    }
                }
            },
        );
        println!("{frames:?}; {moves} moves");
        assert_eq!(frames.sent[1], frames.all, "an entry that moved was missed");
        assert!(frames.all > 10_000 && moves >= LEAST, "{frames:?}, {moves} moves");
    });
}

/// As many as there can be: the program finds those that it is asked for.
#[test]
fn a_million_addresses() {
    in_namespace(|| {
        let world = network();
        interfaces(&world);
        let mut kernel = Kernel::with_room(&world, MAX_ENTRIES);
        let hash = kernel.loaded.fdb_hash();
        let mut fdb = Fdb::new(kernel.loaded.tables.fdb.take().unwrap(), hash, MAX_ENTRIES);
        fdb.set(key(station(1)), Target::port(0), None).unwrap();
        let start = Instant::now();
        for number in 1..MAX_ENTRIES {
            fdb.set(key(mac(number)), Target::port(1 + number % 2), Some(1)).unwrap();
        }
        println!("{} entries in {:?}", fdb.len(), start.elapsed());
        let asked = (1..MAX_ENTRIES).step_by(997);
        for number in asked.clone() {
            let frame = tcp_v4(mac(number), station(1), 10);
            assert_eq!(kernel.run(PORT_PROGRAM, PORT, 0, &frame).unwrap().action, REDIRECT, "{number}");
        }
        let sent = [1, 2].map(|id| kernel.traffic(Target::port(id)).transmit_packets);
        let odd = asked.clone().filter(|number| number % 2 == 1).count() as u64;
        assert_eq!(sent, [asked.len() as u64 - odd, odd]);
    });
}
