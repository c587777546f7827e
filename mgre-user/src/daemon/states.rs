//! The engine's part in what interfaces are: follows those that get another name, and says what underlays and ports
//! are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::engine::Engine;
use crate::api::messages::{EventKind, PortState, UnderlayState};
use crate::model::Port;
use crate::netlink::Link;
use crate::plan::{Hook, missing_local};

/// What was told last of underlays, by interface and address, and of ports, by name.
#[derive(Debug, Default)]
pub(super) struct Told {
    underlays: BTreeMap<(String, IpAddr), (UnderlayState, Option<String>)>,
    ports: BTreeMap<String, (PortState, Option<String>)>,
}

impl Engine {
    /// Goes on with interfaces that are in use and have got another name. (A daemon that starts later knows the
    /// configured one alone.)
    pub(super) fn follow_renames(&mut self, before: &OrdMap<u32, Link>) {
        for item in before.diff(&self.observed.links) {
            let DiffItem::Update { old: (_, old), new: (_, new) } = item else { continue };
            if old.name == new.name {
                continue;
            }
            let wanted = self.observed.wanted_name(old).to_owned();
            if new.name == wanted {
                tracing::info!("{wanted} has its name again");
                self.observed.renamed.remove(&wanted);
            } else if self.is_wanted(&wanted) {
                tracing::warn!(
                    "{wanted} is named {} now: it is followed until this daemon ends; give it its name again, or set \
                     it up by the new one",
                    new.name
                );
                self.observed.renamed.insert(wanted, new.index);
            }
        }
        if !self.observed.renamed.is_empty() {
            let names = self.observed.renamed.clone();
            for (name, index) in &names {
                let taken = || self.observed.links.values().any(|link| link.name == *name);
                if !self.observed.links.contains_key(index) || !self.is_wanted(name) || taken() {
                    self.observed.renamed.remove(name);
                }
            }
        }
    }

    fn is_wanted(&self, interface: &str) -> bool {
        self.state.underlays.contains_key(interface) || self.state.ports_on(interface).next().is_some()
    }

    /// Whether an underlay works, and if not, why; or what else there is to know.
    pub(super) fn underlay_state(&self, name: &str, local: IpAddr) -> (UnderlayState, Option<String>) {
        let down = |why: String| (UnderlayState::Down, Some(why));
        let Some(link) = self.observed.link(name) else {
            return (UnderlayState::Missing, Some(format!("there is no interface named {name}")));
        };
        if !self.plan.attachments.contains_key(&(link.index, Hook::Underlay)) {
            return down("not attached".to_owned());
        }
        if let Some(refusal) = self.datapath.refusal(link.index, Hook::Underlay) {
            return down(format!("cannot be attached to: {refusal}"));
        }
        match link {
            Link { up: false, .. } => down("the interface is down".to_owned()),
            Link { running: false, .. } => down("no carrier".to_owned()),
            _ if self.observed.lacks(local) => down(missing_local(local)),
            _ => (UnderlayState::Up, self.other_name(name)),
        }
    }

    pub(super) fn port_state(&self, name: &str, port: &Port) -> (PortState, Option<String>) {
        let interface = port.interface(name);
        if let Some(unmade) = self.unmade.get(name) {
            return (PortState::Missing, Some(format!("cannot be made: {}", unmade.why)));
        }
        let Some(link) = self.observed.link(interface) else {
            return (PortState::Missing, Some(format!("there is no interface named {interface}")));
        };
        let hook = if port.created.is_some() { Hook::HostPort } else { Hook::Port };
        if let Some(refusal) = self.datapath.refusal(link.index, hook) {
            return (PortState::Down, Some(format!("cannot be attached to: {refusal}")));
        }
        match self.plan.ports.get(&port.id) {
            None => (PortState::Down, Some("not attached".to_owned())),
            Some(record) if record.blocked => (PortState::Blocked, self.why_blocked(port.id)),
            Some(record) if record.up => (PortState::Up, self.other_name(interface)),
            Some(_) if link.up => (PortState::Down, Some("no carrier".to_owned())),
            Some(_) => (PortState::Down, Some("the interface is down".to_owned())),
        }
    }

    fn other_name(&self, wanted: &str) -> Option<String> {
        self.observed.other_name(wanted).map(|name| format!("{wanted} is named {name} now"))
    }

    /// Tells who listens, and the log, what has become of underlays and ports since it was told last.
    pub(super) fn tell_states(&mut self) {
        let mut now = Told::default();
        for (name, underlay) in &self.state.underlays {
            for local in underlay.locals.iter() {
                now.underlays.insert((name.clone(), local), self.underlay_state(name, local));
            }
        }
        for (name, port) in &self.state.ports {
            now.ports.insert(name.clone(), self.port_state(name, port));
        }
        for (key, (state, reason)) in &now.underlays {
            if self.told.underlays.get(key).is_some_and(|told| told == &(*state, reason.clone())) {
                continue;
            }
            let (underlay, local) = key.clone();
            tracing::info!(%underlay, %local, ?state, reason = reason.as_deref().unwrap_or(""), "underlay");
            self.emit(EventKind::UnderlayState { underlay, local, state: *state, reason: reason.clone() });
        }
        for (port, (state, reason)) in &now.ports {
            let told = self.told.ports.get(port);
            // For how long a port is blocked is another text each second.
            if told.is_some_and(|(was, why)| was == state && (why == reason || *state == PortState::Blocked))
            {
                continue;
            }
            tracing::info!(%port, ?state, reason = reason.as_deref().unwrap_or(""), "port");
            self.emit(EventKind::PortState { port: port.clone(), state: *state, reason: reason.clone() });
        }
        self.told = now;
    }
}
