//! ARP and ND in segments that suppress them.
//!
//! What is contested stays so, and the kernel reports a claim once in a while, so each case
//! has addresses of its own where it changes or reports something.

use core::net::IpAddr;

use mgre_common::fdb::FdbKey;
use mgre_common::neighbor::{NeighborEvent, NeighborKey, Protocol, neighbor_flag};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use super::Case;
use crate::frame::{Egress, Side};
use crate::host::packet::{Outer, internet_checksum, tagged, with_payload};
use crate::host::world::neighbors::{
    CONTESTED, DISPUTED, HOMELESS, SUPPRESSED, SUPPRESSED_KEY, SUPPRESSED_VLAN, UNSUPPRESSED,
    UNSUPPRESSED_KEY, host_v4, host_v6,
};
use crate::host::world::{VLAN_INTERFACE, peer_v4, station};

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = answered();
    cases.extend(left_alone());
    cases.extend(malformed());
    cases.extend(claims());
    cases
}

/// ARP for IPv4 (RFC 826), every field of it.
#[derive(Clone, Copy, Debug)]
struct Arp {
    to: MacAddr,
    from: MacAddr,
    hardware: u16,
    lengths: [u8; 2],
    operation: u16,
    sender: (MacAddr, [u8; 4]),
    target: (MacAddr, [u8; 4]),
}

impl Arp {
    /// A station asks for an address.
    fn request(asker: u8, wanted: u8) -> Self {
        Self {
            to: MacAddr::BROADCAST,
            from: station(asker),
            hardware: 1,
            lengths: [6, 4],
            operation: 1,
            sender: (station(asker), host_v4(asker)),
            target: (MacAddr::ZERO, host_v4(wanted)),
        }
    }

    /// What the station with the address says to that.
    fn reply(asker: u8, wanted: u8, owner: u8) -> Self {
        Self {
            to: station(asker),
            from: station(owner),
            operation: 2,
            sender: (station(owner), host_v4(wanted)),
            target: (station(asker), host_v4(asker)),
            ..Self::request(asker, wanted)
        }
    }

    fn bytes(self) -> Vec<u8> {
        let mut payload = self.hardware.to_be_bytes().to_vec();
        payload.extend([8, 0]);
        payload.extend(self.lengths);
        payload.extend(self.operation.to_be_bytes());
        for (mac, ip) in [self.sender, self.target] {
            payload.extend(mac.0);
            payload.extend(ip);
        }
        with_payload(self.to, self.from, 0x0806, &payload)
    }
}

/// A neighbour message (RFC 4861 4.3, 4.4), every field of it.
#[derive(Clone, Debug)]
struct Nd {
    to: MacAddr,
    from: MacAddr,
    /// Version, class and flow label.
    start: u32,
    hops: u8,
    source: [u8; 16],
    destination: [u8; 16],
    kind: u8,
    code: u8,
    flags: u8,
    target: [u8; 16],
    options: Vec<u8>,
    checksum: u16,
}

/// A link-layer address option (RFC 4861 4.6.1).
fn link_layer(kind: u8, mac: MacAddr) -> Vec<u8> {
    [vec![kind, 1], mac.0.to_vec()].concat()
}

impl Nd {
    /// A station asks for an address, by its solicited-node group (RFC 4291 2.7.1).
    fn solicitation(asker: u8, wanted: u8) -> Self {
        let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, wanted];
        Self {
            to: MacAddr([0x33, 0x33, 0xff, 0, 0, wanted]),
            from: station(asker),
            start: 0x6001_2345,
            hops: 255,
            source: host_v6(asker),
            destination: group,
            kind: 135,
            code: 0,
            flags: 0,
            target: host_v6(wanted),
            options: link_layer(1, station(asker)),
            checksum: 0,
        }
    }

    /// What is answered to that.
    fn advertisement(asker: u8, wanted: u8, owner: u8, flags: u8) -> Self {
        Self {
            to: station(asker),
            from: station(owner),
            start: 0x6000_0000,
            source: host_v6(wanted),
            destination: host_v6(asker),
            kind: 136,
            flags,
            options: link_layer(2, station(owner)),
            ..Self::solicitation(asker, wanted)
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut message = vec![self.kind, self.code, 0, 0, self.flags, 0, 0, 0];
        message.extend(self.target);
        message.extend(&self.options);
        let length = (message.len() as u32).to_be_bytes();
        let pseudo = [&self.source[..], &self.destination, &length, &[0, 0, 0, 58], &message].concat();
        let checksum = internet_checksum(&pseudo).wrapping_add(self.checksum);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let mut packet = self.start.to_be_bytes().to_vec();
        packet.extend([length[2], length[3], 58, self.hops]);
        packet.extend(self.source);
        packet.extend(self.destination);
        packet.extend(message);
        with_payload(self.to, self.from, 0x86dd, &packet)
    }
}

impl Case {
    /// The reply goes back.
    fn answer(mut self, segment: u32, protocol: Protocol, id: u32, side: Side, reply: &[u8]) -> Self {
        self.expected.answered = Some((segment, protocol));
        self.send(Target::port(id), Egress::new(id + 10, side), reply.to_vec())
    }

    /// It is flooded from port 51.
    fn flooded_from_51(self, inner: &[u8]) -> Self {
        self.send(Target::port(52), Egress::new(62, Side::Out), inner.to_vec())
            .into_tunnel(60, peer_v4(60), SUPPRESSED_KEY, inner)
            .into_tunnel(61, peer_v4(61), SUPPRESSED_KEY, inner)
            .flooded(SUPPRESSED)
    }

    /// It says something that is news to the daemon.
    fn claims(mut self, address: impl Into<IpAddr>, mac: MacAddr, source: Target, flags: u16) -> Self {
        let segment = SUPPRESSED as u16;
        self.expected.claims.push(NeighborEvent {
            key: FdbKey::new(segment, mac),
            address: NeighborKey::new(segment, address.into()).address,
            source: source.to_bits(),
            flags: flags.into(),
        });
        self
    }
}

/// A frame from the port with this id.
fn from_port(name: &str, id: u32, bytes: &[u8]) -> Case {
    Case::port(format!("neighbours: {name}"), id + 10, bytes.to_vec()).received(Target::port(id), bytes.len())
}

/// A frame in a packet of the peer with this id.
fn from_peer(name: &str, id: u32, inner: &[u8]) -> Case {
    let packet = Outer::from_peer(peer_v4(id), SUPPRESSED_KEY).wrap(inner);
    Case::underlay(format!("neighbours: {name}"), packet).received(Target::adjacency(id), inner.len())
}

/// With Ethernet's padding.
fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(60, 0);
    bytes
}

fn answered() -> Vec<Case> {
    let (arp, nd) = (Protocol::Arp, Protocol::Nd);
    let ask = |name: &str, asker: u8, wanted: u8| {
        from_port(name, 50 + u32::from(asker), &Arp::request(asker, wanted).bytes())
    };
    let solicit = |name: &str, asker: u8, wanted: u8| {
        from_port(name, 50 + u32::from(asker), &Nd::solicitation(asker, wanted).bytes())
    };
    let arp_reply = |asker, wanted| Arp::reply(asker, wanted, wanted).bytes();
    let nd_reply = |asker, wanted, flags| Nd::advertisement(asker, wanted, wanted, flags).bytes();
    let wide = padded(Arp::request(1, 3).bytes());
    let unicast_group = Nd { to: MacAddr([0x33, 0x33, 0, 0, 0, 1]), ..Nd::solicitation(1, 3) }.bytes();
    vec![
        ask("ARP for a host behind a peer", 1, 3).answer(SUPPRESSED, arp, 51, Side::Out, &arp_reply(1, 3)),
        ask("ARP for a host at another port", 1, 2).answer(SUPPRESSED, arp, 51, Side::Out, &arp_reply(1, 2)),
        from_port("ARP for this host", 55, &Arp::request(2, 5).bytes()).answer(
            SUPPRESSED_VLAN,
            arp,
            55,
            Side::Out,
            &arp_reply(2, 5),
        ),
        from_port("ARP of this host", 53, &Arp::request(5, 2).bytes()).answer(
            SUPPRESSED_VLAN,
            arp,
            53,
            Side::Receive,
            &arp_reply(5, 2),
        ),
        from_port("ARP with padding", 51, &wide).answer(
            SUPPRESSED,
            arp,
            51,
            Side::Out,
            &padded(arp_reply(1, 3)),
        ),
        solicit("ND for a host behind a peer", 1, 3).answer(
            SUPPRESSED,
            nd,
            51,
            Side::Out,
            &nd_reply(1, 3, 0x40),
        ),
        solicit("ND for a router", 1, 4).answer(SUPPRESSED, nd, 51, Side::Out, &nd_reply(1, 4, 0xc0)),
        solicit("ND for a host at another port", 2, 1).answer(
            SUPPRESSED,
            nd,
            52,
            Side::Out,
            &nd_reply(2, 1, 0x40),
        ),
        from_port("ND to some other group", 51, &unicast_group).answer(
            SUPPRESSED,
            nd,
            51,
            Side::Out,
            &nd_reply(1, 3, 0x40),
        ),
        in_vlan(),
    ]
}

/// The reply has the tag of the question.
fn in_vlan() -> Case {
    let bytes = Arp::request(1, 2).bytes();
    let mut case = Case::port("neighbours: ARP in a VLAN", VLAN_INTERFACE, bytes.clone())
        .tag([0x81, 0, 0, 8])
        .received(Target::port(54), bytes.len());
    case.expected.answered = Some((SUPPRESSED_VLAN, Protocol::Arp));
    let egress = Egress { vlan: 8, ..Egress::new(VLAN_INTERFACE, Side::Out) };
    case.send(Target::port(54), egress, tagged(&Arp::reply(1, 2, 2).bytes(), 0x8100, 8))
}

/// What only the owner answers, and what nobody knows.
fn left_alone() -> Vec<Case> {
    let request = Arp::request(1, 3);
    let solicitation = Nd::solicitation(1, 3);
    let flooded = |name: &str, bytes: Vec<u8>| from_port(name, 51, &bytes).flooded_from_51(&bytes);
    let mut cases = vec![
        flooded("an ARP probe", Arp { sender: (station(1), [0; 4]), ..request }.bytes()),
        flooded("an ARP announcement", Arp { target: (MacAddr::ZERO, host_v4(1)), ..request }.bytes()),
        flooded("a gratuitous ARP reply", Arp { to: MacAddr::BROADCAST, ..Arp::reply(2, 1, 1) }.bytes()),
        flooded("ARP for somebody unknown", Arp::request(1, 99).bytes()),
        flooded("ARP for an address that is contested", Arp::request(1, CONTESTED).bytes()),
        flooded("ARP for somebody whose place is unknown", Arp::request(1, HOMELESS).bytes()),
        flooded("ARP for a host at the same port", Arp::request(1, 6).bytes()),
        flooded("ARP behind a tag", tagged(&request.bytes(), 0x8100, 9)),
        flooded(
            "ND to see whether an address is free",
            Nd { source: [0; 16], options: Vec::new(), ..solicitation.clone() }.bytes(),
        ),
        flooded(
            "ND to see whether an address is free, with an option that it may not have",
            Nd { source: [0; 16], ..solicitation.clone() }.bytes(),
        ),
        flooded("ND for somebody unknown", Nd::solicitation(1, 99).bytes()),
        flooded("ND for an address that is contested", Nd::solicitation(1, CONTESTED).bytes()),
        flooded("ND for somebody whose place is unknown", Nd::solicitation(1, HOMELESS).bytes()),
        flooded("ND for a host at the same port", Nd::solicitation(1, 6).bytes()),
        flooded("ND for the asker's own address", Nd { target: host_v6(1), ..solicitation.clone() }.bytes()),
        flooded("ND behind a tag", tagged(&solicitation.bytes(), 0x8100, 9)),
    ];
    let beside = request.bytes();
    cases.push(
        from_port("ARP with a tag beside it", 51, &beside)
            .tag([0x81, 0, 0, 9])
            .flooded_from_51(&tagged(&beside, 0x8100, 9)),
    );
    let probe = Arp { to: station(99), ..request }.bytes();
    cases.push(from_port("ARP to one station whose place is unknown", 51, &probe).flooded_from_51(&probe));
    // To the owner alone: it is not flooded anyway.
    let probe = Arp { to: station(3), ..request }.bytes();
    cases.push(from_port("ARP to the owner", 51, &probe).into_tunnel(
        60,
        peer_v4(60),
        SUPPRESSED_KEY,
        &probe,
    ));
    let probe = Nd { to: station(3), destination: host_v6(3), ..solicitation }.bytes();
    cases.push(from_port("ND to the owner", 51, &probe).into_tunnel(60, peer_v4(60), SUPPRESSED_KEY, &probe));
    let from_peer_60 = Arp::request(3, 1).bytes();
    cases.push(
        from_peer("ARP from a peer", 60, &from_peer_60)
            .send(Target::port(51), Egress::new(61, Side::Out), from_peer_60.clone())
            .send(Target::port(52), Egress::new(62, Side::Out), from_peer_60)
            .flooded(SUPPRESSED),
    );
    let bytes = Arp::request(1, 3).bytes();
    cases.push(
        from_port("ARP where nothing is suppressed", 56, &bytes)
            .into_tunnel(62, peer_v4(62), UNSUPPRESSED_KEY, &bytes)
            .flooded(UNSUPPRESSED),
    );
    cases
}

/// What is not as it must be is flooded, and nothing is learned of it.
fn malformed() -> Vec<Case> {
    let request = Arp::request(1, 3);
    let ask = Nd::solicitation(1, 3);
    let mut short = request.bytes();
    short.truncate(41);
    let mut odd = ask.bytes();
    odd.pop();
    let list = [
        ("ARP of another hardware type", Arp { hardware: 6, ..request }.bytes()),
        ("ARP with addresses of another length", Arp { lengths: [8, 4], ..request }.bytes()),
        ("ARP with IP addresses of another length", Arp { lengths: [6, 16], ..request }.bytes()),
        ("ARP with another operation", Arp { operation: 3, ..request }.bytes()),
        ("ARP of somebody else", Arp { sender: (station(2), host_v4(1)), ..request }.bytes()),
        ("ARP for a group", Arp { target: (MacAddr::ZERO, [224, 0, 0, 1]), ..request }.bytes()),
        ("ARP for a loopback address", Arp { target: (MacAddr::ZERO, [127, 0, 0, 1]), ..request }.bytes()),
        ("ARP from a group", Arp { sender: (station(1), [239, 1, 1, 1]), ..request }.bytes()),
        ("ARP from a loopback address", Arp { sender: (station(1), [127, 0, 0, 1]), ..request }.bytes()),
        ("ARP from network zero", Arp { sender: (station(1), [0, 0, 0, 1]), ..request }.bytes()),
        ("ARP cut short", short),
        ("ND that came over a router", Nd { hops: 254, ..ask.clone() }.bytes()),
        ("ND with a code", Nd { code: 1, ..ask.clone() }.bytes()),
        ("ND with a wrong checksum", Nd { checksum: 1, ..ask.clone() }.bytes()),
        ("ND without an option", Nd { options: Vec::new(), ..ask.clone() }.bytes()),
        ("ND with the other option", Nd { options: link_layer(2, station(1)), ..ask.clone() }.bytes()),
        ("ND of somebody else", Nd { options: link_layer(1, station(2)), ..ask.clone() }.bytes()),
        (
            "ND with a nonce (RFC 7527)",
            Nd {
                options: [link_layer(1, station(1)), vec![14, 1, 1, 2, 3, 4, 5, 6]].concat(),
                ..ask.clone()
            }
            .bytes(),
        ),
        ("ND for a group", Nd { target: [0xff; 16], ..ask.clone() }.bytes()),
        ("ND from a group", Nd { source: [0xff; 16], ..ask.clone() }.bytes()),
        ("ND of another version", Nd { start: 0x4000_0000, ..ask.clone() }.bytes()),
        ("an echo request", Nd { kind: 128, ..ask.clone() }.bytes()),
        ("ND cut short", odd),
        ("an advertisement that came over a router", {
            Nd { hops: 64, to: MacAddr::BROADCAST, ..Nd::advertisement(2, 70, 1, 0x20) }.bytes()
        }),
        ("an advertisement with a wrong checksum", {
            Nd { checksum: 7, to: MacAddr::BROADCAST, ..Nd::advertisement(2, 70, 1, 0x20) }.bytes()
        }),
        ("an advertisement of a loopback address", {
            let target = host_v6(0).map(|_| 0);
            Nd { target, to: MacAddr::BROADCAST, ..Nd::advertisement(2, 70, 1, 0x20) }.bytes()
        }),
        ("an advertisement without an option", {
            Nd { options: Vec::new(), to: MacAddr::BROADCAST, ..Nd::advertisement(2, 70, 1, 0x20) }.bytes()
        }),
    ];
    let flooded = |(name, bytes): (&str, Vec<u8>)| {
        let case = from_port(name, 51, &bytes).flooded_from_51(&bytes);
        // A test run refuses an IPv4 or IPv6 packet that is shorter than its header alone.
        if bytes.len() < 60 { case.host_only("too short for a test run") } else { case }
    };
    let mut cases: Vec<Case> = list.map(|(name, bytes)| (name, padded_arp(bytes))).map(flooded).into();
    // Behind the frame's end there is link-layer padding, which is no part of it.
    let whole = Arp { sender: (station(3), host_v4(71)), ..Arp::request(3, 1) }.bytes();
    let (inner, padding) = whole.split_at(41);
    let packet = [Outer::from_peer(peer_v4(60), SUPPRESSED_KEY).wrap(inner), padding.to_vec()].concat();
    let case = Case::underlay("neighbours: ARP that ends in the padding", packet)
        .received(Target::adjacency(60), inner.len())
        .send(Target::port(51), Egress::new(61, Side::Out), inner.to_vec())
        .send(Target::port(52), Egress::new(62, Side::Out), inner.to_vec())
        .flooded(SUPPRESSED);
    cases.push(case);
    cases
}

/// ARP that is whole gets its padding.
fn padded_arp(bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() == 42 { padded(bytes) } else { bytes }
}

/// What hosts say of themselves.
fn claims() -> Vec<Case> {
    let (port, peer) = (Target::port(51), Target::adjacency(60));
    let arp = |number: u8| Arp { sender: (station(1), host_v4(number)), ..Arp::request(1, 99) };
    let na = |number: u8, flags: u8| Nd {
        to: MacAddr([0x33, 0x33, 0, 0, 0, 1]),
        ..Nd::advertisement(1, number, 1, flags)
    };
    let news = |name: &str, number: u8, bytes: Vec<u8>| {
        from_port(name, 51, &bytes).flooded_from_51(&bytes).claims(host_v4(number), station(1), port, 0)
    };
    let announcement = Arp { target: (MacAddr::ZERO, host_v4(81)), ..arp(81) };
    let gratuitous = Arp { operation: 2, target: (station(1), host_v4(82)), ..arp(82) };
    let mut cases = vec![
        news("a request of somebody new", 80, arp(80).bytes()),
        news("an announcement of somebody new", 81, announcement.bytes()),
        news("a gratuitous reply of somebody new", 82, gratuitous.bytes()),
    ];
    let new_asker = Arp { sender: (station(1), host_v4(83)), ..Arp::request(1, 3) };
    let reply = Arp { target: (station(1), host_v4(83)), ..Arp::reply(1, 3, 3) };
    cases.push(
        from_port("a request of somebody new that is answered", 51, &new_asker.bytes())
            .claims(host_v4(83), station(1), port, 0)
            .answer(SUPPRESSED, Protocol::Arp, 51, Side::Out, &reply.bytes()),
    );
    for (name, number, flags, router) in [
        ("an advertisement of somebody new", 84, 0x20, 0),
        ("an advertisement of a new router", 85, 0xa0, neighbor_flag::ROUTER),
        ("an advertisement of one who is a router now", 1, 0xa0, neighbor_flag::ROUTER),
    ] {
        let bytes = na(number, flags).bytes();
        let case = from_port(name, 51, &bytes).flooded_from_51(&bytes);
        cases.push(case.claims(host_v6(number), station(1), port, router));
    }
    let bytes = na(1, 0x20).bytes();
    cases.push(from_port("an advertisement of somebody known", 51, &bytes).flooded_from_51(&bytes));
    let bytes = Arp::reply(1, 86, 3).bytes();
    cases.push(
        from_peer("a reply from a peer", 60, &bytes)
            .send(Target::port(51), Egress::new(61, Side::Out), bytes)
            .claims(host_v4(86), station(3), peer, 0),
    );
    let bytes = Nd::advertisement(1, 86, 3, 0x60).bytes();
    cases.push(
        from_peer("an advertisement from a peer", 60, &bytes)
            .send(Target::port(51), Egress::new(61, Side::Out), bytes)
            .claims(host_v6(86), station(3), peer, 0),
    );
    // Another network's, which may have the same addresses.
    let bytes = arp(87).bytes();
    cases.push(
        from_port("a request of somebody new, with a tag beside it", 51, &bytes)
            .tag([0x81, 0, 0, 9])
            .flooded_from_51(&tagged(&bytes, 0x8100, 9)),
    );
    cases.extend(disputes());
    cases
}

/// Somebody says that he has an address that is another's: from then on it is not answered.
fn disputes() -> Vec<Case> {
    let port = Target::port(51);
    let [first, second, third] = DISPUTED;
    let claim = |number: u8| Arp { sender: (station(1), host_v4(number)), ..Arp::request(1, number) }.bytes();
    let bytes = claim(first);
    let mut cases =
        vec![from_port("an announcement of another's address", 51, &bytes).flooded_from_51(&bytes).claims(
            host_v4(first),
            station(1),
            port,
            0,
        )];
    let bytes = Nd { to: MacAddr::BROADCAST, ..Nd::advertisement(1, second, 1, 0x20) }.bytes();
    cases.push(
        from_port("an advertisement of another's address", 51, &bytes).flooded_from_51(&bytes).claims(
            host_v6(second),
            station(1),
            port,
            0,
        ),
    );
    // Who is right may say so; the daemon decides.
    let bytes = Arp { sender: (station(3), host_v4(CONTESTED)), ..Arp::request(3, 99) }.bytes();
    let contested = from_peer("the owner of an address that is contested", 60, &bytes)
        .send(Target::port(51), Egress::new(61, Side::Out), bytes.clone())
        .send(Target::port(52), Egress::new(62, Side::Out), bytes)
        .flooded(SUPPRESSED)
        .claims(host_v4(CONTESTED), station(3), Target::adjacency(60), 0);
    cases.push(contested);
    // A probe claims nothing.
    let bytes = Arp { sender: (station(1), [0; 4]), ..Arp::request(1, third) }.bytes();
    cases.push(from_port("a probe for another's address", 51, &bytes).flooded_from_51(&bytes));
    cases
}
