//! What happens, as it happens: the items of `GET /v1/events`.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use mgre_common::wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::views::{PeerState, PortState};
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
    pub fn now(kind: EventKind) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp_milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Self { timestamp_milliseconds, kind }
    }
}

/// Where an address is or was: a peer or a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
