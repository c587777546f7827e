//! What the datapath is to hold, worked out from what is wanted and what the
//! kernel has.
//!
//! ```text
//! State + Observed --compile--> Plan;  Plan, Plan --diff--> operations
//! ```
//!
//! Both cost what the change costs, not what there is: compiling starts from what
//! was compiled before, and the maps share what two versions have in common.
//!
//! Start, every API call and every change in the kernel go through this one path.
//! Nothing here does I/O.

mod affected;
mod compile;
mod diff;
mod hooks;
#[cfg(test)]
mod incremental_tests;
mod mtu;
mod peer;
#[cfg(test)]
mod tests;
mod uplinks;
#[cfg(test)]
mod wire_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use imbl::{OrdMap, OrdSet};
use mgre_common::endpoint::EndpointKey;
use mgre_common::fdb::FdbKey;
use mgre_common::table::Template;
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

pub use compile::{Compiled, compile};
pub use diff::{Op, diff};
pub use hooks::{Choice, TcHook, XdpHook, XdpMode, choose};
pub use peer::{PeerOutcome, PeerStatus, missing_local};
pub use uplinks::{Uplinks, reroutes};

use hooks::ONE_PAGE_MTU;

use crate::netlink::{Link, Neighbor, Route, XdpFeatures};
use crate::slow::Pair;

/// What the kernel has, as far as it matters. As cheap to copy as a [`State`](crate::model::State).
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// All interfaces by index.
    pub links: OrdMap<u32, Link>,
    /// What interfaces can do with XDP, by index.
    pub features: OrdMap<u32, XdpFeatures>,
    /// Interfaces on which the XDP program is this instance's own.
    pub own_xdp: BTreeSet<u32>,
    /// Endpoints of peers by the name that they were given as; those not resolved are missing.
    pub endpoints: OrdMap<String, Endpoints>,
    /// Routes to the endpoints; no route is `None`.
    pub routes: OrdMap<IpAddr, Option<Route>>,
    /// Neighbours by interface and address, those at least that are somebody's next hop.
    pub neighbors: OrdMap<(u32, IpAddr), Neighbor>,
    /// The longest packets that paths to endpoints take, in bytes, where routers on them said so.
    pub path_mtu: OrdMap<IpAddr, u32>,
    /// Ports that are blocked, by id: another way leads to the same LAN.
    pub blocked: BTreeSet<u32>,
    /// Endpoints that cannot be reached by what the kernel would choose, and the interface of that.
    pub avoided: BTreeMap<IpAddr, u32>,
    /// Our endpoints on underlays that cannot be used, and why.
    pub unusable: BTreeMap<IpAddr, Unusable>,
    /// The pair of interfaces of the slow path; none if it could not be made.
    pub slow: Option<Pair>,
    /// The alias of interfaces that this instance made for the host: what tells them when it starts.
    pub mark: String,
    /// Their indices, from then on: an alias is anybody's to change.
    pub made: OrdSet<u32>,
    /// Interfaces that got another name while they were in use, by the name that they are wanted by.
    pub renamed: OrdMap<String, u32>,
    /// This host's addresses; none if they were not asked for yet.
    pub addresses: Option<OrdSet<IpAddr>>,
}

/// Why one of our endpoints cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// This host does not have the address (any more).
    Missing,
    /// Another host has it, too.
    Duplicate,
}

/// The addresses of a DNS name that are in use: one of each IP version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// The IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Whether IPv6 comes first.
    pub v6_first: bool,
}

impl Endpoints {
    /// In order of preference.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let both = [self.v4.map(IpAddr::V4), self.v6.map(IpAddr::V6)];
        let [first, second] = if self.v6_first { [both[1], both[0]] } else { both };
        first.into_iter().chain(second)
    }
}

impl Observed {
    /// The id of an XDP program on an interface that is not ours.
    pub fn foreign_xdp(&self, link: &Link) -> Option<u32> {
        link.xdp_program.filter(|_| !self.own_xdp.contains(&link.index))
    }

    /// Whether XDP may redirect to an interface all that it takes.
    pub fn is_target(&self, ifindex: u32) -> bool {
        let long = self.links.get(&ifindex).is_some_and(|link| link.mtu > ONE_PAGE_MTU);
        self.features.get(&ifindex).is_some_and(|features| features.is_target(long))
    }

    /// Whether this instance made an interface for the host.
    pub fn is_made(&self, link: &Link) -> bool {
        self.made.contains(&link.index)
    }

    /// Takes up the interfaces that an earlier process of this instance made.
    pub fn take_up_made(&mut self) {
        let marked = self.links.values().filter(|link| link.alias.as_ref() == Some(&self.mark));
        self.made = marked.map(|link| link.index).collect();
    }

    /// Forgets those that were there before and are gone: their indices may be others' one day.
    pub fn forget_made(&mut self, before: &OrdMap<u32, Link>) {
        let Self { made, links, .. } = self;
        let gone = |index: &u32| before.contains_key(index) && !links.contains_key(index);
        if made.iter().any(gone) {
            *made = made.iter().copied().filter(|index| !gone(index)).collect();
        }
    }

    /// An interface by the name that it is wanted by: its own, or that which it had when it was taken up.
    pub fn link(&self, name: &str) -> Option<&Link> {
        let named = self.links.values().find(|link| link.name == name);
        named.or_else(|| self.links.get(self.renamed.get(name)?))
    }

    /// The name that an interface is wanted by.
    pub fn wanted_name<'a>(&'a self, link: &'a Link) -> &'a str {
        let wanted = self.renamed.iter().find(|(_, index)| **index == link.index);
        wanted.map_or(&link.name, |(name, _)| name)
    }

    /// The name that an interface has now, if it is wanted by another one.
    pub fn other_name(&self, wanted: &str) -> Option<&str> {
        self.link(wanted).map(|link| link.name.as_str()).filter(|name| *name != wanted)
    }

    /// Whether this host is known to lack an address.
    pub fn lacks(&self, address: IpAddr) -> bool {
        self.addresses.as_ref().is_some_and(|addresses| !addresses.contains(&address))
    }
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Packets that an underlay interface receives.
    Underlay,
    /// Frames that a port's interface receives.
    Port,
    /// Frames that the host sends through an interface made for it.
    HostPort,
    /// Packets that an underlay interface receives, before TC.
    XdpUnderlay,
    /// Frames that a port's interface receives, before TC.
    XdpPort,
    /// Frames that an end of the slow path's pair receives.
    Slow,
}

impl Hook {
    /// Whether it comes before TC.
    pub const fn is_xdp(self) -> bool {
        matches!(self, Self::XdpUnderlay | Self::XdpPort)
    }
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The interface's name.
    pub interface: String,
    /// How, if it is an XDP program.
    pub xdp: Option<XdpHook>,
    /// Whether the interface may do without it, should the kernel refuse.
    pub optional: bool,
}

/// A port's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRecord {
    /// Its interface.
    pub ifindex: u32,
    /// The VLAN of its frames on the interface; zero for frames without a tag.
    pub vlan: u16,
    /// Its segment's id.
    pub segment: u16,
    /// The longest frame it takes, Ethernet header included.
    pub max_frame: u32,
    /// Whether its interface is up, and it is not blocked.
    pub up: bool,
    /// Whether nothing goes in or out.
    pub blocked: bool,
    /// Whether it is an interface made for the host.
    pub host: bool,
    /// Whether it is a veth whose other end is in another network namespace.
    pub peer: bool,
    /// Whether XDP may redirect to it.
    pub express: bool,
    /// Frames from it that may be flooded in a second; zero: as many as there are.
    pub storm_limit: u32,
}

/// An adjacency's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdjacencyRecord {
    /// Its segment's id.
    pub segment: u16,
    /// How its packets are taken: bits of [`mgre_common::table::adjacency_flag::RECEIVE`].
    pub flags: u32,
    /// Frames from it that may be flooded in a second; zero: as many as there are.
    pub storm_limit: u32,
    /// Its outer header.
    pub template: Template,
}

/// Whose an endpoint is; nothing but zero for a kind that is nobody's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointOwner {
    /// The adjacency's id; of one of our addresses, its [`mgre_common::endpoint::local_flag`] bits.
    pub adjacency: u32,
    /// Its [`AdjacencyRecord::flags`].
    pub flags: u32,
}

impl EndpointOwner {
    /// Of one of our addresses.
    pub const fn local(flags: u32) -> Self {
        Self { adjacency: flags, flags: 0 }
    }
}

/// Whose the frames from an interface are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortIndex {
    /// The port's with this id.
    Port(u32),
    /// By their VLAN, each another port's.
    ByVlan,
}

/// Where a segment's frames go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FloodTargets {
    /// Whether those out of a tunnel go into the others.
    pub hub: bool,
    /// Whether questions for addresses that are known are answered.
    pub suppress: bool,
    /// Which of the addresses that bridges keep to one link get no frames
    /// ([`mgre_common::table::Segment::blocked_groups`]).
    pub blocked_groups: u16,
    /// Port ids.
    pub ports: OrdSet<u32>,
    /// Adjacency ids.
    pub adjacencies: OrdSet<u32>,
}

/// An FDB entry that is given, not learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedEntry {
    /// Where it points.
    pub target: Target,
    /// The address of an interface made for the host, not one given by an operator.
    pub local: bool,
}

/// Everything that the datapath is to hold, but for what it learns. As cheap to copy
/// and to compare as a [`State`](crate::model::State).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// By interface index and hook.
    pub attachments: BTreeMap<(u32, Hook), Attachment>,
    /// The interface that the datapath gives what it cannot do; zero for none.
    pub slow: u32,
    /// The addresses of underlay interfaces at which XDP takes packets.
    pub near_macs: BTreeSet<MacAddr>,
    /// Interfaces that XDP may redirect to.
    pub devices: OrdSet<u32>,
    /// By port id.
    pub ports: OrdMap<u32, PortRecord>,
    /// By adjacency id.
    pub adjacencies: OrdMap<u32, AdjacencyRecord>,
    /// By endpoint: whose it is.
    pub endpoints: OrdMap<EndpointKey, EndpointOwner>,
    /// By segment id; every segment has one, if an empty one.
    pub floods: OrdMap<u16, FloodTargets>,
    /// FDB entries that are given.
    pub fixed: OrdMap<FdbKey, FixedEntry>,
}
