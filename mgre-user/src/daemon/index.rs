//! From ids, as the datapath knows things, to names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use mgre_common::target::{Target, TargetKind};

use crate::api::messages::Place;
use crate::model::{Peer, State};

/// Names by id, for one state.
#[derive(Debug, Default)]
pub(super) struct Index {
    segments: HashMap<u16, String>,
    ports: HashMap<u32, String>,
    peers: HashMap<u32, Arc<str>>,
    /// Remotes of peers that were given as DNS names, by peer.
    dns_names: BTreeMap<Arc<str>, String>,
}

impl Index {
    /// Goes from one state to another.
    pub(super) fn follow(&mut self, old: &State, new: &State) {
        // An id that is free rests before it is another's, so the order does not matter.
        for item in old.segments.diff(&new.segments) {
            let (gone, come) = sides(item);
            gone.into_iter().for_each(|(_, segment)| drop(self.segments.remove(&segment.id)));
            self.segments.extend(come.map(|(name, segment)| (segment.id, name.clone())));
        }
        for item in old.ports.diff(&new.ports) {
            let (gone, come) = sides(item);
            gone.into_iter().for_each(|(_, port)| drop(self.ports.remove(&port.id)));
            self.ports.extend(come.map(|(name, port)| (port.id, name.clone())));
        }
        for item in old.peers.diff(&new.peers) {
            let (gone, come) = sides(item);
            gone.into_iter().for_each(|(name, peer)| self.remove_peer(name, peer));
            come.into_iter().for_each(|(name, peer)| self.add_peer(name, peer));
        }
    }

    fn remove_peer(&mut self, name: &Arc<str>, peer: &Peer) {
        peer.segments.values().for_each(|id| drop(self.peers.remove(id)));
        self.dns_names.remove(name);
    }

    fn add_peer(&mut self, name: &Arc<str>, peer: &Peer) {
        self.peers.extend(peer.segments.values().map(|id| (*id, Arc::clone(name))));
        if peer.remote_address().is_none() {
            self.dns_names.insert(Arc::clone(name), peer.remote.clone());
        }
    }

    /// A segment's name.
    pub(super) fn segment(&self, id: u16) -> Option<&str> {
        self.segments.get(&id).map(String::as_str)
    }

    /// The name of an adjacency's peer.
    pub(super) fn peer(&self, target: Target) -> Option<&str> {
        match target.kind() {
            TargetKind::Adjacency(id) => self.peers.get(&id).map(|name| &**name),
            TargetKind::Port(_) | TargetKind::None => None,
        }
    }

    /// Where a target is.
    pub(super) fn place(&self, target: Target) -> Option<Place> {
        match target.kind() {
            TargetKind::Port(id) => self.ports.get(&id).map(Place::port),
            TargetKind::Adjacency(_) => self.peer(target).map(Place::peer),
            TargetKind::None => None,
        }
    }

    /// Peers whose remotes were given as DNS names, and these.
    pub(super) fn named_peers(&self) -> impl Iterator<Item = (&Arc<str>, &str)> {
        self.dns_names.iter().map(|(peer, name)| (peer, name.as_str()))
    }

    /// The remotes of peers that were given as DNS names.
    pub(super) fn dns_names(&self) -> impl Iterator<Item = &str> {
        self.dns_names.values().map(String::as_str)
    }
}

/// A thing as it was, and as it is.
type Sides<'a, 'b, K, V> = (Option<(&'a K, &'a V)>, Option<(&'b K, &'b V)>);

fn sides<'a, 'b, K, V>(item: DiffItem<'a, 'b, K, V>) -> Sides<'a, 'b, K, V> {
    match item {
        DiffItem::Add(key, value) => (None, Some((key, value))),
        DiffItem::Remove(key, value) => (Some((key, value)), None),
        DiffItem::Update { old, new } => (Some(old), Some(new)),
    }
}
