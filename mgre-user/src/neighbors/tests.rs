use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;

const HERE: Target = Target::port(1);
const THERE: Target = Target::adjacency(1);

fn mac(number: u32) -> MacAddr {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddr([2, 0, a, b, c, d])
}

fn address(number: u32) -> NeighborKey {
    NeighborKey::new(1, IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)))
}

fn claim(address: NeighborKey, host: u32, source: Target) -> Claim {
    Claim { key: address, binding: Binding::new(mac(host), 0), source }
}

#[test]
fn who_says_so_first_is_believed() {
    let mut all = Neighbors::default();
    assert_eq!(all.hear(&claim(address(1), 1, HERE), 5), Decision::Learn);
    assert_eq!(all.hear(&claim(address(1), 1, HERE), 6), Decision::Renew);
    assert_eq!((all.len(), all.count_in(1), all.count_in(2)), (1, 1, 0));
    let router = Claim { binding: Binding::new(mac(1), 1), ..claim(address(1), 1, HERE) };
    assert_eq!(all.hear(&router, 7), Decision::Renew);
    assert_eq!(all.iter().next().map(|(_, known)| known.binding.flags()), Some(1));
    assert_eq!(all.of_host(router.host()), [address(1)]);
    all.remove(&address(1));
    assert!(all.is_empty() && all.of_host(router.host()).is_empty() && all.count_in(1) == 0);
}

#[test]
fn an_address_moves_to_another_host() {
    let mut all = Neighbors::default();
    all.hear(&claim(address(1), 1, HERE), 5);
    assert_eq!(all.hear(&claim(address(1), 2, THERE), 6), Decision::Move(mac(1)));
    assert_eq!(all.hear(&claim(address(1), 2, THERE), 6), Decision::Renew);
    assert!(all.of_host(claim(address(1), 1, HERE).host()).is_empty());
    assert_eq!(all.by_source.get(&HERE), None);
    // And back, much later: nothing is held against it.
    assert_eq!(all.hear(&claim(address(1), 1, HERE), 60), Decision::Move(mac(2)));
    assert_eq!(all.hear(&claim(address(1), 2, THERE), 120), Decision::Move(mac(1)));
}

#[test]
fn an_address_of_two_hosts_is_nobodys_while_that_goes_on() {
    let mut all = Neighbors::default();
    let mut says = |host, now| all.hear(&claim(address(1), host, HERE), now);
    assert_eq!(says(1, 5), Decision::Learn);
    assert_eq!(says(2, 6), Decision::Move(mac(1)));
    assert_eq!(says(1, 7), Decision::Move(mac(2)));
    assert_eq!(says(2, 8), Decision::Duplicate(mac(1)));
    for now in 9..40 {
        assert_eq!(says(1 + now % 2, now), Decision::Wait);
    }
    assert!(all.iter().all(|(_, known)| known.is_duplicate()));
    // One of them alone does not prolong it.
    assert_eq!(all.hear(&claim(address(1), 2, HERE), 41), Decision::Wait);
    assert_eq!(all.hear(&claim(address(1), 2, HERE), 60), Decision::Wait);
    assert!(all.settle(39 + DUPLICATE_SECONDS - 1).is_empty());
    assert_eq!(all.settle(39 + DUPLICATE_SECONDS), [address(1)]);
    all.remove(&address(1));
    assert!(all.settle(100).is_empty());
    assert_eq!(all.hear(&claim(address(1), 2, HERE), 100), Decision::Learn);
}

#[test]
fn one_host_has_so_many_addresses_and_no_more() {
    let mut all = Neighbors::default();
    for number in 0..PER_MAC as u32 {
        assert_eq!(all.hear(&claim(address(number), 1, HERE), 1), Decision::Learn);
    }
    assert_eq!(all.hear(&claim(address(1000), 1, HERE), 1), Decision::Refuse);
    // Nor by taking another's.
    assert_eq!(all.hear(&claim(address(1000), 2, HERE), 1), Decision::Learn);
    assert_eq!(all.hear(&claim(address(1000), 1, HERE), 1), Decision::Refuse);
    assert_eq!(all.of_host(claim(address(1000), 2, HERE).host()), [address(1000)]);
}

/// A source that invents hosts and addresses takes its share, and nobody else's.
#[test]
fn one_source_has_so_many_and_no_more() {
    let mut all = Neighbors::default();
    all.hear(&claim(address(u32::from(u16::MAX) + 1), 9, HERE), 1);
    for number in 0..1_000_000 {
        let expected = if number < PER_SOURCE { Decision::Learn } else { Decision::Refuse };
        assert_eq!(all.hear(&claim(address(100_000 + number), 100_000 + number, THERE), 1), expected);
    }
    assert_eq!(all.len(), PER_SOURCE as usize + 1);
    assert!(all.due.len() <= all.len());
    assert_eq!(all.hear(&claim(address(2), 2, HERE), 1), Decision::Learn);
}

#[test]
fn the_whole_table_has_an_end() {
    let mut all = Neighbors::default();
    for number in 0..MAX_NEIGHBORS + 10 {
        let source = Target::adjacency(number / PER_SOURCE);
        let learned = all.hear(&claim(address(number), number, source), 1) == Decision::Learn;
        assert_eq!(learned, number < MAX_NEIGHBORS);
    }
    // Who has an address may change all the same: it takes no room.
    let other = claim(address(0), MAX_NEIGHBORS, Target::adjacency(100));
    assert_eq!(all.hear(&other, 1), Decision::Move(mac(0)));
    assert_eq!(all.len(), MAX_NEIGHBORS as usize);
}

#[test]
fn what_is_not_confirmed_ages() {
    let mut all = Neighbors::default();
    all.hear(&claim(address(1), 1, HERE), 10);
    assert_eq!(all.next_due(10 + LOOK_SECONDS - 1), None);
    let now = 10 + LOOK_SECONDS;
    assert_eq!(all.next_due(now), Some(address(1)));
    assert_eq!(all.next_due(now), None);
    // Confirmed five seconds ago, and good for ten.
    assert!(all.stays(address(1), now - 5, 10, now));
    assert_eq!((all.next_due(now + 4), all.next_due(now + 5)), (None, Some(address(1))));
    assert!(!all.stays(address(1), now - 5, 10, now + 5));
    // A long time is looked at in pieces.
    assert!(all.stays(address(1), now, 100_000, now));
    assert_eq!(all.next_due(now + LOOK_SECONDS), Some(address(1)));
}

#[test]
fn versions_and_segments_are_told_apart() {
    let mut all = Neighbors::default();
    let v6 = NeighborKey::new(1, IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)));
    for key in [address(1), NeighborKey { segment: 2, ..address(1) }, v6] {
        assert_eq!(all.hear(&claim(key, 1, HERE), 1), Decision::Learn);
    }
    assert_eq!((all.in_segment(1).len(), all.in_segment(2).len()), (2, 1));
}
