//! What would otherwise be looked for among all peers, for each of many changes.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};

use crate::model::check;
use crate::model::state::Peer;

/// How many peers there are for each remote and segment.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By hash of the canonical remote: two remotes may share a count.
    remotes: HashMap<u64, u32>,
    /// By segment.
    segments: HashMap<String, u32>,
}

impl Index {
    pub(super) fn new(peers: &BTreeMap<String, Peer>) -> Self {
        let mut index = Self { remotes: HashMap::with_capacity(peers.len()), segments: HashMap::new() };
        peers.values().for_each(|peer| index.insert(peer));
        index
    }

    pub(super) fn insert(&mut self, peer: &Peer) {
        *self.remotes.entry(hash(&peer.remote)).or_default() += 1;
        for segment in peer.segments.keys() {
            match self.segments.get_mut(segment) {
                Some(count) => *count += 1,
                None => drop(self.segments.insert(segment.clone(), 1)),
            }
        }
    }

    /// Takes out a peer as it was put in.
    pub(super) fn remove(&mut self, peer: &Peer) {
        if let Some(count) = self.remotes.get_mut(&hash(&peer.remote)) {
            *count -= 1;
        }
        for segment in peer.segments.keys() {
            if let Some(count) = self.segments.get_mut(segment) {
                *count -= 1;
            }
        }
    }

    /// Whether a peer may have this remote. False is certain.
    pub(super) fn may_have(&self, remote: &str) -> bool {
        self.remotes.get(&hash(remote)).is_some_and(|count| *count > 0)
    }

    /// How many peers a segment has.
    pub(super) fn peers_in(&self, segment: &str) -> u32 {
        self.segments.get(segment).copied().unwrap_or_default()
    }
}

/// Equal for remotes that are the same; see [`check::same_remote`].
fn hash(remote: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    check::without_root(remote).bytes().for_each(|byte| hasher.write_u8(byte.to_ascii_lowercase()));
    hasher.finish()
}
