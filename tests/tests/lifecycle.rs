//! Daemons that start, stop, crash and leave; peers and ports that come and go.

use std::{fs, path::Path, process::Command, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture,
    daemon::{self, Daemon, Options, Tc},
    netns::Netns,
    packet::{BROADCAST, Mac, UNKNOWN, marked},
    skip::{skipped, skipped_at},
    tcx as hooks,
    topology::{Layout, SEGMENT, Spoke, Spokes, Underlay},
    traffic::{self, Background},
    wait,
};

/// Everything here holds however programs are attached.
macro_rules! at_each_hook {
    ($($test:ident)*) => {
        mod tcx {
            use super::*;
            $(#[test] fn $test() -> Result<()> { super::$test(Tc::Tcx) })*
        }
        mod clsact {
            use super::*;
            $(#[test] fn $test() -> Result<()> { super::$test(Tc::Clsact) })*
        }
    };
}

at_each_hook! {
    a_daemon_that_is_started_again_loses_no_frame
    a_daemon_with_less_room_keeps_as_many_addresses_as_fit
    a_daemon_that_was_killed_is_replaced_without_loss
    peers_that_come_and_go_do_not_disturb_others
    an_interface_that_comes_back_is_a_port_again
    detach_leaves_nothing
    a_host_alone_joins_with_an_interface_of_its_own
}

fn spokes(tc: Tc, count: u8, underlay: Underlay) -> Result<Spokes> {
    Layout { tc: Some(tc), ..Layout::new(count, underlay) }.build()
}

/// Runs echo requests from host 1 to host 2 while something is done, and says how many had no reply.
fn lost_during(
    spokes: &mut Spokes,
    interval: &str,
    act: impl FnOnce(&mut Spokes) -> Result<()>,
) -> Result<u32> {
    let to = spokes.spoke(2).host_ip();
    traffic::wait_reachable(&spokes.spoke(1).host, &to, wait::SOON)?;
    let pings = Background::ping(&spokes.spoke(1).host, &["-i", interval, "-W", "1", &to])?;
    sleep(Duration::from_millis(300));
    act(spokes)?;
    sleep(Duration::from_millis(300));
    let pings = pings.interrupt()?;
    assert!(pings.sent > 50, "{pings:?}");
    Ok(pings.sent - pings.received)
}

fn a_daemon_that_is_started_again_loses_no_frame(tc: Tc) -> Result<()> {
    const SERVER: &str = "02:00:00:00:aa:05";
    if skipped_at(tc) {
        return Ok(());
    }
    let mut spokes = spokes(tc, 3, Underlay::Routed)?;
    let one = spokes.spoke(1);
    one.daemon.mgre(&["fdb", "add", SEGMENT, SERVER, "--peer", "spoke3"])?;
    assert!(traffic::reaches(&one.host, &spokes.spoke(3).host_ip())?);
    // This one is learned, and never heard of again.
    capture::send(&spokes.spoke(2).host, "eth0", &[marked(BROADCAST, UNKNOWN, "once")])?;
    one.wait_fdb_peer(UNKNOWN, "spoke2")?;
    let before = one.daemon.mgre(&["export"])?;
    let sent = one.peer("spoke3")?["tx_packets"].as_u64();
    assert!(sent > Some(0));
    let lost = lost_during(&mut spokes, "0.005", |spokes| {
        let daemon = &mut spokes.spoke_mut(1).daemon;
        let status = daemon.stop()?;
        assert_eq!(status.code(), Some(0), "SIGTERM is not a failure");
        assert!(!daemon.socket().exists(), "the socket stays");
        sleep(Duration::from_millis(500));
        daemon.start_again()?;
        Ok(())
    })?;
    assert_eq!(lost, 0);
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert_eq!(one.daemon.mgre(&["export"])?, before);
    let server = one.daemon.list(&["fdb", "show"])?.into_iter().find(|entry| entry["mac"] == SERVER);
    assert_eq!(server.map(|entry| entry["peer"].clone()), Some("spoke3".into()));
    one.wait_fdb_peer(two.host_mac(), "spoke2")?;
    one.wait_fdb_port(one.host_mac(), "lan0")?;
    one.wait_fdb_peer(UNKNOWN, "spoke2")?;
    assert!(one.peer("spoke3")?["tx_packets"].as_u64() >= sent, "the counters start anew");
    one.wait_up()
}

/// What was learned takes the room that is left; what was given has its own.
fn a_daemon_with_less_room_keeps_as_many_addresses_as_fit(tc: Tc) -> Result<()> {
    const ENTRIES: u32 = 8;
    const SERVER: &str = "02:00:00:00:aa:05";
    if skipped_at(tc) {
        return Ok(());
    }
    let mut spokes = spokes(tc, 2, Underlay::Routed)?;
    let one = spokes.spoke(1);
    one.daemon.mgre(&["fdb", "add", SEGMENT, SERVER, "--peer", "spoke2"])?;
    let stations = (0..2 * ENTRIES as u8).map(|number| [0x02, 0, 0, 0, 0xbb, number]);
    let frames: Vec<_> = stations.map(|mac| marked(BROADCAST, mac, "once")).collect();
    capture::send(&spokes.spoke(2).host, "eth0", &frames)?;
    wait::until("the addresses are learned", wait::SOON, || {
        Ok(one.daemon.list(&["fdb", "show"])?.len() > 2 * ENTRIES as usize)
    })?;
    let daemon = &mut spokes.spoke_mut(1).daemon;
    daemon.stop()?;
    daemon.start_again_with_room(ENTRIES)?;
    let kept = daemon.list(&["fdb", "show"])?;
    assert_eq!(kept.len(), ENTRIES as usize);
    assert!(kept.iter().any(|entry| entry["mac"] == SERVER));
    Ok(())
}

fn a_daemon_that_was_killed_is_replaced_without_loss(tc: Tc) -> Result<()> {
    if skipped_at(tc) {
        return Ok(());
    }
    let mut spokes = spokes(tc, 2, Underlay::Routed)?;
    let before = spokes.spoke(1).daemon.mgre(&["export"])?;
    let lost = lost_during(&mut spokes, "0.005", |spokes| {
        let daemon = &mut spokes.spoke_mut(1).daemon;
        daemon.kill()?;
        sleep(Duration::from_millis(500));
        // A lock and a socket are left; they are nobody's.
        daemon.start_again()
    })?;
    assert_eq!(lost, 0);
    assert_eq!(spokes.spoke(1).daemon.mgre(&["export"])?, before);
    Ok(())
}

fn peers_that_come_and_go_do_not_disturb_others(tc: Tc) -> Result<()> {
    if skipped_at(tc) {
        return Ok(());
    }
    let mut spokes = spokes(tc, 3, Underlay::Routed)?;
    let lost = lost_during(&mut spokes, "0.002", |spokes| {
        let three = spokes.layout.endpoint(3).to_string();
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        for round in 0..15 {
            for spoke in [one, two] {
                spoke.daemon.mgre(&["peer", "del", "spoke3"])?;
            }
            let key = (100 + round).to_string();
            one.daemon.mgre(&["segment", "add", "other", "--key", &key])?;
            one.daemon.mgre(&["peer", "add", "extra", "192.0.2.7", "--segment", "other", SEGMENT])?;
            for spoke in [one, two] {
                spoke.daemon.mgre(&["peer", "add", "spoke3", &three, "--segment", SEGMENT])?;
            }
            one.daemon.mgre(&["peer", "del", "extra"])?;
            one.daemon.mgre(&["segment", "del", "other"])?;
        }
        Ok(())
    })?;
    assert_eq!(lost, 0);
    spokes.wait_up()?;
    for spoke in [1, 2] {
        traffic::wait_reachable(&spokes.spoke(spoke).host, &spokes.spoke(3).host_ip(), wait::SOON)?;
        assert_eq!(spokes.spoke(spoke).drops("internal")?, 0);
    }
    Ok(())
}

#[test]
fn a_peer_that_was_removed_reaches_nobody() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    one.daemon.mgre(&["peer", "del", "spoke2"])?;
    assert!(traffic::cut_off(&two.host, &one.host_ip())?);
    assert!(one.drops("unknown_endpoint")? > 0);
    assert_eq!(one.fdb(two.host_mac())?, None, "its addresses go with it");
    one.daemon.mgre(&["peer", "add", "again", "10.0.2.1", "--segment", SEGMENT])?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    one.wait_fdb_peer(two.host_mac(), "again")
}

fn an_interface_that_comes_back_is_a_port_again(tc: Tc) -> Result<()> {
    const MAC: Mac = [0x02, 0, 0, 0, 1, 0x10];
    if skipped_at(tc) {
        return Ok(());
    }
    let spokes = spokes(tc, 2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let state = || -> Result<_> { Ok(one.daemon.list(&["port", "show"])?[0]["state"].clone()) };
    assert_eq!(state()?, "up");
    one.netns.ip("link set lan0 down")?;
    wait::until("the port is down", wait::SOON, || Ok(state()? == "down"))?;
    one.netns.ip("link set lan0 up")?;
    traffic::wait_reachable(&two.host, &one.host_ip(), wait::SOON)?;
    one.netns.ip("link del lan0")?;
    wait::until("the port is missing", wait::SOON, || Ok(state()? == "missing"))?;
    one.attach(&one.host, "lan0", MAC)?;
    one.host.ip(&format!("addr add {}/24 dev eth0", one.host_ip()))?;
    wait::until("the port is up", wait::SOON, || Ok(state()? == "up"))?;
    traffic::wait_reachable(&two.host, &one.host_ip(), wait::SOON).map(|_| ())
}

/// What a daemon could leave in a namespace.
fn traces(netns: &Netns) -> Result<String> {
    let mut traces = String::new();
    for words in [
        &["ip", "-details", "link", "show"][..],
        &["tc", "qdisc", "show"],
        &["ip", "address", "show"],
        &["ip", "route", "show", "table", "all"],
    ] {
        traces += &netns.run(words)?;
    }
    // Neighbours come and go by themselves, but only the daemon has them kept.
    for line in netns.run(&["ip", "neigh", "show"])?.lines().filter(|line| line.contains("managed")) {
        traces += line;
    }
    for interface in ["lo", "wan0", "lan0", "busy"] {
        traces += &format!("{} programs at {interface}\n", hooks::attached(netns, interface)?);
    }
    Ok(traces)
}

fn detach_leaves_nothing(tc: Tc) -> Result<()> {
    if skipped_at(tc) {
        return Ok(());
    }
    let layout = Layout { configure: false, tc: Some(tc), ..Layout::new(2, Underlay::Routed) };
    let mut spokes = layout.build()?;
    let spoke = spokes.spoke_mut(1);
    spoke.netns.ip("link add busy type veth peer name busy2\nlink set busy promisc on up")?;
    // Somebody else's.
    spoke.netns.run(&["tc", "qdisc", "add", "dev", "lan0", "clsact"])?;
    for (interface, state) in [("wan0", "UP"), ("lan0", "UP"), ("busy", "LOWERLAYERDOWN")] {
        wait::until("the kernel has looked at the carrier", wait::SOON, || {
            Ok(spoke.netns.run(&["ip", "link", "show", interface])?.contains(&format!("state {state} ")))
        })?;
    }
    // A daemon that was told nothing has a pair of interfaces.
    spoke.daemon.mgre(&["detach"])?;
    assert_eq!(spoke.daemon.wait()?.code(), Some(0));
    let before = traces(&spoke.netns)?;
    assert!(!before.contains("mgre-default"), "{before}");
    spoke.daemon.start_again()?;
    for words in [
        &["underlay", "add", "wan0", "--local", "10.0.1.1"][..],
        &["segment", "add", SEGMENT, "--key", "7"],
        &["port", "add", SEGMENT, "lan0"],
        &["port", "add", SEGMENT, "busy"],
        &["port", "create", SEGMENT, "ov0", "--address", "10.77.0.201/24"],
        &["peer", "add", "spoke2", "10.0.2.1", "--segment", SEGMENT],
    ] {
        spoke.daemon.mgre(words)?;
    }
    spoke.wait_up()?;
    let during = traces(&spoke.netns)?;
    for trace in [
        "ov0",
        "mgre-default-i",
        "mgre-default-o",
        "1 programs at wan0",
        "1 programs at lan0",
        "10.77.0.201",
        "managed",
    ] {
        assert!(during.contains(trace), "no {trace} in {during}");
    }
    // What stops may start again, so it leaves everything in place.
    spoke.daemon.stop()?;
    assert_same(&traces(&spoke.netns)?, &during, "SIGTERM changes nothing");
    spoke.daemon.start_again()?;
    spoke.daemon.mgre(&["detach"])?;
    assert_eq!(spoke.daemon.wait()?.code(), Some(0));
    assert_same(&traces(&spoke.netns)?, &before, "detach leaves what was there before");
    let pins = spoke.daemon.bpffs().join("mgre");
    assert!(!pins.exists(), "{} is left", pins.display());
    Ok(())
}

fn assert_same(left: &str, right: &str, what: &str) {
    let only = |one: &str, other: &str| {
        one.lines()
            .filter(|line| !other.lines().any(|other| other == *line))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(left == right, "{what}: {:#?} instead of {:#?}", only(left, right), only(right, left));
}

fn a_host_alone_joins_with_an_interface_of_its_own(tc: Tc) -> Result<()> {
    if skipped_at(tc) {
        return Ok(());
    }
    let spokes = spokes(tc, 3, Underlay::Routed)?;
    let create = |spoke: &Spoke| {
        let address = format!("10.77.0.20{}/24", spoke.number);
        let mac = format!("02:00:00:00:0{}:20", spoke.number);
        let words = ["port", "create", SEGMENT, "ov0", "--address", &address, "--mac", &mac];
        spoke.daemon.mgre(&words)
    };
    let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    create(one)?;
    create(two)?;
    let link = one.netns.run(&["ip", "link", "show", "ov0"])?;
    assert!(
        link.contains("mtu 1458") && link.contains("02:00:00:00:01:20") && link.contains(",UP"),
        "{link}"
    );
    traffic::wait_reachable(&one.netns, "10.77.0.202", wait::SOON)?;
    assert!(traffic::reaches(&one.netns, &one.host_ip())?, "to the host on its own LAN");
    assert!(traffic::reaches(&one.netns, &three.host_ip())?, "to a host behind another spoke");
    assert!(traffic::reaches(&three.host, "10.77.0.201")?, "and from there");
    for arguments in [&[][..], &["--reverse"]] {
        traffic::iperf3_at_least(100e6, (&one.netns, &three.host), &three.host_ip(), 1, arguments)?;
    }
    let entry = one.fdb([0x02, 0, 0, 0, 1, 0x20])?.unwrap_or_default();
    assert_eq!((&entry["port"], &entry["flags"]), (&"ov0".into(), &vec!["local"].into()));

    two.daemon.mgre(&["port", "del", "ov0"])?;
    assert!(two.netns.run(&["ip", "link", "show", "ov0"]).is_err(), "what was made is removed");
    assert!(traffic::cut_off(&one.netns, "10.77.0.202")?);
    Ok(())
}

#[test]
fn a_second_daemon_of_the_same_instance_gives_way() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let second = daemon::outcome(&mut one.daemon.daemon_command()?)?;
    assert_eq!(
        (second.code, second.stdout.as_str(), second.stderr.lines().count()),
        (Some(1), "", 1),
        "{second:?}"
    );
    let pid = one.daemon.pid().context("it runs")?.to_string();
    assert!(second.stderr.contains("already running") && second.stderr.contains(&pid), "{}", second.stderr);
    // The first one is as well as before.
    assert_eq!(one.daemon.json(&["status"])?["instance"], "default");
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    Ok(())
}

#[test]
fn a_daemon_may_start_with_a_configuration() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let layout = Layout { configure: false, ..Layout::new(1, Underlay::Switched) };
    let spokes = layout.build()?;
    let one = spokes.spoke(1);
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("mgre.toml");
    fs::write(
        &config,
        "[[underlay]]\ninterface = \"wan0\"\nlocal = \"10.0.0.1\"\n\n\
         [[segment]]\nname = \"lan\"\nkey = 7\n\n\
         [[port]]\ninterface = \"lan0\"\nsegment = \"lan\"\n\n\
         [[peer]]\nname = \"b\"\nremote = \"10.0.0.2\"\nsegments = [\"lan\"]\n",
    )?;
    let options =
        Options { instance: "second".to_owned(), config: Some(config.clone()), ..Options::default() };
    let second = Daemon::start(&one.netns, options)?;
    assert_eq!(second.json(&["status"])?["peers"], 1);
    assert_eq!(one.daemon.json(&["status"])?["peers"], 0, "the other instance has a state of its own");
    drop(second);

    fs::write(&config, "[[segment]]\nname = \"lan\"\nkeys = 7\n")?;
    let options = Options { instance: "third".to_owned(), config: Some(config), ..Options::default() };
    let error = Daemon::start(&one.netns, options).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("keys"), "{error}");
    Ok(())
}

#[test]
fn only_root_runs_a_daemon() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    Command::new("chmod").arg("755").arg(folder.path()).status()?;
    let mgre = folder.path().join("mgre");
    fs::copy(daemon::program()?, &mgre)?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&mgre);
    command.args(["--run-dir", "/tmp/mgre-nobody", "daemon", "--metrics", "off"]);
    let outcome = daemon::outcome(&mut command)?;
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("root"), "{outcome:?}");
    assert!(!Path::new("/tmp/mgre-nobody").exists());
    Ok(())
}
