//! The engine's part in following the kernel: what it says is noted, and the picture and the datapath are brought up to
//! date a moment later.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::engine::Engine;
use super::observe::Stale;
use crate::netlink::Change;

/// Changes in the kernel come in bursts: they are gathered for so long.
const GATHER: Duration = Duration::from_millis(5);
/// The longest pause between two times of catching up, where that takes long itself.
const GATHER_MOST: Duration = Duration::from_millis(50);
/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Engine {
    /// Takes note of a change in the kernel.
    pub(super) fn note(&mut self, change: Change) {
        match change {
            Change::Link { index } => drop(self.stale.some_links.insert(index)),
            Change::Addresses => {
                self.observer.forget_addresses();
                self.stale.addresses = true;
                self.stale.routes = true;
            }
            Change::Routes => self.stale.routes = true,
            Change::Neighbor { ifindex, address, neighbor } => {
                if !self.note_neighbor((ifindex, address), neighbor) {
                    return;
                }
            }
            Change::Features { index, features } => {
                let known = self.observed.features.get(&index).copied();
                if known == features {
                    return;
                }
                match features {
                    Some(features) => self.observed.features.insert(index, features),
                    None => self.observed.features.remove(&index),
                };
                self.stale.told = true;
            }
            Change::Filters { index } => {
                if !self.plan.attachments.keys().any(|(ifindex, _)| *ifindex == index) {
                    return;
                }
                self.stale.filters.insert(index);
            }
            Change::Resynchronize => {
                self.losses.note();
                self.observer.forget_addresses();
                self.stale = Stale::all();
            }
        }
        self.catch_up_soon();
    }

    /// Catches up once there were no news for a moment.
    pub(super) fn catch_up_soon(&mut self) {
        let (ended, took) = self.caught_up;
        let pause = (took * 4).min(GATHER_MOST).saturating_sub(ended.elapsed()).max(GATHER);
        self.gather_until.get_or_insert_with(|| tokio::time::Instant::now() + pause);
    }

    /// Brings the picture up to date.
    pub(super) async fn refresh(&mut self, stale: &Stale) -> crate::netlink::Result<()> {
        let links = self.observed.links.clone();
        let result = self.observer.refresh(&self.state, &mut self.observed, stale, &self.compiled).await;
        self.observed.forget_made(&links);
        self.follow_renames(&links);
        result
    }

    /// Brings picture and datapath up to date after changes in the kernel.
    pub(super) async fn catch_up(&mut self) {
        self.reroute_lost();
        let stale = std::mem::take(&mut self.stale);
        let forgotten = std::mem::take(&mut self.forgotten);
        if !stale.any() && forgotten.is_empty() {
            return;
        }
        let started = Instant::now();
        let links = self.observed.links.clone();
        if let Err(error) = self.refresh(&stale).await {
            tracing::warn!(%error, "cannot look at the kernel, trying again");
            self.try_again();
            return;
        }
        if stale.links || !stale.some_links.is_empty() {
            self.keep_pair().await;
            if self.restore_interfaces().await
                && let Err(error) = self.refresh(&Stale::links()).await
            {
                tracing::warn!(%error, "cannot look at the kernel, trying again");
                self.try_again();
                return;
            }
        }
        let before = self.compiled.clone();
        self.compiled = before.next(&self.state, &self.observed);
        if let Err(error) = self.follow() {
            tracing::error!("{error:#}; trying again");
            self.try_again();
        }
        self.mend(&stale);
        let ports_stay = before.plan.ports.ptr_eq(&self.compiled.plan.ports);
        if stale.links || !stale.some_links.is_empty() || stale.addresses || !ports_stay {
            self.tell_states();
        }
        self.take_outcomes(&before);
        self.follow_neighbors(&before).await;
        self.keep_again(&links, forgotten).await;
        if stale.links || !stale.some_links.is_empty() || self.compiled.mtus_differ(&before) {
            self.fit_interfaces().await;
        }
        self.caught_up = (Instant::now(), started.elapsed());
        tracing::debug!(elapsed = ?started.elapsed(), "caught up");
    }

    /// Looks at everything again, soon.
    pub(super) fn try_again(&mut self) {
        self.stale = Stale::all();
        self.gather_until = Some(tokio::time::Instant::now() + RETRY);
    }

    /// Follows the kernel: carries out what was compiled, but an interface that cannot be
    /// attached to holds up nothing else. It is named, and does without.
    pub(super) fn follow(&mut self) -> Result<()> {
        let mut plan = self.compiled.plan.clone();
        plan.attachments.values_mut().for_each(|attachment| attachment.optional = true);
        let result = self.carry_out(plan);
        self.update_limits();
        result
    }
}
