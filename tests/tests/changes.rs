//! What is configured changes while it is in use.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    thread,
};

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::Capture,
    packet::Gre,
    skip::skipped,
    topology::{Layout, SEGMENT, Spokes, Underlay},
    traffic, wait,
};

#[test]
fn the_mtu_follows_the_underlay() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let one = spokes.spoke(1);
    one.daemon.mgre(&["port", "create", SEGMENT, "ov0", "--address", "10.77.0.201/24"])?;
    let mtu_of_interface = || one.netns.run(&["ip", "link", "show", "ov0"]);
    assert!(mtu_of_interface()?.contains("mtu 1458 "));
    one.netns.ip("link set wan0 mtu 1400")?;
    wait::until("the peer's MTU is less", wait::SOON, || Ok(one.peer("spoke2")?["mtu"] == 1358))?;
    wait::until("the interface's MTU is less", wait::SOON, || Ok(mtu_of_interface()?.contains("mtu 1358 ")))?;
    one.netns.ip("link set wan0 mtu 1500")?;
    wait::until("the peer's MTU is more", wait::SOON, || Ok(one.peer("spoke2")?["mtu"] == 1458))?;
    // What an operator says counts for more, where it is less.
    one.daemon.mgre(&["peer", "set", "spoke2", "--mtu", "1300"])?;
    assert_eq!(one.peer("spoke2")?["mtu"], 1300);
    let to = spokes.spoke(2).host_ip();
    assert!(traffic::reaches(&one.host, &to)?);
    assert!(traffic::fits(&one.host, &to, 1300)?);
    assert!(!traffic::fits(&one.host, &to, 1301)?);
    assert_eq!(one.drops("too_big")?, 1);
    Ok(())
}

#[test]
fn a_peer_may_get_another_endpoint() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    // Spoke 2 gets another address.
    two.netns.ip("addr add 10.0.0.22/24 dev wan0")?;
    two.daemon.mgre(&["underlay", "del", "wan0", "--force"])?;
    assert_eq!(two.peer("spoke1")?["state"], "down");
    assert!(two.peer("spoke1")?["reason"].as_str().is_some_and(|reason| reason.contains("underlay")));
    assert!(traffic::cut_off(&one.host, &two.host_ip())?);
    two.daemon.mgre(&["underlay", "add", "wan0", "--local", "10.0.0.22"])?;
    one.daemon.mgre(&["peer", "set", "spoke2", "--remote", "10.0.0.22"])?;
    let at_wan = Capture::start(&one.netns, "wan0")?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    let both = at_wan.stop().iter().filter_map(|packet| Gre::parse(&packet.bytes)).fold(
        (0, 0),
        |(to, from), gre| {
            let new = "10.0.0.22".parse::<std::net::IpAddr>().ok();
            (to + u32::from(Some(gre.destination) == new), from + u32::from(Some(gre.source) == new))
        },
    );
    assert!(both.0 > 0 && both.1 > 0, "{both:?}");
    assert_eq!(one.peer("spoke2")?["endpoint"], "10.0.0.22");
    one.wait_fdb_peer(two.host_mac(), "spoke2")
}

#[test]
fn peers_may_be_behind_different_underlays() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    // Spoke 1 has a leg to each of the others, and the core forwards nothing.
    let layout = Layout { configure: false, ..Layout::new(3, Underlay::Routed) };
    let spokes = layout.build()?;
    spokes.core.sysctl("ipv4/ip_forward", "0")?;
    let one = spokes.spoke(1);
    let legs = [(2, "10.1.2"), (3, "10.1.3")];
    for (number, network) in legs {
        let other = spokes.spoke(number);
        mgre_tests::netns::ip(&format!(
            "link add leg{number} netns {} type veth peer name leg netns {}",
            one.netns.name(),
            other.netns.name()
        ))?;
        one.netns.ip(&format!("addr add {network}.1/24 dev leg{number}\nlink set leg{number} up"))?;
        other.netns.ip(&format!("addr add {network}.2/24 dev leg\nlink set leg up"))?;
        one.daemon.mgre(&["underlay", "add", &format!("leg{number}"), "--local", &format!("{network}.1")])?;
        other.daemon.mgre(&["underlay", "add", "leg", "--local", &format!("{network}.2")])?;
    }
    for spoke in spokes.iter() {
        spoke.daemon.mgre(&["segment", "add", SEGMENT, "--key", "7"])?;
        spoke.daemon.mgre(&["port", "add", SEGMENT, "lan0"])?;
    }
    for (number, network) in legs {
        let (here, there) = (format!("{network}.1"), format!("{network}.2"));
        one.daemon.mgre(&["peer", "add", &format!("spoke{number}"), &there, "--segment", SEGMENT])?;
        spokes.spoke(number).daemon.mgre(&["peer", "add", "spoke1", &here, "--segment", SEGMENT])?;
    }
    spokes.wait_up()?;
    for number in [2, 3] {
        assert!(traffic::reaches(&one.host, &spokes.spoke(number).host_ip())?, "spoke {number}");
    }
    // No hub: the two know nothing of each other, and spoke 1 passes nothing on.
    assert!(traffic::cut_off(&spokes.spoke(2).host, &spokes.spoke(3).host_ip())?);
    Ok(())
}

#[test]
fn a_reboot_brings_everything_back() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = Spokes::new(2, Underlay::Routed)?;
    let one = spokes.spoke(1);
    one.daemon.mgre(&[
        "port",
        "create",
        SEGMENT,
        "ov0",
        "--address",
        "10.77.0.201/24",
        "--mac",
        "02:00:00:00:01:20",
    ])?;
    let before = one.daemon.mgre(&["export"])?;
    let daemon = &mut spokes.spoke_mut(1).daemon;
    daemon.stop()?;
    // After a reboot neither pins nor interfaces nor anything in the run directory are there.
    let pins = daemon.bpffs().join("mgre");
    fs::remove_dir_all(&pins).with_context(|| format!("{}", pins.display()))?;
    let one = spokes.spoke(1);
    one.netns.ip("link del ov0")?;
    assert_eq!(mgre_tests::tcx::attached(&one.netns, "wan0")?, 0);
    spokes.spoke_mut(1).daemon.start_again()?;
    let one = spokes.spoke(1);
    assert_eq!(one.daemon.mgre(&["export"])?, before);
    assert!(one.netns.run(&["ip", "address", "show", "ov0"])?.contains("10.77.0.201/24"));
    traffic::wait_reachable(&one.netns, &spokes.spoke(2).host_ip(), wait::SOON)?;
    traffic::wait_reachable(&one.host, &spokes.spoke(2).host_ip(), wait::SOON)?;
    Ok(())
}

#[test]
fn a_damaged_state_is_not_overwritten() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = Spokes::new(1, Underlay::Switched)?;
    let daemon = &mut spokes.spoke_mut(1).daemon;
    daemon.stop()?;
    let mut files = Vec::new();
    for entry in fs::read_dir(daemon.path().join("state"))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        fs::write(&path, &text[..text.len() / 2])?;
        files.push((path, text));
    }
    assert!(!files.is_empty());
    let error = daemon.start_again().err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("state"), "{error}");
    for (path, text) in &files {
        assert_eq!(fs::read_to_string(path)?, text[..text.len() / 2], "{}", path.display());
        fs::write(path, text)?;
    }
    // The daemon that gave up is not there any more.
    daemon.wait()?;
    daemon.start_again()?;
    assert_eq!(daemon.json(&["status"])?["segments"], 1);
    Ok(())
}

#[test]
fn a_change_that_cannot_be_saved_changes_and_loses_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    let daemon = &one.daemon;
    let received =
        || -> Result<u64> { Ok(daemon.list(&["peer", "show"])?[0]["rx_packets"].as_u64().unwrap_or(0)) };
    let before = (daemon.mgre(&["export"])?, daemon.list(&["fdb", "show"])?.len(), received()?);
    assert!(before.1 >= 2 && before.2 > 0, "{before:?}");
    // Directories where the journal and a new snapshot are to be written: as good as a full disk, and root cannot
    // write there either.
    let state = daemon.path().join("state").join("default.json");
    let obstacles = [state.with_extension("journal"), state.with_extension("json.new")];
    fs::remove_file(&obstacles[0])?;
    obstacles.iter().try_for_each(fs::create_dir)?;
    for change in [
        &["peer", "del", "spoke2"] as &[&str],
        &["port", "del", "lan0"],
        &["port", "create", SEGMENT, "mg0"],
        &["segment", "set", SEGMENT, "--key", "99"],
    ] {
        let refused = daemon.outcome(change)?;
        assert_eq!(refused.code, Some(1), "{change:?}: {refused:?}");
        assert!(refused.stderr.contains("cannot save") && refused.stderr.lines().count() == 1, "{refused:?}");
    }
    assert_eq!(daemon.mgre(&["export"])?, before.0);
    assert!(daemon.list(&["fdb", "show"])?.len() >= before.1, "addresses were forgotten");
    assert!(received()? >= before.2, "counters were cleared");
    assert!(!one.netns.run(&["ip", "-br", "link"])?.contains("mg0"), "an interface was left");
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    obstacles.iter().try_for_each(fs::remove_dir)?;
    daemon.mgre(&["peer", "del", "spoke2"])?;
    assert!(daemon.list(&["peer", "show"])?.is_empty());
    Ok(())
}

#[test]
fn what_was_answered_outlives_a_crash() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = Spokes::new(1, Underlay::Switched)?;
    let daemon = &mut spokes.spoke_mut(1).daemon;
    for number in 0..20 {
        let (name, remote) = (format!("p{number}"), format!("10.0.0.{}", 100 + number));
        daemon.mgre(&["peer", "add", &name, &remote, "--segment", SEGMENT])?;
    }
    daemon.mgre(&["peer", "del", "p3"])?;
    daemon.mgre(&["peer", "set", "p4", "--ttl", "9"])?;
    let before = (daemon.mgre(&["export"])?, daemon.json(&["status"])?["adjacencies"].clone());
    let journal = daemon.path().join("state").join("default.journal");
    assert!(fs::metadata(&journal)?.len() > 0);
    daemon.kill()?;
    // The last write was under way when the machine went down.
    let mut torn = fs::read(&journal)?;
    torn.extend_from_slice(b"1b851995 {\"version\":1,\"chan");
    fs::write(&journal, torn)?;
    daemon.start_again()?;
    assert_eq!((daemon.mgre(&["export"])?, daemon.json(&["status"])?["adjacencies"].clone()), before);
    assert!(daemon.log().contains("in the middle of a record"), "{}", daemon.log());
    // A clean end leaves one file that says everything.
    daemon.stop()?;
    assert!(!journal.exists());
    daemon.start_again()?;
    assert_eq!(daemon.mgre(&["export"])?, before.0);
    // A journal that is damaged elsewhere than at its end is not guessed at.
    daemon.mgre(&["peer", "del", "p5"])?;
    daemon.mgre(&["peer", "del", "p6"])?;
    daemon.kill()?;
    let mut damaged = fs::read(&journal)?;
    damaged[30] ^= 1;
    fs::write(&journal, &damaged)?;
    let error = daemon.start_again().err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("default.journal"), "{error}");
    assert_eq!(fs::read(&journal)?, damaged);
    damaged[30] ^= 1;
    fs::write(&journal, &damaged)?;
    daemon.wait()?;
    daemon.start_again()?;
    assert_eq!(daemon.json(&["status"])?["peers"], 17);
    Ok(())
}

#[test]
fn commands_at_the_same_time_are_taken_one_by_one() -> Result<()> {
    const MANY: usize = 40;
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(1, Underlay::Switched)?;
    let daemon = &spokes.spoke(1).daemon;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..MANY)
            .map(|number| {
                scope.spawn(move || -> Result<()> {
                    let name = format!("s{number}");
                    let key = (1000 + number).to_string();
                    daemon.mgre(&["segment", "add", &name, "--key", &key])?;
                    let remote = format!("10.0.0.{}", 100 + number);
                    daemon.mgre(&["peer", "add", &name, &remote, "--segment", &name, SEGMENT])?;
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    let status = daemon.json(&["status"])?;
    assert_eq!((&status["segments"], &status["peers"]), (&(MANY + 1).into(), &MANY.into()));
    assert_eq!(status["adjacencies"], 2 * MANY);
    // The same name twice: one of them has it.
    let codes = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| daemon.outcome(&["segment", "add", "one", "--key", "1"])))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<mgre_tests::daemon::Outcome>>| {
            thread.join().ok().and_then(Result::ok).and_then(|outcome| outcome.code)
        };
        threads.into_iter().map(join).collect::<Vec<_>>()
    });
    assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == Some(1)).count(), 7, "{codes:?}");
    Ok(())
}

#[test]
fn monitor_tells_what_happens() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    one.daemon.mgre(&["fdb", "flush"])?;
    let mut monitor = one.daemon.command(&["--json", "monitor"])?.stdout(Stdio::piped()).spawn()?;
    let stdout = monitor.stdout.take().context("no standard output")?;
    let lines = std::sync::Mutex::new(Vec::new());
    let told = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                lines.lock().map(|mut lines| lines.push(line)).ok();
            }
        });
        let tells = |what: &str| {
            lines.lock().is_ok_and(|lines| lines.iter().any(|line: &String| line.contains(what)))
        };
        let mac = mgre_tests::packet::mac_text(two.host_mac());
        // It may not listen yet when the first is learned.
        let told = wait::until("an address is told of", wait::SOON, || {
            one.daemon.mgre(&["fdb", "flush"])?;
            traffic::ping(&one.host, &["-c", "3", "-i", "0.1", "-W", "1", &two.host_ip()])?;
            Ok(tells(&mac))
        });
        let told = told.and_then(|_| {
            one.daemon.mgre(&["segment", "add", "new", "--key", "99"])?;
            wait::until("a change is told of", wait::SOON, || Ok(tells("new")))
        });
        // Only now, so that the reader ends whatever came of it.
        monitor.kill()?;
        monitor.wait()?;
        reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        told
    });
    let lines = lines.into_inner().unwrap_or_default();
    told.with_context(|| lines.join("\n"))?;
    for line in &lines {
        let event: serde_json::Value = serde_json::from_str(line).with_context(|| line.clone())?;
        assert!(event.is_object(), "{line}");
    }
    Ok(())
}
