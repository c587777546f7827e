//! XDP beside TCX: known unicast goes through it, the rest through TCX, and both are one switch.

use anyhow::{Context as _, Result};
use mgre_tests::{
    conservation::Books,
    skip::{skipped, skipped_without_redirects, tc_of_kernel},
    topology::{SEGMENT, Spoke, Spokes, Underlay},
    traffic, wait,
};
use serde_json::Value;

/// What `status` and `port show` say of wan0 and lan0.
fn hooks(spoke: &Spoke) -> Result<(String, String)> {
    let status = spoke.daemon.json(&["status"])?;
    let ports = spoke.daemon.list(&["port", "show"])?;
    let text = |value: &Value| value["hook"].as_str().unwrap_or_default().to_owned();
    Ok((text(&status["underlays"][0]), ports.first().map(text).unwrap_or_default()))
}

/// The underlay address of a spoke of a switched underlay.
fn local(spoke: &Spoke) -> String {
    format!("10.0.0.{}", spoke.number)
}

/// Underlay and port of each spoke in a mode. Each interface's other end polls, so that it can be redirected to, and
/// hosts and core finish checksums, as a cable would have them.
fn with_mode(mode: &str) -> Result<Spokes> {
    with_mode_and_mtu(mode, None)
}

fn with_mode_and_mtu(mode: &str, mtu: Option<u32>) -> Result<Spokes> {
    let spokes = Spokes::new(2, Underlay::Switched)?;
    for spoke in spokes.iter() {
        if let Some(mtu) = mtu {
            spokes.core.ip(&format!("link set s{} mtu {mtu}", spoke.number))?;
            spoke.netns.ip(&format!("link set wan0 mtu {mtu}\nlink set lan0 mtu {mtu}"))?;
            spoke.host.ip(&format!("link set eth0 mtu {}", mtu - 42))?;
        }
        spoke.host.run(&["ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off", "gro", "on"])?;
        spokes.core.run(&["ethtool", "-K", &format!("s{}", spoke.number), "tx", "off", "gro", "on"])?;
        let local = local(spoke);
        for arguments in [
            &["underlay", "del", "wan0", "--force"] as &[&str],
            &["underlay", "add", "wan0", "--local", &local, "--mode", mode],
            &["port", "del", "lan0"],
            &["port", "add", SEGMENT, "lan0", "--mode", mode],
        ] {
            spoke.daemon.mgre(arguments)?;
        }
    }
    spokes.wait_up()?;
    Ok(spokes)
}

fn reach_both_ways(spokes: &Spokes) -> Result<()> {
    for (from, to) in [(1, 2), (2, 1)] {
        let (from, to) = (spokes.spoke(from), spokes.spoke(to));
        assert!(traffic::reaches(&from.host, &to.host_ip())?, "{} to {}", from.number, to.number);
    }
    Ok(())
}

/// Waits until frames for the second spoke's host are redirected by XDP.
fn wait_short_way(one: &Spoke, two: &Spoke) -> Result<()> {
    wait::until("frames take the short way to the port", wait::SOON, || {
        let before = two.netns.xdp_redirected("wan0")?;
        traffic::reaches(&one.host, &two.host_ip())?;
        Ok(two.netns.xdp_redirected("wan0")? > before)
    })
    .map(|_| ())
}

#[test]
fn by_itself_a_veth_gets_no_xdp() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = with_mode("auto")?;
    let spoke = spokes.spoke(1);
    let tc = tc_of_kernel().name();
    assert_eq!(hooks(spoke)?, (tc.to_owned(), tc.to_owned()));
    let status = spoke.daemon.json(&["status"])?;
    let reason = status["underlays"][0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("veth"), "{reason}");
    Ok(())
}

#[test]
fn known_unicast_takes_the_short_way_and_is_counted_once() -> Result<()> {
    const PINGS: u64 = 50;
    if skipped_without_redirects() {
        return Ok(());
    }
    let spokes = with_mode("native")?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let both = format!("xdp+{}", tc_of_kernel().name());
    assert_eq!(hooks(one)?, (both.clone(), both));
    // lan0 can be redirected to now: the host's end polls.
    reach_both_ways(&spokes)?;
    wait_short_way(one, two)?;
    let peer = |spoke: &Spoke| -> Result<(u64, u64)> {
        let peers = spoke.daemon.list(&["peer", "show"])?;
        let number = |key: &str| peers[0][key].as_u64().unwrap_or_default();
        Ok((number("rx_packets"), number("tx_packets")))
    };
    let books = Books::open(&spokes)?;
    let before = (peer(one)?, peer(two)?, two.netns.xdp_redirected("wan0")?);
    let pings =
        traffic::ping(&one.host, &["-q", "-c", &PINGS.to_string(), "-i", "0.01", "-W", "5", &two.host_ip()])?;
    assert!(pings.all_came_back(), "{pings:?}");
    let after = (peer(one)?, peer(two)?, two.netns.xdp_redirected("wan0")?);
    assert!(after.2 - before.2 >= PINGS, "{before:?} {after:?}");
    // Each ping and each answer once at each end, and little else.
    for (was, is) in [(before.0, after.0), (before.1, after.1)] {
        for (was, is) in [(was.0, is.0), (was.1, is.1)] {
            assert!((PINGS..PINGS + 10).contains(&(is - was)), "{before:?} {after:?}");
        }
    }
    // The port that was replaced took its counters along, so not from the beginning.
    books.check(&spokes)
}

#[test]
fn what_xdp_cannot_finish_goes_through_tcx() -> Result<()> {
    if skipped_without_redirects() {
        return Ok(());
    }
    for mode in ["native", "generic"] {
        let spokes = with_mode(mode)?;
        // Broadcast (ARP), then unicast; then addresses are forgotten, and unknown unicast is flooded.
        reach_both_ways(&spokes)?;
        for spoke in spokes.iter() {
            spoke.daemon.mgre(&["fdb", "flush"])?;
        }
        reach_both_ways(&spokes)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        traffic::iperf3_at_least(1e6, (&one.host, &two.host), &two.host_ip(), 1, &[]).context(mode)?;
    }
    Ok(())
}

#[test]
fn frames_of_several_pages_take_the_short_way_too() -> Result<()> {
    if skipped_without_redirects() {
        return Ok(());
    }
    let spokes = with_mode_and_mtu("native", Some(9000))?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    reach_both_ways(&spokes)?;
    wait_short_way(one, two)?;
    let before = two.netns.xdp_redirected("wan0")?;
    // 8958 bytes of IP packet: the largest that fits.
    let largest = ["-q", "-c", "20", "-i", "0.02", "-W", "5", "-M", "do", "-s", "8930", &two.host_ip()];
    let pings = traffic::ping(&one.host, &largest)?;
    assert!(pings.all_came_back(), "{pings:?}");
    assert!(two.netns.xdp_redirected("wan0")? >= before + 20);
    Ok(())
}

#[test]
fn detach_takes_xdp_off_and_a_restart_keeps_it() -> Result<()> {
    if skipped_without_redirects() {
        return Ok(());
    }
    let mut spokes = with_mode("native")?;
    let has_program = |spoke: &Spoke| -> Result<bool> {
        Ok(spoke.netns.run(&["ip", "link", "show", "wan0"])?.contains("prog/xdp"))
    };
    let spoke = spokes.spoke_mut(1);
    spoke.daemon.stop()?;
    assert!(has_program(spoke)?, "it goes on without the daemon");
    spoke.daemon.start_again()?;
    assert!(has_program(spoke)?);
    assert_eq!(hooks(spoke)?.0, format!("xdp+{}", tc_of_kernel().name()));
    reach_both_ways(&spokes)?;
    let spoke = spokes.spoke(1);
    spoke.daemon.mgre(&["detach"])?;
    assert!(!has_program(spoke)?);
    Ok(())
}

#[test]
fn another_ones_program_is_left_alone() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = with_mode("native")?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    // A second instance on the first one's interface: to it, that program is somebody else's.
    let other = mgre_tests::daemon::Daemon::start(&one.netns, mgre_tests::daemon::Options::default())?;
    let local = local(one);
    let refused = other.outcome(&["underlay", "add", "wan0", "--local", &local, "--mode", "native"])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("mgre_xunder") && refused.stderr.contains("id "), "{refused:?}");
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    Ok(())
}

#[test]
fn an_interface_that_refuses_is_refused_by_an_operator_and_done_without_at_a_start() -> Result<()> {
    if skipped_without_redirects() {
        return Ok(());
    }
    let mut spokes = with_mode("native")?;
    // A veth takes no program for buffers of one page while its other end may send longer packets.
    // The kernel takes a program off that nobody holds any more when it comes to it.
    let far_end = |spokes: &Spokes, mtu: u32| {
        let set = || Ok(spokes.core.ip(&format!("link set s1 mtu {mtu}")).is_ok());
        wait::until("the far end has another MTU", wait::SOON, set).map(|_| ())
    };
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let peers = local(one);
    one.daemon.mgre(&["underlay", "del", "wan0", "--force"])?;
    far_end(&spokes, 9000)?;
    let before = one.daemon.mgre(&["export"])?;
    let refused = one.daemon.outcome(&["underlay", "add", "wan0", "--local", &peers, "--mode", "native"])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("wan0") && refused.stderr.lines().count() == 1, "{refused:?}");
    assert_eq!(one.daemon.mgre(&["export"])?, before);
    assert!(traffic::cut_off(&one.host, &two.host_ip())?, "half of it was applied");

    far_end(&spokes, 1500)?;
    one.daemon.mgre(&["underlay", "add", "wan0", "--local", &peers, "--mode", "native"])?;
    spokes.wait_up()?;
    // As after a reboot: the state is there, the links are not, and the interface refuses.
    let daemon = &mut spokes.spoke_mut(1).daemon;
    daemon.stop()?;
    for entry in std::fs::read_dir(
        daemon.bpffs().join(format!("mgre/v{}/default/links", mgre_common::SCHEMA_VERSION)),
    )? {
        std::fs::remove_file(entry?.path())?;
    }
    far_end(&spokes, 9000)?;
    spokes.spoke_mut(1).daemon.start_again()?;
    spokes.wait_up()?;
    let status = spokes.spoke(1).daemon.json(&["status"])?;
    let underlay = &status["underlays"][0];
    assert_eq!(underlay["hook"], tc_of_kernel().name(), "{underlay}");
    assert!(underlay["reason"].as_str().unwrap_or_default().contains("refused"), "{underlay}");
    reach_both_ways(&spokes)
}
