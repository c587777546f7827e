//! The control plane with many peers: how long changes, scrapes and learning take, and what the daemon needs.
//!
//! ```text
//!  host                switch                core
//!  eth0 ------ lan0 [ the daemon ] wan0 ---- eth0     the peers' addresses are behind two gateways that are not there
//! ```

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    part::Plan,
    report::{Bar, Report, Side},
    statistics::Spread,
    stop,
    table::{Cell, Table},
};
use crate::{
    capture::{Capture, Sender},
    daemon::{Daemon, Options},
    netns::{self, Netns},
    packet::{Gre, Mac, mac_text, marked},
};

/// Peers of one segment.
const SEGMENT_PEERS: usize = 400;
/// Connections over which peers are added one by one.
const CONNECTIONS: usize = 8;
/// Addresses whose learning is timed.
const TIMED: u32 = 300;
/// Scrapes that are timed.
const SCRAPES: usize = 15;
/// Changes of next hop that are timed.
const TURNS: usize = 11;
/// The gateways' MAC addresses.
const GATEWAYS: [Mac; 2] = [[0x02, 0, 0, 0, 0xfe, 0x01], [0x02, 0, 0, 0, 0xfe, 0x02]];
/// A host behind the first peer.
const FAR: Mac = [0x02, 0, 0, 0, 0xaa, 0x01];
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// One figure.
struct Figure {
    key: &'static str,
    title: String,
    unit: &'static str,
    decimals: usize,
    measured: Option<Spread>,
    /// What was promised at most, and what would be better still.
    bar: Option<(f64, f64)>,
}

/// Measures.
///
/// # Errors
/// The daemon does not do what it should, or not in time.
pub fn run(plan: Plan) -> Result<Report> {
    let (peers, addresses) = if plan.quick { (2_000, 10_000) } else { (10_000, 100_000) };
    let mut figures = together(peers)?;
    stop::check()?;
    figures.extend(one_by_one(peers, addresses)?);
    Ok(report(peers, &figures))
}

fn report(peers: usize, figures: &[Figure]) -> Report {
    let mut table = Table::new("", &[("value", "median (range)"), ("unit", "unit")]);
    for figure in figures {
        let cells = [Cell::spread(figure.measured, figure.decimals), Cell::Text(figure.unit.into())];
        table.row(figure.key, &figure.title, cells);
    }
    let bar = |figure: &Figure| {
        let (target, stretch) = figure.bar?;
        let what = figure.title.clone();
        let (side, stretch) = (Side::AtMost, Some(stretch));
        Some(Bar { what, side, target, stretch, unit: figure.unit, measured: figure.measured })
    };
    Report {
        key: "control".into(),
        title: format!("Control plane, {peers} peers in segments of {SEGMENT_PEERS}"),
        tables: vec![table],
        bars: figures.iter().filter_map(bar).collect(),
        remarks: vec![
            "learning is timed from the frame's sending to the daemon's word of it on /v1/events, which \
             comes after the entry is usable"
                .into(),
        ],
        ..Report::default()
    }
}

fn figure(key: &'static str, title: impl Into<String>, unit: &'static str, figures: &[f64]) -> Figure {
    let measured = Spread::of(figures.iter().copied());
    Figure { key, title: title.into(), unit, decimals: 2, measured, bar: None }
}

impl Figure {
    fn bar(self, target: f64, stretch: f64) -> Self {
        Self { bar: Some((target, stretch)), ..self }
    }
}

/// A switch with its daemon, a host, and a core that swallows what it gets.
struct Site {
    // First, so that it ends before its namespace does.
    daemon: Daemon,
    netns: Netns,
    host: Netns,
    core: Netns,
}

impl Site {
    fn new(peers: usize) -> Result<Self> {
        let [netns, host, core] = ["switch", "host", "core"].map(Netns::new);
        let (netns, host, core) = (netns?, host?, core?);
        for (here, there) in [("wan0", &core), ("lan0", &host)] {
            let (one, other) = (netns.name(), there.name());
            netns::ip(&format!("link add {here} netns {one} type veth peer name eth0 netns {other}"))?;
            there.ip("link set eth0 up")?;
            netns.ip(&format!("link set {here} up"))?;
        }
        netns.ip(&format!(
            "addr add 10.0.0.1/24 dev wan0\n\
             neigh add 10.0.0.253 lladdr {} dev wan0 nud permanent\n\
             neigh add 10.0.0.254 lladdr {} dev wan0 nud permanent\n\
             route add 10.64.0.0/16 via 10.0.0.253",
            mac_text(GATEWAYS[0]),
            mac_text(GATEWAYS[1])
        ))?;
        let mut daemon = Daemon::start(&netns, Options::default())?;
        daemon.hide_log();
        let this = Self { daemon, netns, host, core };
        let mut document = document(peers);
        document["peer"] = json!([]);
        this.api()?.expect("POST", "/v1/apply", &document)?;
        Ok(this)
    }

    fn api(&self) -> Result<Api> {
        Api::connect(&self.daemon.socket())
    }

    fn status(&self, name: &str) -> Result<u64> {
        let status = self.api()?.expect("GET", "/v1/status", &Value::Null)?;
        serde_json::from_slice::<Value>(&status)?[name].as_u64().with_context(|| format!("no {name}"))
    }

    /// Memory of the daemon in MiB, from a line of its status file.
    fn memory(&self, line: &str) -> Result<f64> {
        let pid = self.daemon.pid().context("the daemon has ended")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let value = status.lines().find_map(|text| text.strip_prefix(line)?.split_whitespace().next());
        let kib: f64 = value.with_context(|| format!("no {line}"))?.parse()?;
        Ok(kib / 1024.0)
    }
}

fn segment(number: usize) -> String {
    format!("s{}", number / SEGMENT_PEERS)
}

fn remote(number: usize) -> String {
    format!("10.64.{}.{}", number / 250, 1 + number % 250)
}

fn document(peers: usize) -> Value {
    let segments = (0..peers.div_ceil(SEGMENT_PEERS))
        .map(|number| json!({ "name": format!("s{number}"), "key": 100 + number, "max_macs": 1_000_000 }));
    let peers = (0..peers).map(|number| {
        json!({ "name": format!("peer{number}"), "remote": remote(number), "segments": [segment(number)] })
    });
    json!({
        "underlay": [{ "interface": "wan0", "local": "10.0.0.1" }],
        "segment": segments.collect::<Value>(),
        "port": [{ "interface": "lan0", "segment": "s0" }],
        "peer": peers.collect::<Value>(),
    })
}

/// All peers in one request.
fn together(peers: usize) -> Result<Vec<Figure>> {
    let site = Site::new(peers)?;
    let document = document(peers);
    let start = Instant::now();
    site.api()?.expect("POST", "/v1/apply", &document)?;
    let taken = start.elapsed().as_secs_f64();
    ensure!(site.status("peers_up")? == peers as u64, "not all peers are up");
    Ok(vec![figure("apply", format!("{peers} peers added in one request"), "s", &[taken]).bar(2.0, 0.5)])
}

/// Peers one by one, and then everything else.
fn one_by_one(peers: usize, addresses: u32) -> Result<Vec<Figure>> {
    let site = Site::new(peers)?;
    let start = Instant::now();
    thread::scope(|scope| {
        let add = |first: usize| {
            let mut api = site.api()?;
            for number in (first..peers).step_by(CONNECTIONS) {
                let peer = json!({ "remote": remote(number), "segments": [segment(number)] });
                api.expect("PUT", &format!("/v1/peers/peer{number}"), &peer)?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..CONNECTIONS).map(|first| scope.spawn(move || add(first))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread panicked"),
        })
    })?;
    let taken = start.elapsed().as_secs_f64();
    ensure!(site.status("peers_up")? == peers as u64, "not all peers are up");
    let title = format!("{peers} peers added one by one over {CONNECTIONS} connections");
    let mut figures = vec![figure("single", title, "s", &[taken]).bar(2.0, 0.5)];
    figures.extend(scrapes(&site)?);
    let memory = |site: &Site, key, title: &str| -> Result<Figure> {
        // What an answer needed is given back within a second.
        thread::sleep(Duration::from_millis(1500));
        Ok(figure(key, title, "MiB", &[site.memory("VmRSS:")?]))
    };
    figures.push(memory(&site, "memory", "resident memory, after the scrapes")?.bar(64.0, 32.0));
    figures.push(figure("memory_anon", "of it the daemon's own", "MiB", &[site.memory("RssAnon:")?]));
    stop::check()?;
    figures.push(followed(&site)?);
    figures.push(learning(&site)?);
    stop::check()?;
    figures.push(many_addresses(&site, addresses)?);
    let title = format!("resident memory with {addresses} addresses more");
    figures.push(memory(&site, "memory_addresses", &title)?);
    Ok(figures)
}

/// Milliseconds of each of some requests.
fn timed(site: &Site, path: &str) -> Result<(Vec<f64>, usize)> {
    let mut api = site.api()?;
    let mut length = 0;
    let times = (0..SCRAPES).map(|_| {
        let start = Instant::now();
        length = api.expect("GET", path, &Value::Null)?.len();
        Ok(start.elapsed().as_secs_f64() * 1e3)
    });
    Ok((times.collect::<Result<_>>()?, length))
}

fn scrapes(site: &Site) -> Result<Vec<Figure>> {
    let (times, length) = timed(site, "/metrics")?;
    let (listed, _) = timed(site, "/v1/peers")?;
    Ok(vec![
        figure("scrape", "a scrape", "ms", &times).bar(50.0, 10.0),
        figure("scrape_size", "its text", "MB", &[length as f64 / 1e6]),
        figure("list", "all peers listed", "ms", &listed),
    ])
}

/// From a change of the route to the first packet that goes the new way.
fn followed(site: &Site) -> Result<Figure> {
    let target = json!({ "peer": "peer0" });
    site.api()?.expect("PUT", &format!("/v1/fdb/s0/{}", mac_text(FAR)), &target)?;
    let sender = Sender::new(&site.host, "eth0")?;
    let frame = marked(FAR, [0x02, 0, 0, 0, 0xbb, 0x01], "which way");
    let mut times = Vec::new();
    for turn in 0..TURNS {
        let (gateway, mac) = (["10.0.0.254", "10.0.0.253"][turn % 2], GATEWAYS[(turn + 1) % 2]);
        let capture = Capture::start_where(&site.core, "eth0", move |bytes| {
            bytes.starts_with(&mac) && Gre::parse(bytes).is_some()
        })?;
        site.netns.ip(&format!("route replace 10.64.0.0/16 via {gateway}"))?;
        let changed = Instant::now();
        let first = loop {
            ensure!(changed.elapsed() < LIMIT, "packets do not go the new way");
            sender.send(&frame)?;
            if let Some(packet) = capture.frames().first() {
                break packet.at;
            }
            thread::sleep(Duration::from_micros(500));
        };
        times.push(first.saturating_duration_since(changed).as_secs_f64() * 1e3);
        thread::sleep(Duration::from_millis(100));
    }
    Ok(figure("followed", "a new route in the first packet", "ms", &times).bar(100.0, 50.0))
}

/// From the first frame of an address to the daemon's word that it is known.
fn learning(site: &Site) -> Result<Figure> {
    let mut events = site.api()?.stream("/v1/events")?;
    let sender = Sender::new(&site.host, "eth0")?;
    let mut times = Vec::new();
    for number in 0..TIMED {
        let mac = address(0x10, number);
        // To one peer: copies for hundreds would be made first, in the sender's time.
        let frame = marked(FAR, mac, "first");
        let start = Instant::now();
        sender.send(&frame)?;
        let text = mac_text(mac);
        let mut line = String::new();
        while !(line.contains("fdb_learned") && line.contains(&text)) {
            ensure!(start.elapsed() < LIMIT, "{text} is not learned");
            line.clear();
            ensure!(events.read_line(&mut line)? > 0, "the events end");
        }
        times.push(start.elapsed().as_secs_f64() * 1e3);
        thread::sleep(Duration::from_millis(2));
    }
    let title = "an unknown address learned after its first frame";
    Ok(Figure { decimals: 3, ..figure("learning", title, "ms", &times).bar(1.0, 0.2) })
}

/// Many addresses at once, each said again until it is known.
fn many_addresses(site: &Site, addresses: u32) -> Result<Figure> {
    let sender = Sender::new(&site.host, "eth0")?;
    let before = site.status("fdb_entries")?;
    let wanted = before + u64::from(addresses);
    // Addresses are reported slower than they can be sent: so many a second.
    const PACE: u32 = 8_000;
    let start = Instant::now();
    let mut round = 0;
    while site.status("fdb_entries")? < wanted {
        ensure!(start.elapsed() < LIMIT, "{} of {wanted} addresses known", site.status("fdb_entries")?);
        let unknown = if round == 0 { (0..addresses).collect() } else { unknown(site, addresses)? };
        let begun = Instant::now();
        for (count, number) in unknown.iter().enumerate() {
            sender.send(&marked(FAR, address(0x20, *number), "many"))?;
            let due = Duration::from_secs_f64(count as f64 / f64::from(PACE));
            if count % 64 == 0 {
                thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        }
        round += 1;
        thread::sleep(Duration::from_millis(50));
    }
    let title = format!("{addresses} addresses learned, sent at {PACE} a second");
    Ok(figure("addresses", title, "s", &[start.elapsed().as_secs_f64()]))
}

/// Which of the addresses are not known.
fn unknown(site: &Site, addresses: u32) -> Result<Vec<u32>> {
    let entries = site.api()?.expect("GET", "/v1/fdb?segment=s0", &Value::Null)?;
    let entries: Vec<Value> = serde_json::from_slice(&entries)?;
    let known: std::collections::HashSet<&str> =
        entries.iter().filter_map(|entry| entry["mac"].as_str()).collect();
    Ok((0..addresses).filter(|number| !known.contains(mac_text(address(0x20, *number)).as_str())).collect())
}

/// One of many addresses.
fn address(kind: u8, number: u32) -> Mac {
    let [_, a, b, c] = number.to_be_bytes();
    [0x02, 0, kind, a, b, c]
}

/// A connection to the API that is used again and again.
struct Api(BufReader<UnixStream>);

impl Api {
    fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self(BufReader::with_capacity(256 * 1024, stream)))
    }

    fn send(&mut self, method: &str, path: &str, body: &Value) -> Result<()> {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: mgre\r\nContent-Length: {}\r\n\r\n", body.len())
                .into_bytes();
        request.extend(body);
        Ok(self.0.get_mut().write_all(&request)?)
    }

    /// The status and the lines of the head.
    fn head(&mut self) -> Result<(String, Vec<String>)> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the connection ends");
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_ascii_lowercase()),
            }
        }
        let status = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
        Ok((status, lines))
    }

    /// The body of the answer to a request that is to succeed.
    fn expect(&mut self, method: &str, path: &str, body: &Value) -> Result<Vec<u8>> {
        self.send(method, path, body)?;
        let (status, head) = self.head()?;
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.with_context(|| format!("{method} {path}: no length"))?.parse()?;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        ensure!(status.starts_with('2'), "{method} {path}: {status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// The body of an answer that does not end.
    fn stream(mut self, path: &str) -> Result<BufReader<UnixStream>> {
        self.send("GET", path, &Value::Null)?;
        let (status, _) = self.head()?;
        ensure!(status == "200", "{path}: {status}");
        Ok(self.0)
    }
}
