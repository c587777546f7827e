//! Connections: the API on its Unix socket, and metrics over TCP.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::activity::{Activity, Room};
use super::messages::Handle;
use super::problem::Problem;
use super::routes;
use super::socket::Socket;
use super::stream::Stream;

/// How long a client may take to send a request's head, idle time before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest head of a request, in bytes: its path and its fields.
const HEAD_MAX: usize = 16 * 1024;
/// The most fields of a head.
const FIELDS_MAX: usize = 64;
/// How long connections may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(3);
/// Connections of one listener at one time at most.
const CONNECTIONS_MAX: usize = 1024;
/// One in so many of the descriptors that the process may have is for one listener's connections: the others are for
/// tables, programs, state and the kernel.
const DESCRIPTORS_SHARE: u64 = 4;
/// How soon accepting is tried again after it failed.
const PAUSE: Duration = Duration::from_millis(100);
/// How often that is said.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Serves until `shutdown` is ready, then lets requests finish for a moment.
/// The socket is removed when it is dropped, at the end of this.
pub async fn serve(
    mut socket: Socket,
    metrics: Option<TcpListener>,
    engine: Handle,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopped) = watch::channel(false);
    let api = accept(&mut socket, routes::all(engine.clone(), stopped.clone()), stopped.clone());
    let metrics = async {
        if let Some(mut listener) = metrics {
            accept(&mut listener, routes::metrics_only(engine, stopped.clone()), stopped).await;
        }
    };
    let signal = async {
        shutdown.await;
        // Both ends of the channel are alive until all three are done.
        stop.send_replace(true);
    };
    tokio::join!(api, metrics, signal);
}

/// Ready once the server stops.
pub(super) async fn stop_told(stopped: &mut watch::Receiver<bool>) {
    // An error says that the server is gone, which is the same. What is given
    // holds a lock, so it must not live on.
    drop(stopped.wait_for(|stop| *stop).await);
}

/// What connections come from.
trait Accept {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    async fn accept(&mut self) -> io::Result<Self::Io>;
}

impl Accept for Socket {
    type Io = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        Self::accept(self).await
    }
}

impl Accept for TcpListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

/// How many connections one listener may have, if the process may have so many descriptors.
fn connections(descriptors: u64) -> usize {
    usize::try_from(descriptors / DESCRIPTORS_SHARE)
        .map_or(CONNECTIONS_MAX, |few| few.clamp(4, CONNECTIONS_MAX))
}

/// Accepts connections until told to stop.
async fn accept<L: Accept>(listener: &mut L, app: Router, mut stopped: watch::Receiver<bool>) {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    let room = Room::new(connections(descriptors));
    let mut running = JoinSet::new();
    let mut said: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = running.join_next(), if !running.is_empty() => continue,
            () = stop_told(&mut stopped) => break,
        };
        while running.try_join_next().is_some() {}
        let place = async {
            match accepted {
                Ok(io) => Some((io, room.place().await)),
                // It went before it was taken.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => None,
                Err(error) => {
                    if said.is_none_or(|said| said.elapsed() > SAY_EVERY) {
                        tracing::warn!("cannot take a connection, others wait: {error}");
                        said = Some(Instant::now());
                    }
                    // There may be a descriptor for it then.
                    room.clear_one();
                    tokio::time::sleep(PAUSE).await;
                    None
                }
            }
        };
        tokio::select! {
            taken = place => {
                let Some((io, place)) = taken else { continue };
                let (app, stopped) = (app.clone(), stopped.clone());
                running.spawn(async move { connection(io, &place.activity, app, stopped).await });
            }
            () = stop_told(&mut stopped) => break,
        }
    }
    let rest = async { while running.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, rest).await.is_err() {
        tracing::debug!("connections did not end in time");
    }
}

/// The interface as one connection has it.
struct Counted {
    app: TowerToHyperService<Router>,
    activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Counted {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let turn = self.activity.work();
        request.extensions_mut().insert(Arc::clone(&self.activity));
        let answer = self.app.call(request);
        Box::pin(async move {
            let _turn = turn;
            answer.await
        })
    }
}

async fn connection<I>(io: I, activity: &Arc<Activity>, app: Router, mut stopped: watch::Receiver<bool>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = Counted { app: TowerToHyperService::new(app), activity: Arc::clone(activity) };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .max_headers(FIELDS_MAX)
        .serve_connection(TokioIo::new(Stream::new(io, Arc::clone(activity))), service);
    let result = tokio::select! {
        result = poll_fn(|cx| connection.poll_without_shutdown(cx)) => result,
        () = activity.told_to_leave() => {
            tracing::debug!("a client that does nothing makes room for others");
            return;
        }
        () = stop_told(&mut stopped) => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner();
    let last = match &result {
        // Who has sent nothing needs no answer.
        Err(error) if error.is_timeout() && !parts.read_buf.is_empty() => {
            Some(Problem::new(408, "the request did not come in time"))
        }
        Err(error) if error.is_parse_version_h2() => Some(Problem::new(505, "only HTTP/1.1 is spoken here")),
        _ => None,
    };
    if let Err(error) = &result {
        tracing::debug!(%error, "connection ended");
    }
    let ended = tokio::select! {
        ended = stream.close(last.as_ref()) => ended,
        () = activity.told_to_leave() => Ok(()),
        () = stop_told(&mut stopped) => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection cut off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_kept_for_other_things() {
        assert_eq!(connections(64), 16);
        assert_eq!(connections(1024), 256);
        assert_eq!(connections(u64::MAX), CONNECTIONS_MAX);
        assert_eq!(connections(0), 4);
    }
}
