use super::*;

/// A message's fixed part and attributes, as include/uapi/linux/rtnetlink.h lays them out.
fn message(header: &[u8], list: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    for (kind, value) in list {
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(*value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn link_header(index: u32, flags: libc::c_int) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend(ARPHRD_ETHER.to_ne_bytes());
    bytes.extend(index.to_ne_bytes());
    bytes.extend((flags as u32).to_ne_bytes());
    bytes.extend([0; 4]);
    bytes
}

fn neighbor_header(family: libc::c_int, state: u16, flags: u8) -> Vec<u8> {
    let mut bytes = vec![family as u8, 0, 0, 0];
    bytes.extend(3u32.to_ne_bytes());
    bytes.extend(state.to_ne_bytes());
    bytes.extend([flags, 0]);
    bytes
}

#[test]
fn a_veth_with_everything() {
    let info = message(&[], &[(IFLA_INFO_KIND, b"veth\0")]);
    let bytes = message(
        &link_header(3, IFF_UP | IFF_RUNNING | IFF_LOWER_UP | IFF_PROMISC),
        &[
            (IFLA_IFNAME, b"eth0\0"),
            (IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
            (IFLA_MTU, &1400u32.to_ne_bytes()),
            (IFLA_IFALIAS, b"mgre\0"),
            (IFLA_MASTER, &9u32.to_ne_bytes()),
            (IFLA_LINK, &4u32.to_ne_bytes()),
            (0x7abc, b"of a newer kernel"),
            (IFLA_LINKINFO | 0x8000, &info),
        ],
    );
    let expected = Link {
        index: 3,
        name: "eth0".into(),
        mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
        mtu: 1400,
        up: true,
        running: true,
        promiscuous: true,
        kind: Some("veth".into()),
        alias: Some("mgre".into()),
        peer_index: Some(4),
        controller: Some(9),
        loopback: false,
        ethernet: true,
        xdp_program: None,
        vlan_offload: false,
    };
    assert_eq!(link(&bytes), Some(expected));
}

#[test]
fn a_peer_in_another_namespace_is_none() {
    let list: [(u16, &[u8]); 2] = [(IFLA_LINK, &4u32.to_ne_bytes()), (IFLA_LINK_NETNSID, &[0; 4])];
    let found = link(&message(&link_header(3, 0), &list)).expect("a link");
    assert_eq!(found.peer_index, None);
    assert!(!found.up && !found.running);
}

#[test]
fn no_carrier_is_not_running() {
    let found = link(&link_header(3, IFF_UP | IFF_RUNNING)).expect("a link");
    assert!(found.up && !found.running);
}

#[test]
fn our_end_of_a_point_to_point_address() {
    let mut header = vec![AF_INET as u8, 32, 0, 0];
    header.extend(5u32.to_ne_bytes());
    let bytes = message(&header, &[(libc::IFA_ADDRESS, &[192, 0, 2, 2]), (libc::IFA_LOCAL, &[192, 0, 2, 1])]);
    let expected = Address {
        ifindex: 5,
        address: "192.0.2.1".parse().expect("address"),
        prefix_len: 32,
        duplicate: false,
    };
    assert_eq!(interface_address(&bytes), Some(expected));
    assert_eq!(interface_address(&header), None);
}

#[test]
fn routes() {
    let header = |kind| [AF_INET as u8, 32, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0];
    let oif = 2u32.to_ne_bytes();
    let metrics = message(&[], &[(7, &[1; 4]), (RTAX_MTU, &1400u32.to_ne_bytes())]);
    let mut gateway = (AF_INET6 as u16).to_ne_bytes().to_vec();
    gateway.extend("fe80::1".parse::<std::net::Ipv6Addr>().expect("address").octets());
    let list: [(u16, &[u8]); 4] =
        [(RTA_OIF, &oif), (RTA_PREFSRC, &[192, 0, 2, 1]), (RTA_VIA, &gateway), (RTA_METRICS, &metrics)];
    let expected = Route {
        ifindex: 2,
        gateway: Some("fe80::1".parse().expect("address")),
        preferred_source: Some("192.0.2.1".parse().expect("address")),
        mtu: Some(1400),
        local: false,
    };
    assert_eq!(route(&message(&header(RTN_UNICAST), &list)), Some(Found::Usable(expected)));

    // Discovered: a copy of a route that expires. Announced: a route that expires.
    for (flags, expires, mtu) in [(0x200, 0, Some(1400)), (0, 5, Some(1400)), (0x200, 5, None)] {
        let mut header = header(RTN_UNICAST);
        header[8..12].copy_from_slice(&u32::to_ne_bytes(flags));
        let mut cache = [0; 32];
        cache[8..12].copy_from_slice(&i32::to_ne_bytes(expires));
        let list = [list[0], list[3], (libc::RTA_CACHEINFO, &cache[..])];
        let Some(Found::Usable(found)) = route(&message(&header, &list)) else { panic!("a route") };
        assert_eq!(found.mtu, mtu, "{flags} {expires}");
    }

    let Some(Found::Usable(local)) = route(&message(&header(RTN_LOCAL), &[(RTA_OIF, &oif)])) else {
        panic!("a local route");
    };
    assert!(local.local);
    for kind in [libc::RTN_BLACKHOLE, libc::RTN_UNREACHABLE, libc::RTN_PROHIBIT, libc::RTN_BROADCAST] {
        assert_eq!(route(&header(kind)), Some(Found::Unusable));
    }
}

#[test]
fn neighbours_by_state() {
    let list: [(u16, &[u8]); 2] = [(libc::NDA_DST, &[192, 0, 2, 2]), (libc::NDA_LLADDR, &[2, 0, 0, 0, 0, 2])];
    for (state, usable, fixed) in [
        (NUD_REACHABLE, true, false),
        (NUD_STALE, true, false),
        (NUD_DELAY, true, false),
        (NUD_PROBE, true, false),
        (NUD_PERMANENT, true, true),
        (NUD_NOARP, true, true),
        (libc::NUD_INCOMPLETE, false, false),
        (libc::NUD_FAILED, false, false),
        (libc::NUD_NONE, false, false),
    ] {
        let entry = neighbor(&message(&neighbor_header(AF_INET, state, 0), &list)).expect("a neighbour");
        assert_eq!((entry.neighbor.usable, entry.fixed), (usable, fixed), "state {state:#x}");
        assert_eq!(entry.neighbor.mac, Some(MacAddr([2, 0, 0, 0, 0, 2])));
        assert_eq!((entry.ifindex, entry.managed, entry.protocol), (3, false, 0));
    }
    let learned = neighbor(&message(&neighbor_header(AF_INET, NUD_STALE, NTF_EXT_LEARNED), &list));
    assert!(learned.expect("a neighbour").learned);
}

#[test]
fn a_managed_neighbour_and_its_owner() {
    let list: [(u16, &[u8]); 3] =
        [(libc::NDA_DST, &[192, 0, 2, 2]), (NDA_PROTOCOL, &[109]), (NDA_FLAGS_EXT, &1u32.to_ne_bytes())];
    let entry = neighbor(&message(&neighbor_header(AF_INET, 0, 0), &list)).expect("a neighbour");
    assert_eq!((entry.managed, entry.protocol), (true, 109));
}

#[test]
fn what_is_no_ip_neighbour() {
    let list: [(u16, &[u8]); 1] = [(libc::NDA_DST, &[192, 0, 2, 2])];
    assert_eq!(neighbor(&message(&neighbor_header(libc::AF_BRIDGE, 0, 0), &list)), None);
    assert_eq!(neighbor(&message(&neighbor_header(AF_INET, 0, libc::NTF_PROXY), &list)), None);
    assert_eq!(neighbor(&neighbor_header(AF_INET, 0, 0)), None);
}

proptest::proptest! {
    /// Whatever the kernel sends, decoding ends without a panic.
    #[test]
    fn garbage_is_no_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..96)) {
        link(&bytes);
        interface_address(&bytes);
        route(&bytes);
        neighbor(&bytes);
        for kind in [RTN_UNICAST, RTN_LOCAL] {
            let mut header = vec![0; 12];
            header[7] = kind;
            header.extend(&bytes);
            route(&header);
        }
    }
}
