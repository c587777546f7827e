//! What follows from a state and would otherwise be looked for all over it.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::check;
use super::ids::IdSet;
use super::state::{Peer, Port, Segment};

/// Who has which remote, how many peers a segment has, and which ids are used.
/// A copy is cheap, as that of a state is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// Peers by hash of their canonical remote: two remotes may share one.
    remotes: OrdSet<(u64, Arc<str>)>,
    /// Counts of peers by segment; none is zero.
    segments: OrdMap<String, u32>,
    pub(super) segment_ids: IdSet,
    pub(super) port_ids: IdSet,
    pub(super) adjacency_ids: IdSet,
}

impl Index {
    pub(super) fn new(
        segments: &OrdMap<String, Segment>,
        ports: &OrdMap<String, Port>,
        peers: &OrdMap<Arc<str>, Arc<Peer>>,
    ) -> Self {
        let mut index = Self::default();
        segments.values().for_each(|segment| index.add_segment(segment.id));
        ports.values().for_each(|port| index.add_port(port.id));
        peers.iter().for_each(|(name, peer)| index.add_peer(name, peer));
        index
    }

    pub(super) fn add_segment(&mut self, id: u16) {
        self.segment_ids.insert(id.into());
    }

    pub(super) fn remove_segment(&mut self, id: u16) {
        self.segment_ids.remove(id.into());
    }

    pub(super) fn add_port(&mut self, id: u32) {
        self.port_ids.insert(id);
    }

    pub(super) fn remove_port(&mut self, id: u32) {
        self.port_ids.remove(id);
    }

    pub(super) fn add_peer(&mut self, name: &Arc<str>, peer: &Peer) {
        self.remotes.insert((hash(&peer.remote), Arc::clone(name)));
        for (segment, id) in &peer.segments {
            self.adjacency_ids.insert(*id);
            match self.segments.get_mut(segment) {
                Some(count) => *count += 1,
                None => drop(self.segments.insert(segment.clone(), 1)),
            }
        }
    }

    /// Takes out a peer as it was put in.
    pub(super) fn remove_peer(&mut self, name: &Arc<str>, peer: &Peer) {
        self.remotes.remove(&(hash(&peer.remote), Arc::clone(name)));
        for (segment, id) in &peer.segments {
            self.adjacency_ids.remove(*id);
            match self.segments.get_mut(segment) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.segments.remove(segment)),
            }
        }
    }

    /// The names of all peers that have a remote, and of few that do not.
    pub(super) fn may_have<'a>(&'a self, remote: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let hash = hash(remote);
        let from = (hash, Arc::from(""));
        self.remotes.range(from..).take_while(move |(other, _)| *other == hash).map(|(_, name)| &**name)
    }

    /// How many peers a segment has.
    pub(super) fn peers_in(&self, segment: &str) -> u32 {
        self.segments.get(segment).copied().unwrap_or_default()
    }

    /// How many adjacencies there are.
    pub(super) fn adjacency_count(&self) -> u32 {
        self.adjacency_ids.len()
    }
}

/// Equal for remotes that are the same; see [`check::canonical`].
fn hash(remote: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(check::canonical(remote).as_bytes());
    hasher.finish()
}
