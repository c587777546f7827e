//! What was typed, turned into what is to be done.

use std::net::IpAddr;
use std::path::PathBuf;

use hyper::Method;
use serde::Serialize;
use serde_json::{Value, json};

use super::args::{self, Args, Fdb, Neigh, Noun, Peer, Port, Segment, Underlay};
use crate::api::client::{encode, path};
use crate::api::messages::{FdbFilter, NeighborFilter};
use crate::daemon::Options;
use crate::model::{PeerSettings, PortSettings, SegmentSettings};

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Settings {
    /// Be the daemon.
    Daemon(Box<Options>),
    /// Ask the daemon.
    Client {
        /// Which one.
        instance: String,
        /// Where its socket is.
        run_dir: PathBuf,
        /// Whether to print JSON.
        json: bool,
        /// What to ask.
        command: Command,
    },
}

/// What is asked of the daemon.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// A change: one request, nothing to print.
    Change {
        /// The request's method.
        method: Method,
        /// Its path.
        path: String,
        /// Its body.
        body: Value,
    },
    /// Forget learned addresses.
    Flush(FdbFilter),
    /// List underlays.
    Underlays,
    /// List segments.
    Segments,
    /// List ports.
    Ports,
    /// List peers.
    Peers,
    /// List FDB entries.
    Fdb(FdbFilter),
    /// List neighbours.
    Neighbors(NeighborFilter),
    /// Traffic, or drops.
    Stats {
        /// Drops.
        drops: bool,
    },
    /// How the daemon is.
    Status,
    /// Events.
    Monitor,
    /// A configuration.
    Apply {
        /// Where it is; `-` for standard input.
        file: PathBuf,
        /// Only say what would change.
        dry_run: bool,
        /// Remove everything if it is empty.
        allow_empty: bool,
    },
    /// Print the configuration.
    Export,
    /// Remove everything from the kernel.
    Detach {
        /// Where the state is saved, if there is no daemon.
        state_dir: Option<PathBuf>,
        /// Where the bpf file system is mounted.
        bpffs: Option<PathBuf>,
    },
}

impl From<Args> for Settings {
    fn from(Args { global, noun }: Args) -> Self {
        let args::Global { instance, run_dir, json } = global;
        let command = match noun {
            Noun::Daemon(daemon) => return Self::Daemon(Box::new(options(instance, run_dir, daemon))),
            Noun::Underlay(verb) => underlay(verb),
            Noun::Segment(verb) => segment(verb),
            Noun::Port(verb) => port(verb),
            Noun::Peer(verb) => peer(verb),
            Noun::Fdb(verb) => fdb(verb),
            Noun::Neigh(Neigh::Show { segment }) => Command::Neighbors(NeighborFilter { segment }),
            Noun::Stats { drops } => Command::Stats { drops },
            Noun::Status => Command::Status,
            Noun::Monitor => Command::Monitor,
            Noun::Apply { file, dry_run, allow_empty } => Command::Apply { file, dry_run, allow_empty },
            Noun::Export => Command::Export,
            Noun::Detach { state_dir, bpffs } => Command::Detach { state_dir, bpffs },
        };
        Self::Client { instance, run_dir, json, command }
    }
}

fn options(instance: String, run_dir: PathBuf, daemon: args::Daemon) -> Options {
    let args::Daemon { config, metrics, state_dir, bpffs, fdb_entries, adjacencies, tc_attach, verifier_log } =
        daemon;
    let metrics = metrics.0;
    Options {
        instance,
        run_dir,
        state_dir,
        bpffs,
        metrics,
        config,
        fdb_entries,
        adjacencies,
        tc_attach,
        verifier_log,
    }
}

fn change(method: Method, parts: &[&str], body: impl Serialize) -> Command {
    // These bodies are strings, numbers and lists of them, which are always JSON.
    let body = serde_json::to_value(body).unwrap_or_default();
    Command::Change { method, path: path(parts), body }
}

fn delete(parts: &[&str]) -> Command {
    change(Method::DELETE, parts, json!({}))
}

fn underlay(verb: Underlay) -> Command {
    match verb {
        Underlay::Add { interface, locals, settings } => {
            change(Method::PUT, &["v1", "underlays", &interface], underlay_body(&locals, &settings))
        }
        Underlay::Set { interface, locals, settings, force } => {
            let mut path = path(&["v1", "underlays", &interface]);
            if force {
                path += "?force=true";
            }
            Command::Change { method: Method::PATCH, path, body: underlay_body(&locals, &settings) }
        }
        Underlay::Del { interface, local, force } => {
            let mut path = path(&["v1", "underlays", &interface]);
            let local = local.map(|local| format!("local={}", encode(&local.to_string())));
            let options: Vec<String> =
                local.into_iter().chain(force.then(|| "force=true".to_owned())).collect();
            if !options.is_empty() {
                path += &format!("?{}", options.join("&"));
            }
            Command::Change { method: Method::DELETE, path, body: json!({}) }
        }
        Underlay::Show => Command::Underlays,
    }
}

fn underlay_body(locals: &[IpAddr], settings: &args::UnderlaySettings) -> Value {
    let mut body = json!({});
    match locals {
        [] => {}
        [local] => body["local"] = json!(local),
        locals => body["local"] = json!(locals),
    }
    if let Some(mode) = settings.mode {
        body["mode"] = json!(mode);
    }
    if let Some(foreign_gre) = settings.foreign_gre {
        body["foreign_gre"] = json!(foreign_gre);
    }
    body
}

fn segment(verb: Segment) -> Command {
    let (method, name, key, vsid, settings) = match verb {
        Segment::Add { name, key, vsid, settings } => (Method::PUT, name, key, vsid, settings),
        Segment::Set { name, key, vsid, settings } => (Method::PATCH, name, key, vsid, settings),
        Segment::Del { name } => return delete(&["v1", "segments", &name]),
        Segment::Show => return Command::Segments,
    };
    let args::SegmentSettings { mtu, aging, max_macs, hub, clamp_mss, link_local, suppress_neighbors } =
        settings;
    let (key, vsid) = (key.map(|key| key.0), vsid.map(|vsid| vsid.0));
    let settings = SegmentSettings {
        key,
        vsid,
        mtu,
        aging_seconds: aging,
        max_macs,
        hub,
        clamp_mss,
        link_local,
        suppress_neighbors,
    };
    change(method, &["v1", "segments", &name], settings)
}

fn port(verb: Port) -> Command {
    match verb {
        Port::Add { segment, interface, vlan, mode, settings } => {
            let mut body = json!({ "segment": segment, "mode": mode });
            add_storm_limit(&mut body, &settings);
            if let Some(vlan) = vlan {
                body["vlan"] = json!(vlan);
            }
            change(Method::PUT, &["v1", "ports", &interface], body)
        }
        Port::Create { segment, name, addresses, mac, settings } => {
            let mac = mac.map(|mac| mac.to_string());
            let mut body = json!({ "segment": segment, "create": true, "addresses": addresses, "mac": mac });
            add_storm_limit(&mut body, &settings);
            change(Method::PUT, &["v1", "ports", &name], body)
        }
        Port::Set { name, settings } => {
            let settings = PortSettings { storm_limit: settings.storm_limit };
            change(Method::PATCH, &["v1", "ports", &name], settings)
        }
        Port::Del { name } => delete(&["v1", "ports", &name]),
        Port::Show => Command::Ports,
    }
}

fn add_storm_limit(body: &mut Value, settings: &args::PortSettings) {
    if let Some(limit) = settings.storm_limit {
        body["storm_limit"] = json!(limit);
    }
}

fn peer(verb: Peer) -> Command {
    let (method, name, remote, segments, settings) = match verb {
        Peer::Add { name, remote, segments, settings } => {
            (Method::PUT, name, remote, Some(segments), settings)
        }
        Peer::Set { name, remote, segments, settings } => (Method::PATCH, name, remote, segments, settings),
        Peer::Del { name } => return delete(&["v1", "peers", &name]),
        Peer::Show => return Command::Peers,
    };
    let args::PeerSettings { ttl, tos, df, mtu, max_macs, csum, seq, encap, storm_limit } = settings;
    let settings =
        PeerSettings { remote, segments, ttl, tos, df, mtu, max_macs, csum, seq, encap, storm_limit };
    // Args::read sees to it that there is one.
    change(method, &["v1", "peers", &name.unwrap_or_default()], settings)
}

fn fdb(verb: Fdb) -> Command {
    match verb {
        Fdb::Show(filter) => Command::Fdb(filter.into()),
        Fdb::Flush(filter) => Command::Flush(filter.into()),
        Fdb::Add { segment, mac, peer, port } => {
            let body = json!({ "peer": peer, "port": port });
            change(Method::PUT, &["v1", "fdb", &segment, &mac.to_string()], body)
        }
        Fdb::Del { segment, mac } => delete(&["v1", "fdb", &segment, &mac.to_string()]),
    }
}

impl From<args::FdbFilter> for FdbFilter {
    fn from(args::FdbFilter { segment, peer }: args::FdbFilter) -> Self {
        Self { segment, peer }
    }
}
