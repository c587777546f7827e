//! From ids, as the datapath knows things, to names.

use std::collections::HashMap;

use mgre_common::target::{Target, TargetKind};

use crate::api::messages::Place;
use crate::model::State;

/// Names by id, for one state.
#[derive(Debug, Default)]
pub(super) struct Index {
    segments: HashMap<u16, String>,
    ports: HashMap<u32, String>,
    peers: HashMap<u32, String>,
}

impl Index {
    pub(super) fn new(state: &State) -> Self {
        Self {
            segments: state.segments.iter().map(|(name, segment)| (segment.id, name.clone())).collect(),
            ports: state.ports.iter().map(|(name, port)| (port.id, name.clone())).collect(),
            peers: state.adjacencies().map(|(id, peer, ..)| (id, peer.to_owned())).collect(),
        }
    }

    /// A segment's name.
    pub(super) fn segment(&self, id: u16) -> Option<&str> {
        self.segments.get(&id).map(String::as_str)
    }

    /// The name of an adjacency's peer.
    pub(super) fn peer(&self, target: Target) -> Option<&str> {
        match target.kind() {
            TargetKind::Adjacency(id) => self.peers.get(&id).map(String::as_str),
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
}
