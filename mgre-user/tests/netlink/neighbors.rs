//! Neighbours that are kept resolved.

use super::*;

#[test]
fn a_kept_neighbour_is_resolved_and_stays() {
    in_namespace(|| async {
        let _far = Far::new();
        // Reachable for about half a second after each answer, and looked after every 100 ms.
        for family in ["ipv4", "ipv6"] {
            set(&format!("{family}/neigh/near/base_reachable_time_ms"), "500");
            set(&format!("{family}/neigh/near/delay_first_probe_time"), "0");
            set(&format!("{family}/neigh/near/interval_probe_time_ms"), "100");
        }
        let netlink = Netlink::connect().unwrap();
        let near = link(&netlink, "near").await.index;
        let remotes = [address("192.0.2.2"), address("2001:db8::2")];
        let usable = async |ip: IpAddr| {
            netlink.neighbor(near, ip).await.unwrap().is_some_and(|n| n.usable && n.mac == Some(FAR_MAC))
        };
        let limit = Duration::from_secs(20);

        for far in remotes {
            netlink.keep_neighbor(near, far).await.unwrap();
            assert!(eventually(limit, async || usable(far).await).await, "{}", ip_neighbour(far));
            assert!(ip_neighbour(far).contains("managed"), "{}", ip_neighbour(far));
            assert!(netlink.neighbors().await.unwrap()[&(near, far)].usable);
            // Asked again, of an entry with a link-layer address: nothing changes.
            netlink.keep_neighbor(near, far).await.unwrap();
            assert!(usable(far).await);
        }
        // Nothing else uses the entries, so ordinary ones would be STALE for good by the end.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(usable(remotes[0]).await && usable(remotes[1]).await);
        }
        for far in remotes {
            let fresh = eventually(limit, async || ip_neighbour(far).contains("REACHABLE")).await;
            assert!(fresh, "{}", ip_neighbour(far));
        }

        for far in remotes {
            netlink.release_neighbor(near, far).await.unwrap();
            assert!(!ip_neighbour(far).contains("managed"), "{}", ip_neighbour(far));
            assert!(usable(far).await);
            let stale = eventually(limit, async || ip_neighbour(far).contains("STALE")).await;
            assert!(stale, "{}", ip_neighbour(far));
        }

        // A neighbour that is not there.
        let nobody = address("192.0.2.99");
        assert_eq!(netlink.neighbor(near, nobody).await.unwrap(), None);
        netlink.keep_neighbor(near, nobody).await.unwrap();
        let found = netlink.neighbor(near, nobody).await.unwrap().unwrap();
        assert_eq!((found.mac, found.usable), (None, false));
        let gone = netlink.keep_neighbor(9999, nobody).await.unwrap_err();
        assert_eq!(gone.to_string(), "no interface with index 9999");
        netlink.release_neighbor(9999, nobody).await.unwrap();
    });
}

#[test]
fn a_kept_neighbour_is_asked_for_again_after_carrier_loss() {
    in_namespace(|| async {
        let far = Far::new();
        let netlink = Netlink::connect().unwrap();
        let near = link(&netlink, "near").await.index;
        let remote = address("192.0.2.2");
        let limit = Duration::from_secs(5);
        let usable = async || netlink.neighbor(near, remote).await.unwrap().is_some_and(|found| found.usable);
        netlink.keep_neighbor(near, remote).await.unwrap();
        assert!(eventually(limit, usable).await);
        far.run(|| drop(ip("link set far down")));
        let dropped = async || netlink.neighbor(near, remote).await.unwrap().is_none();
        assert!(eventually(limit, dropped).await, "{}", ip_neighbour(remote));
        far.run(|| drop(ip("link set far up")));
        assert!(eventually(limit, async || link(&netlink, "near").await.running).await);
        netlink.keep_neighbor(near, remote).await.unwrap();
        assert!(eventually(limit, usable).await, "{}", ip_neighbour(remote));
    });
}

#[test]
fn what_others_provide_is_left_alone() {
    in_namespace(|| async {
        let _far = Far::new();
        let netlink = Netlink::connect().unwrap();
        let near = link(&netlink, "near").await.index;
        ip("neigh add 192.0.2.10 lladdr 02:00:00:00:00:0a dev near nud permanent");
        ip("neigh add 192.0.2.11 lladdr 02:00:00:00:00:0b dev near nud stale extern_learn");
        ip("neigh add 192.0.2.12 dev near managed");
        for last in 10..=12 {
            let other = address(&format!("192.0.2.{last}"));
            let settled =
                || ip_neighbour(other).replace("INCOMPLETE", "").replace("FAILED", "").trim().to_owned();
            let before = settled();
            netlink.keep_neighbor(near, other).await.unwrap();
            netlink.release_neighbor(near, other).await.unwrap();
            assert_eq!(before, settled());
        }
        // A link-layer address that is known is used, not replaced, whatever its age and origin.
        ip("neigh add 192.0.2.13 lladdr 02:00:00:00:00:0d dev near nud stale");
        netlink.keep_neighbor(near, address("192.0.2.13")).await.unwrap();
        let known = netlink.neighbor(near, address("192.0.2.13")).await.unwrap().unwrap();
        assert_eq!((known.mac, known.usable), (Some(MacAddr([2, 0, 0, 0, 0, 0x0d])), true));
        // Somebody made it and said so: refreshed, not marked as ours.
        ip("neigh add 192.0.2.14 lladdr 02:00:00:00:00:0e dev near nud stale proto static");
        netlink.keep_neighbor(near, address("192.0.2.14")).await.unwrap();
        let line = ip_neighbour(address("192.0.2.14"));
        assert!(line.contains("proto static") && !line.contains("managed"), "{line}");
    });
}

#[test]
fn kept_neighbours_take_nobodys_place() {
    // One limit for all namespaces, which the first one alone shows.
    let limit = std::fs::read_to_string("/proc/sys/net/ipv4/neigh/default/gc_thresh3");
    let limit: usize = limit.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
    // Some machines have a high one, and no need.
    let count = limit.min(4096) + 300;
    in_namespace(move || async move {
        let _far = Far::new();
        let netlink = Netlink::connect().unwrap();
        let near = link(&netlink, "near").await.index;
        // Those that are asked for are incomplete for a while, and take room in no other way.
        set("ipv4/neigh/near/retrans_time_ms", "3000");
        let ip_of = |number: usize| IpAddr::from([10, 0, (number / 250) as u8, (number % 250 + 1) as u8]);
        let all: Vec<(u32, IpAddr)> = (0..count).map(|number| (near, ip_of(number))).collect();
        let kept = netlink.keep_neighbors(all.clone()).await.unwrap();
        let failed: Vec<_> = kept.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{} of {count}: {}", failed.len(), failed[0]);
        // Somebody else's.
        ip("neigh add 192.0.2.99 lladdr 02:00:00:00:00:63 dev near nud stale");
        let table = netlink.neighbors().await.unwrap();
        assert_eq!(all.iter().filter(|key| table.contains_key(*key)).count(), count);
        // Released, they are ordinary ones.
        let (first, others) = all.split_first().unwrap();
        assert!(ip_neighbour(first.1).contains("extern_learn"), "{}", ip_neighbour(first.1));
        netlink.release_neighbor(first.0, first.1).await.unwrap();
        assert!(!ip_neighbour(first.1).contains("extern_learn"), "{}", ip_neighbour(first.1));
        assert!(!ip_neighbour(first.1).contains("managed"), "{}", ip_neighbour(first.1));
        assert!(ip_neighbour(others[0].1).contains("managed"));
        // Many at once are gone, so that others have room.
        assert!(netlink.release_neighbors(others.to_vec()).await.unwrap().is_empty());
        let table = netlink.neighbors().await.unwrap();
        assert_eq!(others.iter().filter(|key| table.contains_key(*key)).count(), 0);
        // One that an older daemon marked is marked anew; another's mark is left alone.
        ip("neigh add 192.0.2.50 dev near managed proto 109");
        netlink.keep_neighbor(near, address("192.0.2.50")).await.unwrap();
        let line = ip_neighbour(address("192.0.2.50"));
        assert!(line.contains("managed") && line.contains("extern_learn"), "{line}");
    });
}
