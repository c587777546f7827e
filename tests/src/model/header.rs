//! The headers that a frame gets outside (docs/wire.md, *What is sent*).

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader,
};
use mgre_common::template::{DontFragment, Tos};
use mgre_ebpf::frame::{Egress, Side};
use mgre_ebpf::host::world::{NEAR_MAC, NEXT_HOP_MAC};

use super::network::{GreKey, Peer};
use super::switch::Tunnel;
use super::{Frame, Run, internet_checksum};

/// The time to live of our packets, and the first UDP source port (RFC 8086 3.2.1).
const HOPS: u8 = 64;
const FIRST_PORT: u16 = 49152;

/// What an output may have as it likes. It is zero where the model says what must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Free {
    /// The link-layer addresses, which the kernel fills in.
    pub link: bool,
    /// The IPv4 identification; the header checksum with it.
    pub identification: bool,
    /// Where the UDP source port is, 49152 and up.
    pub source_port: Option<usize>,
    /// Where the flow id of NVGRE is.
    pub flow_id: Option<usize>,
}

impl Free {
    /// Nothing.
    pub const NOTHING: Self = Self { link: false, identification: false, source_port: None, flow_id: None };

    /// Makes zero what is free; says the flow's two numbers: UDP source port, NVGRE flow id.
    ///
    /// # Errors
    /// Something free has a value that it must not have.
    pub fn settle(&self, packet: &mut [u8]) -> Result<(Option<u16>, Option<u8>), String> {
        if self.link {
            packet.get_mut(..12).ok_or("no link-layer header")?.fill(0);
        }
        if self.identification {
            let ip = packet.get_mut(14..34).ok_or("no IPv4 header")?;
            if internet_checksum(&[ip]) != 0 {
                return Err("the header checksum is wrong".into());
            }
            ip[4..6].fill(0);
            ip[10..12].fill(0);
        }
        let mut port = None;
        if let Some(at) = self.source_port {
            let bytes = packet.get_mut(at..at + 2).ok_or("no UDP header")?;
            let number = u16::from_be_bytes([bytes[0], bytes[1]]);
            if number < FIRST_PORT {
                return Err(format!("source port {number}"));
            }
            port = Some(number);
            bytes.fill(0);
        }
        let flow_id = self.flow_id.and_then(|at| Some(std::mem::take(packet.get_mut(at)?)));
        Ok((port, flow_id))
    }
}

/// What an outer packet takes over from what is inside.
#[derive(Clone, Copy)]
pub(super) struct Own {
    /// DSCP and ECN.
    class: u8,
    dont_fragment: bool,
    /// The most hops that it may go.
    hops: u8,
}

impl Own {
    /// Of a frame, which came through a tunnel perhaps: what was met there goes on into the next one. It may go so
    /// many hops.
    pub(super) fn of(frame: &Frame, tunnel: Option<&Tunnel<'_>>, hops: u8) -> Self {
        // What came out of a tunnel and is too short for any IP packet is none, whatever padding is behind it.
        let ip = frame.ip().filter(|_| tunnel.is_none() || !frame.is_short());
        let inside = ip.map_or(0, |ip| ip.class);
        let class = tunnel.and_then(|tunnel| tunnel.class).map_or(inside, |(_, class)| class);
        Self { class, dont_fragment: ip.is_some_and(|ip| ip.dont_fragment(&frame.bytes)), hops }
    }
}

impl Run<'_> {
    /// Sends a frame with a peer's header.
    pub(super) fn wrap(&mut self, peer: &Peer, frame: &Frame, own: Own, egress: Egress) {
        let inner = frame.on_the_wire();
        let dont_fragment = match peer.dont_fragment {
            DontFragment::Set => true,
            DontFragment::Unset => false,
            DontFragment::Inherit => own.dont_fragment,
        };
        let sequence = peer.sequence.then(|| {
            let moment = self.input.moment;
            self.outcome.numbers.insert(peer.id, (moment.received, moment.sent.wrapping_add(1)));
            moment.sent
        });
        let gre = gre(peer, sequence, &inner);
        let ip_len = if peer.remote.is_ipv4() { 20 } else { 40 };
        let mut free = Free { link: egress.side == Side::Neighbor, ..Free::NOTHING };
        let mut payload = Vec::new();
        if peer.udp {
            // Longer ones are superframes, which are cut before they leave.
            let length = u16::try_from(gre.len() + 8).unwrap_or(0);
            let udp = UdpHeader { source_port: 0, destination_port: 4754, length, checksum: 0 };
            payload.extend(udp.to_bytes());
            free.source_port = Some(14 + ip_len);
        }
        if peer.is_nvgre() {
            free.flow_id = Some(14 + ip_len + payload.len() + 7);
        }
        payload.extend(gre);
        let class = match peer.tos {
            Tos::Fixed(tos) => tos & !3 | own.class & 3,
            Tos::Inherit => own.class,
        };
        let protocol = if peer.udp { IpNumber::UDP } else { IpNumber::GRE };
        let destination = if peer.resolved { NEXT_HOP_MAC.0 } else { [0; 6] };
        let mut packet = Vec::with_capacity(54 + payload.len());
        let ethertype = EtherType(if peer.remote.is_ipv4() { 0x0800 } else { 0x86dd });
        packet.extend(Ethernet2Header { source: NEAR_MAC.0, destination, ether_type: ethertype }.to_bytes());
        if free.link {
            packet[..12].fill(0);
        }
        match (peer.local, peer.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                let mut ip = Ipv4Header {
                    dscp: IpDscp::try_new(class >> 2).unwrap_or_default(),
                    ecn: IpEcn::try_new(class & 3).unwrap_or_default(),
                    total_len: u16::try_from(payload.len() + ip_len).unwrap_or(0),
                    dont_fragment,
                    time_to_live: HOPS.min(own.hops),
                    protocol,
                    source: local.octets(),
                    destination: remote.octets(),
                    ..Ipv4Header::default()
                };
                free.identification = !dont_fragment;
                ip.header_checksum = if dont_fragment { ip.calc_header_checksum() } else { 0 };
                packet.extend(ip.to_bytes());
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                let ip = Ipv6Header {
                    traffic_class: class,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: u16::try_from(payload.len()).unwrap_or(0),
                    next_header: protocol,
                    hop_limit: HOPS.min(own.hops),
                    source: local.octets(),
                    destination: remote.octets(),
                };
                packet.extend(ip.to_bytes());
            }
            _ => {}
        }
        packet.extend(payload);
        if free.source_port.is_some() || free.flow_id.is_some() {
            self.flow = frame.flow().filter(|_| !frame.is_short());
        }
        self.output(egress, packet, 0, free);
    }
}

/// GRE around a frame (RFC 2784 2.1, RFC 2890 2).
fn gre(peer: &Peer, sequence: Option<u32>, inner: &[u8]) -> Vec<u8> {
    let key = match peer.key {
        GreKey::None => None,
        GreKey::Plain(key) => Some(key),
        GreKey::Subnet(subnet) => Some(subnet << 8),
    };
    let flag = |is: bool, bit: u8| if is { bit } else { 0 };
    let flags = flag(peer.checksum, 0x80) | flag(key.is_some(), 0x20) | flag(sequence.is_some(), 0x10);
    let mut gre = vec![flags, 0, 0x65, 0x58];
    if peer.checksum {
        gre.extend([0; 4]);
    }
    for field in [key, sequence].into_iter().flatten() {
        gre.extend(field.to_be_bytes());
    }
    gre.extend(inner);
    if peer.checksum {
        let sum = internet_checksum(&[&gre]);
        gre[4..6].copy_from_slice(&sum.to_be_bytes());
    }
    gre
}
