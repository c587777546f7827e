//! The Prometheus text (exposition format 0.0.4) of [`Numbers`].
//!
//! Every series of everything that exists is there from the start, at zero, but for one: of adjacencies beyond the
//! first [`ZEROS_MOST`], by their ids, a reason for which none of their frames was dropped is left out. There are some
//! fifty of them for each, half a million lines for ten thousand. A MAC address is never a label.

use std::fmt::Display;

use mgre_common::counters::{Drops, SegmentTraffic};
use mgre_common::reason::{Direction, DropReason};

use crate::slow::counters::{Counters, Happening};

#[cfg(test)]
mod tests;

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Of adjacencies with this id or a higher one, drop counters that are zero are left out.
pub const ZEROS_MOST: u32 = 1024;

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

/// The same for one of a [`SegmentTraffic`].
type FloodNumber = (&'static str, &'static str, fn(&SegmentTraffic) -> u64);

const FLOOD: [FloodNumber; 3] = [
    ("frames", "Frames that were for all of a segment, or for nobody known.", |flood| flood.flood_frames),
    ("copies", "Copies made of flooded frames.", |flood| flood.flood_copies),
    ("lost", "Copies that could not be made; each is counted as a drop as well.", |flood| flood.flood_lost),
];

/// Traffic of a port or an adjacency, summed over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficSum {
    /// Frames received from the peer, or taken in from the port.
    pub receive_packets: u64,
    /// Bytes of them.
    pub receive_bytes: u64,
    /// Frames sent to the peer, or out of the port.
    pub transmit_packets: u64,
    /// Bytes of them.
    pub transmit_bytes: u64,
}

/// All numbers of an instance at one time.
#[derive(Clone, Debug, Default)]
pub struct Numbers<'a> {
    /// The daemon's version.
    pub version: &'a str,
    /// Every peer.
    pub peers: Vec<PeerNumbers<'a>>,
    /// Every peer in every segment, in the order of the peers.
    pub adjacencies: Vec<AdjacencyNumbers<'a>>,
    /// Every port.
    pub ports: Vec<PortNumbers>,
    /// Every segment.
    pub segments: Vec<SegmentNumbers>,
    /// Every underlay and port that a program is attached to.
    pub interfaces: Vec<InterfaceNumbers>,
    /// Every underlay by its interface, and whether all its addresses can be used.
    pub underlays: Vec<(String, bool)>,
    /// Drops that belong to no peer and no port, summed over shards.
    pub drops: Drops,
    /// How many FDB entries there is room for.
    pub fdb_capacity: u64,
    /// Learn events that the daemon has handled.
    pub fdb_events: u64,
    /// Learn events that were lost.
    pub fdb_events_lost: u64,
    /// Times that notifications of the kernel were lost.
    pub netlink_losses: u64,
    /// What the slow path did.
    pub slow_path: Counters,
}

/// Numbers of a peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeerNumbers<'a> {
    /// Its name.
    pub peer: &'a str,
    /// Its endpoint as given.
    pub remote: &'a str,
    /// Whether it can be reached.
    pub up: bool,
    /// When a frame was last received from it, in seconds since 1970-01-01 UTC; none for never.
    pub last_seen_timestamp_seconds: Option<f64>,
}

/// Numbers of a peer in a segment.
#[derive(Clone, Debug, PartialEq)]
pub struct AdjacencyNumbers<'a> {
    /// The peer.
    pub peer: &'a str,
    /// The segment.
    pub segment: &'a str,
    /// Its traffic.
    pub traffic: TrafficSum,
    /// Its drops, summed over shards; none if there was none.
    pub drops: Option<Box<Drops>>,
    /// Whether those that are zero are shown, too.
    pub zeros: bool,
    /// The largest inner packet in bytes; zero if not known.
    pub mtu_bytes: u32,
}

/// Numbers of a port.
#[derive(Clone, Debug, PartialEq)]
pub struct PortNumbers {
    /// Its interface.
    pub port: String,
    /// Its segment.
    pub segment: String,
    /// Whether it works.
    pub up: bool,
    /// Its traffic.
    pub traffic: TrafficSum,
    /// Its drops, summed over shards.
    pub drops: Drops,
}

/// Numbers of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentNumbers {
    /// Its name.
    pub segment: String,
    /// Static FDB entries.
    pub fdb_static: u64,
    /// Learned FDB entries.
    pub fdb_learned: u64,
    /// FDB entries of interfaces that the daemon made.
    pub fdb_local: u64,
    /// Addresses that were seen elsewhere and followed.
    pub fdb_moves: u64,
    /// Addresses that are held, because they are seen in two places by turns.
    pub fdb_held: u64,
    /// How often an address was held.
    pub fdb_holds: u64,
    /// Flooded frames, their copies, and copies that could not be made; questions answered.
    pub flood: SegmentTraffic,
    /// Addresses of hosts that are known, where ARP and ND are suppressed.
    pub neighbors: u64,
    /// How often an address was found to be two hosts'.
    pub neighbor_duplicates: u64,
}

/// How a program is attached to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceNumbers {
    /// The interface.
    pub interface: String,
    /// What it is attached to, as `port show` says it.
    pub hook: String,
    /// The mode that was asked for.
    pub mode: String,
}

/// Writes all series.
pub fn render(numbers: &Numbers<'_>) -> String {
    // Names and labels of an adjacency's series take some 70 bytes, and there are eight of them.
    let mut out = Text(String::with_capacity(64 * 1024 + 640 * numbers.adjacencies.len()));
    peers(&mut out, numbers);
    ports(&mut out, &numbers.ports);
    out.family(
        "mgre_drops_total",
        Kind::Counter,
        "Frames dropped that belong to no peer and no port, by reason.",
    );
    out.drops("mgre_drops_total", &Labels::default(), &numbers.drops, true);
    segments(&mut out, numbers);
    instance(&mut out, numbers);
    out.0
}

fn peers(out: &mut Text, numbers: &Numbers<'_>) {
    let labels = |adjacency: &AdjacencyNumbers<'_>| {
        Labels::new(&[("peer", adjacency.peer), ("segment", adjacency.segment)])
    };
    let adjacencies: Vec<_> =
        numbers.adjacencies.iter().map(|adjacency| (labels(adjacency), adjacency)).collect();
    for (middle, help, value) in PEER_TRAFFIC {
        let name = format!("mgre_peer_{middle}_total");
        out.family(&name, Kind::Counter, help);
        for (labels, adjacency) in &adjacencies {
            out.whole(&name, labels, value(&adjacency.traffic));
        }
    }
    out.family(
        "mgre_peer_drops_total",
        Kind::Counter,
        "Frames from or to the peer that were dropped, by reason.",
    );
    let none = Drops::default();
    for (labels, adjacency) in &adjacencies {
        match &adjacency.drops {
            Some(drops) => out.drops("mgre_peer_drops_total", labels, drops, adjacency.zeros),
            None if adjacency.zeros => out.drops("mgre_peer_drops_total", labels, &none, true),
            None => {}
        }
    }
    out.family("mgre_peer_mtu_bytes", Kind::Gauge, "Largest inner packet to the peer; 0 if not known yet.");
    for (labels, adjacency) in &adjacencies {
        out.whole("mgre_peer_mtu_bytes", labels, adjacency.mtu_bytes.into());
    }
    drop(adjacencies);
    out.family("mgre_peer_info", Kind::Gauge, "The peer's endpoint as configured.");
    for peer in &numbers.peers {
        out.whole("mgre_peer_info", &Labels::new(&[("peer", peer.peer), ("remote", peer.remote)]), 1);
    }
    let labels: Vec<_> =
        numbers.peers.iter().map(|peer| (Labels::new(&[("peer", peer.peer)]), peer)).collect();
    out.family("mgre_peer_up", Kind::Gauge, "Whether the peer's endpoint, route and next hop are known.");
    for (labels, peer) in &labels {
        out.whole("mgre_peer_up", labels, peer.up.into());
    }
    let name = "mgre_peer_last_seen_timestamp_seconds";
    out.family(name, Kind::Gauge, "When a frame was last received from the peer; 0 for never.");
    for (labels, peer) in &labels {
        match peer.last_seen_timestamp_seconds {
            Some(seconds) => out.sample(name, labels, seconds),
            None => out.whole(name, labels, 0),
        }
    }
}

fn ports(out: &mut Text, ports: &[PortNumbers]) {
    fn labels(port: &PortNumbers) -> Labels {
        Labels::new(&[("port", &port.port), ("segment", &port.segment)])
    }
    for (middle, help, value) in PORT_TRAFFIC {
        let name = format!("mgre_port_{middle}_total");
        out.family(&name, Kind::Counter, help);
        for port in ports {
            out.whole(&name, &labels(port), value(&port.traffic));
        }
    }
    out.family(
        "mgre_port_drops_total",
        Kind::Counter,
        "Frames from or to the port that were dropped, by reason.",
    );
    for port in ports {
        out.drops("mgre_port_drops_total", &labels(port), &port.drops, true);
    }
    out.family("mgre_port_up", Kind::Gauge, "Whether the port's interface is there, up, and attached.");
    for port in ports {
        out.whole("mgre_port_up", &labels(port), port.up.into());
    }
}

fn segments(out: &mut Text, numbers: &Numbers<'_>) {
    out.family("mgre_fdb_entries", Kind::Gauge, "FDB entries, by how they came to be.");
    for segment in &numbers.segments {
        let types =
            [("static", segment.fdb_static), ("learned", segment.fdb_learned), ("local", segment.fdb_local)];
        for (kind, count) in types {
            let labels = Labels::new(&[("segment", &segment.segment), ("type", kind)]);
            out.whole("mgre_fdb_entries", &labels, count);
        }
    }
    let labels = |segment: &SegmentNumbers| Labels::new(&[("segment", &segment.segment)]);
    out.family("mgre_fdb_moves_total", Kind::Counter, "Addresses that were seen elsewhere and followed.");
    for segment in &numbers.segments {
        out.whole("mgre_fdb_moves_total", &labels(segment), segment.fdb_moves);
    }
    out.family("mgre_fdb_held", Kind::Gauge, "Addresses that are held: seen in two places by turns.");
    for segment in &numbers.segments {
        out.whole("mgre_fdb_held", &labels(segment), segment.fdb_held);
    }
    out.family("mgre_fdb_holds_total", Kind::Counter, "How often an address was held.");
    for segment in &numbers.segments {
        out.whole("mgre_fdb_holds_total", &labels(segment), segment.fdb_holds);
    }
    for (middle, help, value) in FLOOD {
        let name = format!("mgre_flood_{middle}_total");
        out.family(&name, Kind::Counter, help);
        for segment in &numbers.segments {
            out.whole(&name, &labels(segment), value(&segment.flood));
        }
    }
    neighbors(out, &numbers.segments);
}

fn neighbors(out: &mut Text, segments: &[SegmentNumbers]) {
    let labels = |segment: &SegmentNumbers| Labels::new(&[("segment", &segment.segment)]);
    out.family(
        "mgre_neighbor_entries",
        Kind::Gauge,
        "Hosts' addresses that are known, where ARP and ND are suppressed.",
    );
    for segment in segments {
        out.whole("mgre_neighbor_entries", &labels(segment), segment.neighbors);
    }
    let name = "mgre_neighbor_replies_total";
    out.family(name, Kind::Counter, "Questions for hosts' addresses that were answered, not flooded.");
    for segment in segments {
        for (protocol, count) in [("arp", segment.flood.arp_replies), ("nd", segment.flood.nd_replies)] {
            let labels = Labels::new(&[("segment", &segment.segment), ("protocol", protocol)]);
            out.whole(name, &labels, count);
        }
    }
    let name = "mgre_neighbor_duplicates_total";
    out.family(name, Kind::Counter, "How often two hosts were found to have one address.");
    for segment in segments {
        out.whole(name, &labels(segment), segment.neighbor_duplicates);
    }
}

fn instance(out: &mut Text, numbers: &Numbers<'_>) {
    let none = Labels::default();
    out.family("mgre_fdb_capacity", Kind::Gauge, "FDB entries that there is room for.");
    out.whole("mgre_fdb_capacity", &none, numbers.fdb_capacity);
    out.family("mgre_fdb_events_total", Kind::Counter, "Learn events that the daemon has handled.");
    out.whole("mgre_fdb_events_total", &none, numbers.fdb_events);
    let lost = "Learn events that were lost: bursts beyond the limit, or a full ring.";
    out.family("mgre_fdb_events_lost_total", Kind::Counter, lost);
    out.whole("mgre_fdb_events_lost_total", &none, numbers.fdb_events_lost);
    let losses = "Times that notifications of the kernel were lost, and everything was looked at again.";
    out.family("mgre_netlink_losses_total", Kind::Counter, losses);
    out.whole("mgre_netlink_losses_total", &none, numbers.netlink_losses);
    let name = "mgre_slow_path_packets_total";
    out.family(name, Kind::Counter, "What happened to packets that the datapath leaves to the daemon.");
    for happening in Happening::ALL {
        let labels = Labels::new(&[("event", happening.name())]);
        out.whole(name, &labels, numbers.slow_path.get(happening));
    }
    out.family("mgre_interface_mode", Kind::Gauge, "What each interface is attached to.");
    for interface in &numbers.interfaces {
        let labels = Labels::new(&[
            ("interface", &interface.interface),
            ("hook", &interface.hook),
            ("mode", &interface.mode),
        ]);
        out.whole("mgre_interface_mode", &labels, 1);
    }
    let help = "Whether the underlay's interface is there, up and attached, and has its addresses.";
    out.family("mgre_underlay_up", Kind::Gauge, help);
    for (interface, up) in &numbers.underlays {
        out.whole("mgre_underlay_up", &Labels::new(&[("interface", interface)]), (*up).into());
    }
    out.family("mgre_build_info", Kind::Gauge, "The daemon's version.");
    out.whole("mgre_build_info", &Labels::new(&[("version", numbers.version)]), 1);
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

/// Labels as they are written, without the braces.
#[derive(Default)]
struct Labels(String);

impl Labels {
    fn new(labels: &[Label<'_>]) -> Self {
        let mut this = Self(String::with_capacity(64));
        labels.iter().for_each(|(name, text)| this.push(name, text));
        this
    }

    fn push(&mut self, name: &str, text: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(name);
        self.0.push_str("=\"");
        let mut rest = text;
        while let Some(index) = rest.find(['\\', '"', '\n']) {
            self.0.push_str(&rest[..index]);
            self.0.push_str(match rest.as_bytes()[index] {
                b'\\' => "\\\\",
                b'"' => "\\\"",
                _ => "\\n",
            });
            rest = &rest[index + 1..];
        }
        self.0.push_str(rest);
        self.0.push('"');
    }
}

/// The text so far.
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
        self.0.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// Begins a sample of the family that was begun last.
    fn series(&mut self, name: &str, labels: &Labels) {
        self.0.push_str(name);
        if !labels.0.is_empty() {
            self.0.push('{');
            self.0.push_str(&labels.0);
            self.0.push('}');
        }
        self.0.push(' ');
    }

    /// A sample that is a whole number.
    fn whole(&mut self, name: &str, labels: &Labels, value: u64) {
        self.series(name, labels);
        self.0.push_str(itoa::Buffer::new().format(value));
        self.0.push('\n');
    }

    /// Another sample.
    fn sample(&mut self, name: &str, labels: &Labels, value: impl Display) {
        self.series(name, labels);
        self.0.push_str(&value.to_string());
        self.0.push('\n');
    }

    /// A sample for each direction and reason; only of those not zero, if `zeros` says so.
    fn drops(&mut self, name: &str, labels: &Labels, drops: &Drops, zeros: bool) {
        for direction in Direction::ALL {
            for reason in DropReason::ALL {
                let count = drops.get(direction, *reason);
                if count == 0 && !zeros {
                    continue;
                }
                let mut all = Labels(labels.0.clone());
                all.push("direction", direction.name());
                all.push("reason", reason.name());
                self.whole(name, &all, count);
            }
        }
    }
}
