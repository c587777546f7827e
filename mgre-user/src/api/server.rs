//! Connections: the API on its Unix socket, and metrics over TCP.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::messages::Handle;
use super::routes;
use super::socket::Socket;

/// How long a client may take to send a request's head, idle time before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long connections may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(3);
/// Connections of one listener at one time.
const CONNECTIONS_MAX: usize = 256;

/// Serves until `shutdown` is ready, then lets requests finish for a moment.
/// The socket is removed when it is dropped, at the end of this.
pub async fn serve(
    mut socket: Socket,
    metrics: Option<TcpListener>,
    engine: Handle,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopped) = watch::channel(false);
    let api = accept(socket.listener(), routes::all(engine.clone(), stopped.clone()), stopped.clone());
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

/// Accepts connections until told to stop.
async fn accept<L: Listener>(listener: &mut L, app: Router, mut stopped: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        tokio::select! {
            (permit, (io, _)) = next => {
                let connection = connection(io, app.clone(), stopped.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    connection.await;
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = stop_told(&mut stopped) => break,
        }
    }
    let rest = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, rest).await.is_err() {
        tracing::debug!("connections did not end in time");
    }
}

async fn connection<I>(io: I, app: Router, mut stopped: watch::Receiver<bool>)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(app);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop_told(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}
