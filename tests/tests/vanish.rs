//! Interfaces that go, and come back, while frames go through them.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::Sender,
    daemon::Daemon,
    netns::Netns,
    packet::{BROADCAST, Mac, marked},
    process,
    skip::skipped,
    spoke::Spoke,
    tcx,
    topology::{SEGMENT, Spokes, Underlay},
    traffic::{self, Background},
    wait,
};

const GUEST: Mac = [0x02, 0, 0, 0, 1, 0x77];

/// What could be left behind: pins, descriptors, interfaces.
fn left(spoke: &Spoke) -> Result<(Vec<String>, usize, usize)> {
    let mut pins = Vec::new();
    let mut folders = vec![spoke.daemon.bpffs()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                let name = entry.file_name().to_string_lossy().into_owned();
                // Indices change.
                pins.push(name.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned());
            }
        }
    }
    pins.sort();
    let links = spoke.netns.run(&["ip", "-oneline", "link", "show"])?.lines().count();
    Ok((pins, process::descriptors(spoke.daemon.pid().context("it runs")?)?, links))
}

fn state(spoke: &Spoke, port: &str) -> Result<String> {
    let ports = spoke.daemon.list(&["port", "show"])?;
    let port = ports.iter().find(|entry| entry["name"] == port).context("no such port")?;
    Ok(port["state"].as_str().unwrap_or_default().to_owned())
}

fn wait_state(spoke: &Spoke, port: &str, wanted: &str) -> Result<()> {
    wait::until(&format!("{port} is {wanted}"), wait::SOON, || Ok(state(spoke, port)? == wanted)).map(|_| ())
}

/// Sends frames out of the far end of an interface for as long as something is done, and goes on when it vanishes.
fn under_load<T>(host: &Netns, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    let frames: Vec<_> =
        (0..64).map(|number| marked(BROADCAST, [0x02, 0, 0, 0, 0xdd, number], "load")).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // There may be no interface, and one that is new.
                if let Ok(sender) = Sender::new(host, "eth0") {
                    while !stop.load(Ordering::Relaxed)
                        && frames.iter().all(|frame| sender.send(frame).is_ok())
                    {
                        thread::sleep(Duration::from_millis(2));
                    }
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        let result = act();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn a_port_and_the_slow_pair_that_vanish_under_load_disturb_nobody() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let guest = one.add_host("guest0", GUEST)?;
    one.daemon.mgre(&["port", "add", SEGMENT, "guest0"])?;
    wait_state(one, "guest0", "up")?;
    let before = left(one)?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    let pings = Background::ping(&one.host, &["-i", "0.01", "-W", "2", &two.host_ip()])?;
    under_load(&guest, || {
        for _ in 0..4 {
            one.netns.ip("link del guest0")?;
            wait_state(one, "guest0", "missing")?;
            one.attach(&guest, "guest0", GUEST)?;
            wait_state(one, "guest0", "up")?;
        }
        // The two ends of the slow path's pair.
        for end in ["i", "o"] {
            let index = || one.netns.run(&["ip", "-oneline", "link", "show", &format!("mgre-default-{end}")]);
            let old = index()?;
            one.netns.ip(&format!("link del mgre-default-{end}"))?;
            wait::until("the pair is there again", wait::SOON, || Ok(index().is_ok_and(|new| new != old)))?;
        }
        wait::until("it works again", wait::SOON, || {
            let status = one.daemon.json(&["status"])?;
            Ok(status["slow_path"]["problems"].as_array().is_some_and(Vec::is_empty))
        })?;
        Ok(())
    })?;
    let pings = pings.interrupt()?;
    assert!(pings.sent > 20 && pings.all_came_back(), "{pings:?}");
    wait::until("nothing is left behind", wait::SOON, || Ok(left(one)? == before))
        .with_context(|| format!("{before:?} and then {:?}", left(one)))?;
    assert_eq!(one.drops("internal")?, 0);
    Ok(())
}

#[test]
fn a_port_that_moves_away_is_none_and_one_that_is_renamed_stays() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    let before = left(one)?;
    // Under another name it is the same interface.
    one.netns.ip("link set lan0 down\nlink set lan0 name other\nlink set other up")?;
    wait_state(one, "lan0", "up")?;
    assert_eq!(tcx::attached(&one.netns, "other")?, 1);
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    one.netns.ip("link set other down\nlink set other name lan0\nlink set lan0 up")?;
    wait_state(one, "lan0", "up")?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    // One that takes its name is the port.
    one.netns.ip("link set lan0 down\nlink set lan0 name other\nlink add lan0 type veth peer name lan1\nlink set lan0 up\nlink set lan1 up")?;
    wait_state(one, "lan0", "up")?;
    wait::until("the program is at the new one alone", wait::SOON, || {
        Ok(tcx::attached(&one.netns, "lan0")? == 1 && tcx::attached(&one.netns, "other")? == 0)
    })?;
    one.netns.ip("link del lan0\nlink set other name lan0\nlink set lan0 up")?;
    wait_state(one, "lan0", "up")?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;

    // In another namespace it is out of reach, and nothing of ours stays on it.
    let away = Netns::new("away")?;
    one.netns.ip(&format!("link set lan0 netns {}", away.name()))?;
    wait_state(one, "lan0", "missing")?;
    wait::until("nothing is attached to it", wait::SOON, || Ok(tcx::attached(&away, "lan0")? == 0))?;
    assert!(traffic::cut_off(&two.host, &one.host_ip())?);
    away.ip(&format!("link set lan0 netns {}", one.netns.name()))?;
    one.netns.ip("link set lan0 up")?;
    wait_state(one, "lan0", "up")?;
    traffic::wait_reachable(&two.host, &one.host_ip(), wait::SOON)?;
    wait::until("nothing is left behind", wait::SOON, || Ok(left(one)? == before))
        .with_context(|| format!("{before:?} and then {:?}", left(one)))
        .map(|_| ())
}

#[test]
fn an_underlay_that_vanishes_under_load_is_used_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let guest = one.add_host("guest0", GUEST)?;
    one.daemon.mgre(&["port", "add", SEGMENT, "guest0"])?;
    one.daemon.mgre(&["port", "create", SEGMENT, "ov0", "--address", "10.77.0.201/24"])?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    guest.ip("addr add 10.77.0.99/24 dev eth0")?;
    traffic::wait_reachable(&guest, &one.host_ip(), wait::SOON)?;
    let before = left(one)?;
    let lost = || -> Result<u64> {
        let rows = one.daemon.list(&["stats", "--drops"])?;
        Ok(rows
            .iter()
            .filter(|row| row["direction"] == "transmit")
            .filter_map(|row| row["packets"].as_u64())
            .sum())
    };
    let local = Background::ping(&guest, &["-i", "0.01", "-W", "2", &one.host_ip()])?;
    under_load(&two.host, || {
        for _ in 0..3 {
            one.netns.ip("link del wan0")?;
            wait::until("the peer is not up", wait::SOON, || Ok(one.peer("spoke2")?["state"] != "up"))?;
            let peer = one.peer("spoke2")?;
            assert!(peer["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{peer}");
            let underlays = one.daemon.mgre(&["underlay", "show"])?;
            assert!(underlays.contains("there is no interface named wan0"), "{underlays}");
            // What cannot go is counted.
            let counted = lost()?;
            traffic::ping(&one.host, &["-c", "5", "-i", "0.05", "-W", "1", &two.host_ip()])?;
            wait::until("what is lost is counted", wait::SOON, || Ok(lost()? > counted))
                .with_context(|| one.daemon.mgre(&["stats", "--drops"]).unwrap_or_default())?;
            one.netns.ip(&format!(
                "link add wan0 address 02:00:00:00:01:01 type veth peer name s1 netns {}\nlink set wan0 up\n\
                 addr add {}/24 dev wan0",
                spokes.core.name(),
                spokes.layout.endpoint(1)
            ))?;
            spokes.core.ip("link set s1 master br0 up")?;
            one.wait_up()?;
            traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
        }
        Ok(())
    })?;
    let local = local.interrupt()?;
    assert!(local.sent > 20 && local.all_came_back(), "between ports of the same host: {local:?}");
    wait::until("nothing is left behind", wait::SOON, || Ok(left(one)? == before))
        .with_context(|| format!("{before:?} and then {:?}", left(one)))?;

    // The far end of an interface that was made takes it along. Both are made again.
    let index = || one.netns.run(&["ip", "-oneline", "link", "show", "ov0"]);
    let old = index()?;
    let names = one.netns.run(&["ip", "-oneline", "link", "show"])?;
    let far = names.split_whitespace().find_map(|word| word.strip_suffix("@ov0:")).context("no far end")?;
    one.netns.ip(&format!("link del {far}"))?;
    wait::until("it is there again", wait::SOON, || Ok(index().is_ok_and(|new| new != old)))?;
    wait_state(one, "ov0", "up")?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    one.daemon.mgre(&["port", "del", "ov0"])?;
    one.daemon.mgre(&["port", "create", SEGMENT, "ov0", "--address", "10.77.0.201/24"])?;
    traffic::wait_reachable(&one.netns, &two.host_ip(), wait::SOON)?;
    assert_eq!(left(one)?.0, before.0);
    Ok(())
}

#[test]
fn a_socket_that_somebody_removes_is_made_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = Spokes::new(1, Underlay::Switched)?;
    let daemon = &mut spokes.spoke_mut(1).daemon;
    let socket = daemon.socket();
    let run_dir = socket.parent().context("a directory")?.to_owned();
    let answers = |daemon: &Daemon| Ok(daemon.outcome(&["status"])?.code == Some(0));
    fs::remove_file(&socket)?;
    wait::until("it answers again", wait::SOON, || answers(daemon))?;
    // The whole directory, and the lock in it, as a careless clean-up does.
    fs::remove_dir_all(&run_dir)?;
    wait::until("it answers again", wait::SOON, || answers(daemon))?;
    assert!(daemon.log().matches("made again").count() >= 2, "{}", daemon.log());
    let left = || Ok::<_, anyhow::Error>(fs::read_dir(&run_dir)?.count());
    assert!(left()? >= 2, "socket and lock");
    // Nor can a second daemon have the instance because the lock alone was removed.
    let lock = run_dir.join("default.lock");
    fs::remove_file(&lock)?;
    wait::until("the lock is there again", wait::SOON, || Ok(lock.exists()))?;
    assert!(answers(daemon)?);
    // Somebody else's is neither replaced nor removed.
    let other = run_dir.join("other");
    fs::write(&other, "mine")?;
    fs::rename(&other, &socket)?;
    wait::until("it is said", wait::SOON, || Ok(daemon.log().contains("was replaced")))?;
    daemon.stop()?;
    assert_eq!(fs::read_to_string(&socket)?, "mine");
    Ok(())
}
