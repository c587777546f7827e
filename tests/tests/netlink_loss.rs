//! Notifications of the kernel that are lost.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::{self, Capture},
    daemon::Options,
    gre::Gre,
    lone::Lone,
    metrics::Metrics,
    packet::{BROADCAST, Mac, mac_text, marked},
    skip::skipped,
    topology::SEGMENT,
    wait,
};

/// Neighbours that come while nobody reads: more than the monitor's buffer of 8 MiB has room for.
const STORM: u32 = 40_000;
/// Where both gateways are after that.
const MOVED: [Mac; 2] = [[0x02, 0, 0, 0, 0xfe, 0x0a], [0x02, 0, 0, 0, 0xfe, 0x0b]];
const HOST: Mac = [0x02, 0, 0, 0, 1, 0x10];

/// The outer destination's MAC address of a flooded frame's copies: that of peer `b`, and that of peer `far`.
fn next_hops(lone: &Lone, text: &str) -> Result<[Option<Mac>; 2]> {
    let capture = Capture::start(&lone.netns, "core0")?;
    let frame = marked(BROADCAST, HOST, text);
    capture::send(&lone.netns, "y1", &[&frame])?;
    let copies = || capture.packets().into_iter().map(|(_, gre)| gre).filter(|gre| gre.inner == frame);
    let to = |address: IpAddr| move |gre: &Gre| gre.destination == address;
    wait::until("both copies", wait::SOON, || Ok(copies().count() == 2))?;
    let far: IpAddr = "10.9.9.9".parse()?;
    let near: IpAddr = "10.0.0.2".parse()?;
    Ok([near, far].map(|address| copies().find(to(address)).map(|gre| gre.outer_destination)))
}

#[test]
fn a_daemon_that_missed_thousands_of_changes_looks_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lone = Lone::new(Options::default())?;
    let netns = &lone.netns;
    netns.ip(
        "route add 10.9.9.9 via 10.0.0.2\nlink add x1 type veth peer name y1\nlink set x1 up\nlink set y1 up\n\
         link add x2 type veth peer name y2\nlink set x2 up\nlink set y2 up",
    )?;
    for words in [
        &["peer", "add", "far", "10.9.9.9", "--segment", SEGMENT][..],
        &["port", "add", SEGMENT, "x1"],
        &["port", "add", SEGMENT, "x2"],
    ] {
        lone.daemon.mgre(words)?;
    }
    lone.wait_up()?;
    for port in ["lan0", "x1", "x2"] {
        wait::until("the port is up", wait::SOON, || Ok(lone.port_state(port)? == "up"))?;
    }
    let [near, far] = next_hops(&lone, "before")?;
    assert!(near.is_some() && near == far);
    let losses = || -> Result<f64> {
        let metrics = Metrics::over_socket(&lone.daemon.socket())?;
        metrics.get("mgre_netlink_losses_total", &[]).context("no such metric")
    };
    assert_eq!(losses()?, 0.0);

    let paused = lone.daemon.pause()?;
    let mut storm = String::new();
    for number in 0..STORM {
        let [_, high, middle, low] = number.to_be_bytes();
        writeln!(
            storm,
            "neigh add 10.{}.{middle}.{low} lladdr 02:00:00:00:cc:01 dev host0 nud permanent",
            64 + high
        )?;
    }
    netns.ip(&storm)?;
    // What matters comes when nothing more is kept.
    netns.ip(&format!(
        "neigh replace 10.0.0.2 lladdr {} dev wan0 nud permanent\nneigh replace 10.0.0.3 lladdr {} dev wan0 nud permanent\n\
         route replace 10.9.9.9 via 10.0.0.3\nlink set lan0 down\nlink del x2\n\
         link add x3 type veth peer name y3",
        mac_text(MOVED[0]),
        mac_text(MOVED[1]),
    ))?;
    drop(paused);

    wait::until("the loss is noticed", wait::SOON, || Ok(losses()? >= 1.0))?;
    wait::until("lan0 is down, x2 is missing", wait::SOON, || {
        Ok(lone.port_state("lan0")? == "down" && lone.port_state("x2")? == "missing")
    })?;
    let mut round = 0;
    wait::until("both next hops are right", wait::SOON, || {
        round += 1;
        Ok(next_hops(&lone, &format!("after {round}"))? == MOVED.map(Some))
    })?;
    lone.daemon.mgre(&["port", "add", SEGMENT, "x3"])?;
    let status = lone.daemon.json(&["status"])?;
    assert_eq!(status["netlink_losses"].as_f64(), Some(losses()?), "{status}");
    let told = lone.daemon.log().matches("notifications came faster than they were read").count();
    assert_eq!(told, 1, "{}", lone.daemon.log());
    // News come again.
    netns.ip("link set lan0 up")?;
    wait::until("lan0 is up", wait::SOON, || Ok(lone.port_state("lan0")? == "up")).map(|_| ())
}
