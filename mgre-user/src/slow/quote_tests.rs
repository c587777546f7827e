use mgre_common::template::{Encapsulation, Key, Outer};
use proptest::prelude::*;

use super::super::known::tests::{addresses, known, outer, rest};
use super::*;

fn with_checksum(mut message: Vec<u8>) -> Vec<u8> {
    message[2..4].fill(0);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// What a router says of a packet of `total` bytes that `outer` begins.
fn said(outer: &Outer, mtu: u32, total: u16, rest: &[u8]) -> Vec<u8> {
    let protocol = if outer.encapsulation == Encapsulation::GreUdp { 17 } else { 47 };
    let mut message;
    match (outer.source, outer.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            message = vec![3, 4, 0, 0, 0, 0];
            message.extend((mtu as u16).to_be_bytes());
            message.extend([0x45, 0]);
            message.extend(total.to_be_bytes());
            message.extend([0, 0, 0x40, 0, 63, protocol, 0, 0]);
            message.extend(source.octets());
            message.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            message = vec![2, 0, 0, 0];
            message.extend(mtu.to_be_bytes());
            message.extend([0x60, 0, 0, 0]);
            message.extend((total - 40).to_be_bytes());
            message.extend([protocol, 63]);
            message.extend(source.octets());
            message.extend(destination.octets());
        }
        _ => panic!("two families"),
    }
    message.extend(rest);
    with_checksum(message)
}

fn read(message: &[u8], known: &Known) -> Option<u32> {
    let said = if message[0] == 3 { read_v4(message, known) } else { read_v6(message, known) };
    match said? {
        Said::Narrow(narrow) => Some(narrow.mtu),
        Said::NoWay { .. } => None,
    }
}

/// An adjacency of every kind.
fn kinds() -> Vec<Outer> {
    let mut kinds = Vec::new();
    for v6 in [false, true] {
        let plain = outer(v6);
        kinds.extend([
            plain,
            Outer { key: Key::None, ..plain },
            Outer { key: Key::Vsid(0x1234), ..plain },
            Outer { checksum: true, sequence: true, ..plain },
            Outer { encapsulation: Encapsulation::GreUdp, ..plain },
        ]);
    }
    kinds
}

/// What stands behind the IP header of a packet: with a flow's port, where it has ports.
fn sent(outer: &Outer) -> Vec<u8> {
    let mut rest = rest(outer);
    if outer.encapsulation == Encapsulation::GreUdp {
        rest[..2].copy_from_slice(&60_000_u16.to_be_bytes());
    }
    rest.extend([0; 40]);
    rest
}

#[test]
fn what_quotes_our_packet_is_taken_whatever_is_quoted_beyond_eight_bytes() {
    for outer in kinds() {
        let known = known(&[outer]);
        let rest = sent(&outer);
        for length in [8, 12, 16, rest.len()] {
            assert_eq!(read(&said(&outer, 1400, 1500, &rest[..length]), &known), Some(1400), "{outer:?}");
        }
        let narrow = if outer.source.is_ipv4() { read_v4 } else { read_v6 };
        let message = said(&outer, 1400, 1500, &rest);
        assert!(
            matches!(narrow(&message, &known), Some(Said::Narrow(said)) if said.remote == outer.destination)
        );
        assert_eq!(read(&said(&outer, 1400, 1500, &rest[..7]), &known), None, "too little");
    }
}

#[test]
fn what_quotes_no_packet_of_ours_is_not_taken() {
    for outer in kinds() {
        let rest = sent(&outer);
        let known = known(&[outer]);
        let message = said(&outer, 1400, 1500, &rest);
        let ip = 8;
        let (addresses, protocol) = if outer.source.is_ipv4() { (12..20, 9) } else { (8..40, 6) };
        for at in addresses.chain([protocol]) {
            let mut other = message.clone();
            other[ip + at] ^= 1;
            assert_eq!(read(&with_checksum(other), &known), None, "{outer:?}: byte {at}");
        }
        // Another key, other flags, another protocol type.
        let other = Outer { key: Key::Plain(9), ..outer };
        assert_eq!(read(&said(&outer, 1400, 1500, &sent(&other)), &known), None, "{outer:?}");
        assert_eq!(read(&said(&outer, 1400, 1500, &[0; 60]), &known), None);
    }
}

#[test]
fn what_is_not_about_a_path_is_not_taken() {
    let (v4, v6) = (outer(false), outer(true));
    let known = known(&[v4, v6]);
    for kind in 0..=255 {
        for code in 0..=16 {
            let mut message = said(&v4, 1400, 1500, &sent(&v4));
            message[..2].copy_from_slice(&[kind, code]);
            assert_eq!(
                read_v4(&with_checksum(message), &known).is_some(),
                kind == 3 && [0, 1, 4].contains(&code)
            );
            let mut message = said(&v6, 1400, 1500, &sent(&v6));
            message[..2].copy_from_slice(&[kind, code]);
            assert_eq!(read_v6(&message, &known).is_some(), [(2, 0), (1, 0), (1, 3)].contains(&(kind, code)));
        }
    }
    let mut damaged = said(&v4, 1400, 1500, &sent(&v4));
    damaged[2] ^= 1;
    assert_eq!(read_v4(&damaged, &known), None, "a wrong checksum");
}

#[test]
fn a_packet_that_fits_is_not_too_big() {
    for outer in [outer(false), outer(true)] {
        let known = known(&[outer]);
        assert_eq!(read(&said(&outer, 1499, 1500, &sent(&outer)), &known), Some(1499));
        assert_eq!(read(&said(&outer, 1500, 1500, &sent(&outer)), &known), None);
    }
}

#[test]
fn routers_that_do_not_say_their_mtu() {
    // RFC 1191 7.1: the next plateau below the packet's length.
    let outer = outer(false);
    let known = known(&[outer]);
    for (total, mtu) in [(1500, 1492), (1492, 1006), (9000, 8166), (1000, 508)] {
        assert_eq!(read(&said(&outer, 0, total, &sent(&outer)), &known), Some(mtu));
    }
    assert_eq!(read(&said(&outer, 0, 68, &sent(&outer)), &known), None);
}

#[test]
fn fragments() {
    let (v4, v6) = (outer(false), outer(true));
    let known = known(&[v4, v6]);
    let mut later = said(&v4, 1400, 1500, &sent(&v4));
    later[8 + 7] = 1;
    assert_eq!(read_v4(&with_checksum(later), &known), None);
    for (offset, taken) in [(1, true), (8, false)] {
        let mut rest = vec![47, 0, 0, offset, 0, 0, 0, 9];
        rest.extend(sent(&v6));
        let mut message = said(&v6, 1400, 1500, &rest);
        message[8 + 6] = 44;
        assert_eq!(read_v6(&message, &known).is_some(), taken);
    }
}

#[test]
fn one_of_many_adjacencies_is_enough() {
    let many: Vec<Outer> = (0..100).map(|key| Outer { key: Key::Plain(key), ..outer(false) }).collect();
    let known = known(&many);
    for outer in &many {
        assert_eq!(read(&said(outer, 1400, 1500, &sent(outer)), &known), Some(1400));
    }
    let none = Outer { key: Key::Plain(100), ..outer(false) };
    assert_eq!(read(&said(&none, 1400, 1500, &sent(&none)), &known), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(mut bytes: Vec<u8>, v6: bool) {
        let known = known(&[outer(false), outer(true)]);
        read_v4(&bytes, &known);
        read_v6(&bytes, &known);
        let start = if v6 { [2, 0] } else { [3, 4] };
        if bytes.len() > 10 {
            bytes[..2].copy_from_slice(&start);
            bytes[8] = if v6 { 0x60 } else { 0x45 };
            read_v6(&bytes, &known);
            let (remote, local) = addresses(v6);
            known.is_peer(remote, local);
            read_v4(&with_checksum(bytes), &known);
        }
    }
}

#[test]
fn routers_that_have_no_way() {
    for outer in kinds() {
        let (known, v6) = (known(&[outer]), outer.destination.is_ipv6());
        let kind = if v6 { 1 } else { 3 };
        let says = |code: u8, total: u16| {
            let mut message = said(&outer, 0, total, &sent(&outer));
            message[..2].copy_from_slice(&[kind, code]);
            let message = with_checksum(message);
            if v6 { read_v6(&message, &known) } else { read_v4(&message, &known) }
        };
        let no_way = Some(Said::NoWay { remote: outer.destination });
        // Whatever the packet's length.
        assert_eq!([says(0, 100), says(0, 1500)], [no_way, no_way]);
        assert_eq!([says(if v6 { 3 } else { 1 }, 100), says(if v6 { 1 } else { 2 }, 100)], [no_way, None]);
        // Another's packet.
        let other = Outer { key: Key::Plain(0x7777), ..outer };
        let mut message = said(&other, 0, 100, &sent(&other));
        message[..2].copy_from_slice(&[kind, 0]);
        let message = with_checksum(message);
        let read = if v6 { read_v6(&message, &known) } else { read_v4(&message, &known) };
        assert_eq!(read, None);
    }
}
