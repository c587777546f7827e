//! What is compiled from what was compiled before is what is compiled from nothing.

use std::net::IpAddr;

use mgre_common::wire::MacAddr;
use proptest::prelude::*;

use super::*;
use crate::model::{
    Change, Df, Encap, ForeignGre, HostInterface, Ids, Mode, Mtu, PeerSettings, PortSettings,
    SegmentSettings, State, StaticTarget, Tos, UnderlaySettings,
};

/// Few of everything, so that things meet.
const INTERFACES: [&str; 4] = ["if1", "if2", "if3", "if4"];
const SEGMENTS: [&str; 3] = ["red", "blue", "green"];
const PEERS: [&str; 5] = ["a", "b", "c", "d", "e"];
const REMOTES: [&str; 7] =
    ["192.0.2.2", "192.0.2.3", "198.51.100.4", "2001:db8::5", "2001:db8::6", "one.example", "two.example"];
const NAMES: std::ops::Range<usize> = 5..7;

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Wanted(Vec<Change>),
    Link { index: u32, name: usize, mac: u8, mtu: u32, up: bool },
    NoLink(u32),
    Features { index: u32, bits: u64 },
    OwnXdp(u32, bool),
    Endpoint { name: usize, v4: Option<u8>, v6: Option<u8>, v6_first: bool },
    Route { last: u8, route: Option<Route> },
    NoRoute(u8),
    Neighbor { ifindex: u32, last: u8, mac: Option<u8> },
    PathMtu { last: u8, mtu: Option<u32> },
    Slow(Option<(u32, u32)>),
}

fn ip(last: u8) -> IpAddr {
    match last {
        4 => "198.51.100.4".parse().expect("an address"),
        5.. => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()]),
        last => IpAddr::from([192, 0, 2, last]),
    }
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn peer_settings() -> impl Strategy<Value = PeerSettings> {
    let segments = prop::sample::subsequence(SEGMENTS.to_vec(), 1..=3);
    let places = (prop::option::of(0..REMOTES.len()), prop::option::of(segments));
    let df = prop_oneof![Just(None), Just(Some(Df::Unset)), Just(Some(Df::Inherit))];
    let options = (prop::option::of(1_u8..3), df, prop::option::weighted(0.2, Just(Mtu::Fixed(1300))));
    let tos = prop::option::of(prop_oneof![Just(Tos::Fixed(0)), Just(Tos::Inherit)]);
    let encap = prop::option::of(prop_oneof![Just(Encap::Gre), Just(Encap::GreUdp)]);
    (places, options, tos, encap, any::<[Option<bool>; 2]>()).prop_map(
        |((remote, segments), (ttl, df, mtu), tos, encap, [csum, seq])| PeerSettings {
            remote: remote.map(|index| REMOTES[index].to_owned()),
            segments: segments.map(|names| names.into_iter().map(str::to_owned).collect()),
            ttl,
            tos,
            df,
            mtu,
            csum,
            seq,
            encap,
            ..PeerSettings::default()
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    let interface = || (0..INTERFACES.len()).prop_map(|index| INTERFACES[index].to_owned());
    let segment = || (0..SEGMENTS.len()).prop_map(|index| SEGMENTS[index].to_owned());
    let name = || (0..PEERS.len()).prop_map(|index| PEERS[index].to_owned());
    let local = || {
        (1_u8..3, any::<bool>()).prop_map(|(last, v4)| match v4 {
            true => IpAddr::from([203, 0, 113, last]),
            false => IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last.into()]),
        })
    };
    let settings = || {
        (prop::option::of(0_u32..3), prop::option::weighted(0.2, 0x1000_u32..0x1002), any::<Option<bool>>())
            .prop_map(|(key, vsid, clamp_mss)| SegmentSettings {
                key: vsid.is_none().then_some(key),
                vsid: vsid.map(Some),
                clamp_mss,
                ..SegmentSettings::default()
            })
    };
    let port = || {
        (interface(), prop::option::of(1_u16..3)).prop_map(|(interface, vlan)| match vlan {
            Some(vlan) => format!("{interface}.{vlan}"),
            None => interface,
        })
    };
    let target = prop_oneof![name().prop_map(StaticTarget::Peer), port().prop_map(StaticTarget::Port)];
    let host = prop::option::of(1_u8..4)
        .prop_map(|last| HostInterface { addresses: Vec::new(), mac: last.map(mac) });
    prop_oneof![
        3 => (interface(), local()).prop_map(|(interface, local)| Change::AddUnderlay {
            interface,
            settings: UnderlaySettings::at(local),
        }),
        1 => (interface(), any::<bool>()).prop_map(|(interface, pass)| Change::SetUnderlay {
            interface,
            settings: UnderlaySettings {
                foreign_gre: Some(if pass { ForeignGre::Pass } else { ForeignGre::Drop }),
                ..UnderlaySettings::default()
            },
            force: false,
        }),
        1 => (interface(), prop::option::of(local()))
            .prop_map(|(interface, local)| Change::DelUnderlay { interface, local, force: false }),
        3 => (segment(), settings()).prop_map(|(name, settings)| Change::AddSegment { name, settings }),
        1 => (segment(), settings()).prop_map(|(name, settings)| Change::SetSegment { name, settings }),
        1 => segment().prop_map(|name| Change::DelSegment { name }),
        3 => (segment(), interface(), prop::option::of(1_u16..3)).prop_map(|(segment, interface, vlan)| {
            Change::AddPort { segment, interface, vlan, mode: Mode::Auto, settings: PortSettings::default() }
        }),
        1 => (segment(), interface(), host)
            .prop_map(|(segment, interface, host)| Change::CreatePort { segment, interface, host, settings: PortSettings::default() }),
        1 => port().prop_map(|name| Change::DelPort { name }),
        6 => (name(), peer_settings()).prop_map(|(name, settings)| Change::AddPeer { name, settings }),
        3 => (name(), peer_settings()).prop_map(|(name, settings)| Change::SetPeer { name, settings }),
        2 => name().prop_map(|name| Change::DelPeer { name }),
        2 => (segment(), 1_u8..4, target).prop_map(|(segment, last, target)| Change::AddFdb {
            segment,
            mac: mac(last),
            target,
        }),
        1 => (segment(), 1_u8..4).prop_map(|(segment, last)| Change::DelFdb { segment, mac: mac(last) }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let last = || 2_u8..7;
    let mtu = prop::option::weighted(0.3, 1280_u32..1282);
    let route = (1_u32..6, prop::option::of(4_u8..7), any::<bool>(), mtu).prop_map(
        |(ifindex, gateway, local, mtu)| {
            let (gateway, local) = (gateway.map(ip), local && ifindex == 1);
            Route { ifindex, gateway, local, mtu, ..Route::default() }
        },
    );
    prop_oneof![
        8 => prop::collection::vec(change(), 1..4).prop_map(Step::Wanted),
        3 => (1_u32..6, 0..INTERFACES.len(), 1_u8..4, 1400_u32..1402, prop::bool::weighted(0.8))
            .prop_map(|(index, name, mac, mtu, up)| Step::Link { index, name, mac, mtu, up }),
        1 => (1_u32..6).prop_map(Step::NoLink),
        1 => (1_u32..6, 0_u64..8).prop_map(|(index, bits)| Step::Features { index, bits }),
        1 => (1_u32..6, any::<bool>()).prop_map(|(index, own)| Step::OwnXdp(index, own)),
        1 => (NAMES, prop::option::of(2_u8..5), prop::option::of(5_u8..7), any::<bool>())
            .prop_map(|(name, v4, v6, v6_first)| Step::Endpoint { name, v4, v6, v6_first }),
        4 => (last(), prop::option::weighted(0.8, route)).prop_map(|(last, route)| Step::Route { last, route }),
        1 => last().prop_map(Step::NoRoute),
        2 => (last(), prop::option::of(1280_u32..1282)).prop_map(|(last, mtu)| Step::PathMtu { last, mtu }),
        1 => prop::option::of((1_u32..6, 1_u32..6)).prop_map(Step::Slow),
        4 => (1_u32..6, last(), prop::option::weighted(0.8, 1_u8..4))
            .prop_map(|(ifindex, last, mac)| Step::Neighbor { ifindex, last, mac }),
    ]
}

impl Step {
    fn take(self, state: &mut State, observed: &mut Observed) {
        match self {
            // One that cannot be changes nothing.
            Self::Wanted(changes) => {
                for change in changes {
                    if let Ok(next) = state.apply(change, &Ids::default()) {
                        *state = next;
                    }
                }
            }
            Self::Link { index, name, mac: last, mtu, up } => {
                observed.links.insert(
                    index,
                    Link {
                        index,
                        // Names are unique in a namespace.
                        name: format!("if{}", if name as u32 + 1 == index { index } else { index + 10 }),
                        mac: Some(mac(last)),
                        mtu,
                        up,
                        running: up,
                        ethernet: true,
                        ..Link::default()
                    },
                );
                // Now and then somebody's else.
                if last % 3 != 0 {
                    observed.made.insert(index);
                } else {
                    observed.made.remove(&index);
                }
            }
            Self::NoLink(index) => drop(observed.links.remove(&index)),
            Self::Features { index, bits } => {
                observed.features.insert(index, XdpFeatures::from_bits(bits));
            }
            Self::OwnXdp(index, true) => drop(observed.own_xdp.insert(index)),
            Self::OwnXdp(index, false) => drop(observed.own_xdp.remove(&index)),
            Self::Endpoint { name, v4, v6, v6_first } => {
                let v4 = v4.map(ip).and_then(|v4| v4.to_string().parse().ok());
                let v6 = v6.map(ip).and_then(|v6| v6.to_string().parse().ok());
                observed.endpoints.insert(REMOTES[name].to_owned(), Endpoints { v4, v6, v6_first });
            }
            Self::Route { last, route } => drop(observed.routes.insert(ip(last), route)),
            Self::NoRoute(last) => drop(observed.routes.remove(&ip(last))),
            Self::PathMtu { last, mtu: Some(mtu) } => drop(observed.path_mtu.insert(ip(last), mtu)),
            Self::PathMtu { last, mtu: None } => drop(observed.path_mtu.remove(&ip(last))),
            Self::Slow(ends) => {
                let end = |index| (index, mac(1));
                observed.slow = ends.map(|(inner, outer)| Pair { inner: end(inner), outer: end(outer) });
            }
            Self::Neighbor { ifindex, last, mac: Some(octet) } => {
                let neighbor = Neighbor { mac: Some(mac(octet)), usable: octet != 3 };
                observed.neighbors.insert((ifindex, ip(last)), neighbor);
            }
            Self::Neighbor { ifindex, last, mac: None } => {
                observed.neighbors.remove(&(ifindex, ip(last)));
            }
        }
    }
}

#[test]
fn what_was_made_is_known_by_its_alias_at_the_start_alone() {
    let link = |index, alias: &str| Link { index, alias: Some(alias.to_owned()), ..Link::default() };
    let mut observed = Observed { mark: "mgre:x".to_owned(), ..Observed::default() };
    observed.links.insert(1, link(1, "mgre:x"));
    observed.links.insert(2, link(2, "uplink"));
    observed.take_up_made();
    let renamed = [link(1, "uplink"), link(2, "mgre:x")];
    assert!(observed.is_made(&renamed[0]) && !observed.is_made(&renamed[1]));
    let before = observed.links.clone();
    observed.links.remove(&1);
    observed.forget_made(&before);
    assert!(!observed.is_made(&renamed[0]), "it is gone, and its index may be another's");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn incremental_is_as_from_nothing(steps in prop::collection::vec((step(), any::<bool>()), 1..60)) {
        let mut state = State::default();
        let mut observed = Observed::default();
        let mut compiled = Compiled::default();
        for (step, compiles) in steps {
            step.take(&mut state, &mut observed);
            // Several things may change between two looks.
            if !compiles {
                continue;
            }
            compiled = compiled.next(&state, &observed);
            let anew = compile(&state, &observed);
            prop_assert_eq!(&compiled.plan, &anew.plan);
            prop_assert_eq!(&compiled.peers, &anew.peers);
            prop_assert_eq!(&compiled.hooks, &anew.hooks);
            prop_assert_eq!(&compiled.remotes, &anew.remotes);
            prop_assert_eq!(&compiled.next_hops, &anew.next_hops);
            prop_assert_eq!(&compiled.mtus, &anew.mtus);
        }
    }
}
