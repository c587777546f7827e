//! A host with several ways out: outer packets go where the kernel's own would.

use std::{thread::sleep, time::Duration};

use anyhow::Result;
use mgre_tests::{
    capture::Capture,
    gre::Gre,
    netns::{self, Netns},
    skip::skipped,
    spoke::Spoke,
    topology::{Family, Layout, SEGMENT, Spokes, Underlay},
    traffic, wait,
};

/// The second uplink of spoke 1.
const SECOND: &str = "10.0.11.1";

/// Two spokes with nothing configured, of which the first has a second uplink `wan1` to the core.
fn two_uplinks() -> Result<Spokes> {
    let spokes = Layout { configure: false, ..Layout::new(2, Underlay::Routed) }.build()?;
    let one = &spokes.spoke(1).netns;
    netns::ip(&format!(
        "link add wan1 netns {} type veth peer name t1 netns {}",
        one.name(),
        spokes.core.name()
    ))?;
    one.ip(&format!("link set wan1 up\naddr add {SECOND}/24 dev wan1"))?;
    spokes.core.ip("link set t1 up\naddr add 10.0.11.254/24 dev t1")?;
    Ok(spokes)
}

fn set_up(spoke: &Spoke, underlays: &[(&str, &str)], remote: &str) -> Result<()> {
    for (interface, local) in underlays {
        spoke.daemon.mgre(&["underlay", "add", interface, "--local", local])?;
    }
    spoke.daemon.mgre(&["segment", "add", SEGMENT, "--key", "7"])?;
    spoke.daemon.mgre(&["port", "add", SEGMENT, "lan0"])?;
    spoke.daemon.mgre(&["peer", "add", "far", remote, "--segment", SEGMENT])?;
    Ok(())
}

/// The source addresses of outer packets that leave by an interface while hosts talk.
fn sources(spokes: &Spokes, interface: &str) -> Result<Vec<std::net::IpAddr>> {
    let capture = Capture::start(&spokes.spoke(1).netns, interface)?;
    assert!(traffic::reaches(&spokes.spoke(1).host, &spokes.spoke(2).host_ip())?);
    let outer = capture.stop().into_iter().filter(|packet| packet.outgoing);
    Ok(outer.filter_map(|packet| Some(Gre::parse(&packet.bytes)?.source)).collect())
}

#[test]
fn a_rule_for_the_source_address_is_followed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = two_uplinks()?;
    let one = spokes.spoke(1);
    one.netns
        .ip(&format!("route add default via 10.0.11.254 table 100\nrule add from {SECOND} lookup 100"))?;
    set_up(one, &[("wan1", SECOND)], "10.0.2.1")?;
    set_up(spokes.spoke(2), &[("wan0", "10.0.2.1")], SECOND)?;
    spokes.wait_up()?;
    traffic::wait_reachable(&one.host, &spokes.spoke(2).host_ip(), wait::SOON)?;

    // A rule that goes is followed too: now the way leads elsewhere, and that is said.
    one.netns.ip(&format!("rule del from {SECOND} lookup 100"))?;
    let why = "route leaves by wan0, not an underlay";
    wait::until(why, wait::SOON, || Ok(one.peer("far")?["reason"] == why))?;
    one.netns.ip(&format!("rule add from {SECOND} lookup 100"))?;
    one.wait_up()
}

#[test]
fn of_two_uplinks_with_rules_each_has_its_own_address() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = two_uplinks()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    one.netns.ip(&format!(
        "route add default via 10.0.11.254 table 100\nrule add from {SECOND} lookup 100\n\
         route add default via 10.0.1.254 table 101\nrule add from 10.0.1.1 lookup 101"
    ))?;
    set_up(one, &[("wan0", "10.0.1.1"), ("wan1", SECOND)], "10.0.2.1")?;
    set_up(two, &[("wan0", "10.0.2.1")], "10.0.1.1")?;
    two.daemon.mgre(&["peer", "add", "second", SECOND, "--segment", SEGMENT])?;
    spokes.wait_up()?;
    traffic::wait_reachable(&one.host, &spokes.spoke(2).host_ip(), wait::SOON)?;
    // The default route decides, as it does for the host's own packets.
    let first = sources(&spokes, "wan0")?;
    assert!(!first.is_empty() && first.iter().all(|source| source.to_string() == "10.0.1.1"), "{first:?}");
    one.netns.ip("route replace default via 10.0.11.254 dev wan1")?;
    wait::until("packets leave by wan1", wait::SOON, || {
        let second = sources(&spokes, "wan1")?;
        Ok(!second.is_empty() && second.iter().all(|source| source.to_string() == SECOND))
    })?;
    Ok(())
}

/// A gateway on the spokes' network that leads to spoke 2's other address.
fn gateway(spokes: &Spokes, number: u8) -> Result<Netns> {
    let gateway = Netns::new(&format!("gateway{number}"))?;
    netns::ip(&format!(
        "link add wan0 netns {} type veth peer name g{number} netns {}",
        gateway.name(),
        spokes.core.name()
    ))?;
    spokes.core.ip(&format!("link set g{number} master br0 up"))?;
    for (name, value) in
        [("ip_forward", "1"), ("conf/all/send_redirects", "0"), ("conf/wan0/send_redirects", "0")]
    {
        gateway.sysctl(&format!("ipv4/{name}"), value)?;
    }
    gateway.ip(&format!(
        "addr add 10.0.0.1{number}/24 dev wan0\nlink set wan0 up\nroute add 10.9.9.2 via 10.0.0.2"
    ))?;
    Ok(gateway)
}

#[test]
fn a_gateway_that_dies_is_left_for_another() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Layout { configure: false, ..Layout::new(2, Underlay::Switched) }.build()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let _gateways = [gateway(&spokes, 1)?, gateway(&spokes, 2)?];
    one.netns.sysctl("ipv4/fib_multipath_use_neigh", "1")?;
    // So that a neighbour that is gone is found out soon.
    for (name, value) in
        [("base_reachable_time_ms", "1000"), ("delay_first_probe_time", "1"), ("retrans_time_ms", "200")]
    {
        one.netns.sysctl(&format!("ipv4/neigh/wan0/{name}"), value)?;
    }
    two.netns.ip("addr add 10.9.9.2/32 dev wan0")?;
    one.netns.ip("route add 10.9.9.2 nexthop via 10.0.0.11 nexthop via 10.0.0.12")?;
    set_up(one, &[("wan0", "10.0.0.1")], "10.9.9.2")?;
    set_up(two, &[("wan0", "10.9.9.2")], "10.0.0.1")?;
    spokes.wait_up()?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    let route = one.netns.run(&["ip", "route", "get", "10.9.9.2", "from", "10.0.0.1"])?;
    let (dies, stays) = if route.contains("via 10.0.0.11 ") { (1, 2) } else { (2, 1) };
    spokes.core.ip(&format!("link set g{dies} nomaster"))?;
    let stays = format!("10.0.0.1{stays}");
    let kept = || Ok(one.netns.run(&["ip", "neigh", "show", &stays, "dev", "wan0"])?.contains("managed"));
    wait::until("the other gateway is the next hop", Duration::from_secs(60), kept)?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    one.wait_up()
}

#[test]
fn a_local_address_that_is_gone_or_anothers_is_said() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Layout { family: Family::V6, ..Layout::new(2, Underlay::Switched) }.build()?;
    let (one, core) = (spokes.spoke(1), &spokes.core);
    let says = |what: &'static str| {
        wait::until(what, wait::SOON, || {
            let peer = one.peer("spoke2")?;
            Ok(peer["state"] == "down" && peer["reason"].as_str().is_some_and(|why| why.contains(what)))
        })
    };
    one.netns.ip("addr del fd00::1/64 dev wan0")?;
    says("fd00::1 is not an address of this host")?;
    // Somebody takes it meanwhile.
    let twin = Netns::new("twin")?;
    netns::ip(&format!(
        "link add wan0 netns {} type veth peer name twin netns {}",
        twin.name(),
        core.name()
    ))?;
    core.ip("link set twin master br0 up")?;
    twin.ip("link set wan0 up\naddr add fd00::1/64 dev wan0 nodad")?;
    for scope in ["all", "wan0"] {
        one.netns.sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "1")?;
    }
    one.netns.ip("addr add fd00::1/64 dev wan0")?;
    says("another host has fd00::1 too")?;
    twin.ip("addr del fd00::1/64 dev wan0")?;
    one.netns.ip("addr del fd00::1/64 dev wan0\naddr add fd00::1/64 dev wan0 nodad")?;
    // The other one has the twin's link-layer address by now.
    spokes.spoke(2).netns.ip("neigh del fd00::1 dev wan0")?;
    spokes.wait_up()?;
    traffic::wait_reachable(&one.host, &spokes.spoke(2).host_ipv6(), wait::SOON)?;
    Ok(())
}

/// Each spoke has an address that both uplinks lead to, as in a routed fabric. A router loses the way to it, which the
/// other spoke cannot see.
#[test]
fn an_uplink_whose_router_has_no_way_is_left() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = two_uplinks()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let far = Netns::new("far")?;
    // wan1 leads to another router than wan0, and each of them to spoke 2.
    one.netns.ip("link del wan1")?;
    netns::ip(&format!(
        "link add wan1 netns {} type veth peer name t1 netns {}",
        one.netns.name(),
        far.name()
    ))?;
    netns::ip(&format!(
        "link add wan1 netns {} type veth peer name t2 netns {}",
        two.netns.name(),
        far.name()
    ))?;
    far.sysctl("ipv4/ip_forward", "1")?;
    far.ip(
        "addr add 10.0.11.254/24 dev t1\naddr add 10.0.12.254/24 dev t2\nlink set t1 up\nlink set t2 up\n\
         route add 10.9.9.1 via 10.0.11.1\nroute add 10.9.9.2 via 10.0.12.1",
    )?;
    spokes.core.ip("route add 10.9.9.1 via 10.0.1.1\nroute add 10.9.9.2 via 10.0.2.1")?;
    for (spoke, other) in [(one, 2), (two, 1)] {
        let number = spoke.number;
        spoke.netns.ip(&format!(
            "link set wan1 up\naddr add 10.0.1{number}.1/24 dev wan1\naddr add 10.9.9.{number}/32 dev lo\n\
             route add 10.9.9.{other} nexthop via 10.0.{number}.254 dev wan0 nexthop via 10.0.1{number}.254 dev wan1"
        ))?;
        let local = format!("10.9.9.{number}");
        set_up(spoke, &[("wan0", &local), ("wan1", &local)], &format!("10.9.9.{other}"))?;
    }
    spokes.wait_up()?;
    let flows = || traffic::wait_reachable(&one.host, &two.host_ip(), wait::patient(Duration::from_secs(5)));
    flows()?;
    // Whichever way packets go, one of the two breaks it.
    for (router, way) in [(&spokes.core, "10.9.9.2 via 10.0.2.1"), (&far, "10.9.9.2 via 10.0.12.1")] {
        router.ip(&format!("route del {way}"))?;
        flows()?;
        router.ip(&format!("route add {way}"))?;
        // Of the way back, too.
        let back = way.replace("9.9.2", "9.9.1").replace("0.2.1", "0.1.1").replace("0.12.1", "0.11.1");
        router.ip(&format!("route del {back}"))?;
        flows()?;
        router.ip(&format!("route add {back}"))?;
        sleep(Duration::from_millis(1100));
    }
    Ok(())
}

/// A loopback address at spoke 1, reached by both uplinks, as in a routed fabric.
#[test]
fn an_uplink_that_loses_its_carrier_is_left() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = two_uplinks()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    for netns in [&one.netns, &spokes.core] {
        for scope in ["all", "default"] {
            netns.sysctl(&format!("ipv4/conf/{scope}/ignore_routes_with_linkdown"), "1")?;
        }
    }
    for interface in ["wan0", "wan1"] {
        one.netns.sysctl(&format!("ipv4/conf/{interface}/ignore_routes_with_linkdown"), "1")?;
    }
    one.netns.ip("addr add 10.9.9.1/32 dev lo\n\
         route add 10.0.2.1 nexthop via 10.0.1.254 dev wan0 nexthop via 10.0.11.254 dev wan1")?;
    let back = "nexthop via 10.0.1.1 dev s1 nexthop via 10.0.11.1 dev t1";
    spokes.core.ip(&format!("route add 10.9.9.1 {back}"))?;
    set_up(one, &[("wan0", "10.9.9.1"), ("wan1", "10.9.9.1")], "10.0.2.1")?;
    set_up(two, &[("wan0", "10.0.2.1")], "10.9.9.1")?;
    spokes.wait_up()?;
    let flows = || traffic::wait_reachable(&one.host, &two.host_ip(), wait::patient(Duration::from_secs(5)));
    flows()?;
    for far in ["s1", "t1"] {
        spokes.core.ip(&format!("link set {far} down"))?;
        wait::until("the peer is up by the other uplink", wait::SOON, || {
            Ok(one.peer("far")?["state"] == "up")
        })?;
        flows()?;
        spokes.core.ip(&format!("link set {far} up\nroute replace 10.9.9.1 {back}"))?;
        one.netns
            .ip("route replace 10.0.2.1 nexthop via 10.0.1.254 dev wan0 nexthop via 10.0.11.254 dev wan1")?;
        flows()?;
    }
    Ok(())
}
