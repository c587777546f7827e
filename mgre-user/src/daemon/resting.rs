//! Ids that are free again, and rest before they are given out.

use imbl::ordmap::DiffItem;

use crate::model::{Ids, State};

/// An id that is free again.
#[derive(Clone, Copy)]
pub(super) enum Resting {
    Segment(u32),
    Port(u32),
    Adjacency(u32),
}

/// The ids that one state has and the next one has not.
pub(super) fn freed(old: &State, new: &State) -> Vec<Resting> {
    let mut freed = Vec::new();
    for item in old.segments.diff(&new.segments) {
        match item {
            DiffItem::Remove(_, old) => freed.push(Resting::Segment(old.id.into())),
            DiffItem::Update { old: (_, old), new: (_, new) } if old.id != new.id => {
                freed.push(Resting::Segment(old.id.into()));
            }
            _ => {}
        }
    }
    for item in old.ports.diff(&new.ports) {
        match item {
            DiffItem::Remove(_, old) => freed.push(Resting::Port(old.id)),
            DiffItem::Update { old: (_, old), new: (_, new) } if old.id != new.id => {
                freed.push(Resting::Port(old.id));
            }
            _ => {}
        }
    }
    for item in old.peers.diff(&new.peers) {
        match item {
            DiffItem::Remove(_, old) => freed.extend(old.segments.values().map(|id| Resting::Adjacency(*id))),
            DiffItem::Update { old: (_, old), new: (_, new) } => {
                let stays = |id: &&u32| new.segments.values().any(|new| new == *id);
                let gone = old.segments.values().filter(|id| !stays(id));
                freed.extend(gone.map(|id| Resting::Adjacency(*id)));
            }
            DiffItem::Add(..) => {}
        }
    }
    freed
}

/// Lets ids rest in `ids` that a state frees on the way to another.
pub(super) fn rest_in(ids: &mut Ids, old: &State, new: &State) {
    freed(old, new).into_iter().for_each(|id| id.put_into(ids));
}

impl Resting {
    pub(super) fn put_into(self, ids: &mut Ids) {
        match self {
            Self::Segment(id) => ids.resting_segments.insert(id),
            Self::Port(id) => ids.resting_ports.insert(id),
            Self::Adjacency(id) => ids.resting_adjacencies.insert(id),
        };
    }

    pub(super) fn take_from(self, ids: &mut Ids) {
        match self {
            Self::Segment(id) => ids.resting_segments.remove(&id),
            Self::Port(id) => ids.resting_ports.remove(&id),
            Self::Adjacency(id) => ids.resting_adjacencies.remove(&id),
        };
    }
}
