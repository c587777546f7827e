//! The engine: one task that owns the wanted state, the picture of the kernel and
//! the datapath, and brings the last in line with the first two.
//!
//! Whatever happens costs what it changes, not what there is. What takes a while in
//! the kernel or on the disk runs beside the engine, which learns addresses meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use mgre_common::target::Target;

use super::Options;
use super::claims::Claims;
use super::detours::Detours;
use super::host::Unmade;
use super::index::Index;
use super::interfaces::alias;
use super::kernel::Kernel;
use super::limits::Touched;
use super::loops::Loops;
use super::losses::Losses;
use super::names::Names;
use super::observe::{Observer, Stale};
use super::resting::{Resting, freed};
use super::room::Without;
use super::slow::PairUse;
use super::states::Told;
use super::store::Store;
use super::suppression::Sparingly;
use super::system;
use super::transact::Asked;
use crate::api::messages::{Event, EventKind, Request};
use crate::datapath::Datapath;
use crate::datapath::attach::Attachments;
use crate::datapath::fdb::Entry;
use crate::learn::{Damper, Hold};
use crate::model::{Ids, State};
use crate::names::saved::Cache;
use crate::neighbors::Neighbors;
use crate::netlink::{Change, Monitor, Netlink};
use crate::plan::{Compiled, Observed, Op, Plan, TcHook, compile, diff};
use crate::slow::Slow;
use crate::slow::pmtu::PathMtus;

/// An id that is free again is not given out for so long.
const REST_SECONDS: u32 = 3;
/// Requests that are taken up together at most.
const TOGETHER: usize = 256;

/// The events' ring, which says when it can be read.
pub(super) type Ring = AsyncFd<RingBuf<MapData>>;

/// The engine.
pub(super) struct Engine {
    pub(super) options: Options,
    pub(super) kernel: Kernel,
    pub(super) started: Instant,
    pub(super) state: State,
    /// Names by id, of `state`.
    pub(super) index: Index,
    pub(super) promiscuous: BTreeSet<String>,
    /// What `promiscuous` is could not be saved.
    pub(super) unsaved_promiscuous: bool,
    pub(super) store: Arc<Mutex<Store>>,
    pub(super) netlink: Netlink,
    pub(super) observer: Observer,
    pub(super) losses: Losses,
    pub(super) observed: Observed,
    /// What comes of state and picture.
    pub(super) compiled: Compiled,
    /// What the datapath holds.
    pub(super) plan: Plan,
    /// What it has no room for.
    pub(super) without: Without,
    pub(super) datapath: Datapath,
    pub(super) damper: Damper,
    pub(super) full: HashSet<Target>,
    pub(super) full_segments: BTreeSet<u16>,
    pub(super) touched: Touched,
    /// Addresses since the last tick that the FDB had no room for.
    pub(super) unlearned: u64,
    /// Who has which address, in segments that suppress ARP and ND.
    pub(super) neighbors: Neighbors,
    pub(super) duplicates_told: Sparingly,
    /// Which ports are blocked.
    pub(super) loops: Loops,
    /// What was held since the last tick.
    pub(super) newly_held: Vec<Hold>,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) names: Names,
    pub(super) claims: Claims,
    pub(super) detours: Detours,
    /// Neighbours that the kernel is asked to keep resolved.
    pub(super) kept: BTreeSet<(u32, IpAddr)>,
    /// Those of them that it has forgotten all the same.
    pub(super) forgotten: BTreeSet<(u32, IpAddr)>,
    /// Those that do not answer, or no more, since routes were looked at.
    pub(super) lost_next_hops: BTreeSet<(u32, IpAddr)>,
    /// What the datapath cannot do.
    pub(super) slow: Slow,
    /// How the pair of interfaces for that is used.
    pub(super) pair_use: PairUse,
    /// Why there is no such pair.
    pub(super) no_pair: Option<String>,
    /// Interfaces of the host that could not be made, by name.
    pub(super) unmade: BTreeMap<String, Unmade>,
    /// What was told of underlays and ports.
    pub(super) told: Told,
    /// What routers said of paths.
    pub(super) paths: PathMtus,
    /// Which ids may be given out.
    pub(super) ids: Ids,
    resting: VecDeque<(u32, Resting)>,
    pub(super) stale: Stale,
    pub(super) gather_until: Option<tokio::time::Instant>,
    /// When the engine caught up last, and how long that took.
    pub(super) caught_up: (Instant, Duration),
    /// Taken out while it is read.
    ring: Option<Ring>,
    /// Whether much memory was needed for a moment.
    untrimmed: bool,
}

/// What an engine is made of.
pub(super) struct Parts {
    pub(super) options: Options,
    pub(super) kernel: Kernel,
    pub(super) state: State,
    pub(super) promiscuous: BTreeSet<String>,
    pub(super) store: Store,
    pub(super) netlink: Netlink,
    pub(super) datapath: Datapath,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) ring: RingBuf<MapData>,
    pub(super) slow: Slow,
}

impl Engine {
    /// # Errors
    /// The ring cannot be waited for.
    pub(super) fn new(parts: Parts) -> Result<Self> {
        // SAFETY: the ring owns its descriptor, which stays open and the same until the
        // `AsyncFd` has let go of it and is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(parts.ring, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)
            .context("cannot wait for events")?;
        let names = Names::new(Cache::new(&parts.options.state_dir, &parts.options.instance));
        let mut index = Index::default();
        index.follow(&State::default(), &parts.state);
        let observed = Observed { mark: alias(&parts.options.instance), ..Observed::default() };
        Ok(Self {
            ids: Ids { adjacency_capacity: parts.options.adjacencies, ..Ids::default() },
            options: parts.options,
            kernel: parts.kernel,
            started: Instant::now(),
            index,
            state: parts.state,
            promiscuous: parts.promiscuous,
            unsaved_promiscuous: false,
            store: Arc::new(Mutex::new(parts.store)),
            observer: Observer::new(parts.netlink.clone()),
            netlink: parts.netlink,
            losses: Losses::default(),
            observed,
            compiled: Compiled::default(),
            plan: Plan::default(),
            without: Without::default(),
            datapath: parts.datapath,
            damper: Damper::default(),
            full: HashSet::new(),
            full_segments: BTreeSet::new(),
            touched: Touched::default(),
            unlearned: 0,
            neighbors: Neighbors::default(),
            duplicates_told: Sparingly::default(),
            newly_held: Vec::new(),
            loops: Loops::new()?,
            events: parts.events,
            names,
            claims: Claims::default(),
            detours: Detours::default(),
            kept: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            lost_next_hops: BTreeSet::new(),
            slow: parts.slow,
            pair_use: PairUse::default(),
            no_pair: None,
            unmade: BTreeMap::new(),
            told: Told::default(),
            paths: PathMtus::default(),
            resting: VecDeque::new(),
            stale: Stale::default(),
            gather_until: None,
            caught_up: (Instant::now(), Duration::ZERO),
            ring: Some(ring),
            untrimmed: false,
        })
    }

    /// Puts the saved state in force.
    ///
    /// # Errors
    /// The kernel cannot be looked at, or the datapath not be set up.
    pub(super) async fn start(&mut self) -> Result<()> {
        self.claim_again();
        let known = self.names.in_use().map(|(name, endpoints)| (name.to_owned(), endpoints));
        self.observed.endpoints = known.collect();
        // Zero is the time of what was never seen.
        self.datapath.set_clock(1);
        self.refresh(&Stale::links()).await?;
        self.observed.take_up_made();
        self.restore_interfaces().await;
        self.refresh(&Stale::all()).await?;
        self.keep_pair().await;
        self.observed.own_xdp = Attachments::pinned(&self.options.pins())?
            .into_iter()
            .filter(|(_, hook)| hook.is_xdp())
            .map(|(ifindex, _)| ifindex)
            .collect();
        let before = self.compiled.clone();
        self.compiled = compile(&self.state, &self.observed);
        let plan = self.compiled.plan.clone();
        if let Err(error) = self.datapath.inherit(&plan) {
            tracing::warn!("what the daemon before had learned and counted is lost: {error:#}");
        }
        if let Err(error) = self.inherit_neighbors() {
            tracing::warn!("neighbours that the daemon before knew are lost: {error:#}");
        }
        self.follow()?;
        self.datapath.detach_unused()?;
        self.tell_states();
        self.take_outcomes(&before);
        self.follow_neighbors(&before).await;
        self.ask_for_names();
        self.fit_interfaces().await;
        Ok(())
    }

    /// Runs until it is told to detach, or until `shutdown` is done.
    pub(super) async fn run(
        &mut self,
        mut requests: mpsc::Receiver<Request>,
        mut monitor: Monitor,
        shutdown: impl Future<Output = ()>,
    ) -> Result<()> {
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(shutdown);
        let mut waiting = Vec::new();
        loop {
            let gathered = self.gather_until;
            let Self { names, ring, slow, .. } = self;
            let readable = async {
                match ring {
                    Some(ring) => ring.readable().await.map(drop),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut shutdown => break,
                count = requests.recv_many(&mut waiting, TOGETHER) => {
                    if count == 0 {
                        break;
                    }
                    if self.requests(std::mem::take(&mut waiting)).await {
                        return Ok(());
                    }
                }
                change = monitor.next() => match change {
                    Ok(change) => self.note(change),
                    Err(error) => {
                        tracing::warn!(%error, "cannot read the kernel's notifications, starting anew");
                        monitor = self.open_monitor()?;
                        self.note(Change::Resynchronize);
                    }
                },
                ready = readable => {
                    ready.context("cannot wait for events")?;
                    self.learn_ready();
                }
                resolved = names.next() => {
                    let (name, answer) = resolved;
                    self.resolved(&name, answer);
                }
                said = slow.said() => self.note_path(said),
                () = sleep_until(gathered.unwrap_or_else(tokio::time::Instant::now)), if gathered.is_some() => {
                    self.gather_until = None;
                    self.catch_up().await;
                }
                _ = tick.tick() => self.tick(),
            }
        }
        self.close_store();
        self.close_names();
        Ok(())
    }

    /// Subscribes to what changes in the kernel and matters here.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn open_monitor(&self) -> Result<Monitor> {
        let monitor = Monitor::open()?;
        if self.datapath.tc_hook() == TcHook::Clsact {
            monitor.watch_filters()?;
        }
        Ok(monitor)
    }

    /// Answers requests in their order; changes that follow one another are taken together.
    /// Says whether that was the end.
    async fn requests(&mut self, requests: Vec<Request>) -> bool {
        let mut changes = Vec::new();
        self.untrimmed |= requests.iter().any(Request::may_be_large);
        for request in requests {
            match request {
                Request::Change { changes: asked, dry_run: false, reply } => {
                    changes.push(Asked { changes: asked, waits: false, reply });
                    continue;
                }
                other => {
                    self.change_all(std::mem::take(&mut changes)).await;
                    if let Request::Detach(reply) = other {
                        let detached = self.detach().await;
                        let ok = detached.is_ok();
                        if reply.send(detached).is_err() {
                            tracing::debug!("nobody waits for the answer");
                        }
                        if ok {
                            return true;
                        }
                    } else {
                        self.handle(other).await;
                    }
                }
            }
        }
        self.change_all(changes).await;
        false
    }

    /// Takes events that are there.
    fn learn_ready(&mut self) {
        let Some(mut ring) = self.ring.take() else { return };
        if let Some(Ok(mut ready)) = futures::FutureExt::now_or_never(ring.readable_mut())
            && self.learn(ready.get_inner_mut())
        {
            ready.clear_ready();
        }
        self.ring = Some(ring);
    }

    /// Waits for something that does not need the engine, and learns addresses meanwhile.
    pub(super) async fn while_learning<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            let readable = async {
                match &self.ring {
                    Some(ring) => ring.readable().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                done = &mut work => return done,
                readable = readable => {
                    if !readable {
                        return work.await;
                    }
                    self.learn_ready();
                }
            }
        }
    }

    /// Makes the datapath hold a plan. Then [`Self::update_limits`], once the state is the plan's.
    ///
    /// # Errors
    /// The first step that could not be taken; the steps before it are undone.
    pub(super) fn carry_out(&mut self, mut plan: Plan) -> Result<()> {
        let mut removed = Vec::new();
        self.fit(&mut plan, &mut removed);
        let failed = self.take_steps(&diff(&self.plan, &plan), &mut removed).err();
        if failed.is_some() {
            for op in diff(&plan, &self.plan) {
                if let Err(error) = self.take_steps(&[op], &mut removed) {
                    tracing::warn!("while undoing: {error:#}");
                }
            }
        } else {
            self.plan = plan;
            self.slow.follow(&self.plan, self.observed.slow);
            self.steer_pair();
            let own_xdp = self.datapath.xdp_interfaces().collect();
            if self.observed.own_xdp != own_xdp {
                // Nobody tells of a link's end: a program that was taken off would be taken for another's.
                for gone in self.observed.own_xdp.difference(&own_xdp) {
                    if let Some(link) = self.observed.links.get_mut(gone) {
                        link.xdp_program = None;
                    }
                }
                self.observed.own_xdp = own_xdp;
            }
        }
        self.touched.entries(&removed);
        self.report_removed(&removed);
        failed.map_or(Ok(()), Err)
    }

    fn take_steps(&mut self, ops: &[Op], removed: &mut Vec<Entry>) -> Result<()> {
        for op in ops {
            self.datapath.apply(op, removed)?;
            match op {
                Op::RemoveAdjacency(id) => drop(self.full.remove(&Target::adjacency(*id))),
                Op::RemovePort(id) => drop(self.full.remove(&Target::port(*id))),
                Op::RemoveSegment(id) => drop(self.full_segments.remove(id)),
                Op::SetAdjacency(id, record) if !self.plan.adjacencies.contains_key(id) => {
                    self.touched.insert(Target::adjacency(*id), record.segment);
                }
                Op::SetFlood(id, targets) => {
                    self.touched.insert(Target::NONE, *id);
                    if !targets.suppress {
                        self.forget_segment_neighbors(*id);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets the ids rest that one state has and the next one has not.
    pub(super) fn rest_ids(&mut self, old: &State, new: &State) {
        let now = self.datapath.now();
        let freed = freed(old, new);
        for id in &freed {
            id.put_into(&mut self.ids);
            // What was counted for one segment is not the next one's.
            if let Resting::Segment(id) = *id
                && let Ok(id) = u16::try_from(id)
            {
                self.datapath.tallies.clear(id);
            }
        }
        self.resting.extend(freed.into_iter().map(|id| (now, id)));
    }

    fn tick(&mut self) {
        let now = self.datapath.now() + 1;
        self.datapath.set_clock(now);
        while let Some((since, id)) = self.resting.front().copied() {
            if now.saturating_sub(since) < REST_SECONDS {
                break;
            }
            id.take_from(&mut self.ids);
            self.resting.pop_front();
        }
        self.damp(now);
        if std::mem::take(&mut self.unlearned) > 0 {
            tracing::warn!("the FDB is full (--fdb-entries): new addresses are flooded, not learned");
        }
        self.age(now);
        self.age_neighbors(now);
        if std::mem::take(&mut self.untrimmed) {
            tokio::task::spawn_blocking(system::trim_memory);
        }
        self.look_after_names();
        self.claim_again();
        self.end_detours();
        self.keep_some(now);
        self.look_after_programs(now);
        self.restore_again(now);
        self.forget_paths();
        self.slow.try_again();
        self.count_overflows();
    }

    pub(super) fn report_removed(&mut self, removed: &[Entry]) {
        self.forget_neighbors(removed);
        for entry in removed {
            let kind = |segment, mac, place| EventKind::FdbRemoved { segment, mac, place };
            self.emit_fdb(entry, kind);
        }
    }

    /// Whether anybody listens.
    pub(super) fn is_heard(&self) -> bool {
        self.events.receiver_count() > 0
    }

    /// Tells those who listen.
    pub(super) fn emit(&self, kind: EventKind) {
        // No listener is no error.
        self.events.send(Event::now(kind)).ok();
    }
}
