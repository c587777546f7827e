//! `mgre detach`, where it cannot be done, and where there is no daemon.

use std::fs;

use anyhow::Result;
use mgre_tests::{
    clsact,
    daemon::{Options, Tc},
    disk::Disk,
    lone::Lone,
    skip::{skipped, skipped_at},
    tcx,
    topology::{Layout, SEGMENT, Underlay},
    traffic, wait,
};

#[test]
fn a_detach_that_cannot_be_saved_takes_nothing_off() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (mut lone, disk) =
        Lone::prepared(Options::default(), |folder| Disk::mount(&folder.join("state"), 1 << 20))?;
    lone.set_up()?;
    lone.daemon.mgre(&["port", "create", SEGMENT, "ov0"])?;
    let in_force = || -> Result<_> {
        let attached = ["wan0", "lan0", "ov0"].map(|name| tcx::attached(&lone.netns, name));
        Ok((attached.into_iter().collect::<Result<Vec<_>>>()?, lone.daemon.mgre(&["export"])?))
    };
    let before = in_force()?;
    assert_eq!(before.0, [1, 1, 1]);
    disk.set_writable(false)?;
    let refused = lone.daemon.outcome(&["detach"])?;
    assert_eq!((refused.code, refused.stderr.lines().count()), (Some(1), 1), "{refused:?}");
    assert!(refused.stderr.contains("nothing was taken off"), "{refused:?}");
    assert_eq!(in_force()?, before);
    lone.wait_up()?;
    disk.set_writable(true)?;
    assert_eq!(in_force()?, before);
    lone.daemon.mgre(&["peer", "set", "b", "--ttl", "9"])?;
    lone.daemon.mgre(&["detach"])?;
    assert_eq!(lone.daemon.wait()?.code(), Some(0));
    assert_eq!((tcx::attached(&lone.netns, "wan0")?, tcx::attached(&lone.netns, "lan0")?), (0, 0));
    assert!(disk.path().join("default.detached.json").exists() && !disk.path().join("default.json").exists());
    Ok(())
}

fn without_a_daemon_detach_removes_what_it_left(tc: Tc) -> Result<()> {
    if skipped_at(tc) {
        return Ok(());
    }
    let mut spokes = Layout { tc: Some(tc), ..Layout::new(2, Underlay::Switched) }.build()?;
    let to = spokes.spoke(2).host_ip();
    let one = spokes.spoke_mut(1);
    one.daemon.mgre(&["port", "create", SEGMENT, "ov0"])?;
    one.daemon.kill()?;
    assert_eq!(tcx::attached(&one.netns, "wan0")?, 1);
    let outcome = one.daemon.outcome(&["detach"])?;
    assert_eq!(
        (outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()),
        (Some(0), "", ""),
        "{outcome:?}"
    );
    for interface in ["wan0", "lan0"] {
        assert_eq!(tcx::attached(&one.netns, interface)?, 0, "{interface}");
        assert!(!clsact::has_qdisc(&one.netns, interface)?, "{interface}");
    }
    let links = one.netns.run(&["ip", "-details", "link", "show"])?;
    assert!(!links.contains("ov0") && !links.contains("alias mgre:"), "{links}");
    assert!(!links.contains("promiscuity 1"), "{links}");
    let neighbors = one.netns.run(&["ip", "neigh", "show"])?;
    assert!(!neighbors.contains("managed"), "{neighbors}");
    assert!(!one.daemon.bpffs().join("mgre").exists());
    let state = one.daemon.path().join("state");
    assert!(!state.join("default.json").exists() && state.join("default.detached.json").exists());
    assert_eq!(fs::read_dir(one.daemon.path().join("run"))?.count(), 0, "files beside the socket");
    assert!(traffic::cut_off(&one.host, &to)?);
    // Now there is nothing.
    let outcome = one.daemon.outcome(&["detach"])?;
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("not running"), "{outcome:?}");
    assert!(state.join("default.detached.json").exists(), "the only copy");
    one.daemon.start_again()?;
    assert_eq!(one.daemon.mgre(&["export"])?, "");
    Ok(())
}

#[test]
fn without_a_daemon_detach_removes_links() -> Result<()> {
    without_a_daemon_detach_removes_what_it_left(Tc::Tcx)
}

#[test]
fn without_a_daemon_detach_removes_filters() -> Result<()> {
    without_a_daemon_detach_removes_what_it_left(Tc::Clsact)
}

#[test]
fn a_detach_that_does_not_know_the_socket_leaves_a_daemon_alone() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lone = Lone::new(Options::default())?;
    let elsewhere = tempfile::tempdir()?;
    let mut command = std::process::Command::new(mgre_tests::daemon::program()?);
    command.arg("--run-dir").arg(elsewhere.path()).arg("detach");
    command.arg("--state-dir").arg(lone.daemon.path().join("state")).arg("--bpffs").arg(lone.daemon.bpffs());
    let refused = mgre_tests::daemon::outcome(&mut command)?;
    assert!(refused.code == Some(1) && refused.stderr.contains("--run-dir"), "{refused:?}");
    assert_eq!(tcx::attached(&lone.netns, "wan0")?, 1);
    lone.wait_up()
}

#[test]
fn what_is_in_another_namespace_than_the_daemons_is_left_alone() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut lone = Lone::new(Options::default())?;
    lone.daemon.mgre(&["port", "create", SEGMENT, "ov0"])?;
    lone.daemon.kill()?;
    // As if an inode of an earlier boot had been given out again.
    let places = lone.daemon.path().join("run/default.places");
    let mut noted: serde_json::Value = serde_json::from_slice(&fs::read(&places)?)?;
    assert!(noted["boot_id"].is_string() && noted["cookie"].is_u64(), "{noted}");
    noted["boot_id"] = "another".into();
    fs::write(&places, noted.to_string())?;
    let outcome = lone.daemon.outcome(&["detach"])?;
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(0), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("namespace is gone"), "{outcome:?}");
    assert!(lone.netns.run(&["ip", "link", "show"])?.contains("ov0"));
    assert!(lone.daemon.path().join("state/default.detached.json").exists() && !places.exists());
    Ok(())
}

#[test]
fn without_a_daemon_detach_leaves_other_instances_alone() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = Layout::new(2, Underlay::Switched).build()?;
    let one = spokes.spoke_mut(1);
    let outcome = mgre_tests::daemon::outcome(&mut {
        let mut command = std::process::Command::new(mgre_tests::daemon::program()?);
        command.args(["-i", "other", "--run-dir"]).arg(one.daemon.path().join("run")).arg("detach");
        command
            .arg("--state-dir")
            .arg(one.daemon.path().join("state"))
            .arg("--bpffs")
            .arg(one.daemon.bpffs());
        command
    })?;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("mgre -i other daemon"), "{outcome:?}");
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert_eq!(tcx::attached(&one.netns, "wan0")?, 1);
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON).map(drop)
}
