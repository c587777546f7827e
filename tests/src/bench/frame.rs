//! The frame that the generator sends.

use std::net::Ipv4Addr;

use anyhow::Result;
use etherparse::PacketBuilder;

use crate::packet::Mac;

/// Bytes of an Ethernet frame of minimum size without its check sequence: 64 on the wire.
pub const FRAME_LEN: usize = 60;
/// Where the UDP header is.
pub const UDP_AT: usize = 14 + 20;
/// Where what it carries is.
pub const PAYLOAD_AT: usize = UDP_AT + 8;
/// How many source ports there are: a power of two up to 256.
pub const FLOWS: u16 = 32;
/// The destination port, which tells these frames from all others.
pub const UDP_PORT: u16 = 0xbe2c;
/// The first source port. Its low byte is that of the flow.
const SOURCE_PORT: u16 = 0x4000;

/// A UDP datagram in IPv4, of 60 bytes in all: that of the first flow.
///
/// # Errors
/// None: it is short.
pub fn frame(source: (Mac, Ipv4Addr), destination: (Mac, Ipv4Addr)) -> Result<Vec<u8>> {
    let mut payload = [0; FRAME_LEN - PAYLOAD_AT];
    payload[1] = 0xff;
    let builder = PacketBuilder::ethernet2(source.0, destination.0)
        .ipv4(source.1.octets(), destination.1.octets(), 64)
        .udp(SOURCE_PORT, UDP_PORT);
    let mut frame = Vec::with_capacity(FRAME_LEN);
    builder.write(&mut frame, &payload)?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    #[test]
    fn checksums_are_right_for_every_flow() {
        let host = |number| ([2, 0, 0, 0, 0, number], Ipv4Addr::new(10, 77, 0, number));
        let mut frame = frame(host(1), host(2)).expect("short");
        assert_eq!(frame.len(), FRAME_LEN);
        for flow in 0..FLOWS as u8 {
            // As the generator does.
            frame[UDP_AT + 1] = flow;
            frame[PAYLOAD_AT + 1] = 0xff - flow;
            let sliced = SlicedPacket::from_ethernet(&frame).expect("a packet");
            let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no IPv4") };
            let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("no UDP") };
            let (ip, header) = (ip.header().to_header(), udp.to_header());
            let wanted = header.calc_checksum_ipv4(&ip, udp.payload()).expect("short");
            assert_eq!((header.destination_port, header.checksum), (UDP_PORT, wanted));
        }
    }
}
