//! Which peers a change may make a difference to.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::Observed;
use super::compile::Compiled;
use super::peer::Ground;
use crate::model::State;

/// The names of all peers for which something may come out differently than in `old`.
pub(super) fn affected(
    old: &Compiled,
    state: &State,
    observed: &Observed,
    ground: &Ground,
) -> BTreeSet<Arc<str>> {
    let mut names = changed(&old.state.peers, &state.peers);
    let mut links = changed(&old.observed.links, &observed.links);
    links.append(&mut changed(&old.observed.features, &observed.features));
    let all = *ground != old.ground
        || old.observed.unusable != observed.unusable
        || differ(&old.state.underlays, &state.underlays)
        || ground.underlays.iter().any(|ifindex| links.contains(ifindex));
    if all {
        names.extend(state.peers.keys().cloned());
        return names;
    }
    by_segment(&mut names, old, state);
    by_name(&mut names, old, state, observed);
    if !links.is_empty() {
        // What is said of a peer may name an interface that is no underlay.
        let leaves_by = |ip: &IpAddr| observed.routes.get(ip).copied().flatten().map(|route| route.ifindex);
        let concerned =
            old.remotes.iter().filter(|(ip, _)| leaves_by(ip).is_some_and(|i| links.contains(&i)));
        names.extend(concerned.map(|(_, name)| Arc::clone(name)));
    }
    let mut ways = changed(&old.observed.routes, &observed.routes);
    ways.append(&mut changed(&old.observed.path_mtu, &observed.path_mtu));
    for ip in ways {
        names.extend(old.peers_at(ip).cloned());
    }
    let mut next_hops = changed(&old.observed.neighbors, &observed.neighbors);
    next_hops.retain(|next_hop| old.is_next_hop(*next_hop));
    if !next_hops.is_empty() {
        let behind = |neighbor: &Option<_>| neighbor.is_some_and(|neighbor| next_hops.contains(&neighbor));
        let peers = old.peers.iter().filter(|(_, outcome)| behind(&outcome.neighbor));
        names.extend(peers.map(|(name, _)| Arc::clone(name)));
    }
    names
}

/// Peers in segments whose id, key or clamp is another.
fn by_segment(names: &mut BTreeSet<Arc<str>>, old: &Compiled, state: &State) {
    for segment in changed(&old.state.segments, &state.segments) {
        let segment_of = |state: &State| state.segments.get(&segment).cloned();
        let identity = |state: &State| {
            segment_of(state).map(|segment| (segment.id, segment.wire_key(), segment.clamp_mss))
        };
        if old.state.peer_count(&segment) == 0 || identity(&old.state) == identity(state) {
            continue;
        }
        let peers = old.state.peers.iter().filter(|(_, peer)| peer.segments.contains_key(&segment));
        names.extend(peers.map(|(name, _)| Arc::clone(name)));
    }
}

/// Peers whose DNS name has another address.
fn by_name(names: &mut BTreeSet<Arc<str>>, old: &Compiled, state: &State, observed: &Observed) {
    let endpoints = changed(&old.observed.endpoints, &observed.endpoints);
    if !endpoints.is_empty() {
        let peers = state.peers.iter().filter(|(_, peer)| endpoints.contains(&peer.remote));
        names.extend(peers.map(|(name, _)| Arc::clone(name)));
    }
}

/// Keys of what is different.
fn changed<K: Ord + Clone, V: PartialEq>(old: &OrdMap<K, V>, new: &OrdMap<K, V>) -> BTreeSet<K> {
    let key = |item: DiffItem<'_, '_, K, V>| match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => {
            key.clone()
        }
    };
    old.diff(new).map(key).collect()
}

/// Whether anything is.
pub(super) fn differ<K: Ord, V: PartialEq>(old: &OrdMap<K, V>, new: &OrdMap<K, V>) -> bool {
    old.diff(new).next().is_some()
}
