//! HTTP as bytes, right or wrong.

use std::path::Path;
use std::time::Duration;

use mgre_user::api::problem::Problem;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// No answer takes longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
        Some(Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
    }

    /// The problem that it is: with the right type, a body as long as it says, and in one line.
    pub(crate) fn problem(&self) -> Problem {
        let Self { status, head, body } = self;
        assert!(head.contains("content-type: application/problem+json"), "{self:?}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{self:?}");
        let problem: Problem = serde_json::from_str(body).expect("a problem");
        assert_eq!((problem.status, problem.kind.as_str()), (*status, "about:blank"));
        let detail = &problem.detail;
        assert!(!problem.title.is_empty() && !detail.is_empty(), "{self:?}");
        assert!(detail.len() < 1100 && !detail.contains(char::is_control), "{detail}");
        problem
    }
}

/// Sends bytes, as many of them as are taken, and reads until the end. None if there is no answer.
pub(crate) async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    pieces: impl IntoIterator<Item = Vec<u8>>,
) -> Option<Answer> {
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let write = async {
        for piece in pieces {
            // The server may have answered and closed.
            if writer.write_all(&piece).await.is_err() {
                return;
            }
        }
        writer.flush().await.unwrap_or_default();
    };
    let read = async {
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        // An end by force is an end.
        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
            bytes.extend_from_slice(&buffer[..length]);
        }
        bytes
    };
    tokio::pin!(read);
    let both = async {
        tokio::select! {
            bytes = &mut read => return bytes,
            () = write => {}
        }
        read.await
    };
    let bytes = timeout(LIMIT, both).await.expect("the server ends it in time");
    Answer::parse(&bytes)
}

/// Sends bytes to the socket.
pub(crate) async fn send(socket: &Path, bytes: impl Into<Vec<u8>>) -> Option<Answer> {
    exchange(UnixStream::connect(socket).await.expect("connects"), [bytes.into()]).await
}

/// A request with a body, after which the connection ends.
pub(crate) fn request(method: &str, path: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: mgre\r\nconnection: close\r\n{fields}content-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
