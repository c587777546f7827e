//! The state and its parts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use mgre_common::template::Key;
use mgre_common::wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::flooding::{LinkLocal, StormLimit};
use super::index::Index;
use super::locals::Locals;
use super::types::{Cidr, Df, Encap, ForeignGre, Mode, Mtu, Tos, is_default, mac_text, optional_mac_text};

/// Version of the state file's format.
pub const STATE_VERSION: u32 = 2;
/// The oldest one that is read: its snapshots may have no checksum, and its journals no chain of them.
pub const OLDEST_STATE_VERSION: u32 = 1;

/// Whether a saved state of this version is read.
pub fn is_readable(version: u32) -> bool {
    (OLDEST_STATE_VERSION..=STATE_VERSION).contains(&version)
}

/// Defaults of what an operator does not say.
pub mod default {
    /// Seconds after which a learned address that was not seen again is forgotten.
    pub const AGING_SECONDS: u32 = 300;
    /// Addresses learned in one segment.
    pub const SEGMENT_MAX_MACS: u32 = 8192;
    /// Addresses learned from one peer.
    pub const PEER_MAX_MACS: u32 = 1024;
    /// TTL of outer packets.
    pub const TTL: u8 = 64;
}

/// Everything that was asked of one instance.
///
/// A copy costs next to nothing and shares with the original what both have; two
/// copies are compared in time that goes with what is different between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Fields")]
pub struct State {
    /// [`STATE_VERSION`]; see [`State::from_json`].
    pub version: u32,
    /// By interface.
    pub underlays: OrdMap<String, Underlay>,
    /// By name.
    pub segments: OrdMap<String, Segment>,
    /// By name: the interface's, or [`tagged_name`].
    pub ports: OrdMap<String, Port>,
    /// By name.
    pub peers: OrdMap<Arc<str>, Arc<Peer>>,
    /// Static FDB entries.
    #[serde(with = "fdb_list")]
    pub fdb: OrdMap<FdbName, StaticTarget>,
    /// What follows from the rest. The methods of this module keep it so.
    #[serde(skip)]
    pub(super) index: Index,
}

/// A state as it is saved.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    version: u32,
    underlays: OrdMap<String, Underlay>,
    segments: OrdMap<String, Segment>,
    ports: OrdMap<String, Port>,
    peers: OrdMap<Arc<str>, Arc<Peer>>,
    #[serde(with = "fdb_list")]
    fdb: OrdMap<FdbName, StaticTarget>,
}

impl From<Fields> for State {
    fn from(Fields { version, underlays, segments, ports, peers, fdb }: Fields) -> Self {
        let index = Index::new(&segments, &ports, &peers);
        // An older one is this version's once it is read.
        Self { version: version.max(STATE_VERSION), underlays, segments, ports, peers, fdb, index }
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: STATE_VERSION,
            underlays: OrdMap::new(),
            segments: OrdMap::new(),
            ports: OrdMap::new(),
            peers: OrdMap::new(),
            fdb: OrdMap::new(),
            index: Index::default(),
        }
    }
}

/// An interface that outer packets come and go through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Underlay {
    /// Our endpoints: the source addresses of outer packets.
    #[serde(rename = "local")]
    pub locals: Locals,
    /// How to attach.
    pub mode: Mode,
    /// What becomes of GRE that is no peer's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub foreign_gre: ForeignGre,
}

/// A broadcast domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// 1 to [`mgre_common::table::MAX_SEGMENTS`], the same for as long as the segment lives.
    pub id: u16,
    /// The GRE key; none for GRE without one, and for NVGRE.
    pub key: Option<u32>,
    /// The virtual subnet id, if its packets are NVGRE.
    #[serde(default, skip_serializing_if = "is_default")]
    pub vsid: Option<u32>,
    /// MTU of the ports that the daemon makes.
    pub mtu: Mtu,
    /// Seconds after which a learned address that was not seen again is forgotten.
    pub aging_seconds: u32,
    /// Addresses it may learn.
    pub max_macs: u32,
    /// Whether frames go from peer to peer through this host.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hub: bool,
    /// Whether TCP's maximum segment size is lowered to what fits.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clamp_mss: bool,
    /// Whether questions for addresses that are known are answered here, not flooded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub suppress_neighbors: bool,
    /// Which frames that bridges keep to one link it passes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub link_local: LinkLocal,
}

impl Segment {
    /// What tells its packets from another segment's.
    pub fn wire_key(&self) -> Key {
        match (self.vsid, self.key) {
            (Some(vsid), _) => Key::Vsid(vsid),
            (None, Some(key)) => Key::Plain(key),
            (None, None) => Key::None,
        }
    }
}

/// A local interface, or a VLAN on it, in a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Below [`mgre_common::table::MAX_PORTS`], the same for as long as the port lives.
    pub id: u32,
    /// Its segment's name.
    pub segment: String,
    /// The tag that its frames have on the interface; none for those without a tag.
    #[serde(default, skip_serializing_if = "is_default")]
    pub vlan: Option<u16>,
    /// How to attach.
    pub mode: Mode,
    /// What to make, if the daemon makes the interface.
    pub created: Option<HostInterface>,
    /// Frames from it that may be flooded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub storm_limit: StormLimit,
}

impl Port {
    /// The interface of a port with this name.
    pub fn interface<'a>(&self, name: &'a str) -> &'a str {
        match self.vlan {
            Some(_) => name.rsplit_once('.').map_or(name, |(interface, _)| interface),
            None => name,
        }
    }
}

/// The name of the port for a VLAN on an interface.
pub fn tagged_name(interface: &str, vlan: u16) -> String {
    format!("{interface}.{vlan}")
}

/// An interface that the daemon makes for the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostInterface {
    /// Addresses to give it.
    #[serde(default)]
    pub addresses: Vec<Cidr>,
    /// Its MAC; the kernel's choice if none.
    #[serde(default, with = "optional_mac_text")]
    pub mac: Option<MacAddr>,
}

/// A remote host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its endpoint as given: an address or a DNS name.
    pub remote: String,
    /// The segments it is in, with the adjacency id of each: below the
    /// instance's capacity, the same for as long as the peer stays in the segment.
    pub segments: BTreeMap<String, u32>,
    /// TTL of outer packets.
    pub ttl: u8,
    /// DSCP of outer packets.
    pub tos: Tos,
    /// Whether outer packets may be fragmented.
    pub df: Df,
    /// Largest inner packet.
    pub mtu: Mtu,
    /// Addresses learned from it, over all its segments.
    pub max_macs: u32,
    /// Whether packets to it have a checksum.
    #[serde(default, skip_serializing_if = "is_default")]
    pub csum: bool,
    /// Whether packets to it are numbered, and those from it taken in their order.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seq: bool,
    /// What GRE packets are put into.
    #[serde(default, skip_serializing_if = "is_default")]
    pub encap: Encap,
    /// Frames from it that may be flooded in each of its segments.
    #[serde(default, skip_serializing_if = "is_default")]
    pub storm_limit: StormLimit,
}

impl Peer {
    /// The remote as an address, if it was given as one.
    pub fn remote_address(&self) -> Option<IpAddr> {
        self.remote.parse().ok()
    }
}

/// What names a static FDB entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbName {
    /// The segment's name.
    pub segment: String,
    /// The address.
    pub mac: MacAddr,
}

/// Where a static FDB entry points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StaticTarget {
    /// The peer with this name.
    Peer(String),
    /// The port with this name.
    Port(String),
}

/// A saved state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It was written by a program with another format.
    #[error(
        "the state has format version {0}, this program reads versions {OLDEST_STATE_VERSION} to {STATE_VERSION}"
    )]
    Version(u32),
    /// It is not the JSON of a state.
    #[error("the state is damaged: {0}")]
    Json(#[from] serde_json::Error),
}

impl State {
    /// Reads what [`State::to_json`] wrote.
    ///
    /// # Errors
    /// Another version, or no state at all. References are not checked.
    pub fn from_json(text: &str) -> Result<Self, LoadError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_str(text)?;
        if !is_readable(version) {
            return Err(LoadError::Version(version));
        }
        Ok(serde_json::from_str(text)?)
    }

    /// The state file's text.
    ///
    /// # Errors
    /// None that this type can cause.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// Name and value of the segment with this id.
    pub fn segment_by_id(&self, id: u16) -> Option<(&str, &Segment)> {
        self.segments
            .iter()
            .find(|(_, segment)| segment.id == id)
            .map(|(name, segment)| (name.as_str(), segment))
    }

    /// Name and value of the port with this id.
    pub fn port_by_id(&self, id: u32) -> Option<(&str, &Port)> {
        self.ports.iter().find(|(_, port)| port.id == id).map(|(name, port)| (name.as_str(), port))
    }

    /// Every adjacency: its id, its peer's name and value, its segment's name.
    pub fn adjacencies(&self) -> impl Iterator<Item = (u32, &str, &Peer, &str)> {
        self.peers.iter().flat_map(|(name, peer)| {
            peer.segments.iter().map(move |(segment, id)| (*id, &**name, &**peer, segment.as_str()))
        })
    }

    /// Makes a segment part of the state, or another one of the same name.
    pub(super) fn put_segment(&mut self, name: String, segment: Segment) {
        self.index.add_segment(segment.id);
        if let Some(old) = self.segments.insert(name, segment.clone())
            && old.id != segment.id
        {
            self.index.remove_segment(old.id);
        }
    }

    /// Takes a segment out.
    pub(super) fn take_segment(&mut self, name: &str) -> Option<Segment> {
        let segment = self.segments.remove(name)?;
        self.index.remove_segment(segment.id);
        Some(segment)
    }

    /// Makes a port part of the state, or another one of the same name.
    pub(super) fn put_port(&mut self, name: String, port: Port) {
        let id = port.id;
        self.index.add_port(id);
        if let Some(old) = self.ports.insert(name, port)
            && old.id != id
        {
            self.index.remove_port(old.id);
        }
    }

    /// Takes a port out.
    pub(super) fn take_port(&mut self, name: &str) -> Option<Port> {
        let port = self.ports.remove(name)?;
        self.index.remove_port(port.id);
        Some(port)
    }

    /// Makes a peer part of the state, or another one of the same name.
    pub(super) fn put_peer(&mut self, name: Arc<str>, peer: Arc<Peer>) {
        if let Some(old) = self.peers.insert(Arc::clone(&name), Arc::clone(&peer)) {
            self.index.remove_peer(&name, &old);
        }
        self.index.add_peer(&name, &peer);
    }

    /// Takes a peer out.
    pub(super) fn take_peer(&mut self, name: &str) -> Option<Arc<Peer>> {
        let (name, peer) = self.peers.remove_with_key(name)?;
        self.index.remove_peer(&name, &peer);
        Some(peer)
    }

    /// How many peers a segment has.
    pub fn peer_count(&self, segment: &str) -> u32 {
        self.index.peers_in(segment)
    }

    /// How many adjacencies there are.
    pub fn adjacency_count(&self) -> u32 {
        self.index.adjacency_count()
    }

    /// The ports of a segment.
    pub fn ports_in<'a>(&'a self, segment: &'a str) -> impl Iterator<Item = (&'a str, &'a Port)> {
        self.ports
            .iter()
            .filter(move |(_, port)| port.segment == segment)
            .map(|(name, port)| (name.as_str(), port))
    }

    /// The ports on an interface.
    pub fn ports_on<'a>(&'a self, interface: &'a str) -> impl Iterator<Item = (&'a str, &'a Port)> {
        self.ports
            .iter()
            .filter(move |(name, port)| port.interface(name) == interface)
            .map(|(name, port)| (name.as_str(), port))
    }

    /// The peers in a segment.
    pub fn peers_in<'a>(&'a self, segment: &'a str) -> impl Iterator<Item = (&'a str, &'a Peer)> {
        self.peers
            .iter()
            .filter(move |(_, peer)| peer.segments.contains_key(segment))
            .map(|(name, peer)| (&**name, &**peer))
    }
}

/// JSON has no keys made of two parts, so the entries are saved as a list.
mod fdb_list {
    use super::*;
    use serde::{Deserializer, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry {
        segment: String,
        #[serde(with = "mac_text")]
        mac: MacAddr,
        target: StaticTarget,
    }

    pub(super) fn serialize<S: Serializer>(
        fdb: &OrdMap<FdbName, StaticTarget>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(fdb.iter().map(|(name, target)| Entry {
            segment: name.segment.clone(),
            mac: name.mac,
            target: target.clone(),
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<OrdMap<FdbName, StaticTarget>, D::Error> {
        let entries = Vec::<Entry>::deserialize(deserializer)?;
        Ok(entries
            .into_iter()
            .map(|Entry { segment, mac, target }| (FdbName { segment, mac }, target))
            .collect())
    }
}
