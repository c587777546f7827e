//! ARP and ND in segments that suppress them (docs/architecture.md, *Neighbours*): what hosts say of themselves is
//! noted, and questions that are known to be answered are not flooded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mgre_common::fdb::FdbKey;
use mgre_common::neighbor::{NeighborEvent, NeighborKey, Protocol, neighbor_flag};
use mgre_common::target::{Target, TargetKind};
use mgre_common::wire::MacAddr;

use super::flaw::Flaw;
use super::header::Free;
use super::network::Neighbor;
use super::switch::{Arrival, on_port};
use super::{Frame, Run, internet_checksum, word};

/// Bytes of a frame with ARP for IPv4 (RFC 826), and of one with a neighbour message and one link-layer address.
const ARP_FRAME: usize = 14 + 28;
const ND_FRAME: usize = 14 + 40 + ND_MESSAGE;
const ND_MESSAGE: usize = 32;

/// Types of ICMPv6 messages, and of their options (RFC 4861 4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;

/// What a message says.
struct Message {
    protocol: Protocol,
    /// ARP's operation, ICMPv6's type.
    kind: u8,
    /// Who sends it, and whom it is about.
    sender: IpAddr,
    target: IpAddr,
    router: bool,
}

fn v4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?.into())
}

fn v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    Some(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?.into())
}

/// Whether an address can be one host's: of IPv4 not 0.0.0.0/8, 127.0.0.0/8, or 224.0.0.0 and up, of IPv6 not ::/64 or
/// a group's.
fn is_hosts(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !matches!(v4.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(v6) => !v6.is_multicast() && v6.octets()[..8] != [0; 8],
    }
}

/// The message in a frame, if it is of the usual form: from whom it says, about whom it says.
fn message(bytes: &[u8]) -> Option<Message> {
    match word(bytes, 12)? {
        0x0806 => arp(bytes.get(..ARP_FRAME)?),
        0x86dd => nd(bytes.get(..ND_FRAME)?),
        _ => None,
    }
}

fn arp(frame: &[u8]) -> Option<Message> {
    let usual = frame[14..20] == [0, 1, 8, 0, 6, 4] && frame[22..28] == frame[6..12];
    let (sender, target) = (v4(frame, 28)?.into(), v4(frame, 38)?.into());
    let kind = u8::try_from(word(frame, 20)?).ok()?;
    (usual && is_hosts(sender)).then_some(Message {
        protocol: Protocol::Arp,
        kind,
        sender,
        target,
        router: false,
    })
}

fn nd(frame: &[u8]) -> Option<Message> {
    let kind = frame[54];
    let option = match kind {
        SOLICITATION => SOURCE_LINK,
        ADVERTISEMENT => TARGET_LINK,
        _ => return None,
    };
    let usual = frame[14] >> 4 == 6
        && word(frame, 18) == Some(ND_MESSAGE as u16)
        && frame[20..22] == [58, 255]
        && frame[55] == 0
        && frame[78..80] == [option, 1]
        && frame[80..86] == frame[6..12]
        && nd_checksum(frame) == 0;
    let (sender, target) = (v6(frame, 22)?.into(), v6(frame, 62)?.into());
    let router = kind == ADVERTISEMENT && frame[58] & 0x80 != 0;
    (usual && is_hosts(sender) && is_hosts(target)).then_some(Message {
        protocol: Protocol::Nd,
        kind,
        sender,
        target,
        router,
    })
}

/// ICMPv6's checksum over pseudo header and message (RFC 8200 8.1).
fn nd_checksum(frame: &[u8]) -> u16 {
    internet_checksum(&[&frame[22..54], &[0, 0, 0, ND_MESSAGE as u8, 0, 0, 0, 58], &frame[54..ND_FRAME]])
}

impl Run<'_> {
    /// The message in a frame, in a segment that looks at them. What has a tag is another network's.
    fn neighbor_message(&self, arrival: &Arrival<'_>) -> Option<Message> {
        let suppresses = self.network.segment(arrival.segment).is_some_and(|segment| segment.suppresses);
        if suppresses && arrival.frame.tag.is_none() { message(&arrival.frame.bytes) } else { None }
    }

    /// Takes note of what a host says of itself: the sender of ARP, and the target of an advertisement.
    pub(super) fn listen(&mut self, arrival: &Arrival<'_>) {
        let Some(message) = self.neighbor_message(arrival) else { return };
        let address = match (message.protocol, message.kind) {
            (Protocol::Arp, 1 | 2) => message.sender,
            (Protocol::Nd, ADVERTISEMENT) => message.target,
            _ => return,
        };
        let mac = arrival.mac(6);
        let key = NeighborKey::new(arrival.segment as u16, address);
        if let Some(known) = self.network.neighbor(&key) {
            let same = known.mac == mac;
            if same && known.router == message.router && !known.contested {
                self.outcome.confirmed = Some(key);
                return;
            }
            if !same && !known.contested {
                self.outcome.contested = Some(key);
            }
        }
        self.outcome.claims.push(NeighborEvent {
            key: FdbKey::new(arrival.segment as u16, mac),
            address: key.address,
            source: arrival.source.to_bits(),
            flags: if message.router { neighbor_flag::ROUTER.into() } else { 0 },
        });
    }

    /// Answers a question that would be flooded, if the answer is known: says whether it did.
    pub(super) fn answer(&mut self, arrival: &Arrival<'_>) -> bool {
        let TargetKind::Port(port) = arrival.source.kind() else { return false };
        let network = self.network;
        let Some(port) = network.port(port).filter(|_| arrival.mac(0).is_group()) else { return false };
        let Some(message) = self.neighbor_message(arrival) else { return false };
        let asks =
            matches!((message.protocol, message.kind), (Protocol::Arp, 1) | (Protocol::Nd, SOLICITATION));
        if !asks || message.sender == message.target || !is_hosts(message.target) {
            return false;
        }
        let Some(known) = self.known(arrival, message.target) else { return false };
        // Where the asker's port takes no reply, it is as if there were none.
        let Ok(egress) = self.port_egress(port, arrival) else { return false };
        let reply = Frame { bytes: reply(&arrival.frame.bytes, &message, known), ..arrival.frame.clone() };
        self.output(egress, on_port(port, &reply), 0, Free::NOTHING);
        self.transmitted(Target::port(port.id), arrival.counted());
        self.outcome.answered = Some((arrival.segment, message.protocol));
        true
    }

    /// Who has an address, if nobody contests that and he is elsewhere than the asker.
    fn known(&self, arrival: &Arrival<'_>, address: IpAddr) -> Option<Neighbor> {
        let known = self.network.neighbor(&NeighborKey::new(arrival.segment as u16, address))?;
        if known.contested && !self.has(Flaw::ContestedAnswered) {
            return None;
        }
        let place = self.network.place(arrival.segment, known.mac)?;
        (place.target != arrival.source && place.target != Target::NONE).then_some(known)
    }
}

/// A question, made its reply.
fn reply(question: &[u8], message: &Message, known: Neighbor) -> Vec<u8> {
    let Neighbor { mac: MacAddr(owner), router, .. } = known;
    let mut frame = question.to_vec();
    let asker: Vec<u8> = question[6..12].to_vec();
    frame[..6].copy_from_slice(&asker);
    frame[6..12].copy_from_slice(&owner);
    match message.protocol {
        Protocol::Arp => {
            frame[20..22].copy_from_slice(&[0, 2]);
            frame[22..28].copy_from_slice(&owner);
            frame[28..32].copy_from_slice(&question[38..42]);
            frame[32..38].copy_from_slice(&asker);
            frame[38..42].copy_from_slice(&question[28..32]);
        }
        Protocol::Nd => {
            frame[14..18].copy_from_slice(&[0x60, 0, 0, 0]);
            frame[22..38].copy_from_slice(&question[62..78]);
            frame[38..54].copy_from_slice(&question[22..38]);
            // Solicited, and not overriding: what the host says himself has the last word (RFC 4861 7.2.4).
            let flags = if router { 0xc0 } else { 0x40 };
            frame[54..62].copy_from_slice(&[ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
            frame[78] = TARGET_LINK;
            frame[80..86].copy_from_slice(&owner);
            let sum = nd_checksum(&frame).to_be_bytes();
            frame[56..58].copy_from_slice(&sum);
        }
    }
    frame
}
