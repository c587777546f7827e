//! Changes of the wanted state: all of it, or nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::check::{check, warnings};
use super::engine::Engine;
use super::index::Index;
use super::observe::{Stale, refresh};
use super::store::Saved;
use crate::api::messages::{Applied, EventKind, Problem};
use crate::model::{Change, HostInterface, State, differences};
use crate::netlink::{self, Link};
use crate::plan::{Compiled, compile, segment_mtu};

/// The other end of a host's interface is named by this and the interface's index.
const PEER_PREFIX: &str = "mgre";

impl Engine {
    /// The mark on interfaces that this instance made.
    pub(super) fn alias(&self) -> String {
        format!("mgre:{}", self.options.instance)
    }

    fn is_ours(&self, link: &Link) -> bool {
        link.alias.as_deref() == Some(&self.alias())
    }

    /// Makes changes, or says what they would be.
    pub(super) async fn change(&mut self, changes: Vec<Change>, dry_run: bool) -> Result<Applied, Problem> {
        let next = self.state.apply_all(changes, &self.ids())?;
        let changed = differences(&self.state, &next);
        if dry_run {
            self.check(&next).await?;
            return Ok(Applied { changed, warnings: Vec::new() });
        }
        let warnings = self.transact(next).await?;
        if !changed.is_empty() {
            self.emit(EventKind::ConfigChanged { changed: changed.clone() });
        }
        Ok(Applied { changed, warnings })
    }

    async fn check(&mut self, next: &State) -> Result<Vec<netlink::Address>, Problem> {
        let stale = Stale { links: true, ..Stale::default() };
        refresh(&self.netlink, next, &mut self.observed, stale).await.map_err(kernel)?;
        let addresses = self.netlink.addresses().await.map_err(kernel)?;
        check(&self.state, next, &self.observed, &addresses, |link| self.is_ours(link))?;
        Ok(addresses)
    }

    /// Puts a state in force. On failure everything is as it was.
    async fn transact(&mut self, next: State) -> Result<Vec<String>, Problem> {
        let addresses = self.check(&next).await?;
        let created = self.create_interfaces(&next).await?;
        match self.put_in_force(&next).await {
            Ok(()) => {}
            Err(problem) => {
                self.delete_interfaces(&created).await;
                return Err(problem);
            }
        }
        self.index = Index::new(&next);
        let old = std::mem::replace(&mut self.state, next);
        self.clean_up(&old).await;
        self.names.ask_again(&self.state);
        self.update_full();
        self.keep_neighbors(false).await;
        self.fit_interfaces().await;
        Ok(warnings(&old, &self.state, &self.observed, &addresses))
    }

    async fn put_in_force(&mut self, next: &State) -> Result<(), Problem> {
        refresh(&self.netlink, next, &mut self.observed, Stale::ALL).await.map_err(kernel)?;
        let before = self.plan.clone();
        let Compiled { plan, peers, hooks } = compile(next, &self.observed);
        let promiscuous = self.promiscuous_for(next);
        let saved = Saved { state: next.clone(), promiscuous: promiscuous.clone() };
        let store = Arc::clone(&self.store);
        let failed = |error: anyhow::Error| Problem::internal(format!("{error:#}"));
        let staged = store.stage(&saved).map_err(failed)?;
        self.carry_out(plan).map_err(failed)?;
        if let Err(error) = staged.commit() {
            if let Err(error) = self.carry_out(before) {
                tracing::error!("while undoing: {error:#}");
            }
            return Err(failed(error));
        }
        self.set_promiscuous(promiscuous).await;
        self.hooks = hooks;
        self.take_outcomes(peers);
        Ok(())
    }

    /// Which interfaces are to be promiscuous because of us: ports that were there
    /// and were not promiscuous before. A port's interface takes in frames for
    /// every address behind the tunnel.
    fn promiscuous_for(&self, next: &State) -> BTreeSet<String> {
        let ports = next.ports.iter().filter(|(_, port)| port.created.is_none());
        ports
            .map(|(name, _)| name)
            .filter(|name| {
                self.promiscuous.contains(*name)
                    || self.observed.link(name).is_some_and(|link| !link.promiscuous)
            })
            .cloned()
            .collect()
    }

    async fn set_promiscuous(&mut self, wanted: BTreeSet<String>) {
        for name in self.promiscuous.union(&wanted) {
            let on = wanted.contains(name);
            let Some(link) = self.observed.link(name).filter(|link| link.promiscuous != on) else { continue };
            if let Err(error) = self.netlink.set_promiscuous(link.index, on).await {
                tracing::warn!(%error, "cannot make {name} {}promiscuous", if on { "" } else { "not " });
            }
        }
        self.promiscuous = wanted;
    }

    /// Makes the interfaces that a state wants and the kernel does not have.
    pub(super) async fn create_interfaces(&mut self, next: &State) -> Result<Vec<u32>, Problem> {
        let mut created = Vec::new();
        for (name, port) in &next.ports {
            let Some(host) = &port.created else { continue };
            if self.observed.link(name).is_some() {
                continue;
            }
            let segment = next.segments.get(&port.segment).ok_or_else(|| Problem::internal("no segment"))?;
            let mtu = segment_mtu(next, &self.observed, segment);
            match self.create_interface(name, host, mtu).await {
                Ok(index) => created.push(index),
                Err(problem) => {
                    self.delete_interfaces(&created).await;
                    return Err(problem);
                }
            }
        }
        Ok(created)
    }

    async fn create_interface(&self, name: &str, host: &HostInterface, mtu: u32) -> Result<u32, Problem> {
        let peer = free_name(|peer| self.observed.link(peer).is_none());
        let (link, _) =
            self.netlink.create_veth(name, &peer, host.mac, mtu, &self.alias()).await.map_err(kernel)?;
        for cidr in &host.addresses {
            if let Err(error) = self.netlink.add_address(link.index, cidr.address, cidr.prefix).await {
                self.delete_interfaces(&[link.index]).await;
                return Err(Problem::internal(format!("{name}: {error}")));
            }
        }
        Ok(link.index)
    }

    async fn delete_interfaces(&self, indices: &[u32]) {
        for index in indices {
            if let Err(error) = self.netlink.delete_link(*index).await {
                tracing::warn!(%error, "cannot delete an interface");
            }
        }
    }

    /// Deletes interfaces that were made for ports that are gone.
    async fn clean_up(&mut self, old: &State) {
        let gone = old.ports.iter().filter(|(name, port)| {
            port.created.is_some() && self.state.ports.get(*name).is_none_or(|port| port.created.is_none())
        });
        let indices: Vec<u32> = gone
            .filter_map(|(name, _)| self.observed.link(name))
            .filter(|link| self.is_ours(link))
            .map(|link| link.index)
            .collect();
        self.delete_interfaces(&indices).await;
    }

    /// Gives interfaces that were made the MTU that their segment has now, and
    /// makes ports that came back promiscuous again.
    pub(super) async fn fit_interfaces(&mut self) {
        let promiscuous = self.promiscuous_for(&self.state);
        if promiscuous != self.promiscuous {
            let saved = Saved { state: self.state.clone(), promiscuous: promiscuous.clone() };
            if let Err(error) = self.store.save(&saved) {
                tracing::warn!("{error:#}");
            }
        }
        self.set_promiscuous(promiscuous).await;
        for (name, port) in self.state.ports.iter().filter(|(_, port)| port.created.is_some()) {
            let Some(segment) = self.state.segments.get(&port.segment) else { continue };
            let Some(link) = self.observed.link(name).filter(|link| self.is_ours(link)) else { continue };
            let mtu = segment_mtu(&self.state, &self.observed, segment);
            if link.mtu != mtu
                && let Err(error) = self.netlink.set_mtu(link.index, mtu).await
            {
                tracing::warn!(%error, "cannot set the MTU of {name}");
            }
        }
    }

    /// Takes everything out of the kernel that this instance put there.
    pub(super) async fn detach(&mut self) -> Result<(), Problem> {
        self.datapath.detach_all().map_err(|error| Problem::internal(format!("{error:#}")))?;
        self.release_neighbors().await;
        let stale = Stale { links: true, ..Stale::default() };
        refresh(&self.netlink, &self.state, &mut self.observed, stale).await.map_err(kernel)?;
        self.set_promiscuous(BTreeSet::new()).await;
        // Either end of a pair takes the other with it.
        for name in self.state.ports.keys() {
            if let Some(link) = self.observed.link(name).filter(|link| self.is_ours(link)) {
                self.netlink.delete_link(link.index).await.map_err(kernel)?;
            }
        }
        self.store.retire().map_err(|error| Problem::internal(format!("{error:#}")))
    }
}

/// A name for the end of a pair that nobody uses.
fn free_name(is_free: impl Fn(&str) -> bool) -> String {
    let mut number = 0_u32;
    loop {
        let name = format!("{PEER_PREFIX}{number}");
        if is_free(&name) {
            return name;
        }
        number += 1;
    }
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
