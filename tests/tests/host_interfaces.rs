//! Interfaces that the daemon makes for the host: over reboots, other people's deeds, and changes.

use std::fs;

use anyhow::{Context as _, Result};
use mgre_tests::{
    netns::Netns,
    skip::skipped,
    spoke::Spoke,
    tcx,
    topology::{SEGMENT, Spokes, Underlay},
    traffic, wait,
};
use serde_json::Value;

fn link(netns: &Netns, name: &str) -> Result<Value> {
    let links: Vec<Value> = serde_json::from_str(&netns.run(&["ip", "-json", "link", "show", "dev", name])?)?;
    links.into_iter().next().context("no interface")
}

fn mac(netns: &Netns, name: &str) -> Result<String> {
    Ok(link(netns, name)?["address"].as_str().context("no address")?.to_owned())
}

fn has_address(netns: &Netns, name: &str, address: &str) -> Result<bool> {
    Ok(netns.run(&["ip", "-oneline", "address", "show", "dev", name])?.contains(&format!(" {address} ")))
}

fn port(spoke: &Spoke, name: &str) -> Result<Value> {
    let ports = spoke.daemon.list(&["port", "show"])?;
    ports.into_iter().find(|port| port["name"] == name).context("no port")
}

/// Two spokes; the first has two interfaces of the host.
fn spokes() -> Result<Spokes> {
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let one = spokes.spoke(1);
    one.daemon.mgre(&["port", "create", SEGMENT, "ov0", "--address", "10.77.0.201/24"])?;
    one.daemon.mgre(&["port", "create", SEGMENT, "ov1", "--address", "10.77.1.201/24"])?;
    traffic::wait_reachable(&spokes.spoke(2).host, "10.77.0.201", wait::SOON)?;
    Ok(spokes)
}

/// Stops a spoke's daemon and takes away what a reboot does: the interfaces, and what was pinned.
fn power_off(spoke: &mut Spoke) -> Result<()> {
    spoke.daemon.kill()?;
    spoke.netns.ip("link del ov0\nlink del ov1")?;
    Ok(fs::remove_dir_all(spoke.daemon.bpffs().join("mgre"))?)
}

#[test]
fn interfaces_of_the_host_are_the_same_after_a_reboot() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = spokes()?;
    let one = spokes.spoke_mut(1);
    let macs = [mac(&one.netns, "ov0")?, mac(&one.netns, "ov1")?];
    power_off(one)?;
    one.daemon.start_again()?;
    assert_eq!([mac(&one.netns, "ov0")?, mac(&one.netns, "ov1")?], macs);
    assert!(has_address(&one.netns, "ov1", "10.77.1.201/24")?);
    one.daemon.mgre(&["segment", "set", SEGMENT, "--aging", "60"])?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    traffic::wait_reachable(&two.host, "10.77.0.201", wait::SOON)?;
    for name in ["ov0", "ov1"] {
        assert_eq!(port(one, name)?["state"], "up");
    }
    Ok(())
}

#[test]
fn an_interface_that_somebody_deletes_is_made_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = spokes()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let before = mac(&one.netns, "ov0")?;
    one.netns.ip("link del ov0")?;
    wait::until("it is there again", wait::SOON, || {
        Ok(link(&one.netns, "ov0").is_ok() && port(one, "ov0")?["state"] == "up")
    })?;
    assert_eq!(mac(&one.netns, "ov0")?, before);
    traffic::wait_reachable(&two.host, "10.77.0.201", wait::SOON)?;
    assert!(one.daemon.log().contains("somebody deleted ov0"), "{}", one.daemon.log());
    // What is asked for is another thing.
    one.daemon.mgre(&["port", "del", "ov1"])?;
    assert!(wait::until("it is made again", wait::SOON, || Ok(link(&one.netns, "ov1").is_ok())).is_err());
    Ok(())
}

#[test]
fn an_interface_that_cannot_be_made_holds_up_nothing_else() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = spokes()?;
    let one = spokes.spoke_mut(1);
    power_off(one)?;
    one.netns.ip("link add ov0 type bridge\nlink set ov0 up")?;
    one.daemon.start_again()?;
    assert_eq!(tcx::attached(&one.netns, "ov0")?, 0, "somebody else's interface");
    let missing = port(one, "ov0")?;
    assert_eq!(missing["state"], "missing");
    assert!(missing["reason"].as_str().is_some_and(|why| why.contains("another interface")), "{missing}");
    assert_eq!(port(one, "ov1")?["state"], "up");
    one.daemon.mgre(&["segment", "set", SEGMENT, "--aging", "60"])?;
    assert!(tcx::attached(&one.netns, "ov0")? == 0 && link(&one.netns, "ov0").is_ok());
    one.netns.ip("link del ov0")?;
    wait::until("it is made", wait::SOON, || Ok(port(one, "ov0")?["state"] == "up"))?;
    assert!(has_address(&one.netns, "ov0", "10.77.0.201/24")?);
    let two = spokes.spoke(2);
    traffic::wait_reachable(&two.host, "10.77.0.201", wait::SOON).map(drop)
}

#[test]
fn an_interface_with_another_alias_stays_the_ports() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = spokes()?;
    let one = spokes.spoke_mut(1);
    one.netns.ip("link set ov0 alias uplink")?;
    // Once this is through, so is what came before it.
    one.netns.ip("link set ov1 down")?;
    wait::until("it is noticed", wait::SOON, || Ok(port(one, "ov1")?["state"] == "down"))?;
    assert_eq!(port(one, "ov0")?["state"], "up");
    assert_eq!(tcx::attached(&one.netns, "ov0")?, 1);
    one.daemon.mgre(&["port", "del", "ov0"])?;
    assert!(link(&one.netns, "ov0").is_err(), "it was made, and is deleted with its port");
    Ok(())
}

#[test]
fn what_is_applied_to_an_interface_of_the_host_is_done() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = spokes()?;
    let one = spokes.spoke(1);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("mgre.toml");
    let path = file.to_string_lossy().into_owned();
    let exported = one.daemon.mgre(&["export"])?;
    let other = exported.replace("\"10.77.0.201/24\"", "\"10.77.0.202/24\", \"10.77.0.203/24\"");
    assert_ne!(other, exported);
    let derived = mac(&one.netns, "ov0")?;
    fs::write(
        &file,
        other.replace("interface = \"ov0\"", "interface = \"ov0\"\nmac = \"02:00:00:00:01:20\""),
    )?;
    assert_eq!(one.daemon.mgre(&["apply", &path])?, "port ov0 changed\n");
    for (address, there) in [("10.77.0.201/24", false), ("10.77.0.202/24", true), ("10.77.0.203/24", true)] {
        assert_eq!(has_address(&one.netns, "ov0", address)?, there, "{address}");
    }
    assert_eq!(mac(&one.netns, "ov0")?, "02:00:00:00:01:20");
    assert!(one.fdb([0x02, 0, 0, 0, 1, 0x20])?.is_some(), "its address is known");
    traffic::wait_reachable(&spokes.spoke(2).host, "10.77.0.203", wait::SOON)?;

    // The kernel has no IPv6 in this namespace's interfaces: nothing is changed.
    let before = one.daemon.mgre(&["export"])?;
    one.netns.sysctl("ipv6/conf/ov0/disable_ipv6", "1")?;
    fs::write(&file, exported.replace("\"10.77.0.201/24\"", "\"10.77.0.204/24\", \"fd77::1/64\""))?;
    let outcome = one.daemon.outcome(&["apply", &path])?;
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    assert_eq!(one.daemon.mgre(&["export"])?, before);
    assert!(
        has_address(&one.netns, "ov0", "10.77.0.202/24")?
            && !has_address(&one.netns, "ov0", "10.77.0.204/24")?
    );

    // Without a MAC it has the one that it would be made with. The first address takes the others of its network with
    // it.
    fs::write(&file, other.replace("\"10.77.0.202/24\", ", ""))?;
    one.daemon.mgre(&["apply", &path])?;
    assert_eq!(mac(&one.netns, "ov0")?, derived);
    assert!(
        !has_address(&one.netns, "ov0", "10.77.0.202/24")?
            && has_address(&one.netns, "ov0", "10.77.0.203/24")?
    );
    Ok(())
}

#[test]
fn an_interface_that_is_there_is_not_taken_for_one_to_make() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = spokes()?;
    let one = spokes.spoke(1);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("mgre.toml");
    let exported = one.daemon.mgre(&["export"])?;
    let made = "interface = \"lan0\"\ncreate = true";
    let refused = [
        (exported.replace("interface = \"lan0\"", made), ["lan0", "already"]),
        (
            exported.replacen("create = true\n", "", 1).replacen("addresses = [\"10.77.0.201/24\"]\n", "", 1),
            ["ov0", "port del"],
        ),
    ];
    for (document, words) in refused {
        assert_ne!(document, exported);
        fs::write(&file, &document)?;
        for dry_run in [&["--dry-run"][..], &[]] {
            let path = file.to_string_lossy();
            let outcome = one.daemon.outcome(&[&["apply", &path], dry_run].concat())?;
            assert_eq!(
                (outcome.code, outcome.stderr.lines().count()),
                (Some(1), 1),
                "{document}\n{outcome:?}"
            );
            assert!(words.iter().all(|word| outcome.stderr.contains(word)), "{outcome:?}");
        }
    }
    assert_eq!(one.daemon.mgre(&["export"])?, exported);
    assert!(traffic::reaches(&one.host, &spokes.spoke(2).host_ip())?);
    Ok(())
}

#[test]
fn senders_behind_a_bridge_are_told_what_does_not_fit() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    one.daemon.mgre(&["port", "del", "lan0"])?;
    one.daemon.mgre(&["port", "create", SEGMENT, "ov0"])?;
    let mtu = |name: &str| Ok::<_, anyhow::Error>(link(&one.netns, name)?["mtu"].as_u64());
    assert_eq!(mtu("ov0")?, Some(1458));
    one.netns
        .ip("link add br1 type bridge\nlink set br1 up\nlink set lan0 master br1\nlink set ov0 master br1")?;
    wait::until("it takes what the bridge's members send", wait::SOON, || Ok(mtu("ov0")? == Some(1500)))?;
    one.host.ip("link set eth0 mtu 1500")?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    // With DF: the first is lost, and after that its sender knows.
    assert!(!traffic::fits(&one.host, &two.host_ip(), 1500)?);
    wait::until("the sender was told", wait::SOON, || {
        Ok(one.host.run(&["ip", "route", "get", &two.host_ip()])?.contains("mtu 1458"))
    })?;
    assert!(one.drops("too_big")? > 0);
    assert!(traffic::fits(&one.host, &two.host_ip(), 1458)?);
    // A member that may send more.
    one.netns.ip("link set lan0 mtu 2000")?;
    wait::until("it takes that too", wait::SOON, || Ok(mtu("ov0")? == Some(2000)))?;
    one.netns.ip("link set ov0 nomaster")?;
    wait::until("it has the segment's MTU again", wait::SOON, || Ok(mtu("ov0")? == Some(1458))).map(drop)
}
