//! A small client of the API, for the command line: one connection a request.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::problem::{Problem, one_line};
use super::socket::socket_path;

/// How long the daemon may take to answer: far longer than the largest document takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest answer that is read: several times the listing of a full FDB.
const ANSWER_MAX: usize = 256 << 20;
/// The longest line of a stream.
const LINE_MAX: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("the daemon of instance {instance:?} is not running (no socket at {}): start it with `mgre {}daemon`", .path.display(), instance_option(.instance))]
    NotRunning {
        /// The instance.
        instance: String,
        /// Where its socket would be.
        path: PathBuf,
    },
    /// Not allowed to talk to the daemon.
    #[error("no permission to use {}: run this as root", .0.display())]
    Permission(PathBuf),
    /// The daemon said no.
    #[error("{0}")]
    Problem(Problem),
    /// The connection failed.
    #[error("cannot talk to the daemon at {}: {error}", .path.display())]
    Transport {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took too long.
    #[error("the daemon at {} has not answered for {} s: it is stuck, or is not mgre", .path.display(), .patience.as_secs_f32())]
    Silent {
        /// Its socket.
        path: PathBuf,
        /// How long was waited.
        patience: Duration,
    },
    /// What was received could not be passed on.
    #[error("cannot write")]
    Output(#[from] io::Error),
    /// The answer makes no sense.
    #[error("the daemon's answer cannot be read ({0}); is it of another version?")]
    Answer(#[from] serde_json::Error),
}

/// What says which instance is meant, where it must be said.
fn instance_option(instance: &str) -> String {
    if instance == "default" { String::new() } else { format!("-i {instance} ") }
}

/// Talks to the daemon of one instance.
#[derive(Clone, Debug)]
pub struct Client {
    instance: String,
    path: PathBuf,
    patience: Duration,
}

/// Joins parts of a path, each percent-encoded (RFC 3986 2.1).
pub fn path(parts: &[&str]) -> String {
    let mut path = String::new();
    for part in parts {
        path.push('/');
        path.push_str(&encode(part));
    }
    path
}

/// Percent-encodes everything but unreserved characters (RFC 3986 2.3).
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

impl Client {
    /// A client of `RUN_DIR/INSTANCE.sock`.
    pub fn new(run_dir: &Path, instance: &str) -> Self {
        Self { instance: instance.to_owned(), path: socket_path(run_dir, instance), patience: PATIENCE }
    }

    /// The same, that waits so long for an answer.
    #[must_use]
    pub fn patient_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Gets a resource.
    ///
    /// # Errors
    /// No daemon, or a problem that it reports.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, None::<&()>).await
    }

    /// Sends a request with a JSON body, if any, and reads the answer's JSON.
    ///
    /// # Errors
    /// No daemon, or a problem that it reports.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let response = self.request(method, path, body).await?;
        let status = response.status();
        let bytes = self.body(response).await?;
        // No content reads as null.
        let bytes = if status == StatusCode::NO_CONTENT { Bytes::from_static(b"null") } else { bytes };
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Gets a stream of lines and gives each one to `line`, until either end stops.
    ///
    /// # Errors
    /// No daemon, a problem that it reports, or `line` failed.
    pub async fn lines(
        &self,
        path: &str,
        mut line: impl FnMut(&str) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let mut body = self.request(Method::GET, path, None::<&()>).await?.into_body();
        let mut buffer = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.transport(error))?;
            buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            if buffer.len() > LINE_MAX && !buffer.contains(&b'\n') {
                return Err(self.transport(format!("a line of more than {LINE_MAX} bytes")));
            }
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let rest = buffer.split_off(end + 1);
                let text = String::from_utf8_lossy(&buffer[..end]).into_owned();
                line(&text)?;
                buffer = rest;
            }
        }
        Ok(())
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|error| self.no_connection(error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.transport(error))?;
        tokio::spawn(connection);
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "mgre")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.transport(error))?;
        let response = self.in_time(sender.send_request(request)).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let bytes = self.body(response).await?;
        let problem = match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Problem { detail: one_line(problem.detail), ..problem },
            Err(_) => Problem::new(status, format!("the daemon answered with status {status}")),
        };
        Err(ClientError::Problem(problem))
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        Ok(self.in_time(Limited::new(response.into_body(), ANSWER_MAX).collect()).await?.to_bytes())
    }

    async fn in_time<T, E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        &self,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ClientError> {
        match timeout(self.patience, answer).await {
            Ok(answer) => answer.map_err(|error| self.transport(error)),
            Err(_) => Err(ClientError::Silent { path: self.path.clone(), patience: self.patience }),
        }
    }

    fn no_connection(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { instance: self.instance.clone(), path: self.path.clone() }
            }
            io::ErrorKind::PermissionDenied => ClientError::Permission(self.path.clone()),
            _ => self.transport(error),
        }
    }

    fn transport(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Transport { path: self.path.clone(), error: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_paths_are_encoded() {
        assert_eq!(path(&["v1", "ports", "a?b%#ä"]), "/v1/ports/a%3Fb%25%23%C3%A4");
    }
}
