//! Ports and peers: the members of segments.

use std::collections::BTreeMap;
use std::sync::Arc;

use mgre_common::table::{MAX_PORTS, MAX_SEGMENT_ADJACENCIES, MAX_SEGMENT_PORTS};

use super::{Draft, not_in_nvgre};
use crate::model::change::{PeerSettings, PortSettings};
use crate::model::check;
use crate::model::error::ModelError;
use crate::model::flooding::StormLimit;
use crate::model::state::{FdbName, HostInterface, Peer, Port, StaticTarget, Underlay, default, tagged_name};
use crate::model::types::{Df, Encap, Mode, Mtu, Tos};

impl Draft<'_> {
    pub(super) fn port(&self, name: &str) -> Result<&Port, ModelError> {
        let missing = || ModelError::not_found("port", name, self.state.ports.keys());
        self.state.ports.get(name).ok_or_else(missing)
    }

    pub(super) fn peer(&self, name: &str) -> Result<&Arc<Peer>, ModelError> {
        let missing = || ModelError::not_found("peer", name, self.state.peers.keys());
        self.state.peers.get(name).ok_or_else(missing)
    }

    /// Makes an existing interface, or a VLAN on it, a port.
    pub(super) fn add_port(
        &mut self,
        segment: String,
        interface: String,
        vlan: Option<u16>,
        mode: Mode,
        settings: &PortSettings,
    ) -> Result<(), ModelError> {
        check::interface(&interface)?;
        let name = match vlan {
            Some(vlan) => {
                check::vlan(vlan)?;
                tagged_name(&interface, vlan)
            }
            None => interface.clone(),
        };
        self.check_port(&name, &interface, &segment)?;
        for (other, port) in self.state.ports_on(&interface) {
            let interface = interface.clone();
            if port.created.is_some() {
                return Err(ModelError::VlanOfHost { interface });
            }
            if port.mode != mode {
                return Err(ModelError::OtherMode { interface, mode: port.mode, port: other.to_owned() });
            }
        }
        let storm_limit = settings.storm_limit.unwrap_or_default();
        self.put_port(name, Port { id: 0, segment, vlan, mode, created: None, storm_limit })
    }

    /// Makes a port of an interface that is to be made.
    pub(super) fn create_port(
        &mut self,
        segment: String,
        name: String,
        host: HostInterface,
        settings: &PortSettings,
    ) -> Result<(), ModelError> {
        check::interface(&name)?;
        self.check_port(&name, &name, &segment)?;
        if let Some(mac) = host.mac {
            check::station(mac)?;
        }
        if self.state.ports_on(&name).next().is_some() {
            let (role, wanted) = ("a port by VLAN", "an interface of the host");
            return Err(ModelError::Role { interface: name, role, wanted });
        }
        let storm_limit = settings.storm_limit.unwrap_or_default();
        let port = Port { id: 0, segment, vlan: None, mode: Mode::Auto, created: Some(host), storm_limit };
        self.put_port(name, port)
    }

    pub(super) fn set_port(&mut self, name: &str, settings: &PortSettings) -> Result<(), ModelError> {
        let mut port = self.port(name)?.clone();
        port.storm_limit = settings.storm_limit.unwrap_or(port.storm_limit);
        self.state.put_port(name.to_owned(), port);
        Ok(())
    }

    /// Checks that there can be one more port.
    fn check_port(&self, name: &str, interface: &str, segment: &str) -> Result<(), ModelError> {
        self.segment(segment)?;
        if let Some(port) = self.state.ports.get(name) {
            return Err(ModelError::PortTaken { name: name.to_owned(), segment: port.segment.clone() });
        }
        if self.state.underlays.contains_key(interface) {
            let interface = interface.to_owned();
            return Err(ModelError::Role { interface, role: "an underlay", wanted: "a port" });
        }
        if self.state.ports_in(segment).count() >= MAX_SEGMENT_PORTS as usize {
            let what = format!("the number of ports in segment {segment:?} is");
            return Err(ModelError::Full { what, limit: MAX_SEGMENT_PORTS });
        }
        Ok(())
    }

    fn put_port(&mut self, name: String, port: Port) -> Result<(), ModelError> {
        let id = self.port_id(&name, &port)?;
        self.state.put_port(name, Port { id, ..port });
        Ok(())
    }

    /// A port that is in the same segment as before, and as much ours, is the same port.
    fn port_id(&mut self, name: &str, port: &Port) -> Result<u32, ModelError> {
        let same = |before: &&Port| {
            self.replacing
                && before.segment == port.segment
                && before.vlan == port.vlan
                && before.created.is_some() == port.created.is_some()
        };
        if let Some(before) = self.before.ports.get(name).filter(same) {
            return Ok(before.id);
        }
        let exhausted = if self.state.ports.len() < MAX_PORTS as usize {
            ModelError::Resting { what: "port id" }
        } else {
            ModelError::Full { what: "the number of ports is".to_owned(), limit: MAX_PORTS }
        };
        self.port_ids.allocate().ok_or(exhausted)
    }

    pub(super) fn del_port(&mut self, name: &str) -> Result<(), ModelError> {
        self.port(name)?;
        self.state.take_port(name);
        self.forget_entries(|_, target| target.port() == Some(name));
        Ok(())
    }

    /// Removes static entries.
    fn forget_entries(&mut self, which: impl Fn(&FdbName, &StaticTarget) -> bool) {
        let entries = self.state.fdb.iter();
        let gone: Vec<FdbName> =
            entries.filter(|(name, target)| which(name, target)).map(|(name, _)| name.clone()).collect();
        gone.iter().for_each(|name| drop(self.state.fdb.remove(name)));
    }

    pub(super) fn add_peer(&mut self, name: String, settings: PeerSettings) -> Result<(), ModelError> {
        check::name("a peer", &name)?;
        if self.state.peers.contains_key(name.as_str()) {
            return Err(ModelError::Exists { noun: "peer", name, hint: "; to change it, use peer set" });
        }
        if settings.remote.is_none() {
            return Err(ModelError::Missing("a peer needs a remote: an IP address or a DNS name"));
        }
        if settings.segments.is_none() {
            return Err(ModelError::Missing("a peer needs at least one segment"));
        }
        let peer = Peer {
            remote: String::new(),
            segments: BTreeMap::new(),
            ttl: default::TTL,
            tos: Tos::default(),
            df: Df::Set,
            mtu: Mtu::Auto,
            max_macs: default::PEER_MAX_MACS,
            csum: false,
            seq: false,
            encap: Encap::Gre,
            storm_limit: StormLimit::Off,
        };
        self.put_peer(name.into(), peer, settings)
    }

    pub(super) fn set_peer(&mut self, name: &str, settings: PeerSettings) -> Result<(), ModelError> {
        let peer = Peer::clone(self.peer(name)?);
        self.put_peer(name.into(), peer, settings)?;
        let peer = Arc::clone(self.peer(name)?);
        // Static entries do not outlive the adjacency that they point at.
        self.forget_entries(|entry, target| {
            target.peer() == Some(name) && !peer.segments.contains_key(&entry.segment)
        });
        Ok(())
    }

    /// Writes the settings given into a peer, checks it, and makes it part of the state.
    fn put_peer(&mut self, name: Arc<str>, mut peer: Peer, settings: PeerSettings) -> Result<(), ModelError> {
        peer.remote = settings.remote.unwrap_or(peer.remote);
        peer.ttl = settings.ttl.unwrap_or(peer.ttl);
        peer.tos = settings.tos.unwrap_or(peer.tos);
        peer.df = settings.df.unwrap_or(peer.df);
        peer.mtu = settings.mtu.unwrap_or(peer.mtu);
        peer.max_macs = settings.max_macs.unwrap_or(peer.max_macs);
        peer.csum = settings.csum.unwrap_or(peer.csum);
        peer.seq = settings.seq.unwrap_or(peer.seq);
        peer.encap = settings.encap.unwrap_or(peer.encap);
        peer.storm_limit = settings.storm_limit.unwrap_or(peer.storm_limit);
        check::ttl(peer.ttl)?;
        check::tos(peer.tos)?;
        check::mtu(peer.mtu)?;
        let wanted = settings.segments.unwrap_or_else(|| peer.segments.keys().cloned().collect());
        if wanted.is_empty() {
            return Err(ModelError::Missing("a peer needs at least one segment"));
        }
        for segment in &wanted {
            if self.segment(segment)?.vsid.is_some() {
                not_in_nvgre(&name, &peer, segment)?;
            }
        }
        self.check_remote(&name, &peer.remote, &wanted)?;
        peer.segments = self.memberships(&name, &peer, wanted)?;
        self.state.put_peer(name, Arc::new(peer));
        Ok(())
    }

    /// No host of ours, and no other peer's in one of the segments.
    fn check_remote(&self, name: &str, remote: &str, segments: &[String]) -> Result<(), ModelError> {
        let canonical = check::remote(remote)?;
        if let Ok(address) = canonical.parse() {
            let own = |(_, underlay): &(&String, &Underlay)| underlay.locals.contains(address);
            if let Some((interface, _)) = self.state.underlays.iter().find(own) {
                return Err(ModelError::RemoteIsLocal { remote: canonical, interface: interface.clone() });
            }
        }
        for other in self.state.index.may_have(&canonical).filter(|other| *other != name) {
            let Some(peer) = self.state.peers.get(other).filter(|_| self.has_remote(other, &canonical))
            else {
                continue;
            };
            if let Some(segment) = segments.iter().find(|segment| peer.segments.contains_key(*segment)) {
                let (peer, segment) = (other.to_owned(), segment.clone());
                return Err(ModelError::RemoteTaken { remote: canonical, peer, segment });
            }
        }
        Ok(())
    }

    /// The adjacency ids of a peer in these segments: those that it has, and new ones.
    fn memberships(
        &mut self,
        name: &str,
        peer: &Peer,
        wanted: Vec<String>,
    ) -> Result<BTreeMap<String, u32>, ModelError> {
        let before = self.before.peers.get(name).filter(|_| self.replacing);
        let mut segments = BTreeMap::new();
        for segment in wanted {
            let existing =
                peer.segments.get(&segment).or(before.and_then(|before| before.segments.get(&segment)));
            let id = match existing {
                // The capacity may have been made smaller since the id was given out.
                Some(id) => *id,
                None if segments.contains_key(&segment) => continue,
                None => self.adjacency_id()?,
            };
            if !peer.segments.contains_key(&segment)
                && self.state.peer_count(&segment) >= MAX_SEGMENT_ADJACENCIES
            {
                let what = format!("the number of peers in segment {segment:?} is");
                return Err(ModelError::Full { what, limit: MAX_SEGMENT_ADJACENCIES });
            }
            segments.insert(segment, id);
        }
        Ok(segments)
    }

    fn adjacency_id(&mut self) -> Result<u32, ModelError> {
        if let Some(id) = self.adjacency_ids.allocate() {
            return Ok(id);
        }
        let limit = self.adjacency_capacity;
        if self.state.adjacency_count() < limit {
            return Err(ModelError::Resting { what: "adjacency" });
        }
        Err(ModelError::Full { what: "the number of adjacencies (peers in segments) is".to_owned(), limit })
    }

    pub(super) fn del_peer(&mut self, name: &str) -> Result<(), ModelError> {
        self.peer(name)?;
        self.state.take_peer(name);
        self.forget_entries(|_, target| target.peer() == Some(name));
        Ok(())
    }
}
