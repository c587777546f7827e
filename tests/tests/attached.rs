//! What is attached stays so: after somebody took a program off, and from one version of the tables to another.

use std::{fs, path::PathBuf, process::Command, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use mgre_tests::{
    capture::{self, Capture},
    daemon::{Daemon, Options, Tc},
    gre::Outer,
    lone::{Lone, NEIGHBOR, WAN},
    metrics::Metrics,
    netns::Netns,
    numbered::Numbered,
    packet::{BROADCAST, UNKNOWN, mac_text, marked},
    skip::{skipped, skipped_at},
    tcx::attached as hooks_of,
    topology::{Layout, SEGMENT, Spokes, Underlay},
    traffic, wait,
};
use nix::net::if_::if_nametoindex;

/// Programs are looked after every five seconds.
const LOOKED_AFTER: Duration = Duration::from_secs(15);

fn spokes(tc: Option<Tc>) -> Result<Spokes> {
    let spokes = Layout { tc, ..Layout::new(2, Underlay::Routed) }.build()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    one.wait_fdb_peer(two.host_mac(), "spoke2")?;
    two.wait_fdb_port(two.host_mac(), "lan0")?;
    Ok(spokes)
}

/// The pins of an instance's links, of whatever version.
fn links(daemon: &Daemon) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for version in fs::read_dir(daemon.bpffs().join("mgre"))? {
        let links = version?.path().join("default/links");
        if links.is_dir() {
            found.extend(
                fs::read_dir(links)?
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect::<Result<Vec<_>, _>>()?,
            );
        }
    }
    Ok(found)
}

fn ifindex(netns: &Netns, interface: &str) -> Result<u32> {
    netns.enter(|| Ok(if_nametoindex(interface)?))?
}

/// Detaches what is pinned under these names.
fn detach(daemon: &Daemon, names: &[String]) -> Result<()> {
    for pin in links(daemon)? {
        if pin.file_name().and_then(|name| name.to_str()).is_some_and(|name| names.iter().any(|n| n == name))
        {
            let pin = pin.to_str().context("a path that is no text")?.to_owned();
            let done = Command::new("bpftool").args(["link", "detach", "pinned", &pin]).status()?;
            ensure!(done.success(), "bpftool cannot detach {pin}");
        }
    }
    Ok(())
}

#[test]
fn a_program_that_somebody_detaches_comes_back() -> Result<()> {
    if skipped() || skipped_at(Tc::Tcx) {
        return Ok(());
    }
    let spokes = spokes(Some(Tc::Tcx))?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let (lan, wan) = (ifindex(&one.netns, "lan0")?, ifindex(&one.netns, "wan0")?);
    detach(&one.daemon, &[format!("{lan}-port"), format!("{wan}-underlay")])?;
    assert_eq!((hooks_of(&one.netns, "lan0")?, hooks_of(&one.netns, "wan0")?), (0, 0));
    wait::until("programs are attached again", LOOKED_AFTER, || {
        Ok(hooks_of(&one.netns, "lan0")? == 1 && hooks_of(&one.netns, "wan0")? == 1)
    })?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    for interface in ["lan0", "wan0"] {
        assert!(one.daemon.log().contains(&format!("removed mgre's program from {interface}")), "it is said");
    }
    Ok(())
}

/// A daemon of another schema finds pins where it does not keep its own. What is attached there is replaced.
#[test]
fn another_version_takes_over() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for tc in [Tc::Tcx, Tc::Clsact] {
        if skipped_at(tc) {
            continue;
        }
        let mut spokes = spokes(Some(tc))?;
        let numbered = Numbered::start(spokes.spoke(1), spokes.spoke(2))?;
        sleep(Duration::from_millis(300));
        let one = spokes.spoke_mut(1);
        one.daemon.kill()?;
        let base = one.daemon.bpffs().join("mgre");
        let mut versions = fs::read_dir(&base)?.filter_map(Result::ok).map(|entry| entry.path());
        let own = versions.find(|path| path.join("default").is_dir()).context("no pins")?;
        fs::rename(&own, base.join("v1"))?;
        one.daemon.start_again()?;
        sleep(Duration::from_millis(300));
        let arrivals = numbered.stop()?;
        assert!(arrivals.sent > 500, "{arrivals:?}");
        assert_eq!(arrivals.lost, 0, "{tc:?}: {arrivals:?}");

        let one = spokes.spoke(1);
        assert!(
            links(&one.daemon)?.iter().all(|pin| pin.starts_with(&own)),
            "nothing is left in the other place"
        );
        assert_eq!((hooks_of(&one.netns, "lan0")?, hooks_of(&one.netns, "wan0")?), (1, 1));
        one.daemon.mgre(&["peer", "del", "spoke2"])?;
        assert!(!traffic::reaches(&one.host, &spokes.spoke(2).host_ip())?, "the peer is gone");
        one.daemon.mgre(&["detach"])?;
        assert_eq!((hooks_of(&one.netns, "lan0")?, hooks_of(&one.netns, "wan0")?), (0, 0));
        assert!(!base.exists() || links(&one.daemon)?.is_empty());
    }
    Ok(())
}

/// Sequence numbers of the packets that leave, in their order.
fn numbers(capture: &Capture) -> Vec<u32> {
    capture.packets().into_iter().filter_map(|(_, gre)| gre.sequence).collect()
}

#[test]
fn a_restart_needs_no_privilege_beyond_those_of_the_datapath() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let capabilities = "-all,+net_admin,+bpf,+perfmon,+net_raw";
    let wrapper = ["setpriv", "--bounding-set", capabilities].map(str::to_owned).to_vec();
    let mut lone = Lone::new(Options { wrapper, ..Options::default() })?;
    lone.daemon.mgre(&["peer", "set", "b", "--seq"])?;
    let at_core = Capture::start(&lone.netns, "core0")?;
    let station = [0x02, 0, 0, 0, 0xab, 1];
    let send = |lone: &Lone, count: usize| -> Result<()> {
        let before = numbers(&at_core).len();
        capture::send(&lone.netns, "host0", &vec![marked(BROADCAST, station, "numbered"); count])?;
        wait::until("all left", wait::SOON, || Ok(numbers(&at_core).len() == before + count))?;
        Ok(())
    };
    send(&lone, 5)?;
    let known = |lone: &Lone| -> Result<bool> {
        Ok(lone.daemon.list(&["fdb", "show"])?.iter().any(|entry| entry["mac"] == mac_text(station).as_str()))
    };
    wait::until("the station is known", wait::SOON, || known(&lone))?;
    let sent = lone.peer("b")?["tx_packets"].clone();
    assert_eq!(sent, 5);

    lone.daemon.stop()?;
    lone.daemon.start_again()?;
    assert!(known(&lone)?, "what was learned is known:\n{}", lone.daemon.log());
    assert_eq!(lone.peer("b")?["tx_packets"], sent);
    send(&lone, 1)?;
    let numbers = numbers(&at_core);
    assert!(numbers.is_sorted_by(|one, next| one < next), "a number was used twice: {numbers:?}");
    assert_eq!(lone.peer("b")?["tx_packets"], 6);
    Ok(())
}

#[test]
fn what_somebody_put_where_pins_are_is_put_aside() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = spokes(None)?;
    let lan = ifindex(&spokes.spoke(1).netns, "lan0")?;
    let daemon = &mut spokes.spoke_mut(1).daemon;
    let learned = daemon.list(&["fdb", "show"])?.len();
    daemon.stop()?;
    let pins = links(daemon)?;
    let tables = pins.iter().find(|pin| pin.ends_with("map-mgre_drops")).context("no tables")?;
    let folder = tables.parent().context("a folder")?;
    fs::hard_link(tables, folder.join(format!("{lan}-xdp-port")))?;
    fs::create_dir(folder.join(format!("{lan}-host-port")))?;
    fs::create_dir(folder.join("2000000-underlay"))?;
    daemon.start_again()?;
    assert_eq!(daemon.list(&["fdb", "show"])?.len(), learned, "{}", daemon.log());
    assert_eq!(daemon.log().matches("put aside").count(), 3, "{}", daemon.log());
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    let daemon = &mut spokes.spoke_mut(1).daemon;
    daemon.stop()?;
    daemon.start_again()?;
    assert_eq!(daemon.log().matches("put aside").count(), 3, "once");
    daemon.mgre(&["detach"])?;
    assert_eq!(links(daemon)?.len(), 3, "what is not mgre's stays");
    Ok(())
}

#[test]
fn what_the_daemon_counts_goes_on_after_a_restart() -> Result<()> {
    const APART: Duration = Duration::from_secs(4);
    if skipped() {
        return Ok(());
    }
    let mut lone = Lone::new(Options::default())?;
    lone.netns.ip("link add lan1 type veth peer name host1\nlink set lan1 up\nlink set host1 up")?;
    lone.daemon.mgre(&["port", "add", SEGMENT, "lan1"])?;
    let frame = marked(BROADCAST, [0x02, 0, 0, 0, 0xab, 1], "here, and there");
    let metric = |lone: &Lone, name: &str, labels: &[(&str, &str)]| -> Result<f64> {
        let metrics = Metrics::over_socket(&lone.daemon.socket())?;
        metrics.get(name, labels).with_context(|| format!("no {name}"))
    };
    for interface in ["host0", "host1"] {
        let before = metric(&lone, "mgre_fdb_events_total", &[])?;
        capture::send(&lone.netns, interface, &[&frame])?;
        wait::until("it is learned", wait::SOON, || {
            Ok(metric(&lone, "mgre_fdb_events_total", &[])? > before)
        })?;
    }
    let packet = Outer::new((NEIGHBOR, WAN), [10, 0, 0, 2].into(), [10, 0, 0, 1].into(), Some(7));
    capture::send(&lone.netns, "core0", &[packet.frame(&marked(BROADCAST, UNKNOWN, "from b"))?])?;
    let seen = || lone.peer("b").map(|peer| peer["last_seen_seconds"].as_u64());
    wait::until("b was heard", wait::SOON, || Ok(seen()?.is_some()))?;
    // So that it was not in the second in which the daemon ends.
    sleep(Duration::from_secs(2));
    let of = [("segment", SEGMENT)];
    let counted = |lone: &Lone| {
        Ok::<_, anyhow::Error>((
            metric(lone, "mgre_fdb_events_total", &[])?,
            metric(lone, "mgre_fdb_moves_total", &of)?,
            lone.daemon.json(&["status"])?["events"].clone(),
        ))
    };
    let before = counted(&lone)?;
    assert_eq!(before.1, 1.0);
    let when = metric(&lone, "mgre_peer_last_seen_timestamp_seconds", &[("peer", "b")])?;

    lone.daemon.kill()?;
    sleep(APART);
    lone.daemon.start_again()?;
    assert_eq!(counted(&lone)?, before);
    let again = metric(&lone, "mgre_peer_last_seen_timestamp_seconds", &[("peer", "b")])?;
    assert!(
        (again - when).abs() < APART.as_secs_f64() - 0.5,
        "b was seen {:.1} s later than it was",
        again - when
    );

    // A segment with the same number begins at zero.
    lone.daemon.mgre(&["peer", "del", "b"])?;
    lone.daemon.mgre(&["port", "del", "lan0"])?;
    lone.daemon.mgre(&["port", "del", "lan1"])?;
    lone.daemon.mgre(&["segment", "del", SEGMENT])?;
    wait::until("the number is free again", wait::SOON, || {
        lone.daemon.mgre(&["segment", "add", "other", "--key", "8"])?;
        let moves = metric(&lone, "mgre_fdb_moves_total", &[("segment", "other")])?;
        assert_eq!(moves, 0.0);
        lone.daemon.mgre(&["segment", "del", "other"])?;
        Ok(true)
    })?;
    Ok(())
}

#[test]
fn what_needs_the_slow_interface_is_not_lost_over_restarts() -> Result<()> {
    const RESTARTS: u32 = 6;
    if skipped() {
        return Ok(());
    }
    for option in ["--csum", "--seq"] {
        let mut spokes = spokes(None)?;
        for (number, peer) in [(1, "spoke2"), (2, "spoke1")] {
            spokes.spoke(number).daemon.mgre(&["peer", "set", peer, option])?;
        }
        assert!(traffic::reaches(&spokes.spoke(1).host, &spokes.spoke(2).host_ip())?);
        let numbered = Numbered::start(spokes.spoke(1), spokes.spoke(2))?;
        for restart in 0..RESTARTS {
            sleep(Duration::from_millis(200));
            let daemon = &mut spokes.spoke_mut(1).daemon;
            let ended = if restart % 2 == 0 { daemon.kill()? } else { daemon.stop()? };
            assert_eq!(ended.success(), restart % 2 != 0, "{ended}");
            daemon.start_again()?;
        }
        sleep(Duration::from_millis(200));
        let arrivals = numbered.stop()?;
        let one = spokes.spoke(1);
        assert!(arrivals.sent > 500, "{option}: {arrivals:?}");
        assert_eq!((one.drops("headroom")?, arrivals.lost), (0, 0), "{option}: {arrivals:?}");
    }
    Ok(())
}
