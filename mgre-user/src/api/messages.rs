//! What the API's handlers ask of the engine.
//!
//! The engine is an actor: it owns state, netlink and datapath, and takes one
//! [`Request`] after the other from a channel. A [`Handle`] is the other end.

use mgre_common::wire::MacAddr;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot};

pub use super::event::{Event, EventKind, Place};
pub use super::problem::Problem;
pub use super::views::{
    AdjacencyView, FdbFlag, FdbView, HeldView, KernelView, NeighborFlag, NeighborView, PeerState, PeerView,
    PortState, PortView, SegmentView, SlowPathView, StatsRow, StatsView, StatusView, TrafficRow,
    UnderlayState, UnderlayView,
};
use crate::model::{Change, Document};

/// Requests that wait for the engine at most; more wait in their senders.
const QUEUE: usize = 256;
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

/// Which neighbours are meant. A segment that does not exist is a problem, not an empty list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NeighborFilter {
    /// Only in this segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
}

/// An answer that is worked out by whoever asked: the engine has gathered what it takes.
pub struct Later<T>(Box<dyn FnOnce() -> T + Send>);

impl<T> Later<T> {
    /// What `work` gives.
    pub fn new(work: impl FnOnce() -> T + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    /// Works it out.
    pub fn now(self) -> T {
        (self.0)()
    }
}

impl<T> std::fmt::Debug for Later<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Later").finish_non_exhaustive()
    }
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
    /// Take the configuration that the daemon was started with anew.
    Reload {
        /// What it says now.
        document: Box<Document>,
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
    /// Peers.
    Peers {
        /// The one with this name, if there is one; else all.
        only: Option<String>,
        /// Where the answer goes.
        reply: Reply<Vec<PeerView>>,
    },
    /// The FDB entry of an address.
    FdbEntry {
        /// The segment.
        segment: String,
        /// The address.
        mac: MacAddr,
        /// Where the answer goes: a list with the entry, or without one.
        reply: Reply<Vec<FdbView>>,
    },
    /// FDB entries.
    Fdb {
        /// Which.
        filter: FdbFilter,
        /// Where the answer goes.
        reply: Reply<Vec<FdbView>>,
    },
    /// Neighbours.
    Neighbors {
        /// Which.
        filter: NeighborFilter,
        /// Where the answer goes.
        reply: Reply<Vec<NeighborView>>,
    },
    /// Traffic and drops.
    Stats(Reply<StatsView>),
    /// How the instance is.
    Status(Reply<StatusView>),
    /// The wanted state as a document.
    Config(Reply<Document>),
    /// All numbers, as the text of `/metrics`.
    Metrics(Reply<Later<String>>),
    /// Remove everything from the kernel, then stop.
    Detach(Reply<()>),
}

impl Request {
    /// Whether the question or its answer may take much memory.
    pub fn may_be_large(&self) -> bool {
        match self {
            Self::Change { changes, .. } => changes.iter().any(|change| matches!(change, Change::Replace(_))),
            Self::Peers { only, .. } => only.is_none(),
            Self::Reload { .. }
            | Self::Fdb { .. }
            | Self::Neighbors { .. }
            | Self::Stats(_)
            | Self::Config(_)
            | Self::Metrics(_) => true,
            _ => false,
        }
    }
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

    /// Makes the wanted state equal to the daemon's configuration, in which interfaces and addresses may be missing.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn reload(&self, document: Document) -> Result<Applied, Problem> {
        self.ask(|reply| Request::Reload { document: Box::new(document), reply }).await
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
        self.ask(|reply| Request::Peers { only: None, reply }).await
    }

    /// FDB entries.
    ///
    /// # Errors
    /// The filter names something that is not there.
    pub async fn fdb(&self, filter: FdbFilter) -> Result<Vec<FdbView>, Problem> {
        self.ask(|reply| Request::Fdb { filter, reply }).await
    }

    /// The FDB entry of an address, if there is one.
    ///
    /// # Errors
    /// There is no such segment.
    pub async fn fdb_entry(&self, segment: String, mac: MacAddr) -> Result<Vec<FdbView>, Problem> {
        self.ask(|reply| Request::FdbEntry { segment, mac, reply }).await
    }

    /// Neighbours.
    ///
    /// # Errors
    /// The filter names something that is not there.
    pub async fn neighbors(&self, filter: NeighborFilter) -> Result<Vec<NeighborView>, Problem> {
        self.ask(|reply| Request::Neighbors { filter, reply }).await
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

    /// The peer with a name, if there is one.
    ///
    /// # Errors
    /// The engine's.
    pub async fn peer(&self, name: &str) -> Result<Vec<PeerView>, Problem> {
        let only = Some(name.to_owned());
        self.ask(|reply| Request::Peers { only, reply }).await
    }

    /// All numbers, as the text of `/metrics`. It is written beside the engine.
    ///
    /// # Errors
    /// The engine's.
    pub async fn metrics(&self) -> Result<String, Problem> {
        let later = self.ask(Request::Metrics).await?;
        tokio::task::spawn_blocking(|| later.now()).await.map_err(|_| Problem::unavailable())
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
