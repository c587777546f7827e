//! The text read back by a strict parser of the exposition format.

use std::collections::{BTreeMap, BTreeSet};

use bytemuck::Zeroable;

use super::*;

type Labels = BTreeMap<String, String>;

/// Families by name: their type, and their samples by labels.
type Families = BTreeMap<String, (String, BTreeMap<Labels, f64>)>;

fn parse(text: &str) -> Families {
    assert!(text.ends_with('\n') && !text.contains("\n\n"));
    let mut families = Families::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let (name, help) =
            line.strip_prefix("# HELP ").expect("help first").split_once(' ').expect("a help text");
        assert!(!help.is_empty());
        let kind =
            lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} "))).expect("type second");
        assert!(matches!(kind, "counter" | "gauge"));
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        let mut samples = BTreeMap::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (labels, value) = sample(line.strip_prefix(name).expect("a sample of the family"));
            assert!(samples.insert(labels, value).is_none(), "twice: {line}");
        }
        assert!(families.insert(name.to_owned(), (kind.to_owned(), samples)).is_none(), "{name} twice");
    }
    families
}

fn sample(rest: &str) -> (Labels, f64) {
    let mut labels = Labels::new();
    let mut rest = rest;
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            let (name, after) = inner.split_once("=\"").expect("a label");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            let (value, after) = unescape(after);
            assert!(labels.insert(name.to_owned(), value).is_none());
            match after.strip_prefix(',') {
                Some(more) => inner = more,
                None => break rest = after.strip_prefix('}').expect("a closing brace"),
            }
        }
    }
    (labels, rest.strip_prefix(' ').expect("a blank").parse().expect("a number"))
}

fn unescape(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return (value, &text[i + 1..]),
            '\\' => match chars.next().expect("an escape").1 {
                'n' => value.push('\n'),
                c @ ('\\' | '"') => value.push(c),
                c => panic!("bad escape {c}"),
            },
            c => value.push(c),
        }
    }
    panic!("no closing quote in {text}");
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn snapshot() -> Numbers<'static> {
    let mut drops = Drops::zeroed();
    drops.packets[Direction::Receive as usize][DropReason::UnknownEndpoint.index()] = 5;
    let traffic =
        TrafficSum { receive_packets: 1, receive_bytes: 100, transmit_packets: 2, transmit_bytes: u64::MAX };
    let adjacency =
        AdjacencyNumbers { peer: "b", segment: "lan", traffic, drops: None, zeros: true, mtu_bytes: 1458 };
    Numbers {
        version: "0.1.0",
        peers: vec![PeerNumbers {
            peer: "b",
            remote: "odd \"name\"\\\n",
            up: true,
            last_seen_timestamp_seconds: Some(1_700_000_000.5),
        }],
        adjacencies: vec![adjacency.clone(), AdjacencyNumbers { segment: "dmz", ..adjacency }],
        ports: vec![PortNumbers { port: "veth0".into(), segment: "lan".into(), up: false, traffic, drops }],
        segments: vec![SegmentNumbers { segment: "lan".into(), fdb_learned: 3, ..Default::default() }],
        interfaces: vec![InterfaceNumbers {
            interface: "eth0".into(),
            hook: "tcx".into(),
            mode: "auto".into(),
        }],
        underlays: vec![("eth0".into(), true)],
        drops,
        fdb_capacity: 131_072,
        fdb_events: 9,
        fdb_events_lost: 0,
        netlink_losses: 0,
        slow_path: Counters::default(),
    }
}

#[test]
fn every_series_of_the_contract() {
    let families = parse(&render(&snapshot()));
    let wanted: [(&str, &[&str]); 30] = [
        ("mgre_peer_receive_packets_total", &["peer", "segment"]),
        ("mgre_peer_receive_bytes_total", &["peer", "segment"]),
        ("mgre_peer_transmit_packets_total", &["peer", "segment"]),
        ("mgre_peer_transmit_bytes_total", &["peer", "segment"]),
        ("mgre_peer_drops_total", &["peer", "segment", "direction", "reason"]),
        ("mgre_drops_total", &["direction", "reason"]),
        ("mgre_peer_info", &["peer", "remote"]),
        ("mgre_peer_up", &["peer"]),
        ("mgre_peer_last_seen_timestamp_seconds", &["peer"]),
        ("mgre_peer_mtu_bytes", &["peer", "segment"]),
        ("mgre_fdb_entries", &["segment", "type"]),
        ("mgre_fdb_capacity", &[]),
        ("mgre_fdb_moves_total", &["segment"]),
        ("mgre_fdb_held", &["segment"]),
        ("mgre_fdb_holds_total", &["segment"]),
        ("mgre_fdb_events_total", &[]),
        ("mgre_fdb_events_lost_total", &[]),
        ("mgre_netlink_losses_total", &[]),
        ("mgre_flood_frames_total", &["segment"]),
        ("mgre_flood_copies_total", &["segment"]),
        ("mgre_flood_lost_total", &["segment"]),
        ("mgre_neighbor_entries", &["segment"]),
        ("mgre_neighbor_replies_total", &["segment", "protocol"]),
        ("mgre_neighbor_duplicates_total", &["segment"]),
        ("mgre_slow_path_packets_total", &["event"]),
        ("mgre_interface_mode", &["interface", "hook", "mode"]),
        ("mgre_underlay_up", &["interface"]),
        ("mgre_build_info", &["version"]),
        ("mgre_port_receive_packets_total", &["port", "segment"]),
        ("mgre_port_drops_total", &["port", "segment", "direction", "reason"]),
    ];
    for (name, label_names) in wanted {
        let (_, samples) = families.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        let wanted: BTreeSet<_> = label_names.iter().copied().collect();
        assert!(!samples.is_empty(), "{name}");
        assert!(
            samples.keys().all(|labels| labels.keys().map(String::as_str).eq(wanted.iter().copied())),
            "{name}"
        );
    }
}

#[test]
fn values_and_escapes() {
    let numbers = snapshot();
    (0..2).for_each(|_| numbers.slow_path.count(Happening::IcmpSent));
    let families = parse(&render(&numbers));
    let value = |name: &str, pairs: &[(&str, &str)]| families[name].1[&labels(pairs)];
    assert_eq!(value("mgre_peer_info", &[("peer", "b"), ("remote", "odd \"name\"\\\n")]), 1.0);
    assert_eq!(value("mgre_peer_last_seen_timestamp_seconds", &[("peer", "b")]), 1_700_000_000.5);
    assert_eq!(value("mgre_peer_receive_bytes_total", &[("peer", "b"), ("segment", "dmz")]), 100.0);
    assert_eq!(value("mgre_fdb_entries", &[("segment", "lan"), ("type", "learned")]), 3.0);
    assert_eq!(value("mgre_drops_total", &[("direction", "receive"), ("reason", "unknown_endpoint")]), 5.0);
    assert_eq!(value("mgre_slow_path_packets_total", &[("event", "icmp_sent")]), 2.0);
    assert_eq!(value("mgre_port_up", &[("port", "veth0"), ("segment", "lan")]), 0.0);
    // Every reason is there in both directions, at zero.
    assert_eq!(families["mgre_drops_total"].1.len(), 2 * DropReason::ALL.len());
    assert_eq!(families["mgre_peer_drops_total"].1.len(), 2 * 2 * DropReason::ALL.len());
    assert!(families["mgre_peer_drops_total"].1.values().all(|value| *value == 0.0));
}

#[test]
fn counters_are_exact() {
    // A reader takes them for 64-bit floats, but what is written is the whole number.
    assert!(
        render(&snapshot())
            .contains("mgre_peer_transmit_bytes_total{peer=\"b\",segment=\"lan\"} 18446744073709551615\n")
    );
}

#[test]
fn adjacencies_beyond_the_first_have_no_series_for_what_was_not_dropped() {
    let mut numbers = snapshot();
    let mut drops = Drops::zeroed();
    drops.packets[Direction::Transmit as usize][DropReason::NoNextHop.index()] = 3;
    let [adjacency, _] = &numbers.adjacencies[..] else { panic!("two of them") };
    let of = |segment, zeros| AdjacencyNumbers { segment, zeros, drops: None, ..adjacency.clone() };
    numbers.adjacencies = vec![of("s1", true), of("s2", false), of("s3", false)];
    numbers.adjacencies[2].drops = Some(Box::new(drops));
    let families = parse(&render(&numbers));
    let series = &families["mgre_peer_drops_total"].1;
    assert_eq!(series.len(), 2 * DropReason::ALL.len() + 1, "all of the first, none of the second");
    let wanted = labels(&[
        ("peer", "b"),
        ("segment", "s3"),
        ("direction", "transmit"),
        ("reason", DropReason::NoNextHop.name()),
    ]);
    assert_eq!(series.get(&wanted), Some(&3.0));
    assert_eq!(families["mgre_peer_receive_packets_total"].1.len(), 3);
}
