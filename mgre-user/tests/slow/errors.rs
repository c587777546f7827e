use std::net::SocketAddr;

use mgre_common::checksum::checksum;
use mgre_common::template::{Encapsulation, Key, Outer};
use mgre_user::slow::counters::Happening;
use mgre_user::slow::quote::{Narrow, Said};
use socket2::Type;

use super::*;

/// What a router says of a packet of 1500 bytes that `outer` begins.
fn too_big(outer: &Outer, mtu: u16) -> Vec<u8> {
    let template = template(outer);
    let mut packet = template.header[14..template.header_len.into()].to_vec();
    packet.extend([0; 64]);
    let [high, low] = mtu.to_be_bytes();
    if outer.source.is_ipv4() {
        packet[2..4].copy_from_slice(&1500_u16.to_be_bytes());
        let mut message = vec![3, 4, 0, 0, 0, 0, high, low];
        message.extend(packet);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    } else {
        packet[4..6].copy_from_slice(&1460_u16.to_be_bytes());
        // The kernel fills in the checksum.
        let mut message = vec![2, 0, 0, 0, 0, 0, high, low];
        message.extend(packet);
        message
    }
}

#[test]
fn a_router_is_believed_where_it_quotes_a_packet_of_ours() {
    for v6 in [false, true] {
        in_namespace(move || async move {
            let outer = outer(v6, Encapsulation::Gre);
            let mut world = World::new(&[outer]).await;
            let family = usize::from(v6);
            let protocol = if v6 { 58 } else { 1 };
            // Any router may say so: this one is no peer.
            let router = world.far.socket(Type::RAW, protocol, STRANGERS[family], 0);
            let to = SocketAddr::new(address(OURS[family]), 0);
            let other = Outer { key: Key::Plain(8), ..outer };
            router.send_to(&too_big(&other, 1300), &to.into()).unwrap();
            world.counted(Happening::IcmpIgnored, 1).await;
            router.send_to(&too_big(&outer, 1300), &to.into()).unwrap();
            let said = tokio::time::timeout(Duration::from_secs(5), world.slow.said()).await.unwrap();
            assert_eq!(said, Said::Narrow(Narrow { remote: outer.destination, mtu: 1300 }));
            assert_eq!(world.count(Happening::IcmpIgnored), 1);
            // That there is no way, too, by way of a network; that there is no such protocol is another matter.
            for (code, taken) in [(if v6 { 1 } else { 2 }, false), (0, true)] {
                let mut message = too_big(&outer, 0);
                message[..2].copy_from_slice(&[if v6 { 1 } else { 3 }, code]);
                if !v6 {
                    message[2..4].fill(0);
                    let sum = checksum(&message);
                    message[2..4].copy_from_slice(&sum.to_be_bytes());
                }
                router.send_to(&message, &to.into()).unwrap();
                if taken {
                    let said = tokio::time::timeout(Duration::from_secs(5), world.slow.said()).await.unwrap();
                    assert_eq!(said, Said::NoWay { remote: outer.destination });
                }
            }
        });
    }
}

#[test]
fn the_kernel_takes_no_word_for_what_we_send() {
    in_namespace(|| async {
        let outer = outer(false, Encapsulation::Gre);
        let mut world = World::new(&[outer]).await;
        let router = world.far.socket(Type::RAW, 1, STRANGERS[0], 0);
        let to = SocketAddr::new(address(OURS[0]), 0);
        router.send_to(&too_big(&outer, 1300), &to.into()).unwrap();
        tokio::time::timeout(Duration::from_secs(5), world.slow.said()).await.unwrap();
        let shown = Command::new("ip").args(["route", "get", THEIRS[0]]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(!shown.contains("mtu"), "{shown}");
    });
}
