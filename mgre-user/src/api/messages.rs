//! What the API's handlers ask of the engine.
//!
//! The engine is an actor: it owns state, netlink and datapath, and takes one
//! [`Request`] after the other from a channel. A [`Handle`] is the other end.

use mgre_common::counters::Drops;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot};

pub use super::event::{Event, EventKind, Place};
pub use super::problem::Problem;
pub use super::views::{
    AdjacencyView, FdbFlag, FdbView, PeerState, PeerView, PortState, PortView, SegmentView, StatsRow,
    StatsView, StatusView, TrafficRow, UnderlayView,
};
use crate::model::{Change, Document};

/// Requests that wait for the engine at most; more wait in their senders.
const QUEUE: usize = 64;
/// Events that a slow listener may lag behind before it loses some.
const EVENTS: usize = 4096;

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Problem>>;

/// What was done, or in a dry run would be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// One line for each thing that changed, such as `peer b added`.
    pub changed: Vec<String>,
    /// One line for each thing that an operator should know.
    pub warnings: Vec<String>,
}

/// What was flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// How many learned entries were removed.
    pub removed: u64,
}

/// Which FDB entries are meant: all that fit what is given. A segment or peer
/// that does not exist is a problem, not an empty list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FdbFilter {
    /// Only in this segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// Only at this peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// What can be asked of the engine.
#[derive(Debug)]
pub enum Request {
    /// Change the wanted state: all of the changes, or none.
    Change {
        /// The changes, in order.
        changes: Vec<Change>,
        /// Only say what would be done.
        dry_run: bool,
        /// Where the answer goes.
        reply: Reply<Applied>,
    },
    /// Forget learned addresses.
    Flush {
        /// Which.
        filter: FdbFilter,
        /// Where the answer goes.
        reply: Reply<Flushed>,
    },
    /// All underlays.
    Underlays(Reply<Vec<UnderlayView>>),
    /// All segments.
    Segments(Reply<Vec<SegmentView>>),
    /// All ports.
    Ports(Reply<Vec<PortView>>),
    /// All peers.
    Peers(Reply<Vec<PeerView>>),
    /// FDB entries.
    Fdb {
        /// Which.
        filter: FdbFilter,
        /// Where the answer goes.
        reply: Reply<Vec<FdbView>>,
    },
    /// Traffic and drops.
    Stats(Reply<StatsView>),
    /// How the instance is.
    Status(Reply<StatusView>),
    /// The wanted state as a document.
    Config(Reply<Document>),
    /// All numbers.
    Metrics(Reply<MetricsSnapshot>),
    /// Remove everything from the kernel, then stop.
    Detach(Reply<()>),
}

/// Sends requests to the engine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    events: broadcast::Sender<Event>,
}

impl Handle {
    /// A handle, and the engine's ends: requests to take, events to send.
    pub fn new() -> (Self, mpsc::Receiver<Request>, broadcast::Sender<Event>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let (events, _) = broadcast::channel(EVENTS);
        (Self { requests, events: events.clone() }, receiver, events)
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Problem::unavailable())?;
        answer.await.map_err(|_| Problem::unavailable())?
    }

    /// Changes the wanted state.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn change(&self, changes: Vec<Change>, dry_run: bool) -> Result<Applied, Problem> {
        self.ask(|reply| Request::Change { changes, dry_run, reply }).await
    }

    /// Forgets learned addresses.
    ///
    /// # Errors
    /// The filter names something that is not there.
    pub async fn flush(&self, filter: FdbFilter) -> Result<Flushed, Problem> {
        self.ask(|reply| Request::Flush { filter, reply }).await
    }

    /// All underlays.
    ///
    /// # Errors
    /// The engine's.
    pub async fn underlays(&self) -> Result<Vec<UnderlayView>, Problem> {
        self.ask(Request::Underlays).await
    }

    /// All segments.
    ///
    /// # Errors
    /// The engine's.
    pub async fn segments(&self) -> Result<Vec<SegmentView>, Problem> {
        self.ask(Request::Segments).await
    }

    /// All ports.
    ///
    /// # Errors
    /// The engine's.
    pub async fn ports(&self) -> Result<Vec<PortView>, Problem> {
        self.ask(Request::Ports).await
    }

    /// All peers.
    ///
    /// # Errors
    /// The engine's.
    pub async fn peers(&self) -> Result<Vec<PeerView>, Problem> {
        self.ask(Request::Peers).await
    }

    /// FDB entries.
    ///
    /// # Errors
    /// The filter names something that is not there.
    pub async fn fdb(&self, filter: FdbFilter) -> Result<Vec<FdbView>, Problem> {
        self.ask(|reply| Request::Fdb { filter, reply }).await
    }

    /// Traffic and drops.
    ///
    /// # Errors
    /// The engine's.
    pub async fn stats(&self) -> Result<StatsView, Problem> {
        self.ask(Request::Stats).await
    }

    /// How the instance is.
    ///
    /// # Errors
    /// The engine's.
    pub async fn status(&self) -> Result<StatusView, Problem> {
        self.ask(Request::Status).await
    }

    /// The wanted state as a document.
    ///
    /// # Errors
    /// The engine's.
    pub async fn config(&self) -> Result<Document, Problem> {
        self.ask(Request::Config).await
    }

    /// All numbers.
    ///
    /// # Errors
    /// The engine's.
    pub async fn metrics(&self) -> Result<MetricsSnapshot, Problem> {
        self.ask(Request::Metrics).await
    }

    /// Removes everything from the kernel and stops the daemon.
    ///
    /// # Errors
    /// What could not be removed.
    pub async fn detach(&self) -> Result<(), Problem> {
        self.ask(Request::Detach).await
    }

    /// Events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// Traffic of a port or an adjacency, summed over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficSum {
    /// Frames received from the peer, or taken in from the port.
    pub receive_packets: u64,
    /// Bytes of them.
    pub receive_bytes: u64,
    /// Frames sent to the peer, or out of the port.
    pub transmit_packets: u64,
    /// Bytes of them.
    pub transmit_bytes: u64,
}

/// All numbers of an instance at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsSnapshot {
    /// The daemon's version.
    pub version: String,
    /// Every peer.
    pub peers: Vec<PeerMetrics>,
    /// Every port.
    pub ports: Vec<PortMetrics>,
    /// Every segment.
    pub segments: Vec<SegmentMetrics>,
    /// Every underlay and port that a program is attached to.
    pub interfaces: Vec<InterfaceMetrics>,
    /// Drops that belong to no peer and no port, summed over shards.
    pub drops: Drops,
    /// How many FDB entries there is room for.
    pub fdb_capacity: u64,
    /// Learn events that the daemon has handled.
    pub fdb_events: u64,
    /// Learn events that were lost.
    pub fdb_events_lost: u64,
}

/// Numbers of a peer.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerMetrics {
    /// Its name.
    pub peer: String,
    /// Its endpoint as given.
    pub remote: String,
    /// Whether it can be reached.
    pub up: bool,
    /// When a frame was last received from it, in seconds since 1970-01-01 UTC; none for never.
    pub last_seen_timestamp_seconds: Option<f64>,
    /// One for each segment.
    pub adjacencies: Vec<AdjacencyMetrics>,
}

/// Numbers of a peer in a segment.
#[derive(Clone, Debug, PartialEq)]
pub struct AdjacencyMetrics {
    /// The segment.
    pub segment: String,
    /// Its traffic.
    pub traffic: TrafficSum,
    /// Its drops, summed over shards.
    pub drops: Drops,
    /// The largest inner packet in bytes; zero if not known.
    pub mtu_bytes: u32,
}

/// Numbers of a port.
#[derive(Clone, Debug, PartialEq)]
pub struct PortMetrics {
    /// Its interface.
    pub port: String,
    /// Its segment.
    pub segment: String,
    /// Whether it works.
    pub up: bool,
    /// Its traffic.
    pub traffic: TrafficSum,
    /// Its drops, summed over shards.
    pub drops: Drops,
}

/// Numbers of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentMetrics {
    /// Its name.
    pub segment: String,
    /// Static FDB entries.
    pub fdb_static: u64,
    /// Learned FDB entries.
    pub fdb_learned: u64,
    /// FDB entries of interfaces that the daemon made.
    pub fdb_local: u64,
    /// Addresses that were seen elsewhere and followed.
    pub fdb_moves: u64,
    /// Copies made of flooded frames.
    pub flood_copies: u64,
}

/// How a program is attached to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceMetrics {
    /// The interface.
    pub interface: String,
    /// See [`UnderlayView::hook`].
    pub hook: String,
    /// The mode that was asked for.
    pub mode: String,
}
