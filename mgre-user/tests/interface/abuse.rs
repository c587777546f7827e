//! Requests that no client of good will sends. Each is answered with a problem, or cut off, and changes nothing.

use std::time::{Duration, Instant};

use hyper::Method;
use mgre_user::api::client::Client;
use mgre_user::api::messages::{Applied, Event, EventKind};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::engine::Daemon;
use crate::raw::{LIMIT, exchange, request, send};

/// A daemon that has something to lose.
async fn daemon() -> (Daemon, Client) {
    let (daemon, client) = Daemon::start().await;
    for (path, body) in [
        ("/v1/segments/lan", json!({"key": 7})),
        ("/v1/ports/veth0", json!({"segment": "lan"})),
        ("/v1/peers/b", json!({"remote": "192.0.2.2", "segments": ["lan"]})),
        ("/v1/fdb/lan/02:00:00:00:00:01", json!({"peer": "b"})),
    ] {
        client.send::<Applied>(Method::PUT, path, Some(&body)).await.expect("added");
    }
    (daemon, client)
}

async fn config(client: &Client) -> Value {
    client.get("/v1/config").await.expect("exports")
}

fn resident_kilobytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("reads");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_is_answered_all_the_same() {
    let (daemon, client) = daemon().await;
    let before = config(&client).await;
    let fields = "x-field: y\r\n".repeat(200);
    let bomb = format!("GET /v1/status HTTP/1.1\r\nhost: x\r\nx-bomb: {}\r\n\r\n", "a".repeat(4 << 20));
    let cases: Vec<(Vec<u8>, u16)> = vec![
        (b"\0\x01\x02\x03\xff\xfe garbage \r\n\r\n".to_vec(), 400),
        (b"GET\r\n\r\n".to_vec(), 400),
        (b"GET /v1/config HTTP/9.9\r\n\r\n".to_vec(), 400),
        (b"GET /v1/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), 400),
        (b"GET /v1/config HTTP/1.1\r\nhost x\r\n\r\n".to_vec(), 400),
        (b"GET /v1/config HTTP/1.1\r\nhost: x\r\nx: \0\r\n\r\n".to_vec(), 400),
        (b"PUT /v1/segments/x HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_vec(), 400),
        (
            b"PUT /v1/segments/x HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}"
                .to_vec(),
            400,
        ),
        (
            b"PUT /v1/segments/x HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n"
                .to_vec(),
            400,
        ),
        (b"PUT /v1/segments/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n".to_vec(), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 505),
        (format!("GET /v1/config HTTP/1.1\r\nhost: x\r\n{fields}\r\n").into_bytes(), 431),
        (bomb.into_bytes(), 431),
        (format!("GET /v1/segments/{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(1 << 20)).into_bytes(), 431),
        (b"GET /v1/segments/ HTTP/1.1\r\nhost: x\r\n\r\nrubbish behind it\r\n\r\n".to_vec(), 404),
    ];
    for (bytes, status) in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        let answer = send(&daemon.socket(), bytes).await.unwrap_or_else(|| panic!("no answer to {shown:?}"));
        assert_eq!(answer.status, status, "{shown:?}: {answer:?}");
        if status != 404 {
            answer.problem();
        }
        assert_eq!(config(&client).await, before, "{shown:?}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_a_problem_and_changes_nothing() {
    let (daemon, client) = daemon().await;
    let before = config(&client).await;
    let nested = format!("{{\"key\": {}7{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let long = format!("{{\"remote\": \"192.0.2.3\", \"segments\": [\"{}\"]}}", "a".repeat(1 << 20));
    let nested_toml = format!("segment = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    let put = |path, body: &str, status| ("PUT", path, "", body.as_bytes().to_vec(), status);
    let cases: Vec<(&str, &str, &str, Vec<u8>, u16)> = vec![
        put("/v1/segments/x", "{", 400),
        put("/v1/segments/x", "[]", 400),
        put("/v1/segments/x", "null", 400),
        put("/v1/segments/x", "{} {}", 400),
        put("/v1/segments/x", &nested, 400),
        put("/v1/segments/x", r#"{"key": "seven"}"#, 400),
        put("/v1/segments/x", r#"{"key": 1, "key": 2}"#, 400),
        put("/v1/segments/x", r#"{"key": 1e400}"#, 400),
        put("/v1/segments/x", r#"{"key": -1}"#, 400),
        put("/v1/segments/x", r#"{"key": 4294967296}"#, 400),
        put("/v1/segments/x", r#"{"key": 7.5}"#, 400),
        put("/v1/segments/x", r#"{"kee": 7}"#, 400),
        put("/v1/segments/x", "{\"key\": 1\0}", 400),
        put("/v1/segments/x", r#"{"aging_seconds": 4294967295}"#, 422),
        put("/v1/segments/x%00y", "{}", 422),
        put("/v1/segments/x%0ay", "{}", 422),
        put("/v1/segments/%2e%2e%2fstate", "{}", 422),
        put("/v1/segments/%ff%fe", "{}", 400),
        put("/v1/segments/%zz", "{}", 422),
        put("/v1/segments/lan", "{}", 409),
        put("/v1/peers/c", &long, 404),
        put("/v1/peers/c", "{\"remote\": \"\\u0000\", \"segments\": [\"lan\"]}", 422),
        put("/v1/peers/c", "{\"remote\": \"\u{202e}evil\\n\", \"segments\": [\"lan\"]}", 422),
        put("/v1/fdb/lan/zz", "{\"peer\": \"b\"}", 422),
        put("/v1/fdb/lan/02:00:00:00:00:02", "{\"peer\": \"b\", \"port\": \"veth0\"}", 422),
        put("/v1", "{}", 404),
        put("//v1//segments/x", "{}", 404),
        put("/v1/segments/x/../y", "{}", 404),
        put("/v1/status", "{}", 405),
        ("DELETE", "/v1/status", "", vec![], 405),
        ("TRACE", "/v1/segments/x", "", vec![], 405),
        ("M-SEARCH", "/v1/segments/x", "", vec![], 405),
        ("CONNECT", "host:443", "", vec![], 404),
        ("GET", "/v1/fdb?segment=a&segment=b", "", vec![], 400),
        ("GET", "/v1/fdb?colour=red", "", vec![], 400),
        ("PUT", "/v1/segments/x", "content-type: text/xml\r\n", b"<x/>".to_vec(), 415),
        ("PUT", "/v1/segments/x", "content-type: ÿ\r\n", b"{}".to_vec(), 415),
        ("PUT", "/v1/segments/x", "content-encoding: gzip\r\n", b"{}".to_vec(), 415),
        ("PUT", "/v1/segments/x", "content-type: application/json\r\n", b"{\"key\": \"\xff\"}".to_vec(), 400),
        ("PATCH", "/v1/segments/none", "", b"{}".to_vec(), 404),
        ("POST", "/v1/apply", "content-type: application/toml\r\n", nested_toml.into_bytes(), 400),
        (
            "POST",
            "/v1/apply",
            "content-type: application/toml\r\n",
            b"[[segment]]\nname = \"\xff\"\n".to_vec(),
            400,
        ),
        ("POST", "/v1/apply?dry_run=maybe", "", b"{}".to_vec(), 400),
        ("POST", "/v1/apply", "", vec![], 400),
        ("POST", "/v1/apply?dry_run=true", "content-type: application/toml\r\n", b"\n".to_vec(), 400),
        ("POST", "/v1/apply", "", br#"{"segment": [{"name": "x"}, {"name": "x"}]}"#.to_vec(), 409),
    ];
    for (method, path, fields, body, status) in cases {
        let said =
            format!("{method} {path} {fields:?} {}", String::from_utf8_lossy(&body[..body.len().min(60)]));
        let answer = send(&daemon.socket(), request(method, path, fields, &body)).await.expect("an answer");
        assert_eq!(answer.status, status, "{said}: {answer:?}");
        answer.problem();
        // RFC 9110 15.5.6.
        assert_eq!(answer.head.contains("\r\nallow:"), status == 405, "{said}: {answer:?}");
        assert_eq!(config(&client).await, before, "{said}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_end_are_cut_off_and_take_little_memory() {
    const CLIENTS: usize = 24;
    let (daemon, client) = daemon().await;
    let before = config(&client).await;
    let resident = resident_kilobytes();
    let head = "POST /v1/apply HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let announced = format!("{head}content-length: {}\r\n\r\n", 100 << 20);
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
    let chunk = [b"10000\r\n", &vec![b' '; 0x10000][..], b"\r\n"].concat();
    // 100 MB each.
    let mut tasks = Vec::new();
    for number in 0..CLIENTS {
        let (head, piece) = if number % 2 == 0 {
            (announced.clone(), vec![b' '; 0x10000])
        } else {
            (chunked.clone(), chunk.clone())
        };
        let stream = UnixStream::connect(daemon.socket()).await.expect("connects");
        let pieces = std::iter::once(head.into_bytes()).chain(std::iter::repeat_n(piece, 1600));
        tasks.push(tokio::spawn(exchange(stream, pieces)));
    }
    for task in tasks {
        let answer = task.await.expect("no panic").expect("an answer");
        assert_eq!(answer.status, 413, "{answer:?}");
        answer.problem();
    }
    // The clients are in this process, too, with 64 KiB or two each.
    let grown = resident_kilobytes().saturating_sub(resident);
    assert!(grown < 120 * 1024, "{grown} kB more");
    for bad in ["zz\r\n", "-1\r\n", "ffffffffffffffffff\r\n", "5\r\nabc"] {
        let mut stream = UnixStream::connect(daemon.socket()).await.expect("connects");
        stream.write_all(format!("{chunked}{bad}").as_bytes()).await.expect("writes");
        stream.shutdown().await.expect("ends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{bad:?}: {answer}");
    }
    assert_eq!(config(&client).await, before);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_nothing_or_half_keeps_nobody_out() {
    // More than the server has places for; it is in this process, too, and has a quarter of the descriptors for them.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit may be raised");
    }
    let places = usize::try_from(hard / 4).expect("few").min(1024);
    let (daemon, client) = daemon().await;
    let resident = resident_kilobytes();
    let mut idle = Vec::new();
    let mut worst = Duration::ZERO;
    for number in 0..places + 300 {
        let half = match number % 3 {
            0 => "",
            1 => "GET /v1/con",
            _ => "PUT /v1/segments/x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
        };
        if number % 10 != 0 {
            let mut stream = UnixStream::connect(daemon.socket()).await.expect("connects");
            stream.write_all(half.as_bytes()).await.expect("writes");
            idle.push((Some(stream), None));
        } else {
            let mut stream = TcpStream::connect(daemon.metrics).await.expect("connects");
            stream.write_all(half.as_bytes()).await.expect("writes");
            idle.push((None, Some(stream)));
        }
        if number % 100 == 99 {
            let start = Instant::now();
            tokio::time::timeout(LIMIT, config(&client)).await.expect("an answer");
            let stream = TcpStream::connect(daemon.metrics).await.expect("connects");
            let metrics = exchange(stream, [request("GET", "/metrics", "", b"")]).await;
            assert_eq!(metrics.map(|answer| answer.status), Some(200));
            worst = worst.max(start.elapsed());
        }
    }
    assert!(worst < Duration::from_secs(10), "{worst:?}");
    let grown = resident_kilobytes().saturating_sub(resident);
    assert!(grown < 100 * 1024, "{grown} kB more");
    drop(idle);
    config(&client).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_nothing_is_cut_off() {
    let (daemon, client) = daemon().await;
    // More answers than a socket takes, and none of them read.
    let one = String::from_utf8(request("GET", "/metrics", "", b"")).expect("text");
    let many = one.replace("connection: close\r\n", "").repeat(4000);
    let mut stream = UnixStream::connect(daemon.socket()).await.expect("connects");
    let cut_off = async { while stream.write_all(many.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(25), cut_off).await.expect("in time");
    config(&client).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_nobody_reads_are_lost_and_told_of() {
    let (daemon, client) = daemon().await;
    let mut stream = UnixStream::connect(daemon.socket()).await.expect("connects");
    stream.write_all(&request("GET", "/v1/events", "", b"")).await.expect("writes");
    // It is known to listen once it has begun to answer.
    let mut head = [0; 16];
    stream.read_exact(&mut head).await.expect("an answer");
    let emit = || {
        let kind = EventKind::ConfigChanged { changed: vec!["something".repeat(10)] };
        daemon.events.send(Event::now(kind)).expect("somebody listens");
    };
    // More than the socket and the server hold.
    (0..20_000).for_each(|_| emit());
    config(&client).await;
    let (mut bytes, mut seen) = (vec![0; 1 << 20], String::new());
    let told = async {
        while !seen.contains("\"event\":\"lost\"") {
            let length = stream.read(&mut bytes).await.expect("reads");
            assert!(length > 0, "the stream ends");
            seen.push_str(&String::from_utf8_lossy(&bytes[..length]));
            emit();
        }
    };
    tokio::time::timeout(LIMIT, told).await.expect("in time");
    assert!(seen.len() < 4 << 20, "{} bytes were kept", seen.len());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn not_everybody_listens_to_events() {
    let (daemon, client) = daemon().await;
    let mut listeners = Vec::new();
    for number in 0..80 {
        let mut stream = UnixStream::connect(daemon.socket()).await.expect("connects");
        stream.write_all(&request("GET", "/v1/events", "", b"")).await.expect("writes");
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.expect("an answer");
        let expected = if number < 64 { "HTTP/1.1 200" } else { "HTTP/1.1 503" };
        assert_eq!(String::from_utf8_lossy(&head), expected, "{number}");
        listeners.push(stream);
    }
    drop(listeners);
    let again = async {
        loop {
            let mut stream = UnixStream::connect(daemon.socket()).await.expect("connects");
            stream.write_all(&request("GET", "/v1/events", "", b"")).await.expect("writes");
            let mut head = [0; 12];
            stream.read_exact(&mut head).await.expect("an answer");
            if &head == b"HTTP/1.1 200" {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, again).await.expect("a reader that vanishes gives up its place");
    config(&client).await;
    daemon.stop().await;
}
