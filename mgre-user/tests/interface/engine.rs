//! A daemon with a state and no kernel.

use std::time::Duration;

use mgre_user::api::client::Client;
use mgre_user::api::messages::*;
use mgre_user::api::server::serve;
use mgre_user::api::socket::{InstanceLock, Socket};
use mgre_user::metrics::{Numbers, render};
use mgre_user::model::{Document, Ids, Segment, State, differences};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

/// An engine with a state and no kernel.
async fn engine(mut requests: mpsc::Receiver<Request>, events: broadcast::Sender<Event>) -> State {
    let mut state = State::default();
    while let Some(request) = requests.recv().await {
        match request {
            Request::Change { changes, dry_run, reply } => {
                let answer = state.apply_all(changes, &Ids::default()).map_err(Problem::from).map(|next| {
                    let changed = differences(&state, &next);
                    if !dry_run {
                        state = next;
                        events.send(Event::now(EventKind::ConfigChanged { changed: changed.clone() })).ok();
                    }
                    Applied { changed, warnings: vec!["a warning".into()] }
                });
                reply.send(answer).ok();
            }
            Request::Segments(reply) => {
                reply.send(Ok(state.segments.iter().map(segment_view).collect())).ok();
            }
            Request::Config(reply) => {
                reply.send(Ok(Document::from_state(&state))).ok();
            }
            Request::Metrics(reply) => {
                reply.send(Ok(Later::new(metrics))).ok();
            }
            Request::Flush { filter, reply } => {
                let known = filter.segment.as_ref().is_none_or(|name| state.segments.contains_key(name));
                let answer =
                    if known { Ok(Flushed { removed: 3 }) } else { Err(Problem::not_found("no such")) };
                reply.send(answer).ok();
            }
            Request::Detach(reply) => {
                reply.send(Ok(())).ok();
            }
            // Dropping the reply is what an engine does that dies.
            other => drop(other),
        }
    }
    state
}

fn segment_view((name, segment): (&String, &Segment)) -> SegmentView {
    SegmentView {
        name: name.clone(),
        key: segment.key,
        vsid: segment.vsid,
        mtu: None,
        aging_seconds: segment.aging_seconds,
        max_macs: segment.max_macs,
        hub: segment.hub,
        clamp_mss: segment.clamp_mss,
        link_local: segment.link_local,
        peers: 0,
        ports: 0,
        fdb_entries: 0,
    }
}

fn metrics() -> String {
    render(&Numbers { version: "0", fdb_capacity: 7, ..Numbers::default() })
}

/// The server and the stand-in for its engine.
pub(crate) struct Daemon {
    pub(crate) directory: tempfile::TempDir,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
    pub(crate) metrics: std::net::SocketAddr,
}

impl Daemon {
    pub(crate) async fn start() -> (Self, Client) {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = InstanceLock::acquire(directory.path(), "t").expect("free");
        let socket = Socket::bind(directory.path(), "t", lock).expect("binds");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let metrics = listener.local_addr().expect("an address");
        let (handle, requests, events) = Handle::new();
        tokio::spawn(engine(requests, events));
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { stopped.await.unwrap_or_default() };
        let server = tokio::spawn(serve(socket, Some(listener), handle, shutdown));
        let client = Client::new(directory.path(), "t");
        (Self { directory, stop, server, metrics }, client)
    }

    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("t.sock")
    }

    /// Stops the server, which must not take long, and leaves nothing behind.
    pub(crate) async fn stop(self) {
        self.stop.send(()).expect("runs");
        tokio::time::timeout(Duration::from_secs(2), self.server).await.expect("in time").expect("no panic");
        assert_eq!(std::fs::read_dir(self.directory.path()).expect("lists").count(), 0);
    }
}
