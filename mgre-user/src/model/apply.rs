//! From a state and a change to the next state.
//!
//! A `Draft` is a copy of the state that changes are made on. It is thrown
//! away when one of them cannot be, so a failing change leaves nothing behind.

use std::net::IpAddr;

use mgre_common::table::{MAX_PORTS, MAX_SEGMENTS};
use mgre_common::template::Key;
use mgre_common::wire::MacAddr;

use super::change::{Change, SegmentSettings, UnderlaySettings};
use super::check;
use super::config::Document;
use super::error::ModelError;
use super::flooding::LinkLocal;
use super::ids::{Ids, Pool};
use super::locals::Locals;
use super::state::{FdbName, Peer, Segment, State, StaticTarget, Underlay, default};
use super::types::Mtu;

mod members;

impl State {
    /// The state after one change.
    ///
    /// # Errors
    /// Why the change cannot be. Nothing that needs the kernel is checked.
    pub fn apply(&self, change: Change, ids: &Ids) -> Result<Self, ModelError> {
        self.apply_all(std::iter::once(change), ids)
    }

    /// The state after several changes, each on top of the one before.
    ///
    /// # Errors
    /// Why one of the changes cannot be; then none of them counts.
    pub fn apply_all(
        &self,
        changes: impl IntoIterator<Item = Change>,
        ids: &Ids,
    ) -> Result<Self, ModelError> {
        let mut draft = Draft::new(self, ids);
        for change in changes {
            draft.apply(change)?;
        }
        Ok(draft.state)
    }
}

/// A state in the making.
struct Draft<'a> {
    state: State,
    /// What the state was at first: a replacement takes ids over from it.
    before: &'a State,
    /// Whether what is added takes over the id that it had before.
    replacing: bool,
    segment_ids: Pool,
    port_ids: Pool,
    adjacency_ids: Pool,
    adjacency_capacity: u32,
}

impl<'a> Draft<'a> {
    fn new(before: &'a State, ids: &Ids) -> Self {
        let used = &before.index;
        let capacity = ids.adjacency_capacity;
        Self {
            state: before.clone(),
            before,
            replacing: false,
            segment_ids: Pool::new(1, MAX_SEGMENTS + 1, &used.segment_ids, &ids.resting_segments),
            port_ids: Pool::new(0, MAX_PORTS, &used.port_ids, &ids.resting_ports),
            adjacency_ids: Pool::new(0, capacity, &used.adjacency_ids, &ids.resting_adjacencies),
            adjacency_capacity: capacity,
        }
    }

    fn apply(&mut self, change: Change) -> Result<(), ModelError> {
        match change {
            Change::AddUnderlay { interface, settings } => self.add_underlay(interface, settings),
            Change::SetUnderlay { interface, settings, force: _ } => self.set_underlay(interface, settings),
            Change::DelUnderlay { interface, local, force: _ } => self.del_underlay(&interface, local),
            Change::AddSegment { name, settings } => self.add_segment(name, &settings),
            Change::SetSegment { name, settings } => self.set_segment(&name, &settings),
            Change::DelSegment { name } => self.del_segment(&name),
            Change::AddPort { segment, interface, vlan, mode, settings } => {
                self.add_port(segment, interface, vlan, mode, &settings)
            }
            Change::CreatePort { segment, interface, host, settings } => {
                self.create_port(segment, interface, host, &settings)
            }
            Change::SetPort { name, settings } => self.set_port(&name, &settings),
            Change::DelPort { name } => self.del_port(&name),
            Change::AddPeer { name, settings } => self.add_peer(name, settings),
            Change::SetPeer { name, settings } => self.set_peer(&name, settings),
            Change::DelPeer { name } => self.del_peer(&name),
            Change::AddFdb { segment, mac, target } => self.add_fdb(segment, mac, target),
            Change::DelFdb { segment, mac } => self.del_fdb(segment, mac),
            Change::Replace(document) => self.replace(&document),
        }
    }

    /// Builds the document's state from nothing; what was there before keeps its ids.
    fn replace(&mut self, document: &Document) -> Result<(), ModelError> {
        self.state = State::default();
        self.replacing = true;
        for change in document.additions() {
            self.apply(change)?;
        }
        self.replacing = false;
        Ok(())
    }

    fn add_underlay(&mut self, interface: String, settings: UnderlaySettings) -> Result<(), ModelError> {
        let UnderlaySettings { locals, mode, foreign_gre } = settings;
        let Some(added) = locals else { return Err(ModelError::NoLocal { interface }) };
        check::interface(&interface)?;
        self.check_locals(&interface, added)?;
        if self.state.ports_on(&interface).next().is_some() {
            return Err(ModelError::Role { interface, role: "a port", wanted: "an underlay" });
        }
        let underlay = match self.state.underlays.get(&interface) {
            None => Underlay {
                locals: added,
                mode: mode.unwrap_or_default(),
                foreign_gre: foreign_gre.unwrap_or_default(),
            },
            Some(underlay) if added.iter().any(|local| underlay.locals.contains(local)) => {
                let hint = "; to change it, use mgre underlay set";
                return Err(ModelError::Exists { noun: "underlay", name: interface, hint });
            }
            Some(underlay) if mode.is_some_and(|mode| mode != underlay.mode) => {
                let has = format!("mode {}", underlay.mode);
                return Err(ModelError::UnderlayHas { interface, has });
            }
            Some(underlay) if foreign_gre.is_some_and(|asked| asked != underlay.foreign_gre) => {
                let has = format!("foreign GRE {}", underlay.foreign_gre);
                return Err(ModelError::UnderlayHas { interface, has });
            }
            Some(underlay) => match Locals::new(underlay.locals.iter().chain(added.iter())) {
                Ok(locals) => Underlay { locals, ..underlay.clone() },
                Err(error) => return Err(ModelError::LocalTaken { interface, error }),
            },
        };
        self.state.underlays.insert(interface, underlay);
        Ok(())
    }

    fn set_underlay(&mut self, interface: String, settings: UnderlaySettings) -> Result<(), ModelError> {
        let UnderlaySettings { locals, mode, foreign_gre } = settings;
        let before = self.underlay(&interface)?.clone();
        if let Some(locals) = locals {
            self.check_locals(&interface, locals)?;
        }
        let underlay = Underlay {
            locals: locals.unwrap_or(before.locals),
            mode: mode.unwrap_or(before.mode),
            foreign_gre: foreign_gre.unwrap_or(before.foreign_gre),
        };
        self.state.underlays.insert(interface, underlay);
        Ok(())
    }

    fn underlay(&self, interface: &str) -> Result<&Underlay, ModelError> {
        let underlays = &self.state.underlays;
        let missing = || ModelError::not_found("underlay", interface, underlays.keys());
        underlays.get(interface).ok_or_else(missing)
    }

    /// Checks that addresses can be an underlay's.
    fn check_locals(&self, interface: &str, locals: Locals) -> Result<(), ModelError> {
        for local in locals.iter() {
            check::endpoint("the local address of an underlay", local)?;
            let remote = local.to_string();
            if self.state.index.may_have(&remote).any(|name| self.has_remote(name, &remote)) {
                return Err(ModelError::RemoteIsLocal { remote, interface: interface.to_owned() });
            }
        }
        Ok(())
    }

    fn del_underlay(&mut self, interface: &str, local: Option<IpAddr>) -> Result<(), ModelError> {
        let underlay = self.underlay(interface)?.clone();
        let underlays = &mut self.state.underlays;
        let Some(local) = local else {
            underlays.remove(interface);
            return Ok(());
        };
        if !underlay.locals.contains(local) {
            let locals: Vec<String> = underlay.locals.iter().map(|local| local.to_string()).collect();
            return Err(ModelError::not_found("local address", &local.to_string(), locals.iter()));
        }
        match underlay.locals.without(local) {
            Some(locals) => underlays.insert(interface.to_owned(), Underlay { locals, ..underlay }),
            None => underlays.remove(interface),
        };
        Ok(())
    }

    /// Whether a peer has a remote, given in its canonical form.
    fn has_remote(&self, name: &str, canonical: &str) -> bool {
        self.state.peers.get(name).is_some_and(|peer| check::canonical(&peer.remote) == canonical)
    }

    fn segment(&self, name: &str) -> Result<&Segment, ModelError> {
        let missing = || ModelError::not_found("segment", name, self.state.segments.keys());
        self.state.segments.get(name).ok_or_else(missing)
    }

    fn add_segment(&mut self, name: String, settings: &SegmentSettings) -> Result<(), ModelError> {
        check::name("a segment", &name)?;
        if self.state.segments.contains_key(&name) {
            return Err(ModelError::Exists {
                noun: "segment",
                name,
                hint: "; to change it, use segment set",
            });
        }
        let mut segment = Segment {
            id: 0,
            key: None,
            vsid: None,
            mtu: Mtu::Auto,
            aging_seconds: default::AGING_SECONDS,
            max_macs: default::SEGMENT_MAX_MACS,
            hub: false,
            clamp_mss: false,
            suppress_neighbors: false,
            link_local: LinkLocal::default(),
        };
        self.fill_segment(&name, &mut segment, settings)?;
        segment.id = self.segment_id(&name)?;
        self.state.put_segment(name, segment);
        Ok(())
    }

    fn segment_id(&mut self, name: &str) -> Result<u16, ModelError> {
        if let Some(before) = self.before.segments.get(name).filter(|_| self.replacing) {
            return Ok(before.id);
        }
        let exhausted = if self.state.segments.len() < MAX_SEGMENTS as usize {
            ModelError::Resting { what: "segment id" }
        } else {
            ModelError::Full { what: "the number of segments is".to_owned(), limit: MAX_SEGMENTS }
        };
        self.segment_ids.allocate().and_then(|id| u16::try_from(id).ok()).ok_or(exhausted)
    }

    fn set_segment(&mut self, name: &str, settings: &SegmentSettings) -> Result<(), ModelError> {
        let mut segment = self.segment(name)?.clone();
        self.fill_segment(name, &mut segment, settings)?;
        self.state.put_segment(name.to_owned(), segment);
        Ok(())
    }

    /// Checks settings, and writes those given into a segment.
    fn fill_segment(
        &self,
        name: &str,
        segment: &mut Segment,
        settings: &SegmentSettings,
    ) -> Result<(), ModelError> {
        (segment.key, segment.vsid) = match (settings.key, settings.vsid) {
            (Some(Some(_)), Some(Some(_))) => {
                return Err(ModelError::Missing("a segment has a key or a VSID, not both"));
            }
            (key, Some(Some(vsid))) => (key.flatten(), Some(vsid)),
            (Some(key), _) => (key, None),
            (None, Some(None)) => (segment.key, None),
            (None, None) => (segment.key, segment.vsid),
        };
        segment.mtu = settings.mtu.unwrap_or(segment.mtu);
        segment.aging_seconds = settings.aging_seconds.unwrap_or(segment.aging_seconds);
        segment.max_macs = settings.max_macs.unwrap_or(segment.max_macs);
        segment.hub = settings.hub.unwrap_or(segment.hub);
        segment.link_local = settings.link_local.unwrap_or(segment.link_local);
        segment.clamp_mss = settings.clamp_mss.unwrap_or(segment.clamp_mss);
        segment.suppress_neighbors = settings.suppress_neighbors.unwrap_or(segment.suppress_neighbors);
        check::mtu(segment.mtu)?;
        check::aging(segment.aging_seconds)?;
        if let Some(vsid) = segment.vsid {
            check::vsid(vsid)?;
            for (peer, value) in self.state.peers_in(name) {
                not_in_nvgre(peer, value, name)?;
            }
        }
        let wanted = segment.wire_key();
        let same = |(other, value): &(&String, &Segment)| *other != name && meet(value.wire_key(), wanted);
        match self.state.segments.iter().find(same) {
            Some((other, value)) => {
                Err(ModelError::KeyTaken { key: value.wire_key(), segment: other.clone() })
            }
            None => Ok(()),
        }
    }

    fn del_segment(&mut self, name: &str) -> Result<(), ModelError> {
        self.segment(name)?;
        let ports: Vec<_> = self.state.ports_in(name).map(|(interface, _)| interface).collect();
        let peers: Vec<_> = self.state.peers_in(name).map(|(peer, _)| peer).collect();
        let users: Vec<_> = [list("port", &ports), list("peer", &peers)].into_iter().flatten().collect();
        if !users.is_empty() {
            return Err(ModelError::SegmentInUse { segment: name.to_owned(), users: users.join(" and ") });
        }
        self.state.take_segment(name);
        Ok(())
    }

    fn add_fdb(&mut self, segment: String, mac: MacAddr, target: StaticTarget) -> Result<(), ModelError> {
        self.segment(&segment)?;
        check::station(mac)?;
        let (noun, name, member) = match &target {
            StaticTarget::Peer(name) => ("peer", name, self.peer(name)?.segments.contains_key(&segment)),
            StaticTarget::Port(name) => ("port", name, self.port(name)?.segment == segment),
        };
        if !member {
            return Err(ModelError::NotMember { noun, name: name.clone(), segment });
        }
        let name = FdbName { segment, mac };
        if self.state.fdb.contains_key(&name) {
            let hint = "; to change it, remove it first (mgre fdb del)";
            return Err(ModelError::Exists { noun: "static entry", name: mac.to_string(), hint });
        }
        self.state.fdb.insert(name, target);
        Ok(())
    }

    fn del_fdb(&mut self, segment: String, mac: MacAddr) -> Result<(), ModelError> {
        self.segment(&segment)?;
        if self.state.fdb.remove(&FdbName { segment, mac }).is_none() {
            let known =
                " (only static entries can be removed one by one; learned ones: mgre fdb flush)".to_owned();
            return Err(ModelError::NotFound { noun: "static entry", name: mac.to_string(), known });
        }
        Ok(())
    }
}

/// Whether a packet may have both keys.
fn meet(one: Key, other: Key) -> bool {
    match (one, other) {
        // The flow id may be anything.
        (Key::Plain(key), Key::Vsid(vsid)) | (Key::Vsid(vsid), Key::Plain(key)) => key >> 8 == vsid,
        _ => one == other,
    }
}

/// Checks that a peer can be in a segment whose packets are NVGRE.
fn not_in_nvgre(name: &str, peer: &Peer, segment: &str) -> Result<(), ModelError> {
    let option = match (peer.csum, peer.seq) {
        (true, _) => "checksums (csum)",
        (_, true) => "sequence numbers (seq)",
        (false, false) => return Ok(()),
    };
    Err(ModelError::NotInNvgre { peer: name.to_owned(), option, segment: segment.to_owned() })
}

/// "port a" or "12 ports", or nothing.
fn list(noun: &str, names: &[&str]) -> Option<String> {
    match names {
        [] => None,
        [name] => Some(format!("{noun} {name}")),
        few if few.len() <= 8 => Some(format!("{noun}s {}", few.join(", "))),
        many => Some(format!("{} {noun}s", many.len())),
    }
}
