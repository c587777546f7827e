//! Traffic that was in a tunnel already, or goes into another one.

use anyhow::{Context as _, Result};
use mgre_tests::{
    netns::{self, Netns},
    skip::skipped,
    topology::{Family, Layout, SEGMENT, Spoke, Spokes, Underlay},
    traffic, wait,
};

/// What TCP does at least where superframes get through whole or cut; one that are dropped leave far less.
const TCP_LEAST: f64 = 300e6;

/// The same where the host cuts them in software.
const CUT_LEAST: f64 = 50e6;

/// What was dropped, for an error.
fn drops(spoke: &Spoke) -> String {
    spoke.daemon.mgre(&["stats", "--drops"]).unwrap_or_else(|error| error.to_string())
}

/// What must not have been lost on the way.
fn assert_nothing_lost(spoke: &Spoke, reasons: &[&str]) -> Result<()> {
    for reason in reasons {
        assert_eq!(spoke.drops(reason)?, 0, "{reason} at spoke {}", spoke.number);
    }
    Ok(())
}

#[test]
fn vxlan_inside_the_overlay_keeps_its_offloads() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    for (spoke, other) in [(one, two), (two, one)] {
        spoke.host.ip(&format!(
            "link add vx0 type vxlan id 5 remote {} dstport 4789 dev eth0\n\
             addr add 10.88.0.{}/24 dev vx0\nlink set vx0 up",
            other.host_ip(),
            spoke.number
        ))?;
    }
    traffic::wait_reachable(&one.host, "10.88.0.2", wait::SOON)?;
    for arguments in [&[][..], &["--reverse"]] {
        traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), "10.88.0.2", 1, arguments)
            .with_context(|| format!("{arguments:?}\n{}{}", drops(one), drops(two)))?;
    }
    assert_nothing_lost(one, &["headroom", "internal", "malformed", "redirect_failed"])?;
    assert_nothing_lost(two, &["headroom", "internal", "malformed", "redirect_failed"])
}

/// Hosts with VXLAN of their own, over either IP version, in a tunnel over either, and an uplink that cuts nothing:
/// what is cut in software has one tunnel at a time.
#[test]
fn vxlan_inside_is_cut_whole_where_the_uplink_cuts_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in [Family::V4, Family::V6] {
        let spokes = Layout { family, ..Layout::new(2, Underlay::Switched) }.build()?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        for (spoke, other) in [(one, two), (two, one)] {
            let features =
                ["tso", "tx-gre-segmentation", "tx-gre-csum-segmentation", "tx-udp_tnl-segmentation"];
            for feature in features {
                spoke.netns.run(&["ethtool", "-K", "wan0", feature, "off"])?;
            }
            for (id, remote) in [(4, other.host_ip()), (6, other.host_ipv6())] {
                spoke.host.ip(&format!(
                    "link add vx{id} type vxlan id {id} remote {remote} dstport 8472 dev eth0\n\
                     addr add 10.8{id}.0.{}/24 dev vx{id}\nlink set vx{id} up",
                    spoke.number
                ))?;
            }
        }
        for address in ["10.84.0.2", "10.86.0.2"] {
            traffic::wait_reachable(&one.host, address, wait::SOON)?;
            traffic::iperf3_at_least(CUT_LEAST, (&one.host, &two.host), address, 1, &[])
                .with_context(|| format!("{address} over {family:?}\n{}{}", drops(one), drops(two)))?;
        }
        for spoke in [one, two] {
            assert_nothing_lost(spoke, &["headroom", "internal", "malformed", "redirect_failed", "too_big"])?;
        }
    }
    Ok(())
}

/// IPv6 superframes over 64 KiB (BIG TCP): the kernel's note of their length is in no segment, and where one arrives
/// whole a host can take it.
#[test]
fn ipv6_superframes_over_64_kib() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let big = |netns: &Netns, interface: &str| {
        netns.ip(&format!("link set {interface} gso_max_size 185000 gro_max_size 185000"))
    };
    // Linux 5.19 and newer take that.
    for spoke in [one, two] {
        big(&spoke.host, "eth0")?;
    }
    for whole in [false, true] {
        if whole {
            for spoke in [one, two] {
                big(&spoke.netns, "wan0")?;
                big(&spoke.netns, "lan0")?;
                big(&spokes.core, &format!("s{}", spoke.number))?;
            }
        }
        traffic::wait_reachable(&one.host, &two.host_ipv6(), wait::SOON)?;
        traffic::iperf3_at_least(CUT_LEAST, (&one.host, &two.host), &two.host_ipv6(), 1, &["-l", "1M"])
            .with_context(|| format!("whole: {whole}\n{}{}", drops(one), drops(two)))?;
    }
    for spoke in [one, two] {
        assert_nothing_lost(spoke, &["headroom", "internal", "malformed", "redirect_failed", "too_big"])?;
    }
    Ok(())
}

/// A router behind spoke 2, with a leg in each of two segments: what it forwards comes out of one tunnel and goes into
/// another.
#[test]
fn a_router_between_two_segments_forwards_at_speed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Routed)?;
    let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    let others = |number: u8| (1..=3_u8).filter(move |other| *other != number);
    for spoke in spokes.iter() {
        spoke.daemon.mgre(&["segment", "add", "blue", "--key", "8"])?;
        for other in others(spoke.number) {
            spoke.daemon.mgre(&["peer", "set", &format!("spoke{other}"), "--segment", SEGMENT, "blue"])?;
        }
    }
    // The router's second leg, and a host in the blue segment alone.
    netns::ip(&format!(
        "link add blue0 netns {} type veth peer name eth1 netns {}",
        two.netns.name(),
        two.host.name()
    ))?;
    two.netns.ip("link set blue0 up")?;
    two.host.sysctl("ipv4/ip_forward", "1")?;
    two.host.sysctl("ipv6/conf/all/forwarding", "1")?;
    two.host.ip(
        "link set eth1 mtu 1458 up\naddr add 10.78.0.254/24 dev eth1\naddr add fd78::254/64 dev eth1 nodad",
    )?;
    two.daemon.mgre(&["port", "add", "blue", "blue0"])?;
    let blue: Netns = three.add_host("blue0", [0x02, 0, 0, 0, 3, 0x31])?;
    three.daemon.mgre(&["port", "add", "blue", "blue0"])?;
    blue.ip("addr add 10.78.0.3/24 dev eth0\nroute add default via 10.78.0.254\n\
         addr add fd78::3/64 dev eth0 nodad\nroute add default via fd78::254")?;
    one.host.ip("route add 10.78.0.0/24 via 10.77.0.2\nroute add fd78::/64 via fd77::2")?;
    spokes.wait_up()?;

    traffic::wait_reachable(&one.host, "10.78.0.3", wait::SOON)?;
    for arguments in [&[][..], &["--reverse"]] {
        traffic::iperf3_at_least(TCP_LEAST, (&one.host, &blue), "10.78.0.3", 1, arguments)
            .with_context(|| format!("{arguments:?}\n{}", drops(two)))?;
    }
    // On some kernels IPv6 superframes are cut on the way from tunnel to tunnel.
    traffic::wait_reachable(&one.host, "fd78::3", wait::SOON)?;
    for arguments in [&[][..], &["--reverse"]] {
        traffic::iperf3_at_least(CUT_LEAST, (&one.host, &blue), "fd78::3", 1, arguments)
            .with_context(|| format!("IPv6, {arguments:?}\n{}", drops(two)))?;
    }
    assert_nothing_lost(two, &["headroom", "internal", "malformed", "redirect_failed"])
}

#[test]
fn superframes_may_be_flooded() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let flushing = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        let flusher = scope.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            while flushing.load(std::sync::atomic::Ordering::Relaxed) {
                one.daemon.mgre(&["fdb", "flush"])?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let tcp = traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &two.host_ip(), 2, &[]);
        flushing.store(false, std::sync::atomic::Ordering::Relaxed);
        let rounds = flusher.join().map_err(|_| anyhow::anyhow!("the flusher panicked"))??;
        assert!(rounds > 10, "{rounds} flushes");
        tcp
    })?;
    // Known at the far ends all the time, so what is flooded to spoke 3 ends there or at its host.
    for spoke in spokes.iter() {
        assert_nothing_lost(spoke, &["headroom", "internal", "malformed"])?;
    }
    Ok(())
}

/// The overlay of an overlay: the hosts are spokes themselves, and so GRE goes into GRE.
#[test]
fn gre_inside_the_overlay() -> Result<()> {
    use mgre_tests::daemon::{Daemon, Options};
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let inner = spokes
        .iter()
        .map(|spoke| {
            let other = spokes.spoke(3 - spoke.number);
            let daemon = Daemon::start(&spoke.host, Options::default())?;
            daemon.mgre(&["underlay", "add", "eth0", "--local", &spoke.host_ip()])?;
            daemon.mgre(&["segment", "add", "inner", "--key", "70"])?;
            let address = format!("10.99.0.{}/24", spoke.number);
            daemon.mgre(&["port", "create", "inner", "in0", "--address", &address])?;
            daemon.mgre(&["peer", "add", "other", &other.host_ip(), "--segment", "inner"])?;
            Ok(daemon)
        })
        .collect::<Result<Vec<_>>>()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert_eq!(inner[0].list(&["segment", "show"])?[0]["mtu"], 1458 - 42);
    traffic::wait_reachable(&one.host, "10.99.0.2", wait::SOON)?;
    traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), "10.99.0.2", 1, &[])
        .with_context(|| format!("{}{}", drops(one), drops(two)))?;
    assert_nothing_lost(one, &["headroom", "internal", "malformed", "redirect_failed"])
}
