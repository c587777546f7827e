//! Counters as the API and the metrics say them.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mgre_common::counters::{Drops, Traffic};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::tally::{Pause, segment};
use mgre_common::target::Target;

use super::engine::Engine;
use crate::api::messages::{AdjacencyView, Later, PortState, StatsRow, StatsView, TrafficRow, UnderlayState};
use crate::datapath::counters::Counters;
use crate::datapath::tallies::seconds_ago;
use crate::metrics::{
    AdjacencyNumbers, InterfaceNumbers, Numbers, PeerNumbers, PortNumbers, SegmentNumbers, TrafficSum,
    ZEROS_MOST, render,
};
use crate::model::{Mode, State};
use crate::plan::{Compiled, Hook, PeerStatus, Plan};

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

    pub(super) fn adjacency_view(
        &self,
        segment: &str,
        id: u32,
        given: &HashMap<Target, u64>,
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
            last_seen_seconds: last_seen(&traffic, self.datapath.now(), &self.datapath.tallies.pauses()),
            mtu: adjacency_mtu(&self.plan, id),
            fdb_entries: given.get(&target).copied().unwrap_or(0)
                + u64::from(self.datapath.fdb.learned_from(target)),
        }
    }

    /// Learn events that did not reach the daemon.
    pub(super) fn events_lost(&self) -> u64 {
        let counters = self.datapath.counters();
        let ports = self.state.ports.values().map(|port| Target::port(port.id));
        let adjacencies = self.state.adjacencies().map(|(id, ..)| Target::adjacency(id));
        let all = ports.chain(adjacencies).chain([Target::NONE]);
        all.map(|target| counters.traffic(target).reports_lost).sum()
    }

    /// The text of `/metrics`, to be written by another than the engine.
    pub(super) fn metrics(&self) -> Later<String> {
        let counters = self.datapath.counters();
        let ports = self.state.ports.iter().map(|(name, port)| PortNumbers {
            port: name.clone(),
            segment: port.segment.clone(),
            up: self.port_state(name, port).0 == PortState::Up,
            traffic: sum(&counters.traffic(Target::port(port.id))),
            drops: counters.drops(Target::port(port.id)),
        });
        let numbers = Numbers {
            version: env!("CARGO_PKG_VERSION"),
            ports: ports.collect(),
            segments: self.segment_numbers(),
            interfaces: self.interface_numbers(),
            underlays: self.underlay_numbers(),
            drops: counters.drops(Target::NONE),
            fdb_capacity: u64::from(self.datapath.fdb.capacity()),
            fdb_events: self.datapath.tallies.events(),
            fdb_events_lost: self.events_lost(),
            netlink_losses: self.losses.count(),
            slow_path: self.slow.counters().clone(),
            ..Numbers::default()
        };
        let peers = Peers {
            state: self.state.clone(),
            compiled: self.compiled.clone(),
            counters: counters.clone(),
            now: self.datapath.now(),
            pauses: self.datapath.tallies.pauses(),
        };
        Later::new(move || {
            let (peers, adjacencies) = peers.numbers();
            render(&Numbers { peers, adjacencies, ..numbers })
        })
    }

    /// FDB entries that were given: how many there are in each segment, and how many of them are local.
    pub(super) fn given_entries(&self) -> HashMap<u16, (u64, u64)> {
        let mut counts: HashMap<u16, (u64, u64)> = HashMap::new();
        for (key, entry) in &self.plan.fixed {
            let (all, local) = counts.entry(key.segment()).or_default();
            *all += 1;
            *local += u64::from(entry.local);
        }
        counts
    }

    fn segment_numbers(&self) -> Vec<SegmentNumbers> {
        let given = self.given_entries();
        let held = self.held();
        let tallies = &self.datapath.tallies;
        let numbers = |(name, segment): (&String, &crate::model::Segment)| {
            let (all, local) = given.get(&segment.id).copied().unwrap_or_default();
            let traffic = self.datapath.counters().segment(segment.id);
            SegmentNumbers {
                segment: name.clone(),
                fdb_static: all - local,
                fdb_learned: self.datapath.fdb.learned_in(segment.id).into(),
                fdb_local: local,
                fdb_moves: tallies.of(segment.id, segment::MOVES),
                fdb_held: held.get(&segment.id).copied().unwrap_or(0),
                fdb_holds: tallies.of(segment.id, segment::HOLDS),
                flood: traffic,
                neighbors: self.neighbors.count_in(segment.id).into(),
                neighbor_duplicates: tallies.of(segment.id, segment::DUPLICATES),
            }
        };
        self.state.segments.iter().map(numbers).collect()
    }

    fn underlay_numbers(&self) -> Vec<(String, bool)> {
        let up = |name, local| self.underlay_state(name, local).0 == UnderlayState::Up;
        let underlays = self.state.underlays.iter();
        underlays
            .map(|(name, underlay)| (name.clone(), underlay.locals.iter().all(|local| up(name, local))))
            .collect()
    }

    fn interface_numbers(&self) -> Vec<InterfaceNumbers> {
        let underlays = self.state.underlays.iter();
        let underlays = underlays.map(|(name, underlay)| (name.as_str(), (Hook::Underlay, underlay.mode)));
        let ports = self.state.ports.iter().map(|(name, port)| {
            let hook = if port.created.is_some() { Hook::HostPort } else { Hook::Port };
            (port.interface(name), (hook, port.mode))
        });
        // An interface may have several ports, of one mode.
        let interfaces: BTreeMap<&str, (Hook, Mode)> = underlays.chain(ports).collect();
        interfaces
            .into_iter()
            .filter_map(|(name, (hook, mode))| {
                let hook = self.hook_of(name, hook).0?;
                Some(InterfaceNumbers { interface: name.to_owned(), hook, mode: mode.to_string() })
            })
            .collect()
    }
}

/// What the peers' numbers are made of.
struct Peers {
    state: State,
    compiled: Compiled,
    counters: Counters,
    now: u32,
    /// When that stood still.
    pauses: Vec<Pause>,
}

impl Peers {
    fn numbers(&self) -> (Vec<PeerNumbers<'_>>, Vec<AdjacencyNumbers<'_>>) {
        let mut peers = Vec::with_capacity(self.state.peers.len());
        let mut adjacencies = Vec::with_capacity(self.state.adjacency_count() as usize);
        for (name, peer) in &self.state.peers {
            let mut seen: Option<u64> = None;
            for (segment, id) in &peer.segments {
                let target = Target::adjacency(*id);
                let traffic = self.counters.traffic(target);
                seen = seen.into_iter().chain(last_seen(&traffic, self.now, &self.pauses)).min();
                let drops = self.counters.drops(target);
                adjacencies.push(AdjacencyNumbers {
                    peer: name,
                    segment,
                    traffic: sum(&traffic),
                    drops: (drops != Drops::default()).then(|| Box::new(drops)),
                    zeros: *id < ZEROS_MOST,
                    mtu_bytes: adjacency_mtu(&self.compiled.plan, *id).unwrap_or(0),
                });
            }
            let status = self.compiled.peers.get(name).map(|outcome| &outcome.status);
            peers.push(PeerNumbers {
                peer: name,
                remote: &peer.remote,
                up: matches!(status, Some(PeerStatus::Up(_))),
                last_seen_timestamp_seconds: seen.map(timestamp),
            });
        }
        (peers, adjacencies)
    }
}

/// Seconds since a frame was last received.
fn last_seen(traffic: &Traffic, now: u32, pauses: &[Pause]) -> Option<u64> {
    (traffic.receive_packets > 0).then(|| seconds_ago(traffic.last_receive_seconds, now, pauses))
}

/// The largest inner packet that goes to an adjacency; none while it is not resolved.
fn adjacency_mtu(plan: &Plan, id: u32) -> Option<u32> {
    plan.adjacencies.get(&id)?.mtu()
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
#[expect(clippy::disallowed_methods, reason = "a time that is shown")]
fn timestamp(seconds_ago: u64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(seconds_ago)).as_secs_f64()
}
