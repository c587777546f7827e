//! What the buckets, the keys and the hash do.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn keys_come_apart_as_they_were_made(segment in 1u16.., mac: [u8; 6], behind: [u8; 2]) {
        let key = FdbKey::new(segment, MacAddr(mac));
        prop_assert_eq!((key.segment(), key.mac()), (segment, MacAddr(mac)));
        prop_assert_ne!(key, FdbKey::EMPTY);
        let [a, b, c, d, e, f] = mac;
        let load = u64::from_ne_bytes([a, b, c, d, e, f, behind[0], behind[1]]);
        prop_assert_eq!(FdbKey::from_load(segment, load), key);
    }

    #[test]
    fn what_is_inserted_is_found_and_nothing_else(
        keys in proptest::collection::hash_set(1u64.., 1..40), absent in 1u64..,
    ) {
        let hash = FdbHash { shift: hash_shift(16), multipliers: [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f] };
        let buckets: Vec<Bucket> = (0..16).map(|_| Bucket::default()).collect();
        let get = |i: u32| buckets.get(i as usize);
        let mut stored = Vec::new();
        for (i, &key) in keys.iter().enumerate() {
            let key = FdbKey(key);
            let free = (0..2).flat_map(|c| &buckets[hash.bucket(key, c) as usize].slots)
                .find(|slot| slot.holds(FdbKey::EMPTY));
            if let Some(slot) = free {
                slot.insert(key, Target::port(i as u32), 1);
                stored.push((key, Target::port(i as u32)));
            }
        }
        for (key, target) in &stored {
            prop_assert_eq!(hash.find(*key, get).map(Slot::target), Some(*target));
        }
        if !keys.contains(&absent) {
            prop_assert!(hash.find(FdbKey(absent), get).is_none());
        }
        for (key, _) in stored {
            hash.find(key, get).expect("stored").clear();
            prop_assert!(hash.find(key, get).is_none());
        }
    }
}

#[test]
fn static_entries_keep_their_age() {
    let slot = Slot::default();
    slot.insert(FdbKey(1), Target::port(1), SEEN_STATIC);
    slot.touch(7);
    assert_eq!(slot.seen(), SEEN_STATIC);
    slot.retarget(Target::port(2), 3);
    slot.touch(7);
    assert_eq!((slot.seen(), slot.target()), (7, Target::port(2)));
}

/// The datapath looks at the age and then stores it; meanwhile the entry may become fixed.
#[test]
fn an_age_that_comes_late_unfixes_nothing() {
    let slot = Slot::default();
    slot.insert(FdbKey(1), Target::port(1), 1);
    slot.retarget(Target::port(2), SEEN_STATIC);
    slot.seen.store(7, Ordering::Relaxed);
    assert_eq!((slot.seen(), slot.target(), slot.binding().is_fixed()), (SEEN_STATIC, Target::port(2), true));
}

#[test]
fn a_bucket_stays_marked_whatever_its_slots_do() {
    let bucket = Bucket::default();
    bucket.set_overflowed(true);
    for slot in &bucket.slots {
        slot.insert(FdbKey(1), Target::adjacency(262_143), SEEN_STATIC);
        assert_eq!((slot.target(), slot.binding().is_fixed()), (Target::adjacency(262_143), true));
        slot.retarget(Target::port(1), 3);
        assert_eq!((slot.target(), slot.seen()), (Target::port(1), 3));
        slot.clear();
        assert!(slot.target().is_none());
    }
    assert!(bucket.overflowed());
    bucket.set_overflowed(false);
    assert!(!bucket.overflowed());
}

/// Addresses of one vendor, and one address in many segments, are the usual case.
#[test]
fn every_part_of_a_key_tells_buckets_apart() {
    const BUCKETS: u32 = 1024;
    let hash =
        FdbHash { shift: hash_shift(BUCKETS), multipliers: [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f] };
    let spread = |key: &dyn Fn(u16) -> FdbKey| {
        let mut hit = [[false; BUCKETS as usize]; 2];
        for i in 0..BUCKETS as u16 {
            for (choice, hit) in hit.iter_mut().enumerate() {
                hit[hash.bucket(key(i), choice) as usize] = true;
            }
        }
        hit.map(|hit| hit.iter().filter(|hit| **hit).count())
    };
    let bytes = |i: u16| i.to_be_bytes();
    let by_segment = spread(&|i| FdbKey::new(1 + i, MacAddr([2, 0, 0, 0, 0, 1])));
    let by_end = spread(&|i| FdbKey::new(1, MacAddr([2, 0, 0, 0, bytes(i)[0], bytes(i)[1]])));
    let by_start = spread(&|i| FdbKey::new(1, MacAddr([2, bytes(i)[0], bytes(i)[1], 0, 0, 1])));
    // At random, 63 in 100 buckets would be hit.
    for hit in [by_segment, by_end, by_start].as_flattened() {
        assert!(*hit > 550, "{by_segment:?} {by_end:?} {by_start:?}");
    }
}

#[test]
fn bucket_numbers() {
    assert_eq!((hash_shift(16), hash_shift(65_536)), (60, 48));
    assert_eq!(buckets_for(131_072), 65_536);
    assert_eq!(buckets_for(1), 16);
    assert_eq!((table_len(16), table_len(buckets_for(MAX_ENTRIES))), (17, 524_288 + 32_768));
    let hash = FdbHash { shift: hash_shift(65_536), multipliers: [1, 1] };
    assert_eq!((hash.buckets(), hash.stash(0), hash.stash(65_535)), (65_536, 65_536, table_len(65_536) - 1));
}
