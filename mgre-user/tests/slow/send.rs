use mgre_common::checksum::checksum;
use mgre_common::template::{Encapsulation, Key, Outer};
use mgre_user::slow::counters::Happening;
use socket2::Type;

use super::*;

/// The packet that the datapath makes of a frame for an adjacency.
fn encapsulated(outer: &Outer, inner: &[u8]) -> Vec<u8> {
    let template = template(outer);
    let mut frame = template.header[..template.header_len.into()].to_vec();
    let overhead = frame.len() - 14;
    frame.extend(inner);
    if outer.source.is_ipv4() {
        frame[16..18].copy_from_slice(&((overhead + inner.len()) as u16).to_be_bytes());
        frame[18..20].copy_from_slice(&[0x12, 0x34]);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[18..20].copy_from_slice(&((overhead - 40 + inner.len()) as u16).to_be_bytes());
    }
    if outer.encapsulation == Encapsulation::GreUdp {
        let udp = if outer.source.is_ipv4() { 34 } else { 54 };
        frame[udp..udp + 2].copy_from_slice(&50_000_u16.to_be_bytes());
        let length = (frame.len() - udp) as u16;
        frame[udp + 4..udp + 6].copy_from_slice(&length.to_be_bytes());
    }
    frame
}

#[test]
fn what_is_too_long_arrives_in_fragments() {
    for v6 in [false, true] {
        in_namespace(move || async move {
            let outer = outer(v6, Encapsulation::Gre);
            let world = World::new(&[outer]).await;
            let inner = packet_socket(world.pair.inner.0);
            let near = packet_socket(nix::net::if_::if_nametoindex("near").unwrap());
            let peer = world.far.socket(Type::RAW, GRE, THEIRS[usize::from(v6)], 0);
            let payload = vec![0x5a; 3000];
            inner.send(&encapsulated(&outer, &payload)).unwrap();
            world.counted(Happening::Fragmented, 1).await;
            let whole = next(&peer).expect("reassembled");
            let gre = &whole[if v6 { 0 } else { 20 }..];
            assert_eq!((&gre[..8], &gre[8..]), (&[0x20, 0, 0x65, 0x58, 0, 0, 0, 7][..], &payload[..]));
            // The path's MTU of 1400, not the interface's of 1500.
            let protocol = if v6 { [0x86, 0xdd] } else { [8, 0] };
            let mut lengths = Vec::new();
            while lengths.len() < 3 {
                let frame = next(&near).expect("a fragment");
                if frame[12..14] == protocol && frame.len() > 200 {
                    lengths.push(frame.len());
                }
            }
            assert!(lengths.iter().all(|length| *length <= 1414), "{lengths:?}");
        });
    }
}

#[test]
fn gre_in_udp_is_cut_too() {
    for v6 in [false, true] {
        in_namespace(move || async move {
            let outer = outer(v6, Encapsulation::GreUdp);
            let world = World::new(&[outer]).await;
            let inner = packet_socket(world.pair.inner.0);
            let peer = world.far.socket(Type::DGRAM, 17, THEIRS[usize::from(v6)], 4754);
            // UDP_NO_CHECK6_RX: this packet has no checksum.
            if v6 {
                let on = 1_i32;
                // SAFETY: the option lives during the call, and its length is given.
                let set = unsafe {
                    let option = (&raw const on).cast();
                    libc::setsockopt(
                        std::os::fd::AsRawFd::as_raw_fd(&peer),
                        libc::IPPROTO_UDP,
                        102,
                        option,
                        4,
                    )
                };
                assert_eq!(set, 0);
            }
            inner.send(&encapsulated(&outer, &vec![0x5a; 3000])).unwrap();
            world.counted(Happening::Fragmented, 1).await;
            assert_eq!(next(&peer).expect("reassembled").len(), 3008);
        });
    }
}

#[test]
fn what_is_marked_or_nobodys_is_not_sent() {
    in_namespace(|| async {
        let outer = outer(false, Encapsulation::Gre);
        let world = World::new(&[outer]).await;
        let inner = packet_socket(world.pair.inner.0);
        inner.send(&encapsulated(&Outer { key: Key::Plain(8), ..outer }, &[0; 3000])).unwrap();
        world.counted(Happening::Refused, 1).await;
        inner.set_mark(0x8000_0001).unwrap();
        inner.send(&encapsulated(&outer, &[0; 3000])).unwrap();
        // What goes into the pair from the outer end is not what came out of it.
        packet_socket(world.pair.outer.0).send(&encapsulated(&outer, &[0; 3000])).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!((world.count(Happening::Refused), world.count(Happening::Fragmented)), (1, 0));
    });
}
