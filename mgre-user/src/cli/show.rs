//! Answers as text.

use std::fmt::Write;

use mgre_common::reason::DropReason;

use super::table::{Table, optional};
use crate::api::messages::{
    Event, EventKind, FdbView, HeldView, NeighborView, PeerState, PeerView, PortState, PortView, SegmentView,
    SlowPathView, StatsRow, StatusView, TrafficRow, UnderlayState, UnderlayView,
};
use crate::model::state::default;
use crate::model::{Df, Encap, LinkLocal, StormLimit, Tos};

/// `underlay show`.
pub fn underlays(views: &[UnderlayView]) -> String {
    let mut table = Table::new(["INTERFACE", "LOCAL", "STATE", "MODE", "FOREIGN-GRE", "HOOK", "REASON"]);
    for view in views {
        table.row([
            view.interface.clone(),
            view.local.to_string(),
            underlay_state(view.state).to_owned(),
            view.mode.to_string(),
            view.foreign_gre.to_string(),
            optional(view.hook.as_ref()),
            optional(view.problem.as_ref().or(view.reason.as_ref())),
        ]);
    }
    table.to_string()
}

/// `segment show`.
pub fn segments(views: &[SegmentView]) -> String {
    let mut table = Table::new([
        "SEGMENT",
        "KEY",
        "MTU",
        "AGING",
        "MAX-MACS",
        "HUB",
        "CLAMP-MSS",
        "PEERS",
        "PORTS",
        "FDB",
        "OPTIONS",
    ]);
    for view in views {
        table.row([
            view.name.clone(),
            match (view.key, view.vsid) {
                (_, Some(vsid)) => format!("vsid:{vsid}"),
                (Some(key), None) => key.to_string(),
                (None, None) => "none".to_owned(),
            },
            optional(view.mtu),
            view.aging_seconds.to_string(),
            view.max_macs.to_string(),
            yes(view.hub),
            yes(view.clamp_mss),
            view.peers.to_string(),
            view.ports.to_string(),
            view.fdb_entries.to_string(),
            segment_options(view),
        ]);
    }
    table.to_string()
}

/// The options of a segment that are not the usual ones, and have no column.
fn segment_options(view: &SegmentView) -> String {
    let options = [
        (view.link_local != LinkLocal::default()).then(|| format!("link-local={}", view.link_local)),
        view.suppress_neighbors.then(|| "suppress-neighbors".to_owned()),
    ];
    options.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

fn underlay_state(state: UnderlayState) -> &'static str {
    match state {
        UnderlayState::Up => "up",
        UnderlayState::Down => "down",
        UnderlayState::Missing => "missing",
    }
}

fn port_state(state: PortState) -> &'static str {
    match state {
        PortState::Up => "up",
        PortState::Down => "down",
        PortState::Missing => "missing",
        PortState::Blocked => "blocked",
    }
}

/// `port show`.
pub fn ports(views: &[PortView]) -> String {
    let mut table = Table::new([
        "PORT",
        "VLAN",
        "SEGMENT",
        "STATE",
        "MTU",
        "HOOK",
        "RX-PACKETS",
        "RX-BYTES",
        "TX-PACKETS",
        "TX-BYTES",
        "DROPS",
        "OPTIONS",
        "REASON",
    ]);
    for view in views {
        table.row([
            view.name.clone(),
            optional(view.vlan),
            view.segment.clone(),
            port_state(view.state).to_owned(),
            optional(view.mtu),
            optional(view.hook.as_ref()),
            view.receive_packets.to_string(),
            view.receive_bytes.to_string(),
            view.transmit_packets.to_string(),
            view.transmit_bytes.to_string(),
            view.drops.to_string(),
            optional(storm_option(view.storm_limit)),
            optional(view.reason.as_ref()),
        ]);
    }
    table.to_string()
}

fn storm_option(limit: StormLimit) -> Option<String> {
    (limit != StormLimit::Off).then(|| format!("storm-limit={limit}"))
}

fn peer_state(state: PeerState) -> &'static str {
    match state {
        PeerState::Up => "up",
        PeerState::Unresolved => "unresolved",
        PeerState::Down => "down",
    }
}

/// `peer show`.
pub fn peers(views: &[PeerView]) -> String {
    let mut table = Table::new([
        "PEER",
        "REMOTE",
        "SEGMENTS",
        "STATE",
        "RX-PACKETS",
        "RX-BYTES",
        "TX-PACKETS",
        "TX-BYTES",
        "DROPS",
        "SEEN",
        "MTU",
        "OPTIONS",
        "REASON",
    ]);
    for view in views {
        table.row([
            view.name.clone(),
            view.remote.clone(),
            view.segments.join(","),
            peer_state(view.state).to_owned(),
            view.rx_packets.to_string(),
            view.rx_bytes.to_string(),
            view.tx_packets.to_string(),
            view.tx_bytes.to_string(),
            view.drops.to_string(),
            view.last_seen_seconds.map(|seconds| format!("{seconds}s")).unwrap_or_default(),
            optional(view.mtu),
            peer_options(view),
            optional(view.reason.as_ref()),
        ]);
    }
    table.to_string()
}

/// The options of a peer that are not the usual ones.
fn peer_options(view: &PeerView) -> String {
    let options = [
        (view.ttl != default::TTL).then(|| format!("ttl={}", view.ttl)),
        (view.tos != Tos::default()).then(|| format!("tos={}", view.tos)),
        (view.df != Df::default()).then(|| format!("df={}", view.df)),
        view.csum.then(|| "csum".to_owned()),
        view.seq.then(|| "seq".to_owned()),
        (view.encap != Encap::default()).then(|| view.encap.to_string()),
        storm_option(view.storm_limit),
    ];
    options.into_iter().flatten().collect::<Vec<_>>().join(",")
}

/// `fdb show`.
pub fn fdb(views: &[FdbView]) -> String {
    let mut table = Table::new(["SEGMENT", "MAC", "TARGET", "ENDPOINT", "FLAGS", "AGE"]);
    for view in views {
        let flags: Vec<_> = view.flags.iter().map(|flag| flag.name()).collect();
        table.row([
            view.segment.clone(),
            view.mac.to_string(),
            optional(view.peer.as_ref().or(view.port.as_ref())),
            optional(view.endpoint),
            flags.join(","),
            view.age_seconds.map(|seconds| format!("{seconds}s")).unwrap_or_default(),
        ]);
    }
    table.to_string()
}

/// `neigh show`.
pub fn neighbors(views: &[NeighborView]) -> String {
    let mut table = Table::new(["SEGMENT", "ADDRESS", "MAC", "TARGET", "FLAGS", "AGE"]);
    for view in views {
        let flags: Vec<_> = view.flags.iter().map(|flag| flag.name()).collect();
        table.row([
            view.segment.clone(),
            view.address.to_string(),
            view.mac.to_string(),
            optional(view.peer.as_ref().or(view.port.as_ref())),
            flags.join(","),
            format!("{}s", view.age_seconds),
        ]);
    }
    table.to_string()
}

/// `stats`.
pub fn traffic(rows: &[TrafficRow]) -> String {
    let mut table =
        Table::new(["KIND", "NAME", "SEGMENT", "RX-PACKETS", "RX-BYTES", "TX-PACKETS", "TX-BYTES", "DROPS"]);
    for row in rows {
        let kind = if row.peer.is_some() { "peer" } else { "port" };
        table.row([
            kind.to_owned(),
            optional(row.peer.as_ref().or(row.port.as_ref())),
            row.segment.clone(),
            row.receive_packets.to_string(),
            row.receive_bytes.to_string(),
            row.transmit_packets.to_string(),
            row.transmit_bytes.to_string(),
            row.drops.to_string(),
        ]);
    }
    table.to_string()
}

/// `stats --drops`.
pub fn drops(rows: &[StatsRow]) -> String {
    let mut table = Table::new(["REASON", "DIRECTION", "PEER", "PORT", "SEGMENT", "PACKETS", "MEANING"]);
    for row in rows {
        let meaning =
            DropReason::ALL.iter().find(|reason| reason.name() == row.reason).map(|reason| reason.help());
        table.row([
            row.reason.clone(),
            row.direction.clone(),
            optional(row.peer.as_ref()),
            optional(row.port.as_ref()),
            optional(row.segment.as_ref()),
            row.packets.to_string(),
            optional(meaning),
        ]);
    }
    table.to_string()
}

/// `status`.
pub fn status(view: &StatusView) -> String {
    let lines = [
        ("instance", view.instance.clone()),
        ("version", view.version.clone()),
        ("process", view.pid.to_string()),
        ("kernel", view.kernel.release.clone()),
        ("uptime", format!("{}s", view.uptime_seconds)),
        ("segments", view.segments.to_string()),
        ("ports", view.ports.to_string()),
        ("peers", format!("{}, {} up", view.peers, view.peers_up)),
        ("adjacencies", format!("{} of {}", view.adjacencies, view.adjacency_capacity)),
        ("fdb", format!("{} of {}", view.fdb_entries, view.fdb_capacity)),
        ("events", format!("{}, {} lost", view.events, view.events_lost)),
        ("slow path", slow_path(&view.slow_path)),
        ("held", held(&view.held)),
    ];
    let missing = view.kernel.missing.iter().map(|line| ("missing", line));
    let notes = view.kernel.notes.iter().map(|line| ("note", line));
    let mut text = String::new();
    for (label, value) in lines.iter().map(|(label, value)| (*label, value)).chain(missing).chain(notes) {
        text.push_str(&format!("{label:<12} {value}\n"));
    }
    text.push('\n');
    text.push_str(&underlays(&view.underlays));
    text
}

/// In which segments addresses are held.
fn held(segments: &[HeldView]) -> String {
    if segments.is_empty() {
        return "no addresses".to_owned();
    }
    let counts: Vec<_> =
        segments.iter().map(|view| format!("{} in segment {}", view.addresses, view.segment)).collect();
    format!("{}: seen in two places by turns (a loop, or used twice); see mgre fdb show", counts.join(", "))
}

/// What of the slow path does not work; else what it did.
fn slow_path(view: &SlowPathView) -> String {
    if view.problems.is_empty() {
        let SlowPathView { reinjected, fragmented, icmp_sent, icmp_received, .. } = view;
        return format!(
            "{reinjected} reassembled, {fragmented} fragmented, {icmp_sent} senders told, {icmp_received} paths narrowed"
        );
    }
    view.problems.join("; ")
}

/// A line of `monitor`.
pub fn event(event: &Event) -> String {
    let mut line = timestamp(event.timestamp_milliseconds);
    let text = match &event.kind {
        EventKind::FdbLearned { segment, mac, place } => format!("fdb learned {segment} {mac} {place}"),
        EventKind::FdbMoved { segment, mac, place, from } => {
            format!("fdb moved {segment} {mac} {place} from {from}")
        }
        EventKind::FdbHeld { segment, mac, place, other, seconds } => {
            format!("fdb held {segment} {mac} {place}, seen by turns at {other}, until {seconds}s of quiet")
        }
        EventKind::FdbReleased { segment, mac, place } => format!("fdb released {segment} {mac} {place}"),
        EventKind::FdbAged { segment, mac, place } => format!("fdb aged {segment} {mac} {place}"),
        EventKind::FdbRemoved { segment, mac, place } => format!("fdb removed {segment} {mac} {place}"),
        EventKind::NeighborLearned { segment, address, mac, place } => {
            format!("neighbor learned {segment} {address} {mac} {place}")
        }
        EventKind::NeighborMoved { segment, address, mac, place, old_mac } => {
            format!("neighbor moved {segment} {address} {mac} {place} from {old_mac}")
        }
        EventKind::NeighborRemoved { segment, address, mac } => {
            format!("neighbor removed {segment} {address} {mac}")
        }
        EventKind::NeighborDuplicate { segment, address, mac, other_mac } => {
            format!("neighbor duplicate {segment} {address} {mac} and {other_mac}")
        }
        EventKind::PeerState { peer, state, reason } => {
            format!("peer {peer} {}{}", peer_state(*state), because(reason.as_deref()))
        }
        EventKind::PortState { port, state, reason } => {
            format!("port {port} {}{}", port_state(*state), because(reason.as_deref()))
        }
        EventKind::UnderlayState { underlay, local, state, reason } => {
            format!("underlay {underlay} {local} {}{}", underlay_state(*state), because(reason.as_deref()))
        }
        EventKind::ConfigChanged { changed } => format!("config {}", changed.join(", ")),
        EventKind::Lost { count } => format!("lost {count} events"),
    };
    line.push(' ');
    line.push_str(&text);
    line
}

fn because(reason: Option<&str>) -> String {
    reason.map(|reason| format!(" ({reason})")).unwrap_or_default()
}

/// A time in UTC as RFC 3339 writes it.
fn timestamp(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut text = String::new();
    // Writing to a String cannot fail.
    write!(
        text,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
        milliseconds % 1000
    )
    .unwrap_or_default();
    text
}

/// Year, month and day of a day since 1970-01-01, by counting in eras of 400
/// years that begin on a first of March, so that the leap day is the last one.
fn date(days: u64) -> (u64, u64, u64) {
    // 719,468 days from 0000-03-01 to 1970-01-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::messages::Place;

    #[test]
    fn timestamps() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(timestamp(1_772_323_199_000), "2026-02-28T23:59:59.000Z");
        assert_eq!(timestamp(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn events() {
        let mac = mgre_common::wire::MacAddr([2, 0, 0, 0, 0, 1]);
        let kind = EventKind::FdbMoved {
            segment: "lan".into(),
            mac,
            place: Place::peer("b"),
            from: Place::port("veth0"),
        };
        let moved = Event { timestamp_milliseconds: 0, kind };
        assert_eq!(
            event(&moved),
            "1970-01-01T00:00:00.000Z fdb moved lan 02:00:00:00:00:01 peer b from port veth0"
        );
    }
}
