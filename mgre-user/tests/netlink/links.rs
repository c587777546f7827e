//! Interfaces, addresses and routes.

use super::*;

#[test]
fn links_and_addresses() {
    in_namespace(|| async {
        ip("link add va address 02:00:00:00:00:01 mtu 1400 type veth peer vb");
        ip("link add br0 type bridge");
        ip("link set va up alias mine");
        ip("link set vb master br0 promisc on");
        ip("link set lo up");
        ip("addr add 192.0.2.1/24 dev va");
        let netlink = Netlink::connect().unwrap();
        assert_eq!(names(&netlink).await, ["br0", "lo", "va", "vb"]);

        let (a, b, br) =
            (link(&netlink, "va").await, link(&netlink, "vb").await, link(&netlink, "br0").await);
        let expected = Link {
            index: a.index,
            name: "va".into(),
            mac: Some(NEAR_MAC),
            mtu: 1400,
            up: true,
            running: false,
            promiscuous: false,
            kind: Some("veth".into()),
            alias: Some("mine".into()),
            peer_index: Some(b.index),
            controller: None,
            loopback: false,
            ethernet: true,
            xdp_program: None,
            vlan_offload: false,
        };
        assert_eq!(a, expected);
        assert_eq!(
            (b.up, b.promiscuous, b.controller, b.peer_index),
            (false, true, Some(br.index), Some(a.index))
        );
        assert_eq!(br.kind.as_deref(), Some("bridge"));
        let lo = link(&netlink, "lo").await;
        assert!(lo.loopback && lo.up && lo.running && !lo.ethernet);

        netlink.set_up(b.index, true).await.unwrap();
        assert!(link(&netlink, "va").await.running);
        netlink.set_promiscuous(b.index, false).await.unwrap();
        netlink.set_mtu(b.index, 1300).await.unwrap();
        let b = link(&netlink, "vb").await;
        assert_eq!((b.up, b.promiscuous, b.mtu), (true, false, 1300));

        let (four, six) = (address("198.51.100.1"), address("2001:db8::1"));
        netlink.add_address(b.index, four, 24).await.unwrap();
        netlink.add_address(b.index, six, 64).await.unwrap();
        let all = netlink.addresses().await.unwrap();
        for expected in [
            Address { ifindex: a.index, address: address("192.0.2.1"), prefix_len: 24, duplicate: false },
            Address { ifindex: b.index, address: four, prefix_len: 24, duplicate: false },
            Address { ifindex: b.index, address: six, prefix_len: 64, duplicate: false },
            Address { ifindex: lo.index, address: address("127.0.0.1"), prefix_len: 8, duplicate: false },
        ] {
            assert!(all.contains(&expected), "{expected:?} in {all:?}");
        }
        let again = netlink.add_address(b.index, four, 24).await;
        assert!(matches!(again, Err(Error::AddressExists { .. })), "{again:?}");

        netlink.delete_link(a.index).await.unwrap();
        assert_eq!(names(&netlink).await, ["br0", "lo"]);
        let gone = netlink.delete_link(a.index).await.unwrap_err();
        assert_eq!(gone.to_string(), format!("no interface with index {}", a.index));
        let unknown = netlink.link_by_name("eth9").await.unwrap_err();
        assert_eq!(unknown.to_string(), "no interface named eth9");
        let refused = netlink.set_mtu(br.index, 1).await.unwrap_err().to_string();
        assert!(refused.contains("mtu less than device minimum"), "{refused}");
    });
}

#[test]
fn routes() {
    in_namespace(|| async {
        let _far = Far::new();
        ip("link set lo up");
        ip("route add 198.51.100.0/24 via 192.0.2.2 mtu 1400");
        ip("route add 203.0.113.0/24 via inet6 2001:db8::2 dev near");
        ip("route add 2001:db8:1::/48 via 2001:db8::2");
        ip("route add 2001:db8:2::/48 via 2001:db8::2 mtu 1400");
        ip("route add 2001:db8:3::/48 via fe80::2 dev near");
        for (net, kind) in ["unreachable", "prohibit", "blackhole"].into_iter().enumerate() {
            ip(&format!("route add {kind} 10.{net}.0.0/16"));
            ip(&format!("route add {kind} 2001:db8:10{net}::/48"));
        }
        let netlink = Netlink::connect().unwrap();
        let near = link(&netlink, "near").await.index;
        let lookup = async |dst: &str| netlink.route_to(address(dst), None).await.unwrap();

        for (dst, gateway, source, mtu) in [
            ("192.0.2.9", None, "192.0.2.1", None),
            ("198.51.100.9", Some("192.0.2.2"), "192.0.2.1", Some(1400)),
            ("203.0.113.9", Some("2001:db8::2"), "192.0.2.1", None),
            ("2001:db8::9", None, "2001:db8::1", None),
            ("2001:db8:1::9", Some("2001:db8::2"), "2001:db8::1", None),
            ("2001:db8:2::9", Some("2001:db8::2"), "2001:db8::1", Some(1400)),
            ("2001:db8:3::9", Some("fe80::2"), "2001:db8::1", None),
        ] {
            let route = lookup(dst).await.unwrap();
            assert_eq!(route.ifindex, near, "{dst}");
            assert_eq!(route.gateway, gateway.map(address), "{dst}");
            assert_eq!(route.preferred_source, Some(address(source)), "{dst}");
            assert_eq!(route.mtu, mtu, "{dst}");
            assert!(!route.local, "{dst}");
        }
        for dst in ["192.0.2.1", "2001:db8::1", "127.0.0.1"] {
            assert!(lookup(dst).await.unwrap().local, "{dst}");
        }
        for dst in ["100.64.0.1", "10.0.0.1", "10.1.0.1", "10.2.0.1", "192.0.2.255"] {
            assert_eq!(lookup(dst).await, None, "{dst}");
        }
        for dst in ["2001:db9::1", "2001:db8:100::1", "2001:db8:101::1", "2001:db8:102::1"] {
            assert_eq!(lookup(dst).await, None, "{dst}");
        }

        // Another MTU is another answer, for either IP version.
        for (net, dst) in [("198.51.100.0/24", "198.51.100.9"), ("2001:db8:2::/48", "2001:db8:2::9")] {
            let via = if net.contains(':') { "2001:db8::2" } else { "192.0.2.2" };
            ip(&format!("route replace {net} via {via} mtu 1300"));
            assert_eq!(lookup(dst).await.unwrap().mtu, Some(1300), "{dst}");
        }

        ip("addr add 192.0.2.7/32 dev near");
        let from = netlink.route_to(address("192.0.2.9"), Some(address("192.0.2.7"))).await.unwrap().unwrap();
        assert_eq!(from.ifindex, near);
        let foreign = netlink.route_to(address("192.0.2.9"), Some(address("192.0.2.8"))).await.unwrap_err();
        assert_eq!(foreign.to_string(), "192.0.2.8 is not an address of this host");
        assert_eq!(netlink.route_to(address("10.2.0.1"), Some(address("192.0.2.7"))).await.unwrap(), None);

        // Rules for the source, of either IP version; many at once.
        for (option, other, rest) in
            [("", "192.0.2.7", "10.9.0.0/16"), ("-6 ", "2001:db8::7", "2001:db8:9::/48")]
        {
            let prefix = if option.is_empty() { 32 } else { 128 };
            ip(&format!("addr replace {other}/{prefix} dev near"));
            ip(&format!("{option}route add {rest} dev near table 100"));
            ip(&format!("{option}rule add from {other} lookup 100"));
        }
        let ask = |destination: &str, source: Option<&str>, by| Lookup {
            destination: address(destination),
            source: source.map(address),
            by,
        };
        let all = vec![
            ask("10.9.0.1", None, None),
            ask("10.9.0.1", Some("192.0.2.7"), None),
            ask("10.9.0.1", Some("192.0.2.8"), None),
            ask("2001:db8:9::1", Some("2001:db8::1"), None),
            ask("2001:db8:9::1", Some("2001:db8::7"), None),
            // By an interface, and by one that is gone.
            ask("192.0.2.9", None, Some(near)),
            ask("192.0.2.9", None, Some(9999)),
        ];
        let found = netlink.routes(all).await.unwrap();
        let by: Vec<_> = found.iter().map(|route| route.map(|route| route.ifindex)).collect();
        assert_eq!(by, [None, Some(near), None, None, Some(near), Some(near), None]);
    });
}

#[test]
fn a_veth_is_made_whole() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let (host, port) =
            netlink.create_veth("mgre0", "mgre0p", Some(NEAR_MAC), 1450, "mgre:lab").await.unwrap();
        assert_eq!((host.name.as_str(), port.name.as_str()), ("mgre0", "mgre0p"));
        assert_eq!((host.peer_index, port.peer_index), (Some(port.index), Some(host.index)));
        assert_eq!(host.mac, Some(NEAR_MAC));
        for end in [&host, &port] {
            assert_eq!((end.alias.as_deref(), end.mtu, end.up), (Some("mgre:lab"), 1450, true), "{end:?}");
            assert_eq!(end.kind.as_deref(), Some("veth"));
        }
        assert!(ip("-d link show mgre0p").contains("addrgenmode none"));
        assert!(!ip("-d link show mgre0").contains("addrgenmode none"));
        assert_eq!(ip("-6 -o addr show dev mgre0p"), "");
        assert!(ip("-6 -o addr show dev mgre0").contains("fe80::"));
        netlink.delete_link(port.index).await.unwrap();
        assert_eq!(names(&netlink).await, ["lo"]);

        // Too small for IPv6, which is then not there to be turned off.
        let (small, _) = netlink.create_veth("small", "smallp", None, 1000, "mgre").await.unwrap();
        assert_eq!(small.mtu, 1000);
    });
}

#[test]
fn the_kernel_numbers_the_far_ends_of_veths() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        ip("link add mgre1 type bridge");
        for (name, far) in [("a", "mgre0"), ("b", "mgre2"), ("c", "mgre3")] {
            let (near, other) = netlink.create_veth(name, "mgre%d", None, 1500, "mgre:lab").await.unwrap();
            assert_eq!((near.name.as_str(), other.name.as_str()), (name, far));
            assert_eq!(other.alias.as_deref(), Some("mgre:lab"));
        }
    });
}

#[test]
fn a_pair_is_silent_and_one_end_is_given_finished_frames() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let (inner, outer) = netlink.create_pair(["near0", "far0"], 65_535, "mgre:lab:slow").await.unwrap();
        assert_eq!((inner.name.as_str(), outer.name.as_str()), ("near0", "far0"));
        assert_eq!((inner.peer_index, outer.peer_index), (Some(outer.index), Some(inner.index)));
        for end in [&inner, &outer] {
            assert_eq!(
                (end.alias.as_deref(), end.mtu, end.up),
                (Some("mgre:lab:slow"), 65_535, true),
                "{end:?}"
            );
            assert_eq!(ip(&format!("-6 -o addr show dev {}", end.name)), "");
        }
        let found = netlink.links().await.unwrap().into_iter().find(|link| link.name == "near0").unwrap();
        assert!(found.running && found.peer_index == Some(outer.index));
        let error = netlink.create_pair(["near0", "far1"], 65_535, "x").await.unwrap_err();
        assert_eq!(error.to_string(), "interface name near0 is taken");
        netlink.delete_link(inner.index).await.unwrap();
        assert_eq!(names(&netlink).await, ["lo"]);
    });
}

#[test]
fn a_veth_that_fails_leaves_nothing() {
    in_namespace(|| async {
        ip("link add taken type bridge");
        ip("link property add dev taken altname alternative");
        let netlink = Netlink::connect().unwrap();
        let line = async |name: &str, peer: &str, mtu: u32, alias: &str| {
            netlink.create_veth(name, peer, None, mtu, alias).await.unwrap_err().to_string()
        };
        assert_eq!(line("taken", "b", 1500, "x").await, "interface name taken is taken");
        assert_eq!(line("a", "taken", 1500, "x").await, "interface name taken is taken");
        assert_eq!(line("a", "alternative", 1500, "x").await, "interface name alternative is taken");
        assert_eq!(line("a", "a", 1500, "x").await, "interface name a is taken");
        assert!(line("a%d", "b", 1500, "x").await.starts_with("\"a%d\" cannot name an interface"));
        for bad in ["b%s", "b%d%d", "b%"] {
            let error = line("a", bad, 1500, "x").await;
            assert!(error.starts_with(&format!("{bad:?} cannot name an interface")), "{error}");
        }
        let small = line("a", "b", 10, "x").await;
        assert!(small.starts_with("cannot create interfaces a and b: "), "{small}");
        // The pair exists by the time the kernel refuses this.
        let alias = line("a", "b", 1500, &"x".repeat(300)).await;
        assert!(alias.starts_with("cannot mark interface "), "{alias}");
        assert_eq!(names(&netlink).await, ["lo", "taken"]);
    });
}

#[test]
fn without_the_privilege_the_error_says_so() {
    in_namespace(|| async {
        // SAFETY: the system call itself, unlike libc's wrapper, changes this thread alone, and it is given
        // numbers.
        let result = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(result, 0);
        let netlink = Netlink::connect().unwrap();
        let error = netlink.create_veth("a", "b", None, 1500, "x").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot create interfaces a and b: not permitted: run as root or with CAP_NET_ADMIN"
        );
        assert_eq!(netlink.links().await.unwrap().len(), 1);
        assert!(Monitor::open().is_ok());
    });
}
