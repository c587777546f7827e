//! RFC 6864, 7588 and 7676: sizes, fragments and identifications.

use mgre_common::reason::DropReason;

use super::{all_packets, gre_at, hold};
use crate::host::cases::{Case, End};
use crate::host::world::SLOW;

fn goes_to_be_fragmented(case: &Case) -> bool {
    let [(egress, packet)] = &case.expected.outputs[..] else { return false };
    // A whole outer packet.
    egress.ifindex == SLOW && matches!(packet[12..14], [8, 0] | [0x86, 0xdd]) && packet.len() > 200
}

/// Protocol type 0x86dd, IPv6 without Ethernet, is layer 3 and refused.
#[test]
fn rfc_7676_4_next_header_47() {
    let six = all_packets().into_iter().filter(|packet| packet[12..14] == [0x86, 0xdd]);
    let mut count = 0;
    for packet in six {
        let udp = packet[20] == 17;
        assert!(udp || packet[20] == 47);
        assert_eq!(usize::from(u16::from_be_bytes([packet[18], packet[19]])), packet.len() - 54);
        assert_eq!(packet[gre_at(&packet) + 2..][..2], [0x65, 0x58]);
        count += 1;
    }
    assert!(count > 50, "{count}");
    hold("IPv6: protocol type 0x86dd", 1);
}

#[test]
fn rfc_7676_3_2_ipv6_of_1280_octets_passes() {
    for case in hold("what every host may send", 2).iter().chain(&hold("the same with a tag", 1)) {
        assert!(goes_to_be_fragmented(case), "{}", case.name);
        assert_eq!(case.expected.drops, []);
    }
}

/// Not by us: who sent it is told.
#[test]
fn rfc_7676_3_3_ipv6_inside_is_never_fragmented() {
    for case in hold("IPv6 inside: a byte more", 2).iter().chain(&hold("IPv6 in IPv4: a byte more", 1)) {
        assert_eq!((case.expected.end, case.expected.too_big.len()), (End::Dropped, 1));
    }
}

#[test]
fn rfc_7588_3_3_who_sends_df_is_told_the_tunnels_mtu() {
    for id in [28, 29, 30] {
        hold(&format!("peer {id}: just fits"), 1);
        for case in hold(&format!("peer {id}: too big"), 3) {
            let (head, bytes) = &case.expected.too_big[0];
            // 200 less IPv4, GRE and a key, Ethernet, and a tag if there is one.
            let tag = if bytes[12] == 0x81 { 4 } else { 0 };
            assert_eq!(head.mtu, 200 - 20 - 8 - 14 - tag);
            assert_eq!(bytes[..], case.bytes[..bytes.len()]);
        }
    }
    hold("IPv4 in IPv6: too big", 2);
}

#[test]
fn rfc_7588_3_3_df_outside_is_the_peers_choice() {
    for case in hold("df unset: of", 3) {
        assert_eq!(case.expected.outputs[0].1[20] & 0x40, 0);
    }
    for case in hold("df inherit: of", 6) {
        let wanted = case.name.contains("with DF") || case.name.contains("IPv6");
        assert_eq!(case.expected.outputs[0].1[20] & 0x40 != 0, wanted, "{}", case.name);
    }
    for case in hold("df set: too big", 2) {
        assert_eq!(case.expected.drops[0].2, DropReason::TooBig);
    }
    for option in ["unset", "inherit"] {
        assert!(hold(&format!("df {option}: too big"), 2).iter().all(goes_to_be_fragmented));
    }
}

#[test]
fn rfc_7588_3_4_fragments_of_outer_packets_are_the_kernels() {
    for name in ["first fragment", "middle fragment", "last fragment", "IP options"] {
        for case in hold(name, if name.starts_with(['f', 'l']) { 2 } else { 1 }) {
            assert_eq!(case.expected.end, End::Passed);
            assert_eq!(case.expected.drops[0].2, DropReason::OuterFragment);
        }
    }
    hold("IPv6: hop-by-hop options", 1);
}

/// An atomic packet's identification says nothing.
#[test]
fn rfc_6864_4_1_identification_is_0_where_nobody_may_fragment() {
    let mut count = 0;
    for packet in all_packets().iter().filter(|packet| packet[12] == 8 && packet[20] & 0x40 != 0) {
        assert_eq!(packet[18..20], [0, 0]);
        count += 1;
    }
    assert!(count > 50, "{count}");
}
