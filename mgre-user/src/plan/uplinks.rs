//! Which of a host's uplinks packets to a remote take: what the kernel is asked, and what is made of its answers.
//!
//! Rules and VRFs may send packets from one address another way than packets from the next one, so routes are asked
//! for with the source address that outer packets will have, which each underlay has one of.

use std::net::IpAddr;

use super::Observed;
use crate::model::State;
use crate::netlink::{Link, Lookup, Route};

/// The kind of interface that is a VRF.
const VRF: &str = "vrf";

/// An underlay interface that is there, with one of its local addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Uplink {
    ifindex: u32,
    local: IpAddr,
    /// The VRF that it belongs to.
    vrf: Option<u32>,
    /// Whether it is up and has a carrier.
    usable: bool,
}

/// The underlay interfaces of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks(Vec<Uplink>);

impl Uplinks {
    /// Those that a state names and that are there.
    pub fn new(state: &State, observed: &Observed) -> Self {
        let mut uplinks = Vec::new();
        for (name, underlay) in &state.underlays {
            let Some(link) = observed.link(name) else { continue };
            let is_vrf =
                |index: &u32| observed.links.get(index).is_some_and(|link| link.kind.as_deref() == Some(VRF));
            let vrf = link.controller.filter(is_vrf);
            let (ifindex, usable) = (link.index, link.up && link.running);
            uplinks.extend(underlay.locals.iter().map(|local| Uplink { ifindex, local, vrf, usable }));
        }
        Self(uplinks)
    }

    /// Whether an interface is one of them.
    pub fn contains(&self, ifindex: u32) -> bool {
        self.0.iter().any(|uplink| uplink.ifindex == ifindex)
    }

    fn like(&self, remote: IpAddr) -> impl Iterator<Item = &Uplink> {
        self.0.iter().filter(move |uplink| uplink.local.is_ipv4() == remote.is_ipv4())
    }

    /// What to ask the kernel about a remote: the way from each local address, and where there are several, what it
    /// would choose by itself.
    pub fn lookups(&self, destination: IpAddr) -> Vec<Lookup> {
        let mut lookups: Vec<Lookup> = Vec::new();
        for Uplink { local, vrf, .. } in self.like(destination) {
            let lookup = Lookup { destination, source: Some(*local), by: *vrf };
            if !lookups.contains(&lookup) {
                lookups.push(lookup);
            }
        }
        if lookups.len() != 1 {
            let mut vrfs: Vec<Option<u32>> = lookups.iter().map(|lookup| lookup.by).collect();
            vrfs.dedup();
            if vrfs.is_empty() {
                vrfs.push(None);
            }
            lookups.extend(vrfs.into_iter().map(|vrf| Lookup { destination, source: None, by: vrf }));
        }
        lookups
    }

    /// What to ask for a way that leaves by another interface than this one.
    pub fn detours(&self, destination: IpAddr, avoided: u32) -> Vec<Lookup> {
        let others = self.like(destination).filter(|uplink| uplink.ifindex != avoided && uplink.usable);
        others
            .map(|uplink| Lookup { destination, source: Some(uplink.local), by: Some(uplink.ifindex) })
            .collect()
    }

    /// The route to take, given the answers to [`Self::lookups`]: one that leaves by an underlay with that underlay's
    /// own address. Of several, the one that the kernel would choose by itself, or else the first that is usable.
    /// Where there is none, what stands in the way.
    pub fn choose(&self, answers: &[(Lookup, Option<Route>)]) -> Option<Route> {
        let found = || answers.iter().filter_map(|(lookup, route)| Some((lookup, (*route)?)));
        let by = |lookup: &Lookup, route: &Route| {
            self.0.iter().find(|uplink| {
                uplink.ifindex == route.ifindex && Some(uplink.local) == lookup.source && !route.local
            })
        };
        let fitting = || found().filter_map(|(lookup, route)| Some((by(lookup, &route)?, route)));
        let unbidden = || found().filter(|(lookup, _)| lookup.source.is_none()).map(|(_, route)| route);
        let preferred = || {
            unbidden().find_map(|choice| {
                fitting().find(|(uplink, _)| uplink.ifindex == choice.ifindex).map(|(_, route)| route)
            })
        };
        preferred()
            .or_else(|| fitting().find(|(uplink, _)| uplink.usable).map(|(_, route)| route))
            .or_else(|| fitting().next().map(|(_, route)| route))
            .or_else(|| unbidden().next())
            .or_else(|| found().next().map(|(_, route)| route))
    }
}

/// Whether the kernel may route otherwise because of what an interface has become.
pub fn reroutes(old: Option<&Link>, new: Option<&Link>) -> bool {
    let matters = |link: Option<&Link>| link.map(|link| (link.up, link.running, link.controller));
    matters(old) != matters(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, Ids, UnderlaySettings};

    const REMOTE: &str = "203.0.113.2";

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.to_owned(), up: true, running: true, ..Link::default() }
    }

    /// wan0 to wan2, whose indices are 10 to 12 and whose addresses 192.0.2.10 to 12, but for wan2's, which is wan1's.
    fn host(underlays: &[&str], spoil: impl Fn(&mut Observed)) -> Uplinks {
        let links = [link(10, "wan0"), link(11, "wan1"), link(12, "wan2"), link(13, "blue")];
        let links = links.into_iter().map(|link| (link.index, link)).collect();
        let mut observed = Observed { links, ..Observed::default() };
        spoil(&mut observed);
        let change = |name: &&str| {
            let local = if *name == "wan0" { "192.0.2.10" } else { "192.0.2.11" };
            Change::AddUnderlay { interface: (*name).to_owned(), settings: UnderlaySettings::at(ip(local)) }
        };
        let state = State::default().apply_all(underlays.iter().map(change), &Ids::default());
        Uplinks::new(&state.expect("a state"), &observed)
    }

    fn by(ifindex: u32) -> Option<Route> {
        Some(Route { ifindex, ..Route::default() })
    }

    /// Where packets go, if the kernel answers the lookups so.
    fn choice(uplinks: &Uplinks, answer: impl Fn(&Lookup) -> Option<Route>) -> Option<u32> {
        let answers: Vec<_> =
            uplinks.lookups(ip(REMOTE)).into_iter().map(|lookup| (lookup, answer(&lookup))).collect();
        uplinks.choose(&answers).map(|route| route.ifindex)
    }

    fn from(lookup: &Lookup, last: u8) -> bool {
        lookup.source == Some(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn one_underlay_is_asked_for_from_its_address_alone() {
        let uplinks = host(&["wan1"], |_| ());
        let sources: Vec<_> = uplinks.lookups(ip(REMOTE)).iter().map(|lookup| lookup.source).collect();
        assert_eq!(sources, [Some(ip("192.0.2.11"))]);
        assert_eq!(choice(&uplinks, |_| by(11)), Some(11));
        assert_eq!(choice(&uplinks, |_| by(10)), Some(10), "what stands in the way is told");
        assert_eq!(choice(&uplinks, |_| None), None);
        // None of the remote's IP version.
        let sources: Vec<_> = uplinks.lookups(ip("2001:db8::1")).iter().map(|lookup| lookup.source).collect();
        assert_eq!(sources, [None]);
    }

    #[test]
    fn of_several_the_kernels_own_choice_counts_if_it_can() {
        let uplinks = host(&["wan0", "wan1"], |_| ());
        assert_eq!(uplinks.lookups(ip(REMOTE)).len(), 3);
        let ruled = |lookup: &Lookup| by(if from(lookup, 11) { 11 } else { 10 });
        assert_eq!(choice(&uplinks, ruled), Some(10), "by the default route");
        // The default route leaves by an interface that is no underlay.
        let elsewhere = |lookup: &Lookup| match () {
            () if from(lookup, 11) => by(11),
            () if from(lookup, 10) => None,
            () => by(13),
        };
        assert_eq!(choice(&uplinks, elsewhere), Some(11));
        // Only rules lead anywhere.
        let rules = |lookup: &Lookup| if from(lookup, 11) { by(11) } else { None };
        assert_eq!(choice(&uplinks, rules), Some(11));
        // From wan0's address by wan1, where packets have another one.
        assert_eq!(choice(&uplinks, |_| by(11)), Some(11));
        let crossed = |lookup: &Lookup| by(if from(lookup, 11) { 10 } else { 11 });
        assert_eq!(choice(&uplinks, crossed), Some(11), "as the kernel would by itself");
    }

    #[test]
    fn a_usable_one_comes_first() {
        let down = |observed: &mut Observed| {
            observed.links.get_mut(&10).expect("wan0").running = false;
        };
        let uplinks = host(&["wan0", "wan1"], down);
        let rules = |lookup: &Lookup| match () {
            () if from(lookup, 10) => by(10),
            () if from(lookup, 11) => by(11),
            () => None,
        };
        assert_eq!(choice(&uplinks, rules), Some(11));
        assert_eq!(choice(&host(&["wan0", "wan1"], |_| ()), rules), Some(10));
    }

    #[test]
    fn two_underlays_with_one_address_are_one_question() {
        let uplinks = host(&["wan1", "wan2"], |_| ());
        assert_eq!(uplinks.lookups(ip(REMOTE)).len(), 1);
        assert_eq!(choice(&uplinks, |_| by(12)), Some(12));
        assert_eq!(choice(&uplinks, |_| by(11)), Some(11));
    }

    #[test]
    fn a_detour_leaves_by_another_uplink() {
        let down = |observed: &mut Observed| {
            observed.links.get_mut(&10).expect("wan0").running = false;
        };
        let uplinks = host(&["wan0", "wan1", "wan2"], down);
        let by = |avoided: u32| -> Vec<Option<u32>> {
            uplinks.detours(ip(REMOTE), avoided).iter().map(|lookup| lookup.by).collect()
        };
        assert_eq!(by(11), [Some(12)], "wan0 has no carrier");
        assert_eq!(by(12), [Some(11)]);
        assert_eq!(by(10), [Some(11), Some(12)]);
        assert!(uplinks.detours(ip("2001:db8::1"), 11).is_empty());
        let answers: Vec<_> = uplinks
            .detours(ip(REMOTE), 10)
            .into_iter()
            .map(|lookup| (lookup, super::tests::by(12)))
            .collect();
        assert_eq!(uplinks.choose(&answers).map(|route| route.ifindex), Some(12));
    }

    #[test]
    fn an_address_of_this_host_is_one_from_wherever() {
        let uplinks = host(&["wan0", "wan1"], |_| ());
        let local = Some(Route { ifindex: 10, local: true, ..Route::default() });
        let answers: Vec<_> = uplinks.lookups(ip(REMOTE)).into_iter().map(|lookup| (lookup, local)).collect();
        assert_eq!(uplinks.choose(&answers), local);
    }

    #[test]
    fn the_table_of_a_vrf_is_asked() {
        let enslaved = |observed: &mut Observed| {
            observed.links.get_mut(&11).expect("wan1").controller = Some(13);
            observed.links.get_mut(&13).expect("blue").kind = Some("vrf".into());
        };
        let vrfs = |underlays: &[&str]| -> Vec<Option<u32>> {
            host(underlays, enslaved).lookups(ip(REMOTE)).iter().map(|lookup| lookup.by).collect()
        };
        assert_eq!(vrfs(&["wan1"]), [Some(13)]);
        assert_eq!(vrfs(&["wan0", "wan1"]), [None, Some(13), None, Some(13)]);
        // A bridge is none.
        let bridged = |observed: &mut Observed| {
            observed.links.get_mut(&11).expect("wan1").controller = Some(13);
        };
        assert_eq!(host(&["wan1"], bridged).lookups(ip(REMOTE))[0].by, None);
    }

    #[test]
    fn what_carries_packets_matters_for_routes() {
        let up = link(1, "wan0");
        let other = |change: fn(&mut Link)| {
            let mut link = up.clone();
            change(&mut link);
            reroutes(Some(&up), Some(&link))
        };
        assert!(reroutes(None, Some(&up)) && reroutes(Some(&up), None) && !reroutes(Some(&up), Some(&up)));
        assert!(other(|link| link.running = false) && other(|link| link.controller = Some(7)));
        assert!(!other(|link| link.mtu = 9000) && !other(|link| link.promiscuous = true));
    }
}
