//! What a change asks of the kernel, checked before anything is done.

use std::net::IpAddr;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::api::messages::Problem;
use crate::model::{Change, Locals, Mode, State};
use crate::netlink::{Address, Link};
use crate::plan::{Compiled, Observed, PeerOutcome, PeerStatus};

/// How many names a refusal lists.
const NAMES: usize = 8;

/// What becomes of a state that asks for what the host has not got.
pub(super) enum Missing<'a> {
    /// It is refused.
    Refused,
    /// It is waited for, and said.
    Awaited(&'a mut Vec<String>),
}

impl Missing<'_> {
    fn note(&mut self, problem: Problem) -> Result<(), Problem> {
        match self {
            Self::Refused => Err(problem),
            Self::Awaited(lines) => {
                lines.push(format!("{}; waiting for it", problem.detail));
                Ok(())
            }
        }
    }
}

/// Of so many peers that cannot be reached as things are set up, each is named.
const PEERS_WARNED: usize = 8;

/// Checks what is new in a state.
///
/// # Errors
/// What cannot be.
pub(super) fn check(
    old: &State,
    new: &State,
    observed: &Observed,
    addresses: &[Address],
    mut missing: Missing,
) -> Result<(), Problem> {
    for (name, underlay) in come(&old.underlays, &new.underlays) {
        match observed.link(name) {
            Some(link) => usable(link, name, underlay.mode, observed)?,
            None => missing.note(no_interface(name))?,
        }
        let known = |local: IpAddr| addresses.iter().any(|address| address.address == local);
        let before = old.underlays.get(name);
        let added =
            underlay.locals.iter().filter(|local| !before.is_some_and(|old| old.locals.contains(*local)));
        for local in added.filter(|local| !known(*local)) {
            missing.note(Problem::invalid(format!(
                "{local} is not an address of this host: ip address add it first"
            )))?;
        }
    }
    for (name, port) in come(&old.ports, &new.ports) {
        let made = port.created.is_some();
        if old.ports.get(name).is_some_and(|old| old.created.is_some() == made) {
            continue;
        }
        if !made {
            let interface = port.interface(name);
            let Some(link) = observed.link(interface) else {
                missing.note(no_interface(interface))?;
                continue;
            };
            usable(link, interface, port.mode, observed)?;
            if observed.is_made(link) {
                return Err(Problem::conflict(format!(
                    "{interface} was made by mgre, which would delete it: remove the port first (mgre port del {name})"
                )));
            }
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
        } else if observed.link(name).is_some_and(|link| !observed.is_made(link)) {
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

/// Checks that no underlay goes by which peers are reached, but where that was asked for.
///
/// # Errors
/// One would.
pub(super) fn check_use(
    changes: &[Change],
    state: &State,
    observed: &Observed,
    compiled: &Compiled,
) -> Result<(), Problem> {
    for change in changes {
        let (interface, local) = match change {
            Change::DelUnderlay { interface, local, force: false } => (interface, *local),
            Change::SetUnderlay { interface, settings, force: false } => {
                let before = state.underlays.get(interface).map(|underlay| underlay.locals);
                // Another address of the same IP version reaches whom the one before did.
                let goes = |new: &Locals| before?.iter().find(|local| new.like(*local).is_none());
                let Some(local) = settings.locals.as_ref().and_then(goes) else { continue };
                (interface, Some(local))
            }
            _ => continue,
        };
        let Some(underlay) = state.underlays.get(interface) else { continue };
        if local.is_some_and(|local| !underlay.locals.contains(local)) {
            continue;
        }
        let ifindex = observed.link(interface).map(|link| link.index);
        let last = state.underlays.len() == 1;
        let uses = |outcome: &PeerOutcome| match outcome.endpoint {
            Some(remote) if local.is_none_or(|local| local.is_ipv4() == remote.is_ipv4()) => {
                let route = observed.routes.get(&remote).copied().flatten();
                last || route.is_some_and(|route| Some(route.ifindex) == ifindex)
            }
            Some(_) => false,
            None => last && local.is_none(),
        };
        let users: Vec<&str> =
            compiled.peers.iter().filter(|(_, outcome)| uses(outcome)).map(|(name, _)| &**name).collect();
        let who = match *users {
            [] => continue,
            [peer] => format!("peer {peer} is"),
            ref few if few.len() <= NAMES => format!("peers {} are", few.join(", ")),
            ref many => format!("{} peers are", many.len()),
        };
        let what = local.map_or_else(|| interface.clone(), |local| format!("{local} of {interface}"));
        return Err(Problem::conflict(format!(
            "{who} reached by {what}: remove them first, or cut them off with --force (?force=true)"
        )));
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

fn no_interface(name: &str) -> Problem {
    Problem::not_found(format!("there is no interface named {name}"))
}

/// Checks that programs can be attached to an interface.
fn usable(link: &Link, name: &str, mode: Mode, observed: &Observed) -> Result<(), Problem> {
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
    Ok(())
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
    let moved = come(&old.peers, &new.peers)
        .filter(|(name, peer)| old.peers.get(*name).is_none_or(|old| old.remote != peer.remote));
    let mut down = moved.filter_map(|(name, _)| match &compiled.peers.get(name)?.status {
        PeerStatus::Down(why) => Some(format!("peer {name} is down: {why}")),
        PeerStatus::Up(_) | PeerStatus::Unresolved(_) => None,
    });
    warnings.extend(down.by_ref().take(PEERS_WARNED));
    let more = down.count();
    if more > 0 {
        warnings.push(format!("{more} more peers are down: mgre peer show"));
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
    use crate::model::{Ids, SegmentSettings, UnderlaySettings};

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.to_owned(), ethernet: true, mtu: 1500, ..Link::default() }
    }

    /// eth0 with an address of each IP version, eth1, and a VLAN interface on it.
    fn host() -> (Observed, [Address; 2]) {
        let links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth1.5")];
        let links = links.into_iter().map(|link| (link.index, link)).collect();
        let address = |text: &str| Address {
            ifindex: 2,
            address: text.parse().expect("an address"),
            prefix_len: 24,
            duplicate: false,
        };
        (Observed { links, ..Observed::default() }, [address("192.0.2.1"), address("2001:db8::1")])
    }

    fn refusal(state: &State, change: Change) -> Option<String> {
        let (observed, addresses) = host();
        let next = state.apply(change, &Ids::default()).expect("a state");
        check(state, &next, &observed, &addresses, Missing::Refused).err().map(|problem| problem.detail)
    }

    /// What is waited for.
    fn awaited(state: &State, change: Change) -> Vec<String> {
        let (observed, addresses) = host();
        let next = state.apply(change, &Ids::default()).expect("a state");
        let mut lines = Vec::new();
        check(state, &next, &observed, &addresses, Missing::Awaited(&mut lines)).expect("it can be");
        lines
    }

    fn underlay(local: &str) -> Change {
        let locals = local.parse::<IpAddr>().expect("an address");
        let settings = UnderlaySettings::at(locals);
        Change::AddUnderlay { interface: "eth0".into(), settings }
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
        let waiting = "192.0.2.9 is not an address of this host: ip address add it first; waiting for it";
        assert_eq!(awaited(&empty, underlay("192.0.2.9")), [waiting]);
        assert!(awaited(&empty, underlay("192.0.2.1")).is_empty());
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
