//! What becomes of underlays and ports is said, and what has another name only is followed.

use anyhow::{Context as _, Result};
use mgre_tests::{
    metrics::Metrics,
    monitor::Monitor,
    skip::skipped,
    spoke::Spoke,
    topology::{Spokes, Underlay},
    traffic, wait,
};
use serde_json::Value;

fn port(spoke: &Spoke) -> Result<Value> {
    spoke.daemon.list(&["port", "show"])?.into_iter().next().context("no port")
}

fn underlay(spoke: &Spoke) -> Result<Value> {
    spoke.daemon.list(&["underlay", "show"])?.into_iter().next().context("no underlay")
}

/// Waits for an event that says that something is in a state, and for this to be the last one.
fn wait_event(monitor: &Monitor, noun: &str, name: &str, state: &str) -> Result<()> {
    let kind = format!("{noun}_state");
    wait::until(&format!("{noun} {name} is {state}"), wait::SOON, || {
        let events = monitor.events();
        let last = events.iter().rfind(|event| event["event"] == kind.as_str() && event[noun] == name);
        Ok(last.is_some_and(|event| event["state"] == state))
    })
    .map(drop)
}

#[test]
fn interfaces_that_get_another_name_are_followed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    if one.netns.ip("link set lan0 name lan9").is_err() {
        eprintln!("SKIPPED: this kernel renames no interface that is up");
        return Ok(());
    }
    one.netns.ip("link set wan0 name wan9")?;
    wait::until("it is said", wait::SOON, || {
        let said =
            |view: &Value, key: &str, name: &str| view[key].as_str().is_some_and(|why| why.contains(name));
        let (port, underlay) = (port(one)?, underlay(one)?);
        Ok(said(&port, "reason", "lan9")
            && said(&underlay, "problem", "wan9")
            && port["state"] == "up"
            && underlay["state"] == "up")
    })?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    assert_eq!(one.peer("spoke2")?["state"], "up");
    assert!(one.daemon.log().contains("lan0 is named lan9 now"), "{}", one.daemon.log());
    // Everything else goes on with it.
    one.daemon.mgre(&["segment", "set", "lan", "--aging", "60"])?;
    one.netns.ip("link set wan9 down\nlink set wan9 up")?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    one.netns.ip("link set lan9 name lan0\nlink set wan9 name wan0")?;
    wait::until("they have their names again", wait::SOON, || {
        Ok(port(one)?["reason"].is_null() && underlay(one)?["problem"].is_null())
    })?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    // Another one that gets the name is meant by it.
    one.netns.ip("link set lan0 name lan9\nlink add lan0 type veth peer name far0")?;
    wait::until("the new one is the port", wait::SOON, || Ok(port(one)?["state"] == "down"))?;
    assert!(traffic::cut_off(&one.host, &two.host_ip())?);
    Ok(())
}

#[test]
fn an_underlay_that_loses_its_address_or_link_is_said_to_be_down() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let one = spokes.spoke(1);
    let monitor = Monitor::start(&one.daemon)?;
    assert_eq!((&underlay(one)?["state"], &underlay(one)?["problem"]), (&"up".into(), &Value::Null));
    // With another address of the network, the route stays.
    one.netns.sysctl("ipv4/conf/wan0/promote_secondaries", "1")?;
    one.netns.ip("addr add 10.0.0.99/24 dev wan0\naddr del 10.0.0.1/24 dev wan0")?;
    wait_event(&monitor, "underlay", "wan0", "down")?;
    let said = underlay(one)?;
    assert!(said["problem"].as_str().is_some_and(|why| why.contains("10.0.0.1")), "{said}");
    let peer = one.peer("spoke2")?;
    assert_eq!(peer["state"], "down");
    assert!(peer["reason"].as_str().is_some_and(|why| why.contains("10.0.0.1")), "{peer}");
    one.netns.ip("addr add 10.0.0.1/24 dev wan0")?;
    wait_event(&monitor, "underlay", "wan0", "up")?;
    wait_event(&monitor, "peer", "spoke2", "up")?;
    spokes.core.ip("link set s1 down")?;
    wait_event(&monitor, "underlay", "wan0", "down")?;
    assert_eq!(underlay(one)?["problem"], "no carrier");
    let up = || {
        Ok::<_, anyhow::Error>(
            Metrics::over_socket(&one.daemon.socket())?.get("mgre_underlay_up", &[("interface", "wan0")]),
        )
    };
    assert_eq!(up()?, Some(0.0));
    spokes.core.ip("link set s1 up")?;
    wait_event(&monitor, "underlay", "wan0", "up")?;
    assert_eq!(up()?, Some(1.0));
    one.netns.ip("link del wan0")?;
    wait_event(&monitor, "underlay", "wan0", "missing")
}

#[test]
fn ports_that_come_and_go_are_reported() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    const MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 0x10];
    let spokes = Spokes::new(1, Underlay::Switched)?;
    let one = spokes.spoke(1);
    let monitor = Monitor::start(&one.daemon)?;
    one.netns.ip("link set lan0 down")?;
    wait_event(&monitor, "port", "lan0", "down")?;
    one.netns.ip("link set lan0 up")?;
    wait_event(&monitor, "port", "lan0", "up")?;
    one.host.ip("link set eth0 down")?;
    wait_event(&monitor, "port", "lan0", "down")?;
    one.netns.ip("link del lan0")?;
    wait_event(&monitor, "port", "lan0", "missing")?;
    one.attach(&one.host, "lan0", MAC)?;
    wait_event(&monitor, "port", "lan0", "up")?;
    assert!(one.daemon.log().lines().any(|line| line.contains("lan0") && line.contains("Missing")));
    // What is asked for is told, too, and nothing twice.
    one.netns.ip("link add lan5 type veth peer name far5")?;
    one.daemon.mgre(&["port", "add", "lan", "lan5"])?;
    wait_event(&monitor, "port", "lan5", "down")?;
    let events = monitor.events();
    let states: Vec<&Value> =
        events.iter().filter(|event| event["port"] == "lan0" && event["event"] == "port_state").collect();
    for pair in states.windows(2) {
        assert!(pair[0]["state"] != pair[1]["state"] || pair[0]["reason"] != pair[1]["reason"], "{pair:?}");
    }
    Ok(())
}

#[test]
fn pins_that_somebody_removes_take_no_frame_with_them() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    std::fs::remove_dir_all(two.daemon.bpffs().join("mgre"))?;
    // Flooded frames and those with options go on in programs that are reached by an array.
    two.host.run(&["ip", "neigh", "flush", "dev", "eth0"])?;
    one.host.run(&["ip", "neigh", "flush", "dev", "eth0"])?;
    two.daemon.mgre(&["fdb", "flush"])?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    assert_eq!(two.drops("internal")?, 0);
    Ok(())
}
