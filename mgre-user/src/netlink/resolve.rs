//! From what the kernel says to the next hop of a remote endpoint. Pure: no kernel is asked.

use std::fmt;
use std::net::IpAddr;

use imbl::OrdMap;
use mgre_common::wire::MacAddr;

use super::{Link, Neighbor, Route};

/// Where and how outer packets to a remote endpoint are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The underlay interface.
    pub ifindex: u32,
    /// Source of the outer Ethernet header: the interface's own address.
    pub source_mac: MacAddr,
    /// Destination of the outer Ethernet header: the neighbour's address.
    pub destination_mac: MacAddr,
    /// Largest outer IP packet in bytes: the smaller of the interface's and the route's MTU.
    pub mtu: u32,
}

/// Why there is no next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// No route, or one that ends in unreachable, prohibit or blackhole.
    NoRoute,
    /// The remote endpoint is an address of this host.
    LocalDestination,
    /// The route leaves by an interface that is not an underlay.
    NotAnUnderlay {
        /// Its index.
        ifindex: u32,
        /// Its name.
        interface: String,
    },
    /// The underlay interface is down, without carrier, or gone.
    LinkDown {
        /// Its index.
        ifindex: u32,
        /// Its name.
        interface: String,
    },
    /// The underlay interface carries no Ethernet frames.
    NotEthernet {
        /// Its index.
        ifindex: u32,
        /// Its name.
        interface: String,
    },
    /// The neighbour to send to has not been resolved (yet).
    NoNeighbor {
        /// Index of the underlay interface.
        ifindex: u32,
        /// Its name.
        interface: String,
        /// The gateway, or the remote endpoint itself.
        next_hop: IpAddr,
    },
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => f.write_str("no route"),
            Self::LocalDestination => f.write_str("address of this host"),
            Self::NotAnUnderlay { interface, .. } => {
                write!(f, "route leaves by {interface}, not an underlay")
            }
            Self::LinkDown { interface, .. } => write!(f, "{interface} is down"),
            Self::NotEthernet { interface, .. } => write!(f, "{interface} is not Ethernet"),
            Self::NoNeighbor { interface, next_hop, .. } => {
                write!(f, "{next_hop} does not answer on {interface}")
            }
        }
    }
}

impl std::error::Error for Unresolved {}

/// The address whose neighbour entry gives the destination MAC: the gateway, or the remote itself on its own
/// link.
pub fn next_hop_address(route: &Route, remote: IpAddr) -> IpAddr {
    route.gateway.unwrap_or(remote)
}

/// How outer packets leave this host, whoever is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The underlay interface.
    pub ifindex: u32,
    /// Source of the outer Ethernet header: the interface's own address.
    pub source_mac: MacAddr,
    /// Largest outer IP packet in bytes: the smaller of the interface's and the route's MTU.
    pub mtu: u32,
}

/// The way out that a route takes, given all links by index and the indices of the underlay interfaces.
///
/// # Errors
/// The first obstacle.
pub fn exit(route: Option<&Route>, links: &OrdMap<u32, Link>, underlays: &[u32]) -> Result<Exit, Unresolved> {
    let route = route.ok_or(Unresolved::NoRoute)?;
    if route.local {
        return Err(Unresolved::LocalDestination);
    }
    let ifindex = route.ifindex;
    let link = links.get(&ifindex);
    if !underlays.contains(&ifindex) {
        return Err(Unresolved::NotAnUnderlay { ifindex, interface: name(ifindex, link) });
    }
    let Some(link) = link.filter(|link| link.up && link.running) else {
        return Err(Unresolved::LinkDown { ifindex, interface: name(ifindex, link) });
    };
    let Some(source_mac) = link.mac.filter(|mac| link.ethernet && mac.is_station()) else {
        return Err(Unresolved::NotEthernet { ifindex, interface: name(ifindex, Some(link)) });
    };
    let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
    Ok(Exit { ifindex, source_mac, mtu })
}

fn name(ifindex: u32, link: Option<&Link>) -> String {
    link.map_or_else(|| format!("interface {ifindex}"), |link| link.name.clone())
}

/// The next hop of `remote`, given the route to it, all links by index, the indices of the underlay
/// interfaces, and the neighbours.
///
/// `remote` is taken for a unicast address.
///
/// # Errors
/// The first obstacle on the way from route to neighbour.
pub fn resolve(
    remote: IpAddr,
    route: Option<&Route>,
    links: &OrdMap<u32, Link>,
    underlays: &[u32],
    neighbors: &OrdMap<(u32, IpAddr), Neighbor>,
) -> Result<NextHop, Unresolved> {
    let Exit { ifindex, source_mac, mtu } = exit(route, links, underlays)?;
    let next_hop = route.map_or(remote, |route| next_hop_address(route, remote));
    let destination_mac = neighbors
        .get(&(ifindex, next_hop))
        .filter(|neighbor| neighbor.usable)
        .and_then(|neighbor| neighbor.mac)
        .filter(|mac| mac.is_station())
        .ok_or_else(|| {
            let interface = name(ifindex, links.get(&ifindex));
            Unresolved::NoNeighbor { ifindex, interface, next_hop }
        })?;
    Ok(NextHop { ifindex, source_mac, destination_mac, mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNDERLAY: u32 = 2;
    const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const THEIRS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// A world in which 192.0.2.9 is reached on the link, for each test to break in one place.
    struct World {
        remote: IpAddr,
        route: Option<Route>,
        link: Link,
        underlays: Vec<u32>,
        neighbors: OrdMap<(u32, IpAddr), Neighbor>,
    }

    impl World {
        fn new() -> Self {
            let remote = address("192.0.2.9");
            Self {
                remote,
                route: Some(Route { ifindex: UNDERLAY, ..Route::default() }),
                link: Link {
                    index: UNDERLAY,
                    name: "eth0".into(),
                    mac: Some(OURS),
                    mtu: 1500,
                    up: true,
                    running: true,
                    ethernet: true,
                    ..Link::default()
                },
                underlays: vec![7, UNDERLAY],
                neighbors: OrdMap::from(vec![(
                    (UNDERLAY, remote),
                    Neighbor { mac: Some(THEIRS), usable: true },
                )]),
            }
        }

        fn route(&mut self) -> &mut Route {
            self.route.as_mut().expect("a route")
        }

        fn neighbor(&mut self) -> &mut Neighbor {
            self.neighbors.get_mut(&(UNDERLAY, self.remote)).expect("a neighbour")
        }

        fn resolve(&self) -> Result<NextHop, Unresolved> {
            let links = OrdMap::from(vec![(self.link.index, self.link.clone())]);
            resolve(self.remote, self.route.as_ref(), &links, &self.underlays, &self.neighbors)
        }

        fn obstacle(&self) -> String {
            self.resolve().expect_err("unresolved").to_string()
        }
    }

    #[test]
    fn on_link() {
        let expected = NextHop { ifindex: UNDERLAY, source_mac: OURS, destination_mac: THEIRS, mtu: 1500 };
        assert_eq!(World::new().resolve(), Ok(expected));
    }

    #[test]
    fn through_a_gateway() {
        let mut world = World::new();
        let gateway = address("192.0.2.1");
        let router = MacAddr([2, 0, 0, 0, 0, 3]);
        world.route().gateway = Some(gateway);
        assert_eq!(world.obstacle(), "192.0.2.1 does not answer on eth0");
        world.neighbors.insert((UNDERLAY, gateway), Neighbor { mac: Some(router), usable: true });
        assert_eq!(world.resolve().expect("resolved").destination_mac, router);
    }

    #[test]
    fn an_ipv4_remote_behind_an_ipv6_gateway() {
        let mut world = World::new();
        let gateway = address("fe80::1");
        world.route().gateway = Some(gateway);
        world.neighbors =
            OrdMap::from(vec![((UNDERLAY, gateway), Neighbor { mac: Some(THEIRS), usable: true })]);
        assert_eq!(world.resolve().expect("resolved").destination_mac, THEIRS);
        assert_eq!(next_hop_address(world.route(), address("192.0.2.9")), gateway);
    }

    #[test]
    fn an_ipv6_remote_on_the_link_and_behind_a_gateway() {
        let mut world = World::new();
        world.remote = address("2001:db8::9");
        let there = Neighbor { mac: Some(THEIRS), usable: true };
        assert_eq!(world.obstacle(), "2001:db8::9 does not answer on eth0");
        world.neighbors.insert((UNDERLAY, world.remote), there);
        assert_eq!(world.resolve().expect("resolved").destination_mac, THEIRS);
        // A link-local gateway is one on this link.
        world.route().gateway = Some(address("fe80::1"));
        world.route().mtu = Some(1280);
        assert_eq!(world.obstacle(), "fe80::1 does not answer on eth0");
        world.neighbors.insert((7, address("fe80::1")), there);
        assert_eq!(world.obstacle(), "fe80::1 does not answer on eth0");
        world.neighbors.insert((UNDERLAY, address("fe80::1")), there);
        assert_eq!(world.resolve().expect("resolved").mtu, 1280);
    }

    #[test]
    fn the_smaller_mtu_counts() {
        for (route, expected) in [(None, 1500), (Some(1400), 1400), (Some(9000), 1500)] {
            let mut world = World::new();
            world.route().mtu = route;
            assert_eq!(world.resolve().expect("resolved").mtu, expected);
        }
    }

    #[test]
    fn each_obstacle_has_its_phrase() {
        type Spoil = fn(&mut World);
        let cases: [(&str, Spoil); 13] = [
            ("no route", |w| w.route = None),
            ("address of this host", |w| w.route().local = true),
            ("route leaves by eth0, not an underlay", |w| w.underlays = vec![7]),
            ("route leaves by interface 5, not an underlay", |w| w.route().ifindex = 5),
            ("interface 7 is down", |w| w.route().ifindex = 7),
            ("eth0 is down", |w| w.link.up = false),
            ("eth0 is down", |w| w.link.running = false),
            ("eth0 is not Ethernet", |w| w.link.ethernet = false),
            ("eth0 is not Ethernet", |w| w.link.mac = None),
            ("192.0.2.9 does not answer on eth0", |w| w.neighbors.clear()),
            ("192.0.2.9 does not answer on eth0", |w| {
                w.neighbor().usable = false;
            }),
            ("192.0.2.9 does not answer on eth0", |w| {
                w.neighbor().mac = None;
            }),
            ("192.0.2.9 does not answer on eth0", |w| {
                w.neighbor().mac = Some(MacAddr::BROADCAST);
            }),
        ];
        for (phrase, spoil) in cases {
            let mut world = World::new();
            spoil(&mut world);
            assert_eq!(world.obstacle(), phrase);
        }
    }

    #[test]
    fn the_neighbour_of_another_interface_does_not_count() {
        let mut world = World::new();
        let remote = world.remote;
        world.neighbors = OrdMap::from(vec![((7, remote), Neighbor { mac: Some(THEIRS), usable: true })]);
        assert_eq!(world.obstacle(), "192.0.2.9 does not answer on eth0");
    }
}
