//! Counters as the API and the metrics say them.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mgre_common::counters::{Drops, Traffic};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::Target;

use super::engine::Engine;
use crate::api::messages::{
    AdjacencyMetrics, AdjacencyView, InterfaceMetrics, MetricsSnapshot, PeerMetrics, PortMetrics, PortState,
    SegmentMetrics, StatsRow, StatsView, TrafficRow, TrafficSum,
};
use crate::model::Peer;
use crate::plan::{Hook, PeerStatus};
use mgre_common::wire::ETHERNET_LEN;

/// Who a row of counters belongs to.
#[derive(Clone, Copy, Default)]
struct Owner<'a> {
    peer: Option<&'a str>,
    port: Option<&'a str>,
    segment: Option<&'a str>,
}

impl Engine {
    /// Every port and every adjacency, and nobody's row.
    fn owners(&self) -> Vec<(Target, Owner<'_>)> {
        let nobody = (Target::NONE, Owner::default());
        let ports = self.state.ports.iter().map(|(name, port)| {
            let owner = Owner { port: Some(name), segment: Some(&port.segment), ..Owner::default() };
            (Target::port(port.id), owner)
        });
        let adjacencies = self.state.adjacencies().map(|(id, peer, _, segment)| {
            let owner = Owner { peer: Some(peer), segment: Some(segment), ..Owner::default() };
            (Target::adjacency(id), owner)
        });
        std::iter::once(nobody).chain(ports).chain(adjacencies).collect()
    }

    pub(super) fn stats_view(&self) -> StatsView {
        let mut view = StatsView::default();
        for (target, owner) in self.owners() {
            let drops = self.datapath.counters().drops(target);
            view.drops.extend(drop_rows(&drops, owner));
            if let Some(segment) = owner.segment {
                let traffic = self.datapath.counters().traffic(target);
                view.traffic.push(TrafficRow {
                    peer: owner.peer.map(str::to_owned),
                    port: owner.port.map(str::to_owned),
                    segment: segment.to_owned(),
                    receive_packets: traffic.receive_packets,
                    receive_bytes: traffic.receive_bytes,
                    transmit_packets: traffic.transmit_packets,
                    transmit_bytes: traffic.transmit_bytes,
                    drops: drops.packets.iter().flatten().sum(),
                });
            }
        }
        view
    }

    /// Seconds since a frame was last received.
    fn last_seen(&self, traffic: &Traffic) -> Option<u64> {
        (traffic.receive_packets > 0)
            .then(|| u64::from(self.datapath.now()).saturating_sub(traffic.last_receive_seconds))
    }

    /// The largest inner packet that goes to an adjacency; none while it is not resolved.
    fn adjacency_mtu(&self, id: u32) -> Option<u32> {
        let template = &self.plan.adjacencies.get(&id)?.template;
        let mtu = template.max_frame.saturating_sub(ETHERNET_LEN as u32);
        (template.ifindex != 0).then_some(mtu)
    }

    pub(super) fn adjacency_view(
        &self,
        segment: &str,
        id: u32,
        entries: &HashMap<Target, u64>,
    ) -> AdjacencyView {
        let target = Target::adjacency(id);
        let traffic = self.datapath.counters().traffic(target);
        AdjacencyView {
            segment: segment.to_owned(),
            rx_packets: traffic.receive_packets,
            rx_bytes: traffic.receive_bytes,
            tx_packets: traffic.transmit_packets,
            tx_bytes: traffic.transmit_bytes,
            drops: self.drop_count(target),
            last_seen_seconds: self.last_seen(&traffic),
            mtu: self.adjacency_mtu(id),
            fdb_entries: entries.get(&target).copied().unwrap_or(0),
        }
    }

    /// Learn events that did not reach the daemon.
    pub(super) fn events_lost(&self) -> u64 {
        let counters = self.datapath.counters();
        self.owners().into_iter().map(|(target, _)| counters.traffic(target).reports_lost).sum()
    }

    pub(super) fn metrics(&self) -> MetricsSnapshot {
        let counters = self.datapath.counters();
        MetricsSnapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peers: self.state.peers.iter().map(|(name, peer)| self.peer_metrics(name, peer)).collect(),
            ports: self
                .state
                .ports
                .iter()
                .map(|(name, port)| PortMetrics {
                    port: name.clone(),
                    segment: port.segment.clone(),
                    up: self.port_state(name, port).0 == PortState::Up,
                    traffic: sum(&counters.traffic(Target::port(port.id))),
                    drops: counters.drops(Target::port(port.id)),
                })
                .collect(),
            segments: self.segment_metrics(),
            interfaces: self.interface_metrics(),
            drops: counters.drops(Target::NONE),
            fdb_capacity: u64::from(self.datapath.fdb.capacity()),
            fdb_events: self.learn_events,
            fdb_events_lost: self.events_lost(),
        }
    }

    fn peer_metrics(&self, name: &str, peer: &Peer) -> PeerMetrics {
        let counters = self.datapath.counters();
        let adjacency = |(segment, id): (&String, &u32)| AdjacencyMetrics {
            segment: segment.clone(),
            traffic: sum(&counters.traffic(Target::adjacency(*id))),
            drops: counters.drops(Target::adjacency(*id)),
            mtu_bytes: self.adjacency_mtu(*id).unwrap_or(0),
        };
        let seen = |id: &u32| self.last_seen(&counters.traffic(Target::adjacency(*id)));
        let status = self.compiled.peers.get(name).map(|outcome| &outcome.status);
        PeerMetrics {
            peer: name.to_owned(),
            remote: peer.remote.clone(),
            up: matches!(status, Some(PeerStatus::Up(_))),
            last_seen_timestamp_seconds: peer.segments.values().filter_map(seen).min().map(timestamp),
            adjacencies: peer.segments.iter().map(adjacency).collect(),
        }
    }

    fn segment_metrics(&self) -> Vec<SegmentMetrics> {
        let mut by_id: HashMap<u16, SegmentMetrics> = HashMap::new();
        for entry in self.datapath.fdb.iter() {
            let metrics = by_id.entry(entry.key.segment()).or_default();
            match (entry.seen, self.plan.fixed.get(&entry.key)) {
                (Some(_), _) => metrics.fdb_learned += 1,
                (None, Some(fixed)) if fixed.local => metrics.fdb_local += 1,
                (None, _) => metrics.fdb_static += 1,
            }
        }
        let metrics = |(name, segment): (&String, &crate::model::Segment)| SegmentMetrics {
            segment: name.clone(),
            fdb_moves: self.moves.get(&segment.id).copied().unwrap_or(0),
            flood_copies: self.datapath.counters().segment(segment.id).flood_copies,
            ..by_id.remove(&segment.id).unwrap_or_default()
        };
        self.state.segments.iter().map(metrics).collect()
    }

    fn interface_metrics(&self) -> Vec<InterfaceMetrics> {
        let underlays =
            self.state.underlays.iter().map(|(name, underlay)| (name, Hook::Underlay, underlay.mode));
        let ports = self.state.ports.iter().map(|(name, port)| {
            let hook = if port.created.is_some() { Hook::HostPort } else { Hook::Port };
            (name, hook, port.mode)
        });
        underlays
            .chain(ports)
            .filter_map(|(name, hook, mode)| {
                let hook = self.hook_of(name, hook).0?;
                Some(InterfaceMetrics { interface: name.clone(), hook, mode: mode.to_string() })
            })
            .collect()
    }
}

fn drop_rows<'a>(drops: &'a Drops, owner: Owner<'a>) -> impl Iterator<Item = StatsRow> + 'a {
    let pairs = Direction::ALL
        .into_iter()
        .flat_map(|direction| DropReason::ALL.iter().map(move |reason| (direction, *reason)));
    pairs.filter_map(move |(direction, reason)| {
        let packets = drops.get(direction, reason);
        (packets > 0).then(|| StatsRow {
            reason: reason.name().to_owned(),
            direction: direction.name().to_owned(),
            peer: owner.peer.map(str::to_owned),
            port: owner.port.map(str::to_owned),
            segment: owner.segment.map(str::to_owned),
            packets,
        })
    })
}

const fn sum(traffic: &Traffic) -> TrafficSum {
    TrafficSum {
        receive_packets: traffic.receive_packets,
        receive_bytes: traffic.receive_bytes,
        transmit_packets: traffic.transmit_packets,
        transmit_bytes: traffic.transmit_bytes,
    }
}

/// So many seconds ago, in seconds since 1970-01-01 UTC.
fn timestamp(seconds_ago: u64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(seconds_ago)).as_secs_f64()
}
