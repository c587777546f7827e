//! Properties of the model under random changes, and the errors one by one.

use std::collections::BTreeSet;

use mgre_common::table::MAX_SEGMENT_ADJACENCIES;
use mgre_common::template::Key;
use mgre_common::wire::MacAddr;
use proptest::prelude::*;

use super::*;

mod options;

fn segment_settings() -> impl Strategy<Value = SegmentSettings> {
    let key = prop_oneof![Just(None), Just(Some(None)), (0..4u32).prop_map(|key| Some(Some(key)))];
    let mtu =
        prop_oneof![Just(None), Just(Some(Mtu::Auto)), (60..9000u32).prop_map(|mtu| Some(Mtu::Fixed(mtu)))];
    // One key has a VSID's bytes, and one VSID is reserved.
    let vsid = prop_oneof![
        4 => Just(None),
        1 => Just(Some(None)),
        3 => prop_oneof![Just(0x1000), Just(0x1001), Just(7)].prop_map(|vsid| Some(Some(vsid))),
    ];
    let key = prop_oneof![4 => key, 1 => Just(Some(Some(0x10_0007)))];
    let number = |below: u32| proptest::option::of(0..below);
    (key, vsid, mtu, number(600), number(9000), any::<[Option<bool>; 3]>()).prop_map(
        |(key, vsid, mtu, aging_seconds, max_macs, [hub, clamp_mss, suppress_neighbors])| SegmentSettings {
            key,
            vsid,
            mtu,
            aging_seconds,
            max_macs,
            hub,
            clamp_mss,
            suppress_neighbors,
            link_local: None,
        },
    )
}

fn segment() -> impl Strategy<Value = String> {
    "[abc]"
}

fn interface() -> impl Strategy<Value = String> {
    "(eth|veth)[0-2]"
}

fn port() -> impl Strategy<Value = String> {
    "(eth|veth)[0-2](\\.[12])?"
}

fn local() -> impl Strategy<Value = std::net::IpAddr> {
    prop_oneof![
        (0..6u8).prop_map(|last| [192, 0, 2, last].into()),
        (0..4u16).prop_map(|last| [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into()),
    ]
}

fn remote() -> impl Strategy<Value = String> {
    prop_oneof![
        "192\\.0\\.2\\.[1-5]",
        "2001:(db8|DB8)::[1-3]",
        "hub[1-2]\\.example",
        Just("224.0.0.1".to_owned()),
        Just("fe80::1".to_owned()),
    ]
}

fn peer_settings() -> impl Strategy<Value = PeerSettings> {
    let some = proptest::option::weighted(0.8, remote());
    let segments = proptest::option::weighted(0.8, prop::collection::vec(segment(), 0..3));
    let df = proptest::option::of(prop_oneof![Just(Df::Set), Just(Df::Unset), Just(Df::Inherit)]);
    let tos = proptest::option::of(prop_oneof![3 => (0..6u8).prop_map(Tos::Fixed), 1 => Just(Tos::Inherit)]);
    let encap = proptest::option::of(prop_oneof![Just(Encap::Gre), Just(Encap::GreUdp)]);
    let booleans = any::<[Option<bool>; 2]>();
    (some, segments, proptest::option::of(0..4u8), tos, df, encap, booleans).prop_map(
        |(remote, segments, ttl, tos, df, encap, [csum, seq])| PeerSettings {
            remote,
            segments,
            ttl,
            tos,
            df,
            mtu: None,
            max_macs: None,
            csum,
            seq,
            encap,
            storm_limit: None,
        },
    )
}

fn target() -> impl Strategy<Value = StaticTarget> {
    prop_oneof!["p[0-4]".prop_map(StaticTarget::Peer), port().prop_map(StaticTarget::Port)]
}

fn mac() -> impl Strategy<Value = MacAddr> {
    (0..3u8, 0..2u8).prop_map(|(last, first)| MacAddr([first, 0, 0, 0, 0, last]))
}

fn change() -> impl Strategy<Value = Change> {
    let host = || {
        let cidr = Cidr { address: [10, 0, 0, 1].into(), prefix: 24 };
        (any::<bool>(), proptest::option::of(mac())).prop_map(move |(address, mac)| HostInterface {
            addresses: if address { vec![cidr] } else { Vec::new() },
            mac,
        })
    };
    prop_oneof![
        (interface(), local()).prop_map(|(interface, local)| Change::AddUnderlay {
            interface,
            settings: UnderlaySettings::at(local),
        }),
        (interface(), proptest::option::of(local())).prop_map(|(interface, local)| Change::DelUnderlay {
            interface,
            local,
            force: false
        }),
        (segment(), segment_settings()).prop_map(|(name, settings)| Change::AddSegment { name, settings }),
        (segment(), segment_settings()).prop_map(|(name, settings)| Change::SetSegment { name, settings }),
        segment().prop_map(|name| Change::DelSegment { name }),
        (segment(), interface(), proptest::option::of(0..3u16)).prop_map(|(segment, interface, vlan)| {
            Change::AddPort { segment, interface, vlan, mode: Mode::Tc, settings: PortSettings::default() }
        }),
        (segment(), interface(), host()).prop_map(|(segment, interface, host)| Change::CreatePort {
            segment,
            interface,
            host,
            settings: PortSettings::default(),
        }),
        port().prop_map(|name| Change::DelPort { name }),
        ("p[0-4]", peer_settings()).prop_map(|(name, settings)| Change::AddPeer { name, settings }),
        ("p[0-4]", peer_settings()).prop_map(|(name, settings)| Change::SetPeer { name, settings }),
        "p[0-4]".prop_map(|name| Change::DelPeer { name }),
        (segment(), mac(), target()).prop_map(|(segment, mac, target)| Change::AddFdb {
            segment,
            mac,
            target
        }),
        (segment(), mac()).prop_map(|(segment, mac)| Change::DelFdb { segment, mac }),
    ]
}

/// A state that random changes lead to; those that cannot be are left out.
fn state() -> impl Strategy<Value = State> {
    prop::collection::vec(change(), 0..60).prop_map(|changes| {
        changes
            .into_iter()
            .fold(State::default(), |state, change| state.apply(change, &Ids::default()).unwrap_or(state))
    })
}

fn assert_sound(state: &State) {
    let unique = |ids: Vec<u32>| ids.iter().collect::<BTreeSet<_>>().len() == ids.len();
    assert!(unique(state.segments.values().map(|segment| segment.id.into()).collect()));
    assert!(unique(state.ports.values().map(|port| port.id).collect()));
    assert!(unique(state.adjacencies().map(|(id, ..)| id).collect()));
    assert!(state.segments.values().all(|segment| segment.id >= 1));
    let keys: BTreeSet<_> = state.segments.values().map(Segment::wire_key).collect();
    assert_eq!(keys.len(), state.segments.len(), "no two segments share a key");
    for segment in state.segments.values() {
        assert!(segment.vsid.is_none() || segment.key.is_none());
        if let Some(vsid) = segment.vsid {
            assert!((0x1000..0xff_ffff).contains(&vsid), "{vsid} is reserved");
            let like = |key: &Key| matches!(key, Key::Plain(key) if key >> 8 == vsid);
            assert!(!keys.iter().any(like), "no key looks like a VSID");
        }
    }
    for (name, port) in &state.ports {
        let interface = port.interface(name);
        assert!(state.segments.contains_key(&port.segment) && !state.underlays.contains_key(interface));
        assert_eq!(*name, port.vlan.map_or(interface.to_owned(), |vlan| format!("{interface}.{vlan}")));
        let alone = port.created.is_some();
        assert!(!alone || state.ports_on(interface).count() == 1, "an interface of the host has one port");
    }
    let mut endpoints = BTreeSet::new();
    for (_, _, peer, segment) in state.adjacencies() {
        let nvgre = state.segments[segment].vsid.is_some();
        assert!(!nvgre || !(peer.csum || peer.seq), "RFC 7637 3.2");
        let canonical = check::canonical(&peer.remote);
        assert!(endpoints.insert((canonical, segment.to_owned())), "{} twice", peer.remote);
    }
    for peer in state.peers.values() {
        assert!(!peer.segments.is_empty() && peer.ttl > 0);
        let own = |remote| state.underlays.values().any(|underlay| underlay.locals.contains(remote));
        assert!(!peer.remote_address().is_some_and(own));
    }
    for (name, target) in &state.fdb {
        assert!(name.mac.is_station());
        assert!(match target {
            StaticTarget::Peer(peer) => state.peers[peer.as_str()].segments.contains_key(&name.segment),
            StaticTarget::Port(port) => state.ports[port].segment == name.segment,
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn changes_keep_a_state_sound(changes in prop::collection::vec(change(), 0..80)) {
        let ids = Ids::default();
        let mut state = State::default();
        for change in changes {
            let before = state.clone();
            match state.apply(change, &ids) {
                Ok(next) => {
                    assert_sound(&next);
                    let mut replayed = before.clone();
                    let record = Record::between(&before, &next);
                    replayed.replay(record.clone());
                    prop_assert_eq!(&replayed, &next);
                    replayed.replay(record);
                    prop_assert_eq!(&replayed, &next, "replayed twice");
                    prop_assert_eq!(&State::from_json(&next.to_json().expect("JSON")).expect("reads"), &next);
                    // What stays keeps its ids.
                    for (name, segment) in &next.segments {
                        prop_assert!(before.segments.get(name).is_none_or(|old| old.id == segment.id));
                    }
                    for (name, peer) in &next.peers {
                        for (segment, id) in &peer.segments {
                            let old = before.peers.get(name).and_then(|old| old.segments.get(segment));
                            prop_assert!(old.is_none_or(|old| old == id));
                        }
                    }
                    state = next;
                }
                Err(error) => {
                    prop_assert_eq!(&state, &before);
                    prop_assert!(!error.to_string().contains('\n'));
                }
            }
        }
    }

    #[test]
    fn a_saved_state_is_the_state(state in state()) {
        let json = state.to_json().expect("serializes");
        prop_assert_eq!(State::from_json(&json).expect("loads"), state);
    }

    #[test]
    fn an_exported_document_changes_nothing(state in state()) {
        let toml = Document::from_state(&state).to_toml().expect("serializes");
        let document = Document::from_toml(&toml).expect("parses");
        prop_assert_eq!(&document, &Document::from_state(&state));
        let json = serde_json::to_string(&document).expect("serializes");
        prop_assert_eq!(&serde_json::from_str::<Document>(&json).expect("parses"), &document);
        let next = state.apply_all(document.into_changes(), &Ids::default()).expect("applies");
        prop_assert_eq!(next, state);
    }

    #[test]
    fn a_document_makes_any_state_equal_to_it(from in state(), to in state()) {
        let document = Document::from_state(&to);
        let next = from.apply_all(document.clone().into_changes(), &Ids::default()).expect("applies");
        assert_sound(&next);
        prop_assert_eq!(Document::from_state(&next), document);
        for (name, segment) in &next.segments {
            prop_assert!(from.segments.get(name).is_none_or(|old| old.id == segment.id));
        }
        prop_assert_eq!(differences(&from, &next).is_empty(), from == next);
    }
}

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
