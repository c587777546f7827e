//! Properties of the model under random changes.

use std::collections::BTreeSet;

use mgre_common::template::Key;
use mgre_common::wire::MacAddr;
use proptest::prelude::*;

use super::*;

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
