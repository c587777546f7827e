//! What can be asked: one variant for each verb of the command line.

use std::net::IpAddr;

use mgre_common::wire::MacAddr;
use serde::{Deserialize, Deserializer, Serialize};

use super::config::Document;
use super::flooding::{LinkLocal, StormLimit};
use super::locals::Locals;
use super::state::{HostInterface, StaticTarget};
use super::types::{Df, Encap, ForeignGre, Mode, Mtu, Tos};

/// One change of the wanted state.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// An interface becomes an underlay, or an underlay gets an endpoint of the other IP version.
    AddUnderlay {
        /// The interface.
        interface: String,
        /// Our endpoints on it, and settings; what these do not say is the default, or stays.
        settings: UnderlaySettings,
    },
    /// Changes of an underlay; what the settings do not say stays.
    SetUnderlay {
        /// The interface.
        interface: String,
        /// The new settings.
        settings: UnderlaySettings,
        /// Even if peers are reached by an endpoint that goes.
        force: bool,
    },
    /// An underlay is left alone again.
    DelUnderlay {
        /// The interface.
        interface: String,
        /// Only this endpoint goes, unless it is the last.
        local: Option<IpAddr>,
        /// Even if peers are reached by it.
        force: bool,
    },
    /// A new segment; what the settings do not say is the default.
    AddSegment {
        /// Its name.
        name: String,
        /// Its settings.
        settings: SegmentSettings,
    },
    /// Changes of a segment; what the settings do not say stays.
    SetSegment {
        /// Its name.
        name: String,
        /// The new settings.
        settings: SegmentSettings,
    },
    /// A segment goes. It must be empty.
    DelSegment {
        /// Its name.
        name: String,
    },
    /// An existing interface, or a VLAN on it, becomes a port.
    AddPort {
        /// The segment.
        segment: String,
        /// The interface.
        interface: String,
        /// The tag that its frames have on the interface.
        vlan: Option<u16>,
        /// How to attach.
        mode: Mode,
        /// Its settings.
        settings: PortSettings,
    },
    /// The daemon makes an interface of the host in a segment.
    CreatePort {
        /// The segment.
        segment: String,
        /// The interface's name.
        interface: String,
        /// Its addresses and MAC.
        host: HostInterface,
        /// Its settings.
        settings: PortSettings,
    },
    /// Changes of a port; what the settings do not say stays.
    SetPort {
        /// Its name.
        name: String,
        /// The new settings.
        settings: PortSettings,
    },
    /// A port goes, and its interface with it if the daemon made it.
    DelPort {
        /// Its name.
        name: String,
    },
    /// A new peer; remote and at least one segment must be given.
    AddPeer {
        /// Its name.
        name: String,
        /// Its settings.
        settings: PeerSettings,
    },
    /// Changes of a peer; what the settings do not say stays.
    SetPeer {
        /// Its name.
        name: String,
        /// The new settings.
        settings: PeerSettings,
    },
    /// A peer goes, and its static FDB entries with it.
    DelPeer {
        /// Its name.
        name: String,
    },
    /// A static FDB entry.
    AddFdb {
        /// The segment.
        segment: String,
        /// The address.
        mac: MacAddr,
        /// Where it is.
        target: StaticTarget,
    },
    /// A static FDB entry goes.
    DelFdb {
        /// The segment.
        segment: String,
        /// The address.
        mac: MacAddr,
    },
    /// The state becomes what a document says; what stays keeps its ids.
    Replace(Box<Document>),
}

/// Settings of an underlay that may be given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnderlaySettings {
    /// Our endpoints on it.
    #[serde(rename = "local", skip_serializing_if = "Option::is_none")]
    pub locals: Option<Locals>,
    /// How to attach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// What becomes of GRE that is no peer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub foreign_gre: Option<ForeignGre>,
}

impl UnderlaySettings {
    /// With these endpoints, and nothing else.
    pub fn at(locals: impl Into<Locals>) -> Self {
        Self { locals: Some(locals.into()), ..Self::default() }
    }
}

/// Settings of a segment that may be given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SegmentSettings {
    /// The GRE key; `Some(None)` (null) for GRE without one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub key: Option<Option<u32>>,
    /// The virtual subnet id of NVGRE, in place of a key; `Some(None)` (null) for none.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub vsid: Option<Option<u32>>,
    /// MTU of the ports that the daemon makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Seconds after which a learned address that was not seen again is forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aging_seconds: Option<u32>,
    /// Addresses it may learn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_macs: Option<u32>,
    /// Whether frames go from peer to peer through this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<bool>,
    /// Whether TCP's maximum segment size is lowered to what fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clamp_mss: Option<bool>,
    /// Whether questions for addresses that are known are answered here, not flooded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suppress_neighbors: Option<bool>,
    /// Which frames that bridges keep to one link it passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_local: Option<LinkLocal>,
}

/// Settings of a peer that may be given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerSettings {
    /// Its endpoint: an address or a DNS name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// All the segments it is to be in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<Vec<String>>,
    /// TTL of outer packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// DSCP of outer packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tos: Option<Tos>,
    /// Whether outer packets may be fragmented.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub df: Option<Df>,
    /// Largest inner packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Addresses learned from it, over all its segments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_macs: Option<u32>,
    /// Whether packets to it have a checksum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csum: Option<bool>,
    /// Whether packets to it are numbered, and those from it taken in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<bool>,
    /// What GRE packets are put into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encap: Option<Encap>,
    /// Frames from it that may be flooded in each of its segments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm_limit: Option<StormLimit>,
}

/// Settings of a port that can be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PortSettings {
    /// Frames from it that may be flooded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm_limit: Option<StormLimit>,
}

/// Tells a null that was given from a field that was not.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u32>>, D::Error> {
    Option::<u32>::deserialize(deserializer).map(Some)
}
