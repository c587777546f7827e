//! From wanted and observed to a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use mgre_common::endpoint::{EndpointKey, endpoint_kind, mapped_v4};
use mgre_common::fdb::FdbKey;
use mgre_common::table::{Template, template_flag};
use mgre_common::target::Target;
use mgre_common::template::{self, OuterV4};
use mgre_common::wire::ETHERNET_LEN;

use super::{
    AdjacencyRecord, Attachment, Choice, FixedEntry, FloodTargets, Hook, Observed, Plan, PortRecord, choose,
};
use crate::model::{Df, Mode, Mtu, Peer, Port, Segment, State, StaticTarget};
use crate::netlink::Link;
use crate::netlink::resolve::{NextHop, next_hop_address, resolve};

/// The MTU of an underlay that is not known (yet).
const USUAL_MTU: u32 = 1500;

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

/// What comes of a state and of what the kernel has.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// What the datapath is to hold.
    pub plan: Plan,
    /// For each peer by name, how it can be reached.
    pub peers: BTreeMap<String, PeerOutcome>,
    /// For each interface by name, which hooks it gets.
    pub hooks: BTreeMap<String, Choice>,
}

/// Works it out.
pub fn compile(state: &State, observed: &Observed) -> Compiled {
    let mut compiler = Compiler::new(state, observed);
    compiler.segments_and_ports();
    let peers = state.peers.iter().map(|(name, peer)| (name.clone(), compiler.peer(peer))).collect();
    compiler.fixed_entries();
    Compiled { plan: compiler.plan, peers, hooks: compiler.hooks }
}

/// The MTU of interfaces in a segment: what it was told, or what the smallest
/// underlay leaves.
pub fn segment_mtu(state: &State, observed: &Observed, segment: &Segment) -> u32 {
    match segment.mtu {
        Mtu::Fixed(mtu) => mtu,
        Mtu::Auto => {
            let underlays = state.underlays.keys().filter_map(|name| observed.link(name));
            let underlay = underlays.map(|link| link.mtu).min().unwrap_or(USUAL_MTU);
            template::overlay_mtu(underlay, segment.key.is_some())
        }
    }
}

struct Compiler<'a> {
    state: &'a State,
    observed: &'a Observed,
    plan: Plan,
    hooks: BTreeMap<String, Choice>,
    /// Interfaces that outer packets may leave by.
    underlays: Vec<u32>,
    /// Addresses that outer packets may be for.
    locals: BTreeSet<Ipv4Addr>,
}

impl<'a> Compiler<'a> {
    fn new(state: &'a State, observed: &'a Observed) -> Self {
        let mut this = Self {
            state,
            observed,
            plan: Plan::default(),
            hooks: BTreeMap::new(),
            underlays: Vec::new(),
            locals: BTreeSet::new(),
        };
        for (name, underlay) in &state.underlays {
            if let IpAddr::V4(local) = underlay.local {
                this.locals.insert(local);
            }
            if let Some(link) = observed.link(name) {
                this.underlays.push(link.index);
                this.attach(link, Hook::Underlay, Some((underlay.mode, Hook::XdpUnderlay)));
            }
        }
        for local in &this.locals {
            let key =
                EndpointKey { remote: [0; 4], local: mapped(*local), key: 0, kind: endpoint_kind::LOCAL };
            this.plan.endpoints.insert(key, 0);
        }
        this
    }

    /// Attaches to an interface: at TC, and at XDP if its mode says so.
    fn attach(&mut self, link: &Link, hook: Hook, early: Option<(Mode, Hook)>) {
        let interface = link.name.clone();
        if let Some((mode, hook)) = early {
            let features = self.observed.features.get(&link.index).copied().unwrap_or_default();
            let choice = choose(link, features, mode, self.observed.foreign_xdp(link));
            if choice.xdp.is_some() {
                let optional = mode == Mode::Auto;
                let attachment = Attachment { interface: interface.clone(), xdp: choice.xdp, optional };
                self.plan.attachments.insert((link.index, hook), attachment);
            }
            self.hooks.insert(interface.clone(), choice);
        }
        self.plan
            .attachments
            .insert((link.index, hook), Attachment { interface, xdp: None, optional: false });
    }

    /// Whether XDP may redirect to an interface; if so, it is one of its devices.
    fn express(&mut self, ifindex: u32) -> bool {
        let target = self.observed.features.get(&ifindex).is_some_and(|features| features.is_target());
        if target {
            self.plan.devices.insert(ifindex);
        }
        target
    }

    fn segments_and_ports(&mut self) {
        for segment in self.state.segments.values() {
            self.plan.floods.insert(segment.id, FloodTargets::default());
        }
        for (name, port) in &self.state.ports {
            self.port(name, port);
        }
    }

    fn port(&mut self, name: &str, port: &Port) {
        let Some(segment) = self.state.segments.get(&port.segment) else { return };
        let Some(link) = self.observed.link(name) else { return };
        let host = port.created.is_some();
        if host {
            self.attach(link, Hook::HostPort, None);
        } else {
            self.attach(link, Hook::Port, Some((port.mode, Hook::XdpPort)));
        }
        // The kernel lets a tagged frame be longer by its tag (is_skb_forwardable).
        let max_frame = link.mtu + ETHERNET_LEN as u32 + 4;
        let up = link.up && link.running;
        // An end in this namespace would have an index here.
        let peer = !host && link.kind.as_deref() == Some("veth") && link.peer_index.is_none();
        let express = !host && self.express(link.index);
        let (ifindex, segment) = (link.index, segment.id);
        let record = PortRecord { ifindex, segment, max_frame, up, host, peer, express };
        self.plan.ports.insert(port.id, record);
        self.plan.floods.entry(segment).or_default().ports.push(port.id);
        if let Some(mac) = link.mac.filter(|mac| host && mac.is_station()) {
            let entry = FixedEntry { target: Target::port(port.id), local: true };
            self.plan.fixed.insert(FdbKey::new(segment, mac), entry);
        }
    }

    fn peer(&mut self, peer: &Peer) -> PeerOutcome {
        let endpoint = peer.remote_address().or_else(|| self.observed.endpoints.get(&peer.remote).copied());
        let Some(IpAddr::V4(remote)) = endpoint else {
            let status = PeerStatus::Unresolved(format!("{} has no IPv4 address", peer.remote));
            return PeerOutcome { status, endpoint, neighbor: None };
        };
        let route = self.observed.routes.get(&IpAddr::V4(remote)).copied().flatten();
        let neighbor = route
            .filter(|route| self.underlays.contains(&route.ifindex) && !route.local)
            .map(|route| (route.ifindex, next_hop_address(&route, IpAddr::V4(remote))));
        let next_hop = resolve(
            IpAddr::V4(remote),
            route.as_ref(),
            &self.observed.links,
            &self.underlays,
            &self.observed.neighbors,
        );
        let source = route.and_then(|route| self.source(route.ifindex));
        let status = match (&next_hop, source) {
            (_, None) if self.underlays.is_empty() => {
                PeerStatus::Down("there is no underlay: mgre underlay add".to_owned())
            }
            (Ok(next_hop), Some(_)) => PeerStatus::Up(*next_hop),
            (Ok(_), None) => PeerStatus::Down("the underlay has no IPv4 endpoint".to_owned()),
            (Err(why), _) => PeerStatus::Unresolved(why.to_string()),
        };
        for (segment, id) in &peer.segments {
            self.adjacency(peer, remote, source, segment, *id, next_hop.as_ref().ok());
        }
        PeerOutcome { status, endpoint, neighbor }
    }

    /// Our endpoint on an underlay interface.
    fn source(&self, ifindex: u32) -> Option<Ipv4Addr> {
        let name = &self.observed.links.get(&ifindex)?.name;
        match self.state.underlays.get(name)?.local {
            IpAddr::V4(local) => Some(local),
            IpAddr::V6(_) => None,
        }
    }

    fn adjacency(
        &mut self,
        peer: &Peer,
        remote: Ipv4Addr,
        source: Option<Ipv4Addr>,
        segment: &str,
        id: u32,
        next_hop: Option<&NextHop>,
    ) {
        let Some(segment) = self.state.segments.get(segment) else { return };
        let outer = OuterV4 {
            source: source.unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
            destination: remote.octets(),
            ttl: peer.ttl,
            tos: peer.tos,
            key: segment.key,
            dont_fragment: peer.df == Df::Set,
        };
        let link = next_hop.filter(|_| source.is_some()).map(|next_hop| template::Link {
            ifindex: next_hop.ifindex,
            source_mac: next_hop.source_mac,
            destination_mac: Some(next_hop.destination_mac),
            mtu: next_hop.mtu,
        });
        let mut template = Template::gre_v4(&outer, link.as_ref());
        if template.flags & template_flag::RESOLVED != 0 && self.express(template.ifindex) {
            template.flags |= template_flag::EXPRESS;
        }
        if let Mtu::Fixed(mtu) = peer.mtu {
            template.max_frame = template.max_frame.min(mtu + ETHERNET_LEN as u32);
        }
        self.plan.adjacencies.insert(id, AdjacencyRecord { segment: segment.id, template });
        self.plan.floods.entry(segment.id).or_default().adjacencies.push(id);
        for local in &self.locals {
            let mut key = EndpointKey {
                remote: mapped(remote),
                local: mapped(*local),
                key: segment.key.unwrap_or(0).to_be(),
                kind: if segment.key.is_some() { endpoint_kind::KEYED } else { endpoint_kind::KEYLESS },
            };
            self.plan.endpoints.insert(key, id);
            (key.key, key.kind) = (0, endpoint_kind::KNOWN);
            self.plan.endpoints.insert(key, 0);
        }
    }

    fn fixed_entries(&mut self) {
        for (name, target) in &self.state.fdb {
            let Some(segment) = self.state.segments.get(&name.segment) else { continue };
            let target = match target {
                StaticTarget::Peer(peer) => self
                    .state
                    .peers
                    .get(peer)
                    .and_then(|peer| peer.segments.get(&name.segment))
                    .map(|id| Target::adjacency(*id)),
                StaticTarget::Port(port) => self.state.ports.get(port).map(|port| Target::port(port.id)),
            };
            if let Some(target) = target {
                let entry = FixedEntry { target, local: false };
                self.plan.fixed.insert(FdbKey::new(segment.id, name.mac), entry);
            }
        }
    }
}

fn mapped(address: Ipv4Addr) -> [u32; 4] {
    mapped_v4(u32::from_ne_bytes(address.octets()))
}
