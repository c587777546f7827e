use std::collections::BTreeMap;
use std::net::IpAddr;

use mgre_common::endpoint::{EndpointKey, endpoint_kind};
use mgre_common::fdb::FdbKey;
use mgre_common::table::{Template, template_flag};
use mgre_common::target::{Target, TargetKind};
use mgre_common::wire::MacAddr;
use proptest::prelude::*;

use super::*;
use crate::model::{Change, Ids, Mode, PeerSettings, PortSettings, SegmentSettings, State, UnderlaySettings};

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn settings(key: Option<u32>) -> SegmentSettings {
    SegmentSettings { key: key.map(Some), ..SegmentSettings::default() }
}

fn peer(remote: &str, segments: &[&str]) -> PeerSettings {
    PeerSettings {
        remote: Some(remote.to_owned()),
        segments: Some(segments.iter().map(|segment| (*segment).to_owned()).collect()),
        ..PeerSettings::default()
    }
}

fn underlay(interface: &str, local: &str) -> Change {
    Change::AddUnderlay { interface: interface.into(), settings: UnderlaySettings::at(address(local)) }
}

/// Two segments, one port and two peers.
fn state() -> State {
    let changes = [
        underlay("wan0", "192.0.2.1"),
        Change::AddSegment { name: "red".into(), settings: settings(Some(7)) },
        Change::AddSegment { name: "blue".into(), settings: settings(None) },
        Change::AddPort {
            segment: "red".into(),
            interface: "lan0".into(),
            vlan: None,
            mode: Mode::Auto,
            settings: PortSettings::default(),
        },
        Change::AddPeer { name: "b".into(), settings: peer("192.0.2.2", &["red", "blue"]) },
        Change::AddPeer { name: "c".into(), settings: peer("198.51.100.3", &["red"]) },
    ];
    State::default().apply_all(changes, &Ids::default()).expect("a state")
}

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mac: Some(MacAddr([2, 0, 0, 0, 0, index as u8])),
        mtu: 1500,
        up: true,
        running: true,
        ethernet: true,
        ..Link::default()
    }
}

/// b is on the link, c behind a gateway.
fn observed() -> Observed {
    let gateway = address("192.0.2.254");
    let usable = |last| Neighbor { mac: Some(MacAddr([2, 0, 0, 0, 1, last])), usable: true };
    Observed {
        links: [link(2, "wan0"), link(3, "lan0")].into_iter().map(|link| (link.index, link)).collect(),
        routes: [
            (address("192.0.2.2"), Some(Route { ifindex: 2, ..Route::default() })),
            (address("198.51.100.3"), Some(Route { ifindex: 2, gateway: Some(gateway), ..Route::default() })),
        ]
        .into_iter()
        .collect(),
        neighbors: [((2, address("192.0.2.2")), usable(2)), ((2, gateway), usable(254))]
            .into_iter()
            .collect(),
        ..Observed::default()
    }
}

#[test]
fn everything_resolved() {
    let state = state();
    let Compiled { plan, peers: outcomes, .. } = compile(&state, &observed());
    assert!(outcomes.values().all(|outcome| matches!(outcome.status, PeerStatus::Up(_))));
    assert_eq!(outcomes["c"].neighbor, Some((2, address("192.0.2.254"))));

    let hooks: Vec<_> = plan.attachments.keys().copied().collect();
    assert_eq!(hooks, [(2, Hook::Underlay), (3, Hook::Port)]);
    let red = &state.segments["red"];
    assert_eq!((plan.floods[&red.id].ports.len(), plan.floods[&red.id].adjacencies.len()), (1, 2));
    assert_eq!(plan.floods[&state.segments["blue"].id].adjacencies.len(), 1);

    let c = &plan.adjacencies[&state.peers["c"].segments["red"]].template;
    assert_eq!(&c.header[..6], [2, 0, 0, 0, 1, 254], "the gateway's MAC");
    assert_eq!(&c.header[30..34], [198, 51, 100, 3], "the peer's address");
    assert_eq!((c.ifindex, c.header_len, c.max_frame), (2, 42, 1500 - 28));
    let blue = &plan.adjacencies[&state.peers["b"].segments["blue"]].template;
    assert_eq!((blue.header_len, blue.max_frame), (38, 1500 - 24));
}

#[test]
fn of_two_peers_with_one_endpoint_in_a_segment_one_is_used() {
    let named = [
        Change::AddPeer { name: "y".into(), settings: peer("y.example", &["red"]) },
        Change::AddPeer { name: "z".into(), settings: peer("z.example", &["red"]) },
    ];
    let both = state().apply_all(named, &Ids::default()).expect("a state");
    let del = |state: &State, name: &str| {
        state.apply(Change::DelPeer { name: name.into() }, &Ids::default()).expect("a state")
    };
    let mut observed = observed();
    let resolve = |observed: &mut Observed, name: &str, v4: &str| {
        let v4 = v4.parse().ok();
        observed.endpoints.insert(name.into(), Endpoints { v4, ..Endpoints::default() });
    };
    resolve(&mut observed, "y.example", "192.0.2.2");
    resolve(&mut observed, "z.example", "192.0.2.2");
    let red = both.segments["red"].id;
    let used = |compiled: &Compiled| -> Vec<String> {
        let up = compiled.peers.iter().filter(|(_, outcome)| matches!(outcome.status, PeerStatus::Up(_)));
        let names: Vec<String> = up.map(|(name, _)| name.to_string()).collect();
        assert_eq!(compiled.plan.floods[&red].adjacencies.len(), names.len());
        names
    };
    // b was given by address.
    let compiled = compile(&both, &observed);
    assert_eq!(used(&compiled), ["b", "c"]);
    let why = "192.0.2.2 is peer b, in the same segment: delete one of the two";
    assert_eq!(compiled.peers["z"].status, PeerStatus::Down(why.into()));
    for name in ["y", "z"] {
        assert!(!compiled.plan.adjacencies.contains_key(&both.peers[name].segments["red"]), "{name}");
    }
    // Who is next takes its place, and gives it back.
    let without = del(&both, "b");
    let next = compiled.next(&without, &observed);
    assert_eq!(used(&next), ["c", "y"]);
    assert_eq!(used(&next.next(&both, &observed)), ["b", "c"]);
    // Where names come apart, both are used.
    resolve(&mut observed, "z.example", "198.51.100.3");
    let apart = next.next(&del(&without, "c"), &observed);
    assert_eq!(used(&apart), ["y", "z"]);
}

#[test]
fn the_narrowest_of_link_route_and_path_counts() {
    let state = state();
    let mtu = |route: Option<u32>, path: Option<u32>| {
        let mut observed = observed();
        let remote = address("192.0.2.2");
        observed.routes.insert(remote, Some(Route { ifindex: 2, mtu: route, ..Route::default() }));
        observed.path_mtu.extend(path.map(|mtu| (remote, mtu)));
        let Compiled { plan, peers, .. } = compile(&state, &observed);
        let PeerStatus::Up(next_hop) = peers["b"].status else { panic!("not up") };
        let max_frame = |segment| plan.adjacencies[&state.peers["b"].segments[segment]].template.max_frame;
        assert_eq!((max_frame("red"), max_frame("blue")), (next_hop.mtu - 28, next_hop.mtu - 24));
        // Another peer's path is another.
        let other = plan.adjacencies[&state.peers["c"].segments["red"]].template.max_frame;
        assert_eq!(other, 1500 - 28);
        next_hop.mtu
    };
    assert_eq!(mtu(None, None), 1500);
    assert_eq!(mtu(None, Some(1400)), 1400);
    assert_eq!((mtu(Some(1300), Some(1400)), mtu(Some(1400), Some(1300))), (1300, 1300));
    assert_eq!(mtu(None, Some(9000)), 1500);
}

#[test]
fn keyless_and_key_zero_are_different_endpoints() {
    let state = state();
    let zero = state
        .apply(Change::AddSegment { name: "zero".into(), settings: settings(Some(0)) }, &Ids::default())
        .and_then(|state| {
            let settings = PeerSettings {
                segments: Some(vec!["blue".into(), "zero".into()]),
                ..PeerSettings::default()
            };
            state.apply(Change::SetPeer { name: "b".into(), settings }, &Ids::default())
        })
        .expect("a state");
    let Compiled { plan, .. } = compile(&zero, &observed());
    let with_kind = |kind| plan.endpoints.keys().filter(|key| key.kind == kind && key.key == 0).count();
    assert_eq!((with_kind(endpoint_kind::KEYLESS), with_kind(endpoint_kind::KEYED)), (1, 1));
}

#[test]
fn what_is_missing_makes_a_peer_unresolved_and_says_why() {
    let state = state();
    let resolved = |observed: &Observed| {
        let Compiled { plan, peers: outcomes, .. } = compile(&state, observed);
        let template = plan.adjacencies[&state.peers["b"].segments["red"]].template;
        (template.flags & template_flag::RESOLVED != 0, outcomes["b"].status.clone())
    };
    let mut no_neighbor = observed();
    no_neighbor.neighbors.clear();
    assert!(
        matches!(resolved(&no_neighbor), (false, PeerStatus::Unresolved(why)) if why.contains("192.0.2.2"))
    );
    let mut no_route = observed();
    no_route.routes.clear();
    assert!(matches!(resolved(&no_route), (false, PeerStatus::Unresolved(why)) if why == "no route"));
    let mut down = observed();
    down.links.get_mut(&2).expect("wan0").running = false;
    assert!(matches!(resolved(&down), (false, PeerStatus::Unresolved(why)) if why.contains("wan0")));
    let mut gone = observed();
    gone.links.remove(&2);
    assert!(matches!(resolved(&gone), (false, PeerStatus::Down(why)) if why.contains("underlay")));
}

/// Tables as the steps leave them.
#[derive(Debug, Default, PartialEq)]
struct Model {
    plan: Plan,
    port_index: BTreeMap<u32, PortIndex>,
    vlan_ports: BTreeMap<(u32, u16), u32>,
}

impl Model {
    /// Takes a step; whatever the tables refer to must be there after each.
    fn take(&mut self, op: Op) {
        let Self { plan, port_index, vlan_ports } = self;
        match op {
            Op::SetSlow(ifindex) => plan.slow = ifindex,
            Op::SetNearMacs(macs) => plan.near_macs = macs,
            Op::AddDevice(ifindex) => assert!(plan.devices.insert(ifindex).is_none()),
            Op::RemoveDevice(ifindex) => assert!(plan.devices.remove(&ifindex).is_some()),
            Op::Attach { ifindex, hook, attachment } => {
                assert!(plan.attachments.insert((ifindex, hook), attachment).is_none());
                let needs_no_port = matches!(hook, Hook::Underlay | Hook::Slow);
                assert!(needs_no_port || port_index.contains_key(&ifindex), "{ifindex}");
            }
            Op::Detach { ifindex, hook } => assert!(plan.attachments.remove(&(ifindex, hook)).is_some()),
            Op::SetAdjacency(id, record) => _ = plan.adjacencies.insert(id, record),
            Op::RemoveAdjacency(id) => assert!(plan.adjacencies.remove(&id).is_some()),
            Op::SetPort(id, record) => _ = plan.ports.insert(id, record),
            Op::RemovePort(id) => assert!(plan.ports.remove(&id).is_some()),
            Op::SetPortIndex(ifindex, to) => _ = port_index.insert(ifindex, to),
            Op::SetVlanPort(vlan, id) => _ = vlan_ports.insert(vlan, id),
            Op::RemoveVlanPort(vlan) => assert!(vlan_ports.remove(&vlan).is_some()),
            Op::RemovePortIndex(ifindex) => assert!(port_index.remove(&ifindex).is_some()),
            Op::SetEndpoint(key, owner) => _ = plan.endpoints.insert(key, owner),
            Op::RemoveEndpoint(key) => assert!(plan.endpoints.remove(&key).is_some()),
            Op::SetFlood(segment, targets) => _ = plan.floods.insert(segment, targets),
            Op::RemoveSegment(segment) => assert!(plan.floods.remove(&segment).is_some()),
            Op::SetFixed(key, entry) => _ = plan.fixed.insert(key, entry),
            Op::RemoveFixed(key) => assert!(plan.fixed.remove(&key).is_some()),
        }
        self.check();
    }

    fn check(&self) {
        let Self { plan, port_index, vlan_ports } = self;
        let taken = |ifindex| plan.attachments.contains_key(&(ifindex, Hook::Slow));
        assert!(plan.slow == 0 || taken(plan.slow), "frames would be lost at {}", plan.slow);
        for targets in plan.floods.values() {
            assert!(targets.ports.iter().all(|id| plan.ports.contains_key(id)));
            assert!(targets.adjacencies.iter().all(|id| plan.adjacencies.contains_key(id)));
        }
        assert!(plan.endpoints.values().all(|owner| plan.adjacencies.contains_key(&owner.adjacency)));
        assert!(vlan_ports.values().all(|id| plan.ports.contains_key(id)));
        for (ifindex, to) in port_index {
            assert!(match to {
                PortIndex::Port(id) => plan.ports.contains_key(id),
                PortIndex::ByVlan => vlan_ports.range((*ifindex, 0)..=(*ifindex, 4095)).next().is_some(),
            });
        }
        assert!(plan.fixed.values().all(|entry| match entry.target.kind() {
            TargetKind::Port(id) => plan.ports.contains_key(&id),
            TargetKind::Adjacency(id) => plan.adjacencies.contains_key(&id),
            TargetKind::None => false,
        }));
    }
}

prop_compose! {
    /// A plan whose references resolve, over few enough ids that two plans overlap.
    fn plan()(
        ports in prop::collection::btree_map(0u32..5, (1u16..4, any::<bool>(), any::<bool>(), 0u16..3), 0..5),
        adjacencies in prop::collection::btree_map(0u32..6, (1u16..4, 0u32..3), 0..6),
        underlay in any::<bool>(),
        slow in prop::option::of(30_u32..33),
    ) -> Plan {
        let mut plan = Plan::default();
        for segment in 1..4 {
            plan.floods.insert(segment, FloodTargets::default());
        }
        if underlay {
            plan.near_macs.insert(MacAddr([2, 0, 0, 0, 0, adjacencies.len() as u8]));
            plan.attachments.insert((1, Hook::Underlay), Attachment { interface: "wan0".into(), xdp: None, optional: false });
        }
        if let Some(slow) = slow {
            plan.slow = slow;
            let attachment = Attachment { interface: "slow".into(), xdp: None, optional: true };
            plan.attachments.insert((slow, Hook::Slow), attachment.clone());
            plan.attachments.insert((slow + 10, Hook::Slow), attachment);
        }
        for (id, (segment, up, host, trunk)) in ports {
            // Some share an interface, each with a VLAN of its own; one may be for frames without a tag.
            let host = host && trunk == 0;
            let (ifindex, vlan) = if trunk == 0 { (10 + id, 0) } else { (20 + u32::from(trunk), id as u16) };
            let peer = !host && up;
            plan.ports.insert(id, PortRecord { ifindex, vlan, segment, max_frame: 1518, up, blocked: false, host, peer, express: up, storm_limit: 0 });
            let hook = if host { Hook::HostPort } else { Hook::Port };
            plan.attachments.insert((ifindex, hook), Attachment { interface: format!("lan{ifindex}"), xdp: None, optional: false });
            if up {
                plan.devices.insert(ifindex);
            }
            plan.floods.entry(segment).or_default().ports.insert(id);
            let entry = FixedEntry { target: Target::port(id), local: host };
            plan.fixed.insert(FdbKey::new(segment, MacAddr([2, 0, 0, 0, 0, id as u8])), entry);
        }
        for (id, (segment, mtu)) in adjacencies {
            let mut template: Template = bytemuck::Zeroable::zeroed();
            template.max_frame = mtu;
            let flags = u32::from(mtu == 2);
            plan.adjacencies.insert(id, AdjacencyRecord { segment, flags, storm_limit: 0, template });
            plan.floods.entry(segment).or_default().adjacencies.insert(id);
            let key = EndpointKey { remote: [id; 4], local: [0; 4], key: segment.into(), kind: 2 };
            plan.endpoints.insert(key, EndpointOwner { adjacency: id, flags });
        }
        for segment in 2..4 {
            if plan.floods[&segment] == FloodTargets::default() {
                plan.floods.remove(&segment);
            }
        }
        plan
    }
}

proptest! {
    #[test]
    fn the_steps_lead_from_one_plan_to_the_other(old in plan(), new in plan()) {
        let mut model = Model::default();
        for op in diff(&Plan::default(), &old) {
            model.take(op);
        }
        prop_assert_eq!(&model.plan, &old);
        for op in diff(&old, &new) {
            model.take(op);
        }
        prop_assert_eq!(&model.plan, &new);
        prop_assert!(diff(&new, &new).is_empty());
        for op in diff(&new, &Plan::default()) {
            model.take(op);
        }
        prop_assert_eq!(model, Model::default());
    }
}

#[test]
fn the_slow_interface_works_before_anything_is_given_to_it() {
    let place =
        |ifindex, hook| ((ifindex, hook), Attachment { interface: "x".into(), xdp: None, optional: false });
    let attachments = BTreeMap::from([place(2, Hook::Underlay), place(7, Hook::Slow), place(8, Hook::Slow)]);
    let new = Plan { attachments, slow: 7, ..Plan::default() };
    let ops = diff(&Plan::default(), &new);
    let at = |wanted: &dyn Fn(&Op) -> bool| ops.iter().position(wanted).expect("such a step");
    let set = at(&|op| matches!(op, Op::SetSlow(7)));
    assert!(at(&|op| matches!(op, Op::Attach { ifindex: 8, .. })) < set);
    assert!(set < at(&|op| matches!(op, Op::Attach { hook: Hook::Underlay, .. })));
}
