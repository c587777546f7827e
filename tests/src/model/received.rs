//! Packets from the underlay: whose they are, and whether they are taken (docs/wire.md, *What is sent*).

use std::net::IpAddr;

use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::{Mark, Target};
use mgre_ebpf::frame::{Egress, Side};
use mgre_ebpf::host::cases::{End, Entrance};
use mgre_ebpf::host::world::NEAR_MAC;

use super::flaw::Flaw;
use super::header::Free;
use super::inner::{Ip, is_tag};
use super::network::Peer;
use super::switch::{Arrival, Tunnel};
use super::{Frame, Run, internet_checksum, word};

const GRE: u8 = 47;
const UDP: u8 = 17;
const UDP_PORT: u16 = 4754;
/// RFC 1701: a transparent Ethernet bridge's frames.
const ETHERNET: u16 = 0x6558;

const CHECKSUM: u16 = 0x8000;
const ROUTING: u16 = 0x4000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
/// Bits 4 and 5.
const RESERVED: u16 = 0x0c00;

/// Why a packet is not taken.
enum Other {
    /// It is not for us.
    Foreign,
    /// The kernel gets it, and that is counted.
    Kernel(DropReason),
    Refused(DropReason),
}

/// An outer IP packet with GRE in it.
struct Outer<'a> {
    remote: IpAddr,
    local: IpAddr,
    class: u8,
    hops: u8,
    /// Of IPv4.
    header_checksum_ok: bool,
    /// The UDP header, if there is one.
    udp: Option<&'a [u8]>,
    /// What is behind it, as far as the frame goes.
    gre: &'a [u8],
    /// How much of that the IP header says there is.
    declared: Option<usize>,
}

/// What the GRE header says.
struct Gre<'a> {
    flags: u16,
    key: Option<u32>,
    sequence: Option<u32>,
    /// Header and frame, without what is behind them.
    whole: &'a [u8],
    inner: &'a [u8],
}

impl<'a> Run<'a> {
    pub(super) fn at_underlay(&mut self) {
        let input = self.input;
        // With a tag beside it, it is another interface's; not if that names no VLAN.
        if input.tag.is_some_and(|tag| !matches!(tag, [0x81, 0, high, 0] if high & 15 == 0)) {
            return;
        }
        // What comes by the slow interface was not sent to that.
        let group = input.bytes.first().is_some_and(|first| first & 1 != 0);
        if input.entrance == Entrance::Underlay && !group && input.bytes.get(..6) != Some(&NEAR_MAC.0[..]) {
            return;
        }
        let outer = self.outer(&input.bytes);
        let gre = outer.and_then(|outer| match self.gre(&outer) {
            Ok(gre) => Ok((outer, gre)),
            Err(Other::Refused(reason)) if self.is_anothers(&outer, reason) => {
                Err(Other::Kernel(DropReason::ForeignGre))
            }
            Err(other) => Err(other),
        });
        match gre {
            Err(Other::Foreign) => {}
            Err(Other::Kernel(reason)) => self.leave_to_kernel(reason),
            Err(Other::Refused(reason)) => self.refuse(Target::NONE, reason),
            Ok((outer, gre)) => self.of_peer(&outer, &gre),
        }
    }

    fn leave_to_kernel(&mut self, reason: DropReason) {
        self.count(Target::NONE, Direction::Receive, reason);
        self.outcome.end = End::Passed;
    }

    /// Whether a packet that is refused may be for somebody else on this host, who shares its address.
    fn is_anothers(&self, outer: &Outer<'_>, reason: DropReason) -> bool {
        let unusable = matches!(reason, DropReason::Malformed | DropReason::Checksum);
        !unusable && self.network.is_shared(outer.local)
    }

    /// Reads the headers below GRE. Only what is for one of our addresses is judged.
    fn outer(&self, packet: &'a [u8]) -> Result<Outer<'a>, Other> {
        match word(packet, 12) {
            Some(0x0800) => self.outer_v4(packet),
            Some(0x86dd) => self.outer_v6(packet),
            _ => Err(Other::Foreign),
        }
    }

    fn outer_v4(&self, packet: &'a [u8]) -> Result<Outer<'a>, Other> {
        let header: &[u8; 20] = packet.get(14..34).and_then(|ip| ip.try_into().ok()).ok_or(Other::Foreign)?;
        let address =
            |at: usize| -> IpAddr { [header[at], header[at + 1], header[at + 2], header[at + 3]].into() };
        let (remote, local) = (address(12), address(16));
        if header[0] >> 4 != 4 || !self.network.is_ours(local) {
            return Err(Other::Foreign);
        }
        let options = header[0] & 15 != 5;
        let (more, offset) = (header[6] & 0x20 != 0, word(header, 6).unwrap_or(0) & 0x1fff);
        let fragment = more || offset != 0;
        let declared = usize::from(word(header, 2).unwrap_or(0)).checked_sub(20);
        let outer = Outer {
            remote,
            local,
            class: header[1],
            hops: header[8],
            header_checksum_ok: internet_checksum(&[header]) == 0,
            udp: None,
            gre: &packet[34..],
            declared,
        };
        match header[9] {
            GRE if options || fragment => Err(Other::Kernel(DropReason::OuterFragment)),
            GRE => Ok(outer),
            // Whether it is for GRE's port, a first fragment alone says; behind options nobody looks.
            UDP if !options && offset == 0 => {
                let outer = outer.in_udp()?;
                if more { Err(Other::Kernel(DropReason::OuterFragment)) } else { Ok(outer) }
            }
            _ => Err(Other::Foreign),
        }
    }

    fn outer_v6(&self, packet: &'a [u8]) -> Result<Outer<'a>, Other> {
        let header: &[u8; 40] = packet.get(14..54).and_then(|ip| ip.try_into().ok()).ok_or(Other::Foreign)?;
        let address = |at: usize| -> IpAddr {
            let octets: [u8; 16] = header[at..at + 16].try_into().unwrap_or_default();
            octets.into()
        };
        let (remote, local) = (address(8), address(24));
        if header[0] >> 4 != 6 || !self.network.is_ours(local) {
            return Err(Other::Foreign);
        }
        let behind = &packet[54..];
        let outer = Outer {
            remote,
            local,
            class: header[0] << 4 | header[1] >> 4,
            hops: header[7],
            header_checksum_ok: true,
            udp: None,
            gre: behind,
            declared: Some(word(header, 4).unwrap_or(0).into()),
        };
        match header[6] {
            GRE => Ok(outer),
            UDP => outer.in_udp(),
            // RFC 2473 4.1.1: the encapsulation limit, and padding, and nothing else.
            60 if matches!(behind, [GRE, 0, 4, 1, _, 1, 1, 0, ..]) => {
                let declared = outer.declared.and_then(|declared| declared.checked_sub(8));
                Ok(Outer { gre: &behind[8..], declared, ..outer })
            }
            // Hop-by-hop options, routing, fragment, destination options.
            0 | 43 | 44 | 60 if behind.first() == Some(&GRE) => Err(Other::Kernel(DropReason::OuterFragment)),
            44 if behind.first() == Some(&UDP)
                && word(behind, 2).is_some_and(|field| field & 0xfff8 == 0)
                && behind.len() >= 16
                && word(behind, 10) == Some(UDP_PORT) =>
            {
                Err(Other::Kernel(DropReason::OuterFragment))
            }
            _ => Err(Other::Foreign),
        }
    }

    /// Reads the GRE header, and judges what can be judged without knowing whose the packet is.
    fn gre(&self, outer: &Outer<'a>) -> Result<Gre<'a>, Other> {
        use DropReason::{BadVersion, Checksum, Malformed, ReservedBits, RoutingPresent, UnknownProtocol};
        let refused = |reason| Err(Other::Refused(reason));
        let gre = outer.gre;
        let flags = word(gre, 0);
        if flags.is_some_and(|flags| flags & 7 == 1) {
            return Err(Other::Foreign);
        }
        // A frame inside makes the shortest packet longer than that.
        let Some(flags) = flags.filter(|_| gre.len() >= 8) else { return refused(Malformed) };
        if !outer.header_checksum_ok {
            return refused(Checksum);
        }
        if flags & 7 != 0 {
            return refused(BadVersion);
        }
        if flags & ROUTING != 0 {
            return refused(RoutingPresent);
        }
        if flags & RESERVED != 0 {
            return refused(ReservedBits);
        }
        if word(gre, 2) != Some(ETHERNET) {
            return refused(UnknownProtocol);
        }
        // A superframe's fields are too short for its length, so its own counts.
        let superframe = self.input.segment_size != 0;
        let len = if superframe { Some(gre.len()) } else { outer.declared };
        let udp_len = outer.udp.and_then(|udp| usize::from(word(udp, 4)?).checked_sub(8));
        if outer.udp.is_some() && !superframe && udp_len != len {
            return refused(Malformed);
        }
        let Some(whole) = len.and_then(|len| gre.get(..len)) else { return refused(Malformed) };
        let mut at = 4;
        let mut field = |flag: u16| {
            if flags & flag == 0 {
                return None;
            }
            at += 4;
            Some(u32::from_be_bytes(whole.get(at - 4..at)?.try_into().ok()?))
        };
        let _checksum = field(CHECKSUM);
        let (key, sequence) = (field(KEY), field(SEQUENCE));
        match whole.get(at..) {
            Some(inner) if inner.len() >= 14 => Ok(Gre { flags, key, sequence, whole, inner }),
            _ => refused(Malformed),
        }
    }

    /// A packet that is right so far: whose it is, and whether that one may send it.
    fn of_peer(&mut self, outer: &Outer<'_>, gre: &Gre<'_>) {
        let Outer { remote, local, .. } = *outer;
        let key = if self.has(Flaw::KeylessIsKeyZero) { gre.key.or(Some(0)) } else { gre.key };
        let Some(id) = self.network.owner(remote, local, key) else {
            let known = self.network.is_known(remote, local);
            let reason = if known { DropReason::KeyMismatch } else { DropReason::UnknownEndpoint };
            if self.is_anothers(outer, reason) {
                return self.leave_to_kernel(DropReason::ForeignGre);
            }
            return self.refuse(Target::NONE, reason);
        };
        let network = self.network;
        let Some(peer) = network.peer(id) else {
            // That record is missing which says whose it is.
            return self.refuse(Target::NONE, DropReason::Internal);
        };
        if !peer.valid {
            return self.refuse(Target::NONE, DropReason::UnknownEndpoint);
        }
        let checksums_ok = self.checksums_ok(outer, gre);
        // Who sent it may have left the checksum to a device that left it at that.
        if let (false, Entrance::Underlay, Some(slow)) = (checksums_ok, &self.input.entrance, network.slow) {
            let egress = Egress::new(slow, Side::Out);
            return self.output(egress, self.input.bytes.clone(), Mark::UNFINISHED, Free::NOTHING);
        }
        self.outcome.received = Some((peer.target(), gre.inner.len() as u64));
        match self.admit(peer, outer, gre, checksums_ok) {
            Err(reason) => self.refuse(peer.target(), reason),
            Ok(class) => {
                let frame =
                    Frame { bytes: gre.inner.to_vec(), tag: None, segment_size: self.input.segment_size };
                let tunnel = Tunnel { peer, hops: outer.hops, class };
                self.arrive(Arrival {
                    source: peer.target(),
                    segment: peer.segment,
                    frame,
                    tunnel: Some(tunnel),
                });
            }
        }
    }

    /// Those of the packets that a superframe was made of were looked at by who made it.
    fn checksums_ok(&self, outer: &Outer<'_>, gre: &Gre<'_>) -> bool {
        let unread = self.has(Flaw::ChecksumsUnread);
        let wrong = gre.flags & CHECKSUM != 0 && internet_checksum(&[gre.whole]) != 0 && !unread;
        self.input.segment_size != 0 || !wrong && outer.udp_checksum_ok(gre.whole)
    }

    /// What a peer's packet must fulfil; says the traffic class that an IP packet in it gets.
    fn admit(
        &mut self,
        peer: &Peer,
        outer: &Outer<'_>,
        gre: &Gre<'_>,
        checksums_ok: bool,
    ) -> Result<Option<(Ip, u8)>, DropReason> {
        if peer.is_nvgre() {
            // RFC 7637 3.2 and 3.3.
            if gre.flags & (CHECKSUM | SEQUENCE) != 0 {
                return Err(DropReason::ReservedBits);
            }
            if word(gre.inner, 12).is_some_and(is_tag) && !self.has(Flaw::TagsThroughNvgre) {
                return Err(DropReason::InnerTag);
            }
        }
        if !checksums_ok {
            return Err(DropReason::Checksum);
        }
        if let Some(number) = gre.sequence.filter(|_| peer.checks_sequence) {
            self.accept(peer, number)?;
        }
        // What is too short for an IP header is no IP packet.
        let Some(ip) = Ip::find(gre.inner, 2).filter(|ip| ip.is_whole(gre.inner)) else { return Ok(None) };
        let outside = if self.has(Flaw::CongestionForgotten) { outer.class & !3 } else { outer.class };
        let ecn = combined(ip.class & 3, outside & 3).ok_or(DropReason::Ecn)?;
        let dscp = if peer.uniform { outer.class & !3 } else { ip.class & !3 };
        Ok(Some((ip, dscp | ecn)))
    }

    /// Takes a sequence number (RFC 2890 2.2), or not.
    fn accept(&mut self, peer: &Peer, number: u32) -> Result<(), DropReason> {
        let moment = self.input.moment;
        let last = moment.received.filter(|(_, at)| moment.seconds.wrapping_sub(*at) < 10);
        let old = last.is_some_and(|(last, _)| last.wrapping_sub(number) < 1 << 31);
        if old && !self.has(Flaw::NumbersTwice) {
            return Err(DropReason::SequenceOld);
        }
        self.outcome.numbers.insert(peer.id, (Some((number, moment.seconds)), moment.sent));
        Ok(())
    }
}

impl<'a> Outer<'a> {
    /// The same where UDP is between, if that is for GRE's port (RFC 8086 3.2).
    fn in_udp(self) -> Result<Self, Other> {
        let udp = self.gre.get(..8).ok_or(Other::Foreign)?;
        if word(udp, 2) != Some(UDP_PORT) {
            return Err(Other::Foreign);
        }
        let declared = self.declared.and_then(|len| len.checked_sub(8));
        Ok(Self { udp: Some(udp), gre: &self.gre[8..], declared, ..self })
    }

    /// A checksum of zero is none (RFC 768, RFC 6935).
    fn udp_checksum_ok(&self, payload: &[u8]) -> bool {
        let Some(udp) = self.udp else { return true };
        if udp[6..] == [0, 0] {
            return true;
        }
        let len = (udp.len() + payload.len()) as u32;
        let end = [[0, 0, 0, UDP].as_slice(), &len.to_be_bytes()].concat();
        match (self.remote, self.local) {
            (IpAddr::V4(remote), IpAddr::V4(local)) => {
                internet_checksum(&[&remote.octets(), &local.octets(), &end, udp, payload]) == 0
            }
            (IpAddr::V6(remote), IpAddr::V6(local)) => {
                internet_checksum(&[&remote.octets(), &local.octets(), &end, udp, payload]) == 0
            }
            _ => false,
        }
    }
}

/// RFC 6040 4.2: the field of a packet that left a tunnel, or nothing where it must be dropped.
fn combined(inside: u8, outside: u8) -> Option<u8> {
    const TABLE: [[Option<u8>; 4]; 4] = [
        // Columns by number: Not-ECT, ECT(1), ECT(0), CE.
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    TABLE[usize::from(inside)][usize::from(outside)]
}
