//! The netlink operations against the running kernel.
//!
//! Each test runs in a network namespace of its own that lives only as long as the test's thread, so nothing
//! has a name and nothing is left behind, not even by a panic.

#![expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]

use std::net::IpAddr;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mgre_common::wire::MacAddr;
use mgre_user::netlink::{Address, Change, Error, Link, Monitor, Netlink};
use nix::sched::{CloneFlags, unshare};

const NEAR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const FAR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

/// Runs a test in a new network namespace, on a runtime that stays on the thread.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: needs root to make a network namespace");
        return;
    }
    let result = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// `ip` in the calling thread's namespace.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The line that `ip neighbour` shows for an address.
fn ip_neighbour(address: IpAddr) -> String {
    ip(&format!("neigh show {address} dev near"))
}

/// A setting below /proc/sys/net of the calling thread's namespace.
fn set(path: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn link(netlink: &Netlink, name: &str) -> Link {
    netlink.link_by_name(name).await.unwrap()
}

async fn names(netlink: &Netlink) -> Vec<String> {
    let mut names: Vec<_> = netlink.links().await.unwrap().into_iter().map(|link| link.name).collect();
    names.sort();
    names
}

type Job = Box<dyn FnOnce() + Send>;

/// Another namespace, held by a thread that does what it is told. Interface `far` in it, with 192.0.2.2/24
/// and 2001:db8::2/64, faces `near` in the calling thread's namespace.
struct Far {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Far {
    fn new() -> Self {
        let (tid_sender, tid) = mpsc::channel();
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tid_sender.send(nix::unistd::gettid()).unwrap();
            queue.iter().for_each(|job| job());
        });
        let tid = tid.recv().unwrap();
        ip(&format!("link add near address {NEAR_MAC} type veth peer far address {FAR_MAC} netns {tid}"));
        ip("link set near up");
        ip("addr add 192.0.2.1/24 dev near");
        ip("addr add 2001:db8::1/64 dev near nodad");
        let far = Self { jobs: Some(jobs), thread: Some(thread) };
        far.run(|| {
            ip("link set far up");
            ip("addr add 192.0.2.2/24 dev far");
            ip("addr add 2001:db8::2/64 dev far nodad");
        });
        far
    }

    /// Does something in that namespace and waits for its end.
    fn run(&self, job: impl FnOnce() + Send + 'static) {
        let (done, wait) = mpsc::channel();
        let job = move || {
            job();
            done.send(()).unwrap();
        };
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
        wait.recv().unwrap();
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

/// Waits until `condition` holds, for at most `limit`.
async fn eventually(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if condition().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// Whether a change that `wanted` picks comes within `limit`.
async fn next(monitor: &mut Monitor, limit: Duration, wanted: impl Fn(Change) -> bool) -> bool {
    let search = async { while !wanted(monitor.next().await.unwrap()) {} };
    tokio::time::timeout(limit, search).await.is_ok()
}

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
            Address { ifindex: a.index, address: address("192.0.2.1"), prefix_len: 24 },
            Address { ifindex: b.index, address: four, prefix_len: 24 },
            Address { ifindex: b.index, address: six, prefix_len: 64 },
            Address { ifindex: lo.index, address: address("127.0.0.1"), prefix_len: 8 },
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

        ip("addr add 192.0.2.7/32 dev near");
        let from = netlink.route_to(address("192.0.2.9"), Some(address("192.0.2.7"))).await.unwrap().unwrap();
        assert_eq!(from.ifindex, near);
        let foreign = netlink.route_to(address("192.0.2.9"), Some(address("192.0.2.8"))).await.unwrap_err();
        assert_eq!(foreign.to_string(), "192.0.2.8 is not an address of this host");
        assert_eq!(netlink.route_to(address("10.2.0.1"), Some(address("192.0.2.7"))).await.unwrap(), None);
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
        assert!(line("a", "b%d", 1500, "x").await.starts_with("\"b%d\" cannot name an interface"));
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
        let limit = Duration::from_secs(5);

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
        let is_remote = |change| change == Change::Neighbor { ifindex: near, address: remote };

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
            "rule add to 203.0.113.0/24 table 7",
            "-6 rule add to 2001:db8:7::/48 table 7",
            "nexthop add id 1 via 192.0.2.2 dev near",
        ] {
            while next(&mut monitor, Duration::from_millis(20), |_| true).await {}
            ip(command);
            assert!(next(&mut monitor, second, |change| change == Change::Routes).await, "{command}");
        }

        far.run(|| drop(ip("link set far down")));
        assert!(next(&mut monitor, second, |change| change == Change::Links).await);
        assert!(eventually(second, async || !link(&netlink, "near").await.running).await);
        far.run(|| drop(ip("link set far up")));
        assert!(next(&mut monitor, second, |change| change == Change::Links).await);
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
            assert!(next(&mut monitor, second, |change| change == Change::Links).await, "round {round}");
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
