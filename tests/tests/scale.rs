//! Metrics, and as many of everything as there may be.

use std::{collections::BTreeMap, fmt::Write as _, fs, time::Duration};

use anyhow::Result;
use mgre_tests::{
    capture::{self, Capture},
    metrics::Metrics,
    packet::{BROADCAST, Gre, marked},
    skip::{skipped, tc_of_kernel},
    topology::{Layout, SEGMENT, Spoke, Underlay},
    traffic, wait,
};

/// Every metric that is promised.
const PROMISED: [&str; 18] = [
    "mgre_peer_receive_packets_total",
    "mgre_peer_receive_bytes_total",
    "mgre_peer_transmit_packets_total",
    "mgre_peer_transmit_bytes_total",
    "mgre_peer_drops_total",
    "mgre_drops_total",
    "mgre_peer_info",
    "mgre_peer_up",
    "mgre_peer_last_seen_timestamp_seconds",
    "mgre_peer_mtu_bytes",
    "mgre_fdb_entries",
    "mgre_fdb_capacity",
    "mgre_fdb_moves_total",
    "mgre_fdb_events_total",
    "mgre_fdb_events_lost_total",
    "mgre_flood_copies_total",
    "mgre_interface_mode",
    "mgre_build_info",
];

/// The reasons for which a frame can be dropped.
const REASONS: [&str; 24] = [
    "malformed",
    "bad_version",
    "routing_present",
    "reserved_bits",
    "checksum",
    "unknown_protocol",
    "unknown_endpoint",
    "key_mismatch",
    "sequence_old",
    "source_mac_invalid",
    "static_mac_moved",
    "mac_limit",
    "ecn",
    "ttl_expired",
    "too_big",
    "outer_fragment",
    "loop",
    "no_target",
    "no_next_hop",
    "storm_limit",
    "headroom",
    "redirect_failed",
    "internal",
    "inner_tag",
];

fn is_mac(text: &str) -> bool {
    let parts: Vec<_> = text.split([':', '-']).collect();
    parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok())
}

#[test]
fn metrics_are_all_there_from_the_start_and_grow() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let address = "127.0.0.1:9747".parse()?;
    let spokes = Layout { metrics: Some(address), ..Layout::new(2, Underlay::Routed) }.build()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let start = Metrics::over_tcp(&one.netns, address)?;
    for name in PROMISED {
        assert!(start.all(name, &[]).count() > 0, "no {name}");
        for comment in ["HELP", "TYPE"] {
            let line = format!("# {comment} {name} ");
            assert_eq!(start.text.matches(&line).count(), 1, "{line}");
        }
    }
    let adjacency = [("peer", "spoke2"), ("segment", SEGMENT)];
    for reason in REASONS {
        for direction in ["receive", "transmit"] {
            let labels = [adjacency[0], adjacency[1], ("direction", direction), ("reason", reason)];
            let value = start.get("mgre_peer_drops_total", &labels);
            // A host may have spoken before the peer was resolved.
            let early = reason == "no_next_hop" && value.is_some();
            assert!(value == Some(0.0) || early, "mgre_peer_drops_total, {direction} {reason}: {value:?}");
            let value = start.get("mgre_drops_total", &labels[2..]);
            assert!(value.is_some(), "mgre_drops_total, {direction} {reason}");
        }
    }
    assert_eq!(start.get("mgre_peer_info", &[("peer", "spoke2"), ("remote", "10.0.2.1")]), Some(1.0));
    assert_eq!(start.get("mgre_peer_up", &[("peer", "spoke2")]), Some(1.0));
    assert_eq!(start.get("mgre_peer_mtu_bytes", &adjacency), Some(1458.0));
    assert_eq!(start.get("mgre_fdb_capacity", &[]), Some(131_072.0));
    for interface in ["wan0", "lan0"] {
        let labels = [("interface", interface), ("hook", tc_of_kernel().name()), ("mode", "auto")];
        assert_eq!(start.get("mgre_interface_mode", &labels), Some(1.0), "{interface}");
    }

    let before = |name: &str| start.get(name, &adjacency).unwrap_or(f64::NAN);
    let pings = traffic::ping(&one.host, &["-c", "20", "-i", "0.01", "-s", "1000", &two.host_ip()])?;
    assert!(pings.all_came_back());
    let end = Metrics::over_tcp(&one.netns, address)?;
    for direction in ["receive", "transmit"] {
        let packets = format!("mgre_peer_{direction}_packets_total");
        let bytes = format!("mgre_peer_{direction}_bytes_total");
        let grown = |name: &str| end.get(name, &adjacency).unwrap_or(f64::NAN) - before(name);
        let (packets, bytes) = (grown(&packets), grown(&bytes));
        assert!((20.0..60.0).contains(&packets), "{packets} packets, {direction}");
        // 1000 bytes of data, ICMP, IPv4 and Ethernet.
        let least = 20.0 * 1042.0;
        assert!((least..least + 5000.0).contains(&bytes), "{bytes} bytes, {direction}");
    }
    let seen = end.get("mgre_peer_last_seen_timestamp_seconds", &[("peer", "spoke2")]).unwrap_or(0.0);
    #[expect(clippy::disallowed_methods, reason = "a time that is shown")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    assert!((now - seen).abs() < 5.0, "last seen at {seen}, now is {now}");
    assert_eq!(end.get("mgre_fdb_entries", &[("segment", SEGMENT), ("type", "learned")]), Some(2.0));
    let addresses =
        end.samples.iter().flat_map(|sample| sample.labels.values()).filter(|label| is_mac(label));
    assert_eq!(addresses.count(), 0, "MAC addresses are no labels");
    // A series is one series.
    let mut series = BTreeMap::new();
    for sample in &end.samples {
        *series.entry((sample.name.clone(), sample.labels.clone())).or_insert(0) += 1;
    }
    assert!(series.values().all(|count| *count == 1));
    // The same is on the socket.
    assert_eq!(Metrics::over_socket(&one.daemon.socket())?.samples.len(), end.samples.len());
    Ok(())
}

#[test]
fn each_of_many_peers_has_one_copy() -> Result<()> {
    const PEERS: usize = 448;
    if skipped() {
        return Ok(());
    }
    let spokes = Layout { configure: false, ..Layout::new(1, Underlay::Switched) }.build()?;
    let one = spokes.spoke(1);
    add_peers(one, PEERS)?;

    let at_wan = Capture::start(&one.netns, "wan0")?;
    let frame = marked(BROADCAST, one.host_mac(), "to all 448");
    capture::send(&one.host, "eth0", &[&frame])?;
    let copies = || {
        let frames = at_wan.frames();
        let packets = frames.iter().filter_map(|packet| Gre::parse(&packet.bytes));
        packets.filter(|gre| gre.inner == frame).map(|gre| gre.destination).collect::<Vec<_>>()
    };
    wait::until("every peer has its copy", wait::SOON, || Ok(copies().len() >= PEERS))?;
    std::thread::sleep(Duration::from_millis(200));
    let mut destinations = copies();
    assert_eq!(destinations.len(), PEERS);
    destinations.sort();
    destinations.dedup();
    assert_eq!(destinations.len(), PEERS, "some peer had two");

    Ok(())
}

/// Makes so many peers in one go, with neighbours that need not answer.
fn add_peers(one: &Spoke, count: usize) -> Result<()> {
    let remote = |number: usize| format!("10.50.{}.{}", number / 200, number % 200 + 1);
    let mut commands = "route add 10.50.0.0/16 dev wan0\n".to_owned();
    let mut document = format!(
        "[[underlay]]\ninterface = \"wan0\"\nlocal = \"10.0.0.1\"\n\n[[segment]]\nname = \"{SEGMENT}\"\nkey = 7\n\n\
         [[port]]\ninterface = \"lan0\"\nsegment = \"{SEGMENT}\"\n\n"
    );
    for number in 0..count {
        let remote = remote(number);
        writeln!(
            commands,
            "neigh add {remote} lladdr 02:00:00:01:{:02x}:{:02x} dev wan0",
            number / 200,
            number % 200
        )?;
        writeln!(
            document,
            "[[peer]]\nname = \"p{number}\"\nremote = \"{remote}\"\nsegments = [\"{SEGMENT}\"]\n"
        )?;
    }
    one.netns.ip(&commands)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("mgre.toml");
    fs::write(&file, document)?;
    one.daemon.mgre(&["apply", &file.to_string_lossy()])?;
    one.wait_up()?;
    Ok(())
}

/// More copies than the queue between two interfaces takes: every one is sent or counted as lost.
#[test]
fn a_segment_has_thousands_of_peers() -> Result<()> {
    const PEERS: usize = 4500;
    if skipped() {
        return Ok(());
    }
    let spokes = Layout { configure: false, ..Layout::new(1, Underlay::Switched) }.build()?;
    let one = spokes.spoke(1);
    add_peers(one, PEERS)?;
    // The host says nothing of its own to everyone.
    one.host.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
    std::thread::sleep(Duration::from_millis(300));
    let frame = marked(BROADCAST, one.host_mac(), "to thousands");
    let before = counts(one)?;
    capture::send(&one.host, "eth0", &[&frame])?;
    wait::until("the last peer has its copy", wait::SOON, || {
        Ok(counts(one)?.values().sum::<u64>() >= before.values().sum::<u64>() + PEERS as u64)
    })?;
    let after = counts(one)?;
    assert_eq!(after.len(), PEERS);
    for (peer, count) in after {
        assert_eq!(count - before[&peer], 1, "{peer}");
    }
    Ok(())
}

/// Frames sent to and lost for each peer.
fn counts(one: &Spoke) -> Result<BTreeMap<String, u64>> {
    let peers = one.daemon.list(&["peer", "show"])?;
    let number = |peer: &serde_json::Value, key: &str| peer[key].as_u64().unwrap_or_default();
    let name = |peer: &serde_json::Value| peer["name"].as_str().unwrap_or_default().to_owned();
    Ok(peers.iter().map(|peer| (name(peer), number(peer, "tx_packets") + number(peer, "drops"))).collect())
}
