//! The engine's part in interfaces: makes them, fits them, and makes ports promiscuous.

use std::collections::BTreeSet;

use super::engine::Engine;
use super::journal::Entry;
use super::store::Saved;
use super::transact::kernel;
use crate::api::messages::Problem;
use crate::model::{HostInterface, State};
use crate::netlink::Link;

/// The other end of a host's interface is named by this and the interface's index.
const PEER_PREFIX: &str = "mgre";

impl Engine {
    /// The mark on interfaces that this instance made.
    pub(super) fn alias(&self) -> String {
        format!("mgre:{}", self.options.instance)
    }

    pub(super) fn is_ours(&self, link: &Link) -> bool {
        link.alias.as_deref() == Some(&self.alias())
    }

    /// Which interfaces are to be promiscuous because of us: ports that were there
    /// and were not promiscuous before. A port's interface takes in frames for
    /// every address behind the tunnel.
    pub(super) fn promiscuous_for(&self, next: &State) -> BTreeSet<String> {
        let ports = next.ports.iter().filter(|(_, port)| port.created.is_none());
        ports
            .map(|(name, port)| port.interface(name))
            .filter(|name| {
                self.promiscuous.contains(*name)
                    || self.observed.link(name).is_some_and(|link| !link.promiscuous)
            })
            .map(str::to_owned)
            .collect()
    }

    pub(super) async fn set_promiscuous(&mut self, wanted: BTreeSet<String>) {
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
            let mtu = self.compiled.segment_mtu(next, &self.observed, segment);
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

    pub(super) async fn delete_interfaces(&self, indices: &[u32]) {
        for index in indices {
            if let Err(error) = self.netlink.delete_link(*index).await {
                tracing::warn!(%error, "cannot delete an interface");
            }
        }
    }

    /// Deletes interfaces that were made for ports that are gone.
    pub(super) async fn clean_up(&mut self, old: &State) {
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
        if promiscuous != self.promiscuous || self.unsaved_promiscuous {
            let entry = Entry { promiscuous: Some(promiscuous.clone()), ..Entry::default() };
            let saved = Saved { state: self.state.clone(), promiscuous: promiscuous.clone() };
            let result = self.store().save(&[entry], &saved);
            // Frames go first; it is saved with the next change.
            self.unsaved_promiscuous = result.is_err();
            if let Err(error) = result {
                tracing::warn!("{error:#}");
            }
        }
        self.set_promiscuous(promiscuous).await;
        for (name, port) in self.state.ports.iter().filter(|(_, port)| port.created.is_some()) {
            let Some(segment) = self.state.segments.get(&port.segment) else { continue };
            let Some(link) = self.observed.link(name).filter(|link| self.is_ours(link)) else { continue };
            let mtu = self.compiled.segment_mtu(&self.state, &self.observed, segment);
            if link.mtu != mtu
                && let Err(error) = self.netlink.set_mtu(link.index, mtu).await
            {
                tracing::warn!(%error, "cannot set the MTU of {name}");
            }
        }
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
