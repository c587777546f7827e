//! What comes of one peer: a function of the peer, its segments, the underlays, and
//! what the kernel says about its endpoint.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use mgre_common::endpoint::{EndpointKey, endpoint_address, endpoint_key, endpoint_kind, local_flag};
use mgre_common::table::{Template, adjacency_flag, template_flag, template_option};
use mgre_common::template::{self, DontFragment, Encapsulation, Key, Outer};
use mgre_common::wire::{ETHERNET_LEN, MacAddr};

use super::{AdjacencyRecord, EndpointOwner, Endpoints, Observed, Unusable};
use crate::model::{Df, Encap, ForeignGre, Mtu, Peer, State, Tos};
use crate::netlink::Route;
use crate::netlink::resolve::{Exit, NextHop, exit, next_hop_address, resolve};

/// How a peer can be reached, or why it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerStatus {
    /// It can.
    Up(NextHop),
    /// It cannot, for now: why.
    Unresolved(String),
    /// It cannot, as things are set up: why.
    Down(String),
}

/// What comes of a peer beside its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerOutcome {
    /// Whether it can be reached.
    pub status: PeerStatus,
    /// Its endpoint, once known.
    pub endpoint: Option<IpAddr>,
    /// The neighbour to keep resolved: interface and address.
    pub neighbor: Option<(u32, IpAddr)>,
    /// The peer that has the same endpoint in the same segment, and is used in its place.
    pub rival: Option<Arc<str>>,
}

impl PeerOutcome {
    /// The endpoint by which it stands in the tables.
    pub(super) fn place(&self) -> Option<IpAddr> {
        self.endpoint.filter(|_| self.rival.is_none())
    }
}

/// What all peers stand on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ground {
    /// Interfaces that outer packets may leave by.
    pub(super) underlays: Vec<u32>,
    /// Addresses that outer packets may be for.
    pub(super) locals: BTreeSet<IpAddr>,
    /// Those of them for which GRE of no peer's is the kernel's.
    pub(super) shared: BTreeSet<IpAddr>,
    /// Those of them that this host has not got (any more).
    pub(super) missing: BTreeSet<IpAddr>,
}

impl Ground {
    pub(super) fn new(state: &State, observed: &Observed) -> Self {
        let mut ground = Self::default();
        for (name, underlay) in &state.underlays {
            ground.locals.extend(underlay.locals.iter());
            if underlay.foreign_gre == ForeignGre::Pass {
                ground.shared.extend(underlay.locals.iter());
            }
            ground.underlays.extend(observed.link(name).map(|link| link.index));
        }
        ground.missing = ground.locals.iter().copied().filter(|local| observed.lacks(*local)).collect();
        ground
    }

    /// Keys that say that an address is one of ours, and the [`local_flag`] bits of each.
    pub(super) fn local_endpoints(&self) -> impl Iterator<Item = (EndpointKey, u32)> {
        let key = |local| EndpointKey { remote: [0; 4], local, key: 0, kind: endpoint_kind::LOCAL };
        self.locals.iter().map(move |local| {
            let flags = if self.shared.contains(local) { local_flag::PASS_FOREIGN } else { 0 };
            (key(endpoint_address(*local)), flags)
        })
    }

    /// The addresses that packets from a remote may be for.
    fn locals_like(&self, remote: IpAddr) -> impl Iterator<Item = IpAddr> {
        self.locals.iter().copied().filter(move |local| local.is_ipv4() == remote.is_ipv4())
    }

    /// The address to take of a name: one that an underlay is for.
    fn choose(&self, endpoints: Endpoints) -> Option<IpAddr> {
        let usable = |remote: &IpAddr| self.locals_like(*remote).next().is_some();
        endpoints.iter().find(usable).or_else(|| endpoints.iter().next())
    }
}

/// A peer in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The adjacency's id.
    pub(super) id: u32,
    /// The segment's id.
    pub(super) segment: u16,
    /// The segment's key.
    pub(super) key: Key,
    /// How its packets are taken.
    pub(super) flags: u32,
}

/// Where a peer stands in the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Its endpoint.
    pub(super) remote: Option<IpAddr>,
    /// Its adjacencies; none as long as the endpoint is not known.
    pub(super) members: Vec<Member>,
}

impl Place {
    pub(super) fn new(state: &State, peer: &Peer, endpoint: Option<IpAddr>) -> Self {
        if endpoint.is_none() {
            return Self::default();
        }
        let member = |(segment, id): (&String, &u32)| {
            let segment = state.segments.get(segment)?;
            let key = segment.wire_key();
            let clamp = if segment.clamp_mss { adjacency_flag::CLAMP_MSS } else { 0 };
            Some(Member { id: *id, segment: segment.id, key, flags: flags(peer, key) | clamp })
        };
        Self { remote: endpoint, members: peer.segments.iter().filter_map(member).collect() }
    }

    /// Its keys and what they lead to.
    pub(super) fn endpoints(&self, ground: &Ground) -> Vec<(EndpointKey, EndpointOwner)> {
        let Some(address) = self.remote else { return Vec::new() };
        let remote = endpoint_address(address);
        let mut endpoints = Vec::with_capacity(2 * self.members.len() * ground.locals.len());
        for member in &self.members {
            for local in ground.locals_like(address).map(endpoint_address) {
                let (kind, key) = endpoint_key(member.key);
                let owner = EndpointOwner { adjacency: member.id, flags: member.flags };
                endpoints.push((EndpointKey { remote, local, key, kind }, owner));
                let known = EndpointKey { remote, local, key: 0, kind: endpoint_kind::KNOWN };
                endpoints.push((known, EndpointOwner::default()));
            }
        }
        endpoints
    }
}

/// The endpoint of a peer, if it is known.
pub(super) fn endpoint(observed: &Observed, ground: &Ground, peer: &Peer) -> Option<IpAddr> {
    let resolved = || ground.choose(*observed.endpoints.get(&peer.remote)?);
    peer.remote_address().or_else(resolved)
}

/// Where packets to a peer go.
#[derive(Default)]
pub(super) struct Way {
    source: Option<IpAddr>,
    exit: Option<Exit>,
    /// The next hop's address; where it is not known, the kernel is asked.
    next_hop: Option<MacAddr>,
}

/// How a peer can be reached.
pub(super) fn outcome(
    state: &State,
    observed: &Observed,
    ground: &Ground,
    peer: &Peer,
    rival: Option<Arc<str>>,
) -> (PeerOutcome, Way) {
    let endpoint = endpoint(observed, ground, peer);
    let Some(remote) = endpoint else {
        let status = PeerStatus::Unresolved(format!("{} has no address", peer.remote));
        return (PeerOutcome { status, endpoint, neighbor: None, rival }, Way::default());
    };
    if let Some(other) = &rival {
        let status =
            PeerStatus::Down(format!("{remote} is peer {other}, in the same segment: delete one of the two"));
        return (PeerOutcome { status, endpoint, neighbor: None, rival }, Way::default());
    }
    let route = observed.routes.get(&remote).copied().flatten().map(|route| Route {
        mtu: route.mtu.into_iter().chain(observed.path_mtu.get(&remote).copied()).min(),
        ..route
    });
    let neighbor = route.and_then(|route| next_hop(ground, &route, remote));
    let next_hop = resolve(remote, route.as_ref(), &observed.links, &ground.underlays, &observed.neighbors);
    let source = route.and_then(|route| source(state, observed, route.ifindex, remote));
    // There is no route from an address that is not there.
    let from = source.or_else(|| ground.locals_like(remote).next().filter(|_| route.is_none()));
    let unusable = from.and_then(|local| Some(why_unusable(local, *observed.unusable.get(&local)?)));
    let source = source.filter(|_| unusable.is_none());
    let status = match (&next_hop, source) {
        (_, None) if ground.underlays.is_empty() => {
            PeerStatus::Down("there is no underlay: mgre underlay add".to_owned())
        }
        (_, None) if let Some(why) = unusable => PeerStatus::Down(why),
        (Ok(_), Some(local)) if ground.missing.contains(&local) => PeerStatus::Down(missing_local(local)),
        (Ok(next_hop), Some(_)) => PeerStatus::Up(*next_hop),
        (Ok(next_hop), None) => PeerStatus::Down(no_local(observed, next_hop.ifindex, remote)),
        (Err(_), _) if ground.locals_like(remote).next().is_none() => PeerStatus::Down(format!(
            "no underlay has an {} address: mgre underlay add IFACE --local IP",
            version(remote)
        )),
        (Err(why), _) => PeerStatus::Unresolved(why.to_string()),
    };
    let exit = exit(route.as_ref(), &observed.links, &ground.underlays).ok();
    let next_hop = next_hop.ok().map(|next_hop| next_hop.destination_mac);
    (PeerOutcome { status, endpoint, neighbor, rival }, Way { source, exit, next_hop })
}

/// The neighbour that a route needs resolved: interface and address.
fn next_hop(ground: &Ground, route: &Route, remote: IpAddr) -> Option<(u32, IpAddr)> {
    let ours = ground.underlays.contains(&route.ifindex) && !route.local;
    ours.then(|| (route.ifindex, next_hop_address(route, remote)))
}

/// Our endpoint on an underlay interface, of the same IP version as a remote.
fn source(state: &State, observed: &Observed, ifindex: u32, remote: IpAddr) -> Option<IpAddr> {
    let name = observed.wanted_name(observed.links.get(&ifindex)?);
    state.underlays.get(name)?.locals.like(remote)
}

/// That this host has not got an underlay's address.
pub fn missing_local(local: IpAddr) -> String {
    format!("{local} is not an address of this host: ip address add it")
}

fn why_unusable(local: IpAddr, why: Unusable) -> String {
    match why {
        Unusable::Missing => missing_local(local),
        Unusable::Duplicate => {
            format!(
                "another host has {local} too (duplicate address detection failed): give one of them another"
            )
        }
    }
}

/// That the underlay by which a remote is reached has no endpoint for it.
fn no_local(observed: &Observed, ifindex: u32, remote: IpAddr) -> String {
    let name = observed.links.get(&ifindex).map_or("IFACE", |link| &link.name);
    format!("{name} has no {} endpoint: mgre underlay add {name} --local IP", version(remote))
}

const fn version(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The record of an adjacency.
pub(super) fn adjacency(
    observed: &Observed,
    peer: &Peer,
    remote: IpAddr,
    member: &Member,
    way: &Way,
) -> AdjacencyRecord {
    let link = way.exit.filter(|_| way.source.is_some()).map(|exit| template::Link {
        ifindex: exit.ifindex,
        source_mac: exit.source_mac,
        destination_mac: way.next_hop,
        mtu: exit.mtu,
    });
    let outer = outer(peer, way.source.unwrap_or(unspecified(remote)), remote, member.key);
    let mut template = Template::new(&outer, link.as_ref());
    if member.flags & adjacency_flag::CLAMP_MSS != 0 {
        template.options |= template_option::CLAMP_MSS;
    }
    let express = template.options & template_option::NOT_EXPRESS == 0;
    if express && template.flags & template_flag::RESOLVED != 0 && observed.is_target(template.ifindex) {
        template.flags |= template_flag::EXPRESS;
        let kind = observed.links.get(&template.ifindex).and_then(|link| link.kind.as_deref());
        if kind != Some("veth") {
            template.flags |= template_flag::SENDS_BACK;
        }
    }
    if let Mtu::Fixed(mtu) = peer.mtu {
        template.max_frame = template.max_frame.min(mtu + ETHERNET_LEN as u32);
    }
    AdjacencyRecord {
        segment: member.segment,
        flags: member.flags,
        storm_limit: peer.storm_limit.frames_per_second(),
        template,
    }
}

/// The outer header of packets to a peer.
fn outer(peer: &Peer, source: IpAddr, destination: IpAddr, key: Key) -> Outer {
    Outer {
        source,
        destination,
        ttl: peer.ttl,
        tos: match peer.tos {
            Tos::Fixed(tos) => template::Tos::Fixed(tos),
            Tos::Inherit => template::Tos::Inherit,
        },
        dont_fragment: match peer.df {
            Df::Set => DontFragment::Set,
            Df::Unset => DontFragment::Unset,
            Df::Inherit => DontFragment::Inherit,
        },
        key,
        checksum: peer.csum,
        sequence: peer.seq,
        encapsulation: match peer.encap {
            Encap::Gre => Encapsulation::Gre,
            Encap::GreUdp => Encapsulation::GreUdp,
        },
    }
}

/// How packets of a peer are taken ([`adjacency_flag`]).
fn flags(peer: &Peer, key: Key) -> u32 {
    let flags = [
        (peer.tos == Tos::Inherit, adjacency_flag::UNIFORM),
        (peer.seq, adjacency_flag::SEQUENCE),
        (matches!(key, Key::Vsid(_)), adjacency_flag::NVGRE),
    ];
    flags.iter().filter(|(is, _)| *is).fold(0, |flags, (_, flag)| flags | flag)
}

/// The unspecified address of the IP version that another one is of.
const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}
