//! Keeps the picture of what the kernel has.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use crate::model::State;
use crate::netlink::{Netlink, Result};
use crate::plan::Observed;

/// Which parts of the picture may be out of date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stale {
    /// Interfaces.
    pub(super) links: bool,
    /// Routes to the peers.
    pub(super) routes: bool,
    /// The neighbour tables.
    pub(super) neighbors: bool,
}

impl Stale {
    /// Everything.
    pub(super) const ALL: Self = Self { links: true, routes: true, neighbors: true };

    /// Whether anything is.
    pub(super) const fn any(self) -> bool {
        self.links || self.routes || self.neighbors
    }
}

/// Brings the picture up to date for a state.
///
/// # Errors
/// The kernel does not answer.
pub(super) async fn refresh(
    netlink: &Netlink,
    state: &State,
    observed: &mut Observed,
    stale: Stale,
) -> Result<()> {
    if stale.links {
        observed.links = netlink.links().await?.into_iter().map(|link| (link.index, link)).collect();
        observed.features = netlink.xdp_features().await?;
    }
    if stale.routes {
        let mut routes = HashMap::new();
        for remote in remotes(state, observed) {
            routes.insert(remote, netlink.route_to(remote, None).await?);
        }
        observed.routes = routes;
    }
    if stale.neighbors {
        observed.neighbors = netlink.neighbors().await?;
    }
    Ok(())
}

/// The peers' endpoints, as far as they are known.
fn remotes(state: &State, observed: &Observed) -> BTreeSet<IpAddr> {
    state
        .peers
        .values()
        .filter_map(|peer| peer.remote_address().or_else(|| observed.endpoints.get(&peer.remote).copied()))
        .collect()
}
