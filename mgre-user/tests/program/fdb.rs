//! The programs look addresses up while the FDB's writer changes them at full speed.
//!
//! Frames from port 0 are for addresses behind peers, whose endpoints the outer
//! headers show. Each address has two peers of its own, so that a target taken for
//! another key is seen. The peers are in another segment than the addresses, so that
//! flooding reaches nobody: a frame for an address that is not known is dropped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::SchedClassifier;
use mgre_common::fdb::{FdbHash, FdbKey, SLOTS};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;
use mgre_ebpf::host::packet::tcp_v4;
use mgre_ebpf::host::world::{PeerSpec, PortSpec, World, station};
use mgre_user::datapath::fdb::Fdb;
use mgre_user::datapath::load::{Loaded, PORT_PROGRAM, classifier};

use super::kernel::{DROP, Kernel, REDIRECT, in_namespace, interfaces, test_run};

const READERS: u64 = 2;
/// For how long, and for how long at most where the machine is busy.
const ENOUGH: Duration = Duration::from_secs(2);
const TOO_LONG: Duration = Duration::from_secs(30);
/// The interface of port 0.
const PORT: u32 = 10;
const SEGMENT: u16 = 1;
const PEERS: u32 = 64;

fn network() -> World {
    let endpoint = |id: u32| [198, 51, 100, 100 + id as u8];
    World {
        ports: vec![PortSpec::new(0, SEGMENT.into())],
        peers: (0..PEERS).map(|id| PeerSpec::new(id, 2, endpoint(id), Some(7))).collect(),
        segments: vec![(SEGMENT.into(), 1), (2, 1)],
        ..World::default()
    }
}

/// The peer that a frame was sent to; none if it was dropped.
fn peer_of(program: &SchedClassifier, frame: &[u8], out: &mut [u8]) -> Option<u32> {
    /// Where the outer destination ends.
    const END: usize = 14 + 20;
    let ran = test_run(program, PORT, 0, frame, out).unwrap();
    match ran.return_value.cast_signed() {
        DROP => None,
        REDIRECT => Some(u32::from(out[END - 1]) - 100),
        action => panic!("action {action}"),
    }
}

/// A number that looks random.
fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    (*state >> 33) as u32
}

fn mac(number: u32) -> MacAddr {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddr([2, 7, a, b, c, d])
}

/// Has readers look these addresses up until the writer is done. The first one is
/// there when they begin, and is peer 0's. `right` says whether an address may have this peer, or none. Returns how many
/// lookups there were, and how many of them found a peer.
fn hammer(
    capacity: u32,
    addresses: impl FnOnce(FdbHash) -> Vec<MacAddr>,
    right: impl Fn(usize, Option<u32>) -> bool + Sync,
    write: impl FnOnce(&mut Fdb, &[FdbKey]),
) -> (u64, u64) {
    let world = network();
    interfaces(&world);
    let mut kernel = Kernel::with_room(&world, capacity);
    let hash = kernel.loaded.fdb_hash();
    let Loaded { programs, tables, .. } = &mut kernel.loaded;
    let program: &SchedClassifier = classifier(programs, PORT_PROGRAM).unwrap();
    let mut fdb = Fdb::new(tables.fdb.take().unwrap(), hash, capacity);
    fdb.set(FdbKey::new(SEGMENT, station(1)), Target::port(0), None).unwrap();

    let addresses = addresses(hash);
    let keys: Vec<FdbKey> = addresses.iter().map(|mac| FdbKey::new(SEGMENT, *mac)).collect();
    fdb.set(keys[0], Target::adjacency(0), Some(1)).unwrap();
    let frames: Vec<Vec<u8>> = addresses.iter().map(|mac| tcp_v4(*mac, station(1), 10)).collect();
    let stop = AtomicBool::new(false);
    let read = |seed: u64| {
        let (mut state, mut lookups, mut hits) = (seed, 0, 0);
        let mut out = vec![0; 512];
        while !stop.load(Ordering::Relaxed) {
            let number = random(&mut state) as usize % frames.len();
            let peer = peer_of(program, &frames[number], &mut out);
            assert!(right(number, peer), "address {number} is at {peer:?}");
            lookups += 1;
            hits += u64::from(peer.is_some());
        }
        (lookups, hits)
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|seed| scope.spawn(move || read(seed))).collect();
        // The readers end however the writer does.
        let written = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| write(&mut fdb, &keys)));
        stop.store(true, Ordering::Relaxed);
        let counts: Vec<(u64, u64)> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        written.unwrap();
        counts.into_iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
    })
}

#[test]
fn no_program_takes_a_target_of_another_address() {
    const ADDRESSES: u32 = PEERS / 2;
    const LEAST_WRITES: u64 = 10_000;
    in_namespace(|| {
        let (mut set, mut moved, mut removed) = (0_u64, 0_u64, 0_u64);
        let (lookups, hits) = hammer(
            1000,
            |_| (0..ADDRESSES).map(mac).collect(),
            |number, peer| peer.is_none_or(|peer| peer as usize / 2 == number),
            |fdb, keys| {
                let (mut state, start) = (99, Instant::now());
                let due = |writes| start.elapsed() < ENOUGH || writes < LEAST_WRITES;
                while due(set + moved + removed) && start.elapsed() < TOO_LONG {
                    fdb.wake(start.elapsed().as_secs() as u32);
                    for _ in 0..64 {
                        let number = random(&mut state) % ADDRESSES;
                        let key = keys[number as usize];
                        let target = Target::adjacency(2 * number + random(&mut state) % 2);
                        let known = fdb.find(key).is_some();
                        if known && random(&mut state).is_multiple_of(2) {
                            fdb.remove(key).unwrap();
                            removed += 1;
                        } else {
                            fdb.set(key, target, Some(1)).unwrap();
                            *(if known { &mut moved } else { &mut set }) += 1;
                        }
                    }
                }
            },
        );
        println!("{lookups} lookups, {hits} hits; {set} inserted, {moved} moved, {removed} removed");
        assert!(hits > 1000 && lookups - hits > 1000, "{hits} of {lookups}");
        assert!(set.min(moved).min(removed) > LEAST_WRITES / 8, "{set} {moved} {removed}");
    });
}

/// Addresses by their home bucket and their second one.
fn by_buckets(hash: FdbHash) -> HashMap<[u32; 2], Vec<MacAddr>> {
    let mut found: HashMap<_, Vec<_>> = HashMap::new();
    for number in 0..16_384 {
        let key = FdbKey::new(SEGMENT, mac(number));
        found.entry([hash.bucket(key, 0), hash.bucket(key, 1)]).or_default().push(mac(number));
    }
    found
}

/// One address that can be in either of two buckets, and for each of these a crowd
/// with the other end elsewhere, which fills it and the stash.
fn one_and_two_crowds(hash: FdbHash) -> Vec<MacAddr> {
    let sender = [0, 1].map(|choice| hash.bucket(FdbKey::new(SEGMENT, station(1)), choice));
    let buckets: Vec<u32> = (0..hash.buckets()).filter(|bucket| !sender.contains(bucket)).collect();
    let found = by_buckets(hash);
    let take = |home: usize, second: usize, count: usize| {
        let addresses = &found[&[buckets[home], buckets[second]]];
        addresses[..count].to_vec()
    };
    [take(0, 1, 1), take(0, 2, 3 * SLOTS), take(1, 3, 3 * SLOTS)].concat()
}

#[test]
fn no_program_misses_an_address_whose_entry_moves() {
    const LEAST_ROUNDS: u64 = 4;
    in_namespace(|| {
        let mut rounds = 0;
        let (lookups, hits) = hammer(
            32,
            one_and_two_crowds,
            |number, peer| if number == 0 { peer == Some(0) } else { peer != Some(0) },
            |fdb, keys| {
                let start = Instant::now();
                let due = |rounds| start.elapsed() < ENOUGH || rounds < LEAST_ROUNDS;
                while due(rounds) && start.elapsed() < TOO_LONG {
                    for crowd in keys[1..].chunks(3 * SLOTS) {
                        // With the first address, that is one more than there are slots: it has moved.
                        for key in crowd {
                            fdb.set(*key, Target::adjacency(1), Some(1)).unwrap();
                        }
                        for key in crowd {
                            fdb.remove(*key).unwrap();
                        }
                    }
                    rounds += 1;
                }
            },
        );
        println!("{lookups} lookups, {hits} hits; {} moves", 2 * rounds);
        assert!(hits > 1000 && rounds >= LEAST_ROUNDS, "{hits} hits, {rounds} rounds");
    });
}
