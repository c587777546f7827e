//! Options of peers and segments, VLANs, underlays of two IP versions.

use super::*;

pub(super) fn key(key: u32) -> SegmentSettings {
    SegmentSettings { key: Some(Some(key)), ..Default::default() }
}

fn vsid(vsid: u32) -> SegmentSettings {
    SegmentSettings { vsid: Some(Some(vsid)), ..Default::default() }
}

/// 0 to 0xfff and 0xffffff; and an id has 24 bits.
#[test]
fn rfc_7637_reserved_subnets_are_refused() {
    for reserved in [0, 1, 0xfff, 0xff_ffff, 0x100_0000] {
        let (kind, text) = fails(Change::AddSegment { name: "x".into(), settings: vsid(reserved) });
        assert!(kind == ErrorKind::Invalid && text.contains("RFC 7637 reserves"), "{text}");
    }
}

#[test]
fn errors_of_virtual_subnets() {
    let add = |settings| fails(Change::AddSegment { name: "x".into(), settings });
    assert!(add(vsid(5000)).1.starts_with("segment \"virtual\" already has VSID 5000"));
    // Whatever the flow id.
    for looks_like in [5000 << 8, 5000 << 8 | 255] {
        let (kind, text) = add(key(looks_like));
        assert!(kind == ErrorKind::Conflict && text.contains("already has VSID 5000"), "{text}");
    }
    let both = SegmentSettings { key: Some(Some(1)), ..vsid(6000) };
    assert_eq!(add(both), (ErrorKind::Invalid, "a segment has a key or a VSID, not both".into()));

    let ids = Ids::default();
    let change = |settings| {
        let state = sample().apply(Change::SetSegment { name: "virtual".into(), settings }, &ids);
        let segment = state.expect("applies").segments["virtual"].clone();
        (segment.key, segment.vsid)
    };
    assert_eq!(change(key(9)), (Some(9), None), "a key takes the place of a VSID");
    assert_eq!(change(vsid(6000)), (None, Some(6000)));
    let neither = fails(Change::SetSegment {
        name: "virtual".into(),
        settings: SegmentSettings { vsid: Some(None), ..Default::default() },
    });
    assert!(neither.1.contains("already has no key"), "{}", neither.1);
}

#[test]
fn nvgre_has_neither_checksum_nor_sequence_number() {
    let ids = Ids::default();
    for (settings, option) in [
        (PeerSettings { csum: Some(true), ..Default::default() }, "checksums (csum)"),
        (PeerSettings { seq: Some(true), ..Default::default() }, "sequence numbers (seq)"),
    ] {
        let mut new = peer("192.0.2.3", &["virtual"]);
        (new.csum, new.seq) = (settings.csum, settings.seq);
        let (kind, text) = fails(Change::AddPeer { name: "c".into(), settings: new });
        let wanted = format!("peer \"c\" cannot have {option} in segment \"virtual\"");
        assert!(kind == ErrorKind::Conflict && text.starts_with(&wanted), "{text}");
        assert!(text.contains("RFC 7637 3.2"));
        // Nor does a segment become one in which a peer has them.
        let has = sample().apply(Change::SetPeer { name: "b".into(), settings }, &ids).expect("applies");
        let error = has.apply(Change::SetSegment { name: "blue".into(), settings: vsid(6000) }, &ids);
        assert!(error.expect_err("refused").to_string().contains(option));
    }
}

#[test]
fn every_option_of_a_peer_can_be_changed() {
    let settings = PeerSettings {
        remote: Some("2001:db8::2".into()),
        segments: Some(vec!["plain".into()]),
        ttl: Some(9),
        tos: Some(Tos::Inherit),
        df: Some(Df::Inherit),
        mtu: Some(Mtu::Fixed(1300)),
        max_macs: Some(5),
        csum: Some(true),
        seq: Some(true),
        encap: Some(Encap::GreUdp),
        storm_limit: Some(StormLimit::Frames(500)),
    };
    let change = Change::SetPeer { name: "b".into(), settings };
    let state = sample().apply(change.clone(), &Ids::default()).expect("applies");
    let wanted = Peer {
        remote: "2001:db8::2".into(),
        segments: [("plain".into(), sample().peers["b"].segments["plain"])].into(),
        ttl: 9,
        tos: Tos::Inherit,
        df: Df::Inherit,
        mtu: Mtu::Fixed(1300),
        max_macs: 5,
        csum: true,
        seq: true,
        encap: Encap::GreUdp,
        storm_limit: StormLimit::Frames(500),
    };
    assert_eq!(*state.peers["b"], wanted);
    let toml = Document::from_state(&state).to_toml().expect("serializes");
    for line in [
        "tos = \"inherit\"",
        "df = \"inherit\"",
        "csum = true",
        "seq = true",
        "encap = \"gre-udp\"",
        "storm_limit = 500",
    ] {
        assert!(toml.contains(line), "{toml}");
    }
    assert_eq!(state.apply(change, &Ids::default()).expect("applies"), state);
}

#[test]
fn an_underlay_has_an_address_of_each_version() {
    let ids = Ids::default();
    let ip = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    let add = |local: &str, mode| Change::AddUnderlay {
        interface: "eth1".into(),
        settings: UnderlaySettings { mode, ..UnderlaySettings::at(ip(local)) },
    };
    let del = |local: &str| Change::DelUnderlay {
        interface: "eth1".into(),
        local: local.parse().ok(),
        force: false,
    };
    let one = sample().apply(add("2001:db8::9", Some(Mode::Tc)), &ids).expect("applies");
    let both = one.apply(add("192.0.2.9", None), &ids).expect("applies");
    assert_eq!((both.underlays["eth1"].locals.iter().count(), both.underlays["eth1"].mode), (2, Mode::Tc));
    let error = both.apply(add("192.0.2.10", None), &ids).expect_err("a second IPv4 address");
    assert_eq!(
        error.to_string(),
        "underlay eth1: an underlay has one local address for each IP version, not both 192.0.2.9 and \
         192.0.2.10; to change it, use mgre underlay set"
    );
    let error = both.apply(add("192.0.2.9", None), &ids).expect_err("the same again");
    assert!(error.to_string().starts_with("underlay \"eth1\" exists already"), "{error}");
    let error = one.apply(add("192.0.2.9", Some(Mode::Native)), &ids).expect_err("another mode");
    assert!(error.to_string().starts_with("underlay eth1 has mode tc"), "{error}");
    assert_eq!(both.apply(del("192.0.2.9"), &ids).expect("applies"), one);
    let error = one.apply(del("192.0.2.9"), &ids).expect_err("not there");
    assert_eq!(error.to_string(), "there is no local address \"192.0.2.9\" (there is: 2001:db8::9)");
    assert_eq!(one.apply(del("2001:db8::9"), &ids).expect("the last"), sample());
}

#[test]
fn an_underlay_is_changed_in_place() {
    let ids = Ids::default();
    let ip = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    let set = |settings| Change::SetUnderlay { interface: "eth1".into(), settings, force: false };
    let add =
        Change::AddUnderlay { interface: "eth1".into(), settings: UnderlaySettings::at(ip("192.0.2.9")) };
    let before = sample().apply(add.clone(), &ids).expect("applies");
    let pass = UnderlaySettings { foreign_gre: Some(ForeignGre::Pass), ..UnderlaySettings::default() };
    let passes = before.apply(set(pass), &ids).expect("applies");
    let underlay = &passes.underlays["eth1"];
    assert_eq!((underlay.foreign_gre, underlay.mode), (ForeignGre::Pass, Mode::Auto));
    assert_eq!(underlay.locals, before.underlays["eth1"].locals);
    assert_eq!(differences(&before, &passes), ["underlay eth1 changed"]);
    let tc = UnderlaySettings { mode: Some(Mode::Tc), ..UnderlaySettings::at(ip("2001:db8::9")) };
    let moved = passes.apply(set(tc), &ids).expect("applies");
    let underlay = &moved.underlays["eth1"];
    assert_eq!((underlay.foreign_gre, underlay.mode), (ForeignGre::Pass, Mode::Tc), "what is not said stays");
    assert_eq!(underlay.locals, ip("2001:db8::9").into());

    let toml = Document::from_state(&moved).to_toml().expect("TOML");
    assert!(toml.contains("foreign_gre = \"pass\""), "{toml}");
    let again = sample().apply_all(Document::from_state(&moved).into_changes(), &ids).expect("applies");
    assert_eq!(again, moved);

    let error = sample().apply(set(pass), &ids).expect_err("no such underlay");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let remote = UnderlaySettings::at(ip("192.0.2.2"));
    let error = before.apply(set(remote), &ids).expect_err("a peer's");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let Change::AddUnderlay { interface, .. } = add else { unreachable!() };
    let settings =
        UnderlaySettings { foreign_gre: Some(ForeignGre::Drop), ..UnderlaySettings::at(ip("2001:db8::9")) };
    let error = passes.apply(Change::AddUnderlay { interface, settings }, &ids).expect_err("another setting");
    assert_eq!(error.to_string(), "underlay eth1 has foreign GRE pass; to change it, use mgre underlay set");
}

#[test]
fn several_ports_on_one_interface() {
    let ids = Ids::default();
    let add = |segment: &str, vlan, mode| Change::AddPort {
        segment: segment.into(),
        interface: "trunk0".into(),
        vlan,
        mode,
        settings: PortSettings::default(),
    };
    let all = [
        add("plain", Some(10), Mode::Tc),
        add("blue", Some(20), Mode::Tc),
        add("plain", Some(20 * 10), Mode::Tc),
        add("blue", None, Mode::Tc),
    ];
    let state = sample().apply_all(all, &ids).expect("applies");
    let names: Vec<&str> = state.ports_on("trunk0").map(|(name, _)| name).collect();
    assert_eq!(names, ["trunk0", "trunk0.10", "trunk0.20", "trunk0.200"]);
    let error = state.apply(add("blue", Some(10), Mode::Tc), &ids).expect_err("taken");
    assert!(error.to_string().starts_with("trunk0.10 is already a port of segment \"plain\""), "{error}");
    let error = state.apply(add("blue", Some(30), Mode::Auto), &ids).expect_err("another mode");
    assert_eq!(error.to_string(), "trunk0 is attached to with mode tc for port trunk0; say --mode tc");
    let host = HostInterface::default();
    let change = Change::CreatePort {
        segment: "blue".into(),
        interface: "trunk0.10".into(),
        host,
        settings: PortSettings::default(),
    };
    assert!(state.apply(change, &ids).is_err(), "the name is taken");
    let left = state.apply(Change::DelPort { name: "trunk0.10".into() }, &ids).expect("applies");
    assert_eq!(left.ports_on("trunk0").count(), 3);
    let document = Document::from_state(&state);
    let again = sample().apply_all(document.into_changes(), &ids).expect("applies");
    assert_eq!(again.ports_on("trunk0").count(), 4);
}

/// What a daemon wrote that knew no IPv6 and none of the later options.
#[test]
fn older_states_are_read() {
    let old = r#"{
        "version": 1,
        "underlays": {"eth0": {"local": "192.0.2.1", "mode": "auto"}},
        "segments": {"lan": {"id": 1, "key": 7, "mtu": "auto", "aging_seconds": 300, "max_macs": 8192}},
        "ports": {"veth0": {"id": 0, "segment": "lan", "mode": "auto", "created": null}},
        "peers": {"b": {"remote": "192.0.2.2", "segments": {"lan": 3}, "ttl": 64, "tos": 184, "df": "unset",
                        "mtu": 1400, "max_macs": 1024}},
        "fdb": []
    }"#;
    let state = State::from_json(old).expect("reads");
    assert_eq!(state.underlays["eth0"].locals, Locals::from(std::net::Ipv4Addr::new(192, 0, 2, 1)));
    let peer = &state.peers["b"];
    assert_eq!((peer.tos, peer.csum, peer.seq, peer.encap), (Tos::Fixed(184), false, false, Encap::Gre));
    let (segment, port) = (&state.segments["lan"], &state.ports["veth0"]);
    assert_eq!((segment.wire_key(), segment.clamp_mss, port.vlan), (Key::Plain(7), false, None));
    assert!(!segment.suppress_neighbors);
    // It is written as this version's, and what is not used is not written.
    let json = serde_json::from_str::<serde_json::Value>(&state.to_json().expect("writes")).expect("JSON");
    let mut same: serde_json::Value = serde_json::from_str(old).expect("JSON");
    same["version"] = crate::model::state::STATE_VERSION.into();
    assert_eq!(json, same);
}

#[test]
fn what_may_be_flooded_can_be_changed_and_is_exported() {
    let ids = Ids::default();
    let settings = |storm_limit| PortSettings { storm_limit: Some(storm_limit) };
    let set_port = |limit| Change::SetPort { name: "veth0".into(), settings: settings(limit) };
    let set_segment = |text: &str| {
        let link_local = Some(text.parse().expect("parses"));
        let settings = SegmentSettings { link_local, ..SegmentSettings::default() };
        Change::SetSegment { name: "blue".into(), settings }
    };
    let state = sample().apply_all([set_port(StormLimit::Frames(200)), set_segment("stp,lldp")], &ids);
    let state = state.expect("applies");
    assert_eq!(state.ports["veth0"].storm_limit, StormLimit::Frames(200));
    let document = Document::from_state(&state);
    let toml = document.to_toml().expect("serializes");
    assert!(toml.contains("storm_limit = 200") && toml.contains("link_local = \"stp,lldp\""), "{toml}");
    let again = State::default().apply_all(document.into_changes(), &ids).expect("applies");
    assert_eq!(Document::from_state(&again).to_toml().expect("serializes"), toml);
    let usual = state.apply_all([set_port(StormLimit::Off), set_segment("forward")], &ids).expect("applies");
    assert_eq!(usual, sample());
    let missing = Change::SetPort { name: "veth9".into(), settings: settings(StormLimit::Off) };
    assert_eq!(state.apply(missing, &ids).expect_err("refused").kind(), ErrorKind::NotFound);
}
