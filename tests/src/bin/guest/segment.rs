//! One segment of mgre, the kernel's gretap and Open vSwitch: mgre is the hub of the other two.

use anyhow::{Result, ensure};
use mgre_tests::{
    battery::{
        everything::{self, Plan},
        peer::{Kind, Made, Peer},
        report::{Report, Verdict},
        station::Station,
    },
    bench::ovs::Datapath,
    packet::mac_text,
    topology::{Layout, SEGMENT, Spokes, Underlay},
    wait,
};

use crate::Mode;

/// What the checks are called.
pub(crate) const NAME: &str = "mixed segment";

pub(crate) fn run(report: &mut Report, name: &str, mode: Mode, quick: bool) -> Result<()> {
    let layout = Layout { mode: mode.name(), configure: false, ..Layout::new(3, Underlay::Switched) };
    let mut spokes = layout.build()?;
    for number in [2, 3] {
        let daemon = &mut spokes.spoke_mut(number).daemon;
        daemon.hide_log();
        daemon.mgre(&["detach"])?;
        daemon.wait()?;
        spokes.spoke(number).netns.run(&["ethtool", "-K", "wan0", "tx", "off"])?;
    }
    spokes.spoke_mut(1).daemon.hide_log();
    for spoke in spokes.iter() {
        let core = format!("s{}", spoke.number);
        spokes.core.run(&["ethtool", "-K", &core, "tx", "off", "gro", "on"])?;
    }
    // The kernel's datapath where it is there, else Open vSwitch's own.
    let kernel_lacks = Datapath::Kernel.missing();
    let datapath = if kernel_lacks.is_none() { Datapath::Kernel } else { Datapath::Userspace };
    let kinds = [(2, Kind::Gretap("key 7 nopmtudisc")), (3, Kind::Ovs(datapath, &["options:key=7"]))];
    let mut peers = Vec::new();
    for (number, kind) in kinds {
        let (local, hub) = (spokes.layout.endpoint(number), spokes.layout.endpoint(1));
        match Peer::build(&spokes.spoke(number).netns, kind, local, hub)? {
            Made::Peer(peer) => peers.push(peer),
            Made::Missing(why) => {
                report.record(name, &Verdict::Skip(format!("{kind:?}: {why}")));
                return Ok(());
            }
        }
    }
    configure(&spokes, mode)?;

    let failures = report.failures();
    let stations = [1, 2, 3].map(|number| Station::of(spokes.spoke(number)));
    // Open vSwitch's own datapath cannot use superframes.
    let offloads: &[bool] = if datapath == Datapath::Userspace { &[false] } else { mode.offloads() };
    let plan = Plan {
        quick: true,
        offloads,
        polls: mode.is_xdp(),
        left_out: vec!["lldp".to_owned()],
        warm_up: true,
        ..Plan::new(name, spokes.layout.mtu())
    };
    let pairs: &[(usize, usize)] = if quick { &[(1, 2)] } else { &[(0, 1), (0, 2), (1, 2)] };
    for (one, two) in pairs {
        let plan = Plan { name: format!("{name}, {} and {}", one + 1, two + 1), ..plan.clone() };
        everything::run(report, &plan, [stations[*one], stations[*two]]);
    }
    report.check(&format!("{name}: each knows where the others are"), learned(&spokes, &peers));
    if report.failures() > failures {
        report.context(&spokes.spoke(1).daemon.mgre(&["stats", "--drops"])?);
        for (peer, number) in peers.iter().zip([2, 3]) {
            report.context(&peer.counters(&spokes.spoke(number).netns));
        }
    }
    Ok(())
}

fn configure(spokes: &Spokes, mode: Mode) -> Result<()> {
    let daemon = &spokes.spoke(1).daemon;
    let local = spokes.layout.endpoint(1).to_string();
    daemon.mgre(&["underlay", "add", "wan0", "--local", &local, "--mode", mode.name()])?;
    daemon.mgre(&["segment", "add", SEGMENT, "--key", "7", "--hub"])?;
    daemon.mgre(&["port", "add", SEGMENT, "lan0", "--mode", mode.name()])?;
    for (number, name) in [(2, "gretap"), (3, "ovs")] {
        let remote = spokes.layout.endpoint(number).to_string();
        daemon.mgre(&["peer", "add", name, &remote, "--segment", SEGMENT])?;
    }
    spokes.spoke(1).wait_up()
}

/// Each switch has each station's address where it is.
fn learned(spokes: &Spokes, peers: &[Peer]) -> Result<Verdict> {
    let stations = [1, 2, 3].map(|number| Station::of(spokes.spoke(number)));
    // So that none was forgotten meanwhile.
    for (from, to) in [(0, 1), (0, 2), (1, 2)] {
        stations[from].ping(stations[to].ipv4().into(), 2, 56, &[])?;
    }
    let hub = spokes.spoke(1);
    for (number, name) in [(2, "gretap"), (3, "ovs")] {
        wait::until(&format!("the hub has station {number} at {name}"), wait::SOON, || {
            Ok(hub.fdb(spokes.spoke(number).host_mac())?.is_some_and(|entry| entry["peer"] == name))
        })?;
    }
    for (peer, number) in peers.iter().zip([2, 3]) {
        for other in stations.iter().filter(|station| station.number != number) {
            let netns = &spokes.spoke(number).netns;
            ensure!(
                peer.knows(netns, &mac_text(other.mac()))?,
                "switch {number} does not have station {} behind its tunnel",
                other.number
            );
        }
    }
    Ok(Verdict::Pass("three switches, two addresses each that are elsewhere".to_owned()))
}
