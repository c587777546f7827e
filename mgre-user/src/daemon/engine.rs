//! The engine: one task that owns the wanted state, the picture of the kernel and
//! the datapath, and brings the last in line with the first two.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use mgre_common::target::Target;

use super::Options;
use super::index::Index;
use super::names::Names;
use super::observe::{Stale, refresh};
use super::store::Store;
use crate::api::messages::{Event, EventKind, PeerState, Request};
use crate::datapath::Datapath;
use crate::datapath::attach::Attachments;
use crate::datapath::fdb::Entry;
use crate::learn::Damper;
use crate::model::{Ids, State};
use crate::netlink::{Change, Monitor, Netlink};
use crate::plan::{Choice, Compiled, Hook, Observed, PeerOutcome, PeerStatus, Plan, compile, diff};

/// Changes in the kernel come in bursts: they are gathered for so long.
const GATHER: Duration = Duration::from_millis(5);
/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often neighbours are asked for again, for kernels that do not keep them by themselves.
const KEEP_SECONDS: u32 = 15;
/// An id that is free again is not given out for so long.
const REST_SECONDS: u32 = 3;

/// The engine.
pub(super) struct Engine {
    pub(super) options: Options,
    pub(super) kernel: String,
    pub(super) started: Instant,
    pub(super) state: State,
    /// Names by id, of `state`.
    pub(super) index: Index,
    pub(super) promiscuous: BTreeSet<String>,
    pub(super) store: Arc<Store>,
    pub(super) netlink: Netlink,
    pub(super) observed: Observed,
    pub(super) plan: Plan,
    pub(super) outcomes: BTreeMap<String, PeerOutcome>,
    pub(super) hooks: BTreeMap<String, Choice>,
    pub(super) datapath: Datapath,
    pub(super) damper: Damper,
    pub(super) full: BTreeSet<Target>,
    pub(super) full_segments: BTreeSet<u16>,
    pub(super) learn_events: u64,
    /// Addresses since the last tick that the FDB had no room for.
    pub(super) unlearned: u64,
    pub(super) moves: HashMap<u16, u64>,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) names: Names,
    kept: BTreeSet<(u32, IpAddr)>,
    resting: Vec<(u32, Resting)>,
    stale: Stale,
    gather_until: Option<tokio::time::Instant>,
}

/// An id that is free again, and since when.
enum Resting {
    Segment(u16),
    Port(u32),
    Adjacency(u32),
}

/// What an engine is made of.
pub(super) struct Parts {
    pub(super) options: Options,
    pub(super) kernel: String,
    pub(super) state: State,
    pub(super) promiscuous: BTreeSet<String>,
    pub(super) store: Store,
    pub(super) netlink: Netlink,
    pub(super) datapath: Datapath,
    pub(super) events: broadcast::Sender<Event>,
}

impl Engine {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            options: parts.options,
            kernel: parts.kernel,
            started: Instant::now(),
            index: Index::new(&parts.state),
            state: parts.state,
            promiscuous: parts.promiscuous,
            store: Arc::new(parts.store),
            netlink: parts.netlink,
            observed: Observed::default(),
            plan: Plan::default(),
            outcomes: BTreeMap::new(),
            hooks: BTreeMap::new(),
            datapath: parts.datapath,
            damper: Damper::default(),
            full: BTreeSet::new(),
            full_segments: BTreeSet::new(),
            learn_events: 0,
            unlearned: 0,
            moves: HashMap::new(),
            events: parts.events,
            names: Names::new(),
            kept: BTreeSet::new(),
            resting: Vec::new(),
            stale: Stale::default(),
            gather_until: None,
        }
    }

    /// Puts the saved state in force.
    ///
    /// # Errors
    /// The kernel cannot be looked at, or the datapath not be set up.
    pub(super) async fn start(&mut self) -> Result<()> {
        // Zero is the time of what was never seen.
        self.datapath.set_clock(1);
        let links = Stale { links: true, ..Stale::default() };
        refresh(&self.netlink, &self.state, &mut self.observed, links).await?;
        let state = self.state.clone();
        if let Err(problem) = self.create_interfaces(&state).await {
            tracing::warn!("{problem}");
        }
        refresh(&self.netlink, &self.state, &mut self.observed, Stale::ALL).await?;
        self.observed.own_xdp = Attachments::left_behind(&self.options.pins())?
            .into_iter()
            .filter(|(_, hook)| matches!(hook, Hook::XdpUnderlay | Hook::XdpPort))
            .map(|(ifindex, _)| ifindex)
            .collect();
        let Compiled { plan, peers, hooks } = compile(&self.state, &self.observed);
        self.hooks = hooks;
        if let Err(error) = self.datapath.inherit(&self.options.pins(), &plan) {
            tracing::warn!("what the daemon before had learned and counted is lost: {error:#}");
        }
        self.follow(plan)?;
        self.datapath.detach_unused()?;
        self.take_outcomes(peers);
        self.names.ask_again(&self.state);
        self.keep_neighbors(true).await;
        self.fit_interfaces().await;
        Ok(())
    }

    /// Runs until it is told to detach, or until `shutdown` is done.
    pub(super) async fn run(
        &mut self,
        mut requests: mpsc::Receiver<Request>,
        mut monitor: Monitor,
        ring: RingBuf<MapData>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<()> {
        // SAFETY: the ring owns its descriptor, which stays open and the same until the
        // `AsyncFd` has let go of it and is dropped.
        let mut ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)
            .context("cannot wait for events")?;
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(shutdown);
        loop {
            let gathered = self.gather_until;
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                request = requests.recv() => match request {
                    None => return Ok(()),
                    Some(Request::Detach(reply)) => {
                        let detached = self.detach().await;
                        let ok = detached.is_ok();
                        if reply.send(detached).is_err() {
                            tracing::debug!("nobody waits for the answer");
                        }
                        if ok {
                            return Ok(());
                        }
                    }
                    Some(request) => self.handle(request).await,
                },
                change = monitor.next() => match change {
                    Ok(change) => self.note(change),
                    Err(error) => {
                        tracing::warn!(%error, "lost the kernel's notifications, starting anew");
                        monitor = Monitor::open()?;
                        self.note(Change::Resynchronize);
                    }
                },
                ready = ring.readable_mut() => {
                    let mut ready = ready.context("cannot wait for events")?;
                    if self.learn(ready.get_inner_mut()) {
                        ready.clear_ready();
                    }
                }
                resolved = self.names.next() => {
                    let (name, address) = resolved;
                    self.resolved(name, address);
                }
                () = sleep_until(gathered.unwrap_or_else(tokio::time::Instant::now)), if gathered.is_some() => {
                    self.gather_until = None;
                    self.catch_up().await;
                }
                _ = tick.tick() => self.tick().await,
            }
        }
    }

    /// Takes note of a change in the kernel.
    fn note(&mut self, change: Change) {
        match change {
            Change::Links => self.stale = Stale::ALL,
            Change::Addresses | Change::Routes => {
                self.stale.routes = true;
                self.stale.neighbors = true;
            }
            Change::Neighbor { ifindex, address } => {
                if !self.kept.contains(&(ifindex, address)) {
                    return;
                }
                self.stale.neighbors = true;
            }
            Change::Resynchronize => self.stale = Stale::ALL,
        }
        if self.gather_until.is_none() {
            self.gather_until = Some(tokio::time::Instant::now() + GATHER);
        }
    }

    fn resolved(&mut self, name: String, address: Option<IpAddr>) {
        let Some(address) = address else { return };
        if self.observed.endpoints.insert(name, address) != Some(address) {
            self.note(Change::Routes);
        }
    }

    /// Brings picture and datapath up to date after changes in the kernel.
    pub(super) async fn catch_up(&mut self) {
        let stale = std::mem::take(&mut self.stale);
        if !stale.any() {
            return;
        }
        if let Err(error) = refresh(&self.netlink, &self.state, &mut self.observed, stale).await {
            tracing::warn!(%error, "cannot look at the kernel, trying again");
            self.try_again();
            return;
        }
        let Compiled { plan, peers, hooks } = compile(&self.state, &self.observed);
        self.hooks = hooks;
        if let Err(error) = self.follow(plan) {
            tracing::error!("{error:#}; trying again");
            self.try_again();
        }
        self.take_outcomes(peers);
        self.keep_neighbors(stale.links).await;
        self.fit_interfaces().await;
    }

    /// Looks at everything again, soon.
    fn try_again(&mut self) {
        self.stale = Stale::ALL;
        self.gather_until = Some(tokio::time::Instant::now() + RETRY);
    }

    /// Follows the kernel: as [`Self::carry_out`], but an interface that cannot be
    /// attached to holds up nothing else. It is named, and does without.
    fn follow(&mut self, mut plan: Plan) -> Result<()> {
        plan.attachments.values_mut().for_each(|attachment| attachment.optional = true);
        self.carry_out(plan)
    }

    /// Makes the datapath hold a plan.
    ///
    /// # Errors
    /// The first step that could not be taken; the steps before it are undone.
    pub(super) fn carry_out(&mut self, plan: Plan) -> Result<()> {
        let mut removed = Vec::new();
        let mut failed = None;
        for op in diff(&self.plan, &plan) {
            if let Err(error) = self.datapath.apply(&op, &mut removed) {
                failed = Some(error);
                break;
            }
        }
        if let Some(error) = failed {
            for op in diff(&plan, &self.plan) {
                if let Err(error) = self.datapath.apply(&op, &mut removed) {
                    tracing::warn!("while undoing: {error:#}");
                }
            }
            self.report_removed(&removed);
            return Err(error);
        }
        self.rest_ids(&plan);
        self.plan = plan;
        self.observed.own_xdp = self.datapath.xdp_interfaces().collect();
        self.report_removed(&removed);
        self.update_full();
        Ok(())
    }

    /// Notes which ids are free again.
    fn rest_ids(&mut self, next: &Plan) {
        let now = self.datapath.now();
        let segments = self.plan.floods.keys().filter(|id| !next.floods.contains_key(id));
        let ports = self.plan.ports.keys().filter(|id| !next.ports.contains_key(id));
        let adjacencies = self.plan.adjacencies.keys().filter(|id| !next.adjacencies.contains_key(id));
        self.resting.extend(
            segments
                .map(|id| Resting::Segment(*id))
                .chain(ports.map(|id| Resting::Port(*id)))
                .chain(adjacencies.map(|id| Resting::Adjacency(*id)))
                .map(|id| (now, id)),
        );
    }

    /// Which ids may be given out.
    pub(super) fn ids(&self) -> Ids {
        let mut ids = Ids { adjacency_capacity: self.options.adjacencies, ..Ids::default() };
        for (_, resting) in &self.resting {
            match resting {
                Resting::Segment(id) => _ = ids.resting_segments.insert(*id),
                Resting::Port(id) => _ = ids.resting_ports.insert(*id),
                Resting::Adjacency(id) => _ = ids.resting_adjacencies.insert(*id),
            }
        }
        ids
    }

    /// Takes note of how peers can be reached now, and tells who listens.
    pub(super) fn take_outcomes(&mut self, outcomes: BTreeMap<String, PeerOutcome>) {
        for (name, outcome) in &outcomes {
            let before = self.outcomes.get(name).map(|outcome| peer_state(&outcome.status));
            let now = peer_state(&outcome.status);
            if before.as_ref() != Some(&now) {
                let (state, reason) = now;
                tracing::info!(peer = %name, ?state, reason = reason.as_deref().unwrap_or(""), "peer");
                self.emit(EventKind::PeerState { peer: name.clone(), state, reason });
            }
        }
        self.outcomes = outcomes;
    }

    /// Asks the kernel to keep the peers' next hops resolved, and lets go of those no longer needed.
    pub(super) async fn keep_neighbors(&mut self, again: bool) {
        let wanted: BTreeSet<_> = self.outcomes.values().filter_map(|outcome| outcome.neighbor).collect();
        for (ifindex, address) in wanted.iter().filter(|neighbor| again || !self.kept.contains(neighbor)) {
            if let Err(error) = self.netlink.keep_neighbor(*ifindex, *address).await {
                tracing::warn!(%error, "cannot keep neighbour {address} resolved");
            }
        }
        for (ifindex, address) in self.kept.difference(&wanted) {
            if let Err(error) = self.netlink.release_neighbor(*ifindex, *address).await {
                tracing::debug!(%error, "cannot let go of neighbour {address}");
            }
        }
        if wanted.difference(&self.kept).next().is_some() {
            // It may have been resolved before it was watched.
            self.stale.neighbors = true;
            self.gather_until.get_or_insert_with(|| tokio::time::Instant::now() + GATHER);
        }
        self.kept = wanted;
    }

    /// Lets go of all neighbours.
    pub(super) async fn release_neighbors(&mut self) {
        self.outcomes.clear();
        self.keep_neighbors(false).await;
    }

    async fn tick(&mut self) {
        let now = self.datapath.now() + 1;
        self.datapath.set_clock(now);
        self.resting.retain(|(since, _)| now.saturating_sub(*since) < REST_SECONDS);
        self.damper.forget(now);
        if std::mem::take(&mut self.unlearned) > 0 {
            tracing::warn!("the FDB is full (--fdb-entries): new addresses are flooded, not learned");
        }
        self.age(now);
        self.names.ask_again(&self.state);
        self.watch_features().await;
        if now.is_multiple_of(KEEP_SECONDS) {
            self.keep_neighbors(true).await;
        }
    }

    /// Looks whether interfaces became, or ceased to be, targets for XDP: a veth does
    /// when its other end does something, and nobody is told.
    async fn watch_features(&mut self) {
        if self.observed.own_xdp.is_empty() {
            return;
        }
        match self.netlink.xdp_features().await {
            Ok(features) if features != self.observed.features => self.note(Change::Links),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot tell what interfaces can do with XDP"),
        }
    }

    pub(super) fn report_removed(&mut self, removed: &[Entry]) {
        for entry in removed {
            let kind = |segment, mac, place| EventKind::FdbRemoved { segment, mac, place };
            self.emit_fdb(entry, kind);
        }
    }

    /// Tells those who listen.
    pub(super) fn emit(&self, kind: EventKind) {
        // No listener is no error.
        self.events.send(Event::now(kind)).ok();
    }
}

/// A peer's state and reason as the API says them.
pub(super) fn peer_state(status: &PeerStatus) -> (PeerState, Option<String>) {
    match status {
        PeerStatus::Up(_) => (PeerState::Up, None),
        PeerStatus::Unresolved(why) => (PeerState::Unresolved, Some(why.clone())),
        PeerStatus::Down(why) => (PeerState::Down, Some(why.clone())),
    }
}
