//! What of the options of peers and segments reaches the tables.

use std::net::IpAddr;

use mgre_common::endpoint::{EndpointKey, endpoint_address, endpoint_kind};
use mgre_common::table::{OuterFamily, adjacency_flag, template_flag, template_option};
use mgre_common::wire::MacAddr;

use super::*;
use crate::model::{
    Change, Df, Encap, Ids, Mode, Mtu, PeerSettings, PortSettings, SegmentSettings, State, Tos,
    UnderlaySettings,
};
use crate::netlink::XdpFeatures;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn underlay(local: &str) -> Change {
    Change::AddUnderlay { interface: "wan0".into(), settings: UnderlaySettings::at(ip(local)) }
}

fn segment(name: &str, key: Option<u32>, vsid: Option<u32>) -> Change {
    let settings = SegmentSettings { key: Some(key), vsid: Some(vsid), ..SegmentSettings::default() };
    Change::AddSegment { name: name.into(), settings }
}

fn peer(name: &str, remote: &str, segment: &str, options: PeerSettings) -> Change {
    let (remote, segments) = (Some(remote.to_owned()), Some(vec![segment.to_owned()]));
    Change::AddPeer { name: name.into(), settings: PeerSettings { remote, segments, ..options } }
}

fn set(options: PeerSettings) -> Change {
    Change::SetPeer { name: "b".into(), settings: options }
}

/// A keyed segment and an NVGRE one, over both IP versions.
fn state(more: impl IntoIterator<Item = Change>) -> State {
    let changes = [
        underlay("192.0.2.1"),
        underlay("2001:db8::1"),
        segment("red", Some(7), None),
        segment("virtual", None, Some(5000)),
    ];
    let state = State::default().apply_all(changes, &Ids::default()).expect("a state");
    state.apply_all(more, &Ids::default()).expect("a state")
}

/// Everything is on the link and answers.
fn observed() -> Observed {
    let link = |index, name: &str| Link {
        index,
        name: name.to_owned(),
        mac: Some(MacAddr([2, 0, 0, 0, 0, index as u8])),
        mtu: 1500,
        up: true,
        running: true,
        ethernet: true,
        ..Link::default()
    };
    let remotes = ["192.0.2.2", "192.0.2.3", "2001:db8::2", "2001:db8::3"].map(ip);
    let neighbor = Neighbor { mac: Some(MacAddr([2, 0, 0, 0, 1, 1])), usable: true };
    Observed {
        links: [link(2, "wan0"), link(3, "lan0")].into_iter().map(|link| (link.index, link)).collect(),
        routes: remotes
            .iter()
            .map(|remote| (*remote, Some(Route { ifindex: 2, ..Route::default() })))
            .collect(),
        neighbors: remotes.iter().map(|remote| ((2, *remote), neighbor)).collect(),
        features: [(2_u32, XdpFeatures::from_bits(XdpFeatures::TARGET))].into_iter().collect(),
        ..Observed::default()
    }
}

fn only(compiled: &Compiled) -> AdjacencyRecord {
    *compiled.plan.adjacencies.values().next().expect("an adjacency")
}

fn mtu_of(compiled: &Compiled, state: &State, observed: &Observed, segment: &str) -> u32 {
    compiled.segment_mtu(state, observed, &state.segments[segment])
}

#[test]
fn a_remote_of_ipv6() {
    let state = state([peer("b", "2001:db8::2", "red", PeerSettings::default())]);
    let compiled = compile(&state, &observed());
    assert!(matches!(compiled.peers["b"].status, PeerStatus::Up(_)), "{:?}", compiled.peers["b"].status);
    assert_eq!(compiled.peers["b"].neighbor, Some((2, ip("2001:db8::2"))));
    let template = only(&compiled).template;
    assert_eq!(template.family, OuterFamily::Ipv6 as u8);
    assert_eq!(template.header[12..14], [0x86, 0xdd]);
    assert_eq!((template.header[14], template.header[20], template.header[21]), (0x60, 47, 64));
    assert_eq!(IpAddr::from(<[u8; 16]>::try_from(&template.header[22..38]).expect("16")), ip("2001:db8::1"));
    assert_eq!(IpAddr::from(<[u8; 16]>::try_from(&template.header[38..54]).expect("16")), ip("2001:db8::2"));
    assert_eq!((template.header_len, template.max_frame), (62, 1500 - 48));
    // Our endpoint of the other version is none that its packets may be for.
    let [remote, local] = [ip("2001:db8::2"), ip("2001:db8::1")].map(endpoint_address);
    let keyed = EndpointKey { remote, local, key: 7_u32.to_be(), kind: endpoint_kind::KEYED };
    let known = EndpointKey { remote, local, key: 0, kind: endpoint_kind::KNOWN };
    let keys: Vec<_> =
        compiled.plan.endpoints.keys().filter(|key| key.kind != endpoint_kind::LOCAL).collect();
    assert_eq!(keys, [&known, &keyed]);
    let locals = compiled.plan.endpoints.keys().filter(|key| key.kind == endpoint_kind::LOCAL);
    assert_eq!(locals.count(), 2);
}

#[test]
fn a_segment_with_peers_over_both_versions() {
    let six = peer("b", "2001:db8::2", "red", PeerSettings::default());
    let four = peer("c", "192.0.2.2", "red", PeerSettings::default());
    let (state, observed) = (state([six, four]), observed());
    let compiled = compile(&state, &observed);
    let frames: Vec<u32> =
        compiled.plan.adjacencies.values().map(|record| record.template.max_frame).collect();
    assert_eq!(frames, [1500 - 48, 1500 - 28]);
    assert_eq!(compiled.plan.floods[&state.segments["red"].id].adjacencies.len(), 2);
    assert_eq!(mtu_of(&compiled, &state, &observed, "red"), 1500 - 48 - 14, "what fits both");
    let without = state.apply(Change::DelPeer { name: "b".into() }, &Ids::default()).expect("a state");
    let next = compiled.next(&without, &observed);
    assert_eq!(mtu_of(&next, &without, &observed, "red"), 1500 - 28 - 14);
}

#[test]
fn an_underlay_without_an_endpoint_of_the_version() {
    let both = state([peer("b", "2001:db8::2", "red", PeerSettings::default())]);
    let gone = Change::DelUnderlay { interface: "wan0".into(), local: Some(ip("2001:db8::1")), force: false };
    let state = both.apply(gone, &Ids::default()).expect("a state");
    let compiled = compile(&state, &observed());
    let why = "wan0 has no IPv6 endpoint: mgre underlay add wan0 --local IP";
    assert_eq!(compiled.peers["b"].status, PeerStatus::Down(why.into()));
    assert_eq!(only(&compiled).template.flags & template_flag::ROUTED, 0);
}

#[test]
fn a_name_has_the_address_that_an_underlay_is_for() {
    let mut observed = observed();
    let (v4, v6) = ("192.0.2.2".parse().ok(), "2001:db8::2".parse().ok());
    observed.endpoints.insert("b.example".into(), Endpoints { v4, v6, v6_first: false });
    let both = state([peer("b", "b.example", "red", PeerSettings::default())]);
    let endpoint = |state: &State, observed: &Observed| compile(state, observed).peers["b"].endpoint;
    assert_eq!(endpoint(&both, &observed), Some(ip("192.0.2.2")), "IPv4 before IPv6");
    let without = |local: &str| {
        let gone = Change::DelUnderlay { interface: "wan0".into(), local: Some(ip(local)), force: false };
        both.apply(gone, &Ids::default()).expect("a state")
    };
    assert_eq!(endpoint(&without("192.0.2.1"), &observed), Some(ip("2001:db8::2")));
    assert_eq!(endpoint(&without("2001:db8::1"), &observed), Some(ip("192.0.2.2")));
    observed.endpoints.insert("b.example".into(), Endpoints { v4: None, v6, v6_first: true });
    assert_eq!(endpoint(&both, &observed), Some(ip("2001:db8::2")));
    // What changes with the underlays is worked out anew.
    let compiled = compile(&both, &observed);
    let next = compiled.next(&without("2001:db8::1"), &observed);
    assert!(matches!(next.peers["b"].status, PeerStatus::Down(_)));
}

#[test]
fn options_reach_the_template_and_the_flags() {
    let (start, observed) = (state([peer("b", "192.0.2.2", "red", PeerSettings::default())]), observed());
    let with = |options: PeerSettings| {
        let state = start.apply(set(options), &Ids::default()).expect("a state");
        only(&compile(&state, &observed))
    };
    let usual = only(&compile(&start, &observed));
    assert_eq!((usual.flags, usual.template.options, usual.template.header_len), (0, 0, 42));
    assert_ne!(usual.template.flags & template_flag::EXPRESS, 0);

    let some = PeerSettings::default;
    let cases = [
        (PeerSettings { csum: Some(true), ..some() }, 0, template_option::CHECKSUM, 46),
        (PeerSettings { seq: Some(true), ..some() }, adjacency_flag::SEQUENCE, template_option::SEQUENCE, 46),
        (
            PeerSettings { tos: Some(Tos::Inherit), ..some() },
            adjacency_flag::UNIFORM,
            template_option::INHERIT_TOS,
            42,
        ),
        (PeerSettings { df: Some(Df::Inherit), ..some() }, 0, template_option::INHERIT_DF, 42),
        (PeerSettings { encap: Some(Encap::GreUdp), ..some() }, 0, template_option::UDP, 50),
        (PeerSettings { tos: Some(Tos::Fixed(0xb8)), ..some() }, 0, 0, 42),
        (PeerSettings { ttl: Some(9), ..some() }, 0, 0, 42),
        (PeerSettings { df: Some(Df::Unset), ..some() }, 0, 0, 42),
    ];
    for (settings, flags, options, length) in cases {
        let record = with(settings.clone());
        let template = record.template;
        assert_eq!(
            (record.flags, template.options, template.header_len),
            (flags, options, length),
            "{settings:?}"
        );
        assert_eq!(template.max_frame, 1500 + 14 - u32::from(length), "{settings:?}");
        let express = template.flags & template_flag::EXPRESS != 0;
        assert_eq!(express, options & template_option::NOT_EXPRESS == 0, "{settings:?}");
        assert!(template != usual.template, "{settings:?}");
    }
    assert_eq!(with(PeerSettings { tos: Some(Tos::Fixed(0xb8)), ..some() }).template.header[15], 0xb8);
    assert_eq!(with(PeerSettings { ttl: Some(9), ..some() }).template.header[22], 9);
}

/// XDP puts no tag on, and redirects no frame of several pages to who does not say that it takes those.
#[test]
fn ports_that_xdp_redirects_to() {
    let port = |vlan| Change::AddPort {
        segment: "red".into(),
        interface: "lan0".into(),
        vlan,
        mode: Mode::Auto,
        settings: PortSettings::default(),
    };
    let express = |vlan: Option<u16>, mtu: u32, bits: u64| {
        let mut observed = observed();
        observed.links.get_mut(&3).expect("lan0").mtu = mtu;
        observed.features.insert(3, XdpFeatures::from_bits(bits));
        let compiled = compile(&state([port(vlan)]), &observed);
        let record = *compiled.plan.ports.values().next().expect("a port");
        assert_eq!(compiled.plan.devices.contains(&3), record.express);
        record.express
    };
    let (short, long) = (XdpFeatures::TARGET, XdpFeatures::TARGET | XdpFeatures::TARGET_OF_SEVERAL_PAGES);
    assert!(express(None, 1500, short) && !express(None, 1500, 0));
    assert!(!express(Some(10), 1500, short));
    assert!(!express(None, 9000, short) && express(None, 9000, long));
}

/// The endpoint index says how packets are taken, too.
#[test]
fn flags_of_an_adjacency_are_those_of_its_endpoints() {
    let (start, observed) = (state([peer("b", "192.0.2.2", "red", PeerSettings::default())]), observed());
    let before = compile(&start, &observed);
    let seq = PeerSettings { seq: Some(true), ..PeerSettings::default() };
    let state = start.apply(set(seq), &Ids::default()).expect("a state");
    let after = before.next(&state, &observed);
    let steps = diff(&before.plan, &after.plan);
    let owner = EndpointOwner { adjacency: 0, flags: adjacency_flag::SEQUENCE };
    assert!(steps.iter().any(|op| matches!(op, Op::SetEndpoint(_, to) if *to == owner)), "{steps:?}");
    assert!(steps.iter().any(|op| matches!(op, Op::SetAdjacency(0, record) if record.flags == owner.flags)));
}

#[test]
fn nvgre() {
    let state = state([peer("b", "192.0.2.2", "virtual", PeerSettings::default())]);
    let compiled = compile(&state, &observed());
    let record = only(&compiled);
    assert_eq!((record.flags, record.template.options), (adjacency_flag::NVGRE, template_option::FLOW_ID));
    assert_eq!(record.template.header[34..42], [0x20, 0, 0x65, 0x58, 0, 0x13, 0x88, 0]);
    let key = compiled.plan.endpoints.iter().find(|(key, _)| key.kind == endpoint_kind::VSID);
    let (key, owner) = key.expect("an endpoint");
    assert_eq!((key.key, owner.flags), ((5000_u32 << 8).to_be(), adjacency_flag::NVGRE));
}

#[test]
fn the_mtu_of_a_segment() {
    let (empty, mut observed) = (state([]), observed());
    let compiled = compile(&empty, &observed);
    // Nobody there: what would fit over either IP version.
    assert_eq!(mtu_of(&compiled, &empty, &observed, "red"), 1500 - 48 - 14);
    let unknown = compile(&State::default(), &Observed::default());
    let four = State::default().apply(segment("red", Some(7), None), &Ids::default()).expect("a state");
    assert_eq!(mtu_of(&unknown, &four, &Observed::default(), "red"), 1500 - 28 - 14);

    let full = PeerSettings { csum: Some(true), seq: Some(true), ..PeerSettings::default() };
    let b = peer("b", "192.0.2.2", "red", PeerSettings { encap: Some(Encap::GreUdp), ..full });
    let c = peer("c", "192.0.2.3", "red", PeerSettings::default());
    let state = state([b, c]);
    let compiled = compile(&state, &observed);
    assert_eq!(mtu_of(&compiled, &state, &observed, "red"), 1500 - (28 + 4 + 4 + 8) - 14);
    assert_eq!(mtu_of(&compiled, &state, &observed, "virtual"), 1500 - 48 - 14);
    // A route's MTU counts, and so does what a peer was told; one without a way does not.
    let narrow = Some(Route { ifindex: 2, mtu: Some(1400), ..Route::default() });
    observed.routes.insert(ip("192.0.2.3"), narrow);
    let compiled = compiled.next(&state, &observed);
    assert_eq!(mtu_of(&compiled, &state, &observed, "red"), 1400 - 28 - 14);
    observed.routes.insert(ip("192.0.2.3"), None);
    let compiled = compiled.next(&state, &observed);
    assert_eq!(mtu_of(&compiled, &state, &observed, "red"), 1500 - (28 + 4 + 4 + 8) - 14);
    for (told, mtu) in [(1300, 1300), (1000, 1280)] {
        let told = set(PeerSettings { mtu: Some(Mtu::Fixed(told)), ..PeerSettings::default() });
        let state = state.apply(told, &Ids::default()).expect("a state");
        let next = compiled.next(&state, &observed);
        assert!(next.mtus_differ(&compiled));
        assert_eq!(mtu_of(&next, &state, &observed, "red"), mtu, "an interface keeps its IPv6");
    }
}

#[test]
fn ports_by_vlan() {
    let add = |segment: &str, vlan| {
        let (segment, interface) = (segment.to_owned(), "lan0".to_owned());
        Change::AddPort { segment, interface, vlan, mode: Mode::Auto, settings: PortSettings::default() }
    };
    let alone = compile(&state([add("red", None)]), &observed());
    let both = state([add("red", None), add("virtual", Some(10))]);
    let compiled = alone.next(&both, &observed());
    assert_eq!(compiled.plan, compile(&both, &observed()).plan);
    let vlans: Vec<_> = compiled.plan.ports.values().map(|record| (record.ifindex, record.vlan)).collect();
    assert_eq!(vlans, [(3, 0), (3, 10)]);
    assert_eq!(compiled.plan.attachments.keys().filter(|(ifindex, _)| *ifindex == 3).count(), 1);

    // Frames without a tag are their port's all the time.
    let position = |ops: &[Op], wanted: &Op| ops.iter().position(|op| op == wanted).expect("a step");
    let there = diff(&alone.plan, &compiled.plan);
    let untagged = position(&there, &Op::SetVlanPort((3, 0), 0));
    assert!(untagged < position(&there, &Op::SetPortIndex(3, PortIndex::ByVlan)));
    let back = diff(&compiled.plan, &alone.plan);
    let index = position(&back, &Op::SetPortIndex(3, PortIndex::Port(0)));
    assert!(index < position(&back, &Op::RemoveVlanPort((3, 0))));
}

#[test]
fn segments_say_whether_to_clamp() {
    let state = state([
        peer("b", "192.0.2.2", "red", PeerSettings::default()),
        peer("c", "192.0.2.3", "virtual", PeerSettings::default()),
    ]);
    let settings = SegmentSettings { clamp_mss: Some(true), ..SegmentSettings::default() };
    let change = Change::SetSegment { name: "red".into(), settings };
    let clamped = state.apply(change, &Ids::default()).expect("a state");
    let compiled = compile(&state, &observed()).next(&clamped, &observed());
    let red = clamped.segments["red"].id;
    assert!(compiled.plan.adjacencies.values().any(|record| record.segment == red));
    for record in compiled.plan.adjacencies.values() {
        let clamps = record.segment == red;
        assert_eq!(record.flags & adjacency_flag::CLAMP_MSS != 0, clamps);
        assert_eq!(record.template.options & template_option::CLAMP_MSS != 0, clamps);
    }
}
