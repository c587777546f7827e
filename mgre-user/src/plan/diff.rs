//! From one plan to another, in steps that can be taken while frames go through.

use std::collections::BTreeMap;

use mgre_common::endpoint::EndpointKey;
use mgre_common::fdb::FdbKey;

use super::{AdjacencyRecord, Attachment, FixedEntry, FloodTargets, Hook, Plan, PortRecord};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Attach a program to an interface.
    Attach {
        /// The interface.
        ifindex: u32,
        /// Which program, and where.
        hook: Hook,
        /// How.
        attachment: Attachment,
    },
    /// Take a program off an interface.
    Detach {
        /// The interface.
        ifindex: u32,
        /// Which program.
        hook: Hook,
    },
    /// Let XDP redirect to an interface.
    AddDevice(u32),
    /// Let it no more.
    RemoveDevice(u32),
    /// Write an adjacency.
    SetAdjacency(u32, AdjacencyRecord),
    /// Clear an adjacency, and forget what was learned from it.
    RemoveAdjacency(u32),
    /// Write a port.
    SetPort(u32, PortRecord),
    /// Clear a port, and forget what was learned from it.
    RemovePort(u32),
    /// Make frames from an interface a port's.
    SetPortIndex(u32, u32),
    /// Make frames from an interface nobody's.
    RemovePortIndex(u32),
    /// Make an endpoint an adjacency's.
    SetEndpoint(EndpointKey, u32),
    /// Make an endpoint nobody's.
    RemoveEndpoint(EndpointKey),
    /// Write a segment and its flood list.
    SetFlood(u16, FloodTargets),
    /// Clear a segment, and forget what was learned in it.
    RemoveSegment(u16),
    /// Put an entry into the FDB that stays.
    SetFixed(FdbKey, FixedEntry),
    /// Take such an entry out.
    RemoveFixed(FdbKey),
}

/// The steps from one plan to another. What is referred to is written before
/// what refers to it, and removed after it; programs are attached when all that
/// they need is there. What the kernel may refuse comes before what forgets
/// addresses and numbers, so that undoing the steps brings everything back.
pub fn diff(old: &Plan, new: &Plan) -> Vec<Op> {
    let mut ops = Vec::new();
    for ((ifindex, hook), attachment) in &old.attachments {
        // A new name is no new attachment.
        let stays = new.attachments.get(&(*ifindex, *hook)).is_some_and(|new| new.xdp == attachment.xdp);
        if !stays {
            ops.push(Op::Detach { ifindex: *ifindex, hook: *hook });
        }
    }
    ops.extend(new.devices.difference(&old.devices).map(|ifindex| Op::AddDevice(*ifindex)));
    for (id, record) in changed(&old.adjacencies, &new.adjacencies) {
        ops.push(Op::SetAdjacency(*id, *record));
    }
    for (id, record) in changed(&old.ports, &new.ports) {
        ops.push(Op::SetPort(*id, *record));
    }
    for (key, id) in changed(&old.endpoints, &new.endpoints) {
        ops.push(Op::SetEndpoint(*key, *id));
    }
    for (segment, targets) in changed(&old.floods, &new.floods) {
        ops.push(Op::SetFlood(*segment, targets.clone()));
    }
    for (key, entry) in changed(&old.fixed, &new.fixed) {
        ops.push(Op::SetFixed(*key, *entry));
    }
    let (old_index, new_index) = (port_index(old), port_index(new));
    for (ifindex, id) in changed(&old_index, &new_index) {
        ops.push(Op::SetPortIndex(*ifindex, *id));
    }
    for ((ifindex, hook), attachment) in &new.attachments {
        let was = old.attachments.get(&(*ifindex, *hook)).is_some_and(|old| old.xdp == attachment.xdp);
        if !was {
            let (ifindex, hook) = (*ifindex, *hook);
            ops.push(Op::Attach { ifindex, hook, attachment: attachment.clone() });
        }
    }
    removals(old, new, &mut ops);
    ops.extend(gone(&old_index, &new_index).map(|ifindex| Op::RemovePortIndex(*ifindex)));
    ops.extend(gone(&old.ports, &new.ports).map(|id| Op::RemovePort(*id)));
    ops.extend(gone(&old.adjacencies, &new.adjacencies).map(|id| Op::RemoveAdjacency(*id)));
    ops.extend(old.devices.difference(&new.devices).map(|ifindex| Op::RemoveDevice(*ifindex)));
    ops
}

fn removals(old: &Plan, new: &Plan, ops: &mut Vec<Op>) {
    ops.extend(gone(&old.fixed, &new.fixed).map(|key| Op::RemoveFixed(*key)));
    ops.extend(gone(&old.floods, &new.floods).map(|segment| Op::RemoveSegment(*segment)));
    ops.extend(gone(&old.endpoints, &new.endpoints).map(|key| Op::RemoveEndpoint(*key)));
}

fn port_index(plan: &Plan) -> BTreeMap<u32, u32> {
    plan.ports.iter().map(|(id, record)| (record.ifindex, *id)).collect()
}

/// Keys of what is no more.
fn gone<'a, K: Ord, V>(old: &'a BTreeMap<K, V>, new: &'a BTreeMap<K, V>) -> impl Iterator<Item = &'a K> {
    old.keys().filter(|key| !new.contains_key(key))
}

/// What is new or different.
fn changed<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    new.iter().filter(|(key, value)| old.get(key) != Some(value))
}
