//! What happens, as it happens: the items of `GET /v1/events`.

use std::fmt;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use mgre_common::wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::views::{PeerState, PortState, UnderlayState};
use crate::model::types::mac_text;

/// One event and when it happened: one line of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since 1970-01-01 UTC.
    pub timestamp_milliseconds: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

impl Event {
    /// Something that happens now.
    #[expect(clippy::disallowed_methods, reason = "a time that is shown")]
    pub fn now(kind: EventKind) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp_milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Self { timestamp_milliseconds, kind }
    }
}

/// Where an address is or was: a peer or a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The peer's name.
    pub peer: Option<String>,
    /// The port's interface.
    pub port: Option<String>,
}

impl Place {
    /// At a peer.
    pub fn peer(name: impl Into<String>) -> Self {
        Self { peer: Some(name.into()), port: None }
    }

    /// At a port.
    pub fn port(interface: impl Into<String>) -> Self {
        Self { peer: None, port: Some(interface.into()) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.peer, &self.port) {
            (Some(peer), _) => write!(f, "peer {peer}"),
            (None, Some(port)) => write!(f, "port {port}"),
            (None, None) => f.write_str("nowhere"),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// An address was learned.
    FdbLearned {
        /// The segment.
        segment: String,
        /// The address.
        #[serde(with = "mac_text")]
        mac: MacAddr,
        /// Where it is.
        #[serde(flatten)]
        place: Place,
    },
    /// An address was seen elsewhere.
    FdbMoved {
        /// The segment.
        segment: String,
        /// The address.
        #[serde(with = "mac_text")]
        mac: MacAddr,
        /// Where it is now.
        #[serde(flatten)]
        place: Place,
        /// Where it was.
        from: Place,
    },
    /// An address was seen in two places by turns: it stays at one of them until that ends.
    FdbHeld {
        /// The segment.
        segment: String,
        /// The address.
        #[serde(with = "mac_text")]
        mac: MacAddr,
        /// Where it is held.
        #[serde(flatten)]
        place: Place,
        /// Where else it was seen.
        other: Place,
        /// How long there has to be quiet until it is let go.
        seconds: u32,
    },
    /// An address that was held is let go.
    FdbReleased {
        /// The segment.
        segment: String,
        /// The address.
        #[serde(with = "mac_text")]
        mac: MacAddr,
        /// Where it is.
        #[serde(flatten)]
        place: Place,
    },
    /// An address was not seen for the segment's ageing time.
    FdbAged {
        /// The segment.
        segment: String,
        /// The address.
        #[serde(with = "mac_text")]
        mac: MacAddr,
        /// Where it was.
        #[serde(flatten)]
        place: Place,
    },
    /// An address was removed: by a flush, or because its peer or port went.
    FdbRemoved {
        /// The segment.
        segment: String,
        /// The address.
        #[serde(with = "mac_text")]
        mac: MacAddr,
        /// Where it was.
        #[serde(flatten)]
        place: Place,
    },
    /// A host's address became known, in a segment that suppresses ARP and ND.
    NeighborLearned {
        /// The segment.
        segment: String,
        /// The address.
        address: IpAddr,
        /// The host's MAC address.
        #[serde(with = "mac_text")]
        mac: MacAddr,
        /// Where it is.
        #[serde(flatten)]
        place: Place,
    },
    /// An address has another MAC address now.
    NeighborMoved {
        /// The segment.
        segment: String,
        /// The address.
        address: IpAddr,
        /// The MAC address.
        #[serde(with = "mac_text")]
        mac: MacAddr,
        /// Where it is.
        #[serde(flatten)]
        place: Place,
        /// The MAC address before.
        #[serde(with = "mac_text")]
        old_mac: MacAddr,
    },
    /// An address is not known any more: it aged, or its MAC address left the FDB.
    NeighborRemoved {
        /// The segment.
        segment: String,
        /// The address.
        address: IpAddr,
        /// The MAC address that it had.
        #[serde(with = "mac_text")]
        mac: MacAddr,
    },
    /// Two hosts say that they have one address: nobody answers for them now.
    NeighborDuplicate {
        /// The segment.
        segment: String,
        /// The address.
        address: IpAddr,
        /// One of them.
        #[serde(with = "mac_text")]
        mac: MacAddr,
        /// The other one.
        #[serde(with = "mac_text")]
        other_mac: MacAddr,
    },
    /// A peer became reachable or unreachable.
    PeerState {
        /// Its name.
        peer: String,
        /// What it is now.
        state: PeerState,
        /// Why, if it is not up.
        reason: Option<String>,
    },
    /// A port went up or down, came or went.
    PortState {
        /// Its interface.
        port: String,
        /// What it is now.
        state: PortState,
        /// Why, if it is not up.
        reason: Option<String>,
    },
    /// An underlay went up or down, came or went, or lost its address.
    UnderlayState {
        /// Its interface.
        underlay: String,
        /// Our address on it.
        local: IpAddr,
        /// What it is now.
        state: UnderlayState,
        /// Why, if it is not up, or what else there is to know.
        reason: Option<String>,
    },
    /// The configuration changed.
    ConfigChanged {
        /// One line for each thing that did.
        changed: Vec<String>,
    },
    /// The listener was too slow: so many events are missing here.
    Lost {
        /// How many.
        count: u64,
    },
}
