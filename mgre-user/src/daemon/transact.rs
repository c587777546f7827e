//! Changes of the wanted state: all of a change, or nothing.
//!
//! Changes that wait together are made together: each is checked and compiled on top
//! of the one before, all are saved at once, and then carried out one after the other.
//! What can fail for want of room fails before anything is touched.

use std::collections::{BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};

use imbl::ordmap::DiffItem;

use super::check::{Missing, check, check_use, warnings};
use super::clear::Places;
use super::engine::Engine;
use super::journal::Entry;
use super::observe::Stale;
use super::resting::rest_in;
use super::store::{Saved, Store};
use crate::api::messages::{Applied, EventKind, Problem, Reply};
use crate::model::{Change, Document, Record, State, differences};
use crate::netlink::{self, Address};
use crate::plan::{Compiled, Plan};

/// A change that was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) changes: Vec<Change>,
    /// Whether interfaces and addresses that are not there yet are waited for.
    pub(super) waits: bool,
    pub(super) reply: Reply<Applied>,
}

impl Asked {
    /// Whether it may make, attach to or fit interfaces. Such a change is made alone.
    fn touches_interfaces(&self) -> bool {
        !self.changes.iter().all(|change| {
            matches!(
                change,
                Change::AddPeer { .. }
                    | Change::SetPeer { .. }
                    | Change::DelPeer { .. }
                    | Change::AddFdb { .. }
                    | Change::DelFdb { .. }
            )
        })
    }

    /// The addresses that it gives to peers.
    fn remotes(&self) -> impl Iterator<Item = IpAddr> {
        self.changes.iter().flat_map(|change| {
            let texts: Vec<&String> = match change {
                Change::AddPeer { settings, .. } | Change::SetPeer { settings, .. } => {
                    settings.remote.iter().collect()
                }
                Change::Replace(document) => document.peers.iter().map(|peer| &peer.remote).collect(),
                _ => Vec::new(),
            };
            texts.into_iter().filter_map(|text| text.parse().ok()).collect::<Vec<_>>()
        })
    }
}

/// A change that can be made.
struct Step {
    asked: Asked,
    next: State,
    compiled: Compiled,
    promiscuous: BTreeSet<String>,
    entry: Entry,
    changed: Vec<String>,
    warnings: Vec<String>,
}

impl Step {
    /// What is saved after it.
    fn saved(&self) -> Saved {
        Saved { state: self.next.clone(), promiscuous: self.promiscuous.clone() }
    }
}

/// Changes in the making.
struct Run {
    /// Whether they may touch interfaces.
    interfaces: bool,
    addresses: Arc<[Address]>,
    steps: Vec<Step>,
    /// Interfaces made for them.
    created: Vec<u32>,
    /// Between which states interfaces that there were got other addresses.
    altered: Option<(State, State)>,
    /// Those that cannot be made: answered once what was done for them is undone.
    refused: Vec<(Reply<Applied>, Problem)>,
}

impl Run {
    fn new(interfaces: bool, addresses: Arc<[Address]>) -> Self {
        let (steps, created, refused) = (Vec::new(), Vec::new(), Vec::new());
        Self { interfaces, addresses, steps, created, altered: None, refused }
    }
}

impl Engine {
    /// Makes a change, and waits until it is made.
    pub(super) async fn change(&mut self, changes: Vec<Change>) -> Result<Applied, Problem> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.change_all(vec![Asked { changes, waits: false, reply }]).await;
        answer.await.map_err(|_| Problem::unavailable())?
    }

    /// Whether anything is wanted.
    pub(super) fn has_state(&self) -> bool {
        self.state != State::default()
    }

    /// Puts the daemon's configuration in force. What the host has not got yet is waited for, as after a start from the
    /// saved state: at boot, interfaces and addresses come when they come.
    pub(super) async fn configure(&mut self, document: Box<Document>) -> Result<Applied, Problem> {
        if document.is_empty() && self.has_state() {
            return Err(Problem::conflict(
                "the configuration is empty: to remove everything, say so (mgre apply --allow-empty FILE)",
            ));
        }
        let (reply, answer) = tokio::sync::oneshot::channel();
        let changes = vec![Change::Replace(document)];
        self.change_all(vec![Asked { changes, waits: true, reply }]).await;
        answer.await.map_err(|_| Problem::unavailable())?
    }

    /// Says what changes would do.
    pub(super) async fn try_out(&mut self, changes: Vec<Change>) -> Result<Applied, Problem> {
        let next = self.state.apply_all(changes.iter().cloned(), &self.ids)?;
        self.look_at_interfaces().await?;
        check_use(&changes, &self.state, &self.observed, &self.compiled)?;
        let addresses = self.observer.addresses().await.map_err(kernel)?;
        check(&self.state, &next, &self.observed, &addresses, Missing::Refused)?;
        let claimed = self.claim_new(&self.state.clone(), &next);
        self.keep_claims();
        claimed?;
        self.check_room(&self.compiled.next(&next, &self.observed).plan)?;
        Ok(Applied { changed: differences(&self.state, &next), warnings: Vec::new() })
    }

    /// Makes changes, each of which gets its own answer.
    pub(super) async fn change_all(&mut self, asked: Vec<Asked>) {
        let mut waiting = VecDeque::from(asked);
        while let Some(first) = waiting.front() {
            let interfaces = first.touches_interfaces();
            let alike = waiting.iter().take_while(|asked| !asked.touches_interfaces());
            let count = if interfaces { 1 } else { alike.count() };
            let together = waiting.drain(..count).collect();
            for again in self.change_together(together, interfaces).await.into_iter().rev() {
                waiting.push_front(again);
            }
        }
    }

    /// The command that asks may be ahead of the kernel's news.
    async fn look_at_interfaces(&mut self) -> Result<(), Problem> {
        self.observer.forget_addresses();
        self.refresh(&Stale::links()).await.map_err(kernel)
    }

    /// Makes changes together. Gives back those to be made anew, after one that failed late.
    async fn change_together(&mut self, asked: Vec<Asked>, interfaces: bool) -> Vec<Asked> {
        let (before, old) = (self.compiled.clone(), self.state.clone());
        let remotes: BTreeSet<IpAddr> = asked.iter().flat_map(Asked::remotes).collect();
        let mut run = match self.look(&remotes, interfaces).await {
            Ok(addresses) => Run::new(interfaces, addresses),
            Err(problem) => {
                asked.into_iter().for_each(|asked| answer(asked.reply, Err(problem.clone())));
                return Vec::new();
            }
        };
        self.prepare(&mut run, asked).await;
        if let Err(problem) = self.save(&run.steps).await {
            let steps = run.steps.drain(..);
            run.refused.extend(steps.map(|step| (step.asked.reply, problem.clone())));
        }
        let (answers, again) = self.carry_out_all(&mut run).await;
        if answers.is_empty() {
            self.delete_interfaces(&run.created).await;
            if let Some((before, next)) = &run.altered
                && let Err(problem) = self.alter_interfaces(next, before).await
            {
                tracing::warn!("while undoing: {problem}");
            }
        } else {
            if interfaces {
                self.clean_up(&old).await;
                self.tell_states();
            }
            self.ask_for_names();
            self.take_outcomes(&before);
            self.follow_neighbors(&before).await;
            if interfaces || self.compiled.mtus_differ(&before) {
                self.fit_interfaces().await;
            }
        }
        self.keep_claims();
        self.forget_routes(&before, &remotes);
        self.miss_routes(&before);
        for (reply, applied) in answers {
            answer(reply, Ok(applied));
        }
        for (reply, problem) in run.refused {
            answer(reply, Err(problem));
        }
        if let Err(error) = self.tidy().await {
            tracing::warn!("{error:#}");
        }
        again
    }

    /// Looks at what the kernel has that changes need to know.
    async fn look(
        &mut self,
        remotes: &BTreeSet<IpAddr>,
        interfaces: bool,
    ) -> Result<Arc<[Address]>, Problem> {
        if interfaces {
            self.look_at_interfaces().await?;
        }
        self.observer.look_ahead(&self.state, &mut self.observed, remotes).await.map_err(kernel)?;
        self.observer.addresses().await.map_err(kernel)
    }

    /// Checks and compiles changes, each on top of the one before, or refuses them.
    async fn prepare(&mut self, run: &mut Run, asked: Vec<Asked>) {
        let (mut at, mut compiled, mut ids) = (self.state.clone(), self.compiled.clone(), self.ids.clone());
        for asked in asked {
            match self.prepare_one(run, &asked, &at, &compiled, &ids).await {
                Ok((next, compiled_next, told)) => {
                    rest_in(&mut ids, &at, &next);
                    let promiscuous =
                        if run.interfaces { self.promiscuous_for(&next) } else { self.promiscuous.clone() };
                    let entry = Entry {
                        state: Record::between(&at, &next),
                        promiscuous: Some(&promiscuous)
                            .filter(|now| **now != self.promiscuous || self.unsaved_promiscuous)
                            .cloned(),
                    };
                    let warnings = warnings(&at, &next, &self.observed, &compiled_next, &run.addresses);
                    let warnings = told.into_iter().chain(warnings).collect();
                    let changed = differences(&at, &next);
                    (at, compiled) = (next.clone(), compiled_next.clone());
                    let compiled = compiled_next;
                    run.steps.push(Step { asked, next, compiled, promiscuous, entry, changed, warnings });
                }
                Err(problem) => run.refused.push((asked.reply, problem)),
            }
        }
    }

    async fn prepare_one(
        &mut self,
        run: &mut Run,
        asked: &Asked,
        at: &State,
        compiled: &Compiled,
        ids: &crate::model::Ids,
    ) -> Result<(State, Compiled, Vec<String>), Problem> {
        let next = at.apply_all(asked.changes.iter().cloned(), ids)?;
        check_use(&asked.changes, at, &self.observed, compiled)?;
        let mut waiting = Vec::new();
        let missing = if asked.waits { Missing::Awaited(&mut waiting) } else { Missing::Refused };
        check(at, &next, &self.observed, &run.addresses, missing)?;
        self.claim_new(at, &next)?;
        if run.interfaces {
            run.created = self.create_interfaces(at, &next).await?;
            run.altered = Some((at.clone(), next.clone()));
            let altered = self.alter_interfaces(at, &next).await?;
            if altered || !run.created.is_empty() {
                self.refresh(&Stale::links()).await.map_err(kernel)?;
            }
        }
        if next.underlays != at.underlays {
            // Which way packets go depends on whose they are. Should the change fail, they go by the old ones again.
            let stale = Stale { routes: true, some_routes: asked.remotes().collect(), ..Stale::default() };
            self.stale.routes = true;
            self.catch_up_soon();
            self.observer.refresh(&next, &mut self.observed, &stale, compiled).await.map_err(kernel)?;
        }
        let kept = self.keep_endpoints(at, &next, compiled);
        let compiled = compiled.next(&next, &self.observed);
        self.check_room(&compiled.plan)?;
        waiting.extend(kept);
        Ok((next, compiled, waiting))
    }

    /// Saves what steps lead to. Addresses are learned while the disk works.
    async fn save(&mut self, steps: &[Step]) -> Result<(), Problem> {
        let entries: Vec<Entry> =
            steps.iter().map(|step| &step.entry).filter(|entry| !entry.is_empty()).cloned().collect();
        let Some(last) = steps.last().filter(|_| !entries.is_empty()) else { return Ok(()) };
        let whole = last.saved();
        self.with_store(move |store| store.save(&entries, &whole)).await.map_err(not_saved)?;
        // Every entry says what is unsaved of it.
        self.unsaved_promiscuous = false;
        Ok(())
    }

    async fn with_store(
        &mut self,
        work: impl FnOnce(&mut Store) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || {
            work(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        self.while_learning(done).await?
    }

    async fn tidy(&mut self) -> anyhow::Result<()> {
        if !self.store().is_untidy() {
            return Ok(());
        }
        let whole = self.saved();
        self.with_store(move |store| store.tidy(&whole)).await
    }

    /// Carries steps out. Answers for those that were, and those to be made anew.
    async fn carry_out_all(&mut self, run: &mut Run) -> (Vec<(Reply<Applied>, Applied)>, Vec<Asked>) {
        let mut answers = Vec::new();
        let mut saved = Vec::new();
        let mut steps = std::mem::take(&mut run.steps).into_iter();
        while let Some(step) = steps.next() {
            if let Err(error) = self.carry_out(step.compiled.plan.clone()) {
                self.update_limits();
                let whole = self.saved();
                if let Err(error) = self.with_store(move |store| store.amend(&saved, &whole)).await {
                    tracing::error!("{error:#}: what is saved is not what is in force");
                }
                run.refused.push((step.asked.reply, failed(error)));
                return (answers, steps.map(|step| step.asked).collect());
            }
            saved.extend(Some(step.entry.clone()).filter(|entry| !entry.is_empty()));
            answers.push(self.enact(step).await);
        }
        (answers, Vec::new())
    }

    /// Makes a step that was carried out what is in force.
    async fn enact(&mut self, step: Step) -> (Reply<Applied>, Applied) {
        let Step { asked, next, compiled, promiscuous, changed, warnings, .. } = step;
        self.index.follow(&self.state, &next);
        let old = std::mem::replace(&mut self.state, next);
        self.rest_ids(&old, &self.state.clone());
        self.compiled = compiled;
        self.touched.states(&old, &self.state);
        self.update_limits();
        if promiscuous != self.promiscuous || asked.touches_interfaces() {
            self.set_promiscuous(promiscuous).await;
        }
        if !changed.is_empty() && self.is_heard() {
            self.emit(EventKind::ConfigChanged { changed: changed.clone() });
        }
        (asked.reply, Applied { changed, warnings })
    }

    /// Forgets routes to endpoints that no peer has (any more).
    fn forget_routes(&mut self, before: &Compiled, remotes: &BTreeSet<IpAddr>) {
        let gone = before.peers.diff(&self.compiled.peers).filter_map(|item| match item {
            DiffItem::Add(..) => None,
            DiffItem::Update { old: (_, was), .. } | DiffItem::Remove(_, was) => was.endpoint,
        });
        let candidates: BTreeSet<IpAddr> = gone.chain(remotes.iter().copied()).collect();
        for remote in candidates {
            if self.compiled.peers_at(remote).next().is_none() {
                self.observed.routes.remove(&remote);
            }
        }
    }

    /// Has routes looked up to endpoints that are known by name only, and were not used before.
    fn miss_routes(&mut self, before: &Compiled) {
        let endpoints = before.peers.diff(&self.compiled.peers).filter_map(|item| match item {
            DiffItem::Add(_, now) | DiffItem::Update { new: (_, now), .. } => now.endpoint,
            DiffItem::Remove(..) => None,
        });
        let missing: BTreeSet<IpAddr> =
            endpoints.filter(|endpoint| !self.observed.routes.contains_key(endpoint)).collect();
        if !missing.is_empty() {
            self.stale.some_routes.extend(missing);
            self.catch_up_soon();
        }
    }

    /// Takes everything out of the kernel that this instance put there.
    ///
    /// # Errors
    /// The saved state cannot be put aside, and nothing was done; or the kernel refuses, and everything is put back.
    pub(super) async fn detach(&mut self) -> Result<(), Problem> {
        let saved = self.saved();
        self.store()
            .retire(&saved)
            .map_err(|error| Problem::internal(format!("{error:#}: nothing was taken off")))?;
        let kept = self.kept.clone();
        let removed = self.remove_all().await;
        if removed.is_err() {
            self.put_back(&saved, kept);
        } else {
            Places::forget(&self.options.run_dir, &self.options.instance);
        }
        removed
    }

    /// Puts everything back after a detach that failed.
    fn put_back(&mut self, saved: &Saved, kept: BTreeSet<(u32, IpAddr)>) {
        if let Err(error) = self.store().restore(saved) {
            tracing::error!("{error:#}");
        }
        // All of them are attached anew.
        self.plan.attachments.clear();
        self.forgotten.clone_from(&kept);
        self.kept = kept;
        self.try_again();
    }

    async fn remove_all(&mut self) -> Result<(), Problem> {
        self.slow.follow(&Plan::default(), None);
        self.datapath.detach_all().map_err(|error| Problem::internal(format!("{error:#}")))?;
        self.release_neighbors().await;
        self.refresh(&Stale::links()).await.map_err(kernel)?;
        self.set_promiscuous(BTreeSet::new()).await;
        self.remove_pair().await;
        // Either end of a pair takes the other with it.
        for (name, _) in self.state.ports.iter().filter(|(_, port)| port.created.is_some()) {
            if let Some(link) = self.observed.link(name).filter(|link| self.is_ours(link)) {
                self.netlink.delete_link(link.index).await.map_err(kernel)?;
            }
        }
        self.forget_names();
        Ok(())
    }

    /// What is to be saved now.
    fn saved(&self) -> Saved {
        Saved { state: self.state.clone(), promiscuous: self.promiscuous.clone() }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves everything in the snapshot.
    pub(super) fn close_store(&self) {
        if let Err(error) = self.store().close(&self.saved()) {
            // The journal has what the snapshot has not.
            tracing::warn!("{error:#}");
        }
    }
}

fn answer<T>(reply: Reply<T>, answer: Result<T, Problem>) {
    if reply.send(answer).is_err() {
        tracing::debug!("nobody waits for the answer");
    }
}

fn failed(error: anyhow::Error) -> Problem {
    Problem::internal(format!("{error:#}"))
}

/// A change that cannot be saved is not made.
fn not_saved(error: anyhow::Error) -> Problem {
    let kinds =
        error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    let full =
        |kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge);
    let status = if kinds.into_iter().any(full) { 507 } else { 500 };
    Problem::new(status, format!("{error:#}: nothing was changed"))
}

/// What the kernel refused, as the API says it.
pub(super) fn kernel(error: netlink::Error) -> Problem {
    match error {
        netlink::Error::NameTaken(_) | netlink::Error::AddressExists { .. } => {
            Problem::conflict(error.to_string())
        }
        netlink::Error::NoSuchName(_) | netlink::Error::NoSuchIndex(_) => {
            Problem::not_found(error.to_string())
        }
        netlink::Error::InvalidName(_) | netlink::Error::SourceNotLocal(_) => {
            Problem::invalid(error.to_string())
        }
        _ => Problem::internal(error.to_string()),
    }
}
