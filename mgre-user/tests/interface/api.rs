//! Requests over a real Unix socket.

use std::path::Path;
use std::time::Duration;

use hyper::Method;
use mgre_user::api::client::ClientError;
use mgre_user::api::messages::*;
use mgre_user::model::Document;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use crate::engine::Daemon;

/// A request as raw text, and the whole answer.
async fn raw(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    answer
}

fn problem(result: Result<Value, ClientError>) -> Problem {
    match result {
        Err(ClientError::Problem(problem)) => problem,
        other => panic!("not a problem: {other:?}"),
    }
}

#[tokio::test]
async fn nouns_are_resources() {
    let (daemon, client) = Daemon::start().await;
    let put = |path: &'static str, body: Value| {
        let client = client.clone();
        async move { client.send::<Value>(Method::PUT, path, Some(&body)).await }
    };
    let applied = put("/v1/segments/lan", json!({"key": 7})).await.expect("added");
    assert_eq!(applied, json!({"changed": ["segment lan added"], "warnings": ["a warning"]}));
    put("/v1/underlays/eth0", json!({"local": "192.0.2.1"})).await.expect("added");
    put("/v1/ports/veth0", json!({"segment": "lan", "mode": "tc"})).await.expect("added");
    put("/v1/ports/host0", json!({"segment": "lan", "create": true, "addresses": ["10.0.0.1/24"]}))
        .await
        .expect("added");
    put("/v1/peers/b", json!({"remote": "192.0.2.2", "segments": ["lan"]})).await.expect("added");
    put("/v1/fdb/lan/02:00:00:00:00:01", json!({"peer": "b"})).await.expect("added");
    client.send::<Value>(Method::PATCH, "/v1/peers/b", Some(&json!({"ttl": 9}))).await.expect("changed");
    client
        .send::<Value>(Method::PATCH, "/v1/segments/lan", Some(&json!({"key": null})))
        .await
        .expect("changed");
    let segments: Vec<SegmentView> = client.get("/v1/segments").await.expect("lists");
    assert_eq!((segments.len(), segments[0].key), (1, None));
    assert_eq!(client.get::<SegmentView>("/v1/segments/lan").await.expect("one"), segments[0]);

    let config: Document = client.get("/v1/config").await.expect("exports");
    assert_eq!((config.peers[0].ttl, config.fdb.len(), config.ports.len()), (Some(9), 1, 2));
    let dry: Applied =
        client.send(Method::POST, "/v1/apply?dry_run=true", Some(&json!({}))).await.expect("says");
    assert_eq!(dry.changed.len(), 6);
    assert_eq!(client.get::<Document>("/v1/config").await.expect("exports"), config);
    let same: Applied = client.send(Method::POST, "/v1/apply", Some(&config)).await.expect("applies");
    assert!(same.changed.is_empty());

    client.send::<Value>(Method::DELETE, "/v1/fdb/lan/02-0-0-0-0-1", None::<&()>).await.expect("removed");
    client.send::<Value>(Method::DELETE, "/v1/peers/b", None::<&()>).await.expect("removed");
    let flushed: Flushed =
        client.send(Method::POST, "/v1/fdb/flush", Some(&json!({}))).await.expect("flushes");
    assert_eq!(flushed.removed, 3);
    client.send::<()>(Method::POST, "/v1/detach", None::<&()>).await.expect("detaches");
    daemon.stop().await;
}

#[tokio::test]
async fn addresses_of_both_versions_options_and_vlans() {
    let (daemon, client) = Daemon::start().await;
    let send = |method: Method, path: &'static str, body: Value| {
        let client = client.clone();
        async move { client.send::<Applied>(method, path, Some(&body)).await.expect("changes").changed }
    };
    send(Method::PUT, "/v1/underlays/eth0", json!({"local": "2001:db8::1", "mode": "tc"})).await;
    let changed = send(Method::PUT, "/v1/underlays/eth0", json!({"local": "192.0.2.1"})).await;
    assert_eq!(changed, ["underlay eth0 changed"]);
    send(Method::PUT, "/v1/underlays/eth1", json!({"local": ["192.0.2.9", "2001:db8::9"]})).await;
    send(Method::DELETE, "/v1/underlays/eth1?local=192.0.2.9", json!({})).await;
    send(Method::PUT, "/v1/segments/virtual", json!({"vsid": 5000, "clamp_mss": true})).await;
    send(Method::PATCH, "/v1/segments/virtual", json!({"suppress_neighbors": true})).await;
    send(Method::PUT, "/v1/segments/lan", json!({})).await;
    send(Method::PUT, "/v1/ports/eth2", json!({"segment": "virtual", "vlan": 10})).await;
    send(Method::PUT, "/v1/ports/eth2", json!({"segment": "lan", "vlan": 20})).await;
    send(Method::DELETE, "/v1/ports/eth2.20", json!({})).await;
    let options = json!({"remote": "2001:db8::2", "segments": ["lan"], "tos": "inherit", "df": "inherit",
                         "csum": true, "seq": true, "encap": "gre-udp"});
    send(Method::PUT, "/v1/peers/b", options).await;
    let config: Value = client.get("/v1/config").await.expect("exports");
    assert_eq!(
        config,
        json!({
            "underlay": [
                {"interface": "eth0", "local": ["192.0.2.1", "2001:db8::1"], "mode": "tc"},
                {"interface": "eth1", "local": "2001:db8::9"},
            ],
            "segment": [{"name": "lan"}, {"name": "virtual", "vsid": 5000, "clamp_mss": true, "suppress_neighbors": true}],
            "port": [{"interface": "eth2", "segment": "virtual", "vlan": 10}],
            "peer": [{"name": "b", "remote": "2001:db8::2", "segments": ["lan"], "tos": "inherit",
                      "df": "inherit", "csum": true, "seq": true, "encap": "gre-udp"}],
        })
    );
    daemon.stop().await;
}

#[tokio::test]
async fn errors_are_problems() {
    let (daemon, client) = Daemon::start().await;
    let cases = [
        (Method::GET, "/v1/nothing", json!(null), 404),
        (Method::GET, "/v1/segments/x", json!(null), 404),
        (Method::GET, "/v1/neighbors?port=x", json!(null), 400),
        (Method::PUT, "/v1/segments/x", json!({"suppress_neighbors": "on"}), 400),
        (Method::POST, "/v1/segments", json!({}), 405),
        (Method::PUT, "/v1/segments/x", json!({"kay": 1}), 400),
        (Method::PUT, "/v1/segments/x", json!([1]), 400),
        (Method::PUT, "/v1/segments/x", json!({"mtu": 1}), 422),
        (Method::PUT, "/v1/segments/a%20b", json!({}), 422),
        (Method::PUT, "/v1/segments/x", json!({"vsid": 4095}), 422),
        (Method::PUT, "/v1/segments/x", json!({"vsid": 5000, "key": 1}), 422),
        (Method::PUT, "/v1/underlays/x", json!({"local": ["192.0.2.1", "192.0.2.2"]}), 400),
        (Method::PUT, "/v1/underlays/x", json!({"local": "fe80::1"}), 422),
        (Method::DELETE, "/v1/underlays/x?local=192.0.2.1", json!({}), 404),
        (Method::PUT, "/v1/peers/x", json!({"remote": "192.0.2.2", "segments": [], "tos": "high"}), 400),
        (Method::PUT, "/v1/ports/p", json!({"segment": "x", "create": true, "vlan": 5}), 422),
        (Method::DELETE, "/v1/peers/x", json!(null), 404),
        (Method::PUT, "/v1/fdb/x/zz", json!({"peer": "a"}), 422),
        (Method::PUT, "/v1/fdb/x/02:00:00:00:00:01", json!({}), 422),
        (Method::PUT, "/v1/ports/p", json!({"segment": "x", "addresses": ["10.0.0.1/8"]}), 422),
        (Method::POST, "/v1/apply?dry_run=maybe", json!({}), 400),
        (Method::POST, "/v1/apply", json!({"peers": []}), 400),
        (Method::GET, "/v1/status", json!(null), 503),
    ];
    for (method, path, body, status) in cases {
        let problem = problem(client.send(method.clone(), path, Some(&body)).await);
        assert_eq!(
            (problem.status, problem.kind.as_str()),
            (status, "about:blank"),
            "{method} {path}: {problem}"
        );
        assert!(!problem.title.is_empty() && !problem.detail.is_empty());
    }
    let answer = raw(&daemon.socket(), "GET /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.to_lowercase().contains("content-type: application/problem+json"), "{answer}");
    let long = format!(
        "POST /v1/apply HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        (8 << 20) + 1
    );
    assert!(raw(&daemon.socket(), &long).await.starts_with("HTTP/1.1 413"));
    daemon.stop().await;
}

#[tokio::test]
async fn toml_can_be_applied_as_it_is() {
    let (daemon, client) = Daemon::start().await;
    let body = "[[segment]]\nname = \"lan\"\n";
    let head =
        "POST /v1/apply HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/toml\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    assert!(raw(&daemon.socket(), &request).await.contains("segment lan added"));
    assert_eq!(client.get::<Document>("/v1/config").await.expect("exports").segments.len(), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn events_stream_until_the_server_stops() {
    let (daemon, client) = Daemon::start().await;
    let (send, mut lines) = mpsc::unbounded_channel();
    let listener = client.clone();
    let stream = tokio::spawn(async move {
        listener.lines("/v1/events", |line| send.send(line.to_owned()).map_err(std::io::Error::other)).await
    });
    // The stream hears what happens after it was subscribed to, so try until it does.
    let line = loop {
        for method in [Method::PUT, Method::DELETE] {
            client.send::<Value>(method, "/v1/segments/lan", Some(&json!({}))).await.expect("changes");
        }
        if let Ok(Some(line)) = tokio::time::timeout(Duration::from_millis(50), lines.recv()).await {
            break line;
        }
    };
    let event: Event = serde_json::from_str(&line).expect("an event");
    assert!(matches!(event.kind, EventKind::ConfigChanged { .. }), "{line}");
    daemon.stop().await;
    stream.await.expect("no panic").expect("ends well");
}

#[tokio::test]
async fn metrics_over_tcp_and_nothing_else() {
    let (daemon, client) = Daemon::start().await;
    for (path, status, text) in [
        ("/metrics", "HTTP/1.1 200", "mgre_fdb_capacity 7\n"),
        ("/v1/segments", "HTTP/1.1 404", "there is nothing at"),
    ] {
        let mut stream = TcpStream::connect(daemon.metrics).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        assert!(answer.starts_with(status) && answer.contains(text), "{answer}");
    }
    let over_socket =
        raw(&daemon.socket(), "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(over_socket.contains("text/plain; version=0.0.4"));
    daemon.stop().await;
    let gone = client.get::<Value>("/v1/segments").await.expect_err("no daemon").to_string();
    assert!(gone.starts_with("the daemon of instance \"t\" is not running (no socket at "), "{gone}");
}

#[test]
fn event_lines_are_flat() {
    let mac = mgre_common::wire::MacAddr([2, 0, 0, 0, 0, 1]);
    let kind = EventKind::FdbMoved {
        segment: "lan".into(),
        mac,
        place: Place::peer("b"),
        from: Place::port("veth0"),
    };
    let event = Event { timestamp_milliseconds: 5, kind };
    let value = serde_json::to_value(&event).expect("serializes");
    assert_eq!(
        value,
        json!({
            "timestamp_milliseconds": 5, "event": "fdb_moved", "segment": "lan", "mac": "02:00:00:00:00:01",
            "peer": "b", "port": null, "from": {"peer": null, "port": "veth0"},
        })
    );
    assert_eq!(serde_json::from_value::<Event>(value).expect("parses"), event);
}
