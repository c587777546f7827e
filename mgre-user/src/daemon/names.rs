//! The engine's part in endpoints given as DNS names: asks in the background, remembers the answers, and goes on to
//! another address where the one in use leads nowhere.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use imbl::ordmap::DiffItem;
use mgre_common::target::Target;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::engine::Engine;
use crate::model::{Peer, State};
use crate::names::lookup::Resolver;
use crate::names::saved::Cache;
use crate::names::{Answer, Book};
use crate::plan::{Compiled, Endpoints, PeerStatus};

/// An address to which there is no way for so many seconds is given up for the next one.
const UNREACHABLE_SECONDS: u32 = 3;
/// One from which nothing ever came, though packets were sent to it, for so many.
const UNHEARD_SECONDS: u32 = 10;
/// Of so many names that do not resolve, one after the other, a line is logged each.
const LINES: usize = 16;

/// Resolves names in the background.
#[derive(Debug)]
pub(super) struct Names {
    book: Book,
    resolver: Resolver,
    sender: mpsc::UnboundedSender<(String, Answer)>,
    answers: mpsc::UnboundedReceiver<(String, Answer)>,
    /// Names that do not resolve.
    failing: HashMap<String, String>,
    /// What is thought of the address in use, of names that have others.
    doubts: HashMap<String, Doubt>,
    cache: Cache,
    /// The cache is being written.
    saving: Option<JoinHandle<bool>>,
}

/// What is thought of an address.
#[derive(Debug)]
struct Doubt {
    address: IpAddr,
    /// Packets received and sent by the peer's counters when it came into use.
    since: (u64, u64),
    unreachable: u32,
    unheard: u32,
}

impl Names {
    pub(super) fn new(cache: Cache) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        let book = Book::remembering(cache.load());
        let (failing, doubts) = (HashMap::new(), HashMap::new());
        Self { book, resolver: Resolver::default(), sender, answers, failing, doubts, cache, saving: None }
    }

    /// What names are known to have.
    pub(super) fn in_use(&self) -> impl Iterator<Item = (&str, Endpoints)> {
        self.book.in_use()
    }

    /// The next answer.
    pub(super) async fn next(&mut self) -> (String, Answer) {
        match self.answers.recv().await {
            Some(answer) => answer,
            // Not while `self` holds a sender.
            None => std::future::pending().await,
        }
    }

    /// Takes an answer; says what to use from now on, if that is news.
    fn answer(&mut self, name: &str, answer: Answer) -> Option<Endpoints> {
        let problem = answer.problem.clone();
        let (news, failures) = self.book.answer(name, answer, Instant::now());
        self.ask();
        if failures == 0 {
            if self.failing.remove(name).is_some() {
                tracing::info!("{name} resolves again");
            }
            return news;
        }
        let problem = problem.unwrap_or_else(|| "no address that an endpoint can have".to_owned());
        if self.failing.get(name) != Some(&problem) {
            let kept =
                self.book.in_use().find(|(known, _)| *known == name).and_then(|(_, used)| used.iter().next());
            let kept = kept.map_or_else(String::new, |address| format!("; {address} is still used"));
            if self.failing.len() < LINES {
                tracing::warn!("{name} does not resolve: {problem}{kept}");
            } else {
                tracing::debug!("{name} does not resolve: {problem}{kept}");
            }
            self.failing.insert(name.to_owned(), problem);
        }
        news
    }

    /// Asks for those names whose time has come. Says which names are known no more.
    fn ask_again<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Vec<String> {
        let gone = self.book.want(names, Instant::now());
        for name in &gone {
            self.failing.remove(name);
            self.doubts.remove(name);
        }
        self.ask();
        gone
    }

    fn ask(&mut self) {
        while let Some(name) = self.book.next_to_ask() {
            let (asked, sender) = (self.resolver.ask(&name), self.sender.clone());
            tokio::spawn(async move {
                // The engine has stopped if nobody takes it.
                sender.send((name, asked.await)).ok();
            });
        }
    }

    /// Writes down what changed, beside the engine.
    fn save(&mut self) {
        if let Some(saving) = &self.saving {
            if !saving.is_finished() {
                return;
            }
            let saved = self.saving.take().and_then(|saving| futures::FutureExt::now_or_never(saving)?.ok());
            if saved != Some(true) {
                self.book.keep_changes();
            }
        }
        let Some(names) = self.book.take_changes() else { return };
        let cache = self.cache.clone();
        self.saving = Some(tokio::task::spawn_blocking(move || {
            let result = cache.save(names);
            if let Err(error) = &result {
                tracing::debug!(%error, "cannot save addresses of names");
            }
            result.is_ok()
        }));
    }

    /// Whether the address in use of a name is to be given up.
    fn doubt(&mut self, name: &str, address: IpAddr, reachable: bool, counts: (u64, u64)) -> bool {
        let new = |since| Doubt { address, since, unreachable: 0, unheard: 0 };
        // What the daemon before counted was from there, too.
        let doubt = self.doubts.entry(name.to_owned()).or_insert_with(|| new((0, counts.1)));
        if doubt.address != address {
            *doubt = new(counts);
        }
        doubt.unreachable = if reachable { 0 } else { doubt.unreachable + 1 };
        let (received, sent) = (counts.0 > doubt.since.0, counts.1 > doubt.since.1);
        if received {
            // Who was heard once may be quiet.
            doubt.unheard = 0;
        } else if sent {
            doubt.unheard += 1;
        }
        doubt.unreachable >= UNREACHABLE_SECONDS || doubt.unheard >= UNHEARD_SECONDS
    }
}

impl Engine {
    /// Asks for names whose time has come.
    pub(super) fn ask_for_names(&mut self) {
        for name in self.names.ask_again(self.index.dns_names()) {
            self.observed.endpoints.remove(&name);
        }
    }

    /// Takes what came of asking for a name.
    pub(super) fn resolved(&mut self, name: &str, answer: Answer) {
        if let Some(endpoints) = self.names.answer(name, answer) {
            self.use_endpoints(name, endpoints);
        }
    }

    fn use_endpoints(&mut self, name: &str, endpoints: Endpoints) {
        if self.observed.endpoints.insert(name.to_owned(), endpoints) != Some(endpoints) {
            self.stale.some_routes.extend(endpoints.iter());
            self.catch_up_soon();
        }
    }

    /// Once a second: writes down what is new, and gives up addresses that lead nowhere.
    pub(super) fn look_after_names(&mut self) {
        self.ask_for_names();
        self.names.save();
        for (name, dead) in self.dead_addresses() {
            let like = |address: IpAddr| {
                self.state.underlays.values().any(|underlay| underlay.locals.like(address).is_some())
            };
            let Some(next) = self.names.book.try_another(&name, dead, like) else { continue };
            tracing::info!("{name}: {dead} cannot be reached, trying {}", next.iter().next().unwrap_or(dead));
            self.use_endpoints(&name, next);
        }
    }

    /// Addresses in use of names that have others, that are to be given up.
    fn dead_addresses(&mut self) -> BTreeMap<String, IpAddr> {
        let mut dead = BTreeMap::new();
        // Peers may share a name; the first one speaks for it.
        let mut peers: BTreeMap<&str, (&Arc<str>, &Arc<Peer>)> = BTreeMap::new();
        for (name, peer) in self.index.named_peers().filter(|(_, name)| self.names.book.has_choice(name)) {
            if let Some(found) = self.state.peers.get_key_value(name) {
                peers.entry(peer).or_insert(found);
            }
        }
        let mut states = Vec::new();
        for (name, (peer, settings)) in peers {
            let Some(outcome) = self.compiled.peers.get(peer) else { continue };
            let Some(address) = outcome.endpoint else { continue };
            let down =
                |index: u32| !self.observed.links.get(&index).is_some_and(|link| link.up && link.running);
            // An uplink that is down is no fault of the address.
            let reachable = !matches!(outcome.status, PeerStatus::Unresolved(_))
                || outcome.neighbor.is_some_and(|(index, _)| down(index));
            let traffic = settings.segments.values().map(|id| {
                let traffic = self.datapath.counters().traffic(Target::adjacency(*id));
                (traffic.receive_packets, traffic.transmit_packets)
            });
            let counts = traffic.fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
            states.push((name.to_owned(), address, reachable, counts));
        }
        for (name, address, reachable, counts) in states {
            if self.names.doubt(&name, address, reachable, counts) {
                dead.insert(name, address);
            }
        }
        dead
    }

    /// Has peers that are given a name which is not known yet go on with the address that they had. Says which.
    pub(super) fn keep_endpoints(&mut self, old: &State, new: &State, before: &Compiled) -> Vec<String> {
        let mut kept = Vec::new();
        for item in old.peers.diff(&new.peers) {
            let DiffItem::Update { old: (peer, was), new: (_, now) } = item else { continue };
            let renamed = was.remote != now.remote && now.remote_address().is_none();
            if !renamed || self.observed.endpoints.contains_key(&now.remote) {
                continue;
            }
            let Some(address) = before.peers.get(peer).and_then(|outcome| outcome.endpoint) else { continue };
            let endpoints = self.names.book.assume(&now.remote, address);
            self.observed.endpoints.insert(now.remote.clone(), endpoints);
            kept.push(format!("peer {peer} goes on with {address} until {} resolves", now.remote));
        }
        kept
    }

    /// Writes down what is new, at the end.
    pub(super) fn close_names(&mut self) {
        if let Some(names) = self.names.book.take_changes()
            && let Err(error) = self.names.cache.save(names)
        {
            tracing::debug!(%error, "cannot save addresses of names");
        }
    }

    /// Forgets all, on the disk too.
    pub(super) fn forget_names(&mut self) {
        if let Err(error) = self.names.cache.remove() {
            tracing::warn!(%error, "cannot remove the addresses of names");
        }
    }
}
