//! The configuration document of `mgre apply` and `mgre export`: the nouns of
//! the command line, as TOML (or, through the API, JSON).
//!
//! What a document does not say is the default, and `export` says only what
//! differs from it.

use mgre_common::wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::change::{Change, PeerSettings, PortSettings, SegmentSettings, UnderlaySettings};
use super::flooding::{LinkLocal, StormLimit};
use super::locals::Locals;
use super::state::{FdbName, HostInterface, Peer, Port, Segment, State, StaticTarget, Underlay, default};
use super::types::{Cidr, Df, Encap, ForeignGre, Mode, Mtu, Tos, is_default, mac_text, optional_mac_text};

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// `[[underlay]]` tables.
    #[serde(default, rename = "underlay", skip_serializing_if = "Vec::is_empty")]
    pub underlays: Vec<UnderlayEntry>,
    /// `[[segment]]` tables.
    #[serde(default, rename = "segment", skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<SegmentEntry>,
    /// `[[port]]` tables.
    #[serde(default, rename = "port", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortEntry>,
    /// `[[peer]]` tables.
    #[serde(default, rename = "peer", skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerEntry>,
    /// `[[fdb]]` tables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fdb: Vec<FdbEntry>,
}

/// One underlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnderlayEntry {
    /// The interface.
    pub interface: String,
    /// Our endpoint on it, or a list of one for each IP version.
    #[serde(rename = "local")]
    pub locals: Locals,
    /// How to attach.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Mode,
    /// What becomes of GRE that is no peer's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub foreign_gre: ForeignGre,
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentEntry {
    /// Its name.
    pub name: String,
    /// The GRE key; absent for GRE without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<u32>,
    /// The virtual subnet id of NVGRE, in place of a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsid: Option<u32>,
    /// MTU of the ports that the daemon makes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mtu: Mtu,
    /// Seconds after which a learned address that was not seen again is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aging_seconds: Option<u32>,
    /// Addresses it may learn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_macs: Option<u32>,
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

/// One port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortEntry {
    /// The interface.
    pub interface: String,
    /// Its segment.
    pub segment: String,
    /// The tag that its frames have on the interface; not for one that is made.
    #[serde(default, skip_serializing_if = "is_default")]
    pub vlan: Option<u16>,
    /// How to attach; not for one that is made.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Mode,
    /// Whether the daemon makes the interface.
    #[serde(default, skip_serializing_if = "is_default")]
    pub create: bool,
    /// Addresses of an interface that is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Cidr>,
    /// MAC of an interface that is made.
    #[serde(default, with = "optional_mac_text", skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Frames from it that may be flooded in a second.
    #[serde(default, skip_serializing_if = "is_default")]
    pub storm_limit: StormLimit,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerEntry {
    /// Its name.
    pub name: String,
    /// Its endpoint: an address or a DNS name.
    pub remote: String,
    /// The segments it is in.
    pub segments: Vec<String>,
    /// TTL of outer packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// DSCP of outer packets.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tos: Tos,
    /// Whether outer packets may be fragmented.
    #[serde(default, skip_serializing_if = "is_default")]
    pub df: Df,
    /// Largest inner packet.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mtu: Mtu,
    /// Addresses learned from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_macs: Option<u32>,
    /// Whether packets to it have a checksum.
    #[serde(default, skip_serializing_if = "is_default")]
    pub csum: bool,
    /// Whether packets to it are numbered, and those from it taken in their order.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seq: bool,
    /// What GRE packets are put into.
    #[serde(default, skip_serializing_if = "is_default")]
    pub encap: Encap,
    /// Frames from it that may be flooded in a second, in each of its segments.
    #[serde(default, skip_serializing_if = "is_default")]
    pub storm_limit: StormLimit,
}

/// One static FDB entry: with either a peer or a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "RawFdbEntry", into = "RawFdbEntry")]
pub struct FdbEntry {
    /// The segment.
    pub segment: String,
    /// The address.
    pub mac: MacAddr,
    /// Where it is.
    pub target: StaticTarget,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFdbEntry {
    segment: String,
    #[serde(with = "mac_text")]
    mac: MacAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<String>,
}

impl TryFrom<RawFdbEntry> for FdbEntry {
    type Error = &'static str;

    fn try_from(raw: RawFdbEntry) -> Result<Self, Self::Error> {
        let target = match (raw.peer, raw.port) {
            (Some(peer), None) => StaticTarget::Peer(peer),
            (None, Some(port)) => StaticTarget::Port(port),
            _ => return Err("an fdb entry needs either `peer` or `port`"),
        };
        Ok(Self { segment: raw.segment, mac: raw.mac, target })
    }
}

impl From<FdbEntry> for RawFdbEntry {
    fn from(entry: FdbEntry) -> Self {
        let (peer, port) = match entry.target {
            StaticTarget::Peer(peer) => (Some(peer), None),
            StaticTarget::Port(port) => (None, Some(port)),
        };
        Self { segment: entry.segment, mac: entry.mac, peer, port }
    }
}

/// A document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is not TOML, or has a table or key that is not known; says where.
    #[error("line {line}: {message}")]
    Toml {
        /// Where, counted from 1.
        line: usize,
        /// What is wrong, in one line.
        message: String,
    },
    /// A port says how an interface is to be made, but not that it is.
    #[error(
        "port {0:?} has addresses or a mac, which only an interface that is made can be given; say create = true"
    )]
    NotCreated(String),
    /// A port that is made says how to attach.
    #[error("port {0:?} is made by the daemon, so it takes no mode")]
    ModeOfCreated(String),
    /// A port that is made says a tag.
    #[error("port {0:?} is made by the daemon, so it takes no vlan: frames of the host have no tag")]
    VlanOfCreated(String),
}

impl Document {
    /// Reads TOML.
    ///
    /// # Errors
    /// What is wrong, and where. References are checked when it is applied.
    pub fn from_toml(text: &str) -> Result<Self, DocumentError> {
        let document: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
            DocumentError::Toml { line, message: error.message().replace('\n', ", ") }
        })?;
        document.check()?;
        Ok(document)
    }

    /// Writes TOML.
    ///
    /// # Errors
    /// None that this type can cause.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Checks what its types do not.
    ///
    /// # Errors
    /// A table whose keys do not go together.
    pub fn check(&self) -> Result<(), DocumentError> {
        self.ports.iter().try_for_each(PortEntry::check)
    }

    /// Whether it says nothing: applied, it removes everything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The document that says this state.
    pub fn from_state(state: &State) -> Self {
        Self {
            underlays: state.underlays.iter().map(UnderlayEntry::from).collect(),
            segments: state.segments.iter().map(SegmentEntry::from).collect(),
            ports: state.ports.iter().map(PortEntry::from).collect(),
            peers: state.peers.iter().map(PeerEntry::from).collect(),
            fdb: state.fdb.iter().map(FdbEntry::from).collect(),
        }
    }

    /// The changes that make any state equal to the document. What stays keeps its ids.
    pub fn into_changes(self) -> Vec<Change> {
        vec![Change::Replace(Box::new(self))]
    }

    /// The changes that build it from nothing.
    pub(super) fn additions(&self) -> impl Iterator<Item = Change> {
        let underlays = self.underlays.iter().cloned().map(Change::from);
        let segments = self.segments.iter().cloned().map(Change::from);
        let ports = self.ports.iter().cloned().map(Change::from);
        let peers = self.peers.iter().cloned().map(Change::from);
        let fdb = self.fdb.iter().cloned().map(Change::from);
        underlays.chain(segments).chain(ports).chain(peers).chain(fdb)
    }
}

impl PortEntry {
    /// Checks that its keys go together.
    ///
    /// # Errors
    /// They do not.
    pub fn check(&self) -> Result<(), DocumentError> {
        if !self.create && (!self.addresses.is_empty() || self.mac.is_some()) {
            return Err(DocumentError::NotCreated(self.interface.clone()));
        }
        if self.create && self.mode != Mode::Auto {
            return Err(DocumentError::ModeOfCreated(self.interface.clone()));
        }
        if self.create && self.vlan.is_some() {
            return Err(DocumentError::VlanOfCreated(self.interface.clone()));
        }
        Ok(())
    }
}

/// The value, unless it is what an absent one means.
fn unless<T: PartialEq>(value: T, default: T) -> Option<T> {
    (value != default).then_some(value)
}

impl From<(&String, &Underlay)> for UnderlayEntry {
    fn from((interface, underlay): (&String, &Underlay)) -> Self {
        let Underlay { locals, mode, foreign_gre } = *underlay;
        Self { interface: interface.clone(), locals, mode, foreign_gre }
    }
}

impl From<(&String, &Segment)> for SegmentEntry {
    fn from((name, segment): (&String, &Segment)) -> Self {
        Self {
            name: name.clone(),
            key: segment.key,
            vsid: segment.vsid,
            mtu: segment.mtu,
            aging_seconds: unless(segment.aging_seconds, default::AGING_SECONDS),
            max_macs: unless(segment.max_macs, default::SEGMENT_MAX_MACS),
            hub: segment.hub,
            clamp_mss: segment.clamp_mss,
            suppress_neighbors: segment.suppress_neighbors,
            link_local: segment.link_local,
        }
    }
}

impl From<(&String, &Port)> for PortEntry {
    fn from((name, port): (&String, &Port)) -> Self {
        let host = port.created.clone();
        Self {
            interface: port.interface(name).to_owned(),
            segment: port.segment.clone(),
            vlan: port.vlan,
            mode: port.mode,
            create: host.is_some(),
            mac: host.as_ref().and_then(|host| host.mac),
            addresses: host.map(|host| host.addresses).unwrap_or_default(),
            storm_limit: port.storm_limit,
        }
    }
}

impl From<(&std::sync::Arc<str>, &std::sync::Arc<Peer>)> for PeerEntry {
    fn from((name, peer): (&std::sync::Arc<str>, &std::sync::Arc<Peer>)) -> Self {
        Self {
            name: name.as_ref().to_owned(),
            remote: peer.remote.clone(),
            segments: peer.segments.keys().cloned().collect(),
            ttl: unless(peer.ttl, default::TTL),
            tos: peer.tos,
            df: peer.df,
            mtu: peer.mtu,
            max_macs: unless(peer.max_macs, default::PEER_MAX_MACS),
            csum: peer.csum,
            seq: peer.seq,
            encap: peer.encap,
            storm_limit: peer.storm_limit,
        }
    }
}

impl From<(&FdbName, &StaticTarget)> for FdbEntry {
    fn from((name, target): (&FdbName, &StaticTarget)) -> Self {
        Self { segment: name.segment.clone(), mac: name.mac, target: target.clone() }
    }
}

impl From<UnderlayEntry> for Change {
    fn from(UnderlayEntry { interface, locals, mode, foreign_gre }: UnderlayEntry) -> Self {
        let settings =
            UnderlaySettings { locals: Some(locals), mode: Some(mode), foreign_gre: Some(foreign_gre) };
        Self::AddUnderlay { interface, settings }
    }
}

impl From<SegmentEntry> for Change {
    fn from(entry: SegmentEntry) -> Self {
        let SegmentEntry {
            name,
            key,
            vsid,
            mtu,
            aging_seconds,
            max_macs,
            hub,
            clamp_mss,
            link_local,
            suppress_neighbors,
        } = entry;
        let settings = SegmentSettings {
            key: Some(key),
            vsid: Some(vsid),
            mtu: Some(mtu),
            aging_seconds,
            max_macs,
            hub: Some(hub),
            clamp_mss: Some(clamp_mss),
            suppress_neighbors: Some(suppress_neighbors),
            link_local: Some(link_local),
        };
        Self::AddSegment { name, settings }
    }
}

impl From<PortEntry> for Change {
    fn from(entry: PortEntry) -> Self {
        let PortEntry { interface, segment, vlan, mode, create, addresses, mac, storm_limit } = entry;
        let settings = PortSettings { storm_limit: Some(storm_limit) };
        if create {
            return Self::CreatePort { segment, interface, host: HostInterface { addresses, mac }, settings };
        }
        Self::AddPort { segment, interface, vlan, mode, settings }
    }
}

impl From<PeerEntry> for Change {
    fn from(entry: PeerEntry) -> Self {
        let PeerEntry { name, remote, segments, ttl, tos, df, mtu, max_macs, csum, seq, encap, storm_limit } =
            entry;
        let settings = PeerSettings {
            remote: Some(remote),
            segments: Some(segments),
            ttl,
            tos: Some(tos),
            df: Some(df),
            mtu: Some(mtu),
            max_macs,
            csum: Some(csum),
            seq: Some(seq),
            encap: Some(encap),
            storm_limit: Some(storm_limit),
        };
        Self::AddPeer { name, settings }
    }
}

impl From<FdbEntry> for Change {
    fn from(FdbEntry { segment, mac, target }: FdbEntry) -> Self {
        Self::AddFdb { segment, mac, target }
    }
}
