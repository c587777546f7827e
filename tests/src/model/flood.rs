//! Copies for all of a segment but who sent it (head-end replication).

use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::{Mark, Target};
use mgre_ebpf::frame::{Egress, Side};
use mgre_ebpf::host::cases::End;
use mgre_ebpf::host::world::UNDERLAY;

use super::Run;
use super::header::Free;
use super::switch::{Arrival, on_port};

/// Who gets a copy.
#[derive(Clone, Copy)]
enum To {
    Port(u32),
    Peer(u32),
}

impl Run<'_> {
    pub(super) fn flood(&mut self, arrival: &Arrival<'_>) {
        let network = self.network;
        if let Some(most) = network.storm_limit(arrival.source) {
            if u64::from(self.input.moment.flooded) >= most {
                return self.refuse(arrival.source, DropReason::StormLimit);
            }
            self.outcome.charged = Some(arrival.source);
        }
        let Some(segment) = network.segment(arrival.segment) else {
            return self.refuse(arrival.source, DropReason::Internal);
        };
        // What came out of a tunnel goes into none, but in a hub: there with half its hops.
        let relayed = arrival.tunnel.filter(|tunnel| segment.hub && tunnel.hops > 1);
        let hops = relayed.map_or(u8::MAX, |tunnel| tunnel.hops / 2);
        let peers =
            if arrival.tunnel.is_none() || relayed.is_some() { segment.peers.as_slice() } else { &[] };
        let bare = |id: &&u32| network.peer(**id).is_some_and(|peer| peer.finishes()) || arrival.is_cut(true);
        let ports = segment.ports.iter().map(|id| To::Port(*id));
        let finished = peers.iter().filter(bare).map(|id| To::Peer(*id));
        let wrapped = peers.iter().filter(|id| !bare(id)).map(|id| To::Peer(*id));
        // Ports first, and who gets the frame as they do; what has an outer header goes to the others first.
        let order: Vec<To> = if relayed.is_some() {
            wrapped.chain(ports).chain(finished).collect()
        } else {
            ports.chain(finished).chain(wrapped).collect()
        };
        let (mut copies, mut lost) = (0, 0);
        for to in order {
            let target = match to {
                To::Port(id) => Target::port(id),
                To::Peer(id) => Target::adjacency(id),
            };
            if target == arrival.source {
                continue;
            }
            let sent = match to {
                To::Port(id) => self.copy_to_port(arrival, id),
                To::Peer(id) => self.copy_to_peer(arrival, id, hops),
            };
            let Err(reason) = sent else {
                copies += 1;
                continue;
            };
            lost += 1;
            match to {
                To::Port(_) => self.count(arrival.source, Direction::Receive, reason),
                To::Peer(_) => self.count(target, Direction::Transmit, reason),
            }
        }
        // Where there was nobody to send to, it was not flooded.
        if copies + lost == 0 {
            return self.refuse(arrival.source, DropReason::NoTarget);
        }
        if copies == 0 {
            self.outcome.end = End::Dropped;
        }
        self.outcome.flooded = Some((arrival.segment, copies, lost));
    }

    fn copy_to_port(&mut self, arrival: &Arrival<'_>, id: u32) -> Result<(), DropReason> {
        let port = self.network.port(id).ok_or(DropReason::Internal)?;
        let egress = self.port_egress(port, arrival)?;
        self.output(egress, on_port(port, &arrival.delivered()), 0, Free::NOTHING);
        self.transmitted(Target::port(id), arrival.counted());
        Ok(())
    }

    fn copy_to_peer(&mut self, arrival: &Arrival<'_>, id: u32, hops: u8) -> Result<(), DropReason> {
        let network = self.network;
        let peer = network.peer(id).ok_or(DropReason::Internal)?;
        self.carries(peer, &arrival.frame)?;
        // The kernel finds no next hop for a copy.
        if !peer.resolved {
            return Err(DropReason::NoNextHop);
        }
        let mut egress = Egress::new(UNDERLAY, Side::Out);
        if !self.fits(peer, &arrival.frame) {
            let ip = arrival.frame.ip();
            if !self.goes_in_fragments(peer, &arrival.frame, ip) {
                return Err(DropReason::TooBig);
            }
            egress = Egress::new(network.slow.ok_or(DropReason::TooBig)?, Side::Out);
        }
        if peer.finishes() || arrival.is_cut(true) {
            let slow = network.slow.ok_or(DropReason::Headroom)?;
            let mark = Mark { target: peer.target(), hops }.to_bits();
            let bytes = arrival.delivered().on_the_wire();
            self.output(Egress::new(slow, Side::Out), bytes, mark, Free::NOTHING);
            return Ok(());
        }
        self.wrapped(arrival, peer, hops, egress);
        Ok(())
    }
}
