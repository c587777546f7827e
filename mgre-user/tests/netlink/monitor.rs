//! Notifications.

use super::*;

#[test]
fn the_monitor_sees_changes_at_once() {
    in_namespace(|| async {
        let far = Far::new();
        far.run(|| set("ipv4/conf/far/arp_notify", "1"));
        set("ipv4/neigh/near/locktime", "0");
        let netlink = Netlink::connect().unwrap();
        let near = link(&netlink, "near").await.index;
        let remote = address("192.0.2.2");
        netlink.keep_neighbor(near, remote).await.unwrap();
        let mac = async || netlink.neighbor(near, remote).await.unwrap().and_then(|neighbor| neighbor.mac);
        assert!(eventually(Duration::from_secs(5), async || mac().await == Some(FAR_MAC)).await);

        let mut monitor = Monitor::open().unwrap();
        let second = Duration::from_secs(1);
        let is_remote = |change: Change| matches!(change, Change::Neighbor { ifindex, address, .. } if (ifindex, address) == (near, remote));

        // The far host changes its MAC address and says so by a gratuitous ARP.
        let new_mac = MacAddr([2, 0, 0, 0, 0, 3]);
        far.run(move || drop(ip(&format!("link set far address {new_mac}"))));
        let start = Instant::now();
        let mut seen = false;
        while !seen && next(&mut monitor, second, is_remote).await {
            seen = mac().await == Some(new_mac);
        }
        let elapsed = start.elapsed();
        eprintln!("a neighbour's new address seen after {elapsed:?}");
        assert!(seen && elapsed < Duration::from_millis(100), "seen: {seen}, after {elapsed:?}");

        ip("addr add 198.51.100.1/24 dev near");
        assert!(next(&mut monitor, second, |change| change == Change::Addresses).await);
        for command in [
            "route add 203.0.113.0/24 via 192.0.2.2",
            "route add 2001:db8:1::/48 via 2001:db8::2",
            "route replace 203.0.113.0/24 via 192.0.2.2 mtu 1400",
            "route replace 2001:db8:1::/48 via 2001:db8::2 mtu 1400",
            "rule add to 203.0.113.0/24 table 7",
            "-6 rule add to 2001:db8:7::/48 table 7",
            "nexthop add id 1 via 192.0.2.2 dev near",
        ] {
            while next(&mut monitor, Duration::from_millis(20), |_| true).await {}
            ip(command);
            assert!(next(&mut monitor, second, |change| change == Change::Routes).await, "{command}");
        }

        far.run(|| drop(ip("link set far down")));
        assert!(next(&mut monitor, second, |change| change == Change::Link { index: near }).await);
        assert!(eventually(second, async || !link(&netlink, "near").await.running).await);
        far.run(|| drop(ip("link set far up")));
        assert!(next(&mut monitor, second, |change| change == Change::Link { index: near }).await);
    });
}

#[test]
fn a_veth_that_becomes_a_target_for_xdp_is_told_of() {
    if !tells_features() {
        return;
    }
    in_namespace(|| async {
        let far = Far::new();
        let netlink = Netlink::connect().unwrap();
        let near = link(&netlink, "near").await.index;
        let mut monitor = Monitor::open().unwrap();
        let second = Duration::from_secs(1);
        // Nothing happens to the near end itself.
        for on in [true, false] {
            let command = format!("-K far gro {}", if on { "on" } else { "off" });
            far.run(move || drop(run("ethtool", &command)));
            let told = |change| {
                matches!(change, Change::Features { index, features: Some(features) }
                    if index == near && features.is_target(false) == on)
            };
            assert!(next(&mut monitor, second, told).await, "GRO {on}");
            assert_eq!(netlink.xdp_features().await.unwrap()[&near].is_target(false), on);
        }
        ip("link del near");
        let gone = Change::Features { index: near, features: None };
        assert!(next(&mut monitor, second, |change| change == gone).await);
    });
}

#[test]
fn lost_changes_are_reported_once_all_is_read() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        let (a, _) = netlink.create_veth("va", "vb", None, 1500, "x").await.unwrap();
        let mut monitor = Monitor::with_receive_buffer(16 * 1024).unwrap();
        let second = Duration::from_secs(1);
        for round in 0..3 {
            // Not through `netlink`, which would let the monitor's socket be read meanwhile.
            for step in 0..50 {
                ip(&format!("link set va mtu {}", 1300 + step));
            }
            assert!(
                next(&mut monitor, second, |change| change == Change::Resynchronize).await,
                "round {round}"
            );
            let quiet = !next(&mut monitor, Duration::from_millis(50), |_| true).await;
            assert!(quiet, "round {round}: what was queued before the loss is thrown away");
            netlink.set_mtu(a.index, 1500).await.unwrap();
            assert!(
                next(&mut monitor, second, |change| change == Change::Link { index: a.index }).await,
                "round {round}"
            );
            while next(&mut monitor, Duration::from_millis(20), |_| true).await {}
        }
    });
}

#[test]
fn lost_news_of_features_are_reported_once_all_is_read() {
    if !tells_features() {
        return;
    }
    in_namespace(|| async {
        let far = Far::new();
        let netlink = Netlink::connect().unwrap();
        let near = link(&netlink, "near").await.index;
        let mut monitor = Monitor::open().unwrap();
        let second = Duration::from_secs(1);
        for round in 0..2 {
            // More than the socket holds, each of them news of the near end.
            far.run(|| {
                let toggle = "for i in $(seq 300); do ethtool -K far gro on; ethtool -K far gro off; done";
                assert!(Command::new("sh").args(["-c", toggle]).status().unwrap().success());
            });
            let lost = |change: Change| change == Change::Resynchronize;
            assert!(next(&mut monitor, second, lost).await, "round {round}");
            let is_old = |change| matches!(change, Change::Features { .. });
            let quiet = !next(&mut monitor, Duration::from_millis(50), is_old).await;
            assert!(quiet, "round {round}: what was queued before the loss is thrown away");
            far.run(|| drop(run("ethtool", "-K far gro on")));
            let told = |change| {
                matches!(change, Change::Features { index, features: Some(features) }
                    if index == near && features.is_target(false))
            };
            assert!(next(&mut monitor, second, told).await, "round {round}");
            far.run(|| drop(run("ethtool", "-K far gro off")));
            while next(&mut monitor, Duration::from_millis(20), |_| true).await {}
        }
    });
}

#[test]
fn requests_at_the_same_time_do_not_disturb_each_other() {
    in_namespace(|| async {
        for index in 0..40 {
            ip(&format!("link add v{index} type veth peer p{index}"));
        }
        let netlink = Netlink::connect().unwrap();
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let netlink = netlink.clone();
                tokio::spawn(async move {
                    (netlink.links().await.unwrap().len(), netlink.addresses().await.is_ok())
                })
            })
            .collect();
        // One whose answer nobody waits for.
        drop(tokio::time::timeout(Duration::ZERO, netlink.links()).await);
        for task in tasks {
            assert_eq!(task.await.unwrap(), (81, true));
        }
    });
}
