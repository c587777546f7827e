//! Keeps the picture of what the kernel has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::model::State;
use crate::netlink::resolve::next_hop_address;
use crate::netlink::{Address, Link, Lookup, Netlink, Result, Route};
use crate::plan::{Compiled, Endpoints, Observed, Unusable, Uplinks, reroutes};

/// Which parts of the picture may be out of date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stale {
    /// All interfaces.
    pub(super) links: bool,
    /// This host's addresses.
    pub(super) addresses: bool,
    /// These interfaces.
    pub(super) some_links: BTreeSet<u32>,
    /// Routes to all peers.
    pub(super) routes: bool,
    /// Routes to these endpoints.
    pub(super) some_routes: BTreeSet<IpAddr>,
    /// The neighbour tables.
    pub(super) neighbors: bool,
    /// TC filters on these interfaces.
    pub(super) filters: BTreeSet<u32>,
    /// TC filters on all interfaces.
    pub(super) all_filters: bool,
    /// XDP programs on these interfaces, where there were some before.
    pub(super) programs: BTreeSet<u32>,
    /// Something was told that the plan does not say yet.
    pub(super) told: bool,
}

impl Stale {
    /// Everything.
    pub(super) fn all() -> Self {
        Self {
            links: true,
            addresses: true,
            routes: true,
            neighbors: true,
            all_filters: true,
            ..Self::default()
        }
    }

    /// All interfaces.
    pub(super) fn links() -> Self {
        Self { links: true, ..Self::default() }
    }

    /// Whether anything is.
    pub(super) fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// The picture, and what only checks look at.
#[derive(Debug)]
pub(super) struct Observer {
    netlink: Netlink,
    /// This host's addresses; none if they may be out of date.
    addresses: Option<Arc<[Address]>>,
}

impl Observer {
    pub(super) const fn new(netlink: Netlink) -> Self {
        Self { netlink, addresses: None }
    }

    /// This host's addresses changed.
    pub(super) fn forget_addresses(&mut self) {
        self.addresses = None;
    }

    /// This host's addresses.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub(super) async fn addresses(&mut self) -> Result<Arc<[Address]>> {
        if let Some(addresses) = &self.addresses {
            return Ok(Arc::clone(addresses));
        }
        let addresses: Arc<[Address]> = self.netlink.addresses().await?.into();
        self.addresses = Some(Arc::clone(&addresses));
        Ok(addresses)
    }

    /// Brings the picture up to date for a state.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub(super) async fn refresh(
        &mut self,
        state: &State,
        observed: &mut Observed,
        stale: &Stale,
        compiled: &Compiled,
    ) -> Result<()> {
        if stale.addresses {
            let addresses = self.addresses().await?.iter().map(|address| address.address).collect();
            if observed.addresses.as_ref() != Some(&addresses) {
                observed.addresses = Some(addresses);
            }
        }
        if stale.routes || stale.addresses {
            let addresses = self.addresses().await?;
            observed.unusable = unusable(state, &addresses);
        }
        let netlink = &self.netlink;
        let links_before = observed.links.clone();
        if stale.links {
            let links = netlink.links().await?.into_iter().map(|link| (link.index, link)).collect();
            replace(&mut observed.links, links);
            replace(&mut observed.features, netlink.xdp_features().await?.into_iter().collect());
        } else if !stale.some_links.is_empty() {
            let asked: Vec<u32> = stale.some_links.iter().copied().collect();
            let mut links = observed.links.clone();
            asked.iter().for_each(|index| drop(links.remove(index)));
            let found = netlink.links_with(asked).await?;
            links.extend(found.into_iter().map(|link| (link.index, link)));
            replace(&mut observed.links, links);
        }
        let uplinks = Uplinks::new(state, observed);
        let routes = stale.routes || may_reroute(&links_before, observed, &uplinks);
        if routes {
            let mut asked: Vec<IpAddr> = match compiled.remotes() {
                // Not compiled yet.
                known if known.is_empty() => remotes(state, observed).into_iter().collect(),
                known => known,
            };
            asked.extend(&stale.some_routes);
            let count = asked.len();
            let answers = self.look_up_routes(&uplinks, &observed.avoided, asked).await?;
            if observed.routes.len() > count {
                let answered: BTreeSet<IpAddr> = answers.iter().map(|(remote, _)| *remote).collect();
                let gone: Vec<IpAddr> =
                    observed.routes.keys().filter(|remote| !answered.contains(*remote)).copied().collect();
                for remote in gone {
                    observed.routes.remove(&remote);
                }
            }
            for (remote, route) in answers {
                set_route(observed, remote, route);
            }
        } else if !stale.some_routes.is_empty() {
            let asked = stale.some_routes.iter().copied();
            for (remote, route) in self.look_up_routes(&uplinks, &observed.avoided, asked).await? {
                set_route(observed, remote, route);
            }
        }
        if stale.neighbors {
            replace(&mut observed.neighbors, netlink.neighbors().await?.into_iter().collect());
        } else if routes || !stale.some_routes.is_empty() {
            self.look_up_next_hops(observed, &uplinks).await?;
        }
        Ok(())
    }

    /// The routes to remotes, each once; detours to those that were said to be out of reach by an interface, as far as
    /// there are.
    async fn look_up_routes(
        &self,
        uplinks: &Uplinks,
        avoided: &BTreeMap<IpAddr, u32>,
        remotes: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Vec<(IpAddr, Option<Route>)>> {
        let ask = |remote: IpAddr| {
            let detours = avoided.get(&remote).map(|ifindex| uplinks.detours(remote, *ifindex));
            [detours.unwrap_or_default(), uplinks.lookups(remote)].concat()
        };
        let lookups: Vec<Lookup> = remotes.into_iter().flat_map(ask).collect();
        let found = self.netlink.routes(lookups.clone()).await?;
        let answers: Vec<(Lookup, Option<Route>)> = lookups.into_iter().zip(found).collect();
        let by_remote = answers.chunk_by(|(one, _), (other, _)| one.destination == other.destination);
        let choose = |answers: &[(Lookup, Option<Route>)]| {
            let remote = answers[0].0.destination;
            let count = avoided.get(&remote).map_or(0, |ifindex| uplinks.detours(remote, *ifindex).len());
            let (detours, others) = answers.split_at(count.min(answers.len()));
            (remote, uplinks.choose(detours).or_else(|| uplinks.choose(others)))
        };
        Ok(by_remote.map(choose).collect())
    }

    /// Looks up the neighbours that routes lead to and that are not known, so that no peer is without a
    /// next hop between a new route and its neighbour.
    async fn look_up_next_hops(&self, observed: &mut Observed, uplinks: &Uplinks) -> Result<()> {
        let routes = observed.routes.iter().filter_map(|(remote, route)| Some((*remote, (*route)?)));
        let ours = routes.filter(|(_, route)| uplinks.contains(route.ifindex) && !route.local);
        let asked: BTreeSet<(u32, IpAddr)> = ours
            .map(|(remote, route)| (route.ifindex, next_hop_address(&route, remote)))
            .filter(|neighbor| !observed.neighbors.contains_key(neighbor))
            .collect();
        self.look_up_neighbors(observed, asked).await
    }

    async fn look_up_neighbors(&self, observed: &mut Observed, asked: BTreeSet<(u32, IpAddr)>) -> Result<()> {
        if asked.is_empty() {
            return Ok(());
        }
        let found = self.netlink.neighbors_at(asked.iter().copied().collect()).await?;
        let found = asked.into_iter().zip(found).filter_map(|(key, found)| Some((key, found?)));
        observed.neighbors.extend(found);
        Ok(())
    }

    /// Looks up routes to endpoints that are new, and the neighbours that they lead to.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub(super) async fn look_ahead(
        &self,
        state: &State,
        observed: &mut Observed,
        remotes: &BTreeSet<IpAddr>,
    ) -> Result<()> {
        let uplinks = Uplinks::new(state, observed);
        let asked: Vec<IpAddr> =
            remotes.iter().filter(|remote| !observed.routes.contains_key(*remote)).copied().collect();
        if asked.is_empty() {
            return Ok(());
        }
        let mut neighbors = BTreeSet::new();
        for (remote, route) in self.look_up_routes(&uplinks, &observed.avoided, asked).await? {
            set_route(observed, remote, route);
            if let Some(route) = route.filter(|route| uplinks.contains(route.ifindex) && !route.local) {
                neighbors.insert((route.ifindex, next_hop_address(&route, remote)));
            }
        }
        neighbors.retain(|neighbor| !observed.neighbors.contains_key(neighbor));
        self.look_up_neighbors(observed, neighbors).await
    }
}

/// Our endpoints that cannot be used.
fn unusable(state: &State, addresses: &[Address]) -> BTreeMap<IpAddr, Unusable> {
    let why = |local: IpAddr| match addresses.iter().find(|address| address.address == local) {
        None => Some((local, Unusable::Missing)),
        Some(address) => address.duplicate.then_some((local, Unusable::Duplicate)),
    };
    state.underlays.values().flat_map(|underlay| underlay.locals.iter()).filter_map(why).collect()
}

/// Whether routes may be others because an underlay, or an interface that one leaves by, came, went, lost its carrier
/// or got it back. The kernel announces such routes only where it removes them.
fn may_reroute(before: &OrdMap<u32, Link>, observed: &Observed, uplinks: &Uplinks) -> bool {
    let leaves_by = |index: u32| observed.routes.values().flatten().any(|route| route.ifindex == index);
    before.diff(&observed.links).any(|item| {
        let (index, old, new) = match item {
            DiffItem::Add(index, new) => (*index, None, Some(new)),
            DiffItem::Update { old: (index, old), new: (_, new) } => (*index, Some(old), Some(new)),
            DiffItem::Remove(index, old) => (*index, Some(old), None),
        };
        reroutes(old, new) && (uplinks.contains(index) || leaves_by(index))
    })
}

/// Makes a map hold what another does, and keeps what stays the same shared with older copies.
fn replace<K: Ord + Clone, V: PartialEq + Clone>(map: &mut OrdMap<K, V>, wanted: OrdMap<K, V>) {
    let gone: Vec<K> = map.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
    gone.iter().for_each(|key| drop(map.remove(key)));
    for (key, value) in wanted {
        if map.get(&key) != Some(&value) {
            map.insert(key, value);
        }
    }
}

fn set_route(observed: &mut Observed, remote: IpAddr, route: Option<Route>) {
    if observed.routes.get(&remote) != Some(&route) {
        observed.routes.insert(remote, route);
    }
}

/// The peers' endpoints, as far as they are known.
fn remotes(state: &State, observed: &Observed) -> BTreeSet<IpAddr> {
    state
        .peers
        .values()
        .flat_map(|peer| {
            let resolved = observed.endpoints.get(&peer.remote).into_iter().flat_map(Endpoints::iter);
            peer.remote_address().into_iter().chain(resolved)
        })
        .collect()
}
