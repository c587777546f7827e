//! The engine's part in interfaces: fits those that it made, and makes ports promiscuous.

use std::collections::BTreeSet;

use super::engine::Engine;
use super::journal::Entry;
use super::store::Saved;
use crate::model::State;
use crate::netlink::Link;

/// What is sent on Ethernet where nothing else was agreed on.
const ETHERNET_MTU: u32 = 1500;

/// The mark on interfaces that an instance made.
pub(super) fn alias(instance: &str) -> String {
    format!("mgre:{instance}")
}

impl Engine {
    /// The mark on interfaces that this instance made.
    pub(super) fn alias(&self) -> String {
        alias(&self.options.instance)
    }

    pub(super) fn is_ours(&self, link: &Link) -> bool {
        self.observed.is_made(link)
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

    pub(super) async fn delete_interfaces(&self, indices: &[u32]) {
        for index in indices {
            if let Err(error) = self.netlink.delete_link(*index).await {
                tracing::warn!(%error, "cannot delete an interface");
            }
        }
    }

    /// What the other members of its bridge may send, for an interface that is enslaved to one. A bridge drops what is
    /// longer than the MTU of the interface that it goes to, without a word; here the senders are told.
    fn bridge_mtu(&self, link: &Link) -> u32 {
        let members = |bridge: u32| {
            let others = self.observed.links.values().filter(move |other| other.controller == Some(bridge));
            others.filter(|other| other.index != link.index).map(|other| other.mtu).max()
        };
        let bridge = link.controller.filter(|index| {
            self.observed.links.get(index).is_some_and(|link| link.kind.as_deref() == Some("bridge"))
        });
        bridge.map_or(0, |bridge| members(bridge).unwrap_or(0).max(ETHERNET_MTU))
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
            let mtu =
                self.compiled.segment_mtu(&self.state, &self.observed, segment).max(self.bridge_mtu(link));
            if link.mtu != mtu
                && let Err(error) = self.netlink.set_mtu(link.index, mtu).await
            {
                tracing::warn!(%error, "cannot set the MTU of {name}");
            }
        }
    }
}
