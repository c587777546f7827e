//! Answers what the API asks.

use std::collections::HashMap;

use mgre_common::target::Target;
use tokio::task::spawn_blocking;

use super::engine::Engine;
use super::neighbors::peer_state;
use crate::api::messages::{
    FdbFilter, Flushed, PeerView, PortView, Problem, Reply, Request, SegmentView, StatusView, UnderlayView,
};
use crate::datapath::fdb::Entry;
use crate::model::{Document, Peer, Port};
use crate::plan::{Hook, PeerOutcome, PeerStatus};

impl Engine {
    /// Answers one request.
    pub(super) async fn handle(&mut self, request: Request) {
        match request {
            Request::Change { changes, dry_run, reply } => {
                let answer = if dry_run { self.try_out(changes).await } else { self.change(changes).await };
                send(reply, answer);
            }
            Request::Reload { document, reply } => {
                let answer = self.configure(document).await;
                send(reply, answer);
            }
            Request::Flush { filter, reply } => {
                let answer = self.flush(&filter);
                send(reply, answer);
            }
            Request::Underlays(reply) => send(reply, Ok(self.underlay_views())),
            Request::Segments(reply) => send(reply, Ok(self.segment_views())),
            Request::Ports(reply) => send(reply, Ok(self.port_views())),
            Request::Peers { only, reply } => send(reply, Ok(self.peer_views(only.as_deref()))),
            Request::FdbEntry { segment, mac, reply } => {
                let answer = self.list_fdb_entry(&segment, mac);
                send(reply, answer);
            }
            Request::Fdb { filter, reply } => match self.list_fdb(&filter) {
                Ok(listing) => drop(spawn_blocking(move || send(reply, Ok(listing.views())))),
                Err(problem) => send(reply, Err(problem)),
            },
            Request::Neighbors { filter, reply } => {
                let answer = self.list_neighbors(&filter);
                send(reply, answer);
            }
            Request::Stats(reply) => send(reply, Ok(self.stats_view())),
            Request::Status(reply) => send(reply, Ok(self.status_view())),
            Request::Config(reply) => send(reply, Ok(Document::from_state(&self.state))),
            Request::Metrics(reply) => send(reply, Ok(self.metrics())),
            Request::Detach(reply) => {
                let answer = self.detach().await;
                send(reply, answer);
            }
        }
    }

    pub(super) fn underlay_views(&self) -> Vec<UnderlayView> {
        let mut views = Vec::new();
        for (name, underlay) in &self.state.underlays {
            let (hook, reason) = self.hook_of(name, Hook::Underlay);
            views.extend(underlay.locals.iter().map(|local| {
                let (state, problem) = self.underlay_state(name, local);
                UnderlayView {
                    interface: name.clone(),
                    local,
                    mode: underlay.mode,
                    foreign_gre: underlay.foreign_gre,
                    hook: hook.clone(),
                    reason: reason.clone(),
                    state,
                    problem,
                }
            }));
        }
        views
    }

    /// What an interface is attached to, and why that or why not.
    pub(super) fn hook_of(&self, name: &str, hook: Hook) -> (Option<String>, Option<String>) {
        let Some(link) = self.observed.link(name) else {
            return (None, Some(format!("there is no interface named {name}")));
        };
        if !self.plan.attachments.contains_key(&(link.index, hook)) {
            return (None, Some("not attached".to_owned()));
        }
        if let Some(refusal) = self.datapath.refusal(link.index, hook) {
            return (None, Some(format!("cannot be attached to: {refusal}")));
        }
        let tc = self.datapath.tc_hook();
        let early = if hook == Hook::Underlay { Hook::XdpUnderlay } else { Hook::XdpPort };
        if let Some(refusal) = self.datapath.refusal(link.index, early) {
            return (Some(tc.name().to_owned()), Some(format!("its driver refused XDP: {refusal}")));
        }
        match self.compiled.hooks.get(name) {
            Some(choice) => (Some(choice.hook(tc)), Some(choice.reason.clone())),
            None => {
                let reason = "an interface of the host: TC on its transmit path";
                (Some(tc.name().to_owned()), Some(reason.to_owned()))
            }
        }
    }

    fn segment_views(&self) -> Vec<SegmentView> {
        let given = self.given_entries();
        let view = |(name, segment): (&String, &crate::model::Segment)| SegmentView {
            name: name.clone(),
            key: segment.key,
            vsid: segment.vsid,
            mtu: Some(self.compiled.segment_mtu(&self.state, &self.observed, segment)),
            aging_seconds: segment.aging_seconds,
            max_macs: segment.max_macs,
            hub: segment.hub,
            clamp_mss: segment.clamp_mss,
            suppress_neighbors: segment.suppress_neighbors,
            link_local: segment.link_local,
            peers: u64::from(self.state.peer_count(name)),
            ports: self.state.ports_in(name).count() as u64,
            fdb_entries: given.get(&segment.id).map_or(0, |(all, _)| *all)
                + u64::from(self.datapath.fdb.learned_in(segment.id)),
        };
        self.state.segments.iter().map(view).collect()
    }

    fn port_views(&self) -> Vec<PortView> {
        self.state.ports.iter().map(|(name, port)| self.port_view(name, port)).collect()
    }

    fn port_view(&self, name: &str, port: &Port) -> PortView {
        let target = Target::port(port.id);
        let traffic = self.datapath.counters().traffic(target);
        let hook = if port.created.is_some() { Hook::HostPort } else { Hook::Port };
        let (state, reason) = self.port_state(name, port);
        let interface = port.interface(name);
        PortView {
            name: name.to_owned(),
            interface: interface.to_owned(),
            vlan: port.vlan,
            segment: port.segment.clone(),
            mode: port.mode,
            hook: self.hook_of(interface, hook).0,
            created: port.created.clone(),
            storm_limit: port.storm_limit,
            mtu: self.observed.link(interface).map(|link| link.mtu),
            state,
            reason,
            receive_packets: traffic.receive_packets,
            receive_bytes: traffic.receive_bytes,
            transmit_packets: traffic.transmit_packets,
            transmit_bytes: traffic.transmit_bytes,
            drops: self.drop_count(target),
        }
    }

    pub(super) fn drop_count(&self, target: Target) -> u64 {
        self.datapath.counters().drops(target).packets.iter().flatten().sum()
    }

    fn peer_views(&self, only: Option<&str>) -> Vec<PeerView> {
        let mut given: HashMap<Target, u64> = HashMap::new();
        for entry in self.plan.fixed.values() {
            *given.entry(entry.target).or_default() += 1;
        }
        match only {
            Some(name) => self
                .state
                .peers
                .get(name)
                .map(|peer| self.peer_view(name, peer, &given))
                .into_iter()
                .collect(),
            None => self.state.peers.iter().map(|(name, peer)| self.peer_view(name, peer, &given)).collect(),
        }
    }

    fn peer_view(&self, name: &str, peer: &Peer, given: &HashMap<Target, u64>) -> PeerView {
        let outcome = self.compiled.peers.get(name);
        let unknown = PeerStatus::Unresolved("not looked at yet".to_owned());
        let (state, reason) = peer_state(outcome.map_or(&unknown, |outcome| &outcome.status));
        let adjacencies: Vec<_> =
            peer.segments.iter().map(|(segment, id)| self.adjacency_view(segment, *id, given)).collect();
        let sum = |of: fn(&crate::api::messages::AdjacencyView) -> u64| adjacencies.iter().map(of).sum();
        PeerView {
            name: name.to_owned(),
            remote: peer.remote.clone(),
            endpoint: outcome.and_then(|outcome| outcome.endpoint),
            segments: peer.segments.keys().cloned().collect(),
            state,
            reason: reason.map(str::to_owned),
            rx_packets: sum(|view| view.rx_packets),
            rx_bytes: sum(|view| view.rx_bytes),
            tx_packets: sum(|view| view.tx_packets),
            tx_bytes: sum(|view| view.tx_bytes),
            drops: sum(|view| view.drops),
            last_seen_seconds: adjacencies.iter().filter_map(|view| view.last_seen_seconds).min(),
            mtu: adjacencies.iter().filter_map(|view| view.mtu).min(),
            ttl: peer.ttl,
            tos: peer.tos,
            df: peer.df,
            max_macs: peer.max_macs,
            csum: peer.csum,
            seq: peer.seq,
            encap: peer.encap,
            storm_limit: peer.storm_limit,
            adjacencies,
        }
    }

    /// The id of a segment.
    ///
    /// # Errors
    /// There is none of that name.
    pub(super) fn segment_id(&self, name: &str) -> Result<u16, Problem> {
        let segment = self.state.segments.get(name);
        segment
            .map(|segment| segment.id)
            .ok_or_else(|| Problem::not_found(format!("there is no segment {name}")))
    }

    /// Which entries a filter picks.
    pub(super) fn picked(&self, filter: &FdbFilter) -> Result<impl Fn(&Entry) -> bool + use<>, Problem> {
        let segment = filter.segment.as_ref().map(|name| self.segment_id(name)).transpose()?;
        let targets: Option<Vec<Target>> = match &filter.peer {
            None => None,
            Some(name) => {
                let peer = self
                    .state
                    .peers
                    .get(name.as_str())
                    .ok_or_else(|| Problem::not_found(format!("there is no peer {name}")))?;
                Some(peer.segments.values().map(|id| Target::adjacency(*id)).collect())
            }
        };
        Ok(move |entry: &Entry| {
            segment.is_none_or(|segment| entry.key.segment() == segment)
                && targets.as_ref().is_none_or(|targets| targets.contains(&entry.target))
        })
    }

    fn flush(&mut self, filter: &FdbFilter) -> Result<Flushed, Problem> {
        let picked = self.picked(filter)?;
        let removed = self.datapath.fdb.remove_where(|entry| entry.seen.is_some() && picked(entry));
        self.touched.entries(&removed);
        self.update_limits();
        self.report_removed(&removed);
        Ok(Flushed { removed: removed.len() as u64 })
    }

    fn status_view(&self) -> StatusView {
        let is_up = |outcome: &&PeerOutcome| matches!(outcome.status, PeerStatus::Up(_));
        let peers_up = self.compiled.peers.values().filter(is_up).count() as u64;
        StatusView {
            instance: self.options.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            kernel: self.kernel.view(),
            uptime_seconds: self.started.elapsed().as_secs(),
            underlays: self.underlay_views(),
            segments: self.state.segments.len() as u64,
            peers: self.state.peers.len() as u64,
            peers_up,
            ports: self.state.ports.len() as u64,
            adjacencies: u64::from(self.state.adjacency_count()),
            adjacency_capacity: u64::from(self.options.adjacencies),
            fdb_entries: u64::from(self.datapath.fdb.len()),
            fdb_capacity: u64::from(self.datapath.fdb.capacity()),
            events: self.datapath.tallies.events(),
            events_lost: self.events_lost(),
            netlink_losses: self.losses.count(),
            slow_path: self.slow_path_view(),
            held: self.held_views(),
        }
    }
}

fn send<T>(reply: Reply<T>, answer: Result<T, Problem>) {
    if reply.send(answer).is_err() {
        tracing::debug!("nobody waits for the answer");
    }
}
