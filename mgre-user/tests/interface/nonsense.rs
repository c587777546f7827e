//! The command line against something that is not the daemon.

use std::process::Output;
use std::time::Duration;

use mgre_user::api::client::{Client, ClientError};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::process::Command;

/// Listens as an instance's daemon would, and gives every client the same answer. With none it says nothing, and
/// stays.
fn impostor(directory: &tempfile::TempDir, answer: Option<Vec<u8>>) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(directory.path().join("t.sock")).expect("binds");
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut request = [0; 4096];
            let _length = stream.read(&mut request).await;
            if let Some(answer) = &answer {
                // The client may have seen enough.
                stream.write_all(answer).await.unwrap_or_default();
            } else {
                open.push(stream);
            }
        }
    })
}

async fn mgre(directory: &tempfile::TempDir, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgre"));
    command.args(line.split(' ')).env("MGRE_INSTANCE", "t").env("MGRE_RUN_DIR", directory.path());
    command.kill_on_drop(true);
    tokio::time::timeout(Duration::from_secs(20), command.output()).await.expect("ends").expect("runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_one_line() {
    let answers: &[&[u8]] = &[
        b"",
        b"\0\xff\xfe nonsense",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[{\"name\": \"half",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\xff\xff\xff\xff",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n42",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 500 Oh\r\ncontent-length: 3\r\n\r\n<p>",
        b"HTTP/1.1 500 Oh\r\ncontent-length: 88\r\n\r\n{\"type\":\"about:blank\",\"title\":\"\",\"status\":500,\"detail\":\"one\\ntwo\\nthree\\u001b[31m four\"}     ",
    ];
    for answer in answers {
        let directory = tempfile::tempdir().expect("a directory");
        let server = impostor(&directory, Some(answer.to_vec()));
        for line in ["peer show", "status", "monitor", "segment add x", "stats --drops", "fdb flush"] {
            let output = mgre(&directory, line).await;
            let (out, error) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            let told = || format!("{line} against {:?}: {output:?}", String::from_utf8_lossy(answer));
            // A stream that ends has ended.
            if line == "monitor" && output.status.code() == Some(0) {
                continue;
            }
            assert_eq!(output.status.code(), Some(1), "{}", told());
            assert!(error.starts_with("mgre: ") && error.lines().count() == 1, "{}", told());
            assert!(!error.contains('\u{1b}') && out.is_empty(), "{}", told());
        }
        server.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = impostor(&directory, None);
    let client = Client::new(directory.path(), "t").patient_for(Duration::from_millis(200));
    let error = client.get::<Value>("/v1/status").await.expect_err("nothing");
    assert!(matches!(error, ClientError::Silent { .. }), "{error:?}");
    assert!(error.to_string().contains("has not answered for 0.2 s"), "{error}");
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_not_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let listener = UnixListener::bind(directory.path().join("t.sock")).expect("binds");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let (mut request, piece) = ([0; 4096], vec![b'a'; 1 << 20]);
        assert!(stream.read(&mut request).await.expect("reads") > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("writes");
        while stream.write_all(&piece).await.is_ok() {}
    });
    let client = Client::new(directory.path(), "t").patient_for(Duration::from_secs(20));
    let error = client.lines("/v1/events", |_| Ok(())).await.expect_err("no line");
    assert!(error.to_string().contains("a line of more than"), "{error}");
    server.await.expect("the client is gone");
}
