//! The errors, one by one.

use mgre_common::table::MAX_SEGMENT_ADJACENCIES;
use mgre_common::template::Key;
use mgre_common::wire::MacAddr;

use super::*;

mod options;
mod properties;

/// Two segments, an underlay, a port and a peer.
fn sample() -> State {
    let text = r#"
        [[underlay]]
        interface = "eth0"
        local = ["192.0.2.1", "2001:db8::1"]

        [[segment]]
        name = "blue"
        key = 7

        [[segment]]
        name = "virtual"
        vsid = 5000

        [[segment]]
        name = "plain"

        [[port]]
        interface = "veth0"
        segment = "blue"

        [[port]]
        interface = "host0"
        segment = "blue"
        create = true
        addresses = ["10.1.0.1/24", "fd00::1/64"]
        mac = "02:00:00:00:00:01"

        [[peer]]
        name = "b"
        remote = "192.0.2.2"
        segments = ["blue", "plain"]
        ttl = 20

        [[fdb]]
        segment = "blue"
        mac = "02:00:00:00:00:02"
        peer = "b"
    "#;
    let document = Document::from_toml(text).expect("parses");
    State::default().apply_all(document.into_changes(), &Ids::default()).expect("applies")
}

fn fails(change: Change) -> (ErrorKind, String) {
    let error = sample().apply(change, &Ids::default()).expect_err("must fail");
    (error.kind(), error.to_string())
}

fn peer(remote: &str, segments: &[&str]) -> PeerSettings {
    PeerSettings {
        remote: Some(remote.to_owned()),
        segments: Some(segments.iter().map(|&segment| segment.to_owned()).collect()),
        ..PeerSettings::default()
    }
}

fn add_peer(name: &str, remote: &str, segments: &[&str]) -> Change {
    Change::AddPeer { name: name.to_owned(), settings: peer(remote, segments) }
}

#[test]
fn errors_of_segments() {
    let add = |settings| fails(Change::AddSegment { name: "x".into(), settings });
    let (kind, text) = add(options::key(7));
    assert_eq!(kind, ErrorKind::Conflict);
    assert_eq!(text, "segment \"blue\" already has key 7: packets of the two could not be told apart");
    let (_, text) = add(SegmentSettings::default());
    assert!(text.starts_with("segment \"plain\" already has no key"), "{text}");
    let (_, text) = fails(Change::DelSegment { name: "blue".into() });
    assert_eq!(text, "segment \"blue\" still has ports host0, veth0 and peer b; remove them first");
    let (kind, text) = fails(Change::DelSegment { name: "bleu".into() });
    assert_eq!(
        (kind, text.as_str()),
        (ErrorKind::NotFound, "there is no segment \"bleu\" (there is: blue, plain, virtual)")
    );
    let settings = SegmentSettings { aging_seconds: Some(0), ..Default::default() };
    assert_eq!(fails(Change::SetSegment { name: "blue".into(), settings }).0, ErrorKind::Invalid);
}

#[test]
fn errors_of_interfaces() {
    let add = |interface: &str, vlan| Change::AddPort {
        segment: "plain".into(),
        interface: interface.into(),
        vlan,
        mode: Mode::Auto,
        settings: PortSettings::default(),
    };
    let (_, text) = fails(add("veth0", None));
    assert!(text.starts_with("veth0 is already a port of segment \"blue\""), "{text}");
    assert_eq!(fails(add("eth0", None)).1, "eth0 is an underlay, it cannot be a port too");
    assert_eq!(fails(add("eth0", Some(5))).1, "eth0 is an underlay, it cannot be a port too");
    assert_eq!(fails(add("a b", None)).0, ErrorKind::Invalid);
    assert_eq!(fails(add("veth0", Some(4095))).1, "VLAN 4095 is out of range: 1 to 4094");
    assert!(fails(add("host0", Some(5))).1.contains("made for this host"));
    let underlay = |interface: &str, local: &str| Change::AddUnderlay {
        interface: interface.into(),
        settings: UnderlaySettings::at(local.parse::<std::net::IpAddr>().expect("an address")),
    };
    assert_eq!(fails(underlay("veth0", "192.0.2.9")).1, "veth0 is a port, it cannot be an underlay too");
    for taken in ["192.0.2.2", "2001:db8::7"] {
        let settings = PeerSettings { remote: Some("2001:DB8:0::7".into()), ..Default::default() };
        let change = Change::SetPeer { name: "b".into(), settings };
        let state = if taken.contains(':') { sample().apply(change, &Ids::default()) } else { Ok(sample()) };
        let error = state.expect("a state").apply(underlay("eth1", taken), &Ids::default());
        assert_eq!(error.expect_err("a peer's").kind(), ErrorKind::Conflict, "{taken}");
    }
    for (local, why) in [
        ("fe80::1", "link-local"),
        ("::1", "loopback"),
        ("::", "unspecified"),
        ("ff02::1", "multicast"),
        ("::ffff:192.0.2.9", "IPv4-mapped"),
    ] {
        let (kind, text) = fails(underlay("eth1", local));
        assert!(kind == ErrorKind::Invalid && text.contains(why), "{text}");
    }
    let missing = Change::DelUnderlay { interface: "eth9".into(), local: None, force: false };
    assert_eq!(fails(missing).0, ErrorKind::NotFound);
}

#[test]
fn errors_of_peers() {
    assert_eq!(
        fails(add_peer("b", "192.0.2.2", &["blue"])).1,
        "peer \"b\" exists already; to change it, use peer set"
    );
    let (_, text) = fails(add_peer("c", "192.0.2.2", &["plain"]));
    assert_eq!(text, "peer \"b\" in segment \"plain\" already has the remote 192.0.2.2");
    let (_, text) = fails(add_peer("c", "192.0.2.1", &["blue"]));
    assert!(text.starts_with("192.0.2.1 is this host's own endpoint on underlay eth0"), "{text}");
    let (_, text) = fails(add_peer("c", "2001:DB8:0::1", &["blue"]));
    assert!(text.starts_with("2001:db8::1 is this host's own endpoint on underlay eth0"), "{text}");
    for (remote, why) in [
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "zone"),
        ("::ffff:192.0.2.9", "IPv4-mapped"),
    ] {
        let (kind, text) = fails(add_peer("c", remote, &["blue"]));
        assert!(kind == ErrorKind::Invalid && text.contains(why), "{text}");
    }
    let six = sample().apply(add_peer("c", "2001:db8::3", &["blue"]), &Ids::default()).expect("applies");
    let error = six.apply(add_peer("d", "2001:0DB8::0:3", &["blue"]), &Ids::default()).expect_err("taken");
    assert_eq!(error.to_string(), "peer \"c\" in segment \"blue\" already has the remote 2001:db8::3");
    assert_eq!(fails(add_peer("c", "192.0.2.3", &[])).1, "a peer needs at least one segment");
    assert_eq!(fails(add_peer("c", "192.0.2.3", &["red"])).0, ErrorKind::NotFound);
}

#[test]
fn errors_of_static_entries() {
    let add = |segment: &str, last, target| Change::AddFdb {
        segment: segment.into(),
        mac: MacAddr([2, 0, 0, 0, 0, last]),
        target,
    };
    assert_eq!(fails(add("blue", 2, StaticTarget::Peer("b".into()))).0, ErrorKind::Conflict);
    let (_, text) = fails(add("plain", 3, StaticTarget::Port("veth0".into())));
    assert_eq!(text, "port \"veth0\" is not in segment \"plain\"");
    let group = Change::AddFdb {
        segment: "blue".into(),
        mac: MacAddr::BROADCAST,
        target: StaticTarget::Peer("b".into()),
    };
    assert_eq!(fails(group).0, ErrorKind::Invalid);
    assert_eq!(
        fails(Change::DelFdb { segment: "blue".into(), mac: MacAddr([2, 0, 0, 0, 0, 9]) }).0,
        ErrorKind::NotFound
    );
}

#[test]
fn static_entries_go_with_what_they_point_at() {
    let ids = Ids::default();
    let settings = PeerSettings { segments: Some(vec!["plain".into()]), ..Default::default() };
    let left = sample().apply(Change::SetPeer { name: "b".into(), settings }, &ids).expect("applies");
    assert!(left.fdb.is_empty());
    assert_eq!(left.peers["b"].segments["plain"], sample().peers["b"].segments["plain"]);
    let gone = sample().apply(Change::DelPeer { name: "b".into() }, &ids).expect("applies");
    assert!(gone.fdb.is_empty());
    assert_eq!(differences(&sample(), &gone), ["peer b removed", "fdb blue 02:00:00:00:00:02 removed"]);
}

#[test]
fn freed_ids_rest() {
    let state = sample();
    let freed: imbl::OrdSet<u32> = state.peers["b"].segments.values().copied().collect();
    let resting = Ids { resting_adjacencies: freed.clone(), ..Ids::default() };
    let again = vec![Change::DelPeer { name: "b".into() }, add_peer("c", "192.0.2.2", &["blue", "plain"])];
    for (start, ids, changes) in [
        (state.clone(), Ids::default(), again),
        (
            state.apply(Change::DelPeer { name: "b".into() }, &Ids::default()).expect("applies"),
            resting.clone(),
            vec![add_peer("c", "192.0.2.2", &["blue", "plain"])],
        ),
    ] {
        let next = start.apply_all(changes, &ids).expect("applies");
        assert!(next.peers["c"].segments.values().all(|id| !freed.contains(id)));
    }
    let tight = Ids { adjacency_capacity: 2, ..resting };
    let start = state.apply(Change::DelPeer { name: "b".into() }, &tight).expect("applies");
    let error = start.apply(add_peer("c", "192.0.2.2", &["blue"]), &tight).expect_err("all rest");
    assert_eq!(error, ModelError::Resting { what: "adjacency" });
    let full = state.apply(add_peer("c", "192.0.2.3", &["blue"]), &tight).expect_err("no room");
    assert!(matches!(full, ModelError::Full { limit: 2, .. }));
}

#[test]
fn keys_and_remotes_may_be_swapped_by_a_document() {
    let state = sample().apply(add_peer("c", "192.0.2.3", &["blue"]), &Ids::default()).expect("applies");
    let mut document = Document::from_state(&state);
    for segment in document.segments.iter_mut().filter(|segment| segment.vsid.is_none()) {
        segment.key = if segment.key.is_none() { Some(7) } else { None };
    }
    for peer in &mut document.peers {
        peer.remote = if peer.name == "b" { "192.0.2.3".into() } else { "192.0.2.2".into() };
    }
    let next = state.apply_all(document.into_changes(), &Ids::default()).expect("applies");
    assert_eq!(
        (next.segments["plain"].key, next.segments["plain"].id),
        (Some(7), state.segments["plain"].id)
    );
    assert_eq!(next.peers["b"].segments, state.peers["b"].segments);
    assert_eq!(next.peers["c"].remote, "192.0.2.2");
}

#[test]
fn limits_of_a_segment() {
    let ids = Ids::default();
    let ports = |count: u32| {
        (0..count).map(|i| Change::AddPort {
            segment: "plain".into(),
            interface: format!("p{i}"),
            vlan: None,
            mode: Mode::Auto,
            settings: PortSettings::default(),
        })
    };
    assert!(sample().apply_all(ports(64), &ids).is_ok());
    assert!(matches!(sample().apply_all(ports(65), &ids), Err(ModelError::Full { limit: 64, .. })));
    let peers =
        |count: u32| (0..count).map(|i| add_peer(&format!("n{i}"), &format!("h{i}.example"), &["plain"]));
    let room = Ids { adjacency_capacity: 2 * MAX_SEGMENT_ADJACENCIES, ..Ids::default() };
    // There is one already.
    assert!(sample().apply_all(peers(MAX_SEGMENT_ADJACENCIES - 1), &room).is_ok());
    let full = sample().apply_all(peers(MAX_SEGMENT_ADJACENCIES), &room);
    assert!(matches!(full, Err(ModelError::Full { limit: MAX_SEGMENT_ADJACENCIES, .. })));
}

#[test]
fn unknown_fields_are_refused() {
    for bad in [
        "[[peers]]\n",
        "[[segment]]\nname = \"a\"\nkay = 3",
        "[[fdb]]\nsegment = \"a\"\nmac = \"02:00:00:00:00:01\"",
        "[[fdb]]\nsegment = \"a\"\nmac = \"02:00:00:00:00:01\"\npeer = \"x\"\nport = \"y\"",
        "[[port]]\ninterface = \"a\"\nsegment = \"b\"\naddresses = [\"10.0.0.1/8\"]",
        "[[port]]\ninterface = \"a\"\nsegment = \"b\"\ncreate = true\nvlan = 5",
        "[[underlay]]\ninterface = \"a\"\nlocal = [\"192.0.2.1\", \"192.0.2.2\"]",
        "[[underlay]]\ninterface = \"a\"\nlocal = []",
    ] {
        assert!(Document::from_toml(bad).is_err(), "{bad}");
    }
    let error =
        Document::from_toml("\n[[segment]]\nname = \"a\"\nkay = 3").expect_err("an unknown key").to_string();
    assert!(error.starts_with("line 4: unknown field `kay`") && !error.contains('\n'), "{error}");
    let json = State::default().to_json().expect("serializes");
    assert!(State::from_json(&json.replace("\"fdb\"", "\"fbd\"")).is_err());
    let newer = State::from_json("{\"version\": 3, \"something\": 1}").expect_err("another version");
    assert_eq!(newer.to_string(), "the state has format version 3, this program reads versions 1 to 2");
}

#[test]
fn a_null_key_differs_from_none_given() {
    let read = |text| serde_json::from_str::<SegmentSettings>(text).expect("parses").key;
    assert_eq!(
        (read("{}"), read("{\"key\": null}"), read("{\"key\": 3}")),
        (None, Some(None), Some(Some(3)))
    );
}
