//! What is attached stays so: after somebody took a program off, and from one version of the tables to another.

use std::{fs, path::PathBuf, process::Command, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use mgre_tests::{
    daemon::{Daemon, Tc},
    netns::Netns,
    numbered::Numbered,
    skip::{skipped, skipped_at},
    tcx::attached as hooks_of,
    topology::{Layout, Spokes, Underlay},
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
