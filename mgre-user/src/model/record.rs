//! What is different between two states, as data: what a journal keeps of a change.
//!
//! It says what things have become, ids included, and not what was asked for: to
//! replay it decides nothing, and to replay it twice changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use mgre_common::wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::state::{FdbName, Peer, Port, Segment, State, StaticTarget, Underlay};
use super::types::mac_text;

/// Things by name: what each is now, none if it is gone.
type Now<K, V> = BTreeMap<K, Option<V>>;

/// What is different.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Record {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    underlays: Now<String, Underlay>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    segments: Now<String, Segment>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ports: Now<String, Port>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    peers: Now<Arc<str>, Arc<Peer>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fdb: Vec<FdbNow>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FdbNow {
    segment: String,
    #[serde(with = "mac_text")]
    mac: MacAddr,
    target: Option<StaticTarget>,
}

impl Record {
    /// What leads from one state to another.
    pub fn between(old: &State, new: &State) -> Self {
        let fdb = now(&old.fdb, &new.fdb)
            .map(|(FdbName { segment, mac }, target)| FdbNow { segment, mac, target })
            .collect();
        Self {
            underlays: now(&old.underlays, &new.underlays).collect(),
            segments: now(&old.segments, &new.segments).collect(),
            ports: now(&old.ports, &new.ports).collect(),
            peers: now(&old.peers, &new.peers).collect(),
            fdb,
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl State {
    /// Makes a state what a record says.
    pub fn replay(&mut self, record: Record) {
        let Record { underlays, segments, ports, peers, fdb } = record;
        for (name, underlay) in underlays {
            match underlay {
                Some(underlay) => drop(self.underlays.insert(name, underlay)),
                None => drop(self.underlays.remove(&name)),
            }
        }
        // What goes first: its id may be another's now.
        for (name, _) in segments.iter().filter(|(_, now)| now.is_none()) {
            self.take_segment(name);
        }
        ports.iter().filter(|(_, now)| now.is_none()).for_each(|(name, _)| drop(self.take_port(name)));
        peers.keys().for_each(|name| drop(self.take_peer(name)));
        for (name, segment) in segments {
            segment.into_iter().for_each(|segment| self.put_segment(name.clone(), segment));
        }
        for (name, port) in ports {
            port.into_iter().for_each(|port| self.put_port(name.clone(), port));
        }
        for (name, peer) in peers {
            peer.into_iter().for_each(|peer| self.put_peer(Arc::clone(&name), peer));
        }
        for FdbNow { segment, mac, target } in fdb {
            let name = FdbName { segment, mac };
            match target {
                Some(target) => drop(self.fdb.insert(name, target)),
                None => drop(self.fdb.remove(&name)),
            }
        }
    }
}

fn now<'a, K: Ord + Clone, V: PartialEq + Clone>(
    old: &'a OrdMap<K, V>,
    new: &'a OrdMap<K, V>,
) -> impl Iterator<Item = (K, Option<V>)> {
    old.diff(new).map(|item| match item {
        DiffItem::Add(key, value) | DiffItem::Update { new: (key, value), .. } => {
            (key.clone(), Some(value.clone()))
        }
        DiffItem::Remove(key, _) => (key.clone(), None),
    })
}
