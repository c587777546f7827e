//! What the datapath knows of peers, for those beside the engine. Pure.

use std::net::{IpAddr, Ipv6Addr};

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use mgre_common::endpoint::{EndpointKey, VSID_MASK, endpoint_address, endpoint_kind, local_flag};
use mgre_common::table::{OuterFamily, Template, template_flag, template_option};
use mgre_common::wire::{
    ETHERNET_LEN, EtherType, GRE_FIELD_LEN, GRE_LEN, GreFlags, IPV4_LEN, IPV6_LEN, UDP_LEN,
};

use crate::plan::{AdjacencyRecord, EndpointOwner, Plan};

/// UDP source ports that say which flow it is (RFC 8086 3.2.1).
const ENTROPY_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;

/// Endpoints, and what is sent to them. As cheap to copy as a [`Plan`].
#[derive(Clone, Debug, Default)]
pub struct Known {
    endpoints: OrdMap<EndpointKey, EndpointOwner>,
    adjacencies: OrdMap<u32, AdjacencyRecord>,
    /// How many of the adjacencies are GRE in UDP.
    udp: usize,
    /// How many number their packets.
    numbered: usize,
}

impl Known {
    /// Becomes what a plan says. Costs what is different.
    pub fn follow(&mut self, plan: &Plan) {
        let has = |record: &AdjacencyRecord, option| usize::from(record.template.options & option != 0);
        let (udp, numbered) = (
            |record: &AdjacencyRecord| has(record, template_option::UDP),
            |record: &AdjacencyRecord| has(record, template_option::SEQUENCE),
        );
        for item in self.adjacencies.diff(&plan.adjacencies) {
            let (old, new) = match item {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
            };
            self.udp += new.map_or(0, udp);
            self.udp -= old.map_or(0, udp);
            self.numbered += new.map_or(0, numbered);
            self.numbered -= old.map_or(0, numbered);
        }
        self.endpoints = plan.endpoints.clone();
        self.adjacencies = plan.adjacencies.clone();
    }

    /// Whether some peer is sent GRE in UDP.
    pub const fn has_udp(&self) -> bool {
        self.udp > 0
    }

    /// Whether some peer is sent sequence numbers.
    pub const fn has_numbered(&self) -> bool {
        self.numbered > 0
    }

    /// Whether packets go between a peer's endpoint and one of ours.
    pub fn is_peer(&self, remote: IpAddr, local: IpAddr) -> bool {
        let [remote, local] = [remote, local].map(endpoint_address);
        self.endpoints.contains_key(&EndpointKey { remote, local, key: 0, kind: endpoint_kind::KNOWN })
    }

    /// Whether some peer sends such GRE: with this key, and Ethernet inside.
    pub fn is_peers(&self, remote: IpAddr, local: IpAddr, gre: &[u8]) -> bool {
        let Some([flags_high, flags_low, protocol @ ..]) = gre.first_chunk::<4>().copied() else {
            return false;
        };
        let flags = GreFlags(u16::from_be_bytes([flags_high, flags_low]));
        let at = GRE_LEN + if flags.has_checksum() { GRE_FIELD_LEN } else { 0 };
        let key = gre.get(at..).and_then(|rest| rest.first_chunk()).map(|key| u32::from_ne_bytes(*key));
        let [remote, local] = [remote, local].map(endpoint_address);
        let is = |key, kind| self.endpoints.contains_key(&EndpointKey { remote, local, key, kind });
        let found = match (flags.has_key(), key) {
            (false, _) => is(0, endpoint_kind::KEYLESS),
            (true, Some(key)) => is(key, endpoint_kind::KEYED) || is(key & VSID_MASK, endpoint_kind::VSID),
            (true, None) => false,
        };
        found && EtherType::from_bytes(protocol) == EtherType::TRANSPARENT_ETHERNET
    }

    /// Our endpoints, and for which of them GRE of no peer's is the kernel's.
    pub fn locals(&self) -> impl Iterator<Item = (IpAddr, bool)> {
        let first = EndpointKey { remote: [0; 4], local: [0; 4], key: 0, kind: 0 };
        let last = EndpointKey { remote: [0; 4], local: [u32::MAX; 4], key: u32::MAX, kind: u32::MAX };
        let ours = self.endpoints.range(first..=last).filter(|(key, _)| key.kind == endpoint_kind::LOCAL);
        ours.map(|(key, owner)| (address(key.local), owner.adjacency & local_flag::PASS_FOREIGN != 0))
    }

    /// The outer headers of all that is sent from one endpoint to another.
    pub fn templates(&self, remote: IpAddr, local: IpAddr) -> impl Iterator<Item = &Template> {
        let [remote, local] = [remote, local].map(endpoint_address);
        let first = EndpointKey { remote, local, key: 0, kind: 0 };
        let last = EndpointKey { key: u32::MAX, kind: u32::MAX, ..first };
        let adjacency = |(key, owner): (&EndpointKey, &EndpointOwner)| {
            let record = key.is_indexed().then(|| self.adjacencies.get(&owner.adjacency)).flatten()?;
            Some(&record.template)
        };
        self.endpoints.range(first..=last).filter_map(adjacency)
    }

    /// The longest IP packet that may go where a packet goes, in bytes: its addresses, and what stands behind its
    /// IP header. None while there is no way there.
    pub fn mtu(&self, remote: IpAddr, local: IpAddr, rest: &[u8]) -> Option<u32> {
        let template = self.templates(remote, local).find(|template| is_begun_by(template, rest))?;
        let routed = template.flags & template_flag::ROUTED != 0;
        routed.then(|| template.max_frame + u32::from(template.header_len) - ETHERNET_LEN as u32)
    }
}

/// An address in the form of [`EndpointKey`] as the one that it is.
fn address(words: [u32; 4]) -> IpAddr {
    let octets: [u8; 16] = bytemuck::cast(words);
    Ipv6Addr::from(octets).to_canonical()
}

/// Where a template's IP header ends.
const fn payload_at(template: &Template) -> usize {
    ETHERNET_LEN + if template.family == OuterFamily::Ipv6 as u8 { IPV6_LEN } else { IPV4_LEN }
}

/// Whether a packet that a template begins could begin so behind its IP header, of which eight bytes are needed.
/// What each packet has of its own may be anything.
pub fn is_begun_by(template: &Template, rest: &[u8]) -> bool {
    let Some(header) = template.header.get(payload_at(template)..template.header_len.into()) else {
        return false;
    };
    if rest.len() < 8 {
        return false;
    }
    let has = |option| template.options & option != 0;
    let mut own = [false; 32];
    let mut at = 0;
    if has(template_option::UDP) {
        let port = rest.first_chunk().map(|port| u16::from_be_bytes(*port));
        if !port.is_some_and(|port| ENTROPY_PORTS.contains(&port)) {
            return false;
        }
        own[..2].fill(true);
        // Length and checksum.
        own[4..8].fill(true);
        at += UDP_LEN;
    }
    at += GRE_LEN;
    if has(template_option::CHECKSUM) {
        own[at..at + GRE_FIELD_LEN].fill(true);
        at += GRE_FIELD_LEN;
    }
    if has(template_option::FLOW_ID) {
        own[at + GRE_FIELD_LEN - 1] = true;
    }
    if has(template_option::SEQUENCE) {
        own[header.len() - GRE_FIELD_LEN..header.len()].fill(true);
    }
    header.iter().zip(rest).zip(own).all(|((wanted, found), own)| own || wanted == found)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use mgre_common::endpoint::endpoint_key;
    use mgre_common::template::{DontFragment, Encapsulation, Key, Link, Outer, Tos};
    use mgre_common::wire::MacAddr;

    /// Addresses of one family: the peer's and ours.
    pub(crate) fn addresses(v6: bool) -> (IpAddr, IpAddr) {
        let parse = |text: &str| text.parse().expect("an address");
        match v6 {
            true => (parse("2001:db8::2"), parse("2001:db8::1")),
            false => (parse("192.0.2.2"), parse("192.0.2.1")),
        }
    }

    pub(crate) fn outer(v6: bool) -> Outer {
        let (destination, source) = addresses(v6);
        Outer {
            source,
            destination,
            ttl: 64,
            tos: Tos::Fixed(0),
            dont_fragment: DontFragment::Set,
            key: Key::Plain(7),
            checksum: false,
            sequence: false,
            encapsulation: Encapsulation::Gre,
        }
    }

    pub(crate) fn template(outer: &Outer) -> Template {
        let link = Link { ifindex: 1, source_mac: MacAddr::ZERO, destination_mac: None, mtu: 1500 };
        Template::new(outer, Some(&link))
    }

    /// A plan's part with these adjacencies.
    pub(crate) fn known(outers: &[Outer]) -> Known {
        let mut known = Known::default();
        known.follow(&plan(outers));
        known
    }

    fn plan(outers: &[Outer]) -> Plan {
        let mut plan = Plan::default();
        for (id, outer) in (0_u32..).zip(outers) {
            let [remote, local] = [outer.destination, outer.source].map(endpoint_address);
            let (kind, key) = endpoint_key(outer.key);
            let owner = EndpointOwner { adjacency: id, flags: 0 };
            plan.endpoints.insert(EndpointKey { remote, local, key, kind }, owner);
            let kind = endpoint_kind::KNOWN;
            plan.endpoints.insert(EndpointKey { remote, local, key: 0, kind }, EndpointOwner::default());
            let record = AdjacencyRecord { segment: 1, flags: 0, storm_limit: 0, template: template(outer) };
            plan.adjacencies.insert(id, record);
        }
        plan
    }

    /// What stands behind the IP header.
    pub(crate) fn rest(outer: &Outer) -> Vec<u8> {
        let template = template(outer);
        template.header[payload_at(&template)..template.header_len.into()].to_vec()
    }

    #[test]
    fn gre_in_udp_is_noticed_when_it_comes_and_when_it_goes() {
        let udp = Outer { encapsulation: Encapsulation::GreUdp, ..outer(false) };
        let mut known = Known::default();
        for (outers, has) in [
            (vec![outer(false)], false),
            (vec![outer(false), udp], true),
            (vec![udp, outer(false)], true),
            (vec![udp, udp], true),
            (vec![udp], true),
            (vec![outer(true)], false),
            (vec![udp], true),
            (vec![], false),
        ] {
            known.follow(&plan(&outers));
            assert_eq!(known.has_udp(), has, "{outers:?}");
        }
    }

    #[test]
    fn our_endpoints() {
        let mut known = known(&[outer(false), outer(true)]);
        assert_eq!(known.locals().count(), 0);
        let locals = [addresses(false).1, addresses(true).1];
        for local in locals.map(endpoint_address) {
            let key = EndpointKey { remote: [0; 4], local, key: 0, kind: endpoint_kind::LOCAL };
            known.endpoints.insert(key, EndpointOwner::default());
        }
        let found: std::collections::BTreeSet<_> = known.locals().collect();
        assert_eq!(found, locals.map(|local| (local, false)).into());
        let key = EndpointKey {
            remote: [0; 4],
            local: endpoint_address(locals[0]),
            key: 0,
            kind: endpoint_kind::LOCAL,
        };
        known.endpoints.insert(key, EndpointOwner::local(local_flag::PASS_FOREIGN));
        let found: std::collections::BTreeSet<_> = known.locals().collect();
        assert_eq!(found, [(locals[0], true), (locals[1], false)].into());
    }

    #[test]
    fn what_a_peer_sends_is_told_from_what_others_do() {
        for v6 in [false, true] {
            let (remote, local) = addresses(v6);
            for (key, ours, others) in [
                (Key::None, &[0, 0, 0x65, 0x58][..], &[0x20, 0, 0x65, 0x58, 0, 0, 0, 0][..]),
                (Key::Plain(7), &[0x20, 0, 0x65, 0x58, 0, 0, 0, 7], &[0x20, 0, 0x65, 0x58, 0, 0, 0, 8]),
                (Key::Plain(7), &[0xa0, 0, 0x65, 0x58, 1, 2, 0, 0, 0, 0, 0, 7], &[0, 0, 0x65, 0x58]),
                (Key::Plain(7), &[0x20, 0, 0x65, 0x58, 0, 0, 0, 7], &[0x20, 0, 8, 0, 0, 0, 0, 7]),
                (
                    Key::Vsid(5000),
                    &[0x20, 0, 0x65, 0x58, 0, 0x13, 0x88, 9],
                    &[0x20, 0, 0x65, 0x58, 0, 0x13, 0x89, 9],
                ),
                (Key::Plain(7), &[0x20, 0, 0x65, 0x58, 0, 0, 0, 7], &[0x20, 0, 0x65]),
            ] {
                let known = known(&[Outer { key, ..outer(v6) }]);
                assert!(known.is_peers(remote, local, ours), "{ours:02x?}");
                assert!(!known.is_peers(remote, local, others), "{others:02x?}");
                assert!(!known.is_peers(local, remote, ours), "from somebody else");
            }
        }
    }

    #[test]
    fn peers_are_known_by_both_addresses() {
        for v6 in [false, true] {
            let (remote, local) = addresses(v6);
            let known = known(&[outer(v6)]);
            assert!(known.is_peer(remote, local));
            assert!(!known.is_peer(local, remote) && !known.is_peer(remote, remote));
            assert_eq!(
                (known.templates(remote, local).count(), known.templates(local, remote).count()),
                (1, 0)
            );
        }
    }

    #[test]
    fn the_mtu_is_the_underlays_whatever_the_overhead() {
        for v6 in [false, true] {
            let (remote, local) = addresses(v6);
            let other = Outer { key: Key::None, checksum: true, ..outer(v6) };
            let known = known(&[outer(v6), other]);
            for outer in [outer(v6), other] {
                assert_eq!(known.mtu(remote, local, &rest(&outer)), Some(1500));
            }
            assert_eq!(known.mtu(remote, local, &[0; 8]), None);
        }
    }

    #[test]
    fn every_byte_counts_but_those_that_are_a_packets_own() {
        for (options, own) in [
            (outer(false), vec![]),
            (Outer { checksum: true, ..outer(true) }, (4..8).collect()),
            (Outer { checksum: true, sequence: true, ..outer(false) }, (4..8).chain(12..16).collect()),
            (Outer { key: Key::Vsid(0x4321), ..outer(false) }, vec![7]),
            (Outer { key: Key::None, sequence: true, ..outer(false) }, (4..8).collect()),
        ] {
            let template = template(&options);
            let rest = rest(&options);
            assert!(is_begun_by(&template, &rest), "{options:?}");
            for at in 0..rest.len() {
                let mut other = rest.clone();
                other[at] ^= 1;
                assert_eq!(is_begun_by(&template, &other), own.contains(&at), "{options:?}: byte {at}");
            }
            assert!(is_begun_by(&template, &rest[..8]), "eight bytes are enough");
            assert!(!is_begun_by(&template, &rest[..7]));
        }
    }

    #[test]
    fn gre_in_udp_by_its_ports() {
        let options = Outer { encapsulation: Encapsulation::GreUdp, ..outer(true) };
        let template = template(&options);
        let mut packet = rest(&options);
        assert!(!is_begun_by(&template, &packet), "a source port that is never sent");
        packet[..2].copy_from_slice(&50_000_u16.to_be_bytes());
        assert!(is_begun_by(&template, &packet) && is_begun_by(&template, &packet[..8]));
        for at in [2, 3, 8, 9, 10, 11, 12, 15] {
            let mut other = packet.clone();
            other[at] ^= 1;
            assert!(!is_begun_by(&template, &other), "byte {at}");
        }
    }
}
