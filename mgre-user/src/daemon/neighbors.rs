//! The engine's part in next hops: has the kernel keep them resolved, and says how peers can be reached.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::engine::Engine;
use crate::api::messages::{EventKind, PeerState};
use crate::netlink::{Link, Neighbor};
use crate::plan::{Compiled, PeerStatus};

/// Every neighbour is asked for again within so many seconds: somebody may have made the kernel forget it.
const KEEP_SECONDS: u32 = 15;
/// Of how many peers a line is logged each, when they change together.
const LINES: usize = 16;

type Key = (u32, IpAddr);

impl Engine {
    /// Takes note of what a neighbour is now; says whether that matters.
    pub(super) fn note_neighbor(&mut self, key: Key, neighbor: Option<Neighbor>) -> bool {
        if !self.kept.contains(&key) {
            // Looked up again when it is needed.
            self.observed.neighbors.remove(&key);
            return false;
        }
        if neighbor.is_none() {
            self.forgotten.insert(key);
        }
        self.set_neighbor(key, neighbor)
    }

    /// Has the routes asked for again that lead to neighbours which do not answer: of several next hops the kernel may
    /// take another one (`fib_multipath_use_neigh`, and always for IPv6), and it does not announce that.
    pub(super) fn reroute_lost(&mut self) {
        let lost = std::mem::take(&mut self.lost_next_hops);
        if lost.is_empty() {
            return;
        }
        let by_lost = self
            .compiled
            .peers
            .values()
            .filter(|outcome| outcome.neighbor.is_some_and(|neighbor| lost.contains(&neighbor)));
        self.stale.some_routes.extend(by_lost.filter_map(|outcome| outcome.endpoint));
    }

    /// Notes a neighbour; says whether that is news.
    fn set_neighbor(&mut self, key: Key, neighbor: Option<Neighbor>) -> bool {
        let known = self.observed.neighbors.get(&key).copied();
        if known == neighbor {
            return false;
        }
        match neighbor {
            Some(neighbor) => self.observed.neighbors.insert(key, neighbor),
            None => self.observed.neighbors.remove(&key),
        };
        let usable = |neighbor: Option<Neighbor>| neighbor.is_some_and(|neighbor| neighbor.usable);
        if usable(known) && !usable(neighbor) {
            self.lost_next_hops.insert(key);
        }
        self.stale.told = true;
        true
    }

    /// Takes note of how peers can be reached now, and tells who listens.
    pub(super) fn take_outcomes(&self, before: &Compiled) {
        let (mut lines, mut count, mut up) = (0, 0, 0);
        for item in before.peers.diff(&self.compiled.peers) {
            let (name, old, new) = match item {
                DiffItem::Add(name, new) => (name, None, new),
                DiffItem::Update { old: (_, old), new: (name, new) } => (name, Some(old), new),
                DiffItem::Remove(..) => continue,
            };
            let (state, reason) = peer_state(&new.status);
            if old.is_some_and(|old| peer_state(&old.status) == (state, reason)) {
                continue;
            }
            count += 1;
            up += usize::from(state == PeerState::Up);
            if lines < LINES {
                lines += 1;
                tracing::info!(peer = %name, ?state, reason = reason.unwrap_or(""), "peer");
            }
            if self.is_heard() {
                let (peer, reason) = (name.as_ref().to_owned(), reason.map(str::to_owned));
                self.emit(EventKind::PeerState { peer, state, reason });
            }
        }
        if count > lines {
            tracing::info!("{count} peers changed, of which {up} are up now");
        }
    }

    /// Has the kernel keep the next hops resolved that are new, and lets go of those no longer needed.
    pub(super) async fn follow_neighbors(&mut self, before: &Compiled) {
        let (mut new, mut old) = (BTreeSet::new(), BTreeSet::new());
        for item in before.peers.diff(&self.compiled.peers) {
            match item {
                DiffItem::Add(_, now) => new.extend(now.neighbor),
                DiffItem::Remove(_, was) => old.extend(was.neighbor),
                DiffItem::Update { old: (_, was), new: (_, now) } => {
                    new.extend(now.neighbor);
                    old.extend(was.neighbor);
                }
            }
        }
        new.retain(|key| !self.kept.contains(key));
        old.retain(|key| self.kept.contains(key) && !self.compiled.is_next_hop(*key));
        self.release(&old).await;
        self.keep(new).await;
    }

    /// Asks again for neighbours that the kernel forgot, and those on interfaces that changed: one that
    /// goes down or loses its carrier forgets all.
    pub(super) async fn keep_again(&mut self, links: &OrdMap<u32, Link>, forgotten: BTreeSet<Key>) {
        let mut again = forgotten;
        for item in links.diff(&self.observed.links) {
            if let DiffItem::Add(index, _) | DiffItem::Update { new: (index, _), .. } = item {
                again.extend(self.kept.range(all_on(*index)));
            }
        }
        let usable = |index: &u32| self.observed.links.get(index).is_some_and(|link| link.up && link.running);
        again.retain(|key| self.kept.contains(key) && usable(&key.0));
        self.keep(again).await;
    }

    async fn keep(&mut self, keys: BTreeSet<Key>) {
        if keys.is_empty() {
            return;
        }
        self.kept.extend(&keys);
        let asked = self.netlink.clone();
        let answers = match self.while_learning(asked.keep_neighbors(keys.iter().copied().collect())).await {
            Ok(answers) => answers,
            Err(error) => {
                tracing::warn!(%error, "cannot keep neighbours resolved");
                return;
            }
        };
        let (mut news, mut failed) = (false, 0);
        for (key, answer) in keys.into_iter().zip(answers) {
            match answer {
                // It may have been resolved before it was watched.
                Ok(Some(neighbor)) => news |= self.set_neighbor(key, Some(neighbor)),
                Ok(None) => {}
                Err(error) => {
                    failed += 1;
                    if failed <= LINES {
                        tracing::warn!(%error, "cannot keep neighbour {} resolved", key.1);
                    }
                }
            }
        }
        if failed > LINES {
            tracing::warn!("{failed} neighbours cannot be kept resolved");
        }
        if news {
            self.catch_up_soon();
        }
    }

    async fn release(&mut self, keys: &BTreeSet<Key>) {
        if keys.is_empty() {
            return;
        }
        for key in keys {
            self.kept.remove(key);
            self.forgotten.remove(key);
            self.observed.neighbors.remove(key);
        }
        let asked = self.netlink.clone();
        match self.while_learning(asked.release_neighbors(keys.iter().copied().collect())).await {
            Ok(failed) => {
                for error in failed.into_iter().filter_map(Result::err) {
                    tracing::debug!(%error, "cannot let go of a neighbour");
                }
            }
            Err(error) => tracing::debug!(%error, "cannot let go of neighbours"),
        }
    }

    /// Lets go of all neighbours.
    pub(super) async fn release_neighbors(&mut self) {
        let all = std::mem::take(&mut self.kept);
        self.release(&all).await;
    }

    /// Asks for some of the neighbours again, others each second, beside the engine; and for the routes that lead to
    /// those of them that do not answer.
    pub(super) fn keep_some(&mut self, now: u32) {
        let turn = now % KEEP_SECONDS;
        let numbered = (0..KEEP_SECONDS).cycle().zip(&self.kept);
        let some: Vec<Key> = numbered.filter(|(number, _)| *number == turn).map(|(_, key)| *key).collect();
        if some.is_empty() {
            return;
        }
        let silent = |key: &&Key| !self.observed.neighbors.get(*key).is_some_and(|neighbor| neighbor.usable);
        let silent: Vec<Key> = some.iter().filter(silent).copied().collect();
        if !silent.is_empty() {
            self.lost_next_hops.extend(silent);
            self.catch_up_soon();
        }
        let netlink = self.netlink.clone();
        tokio::spawn(async move {
            if let Err(error) = netlink.keep_neighbors(some).await {
                tracing::debug!(%error, "cannot keep neighbours resolved");
            }
        });
    }
}

/// All neighbours on an interface.
fn all_on(index: u32) -> RangeInclusive<Key> {
    let (first, last) = (std::net::Ipv4Addr::UNSPECIFIED, std::net::Ipv6Addr::from(u128::MAX));
    (index, first.into())..=(index, last.into())
}

/// A peer's state and reason as the API says them.
pub(super) fn peer_state(status: &PeerStatus) -> (PeerState, Option<&str>) {
    match status {
        PeerStatus::Up(_) => (PeerState::Up, None),
        PeerStatus::Unresolved(why) => (PeerState::Unresolved, Some(why)),
        PeerStatus::Down(why) => (PeerState::Down, Some(why)),
    }
}
