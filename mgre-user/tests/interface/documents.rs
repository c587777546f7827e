//! Documents that cannot be applied: why is said in one line, and nothing changes.

use std::process::{Output, Stdio};
use std::time::Duration;

use hyper::Method;
use mgre_user::api::client::Client;
use mgre_user::api::messages::Applied;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::engine::Daemon;

/// Applies a document that comes from standard input.
async fn apply(daemon: &Daemon, document: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgre"));
    command.args(["apply", "-"]).env("MGRE_INSTANCE", "t").env("MGRE_RUN_DIR", daemon.directory.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("runs");
    let mut input = child.stdin.take().expect("piped");
    // It may have seen enough.
    input.write_all(document).await.unwrap_or_default();
    drop(input);
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, child.wait_with_output()).await.expect("in time").expect("ends")
}

async fn config(client: &Client) -> Value {
    client.get("/v1/config").await.expect("exports")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_with_its_line() {
    let (daemon, client) = Daemon::start().await;
    client.send::<Applied>(Method::PUT, "/v1/segments/kept", Some(&json!({}))).await.expect("added");
    let before = config(&client).await;
    let lan = "[[segment]]\nname = \"lan\"\nkey = 7\n";
    let peer = |name: &str, remote: &str, segments: &str| {
        format!("{lan}[[peer]]\nname = \"{name}\"\nremote = \"{remote}\"\nsegments = {segments}\n")
    };
    let nested = |open: &str, close: &str| format!("x = {}{}", open.repeat(50_000), close.repeat(50_000));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"[[segment]\nname = 1\n".to_vec(), "line 1: "),
        (b"[[segment]]\nname = \"a\n".to_vec(), "line 2: "),
        (b"[[segment]]\n\n\nname = 5\n".to_vec(), "line 4: "),
        (b"[[segment]]\nname = \"a\"\nname = \"b\"\n".to_vec(), "line 3: "),
        (b"[[segment]]\nname = \"a\"\nkey = 99999999999999999999999999\n".to_vec(), "line 3: "),
        (b"[[segment]]\nname = \"a\"\nkey = -1\n".to_vec(), "line 3: "),
        (b"[[segment]]\nname = \"a\"\ncolour = \"red\"\n".to_vec(), "line 3: "),
        (b"[[segment]]\nkey = 7\n".to_vec(), "line 1: "),
        (b"[segment]\nname = \"a\"\n".to_vec(), "line 1: "),
        (b"segment = 5\n".to_vec(), "line 1: "),
        (b"[[fdb]]\nsegment = \"lan\"\nmac = \"02:00:00:00:00:01\"\n".to_vec(), "line 1: "),
        (b"\xff\xfe\x00".to_vec(), "cannot read -: "),
        (b"a\0b = 1\n".to_vec(), "line 1: "),
        (b"{\"segment\": []}".to_vec(), "line 1: "),
        (nested("[", "]").into_bytes(), "line 1: "),
        (nested("{a=", "}").into_bytes(), "line 1: "),
        (format!("x{}", ".a".repeat(50_000)).into_bytes(), "line 1: "),
        (vec![b'['; 10 << 20], "line 1: "),
        (format!("{lan}{lan}").into_bytes(), "segment \"lan\" exists already"),
        (format!("{lan}[[segment]]\nname = \"other\"\nkey = 7\n").into_bytes(), "key 7"),
        (format!("[[segment]]\nname = \"{}\"\n", "a".repeat(1 << 20)).into_bytes(), "1 to 63 characters"),
        (b"[[segment]]\nname = \"a\\nb\"\n".to_vec(), "a\\nb"),
        (peer("b", "192.0.2.2", "[\"none\"]").into_bytes(), "there is no segment \"none\""),
        (peer("b", "224.0.0.1", "[\"lan\"]").into_bytes(), "multicast"),
        (peer("b", "b", "[]").into_bytes(), "segment"),
        (b"[[port]]\ninterface = \"eth0\"\nsegment = \"eth0\"\n".to_vec(), "there is no segment \"eth0\""),
        (
            format!("{lan}[[port]]\ninterface = \"eth0\"\nsegment = \"lan\"\n[[underlay]]\ninterface = \"eth0\"\nlocal = \"192.0.2.1\"\n")
                .into_bytes(),
            "eth0",
        ),
        (
            format!("{lan}[[fdb]]\nsegment = \"lan\"\nmac = \"02:00:00:00:00:01\"\npeer = \"none\"\n").into_bytes(),
            "there is no peer \"none\"",
        ),
    ];
    for (document, words) in cases {
        let shown = String::from_utf8_lossy(&document[..document.len().min(60)]).into_owned();
        let output = apply(&daemon, &document).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{shown:?}: {output:?}");
        assert!(error.contains(words), "{shown:?}: {error}");
        assert!(error.len() < 1300 && output.stdout.is_empty(), "{shown:?}: {} bytes", error.len());
        assert_eq!(config(&client).await, before, "{shown:?}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_documents_are_taken_up_to_the_limit() {
    let (daemon, client) = Daemon::start().await;
    // Ten megabytes that say little.
    let mut document = "[[segment]]\nname = \"lan\"\n".to_owned();
    document.push_str(&"# nothing of interest\n".repeat(500_000));
    let output = apply(&daemon, document.as_bytes()).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let before = config(&client).await;
    // And ten that say much.
    for number in 0..100_000 {
        let name = "p".repeat(50);
        document.push_str(&format!(
            "[[peer]]\nname = \"{name}{number}\"\nremote = \"10.{}.{}.{}\"\nsegments = [\"lan\"]\nttl = 9\ntos = 8\nmax_macs = 7\n",
            number >> 16, number >> 8 & 255, number & 255
        ));
    }
    let output = apply(&daemon, document.as_bytes()).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("longer than 8388608 bytes"), "{error}");
    assert_eq!(config(&client).await, before);
    daemon.stop().await;
}
