//! From wanted and observed to a plan, starting from what was compiled before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use mgre_common::fdb::FdbKey;
use mgre_common::target::Target;
use mgre_common::wire::ETHERNET_LEN;

use super::affected::{affected, differ};
use super::peer::{Ground, PeerOutcome, Place, adjacency, endpoint, outcome};
use super::{
    Attachment, Choice, EndpointOwner, FixedEntry, FloodTargets, Hook, Observed, Plan, PortRecord, choose,
};
use crate::model::{FdbName, Mode, Peer, Port, State, StaticTarget};
use crate::netlink::Link;

/// What comes of a state and of what the kernel has.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// What the datapath is to hold.
    pub plan: Plan,
    /// For each peer by name, how it can be reached.
    pub peers: OrdMap<Arc<str>, PeerOutcome>,
    /// For each interface by name, which hooks it gets.
    pub hooks: BTreeMap<String, Choice>,
    /// What it was compiled from.
    pub(super) state: State,
    pub(super) observed: Observed,
    pub(super) ground: Ground,
    /// Peers by endpoint.
    pub(super) remotes: OrdSet<(IpAddr, Arc<str>)>,
    /// How many peers there are for each neighbour that packets go to; none is zero.
    pub(super) next_hops: OrdMap<(u32, IpAddr), u32>,
    /// How many adjacencies of a segment there are for each MTU; none is zero.
    pub(super) mtus: OrdMap<(u16, u32), u32>,
}

/// Works it out from nothing.
pub fn compile(state: &State, observed: &Observed) -> Compiled {
    Compiled::default().next(state, observed)
}

impl Compiled {
    /// What comes of another state and picture. It is what [`compile`] says, and costs what is
    /// different.
    #[must_use]
    pub fn next(&self, state: &State, observed: &Observed) -> Self {
        let ground = Ground::new(state, observed);
        let names = affected(self, state, observed, &ground);
        let mut next = Self { state: state.clone(), observed: observed.clone(), ground, ..self.clone() };
        let frame = self.frame_differs(state, observed);
        if frame {
            next.frame(self);
        }
        let moved = next.peers(self, &names);
        next.count_mtus(self);
        next.fixed(self, frame || moved);
        next
    }

    /// The peers with an endpoint, in order.
    pub fn peers_at(&self, endpoint: IpAddr) -> impl Iterator<Item = &Arc<str>> {
        let from = (endpoint, Arc::<str>::from(""));
        self.remotes.range(from..).take_while(move |(ip, _)| *ip == endpoint).map(|(_, name)| name)
    }

    /// Every peer's endpoint, as far as it is known, once.
    pub fn remotes(&self) -> Vec<IpAddr> {
        let mut remotes: Vec<IpAddr> = self.remotes.iter().map(|(ip, _)| *ip).collect();
        remotes.dedup();
        remotes
    }

    /// Whether some peer is reached by way of a neighbour.
    pub fn is_next_hop(&self, neighbor: (u32, IpAddr)) -> bool {
        self.next_hops.contains_key(&neighbor)
    }

    /// Notes that a peer is reached by way of a neighbour, or no more.
    fn count_next_hop(&mut self, neighbor: Option<(u32, IpAddr)>, added: bool) {
        if let Some(neighbor) = neighbor {
            count(&mut self.next_hops, neighbor, added);
        }
    }

    /// Whether anything but peers and static entries may come out differently.
    fn frame_differs(&self, state: &State, observed: &Observed) -> bool {
        differ(&self.state.underlays, &state.underlays)
            || differ(&self.state.segments, &state.segments)
            || differ(&self.state.ports, &state.ports)
            || differ(&self.observed.links, &observed.links)
            || differ(&self.observed.features, &observed.features)
            || self.observed.own_xdp != observed.own_xdp
            || self.observed.slow != observed.slow
            || self.observed.blocked != observed.blocked
    }

    /// Interfaces, segments and ports: few enough to be done anew.
    fn frame(&mut self, old: &Self) {
        let mut frame = Frame::new(&self.observed);
        for (name, underlay) in &self.state.underlays {
            if let Some(link) = self.observed.link(name) {
                frame.attach(name, link, Hook::Underlay, Some((underlay.mode, Hook::XdpUnderlay)));
                frame.express(link.index);
            }
        }
        for (name, port) in &self.state.ports {
            frame.port(&self.state, name, port);
        }
        frame.slow();
        self.plan.slow = self.observed.slow.map_or(0, |pair| pair.inner.0);
        let Frame { attachments, hooks, devices, ports, mut port_lists, .. } = frame;
        let early =
            attachments.keys().filter(|(_, hook)| *hook == Hook::XdpUnderlay).map(|(ifindex, _)| *ifindex);
        let mac = |ifindex: u32| self.observed.links.get(&ifindex)?.mac;
        self.plan.near_macs = early.filter_map(mac).collect();
        self.hooks = hooks;
        self.plan.attachments = attachments;
        self.plan.devices = devices;
        self.plan.ports = ports;
        let segments: BTreeMap<u16, FloodTargets> = (self.state.segments.values())
            .map(|segment| {
                let flags = FloodTargets {
                    hub: segment.hub,
                    suppress: segment.suppress_neighbors,
                    blocked_groups: segment.link_local.blocked(),
                    ..FloodTargets::default()
                };
                (segment.id, flags)
            })
            .collect();
        for id in old.plan.floods.keys().filter(|id| !segments.contains_key(id)) {
            self.plan.floods.remove(id);
        }
        for (id, flags) in segments {
            let ports = port_lists.remove(&id).unwrap_or_default();
            let FloodTargets { adjacencies, .. } = self.plan.floods.get(&id).cloned().unwrap_or_default();
            put(&mut self.plan.floods, id, FloodTargets { ports, adjacencies, ..flags });
        }
        for (key, _) in old.ground.local_endpoints() {
            self.plan.endpoints.remove(&key);
        }
        for (key, flags) in self.ground.local_endpoints() {
            self.plan.endpoints.insert(key, EndpointOwner::local(flags));
        }
    }

    /// Enters the endpoints of these peers. Gives them, and those with whom one of them has or had an endpoint in
    /// common.
    fn enter_endpoints(&mut self, old: &Self, names: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
        let mut touched = BTreeSet::new();
        for name in names {
            let (before, peer) = (old.state.peers.get(name), self.state.peers.get(name));
            let was = old.peers.get(name).and_then(|outcome| outcome.endpoint);
            let now = peer.and_then(|peer| endpoint(&self.observed, &self.ground, peer));
            if was == now && before == peer {
                continue;
            }
            if was != now {
                was.into_iter().for_each(|was| drop(self.remotes.remove(&(was, Arc::clone(name)))));
                self.remotes.extend(now.map(|now| (now, Arc::clone(name))));
            }
            touched.extend(was.into_iter().chain(now));
        }
        let mut names = names.clone();
        for endpoint in touched {
            let others: Vec<_> = self.peers_at(endpoint).cloned().collect();
            names.extend(others);
        }
        names
    }

    /// A peer with the same endpoint in the same segment that comes first, if there is one: those given by address
    /// before those given by name, and then by their names. Both would get every flooded frame, and frames from there
    /// can be one's only.
    fn rival(&self, name: &Arc<str>, peer: &Peer) -> Option<Arc<str>> {
        let endpoint = endpoint(&self.observed, &self.ground, peer)?;
        let rank = |name: &Arc<str>, peer: &Peer| (peer.remote_address().is_none(), Arc::clone(name));
        let mine = rank(name, peer);
        let comes_first = |other: &&Arc<str>| {
            self.state.peers.get(*other).is_some_and(|its| {
                rank(other, its) < mine && its.segments.keys().any(|name| peer.segments.contains_key(name))
            })
        };
        self.peers_at(endpoint).find(comes_first).cloned()
    }

    /// Brings these peers up to date. Says whether one that there was got or lost an adjacency.
    fn peers(&mut self, old: &Self, names: &BTreeSet<Arc<str>>) -> bool {
        let names = &self.enter_endpoints(old, names);
        let place = |state: &State, peer: Option<&Arc<Peer>>, endpoint| {
            peer.map(|peer| Place::new(state, peer, endpoint)).unwrap_or_default()
        };
        // Most often only the way to the peers is another.
        let same = old.state.peers.ptr_eq(&self.state.peers)
            && old.state.segments.ptr_eq(&self.state.segments)
            && old.ground.locals == self.ground.locals;
        let mut moved = false;
        // Two peers may have one endpoint, and share keys.
        let mut endpoints = BTreeSet::new();
        let mut worked = Vec::with_capacity(names.len());
        for name in names {
            let was = old.peers.get(name);
            let peer = self.state.peers.get(name);
            let now = peer.map(|peer| {
                let rival = self.rival(name, peer);
                let (outcome, way) = outcome(&self.state, &self.observed, &self.ground, peer, rival);
                (Arc::clone(peer), outcome, way)
            });
            let endpoint = now.as_ref().and_then(|(_, outcome, _)| outcome.place());
            let to = place(&self.state, peer, endpoint);
            let mut moves = !(same && was.is_some_and(|was| was.place() == endpoint));
            if moves {
                let from = place(&old.state, old.state.peers.get(name), was.and_then(PeerOutcome::place));
                moves = from != to || self.ground.locals != old.ground.locals;
                if moves {
                    moved |= was.is_some();
                    endpoints.extend(from.remote.into_iter().chain(to.remote));
                    self.take_out(old, &from);
                }
            }
            let neighbors =
                [was.and_then(|was| was.neighbor), now.as_ref().and_then(|(_, outcome, _)| outcome.neighbor)];
            if neighbors[0] != neighbors[1] {
                self.count_next_hop(neighbors[0], false);
                self.count_next_hop(neighbors[1], true);
            }
            match now {
                Some((peer, outcome, way)) => worked.push((name, peer, outcome, way, to, moves)),
                None => drop(self.peers.remove(name)),
            }
        }
        // Only now: an id or a key may go from one to another.
        for (name, peer, outcome, way, to, moves) in worked {
            for member in &to.members {
                let Some(remote) = to.remote else { continue };
                let record = adjacency(&self.observed, &peer, remote, member, &way);
                put(&mut self.plan.adjacencies, member.id, record);
                if moves && let Some(targets) = self.plan.floods.get_mut(&member.segment) {
                    targets.adjacencies.insert(member.id);
                }
            }
            put(&mut self.peers, Arc::clone(name), outcome);
        }
        self.endpoints(endpoints);
        moved
    }

    /// Takes a peer out of the tables.
    fn take_out(&mut self, old: &Self, from: &Place) {
        for member in &from.members {
            self.plan.adjacencies.remove(&member.id);
            if let Some(targets) = self.plan.floods.get_mut(&member.segment) {
                targets.adjacencies.remove(&member.id);
            }
        }
        for (key, _) in from.endpoints(&old.ground) {
            self.plan.endpoints.remove(&key);
        }
    }

    /// Enters the keys of all peers at some endpoints.
    fn endpoints(&mut self, endpoints: BTreeSet<IpAddr>) {
        for endpoint in endpoints {
            let mut keys = Vec::new();
            let placed =
                |name: &&Arc<str>| self.peers.get(*name).is_some_and(|outcome| outcome.place().is_some());
            for peer in self.peers_at(endpoint).filter(placed).filter_map(|name| self.state.peers.get(name)) {
                keys.append(&mut Place::new(&self.state, peer, Some(endpoint)).endpoints(&self.ground));
            }
            for (key, owner) in keys {
                put(&mut self.plan.endpoints, key, owner);
            }
        }
    }

    /// FDB entries that are given. `all`: what they refer to may be another.
    fn fixed(&mut self, old: &Self, all: bool) {
        use imbl::ordmap::DiffItem;
        let mut added = Vec::new();
        let mut all = all;
        for item in old.state.fdb.diff(&self.state.fdb) {
            match item {
                DiffItem::Add(name, target) => added.push((name, target)),
                // What it was in the way of comes back.
                DiffItem::Update { .. } | DiffItem::Remove(..) => all = true,
            }
        }
        if !all {
            let entries: Vec<_> =
                added.into_iter().filter_map(|(name, target)| self.static_entry(name, target)).collect();
            self.plan.fixed.extend(entries);
            return;
        }
        let locals = self.state.ports.iter().filter_map(|(name, port)| {
            let record = self.plan.ports.get(&port.id).filter(|record| record.host)?;
            let mac = self.observed.link(name)?.mac.filter(|mac| mac.is_station())?;
            let entry = FixedEntry { target: Target::port(port.id), local: true };
            Some((FdbKey::new(record.segment, mac), entry))
        });
        let given = self.state.fdb.iter().filter_map(|(name, target)| self.static_entry(name, target));
        let fixed: BTreeMap<FdbKey, FixedEntry> = locals.chain(given).collect();
        for key in old.plan.fixed.keys().filter(|key| !fixed.contains_key(key)) {
            self.plan.fixed.remove(key);
        }
        for (key, entry) in fixed {
            put(&mut self.plan.fixed, key, entry);
        }
    }

    fn static_entry(&self, name: &FdbName, target: &StaticTarget) -> Option<(FdbKey, FixedEntry)> {
        let segment = self.state.segments.get(&name.segment)?;
        let target = match target {
            StaticTarget::Peer(peer) => {
                let peer = self.state.peers.get(peer.as_str())?;
                Target::adjacency(*peer.segments.get(&name.segment)?)
            }
            StaticTarget::Port(port) => Target::port(self.state.ports.get(port)?.id),
        };
        Some((FdbKey::new(segment.id, name.mac), FixedEntry { target, local: false }))
    }
}

/// Interfaces and ports in the making.
struct Frame<'a> {
    observed: &'a Observed,
    attachments: BTreeMap<(u32, Hook), Attachment>,
    hooks: BTreeMap<String, Choice>,
    devices: OrdSet<u32>,
    ports: OrdMap<u32, PortRecord>,
    /// Port ids by segment.
    port_lists: BTreeMap<u16, OrdSet<u32>>,
}

impl<'a> Frame<'a> {
    fn new(observed: &'a Observed) -> Self {
        Self {
            observed,
            attachments: BTreeMap::new(),
            hooks: BTreeMap::new(),
            devices: OrdSet::new(),
            ports: OrdMap::new(),
            port_lists: BTreeMap::new(),
        }
    }

    /// Attaches to an interface: at TC, and at XDP if its mode says so.
    fn attach(&mut self, wanted: &str, link: &Link, hook: Hook, early: Option<(Mode, Hook)>) {
        let interface = link.name.clone();
        if let Some((mode, hook)) = early {
            let features = self.observed.features.get(&link.index).copied();
            let choice = choose(link, features, mode, self.observed.foreign_xdp(link));
            if choice.xdp.is_some() {
                let optional = mode == Mode::Auto;
                let attachment = Attachment { interface: interface.clone(), xdp: choice.xdp, optional };
                self.attachments.insert((link.index, hook), attachment);
            }
            self.hooks.insert(wanted.to_owned(), choice);
        }
        self.attachments.insert((link.index, hook), Attachment { interface, xdp: None, optional: false });
    }

    /// Attaches to the slow path's pair. It is made for that, and everything else goes on without.
    fn slow(&mut self) {
        let pair = self.observed.slow;
        for index in pair.into_iter().flat_map(|pair| [pair.inner.0, pair.outer.0]) {
            let Some(link) = self.observed.links.get(&index) else { continue };
            let attachment = Attachment { interface: link.name.clone(), xdp: None, optional: true };
            self.attachments.insert((index, Hook::Slow), attachment);
        }
    }

    /// Whether XDP may redirect to an interface; if so, it is one of its devices.
    fn express(&mut self, ifindex: u32) -> bool {
        let target = self.observed.is_target(ifindex);
        if target {
            self.devices.insert(ifindex);
        }
        target
    }

    fn port(&mut self, state: &State, name: &str, port: &Port) {
        let Some(segment) = state.segments.get(&port.segment) else { return };
        let interface = port.interface(name);
        let Some(link) = self.observed.link(interface) else { return };
        let host = port.created.is_some();
        if host && !self.observed.is_made(link) {
            // Another interface came to have its name: what the host sends there is not for the segment.
            return;
        }
        if host {
            self.attach(interface, link, Hook::HostPort, None);
        } else {
            self.attach(interface, link, Hook::Port, Some((port.mode, Hook::XdpPort)));
        }
        // The kernel lets a tagged frame be longer by its tag (is_skb_forwardable).
        let max_frame = link.mtu + ETHERNET_LEN as u32 + 4;
        let blocked = self.observed.blocked.contains(&port.id);
        let up = link.up && link.running && !blocked;
        // An end in this namespace would have an index here.
        let peer = !host && link.kind.as_deref() == Some("veth") && link.peer_index.is_none();
        // XDP puts no tag on.
        let express = !host && port.vlan.is_none() && self.express(link.index);
        let (ifindex, vlan, segment) = (link.index, port.vlan.unwrap_or(0), segment.id);
        let storm_limit = port.storm_limit.frames_per_second();
        let record =
            PortRecord { ifindex, vlan, segment, max_frame, up, blocked, host, peer, express, storm_limit };
        self.ports.insert(port.id, record);
        if !blocked {
            self.port_lists.entry(segment).or_default().insert(port.id);
        }
    }
}

/// Counts one more, or one less; what there is none of is not there.
pub(super) fn count<K: Ord + Clone>(counts: &mut OrdMap<K, u32>, key: K, more: bool) {
    match (counts.get_mut(&key), more) {
        (Some(count), true) => *count += 1,
        (None, true) => drop(counts.insert(key, 1)),
        (Some(count), false) if *count > 1 => *count -= 1,
        (_, false) => drop(counts.remove(&key)),
    }
}

/// Puts a value where there is none or another one; what stays the same stays shared.
fn put<K: Ord + Clone, V: PartialEq + Clone>(map: &mut OrdMap<K, V>, key: K, value: V) {
    if map.get(&key) != Some(&value) {
        map.insert(key, value);
    }
}
