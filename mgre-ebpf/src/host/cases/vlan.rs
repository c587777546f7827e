//! Ports by VLAN.

use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use super::Case;
use crate::frame::{Egress, Side};
use crate::host::packet::{Outer, frame, tagged, tcp_v4};
use crate::host::world::{VLAN_INTERFACE, peer_v4, station};

const KEY: Option<u32> = Some(36);
const PEER: Target = Target::adjacency(34);

impl Case {
    /// A copy goes out of a VLAN on the interface.
    fn out_of_vlan(self, id: u32, vlan: u16, inner: &[u8]) -> Self {
        let egress = Egress { vlan, ..Egress::new(VLAN_INTERFACE, Side::Out) };
        let bytes = if vlan == 0 { inner.to_vec() } else { tagged(inner, 0x8100, vlan) };
        self.send(Target::port(id), egress, bytes)
    }
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = received();
    cases.extend(sent());
    cases
}

/// From the port of a VLAN; its tag is beside the frame.
fn from_vlan(name: &str, vlan: u16, inner: &[u8]) -> Case {
    let [high, low] = vlan.to_be_bytes();
    Case::port(name, VLAN_INTERFACE, inner.to_vec()).tag([0x81, 0, high, low])
}

fn received() -> Vec<Case> {
    let to_peer = |from| tcp_v4(station(34), station(from), 40);
    let group = frame(MacAddr::BROADCAST, station(1), 0x0806, 46);
    let unmatched = |name: &str, tag: [u8; 4]| Case::port(name, VLAN_INTERFACE, to_peer(1)).tag(tag);
    vec![
        from_vlan("VLAN 5: the tag is left behind", 5, &to_peer(1))
            .received(Target::port(24), to_peer(1).len())
            .into_tunnel(34, peer_v4(34), KEY, &to_peer(1)),
        from_vlan("VLAN 5: whatever the priority", 0xe005, &to_peer(1))
            .received(Target::port(24), to_peer(1).len())
            .into_tunnel(34, peer_v4(34), KEY, &to_peer(1)),
        from_vlan("VLAN 6: to VLAN 5", 6, &tcp_v4(station(1), station(3), 40))
            .received(Target::port(26), 94)
            .out_of_vlan(24, 5, &tcp_v4(station(1), station(3), 40)),
        from_vlan("VLAN 5: a tag inside stays", 5, &tagged(&to_peer(1), 0x8100, 9))
            .received(Target::port(24), to_peer(1).len() + 4)
            .into_tunnel(34, peer_v4(34), KEY, &tagged(&to_peer(1), 0x8100, 9)),
        Case::port("VLAN none: no tag", VLAN_INTERFACE, to_peer(2))
            .received(Target::port(25), to_peer(2).len())
            .into_tunnel(34, peer_v4(34), KEY, &to_peer(2)),
        unmatched("VLAN 7 is nobody's", [0x81, 0, 0, 7]),
        from_vlan("VLAN 5: flooded", 5, &group)
            .received(Target::port(24), group.len())
            .out_of_vlan(25, 0, &group)
            .out_of_vlan(26, 6, &group)
            .out_of_port(27, &group)
            .into_tunnel(34, peer_v4(34), KEY, &group)
            .flooded(16),
    ]
}

fn sent() -> Vec<Case> {
    let from_peer = |inner: &[u8], name: &str| {
        Case::underlay(name, Outer::from_peer(peer_v4(34), KEY).wrap(inner)).received(PEER, inner.len())
    };
    let to = |number| tcp_v4(station(number), station(34), 40);
    let group = frame(MacAddr::BROADCAST, station(34), 0x0806, 46);
    vec![
        from_peer(&to(1), "out of VLAN 5").out_of_vlan(24, 5, &to(1)),
        from_peer(&to(2), "out of no VLAN").out_of_vlan(25, 0, &to(2)),
        from_peer(&to(3), "out of VLAN 6").out_of_vlan(26, 6, &to(3)),
        from_peer(&frame(station(1), station(34), 0x0806, 46), "ARP out of VLAN 5").out_of_vlan(
            24,
            5,
            &frame(station(1), station(34), 0x0806, 46),
        ),
        from_peer(&tagged(&to(1), 0x8100, 9), "a tagged frame out of VLAN 5").out_of_vlan(
            24,
            5,
            &tagged(&to(1), 0x8100, 9),
        ),
        from_peer(&group, "a broadcast out of every VLAN")
            .out_of_vlan(24, 5, &group)
            .out_of_vlan(25, 0, &group)
            .out_of_vlan(26, 6, &group)
            .out_of_port(27, &group)
            .flooded(16),
    ]
}
