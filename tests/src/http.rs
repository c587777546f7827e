//! Requests by hand, right or wrong.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::wait;

/// How long an answer may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// What it says; null if it says nothing that is JSON.
    pub body: Value,
}

/// Sends a request with a body of JSON, if any, and reads the answer.
///
/// # Errors
/// There is no answer.
pub fn request(socket: &Path, method: &str, path: &str, body: &str) -> Result<Answer> {
    let stream = UnixStream::connect(socket).with_context(|| format!("{}", socket.display()))?;
    stream.set_read_timeout(Some(wait::patient(LIMIT)))?;
    exchange(stream, method, path, body)
}

/// The same over any stream.
///
/// # Errors
/// There is no answer.
pub fn exchange(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> Result<Answer> {
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: mgre\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(|| format!("{method} {path}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("{method} {path}: {text:?}"))?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Answer { status, body: serde_json::from_str(body).unwrap_or_default() })
}
