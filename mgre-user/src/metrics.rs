//! The Prometheus text (exposition format 0.0.4) of a [`MetricsSnapshot`].
//!
//! Every series of everything that exists is there from the start, at zero. A
//! MAC address is never a label.

use std::fmt::{Display, Write};

use mgre_common::counters::Drops;
use mgre_common::reason::{Direction, DropReason};

use crate::api::messages::{AdjacencyMetrics, MetricsSnapshot, PeerMetrics, PortMetrics, TrafficSum};

#[cfg(test)]
mod tests;

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A label: its name and value.
type Label<'a> = (&'static str, &'a str);

/// The four numbers of a [`TrafficSum`]: middle of a series' name, help, value.
type TrafficNumber = (&'static str, &'static str, fn(&TrafficSum) -> u64);

const PEER_TRAFFIC: [TrafficNumber; 4] = [
    ("receive_packets", "Frames received from the peer.", |sum| sum.receive_packets),
    ("receive_bytes", "Bytes of inner frames received from the peer.", |sum| sum.receive_bytes),
    ("transmit_packets", "Frames sent to the peer.", |sum| sum.transmit_packets),
    ("transmit_bytes", "Bytes of inner frames sent to the peer.", |sum| sum.transmit_bytes),
];

const PORT_TRAFFIC: [TrafficNumber; 4] = [
    ("receive_packets", "Frames taken in from the port.", |sum| sum.receive_packets),
    ("receive_bytes", "Bytes of frames taken in from the port.", |sum| sum.receive_bytes),
    ("transmit_packets", "Frames delivered out of the port.", |sum| sum.transmit_packets),
    ("transmit_bytes", "Bytes of frames delivered out of the port.", |sum| sum.transmit_bytes),
];

/// Writes all series.
pub fn render(snapshot: &MetricsSnapshot) -> String {
    let mut out = Text::default();
    peers(&mut out, &snapshot.peers);
    ports(&mut out, &snapshot.ports);
    out.family(
        "mgre_drops_total",
        Kind::Counter,
        "Frames dropped that belong to no peer and no port, by reason.",
    );
    out.drops("mgre_drops_total", &[], &snapshot.drops);
    segments(&mut out, snapshot);
    instance(&mut out, snapshot);
    out.0
}

fn peers(out: &mut Text, peers: &[PeerMetrics]) {
    let adjacencies =
        || peers.iter().flat_map(|peer| peer.adjacencies.iter().map(move |adjacency| (peer, adjacency)));
    for (middle, help, value) in PEER_TRAFFIC {
        let name = format!("mgre_peer_{middle}_total");
        out.family(&name, Kind::Counter, help);
        for (peer, adjacency) in adjacencies() {
            out.sample(&name, &adjacency_labels(peer, adjacency), value(&adjacency.traffic));
        }
    }
    out.family(
        "mgre_peer_drops_total",
        Kind::Counter,
        "Frames from or to the peer that were dropped, by reason.",
    );
    for (peer, adjacency) in adjacencies() {
        out.drops("mgre_peer_drops_total", &adjacency_labels(peer, adjacency), &adjacency.drops);
    }
    out.family("mgre_peer_mtu_bytes", Kind::Gauge, "Largest inner packet to the peer; 0 if not known yet.");
    for (peer, adjacency) in adjacencies() {
        out.sample("mgre_peer_mtu_bytes", &adjacency_labels(peer, adjacency), adjacency.mtu_bytes);
    }
    out.family("mgre_peer_info", Kind::Gauge, "The peer's endpoint as configured.");
    for peer in peers {
        out.sample("mgre_peer_info", &[("peer", &peer.peer), ("remote", &peer.remote)], 1);
    }
    out.family("mgre_peer_up", Kind::Gauge, "Whether the peer's endpoint, route and next hop are known.");
    for peer in peers {
        out.sample("mgre_peer_up", &[("peer", &peer.peer)], u8::from(peer.up));
    }
    let name = "mgre_peer_last_seen_timestamp_seconds";
    out.family(name, Kind::Gauge, "When a frame was last received from the peer; 0 for never.");
    for peer in peers {
        out.sample(name, &[("peer", &peer.peer)], peer.last_seen_timestamp_seconds.unwrap_or(0.0));
    }
}

fn adjacency_labels<'a>(peer: &'a PeerMetrics, adjacency: &'a AdjacencyMetrics) -> [Label<'a>; 2] {
    [("peer", &peer.peer), ("segment", &adjacency.segment)]
}

fn ports(out: &mut Text, ports: &[PortMetrics]) {
    fn labels(port: &PortMetrics) -> [Label<'_>; 2] {
        [("port", &port.port), ("segment", &port.segment)]
    }
    for (middle, help, value) in PORT_TRAFFIC {
        let name = format!("mgre_port_{middle}_total");
        out.family(&name, Kind::Counter, help);
        for port in ports {
            out.sample(&name, &labels(port), value(&port.traffic));
        }
    }
    out.family(
        "mgre_port_drops_total",
        Kind::Counter,
        "Frames from or to the port that were dropped, by reason.",
    );
    for port in ports {
        out.drops("mgre_port_drops_total", &labels(port), &port.drops);
    }
    out.family("mgre_port_up", Kind::Gauge, "Whether the port's interface is there, up, and attached.");
    for port in ports {
        out.sample("mgre_port_up", &labels(port), u8::from(port.up));
    }
}

fn segments(out: &mut Text, snapshot: &MetricsSnapshot) {
    out.family("mgre_fdb_entries", Kind::Gauge, "FDB entries, by how they came to be.");
    for segment in &snapshot.segments {
        let types =
            [("static", segment.fdb_static), ("learned", segment.fdb_learned), ("local", segment.fdb_local)];
        for (kind, count) in types {
            out.sample("mgre_fdb_entries", &[("segment", &segment.segment), ("type", kind)], count);
        }
    }
    out.family("mgre_fdb_moves_total", Kind::Counter, "Addresses that were seen elsewhere and followed.");
    for segment in &snapshot.segments {
        out.sample("mgre_fdb_moves_total", &[("segment", &segment.segment)], segment.fdb_moves);
    }
    out.family("mgre_flood_copies_total", Kind::Counter, "Copies made of flooded frames.");
    for segment in &snapshot.segments {
        out.sample("mgre_flood_copies_total", &[("segment", &segment.segment)], segment.flood_copies);
    }
}

fn instance(out: &mut Text, snapshot: &MetricsSnapshot) {
    out.family("mgre_fdb_capacity", Kind::Gauge, "FDB entries that there is room for.");
    out.sample("mgre_fdb_capacity", &[], snapshot.fdb_capacity);
    out.family("mgre_fdb_events_total", Kind::Counter, "Learn events that the daemon has handled.");
    out.sample("mgre_fdb_events_total", &[], snapshot.fdb_events);
    let lost = "Learn events that were lost: bursts beyond the limit, or a full ring.";
    out.family("mgre_fdb_events_lost_total", Kind::Counter, lost);
    out.sample("mgre_fdb_events_lost_total", &[], snapshot.fdb_events_lost);
    out.family("mgre_interface_mode", Kind::Gauge, "What each interface is attached to.");
    for interface in &snapshot.interfaces {
        let labels: [Label<'_>; 3] =
            [("interface", &interface.interface), ("hook", &interface.hook), ("mode", &interface.mode)];
        out.sample("mgre_interface_mode", &labels, 1);
    }
    out.family("mgre_build_info", Kind::Gauge, "The daemon's version.");
    out.sample("mgre_build_info", &[("version", &snapshot.version)], 1);
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

/// The text so far.
#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a family of series.
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // In a help text only backslash and line feed are escaped.
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// One sample of the family that was begun last.
    fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl Display) {
        self.0.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            self.0.push(if i == 0 { '{' } else { ',' });
            self.0.push_str(label);
            self.0.push_str("=\"");
            self.escaped(text);
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        self.line(format_args!(" {value}"));
    }

    /// A sample for each direction and reason.
    fn drops(&mut self, name: &str, labels: &[Label<'_>], drops: &Drops) {
        let mut all = labels.to_vec();
        for direction in Direction::ALL {
            for reason in DropReason::ALL {
                all.truncate(labels.len());
                all.extend([("direction", direction.name()), ("reason", reason.name())]);
                self.sample(name, &all, drops.get(direction, *reason));
            }
        }
    }

    fn escaped(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        self.0.write_fmt(text).and_then(|()| self.0.write_char('\n')).unwrap_or_default();
    }
}
