//! What comes of one peer: a function of the peer, its segments, the underlays, and
//! what the kernel says about its endpoint.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use mgre_common::endpoint::{EndpointKey, endpoint_kind, mapped_v4};
use mgre_common::table::{Template, template_flag};
use mgre_common::template::{self, DontFragment, Encapsulation, Key, Outer, Tos};
use mgre_common::wire::{ETHERNET_LEN, MacAddr};

use super::{AdjacencyRecord, Observed};
use crate::model::{Df, Mtu, Peer, State};
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
}

/// What all peers stand on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ground {
    /// Interfaces that outer packets may leave by.
    pub(super) underlays: Vec<u32>,
    /// Addresses that outer packets may be for.
    pub(super) locals: BTreeSet<Ipv4Addr>,
}

impl Ground {
    pub(super) fn new(state: &State, observed: &Observed) -> Self {
        let mut ground = Self::default();
        for (name, underlay) in &state.underlays {
            if let IpAddr::V4(local) = underlay.local {
                ground.locals.insert(local);
            }
            ground.underlays.extend(observed.link(name).map(|link| link.index));
        }
        ground
    }

    /// Keys that say that an address is one of ours.
    pub(super) fn local_endpoints(&self) -> impl Iterator<Item = EndpointKey> {
        let key = |local| EndpointKey { remote: [0; 4], local, key: 0, kind: endpoint_kind::LOCAL };
        self.locals.iter().map(move |local| key(mapped(*local)))
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
    pub(super) key: Option<u32>,
}

/// Where a peer stands in the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Its endpoint.
    pub(super) remote: Option<Ipv4Addr>,
    /// Its adjacencies; none as long as the endpoint is not known.
    pub(super) members: Vec<Member>,
}

impl Place {
    pub(super) fn new(state: &State, peer: &Peer, endpoint: Option<IpAddr>) -> Self {
        let Some(IpAddr::V4(remote)) = endpoint else { return Self::default() };
        let member = |(segment, id): (&String, &u32)| {
            let segment = state.segments.get(segment)?;
            Some(Member { id: *id, segment: segment.id, key: segment.key })
        };
        Self { remote: Some(remote), members: peer.segments.iter().filter_map(member).collect() }
    }

    /// Its keys and what they lead to.
    pub(super) fn endpoints(&self, ground: &Ground) -> Vec<(EndpointKey, u32)> {
        let Some(remote) = self.remote.map(mapped) else { return Vec::new() };
        let mut endpoints = Vec::with_capacity(2 * self.members.len() * ground.locals.len());
        for member in &self.members {
            for local in ground.locals.iter().map(|local| mapped(*local)) {
                let key = member.key.unwrap_or(0).to_be();
                let kind = if member.key.is_some() { endpoint_kind::KEYED } else { endpoint_kind::KEYLESS };
                endpoints.push((EndpointKey { remote, local, key, kind }, member.id));
                endpoints.push((EndpointKey { remote, local, key: 0, kind: endpoint_kind::KNOWN }, 0));
            }
        }
        endpoints
    }
}

/// The endpoint of a peer, if it is known.
pub(super) fn endpoint(observed: &Observed, peer: &Peer) -> Option<IpAddr> {
    peer.remote_address().or_else(|| observed.endpoints.get(&peer.remote).copied())
}

/// Where packets to a peer go.
pub(super) struct Way {
    source: Option<Ipv4Addr>,
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
) -> (PeerOutcome, Way) {
    let endpoint = endpoint(observed, peer);
    let Some(IpAddr::V4(remote)) = endpoint else {
        let status = PeerStatus::Unresolved(format!("{} has no IPv4 address", peer.remote));
        let way = Way { source: None, exit: None, next_hop: None };
        return (PeerOutcome { status, endpoint, neighbor: None }, way);
    };
    let remote = IpAddr::V4(remote);
    let route = observed.routes.get(&remote).copied().flatten();
    let neighbor = route.and_then(|route| next_hop(ground, &route, remote));
    let next_hop = resolve(remote, route.as_ref(), &observed.links, &ground.underlays, &observed.neighbors);
    let source = route.and_then(|route| source(state, observed, route.ifindex));
    let status = match (&next_hop, source) {
        (_, None) if ground.underlays.is_empty() => {
            PeerStatus::Down("there is no underlay: mgre underlay add".to_owned())
        }
        (Ok(next_hop), Some(_)) => PeerStatus::Up(*next_hop),
        (Ok(_), None) => PeerStatus::Down("the underlay has no IPv4 endpoint".to_owned()),
        (Err(why), _) => PeerStatus::Unresolved(why.to_string()),
    };
    let exit = exit(route.as_ref(), &observed.links, &ground.underlays).ok();
    let next_hop = next_hop.ok().map(|next_hop| next_hop.destination_mac);
    (PeerOutcome { status, endpoint, neighbor }, Way { source, exit, next_hop })
}

/// The neighbour that a route needs resolved: interface and address.
fn next_hop(ground: &Ground, route: &Route, remote: IpAddr) -> Option<(u32, IpAddr)> {
    let ours = ground.underlays.contains(&route.ifindex) && !route.local;
    ours.then(|| (route.ifindex, next_hop_address(route, remote)))
}

/// Our endpoint on an underlay interface.
fn source(state: &State, observed: &Observed, ifindex: u32) -> Option<Ipv4Addr> {
    let name = &observed.links.get(&ifindex)?.name;
    match state.underlays.get(name)?.local {
        IpAddr::V4(local) => Some(local),
        IpAddr::V6(_) => None,
    }
}

/// The record of an adjacency.
pub(super) fn adjacency(
    observed: &Observed,
    peer: &Peer,
    remote: Ipv4Addr,
    member: &Member,
    way: &Way,
) -> AdjacencyRecord {
    let outer = Outer {
        source: IpAddr::V4(way.source.unwrap_or(Ipv4Addr::UNSPECIFIED)),
        destination: IpAddr::V4(remote),
        ttl: peer.ttl,
        tos: Tos::Fixed(peer.tos),
        key: member.key.map_or(Key::None, Key::Plain),
        dont_fragment: if peer.df == Df::Set { DontFragment::Set } else { DontFragment::Unset },
        checksum: false,
        sequence: false,
        encapsulation: Encapsulation::Gre,
    };
    let link = way.exit.filter(|_| way.source.is_some()).map(|exit| template::Link {
        ifindex: exit.ifindex,
        source_mac: exit.source_mac,
        destination_mac: way.next_hop,
        mtu: exit.mtu,
    });
    let mut template = Template::new(&outer, link.as_ref());
    if template.flags & template_flag::RESOLVED != 0 && observed.is_target(template.ifindex) {
        template.flags |= template_flag::EXPRESS;
        let kind = observed.links.get(&template.ifindex).and_then(|link| link.kind.as_deref());
        if kind != Some("veth") {
            template.flags |= template_flag::SENDS_BACK;
        }
    }
    if let Mtu::Fixed(mtu) = peer.mtu {
        template.max_frame = template.max_frame.min(mtu + ETHERNET_LEN as u32);
    }
    AdjacencyRecord { segment: member.segment, template }
}

fn mapped(address: Ipv4Addr) -> [u32; 4] {
    mapped_v4(u32::from_ne_bytes(address.octets()))
}
