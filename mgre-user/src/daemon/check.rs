//! What a change asks of the kernel, checked before anything is done.

use std::net::IpAddr;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::api::messages::Problem;
use crate::model::{Mode, State};
use crate::netlink::{Address, Link};
use crate::plan::{Compiled, Observed};

/// Checks what is new in a state.
///
/// # Errors
/// What cannot be.
pub(super) fn check(
    old: &State,
    new: &State,
    observed: &Observed,
    addresses: &[Address],
    ours: impl Fn(&Link) -> bool,
) -> Result<(), Problem> {
    for (name, underlay) in come(&old.underlays, &new.underlays) {
        usable(name, underlay.mode, observed)?;
        let known = |local: IpAddr| addresses.iter().any(|address| address.address == local);
        let before = old.underlays.get(name);
        let mut added =
            underlay.locals.iter().filter(|local| !before.is_some_and(|old| old.locals.contains(*local)));
        if let Some(local) = added.find(|local| !known(*local)) {
            return Err(Problem::invalid(format!(
                "{local} is not an address of this host: ip address add it first"
            )));
        }
    }
    for (name, port) in come(&old.ports, &new.ports).filter(|(name, _)| !old.ports.contains_key(*name)) {
        if port.created.is_none() {
            let interface = port.interface(name);
            let link = usable(interface, port.mode, observed)?;
            if let Some(controller) = link.controller {
                let owner = observed.links.get(&controller).map_or("another interface", |link| &link.name);
                return Err(Problem::conflict(format!(
                    "{interface} belongs to {owner}: take it out first (ip link set {interface} nomaster)"
                )));
            }
            if port.vlan.is_some() && observed.link(name).is_some() {
                return Err(Problem::conflict(format!(
                    "there is an interface named {name}: make that a port, or delete it first (ip link del {name})"
                )));
            }
        } else if observed.link(name).is_some_and(|link| !ours(link)) {
            return Err(Problem::conflict(format!("there is an interface named {name} already")));
        }
    }
    // What was fine once stays: an address that became local makes its peer unresolved.
    let local = |remote: &IpAddr| {
        let route = observed.routes.get(remote).copied().flatten();
        route.is_some_and(|route| route.local) || addresses.iter().any(|address| address.address == *remote)
    };
    for (name, peer) in come(&old.peers, &new.peers) {
        if old.peers.get(name).is_some_and(|old| old.remote == peer.remote) {
            continue;
        }
        if let Some(remote) = peer.remote_address().filter(&local) {
            return Err(Problem::invalid(format!(
                "peer {name}: {remote} is an address of this host, not of a peer"
            )));
        }
    }
    Ok(())
}

/// What is new or different.
fn come<'a, K: Ord, V: PartialEq>(
    old: &'a OrdMap<K, V>,
    new: &'a OrdMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    old.diff(new).filter_map(|item| match item {
        DiffItem::Add(key, value) | DiffItem::Update { new: (key, value), .. } => Some((key, value)),
        DiffItem::Remove(..) => None,
    })
}

/// The interface with this name, if programs can be attached to it.
fn usable<'a>(name: &str, mode: Mode, observed: &'a Observed) -> Result<&'a Link, Problem> {
    let link = observed
        .link(name)
        .ok_or_else(|| Problem::not_found(format!("there is no interface named {name}")))?;
    if link.loopback || !link.ethernet {
        return Err(Problem::invalid(format!("{name} is not an Ethernet interface")));
    }
    if observed.slow.is_some_and(|pair| [pair.inner.0, pair.outer.0].contains(&link.index)) {
        return Err(Problem::conflict(format!("{name} is mgre's own, for its slow path")));
    }
    if matches!(mode, Mode::Native | Mode::Generic)
        && let Some(id) = observed.foreign_xdp(link)
    {
        let owner = program_name(id).map_or_else(String::new, |name| format!(" {name}"));
        return Err(Problem::conflict(format!(
            "{name} has an XDP program{owner} (id {id}) that is not mgre's: take it off, or use --mode tc"
        )));
    }
    // Where the kernel does not tell (before Linux 6.3), attaching does.
    let features = observed.features.get(&link.index);
    if mode == Mode::Native && features.is_some_and(|features| !features.runs_programs()) {
        return Err(Problem::invalid(format!(
            "the driver of {name} does not run XDP programs: use --mode auto, generic or tc"
        )));
    }
    Ok(link)
}

/// What an operator should know about a state that was just put in force.
pub(super) fn warnings(
    old: &State,
    new: &State,
    observed: &Observed,
    compiled: &Compiled,
    addresses: &[Address],
) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, port) in come(&old.ports, &new.ports).filter(|(name, _)| !old.ports.contains_key(*name)) {
        let link = observed.link(port.interface(name));
        let (Some(link), Some(segment)) = (link, new.segments.get(&port.segment)) else { continue };
        if port.created.is_some() {
            continue;
        }
        let mtu = compiled.segment_mtu(new, observed, segment);
        if link.mtu > mtu {
            warnings.push(format!(
                "{name} has MTU {}, but packets over {mtu} bytes do not fit the tunnel: \
                 hosts in segment {} need MTU {mtu}",
                link.mtu, port.segment
            ));
        }
        let global = |address: &&Address| address.ifindex == link.index && !is_link_local(address.address);
        if let Some(address) = addresses.iter().find(global).filter(|_| port.vlan.is_none()) {
            warnings.push(format!(
                "{name} has address {}, which is now out of reach: frames from {name} go to the segment; \
                 use mgre port create for an interface of the host",
                address.address
            ));
        }
    }
    warnings
}

/// The name of a loaded program.
fn program_name(id: u32) -> Option<String> {
    let program = aya::programs::loaded_programs()
        .find(|program| program.as_ref().is_ok_and(|program| program.id() == id))?;
    program.ok()?.name_as_str().map(str::to_owned)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PortSettings;
    use crate::model::{Change, Ids, SegmentSettings};

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.to_owned(), ethernet: true, mtu: 1500, ..Link::default() }
    }

    /// eth0 with an address of each IP version, eth1, and a VLAN interface on it.
    fn host() -> (Observed, [Address; 2]) {
        let links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth1.5")];
        let links = links.into_iter().map(|link| (link.index, link)).collect();
        let address =
            |text: &str| Address { ifindex: 2, address: text.parse().expect("an address"), prefix_len: 24 };
        (Observed { links, ..Observed::default() }, [address("192.0.2.1"), address("2001:db8::1")])
    }

    fn refusal(state: &State, change: Change) -> Option<String> {
        let (observed, addresses) = host();
        let next = state.apply(change, &Ids::default()).expect("a state");
        check(state, &next, &observed, &addresses, |_| false).err().map(|problem| problem.detail)
    }

    fn underlay(local: &str) -> Change {
        let locals = local.parse::<IpAddr>().expect("an address").into();
        Change::AddUnderlay { interface: "eth0".into(), locals, mode: None }
    }

    #[test]
    fn an_endpoint_is_an_address_of_this_host() {
        let empty = State::default();
        for there in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(refusal(&empty, underlay(there)), None);
        }
        for missing in ["192.0.2.9", "2001:db8::9"] {
            let why = format!("{missing} is not an address of this host: ip address add it first");
            assert_eq!(refusal(&empty, underlay(missing)), Some(why));
        }
        // One that was fine once is not asked about again.
        let gone = empty.apply(underlay("192.0.2.9"), &Ids::default()).expect("a state");
        assert_eq!(refusal(&gone, underlay("2001:db8::1")), None);
    }

    #[test]
    fn a_port_by_vlan_is_on_an_interface_and_has_a_name_of_its_own() {
        let segment = Change::AddSegment { name: "lan".into(), settings: SegmentSettings::default() };
        let state = State::default().apply(segment, &Ids::default()).expect("a state");
        let port = |interface: &str, vlan| {
            let (segment, interface) = ("lan".to_owned(), interface.to_owned());
            refusal(
                &state,
                Change::AddPort {
                    segment,
                    interface,
                    vlan,
                    mode: Mode::Auto,
                    settings: PortSettings::default(),
                },
            )
        };
        assert_eq!(port("eth1", Some(6)), None);
        assert_eq!(port("eth1.5", None), None);
        assert!(
            port("eth1", Some(5)).is_some_and(|why| why.starts_with("there is an interface named eth1.5"))
        );
        assert_eq!(port("eth9", Some(5)), Some("there is no interface named eth9".into()));
    }
}
