//! A frame in its segment: whether its source may send it, and where it goes.

use mgre_common::event::{LearnEvent, PROBE};
use mgre_common::fdb::FdbKey;
use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::{Mark, Target, TargetKind};
use mgre_common::wire::MacAddr;
use mgre_ebpf::frame::{Egress, Side};
use mgre_ebpf::host::cases::End;

use super::flaw::Flaw;
use super::header::Free;
use super::inner::Ip;
use super::network::{At, Peer, Port};
use super::{Frame, Run, mss};

/// The tunnel that a frame came through.
#[derive(Clone, Copy)]
pub(super) struct Tunnel<'a> {
    pub(super) peer: &'a Peer,
    /// Hops that the outer packet had left.
    pub(super) hops: u8,
    /// The IP packet inside, and the traffic class that it gets.
    pub(super) class: Option<(Ip, u8)>,
}

/// Ports that the tables on the host have room for. (In the kernel nobody counts drops of ports that there are not.)
const PORT_RECORDS: u32 = 64;

/// What a source address is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Nothing special.
    Free,
    /// It is held where the frame is from.
    Held,
    /// It is held, but not there.
    HeldElsewhere,
}

/// A frame that arrived in a segment.
pub(super) struct Arrival<'a> {
    pub(super) source: Target,
    pub(super) segment: u32,
    pub(super) frame: Frame,
    pub(super) tunnel: Option<Tunnel<'a>>,
}

impl Arrival<'_> {
    /// Bytes that it is counted as.
    pub(super) fn counted(&self) -> usize {
        self.frame.bytes.len()
    }

    /// Whether it is cut before it goes into a tunnel, alone or flooded.
    pub(super) fn is_cut(&self, flooded: bool) -> bool {
        if self.tunnel.is_some() { self.frame.is_cut_on_the_way() } else { self.frame.is_cut_first(flooded) }
    }

    /// The frame as it is outside of tunnels: its traffic class brought up to date.
    pub(super) fn delivered(&self) -> Frame {
        let mut frame = self.frame.clone();
        if let Some(Tunnel { class: Some((ip, class)), .. }) = self.tunnel
            && class != ip.class
        {
            ip.set_class(&mut frame.bytes, class);
        }
        frame
    }

    pub(super) fn mac(&self, at: usize) -> MacAddr {
        let mut mac = [0; 6];
        mac.copy_from_slice(&self.frame.bytes[at..at + 6]);
        MacAddr(mac)
    }
}

impl<'a> Run<'a> {
    /// A frame from a local interface.
    pub(super) fn at_port(&mut self, ifindex: u32) {
        let input = self.input;
        let port = match self.network.port_at(ifindex, input.tag) {
            At::Nobody => return,
            At::Stray => return self.refuse(Target::NONE, DropReason::Internal),
            At::Port(port) => port,
        };
        let source = Target::port(port.id);
        self.outcome.received = Some((source, input.bytes.len() as u64));
        if port.blocked {
            return self.refuse(source, DropReason::Loop);
        }
        if input.bytes.len() < 14 {
            return self.refuse(source, DropReason::Malformed);
        }
        // The tag by which it is this port's is none in the segment.
        let tag = input.tag.filter(|tag| !port.by_vlan || tag[..2] != [0x81, 0]);
        let frame = Frame { bytes: input.bytes.clone(), tag, segment_size: input.segment_size };
        let arrival = Arrival { source, segment: port.segment, frame, tunnel: None };
        self.arrive(arrival);
    }

    /// A frame in its segment.
    pub(super) fn arrive(&mut self, arrival: Arrival<'a>) {
        let learned = match self.learn(&arrival) {
            Ok(learned) => learned,
            Err(reason) => return self.refuse(arrival.source, reason),
        };
        let destination = arrival.mac(0);
        let kept = self.keeps_to_link(&arrival, destination);
        let place = self.network.place(arrival.segment, destination).filter(|_| !destination.is_group());
        if place.is_none() && !kept && !self.may_flood(&arrival, learned) {
            return self.refuse(arrival.source, DropReason::Loop);
        }
        // What is held elsewhere is not believed.
        if learned != Source::HeldElsewhere {
            self.listen(&arrival);
        }
        if kept {
            return self.refuse(arrival.source, DropReason::LinkLocal);
        }
        let Some(place) = place else {
            if !self.answer(&arrival) {
                self.flood(&arrival);
            }
            return;
        };
        let to = place.target;
        if to == arrival.source {
            return self.refuse(arrival.source, DropReason::NoTarget);
        }
        match to.kind() {
            TargetKind::Port(id) => self.deliver(&arrival, id),
            TargetKind::Adjacency(id) => {
                if let Some(tunnel) = arrival.tunnel
                    && let Err(reason) = self.may_relay(arrival.segment, tunnel.hops)
                {
                    return self.refuse(arrival.source, reason);
                }
                if let Err(reason) = self.send_to_peer(&arrival, id) {
                    self.end(to, Direction::Transmit, reason);
                }
            }
            TargetKind::None => self.refuse(arrival.source, DropReason::Internal),
        }
    }

    /// Whether a frame may be flooded, as far as it is up to its source address: of those that are held few are, and
    /// from elsewhere none.
    fn may_flood(&mut self, arrival: &Arrival<'_>, source: Source) -> bool {
        match source {
            Source::Free => true,
            Source::HeldElsewhere => self.has(Flaw::HeldFlooded),
            Source::Held => {
                self.paced = Some(FdbKey::new(arrival.segment as u16, arrival.mac(6)));
                !self.input.moment.paced
            }
        }
    }

    /// Whether a source may send with its address; reports one that is not known, or known elsewhere.
    fn learn(&mut self, arrival: &Arrival<'_>) -> Result<Source, DropReason> {
        let Arrival { source, segment, .. } = *arrival;
        let mac = arrival.mac(6);
        if mac.is_group() || mac == MacAddr::ZERO {
            return Err(DropReason::SourceMacInvalid);
        }
        let key = FdbKey::new(segment as u16, mac);
        let known = self.network.place(segment, mac);
        match known {
            Some(place) if place.target == source => {
                if !place.fixed {
                    self.outcome.seen = Some(key);
                }
                return Ok(if place.held { Source::Held } else { Source::Free });
            }
            Some(place) if place.fixed && !self.has(Flaw::FixedMoves) => {
                return Err(DropReason::StaticMacMoved);
            }
            Some(_) => {}
            None if self.is_full(arrival) => return Err(DropReason::MacLimit),
            None => {}
        }
        // Of one that is held elsewhere, the daemon hears how long that goes on.
        let held = known.is_some_and(|place| place.held);
        let known = known.map_or(Target::NONE, |place| place.target).to_bits();
        // Of a loop probe he hears what it is about, and nobody else has it.
        let probe = match arrival.mac(0) {
            MacAddr([0x03, b'm', b'g', b'r', high, low]) if !held => Some(u16::from_be_bytes([high, low])),
            _ => None,
        };
        let probe = probe.filter(|_| !self.has(Flaw::ProbesForwarded));
        let known = probe.map_or(known, |about| PROBE | u32::from(about));
        self.outcome.reports.push(LearnEvent { key, source: source.to_bits(), known });
        if probe.is_some() {
            return Err(DropReason::Loop);
        }
        Ok(if held { Source::HeldElsewhere } else { Source::Free })
    }

    /// Whether a segment does not pass frames to one of the addresses that bridges keep to one link.
    fn keeps_to_link(&self, arrival: &Arrival<'_>, destination: MacAddr) -> bool {
        let MacAddr([0x01, 0x80, 0xc2, 0, 0, last @ 0..16]) = destination else { return false };
        let blocked = self.network.segment(arrival.segment).map_or(0, |segment| segment.blocked_groups);
        blocked & 1 << last != 0
    }

    /// Whether there may be no more addresses.
    fn is_full(&self, arrival: &Arrival<'_>) -> bool {
        let source = match arrival.source.kind() {
            TargetKind::Port(id) => self.network.port(id).is_some_and(|port| port.full),
            TargetKind::Adjacency(id) => self.network.peer(id).is_some_and(|peer| peer.full),
            TargetKind::None => false,
        };
        source || self.network.segment(arrival.segment).is_some_and(|segment| segment.full)
    }

    /// Whether what came out of a tunnel may go into another one.
    fn may_relay(&self, segment: u32, hops: u8) -> Result<(), DropReason> {
        let hub = self.network.segment(segment).is_some_and(|segment| segment.hub);
        if !hub && !self.has(Flaw::NoSplitHorizon) {
            return Err(DropReason::NoTarget);
        }
        if hops <= 1 { Err(DropReason::TtlExpired) } else { Ok(()) }
    }

    /// One port gets it.
    fn deliver(&mut self, arrival: &Arrival<'_>, id: u32) {
        let network = self.network;
        let sent = network.port(id).ok_or(DropReason::Internal).and_then(|port| {
            let egress = self.port_egress(port, arrival)?;
            Ok((port, egress))
        });
        match sent {
            Err(reason) => self.refuse(arrival.source, reason),
            Ok(_)
                if arrival.tunnel.is_some() && self.input.bytes.len() > 65_535 && arrival.frame.is_mute() =>
            {
                match network.slow {
                    None => self.refuse(arrival.source, DropReason::Headroom),
                    Some(slow) => {
                        let hops = arrival.tunnel.map_or(0, |tunnel| tunnel.hops.saturating_sub(1));
                        let mark = Mark { target: Target::port(id), hops }.to_bits();
                        let bytes = arrival.delivered().on_the_wire();
                        self.output(Egress::new(slow, Side::Out), bytes, mark, Free::NOTHING);
                    }
                }
            }
            Ok((port, egress)) => {
                let mut frame = arrival.delivered();
                if let Some(Tunnel { peer, .. }) = arrival.tunnel.filter(|tunnel| tunnel.peer.clamps)
                    && !self.has(Flaw::SizeKept)
                {
                    mss::lower(&mut frame, peer.max_frame);
                }
                self.output(egress, on_port(port, &frame), 0, Free::NOTHING);
                self.transmitted(Target::port(id), arrival.counted());
            }
        }
    }

    /// Where a frame for a port goes, if it may.
    pub(super) fn port_egress(&self, port: &Port, arrival: &Arrival<'_>) -> Result<Egress, DropReason> {
        self.egress_of(port, &arrival.frame)
    }

    fn egress_of(&self, port: &Port, frame: &Frame) -> Result<Egress, DropReason> {
        if !port.valid || !port.up {
            return Err(DropReason::RedirectFailed);
        }
        // A superframe is cut to fit by whoever sends it on.
        let fits = frame.is_superframe() || frame.bytes.len() <= port.max_frame;
        if !fits && !self.has(Flaw::PortsTakeAll) {
            return Err(DropReason::TooBig);
        }
        let side = match (port.host, port.far) {
            (false, false) => Side::Out,
            (false, true) => Side::Peer,
            (true, _) => Side::Receive,
        };
        Ok(Egress { ifindex: port.ifindex, side, vlan: port.vlan.unwrap_or(0) })
    }

    /// A frame that comes back from the slow interface, or that the daemon made, for a port.
    pub(super) fn finished_for_port(&mut self, frame: &Frame, id: u32) -> Result<(), DropReason> {
        // A mark may say anything. A table has a record for each port that there is room for, in use or not.
        let missing = if id < PORT_RECORDS { DropReason::RedirectFailed } else { DropReason::Internal };
        let port = self.network.port(id).ok_or(missing)?;
        let egress = self.egress_of(port, frame)?;
        self.output(egress, on_port(port, frame), 0, Free::NOTHING);
        self.transmitted(Target::port(id), frame.bytes.len());
        self.outcome.end = End::Sent;
        Ok(())
    }
}

/// A frame as it is on a port's interface.
pub(super) fn on_port(port: &Port, frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.on_the_wire();
    if let Some(vlan) = port.vlan {
        let [high, low] = vlan.to_be_bytes();
        bytes.splice(12..12, [0x81, 0, high, low]);
    }
    bytes
}
