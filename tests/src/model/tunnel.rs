//! Into a tunnel, and what does not fit there (docs/wire.md, *What does not fit*, *The slow path*).

use mgre_common::event::{TOO_BIG_CAPTURE, TooBigHead};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::{Mark, TargetKind};
use mgre_common::template::DontFragment;
use mgre_ebpf::frame::{Egress, Side};
use mgre_ebpf::host::world::UNDERLAY;

use super::flaw::Flaw;
use super::header::{Free, Own};
use super::inner::{Ip, is_ip, is_tag};
use super::network::Peer;
use super::switch::Arrival;
use super::{Frame, Input, Run, mss, word};

/// Every host can send IPv6 packets of this length (RFC 8200 5).
const IPV6_MIN_MTU: usize = 1280;

impl Run<'_> {
    /// A peer gets a frame.
    pub(super) fn send_to_peer(&mut self, arrival: &Arrival<'_>, id: u32) -> Result<(), DropReason> {
        let network = self.network;
        let peer = network.peer(id).ok_or(DropReason::Internal)?;
        let clamped;
        let arrival = if peer.clamps && arrival.tunnel.is_none() && !self.has(Flaw::SizeKept) {
            let mut frame = arrival.frame.clone();
            mss::lower(&mut frame, peer.max_frame);
            clamped = Arrival { frame, ..*arrival };
            &clamped
        } else {
            arrival
        };
        self.carries(peer, &arrival.frame)?;
        let fits = self.fits(peer, &arrival.frame);
        if !fits {
            self.too_long(arrival, peer)?;
        }
        let hops = arrival
            .tunnel
            .map_or(u8::MAX, |tunnel| if self.has(Flaw::HopsKept) { tunnel.hops } else { tunnel.hops - 1 });
        if peer.finishes() || arrival.is_cut(false) {
            let slow = network.slow.ok_or(DropReason::Headroom)?;
            let mark = Mark { target: peer.target(), hops }.to_bits();
            let bytes = arrival.delivered().on_the_wire();
            self.output(Egress::new(slow, Side::Out), bytes, mark, Free::NOTHING);
            return Ok(());
        }
        // The kernel takes what came out of a tunnel for what it came in, else it for what it is.
        let ip = match arrival.tunnel {
            Some(tunnel) => tunnel.peer.remote.is_ipv4() == peer.remote.is_ipv4(),
            None => word(&arrival.frame.bytes, 12).is_some_and(is_ip),
        };
        let egress = if fits {
            self.next_hop(peer, ip)?
        } else {
            Egress::new(network.slow.ok_or(DropReason::TooBig)?, Side::Out)
        };
        self.wrapped(arrival, peer, hops, egress);
        Ok(())
    }

    /// A frame that came by the slow interface with a mark.
    pub(super) fn at_slow_interface(&mut self, mark: u32) {
        let Mark { target, hops } = Mark::from_bits(mark);
        let Input { bytes, tag, segment_size, .. } = self.input;
        let frame = Frame { bytes: bytes.clone(), tag: *tag, segment_size: *segment_size };
        let sent = match target.kind() {
            TargetKind::Port(id) => self.finished_for_port(&frame, id),
            TargetKind::Adjacency(id) => self.finished_for_peer(&frame, id, hops),
            TargetKind::None => Err(DropReason::Internal),
        };
        if let Err(reason) = sent {
            self.end(target, Direction::Transmit, reason);
        }
    }

    /// A frame of the wire's size with its checksums finished gets its header. Who sent what does not fit was told
    /// before it went there.
    fn finished_for_peer(&mut self, frame: &Frame, id: u32, hops: u8) -> Result<(), DropReason> {
        let network = self.network;
        let peer = network.peer(id).filter(|peer| peer.valid).ok_or(DropReason::Internal)?;
        self.carries(peer, frame)?;
        let egress = if peer.routed && !self.fits(peer, frame) {
            Egress::new(network.slow.ok_or(DropReason::TooBig)?, Side::Out)
        } else {
            self.next_hop(peer, word(&frame.bytes, 12).is_some_and(is_ip))?
        };
        self.wrap(peer, frame, Own::of(frame, None, hops), egress);
        self.transmitted(peer.target(), frame.bytes.len());
        Ok(())
    }

    /// Sends a frame with a peer's header.
    pub(super) fn wrapped(&mut self, arrival: &Arrival<'_>, peer: &Peer, hops: u8, egress: Egress) {
        let own = Own::of(&arrival.frame, arrival.tunnel.as_ref(), hops);
        self.wrap(peer, &arrival.frame, own, egress);
        self.transmitted(peer.target(), arrival.counted());
    }

    /// NVGRE carries no tag (RFC 7637 3.3).
    pub(super) fn carries(&self, peer: &Peer, frame: &Frame) -> Result<(), DropReason> {
        let tagged = frame.tag.is_some() || word(&frame.bytes, 12).is_some_and(is_tag);
        let refused = peer.is_nvgre() && tagged && !self.has(Flaw::TagsThroughNvgre);
        if refused { Err(DropReason::InnerTag) } else { Ok(()) }
    }

    pub(super) fn fits(&self, peer: &Peer, frame: &Frame) -> bool {
        frame.wire_len() <= peer.max_frame + usize::from(self.has(Flaw::OneByteMore))
    }

    /// Whether a frame that does not fit goes, its outer packet in fragments.
    pub(super) fn goes_in_fragments(&self, peer: &Peer, frame: &Frame, ip: Option<Ip>) -> bool {
        let Some(ip) = ip else { return peer.dont_fragment != DontFragment::Set };
        let tag = if frame.tag.is_some() { 4 } else { 0 };
        // RFC 7676 3.2.
        if ip.v6 && frame.wire_len() - ip.at - tag <= IPV6_MIN_MTU {
            return true;
        }
        !ip.dont_fragment(&frame.bytes) && peer.dont_fragment != DontFragment::Set
    }

    /// Sees to a frame that does not fit.
    fn too_long(&mut self, arrival: &Arrival<'_>, peer: &Peer) -> Result<(), DropReason> {
        if !peer.routed {
            return Err(DropReason::NoNextHop);
        }
        let frame = &arrival.frame;
        let ip = frame.ip();
        if self.goes_in_fragments(peer, frame, ip) {
            return Ok(());
        }
        if let Some(ip) = ip.filter(|ip| ip.dont_fragment(&frame.bytes) && !self.has(Flaw::NobodyTold)) {
            let tag_len = if frame.tag.is_some() { 4 } else { 0 };
            let captured = frame.bytes.len().min(TOO_BIG_CAPTURE);
            let head = TooBigHead {
                source: arrival.source.to_bits(),
                adjacency: peer.id,
                mtu: peer.max_frame.saturating_sub(ip.at + tag_len) as u32,
                frame_len: frame.wire_len() as u32,
                captured: captured as u32,
                tag: frame.tag.map_or(0, u32::from_be_bytes),
            };
            self.outcome.too_big.push((head, frame.bytes[..captured].to_vec()));
        }
        Err(DropReason::TooBig)
    }

    /// Where a packet leaves: by the next hop that the daemon knows and answers for; by the one that the kernel finds,
    /// which it does for IP; by the last one known.
    fn next_hop(&self, peer: &Peer, ip: bool) -> Result<Egress, DropReason> {
        let asks = peer.routed && ip;
        if peer.resolved && (self.input.moment.lease || !asks) {
            return Ok(Egress::new(UNDERLAY, Side::Out));
        }
        if asks { Ok(Egress::new(UNDERLAY, Side::Neighbor)) } else { Err(DropReason::NoNextHop) }
    }
}
