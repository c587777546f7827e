//! A client's stream: notes what goes through it, and gives up on a client that does not read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use super::activity::Activity;
use super::problem::{self, Problem};

/// How long a client may take no byte of what is sent to it.
const STALL: Duration = Duration::from_secs(10);
/// How long what a client still sends is read and thrown away after the last answer, so that it gets to read that.
const LINGER: Duration = Duration::from_secs(1);

/// A client's stream.
#[derive(Debug)]
pub(super) struct Stream<I> {
    io: I,
    activity: Arc<Activity>,
    /// What is to be written before anything else.
    first: Bytes,
    /// When the client has read nothing for too long; counts while it reads nothing.
    stall: Option<Pin<Box<Sleep>>>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Stream<I> {
    pub(super) fn new(io: I, activity: Arc<Activity>) -> Self {
        Self { io, activity, first: Bytes::new(), stall: None }
    }

    /// Sends a last answer, if any, and closes.
    ///
    /// # Errors
    /// The client is gone, or does not read.
    pub(super) async fn close(&mut self, answer: Option<&Problem>) -> io::Result<()> {
        let until = Instant::now() + LINGER;
        let rest = async {
            if let Some(problem) = answer {
                self.write_all(&whole(problem)).await?;
            }
            self.shutdown().await?;
            // A socket that is closed with something unread takes the answer with it.
            let mut thrown_away = vec![0; 8 * 1024];
            while self.read(&mut thrown_away).await? > 0 {}
            Ok(())
        };
        timeout_at(until, rest).await?
    }

    fn send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = Pin::new(&mut self.io).poll_write(cx, bytes) {
            self.stall = None;
            self.activity.note();
            return Poll::Ready(result);
        }
        ready!(self.stall.get_or_insert_with(|| Box::pin(sleep(STALL))).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn send_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.first.is_empty() {
            let bytes = self.first.clone();
            let sent = ready!(self.send(cx, &bytes))?;
            self.first = self.first.split_off(sent.min(bytes.len()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Stream<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.activity.note();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.send_first(cx))?;
        let Some((before, problem)) = refusal(bytes) else { return this.send(cx, bytes) };
        this.first = [&bytes[..before], &whole(&problem)].concat().into();
        // What cannot be written now is written by the flush that follows.
        if let Poll::Ready(Err(error)) = this.send_first(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.send_first(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.send_first(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

/// The HTTP library refuses what it cannot parse by itself, with a status and an empty body. Where that begins in
/// bytes that it writes, if they end so, and what to say instead. Our own answers have a body and its type.
fn refusal(bytes: &[u8]) -> Option<(usize, Problem)> {
    const START: &[u8] = b"HTTP/1.1 4";
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let start = bytes.windows(START.len()).rposition(|window| window == START)?;
    let head = std::str::from_utf8(&bytes[start..]).ok()?.to_ascii_lowercase();
    if !head.contains("\r\ncontent-length: 0\r\n") || head.contains("\r\ncontent-type:") {
        return None;
    }
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let detail = match status {
        400 => "this is not an HTTP/1.1 request that can be understood",
        414 => "the path is too long",
        431 => "the request's head is too long, or has too many fields",
        _ => return None,
    };
    Some((start, Problem::new(status, detail)))
}

/// A whole answer, after which the connection ends.
fn whole(problem: &Problem) -> Vec<u8> {
    let Problem { status, title, .. } = problem;
    let body = serde_json::to_string(problem).unwrap_or_default();
    let (kind, length) = (problem::CONTENT_TYPE, body.len());
    format!(
        "HTTP/1.1 {status} {title}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_librarys_refusals_are_replaced() {
        let refused =
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let (start, problem) = refusal(refused).expect("one");
        assert_eq!((start, problem.status), (0, 431));
        let after = [&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nHT"[..], refused].concat();
        assert_eq!(refusal(&after).map(|(start, _)| start), Some(after.len() - refused.len()));
        for other in [
            &b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\nabc",
            b"HTTP/1.1 4",
            b"",
        ] {
            assert!(refusal(other).is_none(), "{}", String::from_utf8_lossy(other));
        }
        assert!(refusal(&whole(&problem)).is_none());
    }
}
