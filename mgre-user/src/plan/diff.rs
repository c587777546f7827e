//! From one plan to another, in steps that can be taken while frames go through.

use std::collections::BTreeMap;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use std::collections::BTreeSet;

use mgre_common::endpoint::EndpointKey;
use mgre_common::fdb::FdbKey;
use mgre_common::wire::MacAddr;

use super::{
    AdjacencyRecord, Attachment, EndpointOwner, FixedEntry, FloodTargets, Hook, Plan, PortIndex, PortRecord,
};

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
    /// Give what the datapath cannot do out of an interface; nowhere if zero.
    SetSlow(u32),
    /// Note the addresses of underlay interfaces for XDP.
    SetNearMacs(BTreeSet<MacAddr>),
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
    /// Make frames from an interface a port's, or several ones'.
    SetPortIndex(u32, PortIndex),
    /// Make frames from an interface nobody's.
    RemovePortIndex(u32),
    /// Make frames from a VLAN on an interface, zero for those without a tag, a port's.
    SetVlanPort((u32, u16), u32),
    /// Make frames from a VLAN on an interface nobody's.
    RemoveVlanPort((u32, u16)),
    /// Make an endpoint an adjacency's.
    SetEndpoint(EndpointKey, EndpointOwner),
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

/// What is to be attached.
fn attachments<'a>(old: &'a Plan, new: &'a Plan) -> impl Iterator<Item = Op> + 'a {
    let is_new = |((ifindex, hook), attachment): &(&(u32, Hook), &Attachment)| {
        old.attachments.get(&(*ifindex, *hook)).is_none_or(|old| old.xdp != attachment.xdp)
    };
    new.attachments.iter().filter(is_new).map(|((ifindex, hook), attachment)| Op::Attach {
        ifindex: *ifindex,
        hook: *hook,
        attachment: attachment.clone(),
    })
}

/// The steps from one plan to another. What is referred to is written before
/// what refers to it, and removed after it; programs are attached when all that
/// they need is there. What the kernel may refuse comes before what forgets
/// addresses and numbers, so that undoing the steps brings everything back.
pub fn diff(old: &Plan, new: &Plan) -> Vec<Op> {
    let mut ops = Vec::new();
    if old.slow != new.slow && old.slow != 0 {
        ops.push(Op::SetSlow(0));
    }
    for ((ifindex, hook), attachment) in &old.attachments {
        // A new name is no new attachment.
        let stays = new.attachments.get(&(*ifindex, *hook)).is_some_and(|new| new.xdp == attachment.xdp);
        if !stays {
            ops.push(Op::Detach { ifindex: *ifindex, hook: *hook });
        }
    }
    let adjacencies = Changes::between(&old.adjacencies, &new.adjacencies);
    let ports = Changes::between(&old.ports, &new.ports);
    let endpoints = Changes::between(&old.endpoints, &new.endpoints);
    let floods = Changes::between(&old.floods, &new.floods);
    let fixed = Changes::between(&old.fixed, &new.fixed);
    let (port_index, vlan_ports) = index_changes(old, new, &ports);
    let (added_devices, removed_devices) = devices(old, new);

    if old.near_macs != new.near_macs {
        ops.push(Op::SetNearMacs(new.near_macs.clone()));
    }
    ops.extend(added_devices.into_iter().map(Op::AddDevice));
    ops.extend(adjacencies.set.into_iter().map(|(id, record)| Op::SetAdjacency(*id, *record)));
    ops.extend(ports.set.into_iter().map(|(id, record)| Op::SetPort(*id, *record)));
    ops.extend(endpoints.set.into_iter().map(|(key, owner)| Op::SetEndpoint(*key, *owner)));
    ops.extend(floods.set.into_iter().map(|(segment, targets)| Op::SetFlood(*segment, targets.clone())));
    ops.extend(fixed.set.into_iter().map(|(key, entry)| Op::SetFixed(*key, *entry)));
    ops.extend(vlan_ports.set.into_iter().map(|(vlan, id)| Op::SetVlanPort(vlan, id)));
    ops.extend(port_index.set.into_iter().map(|(ifindex, to)| Op::SetPortIndex(ifindex, to)));
    // Those of the slow interface first: from the moment that others are attached, they give frames to it.
    let (slow, others): (Vec<_>, Vec<_>) =
        attachments(old, new).partition(|op| matches!(op, Op::Attach { hook: Hook::Slow, .. }));
    ops.extend(slow);
    if old.slow != new.slow && new.slow != 0 {
        ops.push(Op::SetSlow(new.slow));
    }
    ops.extend(others);
    ops.extend(fixed.gone.into_iter().map(|key| Op::RemoveFixed(*key)));
    ops.extend(floods.gone.into_iter().map(|segment| Op::RemoveSegment(*segment)));
    ops.extend(endpoints.gone.into_iter().map(|key| Op::RemoveEndpoint(*key)));
    ops.extend(port_index.gone.into_iter().map(Op::RemovePortIndex));
    ops.extend(vlan_ports.gone.into_iter().map(Op::RemoveVlanPort));
    ops.extend(ports.gone.into_iter().map(|id| Op::RemovePort(*id)));
    ops.extend(adjacencies.gone.into_iter().map(|id| Op::RemoveAdjacency(*id)));
    ops.extend(removed_devices.into_iter().map(Op::RemoveDevice));
    ops
}

/// What is new or different in a map, and keys of what is no more.
struct Changes<K, V> {
    set: Vec<(K, V)>,
    gone: Vec<K>,
}

impl<'a, K: Ord, V: PartialEq> Changes<&'a K, &'a V> {
    fn between(old: &'a OrdMap<K, V>, new: &'a OrdMap<K, V>) -> Self {
        let mut changes = Self { set: Vec::new(), gone: Vec::new() };
        for item in old.diff(new) {
            match item {
                DiffItem::Add(key, value) | DiffItem::Update { new: (key, value), .. } => {
                    changes.set.push((key, value));
                }
                DiffItem::Remove(key, _) => changes.gone.push(key),
            }
        }
        changes
    }
}

impl<K: Ord + Copy, V: PartialEq + Copy> Changes<K, V> {
    const NONE: Self = Self { set: Vec::new(), gone: Vec::new() };

    fn of(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Self {
        let set = new.iter().filter(|(key, value)| old.get(key) != Some(value));
        let gone = old.keys().filter(|key| !new.contains_key(key));
        Self { set: set.map(|(key, value)| (*key, *value)).collect(), gone: gone.copied().collect() }
    }
}

/// Ports by interface, and by VLAN on an interface that has ports by VLAN.
#[derive(Default)]
struct PortTables {
    interfaces: BTreeMap<u32, PortIndex>,
    vlans: BTreeMap<(u32, u16), u32>,
}

impl PortTables {
    fn new(plan: &Plan) -> Self {
        let mut tables = Self::default();
        let tagged = plan.ports.values().filter(|record| record.vlan != 0);
        tables.interfaces.extend(tagged.map(|record| (record.ifindex, PortIndex::ByVlan)));
        for (id, record) in &plan.ports {
            let to = tables.interfaces.entry(record.ifindex).or_insert(PortIndex::Port(*id));
            if *to == PortIndex::ByVlan {
                tables.vlans.insert((record.ifindex, record.vlan), *id);
            }
        }
        tables
    }
}

fn index_changes(
    old: &Plan,
    new: &Plan,
    ports: &Changes<&u32, &PortRecord>,
) -> (Changes<u32, PortIndex>, Changes<(u32, u16), u32>) {
    if ports.set.is_empty() && ports.gone.is_empty() {
        return (Changes::NONE, Changes::NONE);
    }
    let (old, new) = (PortTables::new(old), PortTables::new(new));
    (Changes::of(&old.interfaces, &new.interfaces), Changes::of(&old.vlans, &new.vlans))
}

/// Devices added, and removed.
fn devices(old: &Plan, new: &Plan) -> (Vec<u32>, Vec<u32>) {
    let added = new.devices.iter().filter(|ifindex| !old.devices.contains(*ifindex));
    let removed = old.devices.iter().filter(|ifindex| !new.devices.contains(*ifindex));
    (added.copied().collect(), removed.copied().collect())
}
