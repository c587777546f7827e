//! Two states compared, as lines to read.

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::state::{State, StaticTarget};

/// One line for each thing that was added, removed or changed, such as `peer b
/// added`; nothing if the states are equal.
pub fn differences(old: &State, new: &State) -> Vec<String> {
    let mut lines = Vec::new();
    compare(&mut lines, &old.underlays, &new.underlays, |interface| format!("underlay {interface}"));
    compare(&mut lines, &old.segments, &new.segments, |name| format!("segment {name}"));
    compare(&mut lines, &old.ports, &new.ports, |interface| format!("port {interface}"));
    compare(&mut lines, &old.peers, &new.peers, |name| format!("peer {name}"));
    compare(&mut lines, &old.fdb, &new.fdb, |entry| format!("fdb {} {}", entry.segment, entry.mac));
    lines
}

fn compare<K: Ord, V: PartialEq>(
    lines: &mut Vec<String>,
    old: &OrdMap<K, V>,
    new: &OrdMap<K, V>,
    label: impl Fn(&K) -> String,
) {
    let mut others = Vec::new();
    for item in old.diff(new) {
        match item {
            DiffItem::Remove(key, _) => lines.push(format!("{} removed", label(key))),
            DiffItem::Add(key, _) => others.push(format!("{} added", label(key))),
            DiffItem::Update { new: (key, _), .. } => others.push(format!("{} changed", label(key))),
        }
    }
    lines.append(&mut others);
}

impl StaticTarget {
    /// The peer's name, if it is one.
    pub fn peer(&self) -> Option<&str> {
        match self {
            Self::Peer(name) => Some(name),
            Self::Port(_) => None,
        }
    }

    /// The port's interface, if it is one.
    pub fn port(&self) -> Option<&str> {
        match self {
            Self::Port(interface) => Some(interface),
            Self::Peer(_) => None,
        }
    }
}
