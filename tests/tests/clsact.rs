//! Programs attached as TC filters: beside others' filters, across restarts, and back after somebody removed them.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use mgre_tests::{
    clsact::{self, DIRECTIONS},
    daemon::{Daemon, Options, Tc},
    netns::Netns,
    numbered::{Arrivals, Numbered},
    skip::{skipped, skipped_at},
    tcx::attached as hooks_of,
    topology::{Layout, SEGMENT, Spokes, Underlay},
    traffic, wait,
};

/// A filter that matches nothing, but runs on every frame: a program of classic BPF.
const NOTHING: &str = "1,6 0 0 0";

fn spokes(tc: Tc) -> Result<Spokes> {
    let spokes = Layout { tc: Some(tc), ..Layout::new(2, Underlay::Routed) }.build()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    one.wait_fdb_peer(two.host_mac(), "spoke2")?;
    two.wait_fdb_port(two.host_mac(), "lan0")?;
    Ok(spokes)
}

/// Sends numbered frames from host 1 to host 2 while something is done.
fn arrivals_during(spokes: &mut Spokes, act: impl FnOnce(&mut Spokes) -> Result<()>) -> Result<Arrivals> {
    let numbered = Numbered::start(spokes.spoke(1), spokes.spoke(2))?;
    sleep(Duration::from_millis(300));
    act(spokes)?;
    sleep(Duration::from_millis(300));
    let arrivals = numbered.stop()?;
    assert!(arrivals.sent > 500, "{arrivals:?}");
    Ok(arrivals)
}

fn hooks(daemon: &Daemon) -> Result<[String; 2]> {
    let text = |value: &serde_json::Value| value["hook"].as_str().unwrap_or_default().to_owned();
    let status = daemon.json(&["status"])?;
    Ok([text(&status["underlays"][0]), text(&daemon.list(&["port", "show"])?[0])])
}

fn add_filter(netns: &Netns, interface: &str, direction: &str, priority: &str) -> Result<()> {
    let words = ["tc", "filter", "add", "dev", interface, direction, "prio", priority, "protocol", "all"];
    netns.run(&[&words[..], &["bpf", "bytecode", NOTHING]].concat()).map(drop)
}

#[test]
fn filters_are_named_after_program_and_instance() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = spokes(Tc::Clsact)?;
    let one = spokes.spoke(1);
    assert_eq!(hooks(&one.daemon)?, ["clsact", "clsact"]);
    for (interface, program) in [("wan0", "mgre_underlay:default"), ("lan0", "mgre_port:default")] {
        let own = clsact::own(&one.netns, interface)?;
        assert_eq!(own.len(), 1, "{own:?}");
        for part in ["protocol all", "pref 10 bpf", program, "direct-action"] {
            assert!(own[0].contains(part), "no {part} in {own:?}");
        }
    }
    one.daemon.mgre(&["port", "create", SEGMENT, "ov0"])?;
    let egress = clsact::filters(&one.netns, "ov0", "egress")?;
    assert!(egress.len() == 1 && egress[0].contains("mgre_port:default"), "{egress:?}");
    assert!(clsact::filters(&one.netns, "ov0", "ingress")?.is_empty());
    Ok(())
}

#[test]
fn a_restart_neither_loses_nor_repeats_a_frame() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = spokes(Tc::Clsact)?;
    let arrivals = arrivals_during(&mut spokes, |spokes| {
        for number in [1, 2, 1] {
            let daemon = &mut spokes.spoke_mut(number).daemon;
            daemon.stop()?;
            daemon.start_again()?;
            let daemon = &mut spokes.spoke_mut(number).daemon;
            daemon.kill()?;
            daemon.start_again()?;
        }
        Ok(())
    })?;
    assert_eq!((arrivals.lost, arrivals.repeated), (0, 0), "{arrivals:?}");
    let one = spokes.spoke(1);
    assert_eq!(clsact::own(&one.netns, "lan0")?.len(), 1, "exchanged, not added");
    Ok(())
}

#[test]
fn a_daemon_may_attach_in_another_way_than_the_one_before() -> Result<()> {
    if skipped_at(Tc::Tcx) {
        return Ok(());
    }
    let mut spokes = spokes(Tc::Tcx)?;
    let change = |spokes: &mut Spokes, tc: Tc| -> Result<()> {
        for number in [1, 2] {
            let daemon = &mut spokes.spoke_mut(number).daemon;
            daemon.stop()?;
            daemon.start_again_at(tc)?;
            let spoke = spokes.spoke(number);
            assert_eq!(hooks(&spoke.daemon)?, [tc.name(), tc.name()]);
            for interface in ["wan0", "lan0"] {
                let filters = clsact::own(&spoke.netns, interface)?;
                assert_eq!(filters.len(), usize::from(tc == Tc::Clsact), "{filters:?}");
                // The kernel takes its time to free a link whose file is gone.
                wait::until("one program is left", wait::SOON, || {
                    Ok(hooks_of(&spoke.netns, interface)? == 1)
                })?;
                // To remove it would interrupt the interface.
                assert!(clsact::has_qdisc(&spoke.netns, interface)?);
            }
        }
        Ok(())
    };
    // The kernel stops an interface's queues while a qdisc is made for it.
    let arrivals = arrivals_during(&mut spokes, |spokes| change(spokes, Tc::Clsact))?;
    assert_eq!(arrivals.repeated, 0, "{arrivals:?}");
    let arrivals = arrivals_during(&mut spokes, |spokes| {
        [Tc::Tcx, Tc::Clsact, Tc::Tcx].into_iter().try_for_each(|tc| change(spokes, tc))
    })?;
    assert_eq!((arrivals.lost, arrivals.repeated), (0, 0), "{arrivals:?}");
    let two = spokes.spoke(2).host_mac();
    let one = spokes.spoke(1);
    one.wait_fdb_peer(two, "spoke2")?;
    one.daemon.mgre(&["detach"])?;
    assert!(!clsact::has_qdisc(&one.netns, "lan0")? && !clsact::has_qdisc(&one.netns, "wan0")?);
    Ok(())
}

#[test]
fn what_somebody_removes_is_put_back() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = spokes(Tc::Clsact)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    for (interface, words) in [
        ("lan0", &["tc", "filter", "del", "dev", "lan0", "ingress"][..]),
        ("wan0", &["tc", "qdisc", "del", "dev", "wan0", "clsact"]),
        ("lan0", &["tc", "filter", "del", "dev", "lan0", "ingress", "prio", "10"]),
        (
            "lan0",
            // The same filter with a program that passes everything.
            &[
                "tc", "filter", "replace", "dev", "lan0", "ingress", "prio", "10", "handle", "1", "protocol",
                "all", "bpf", "skip_hw", "bytecode", NOTHING,
            ],
        ),
    ] {
        one.netns.run(words)?;
        wait::until("the filter is back", wait::SOON, || Ok(clsact::own(&one.netns, interface)?.len() == 1))
            .with_context(|| words.join(" "))?;
        assert!(traffic::reaches(&one.host, &two.host_ip())?, "{words:?}");
        let told = format!("somebody removed mgre's filter from {interface}");
        assert!(one.daemon.log().contains(&told), "{}", one.daemon.log());
    }
    // It was made anew, and is taken along.
    let spoke = one;
    spoke.daemon.mgre(&["detach"])?;
    assert!(!clsact::has_qdisc(&spoke.netns, "wan0")?);
    Ok(())
}

#[test]
fn others_filters_stay_and_see_what_they_are_to_see() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let layout = Layout { configure: false, tc: Some(Tc::Clsact), ..Layout::new(2, Underlay::Routed) };
    let mut spokes = layout.build()?;
    for (number, other) in [(1, 2), (2, 1)] {
        let spoke = spokes.spoke(number);
        // Before ours, where ours would be, and after it; one of another kind.
        if number == 1 {
            spoke.netns.run(&["tc", "qdisc", "add", "dev", "lan0", "clsact"])?;
            for priority in ["3", "10", "20"] {
                add_filter(&spoke.netns, "lan0", "ingress", priority)?;
            }
            add_filter(&spoke.netns, "lan0", "egress", "5")?;
            spoke.netns.run(&[
                "tc",
                "filter",
                "add",
                "dev",
                "lan0",
                "ingress",
                "prio",
                "11",
                "protocol",
                "ip",
                "u32",
                "match",
                "u32",
                "0xffffffff",
                "0xffffffff",
            ])?;
        }
        let (local, remote) = (format!("10.0.{number}.1"), format!("10.0.{other}.1"));
        for words in [
            &["underlay", "add", "wan0", "--local", &local][..],
            &["segment", "add", SEGMENT, "--key", "7"],
            &["port", "add", SEGMENT, "lan0"],
            &["peer", "add", "other", &remote, "--segment", SEGMENT],
        ] {
            spoke.daemon.mgre(words)?;
        }
    }
    spokes.wait_up()?;
    let netns = |spokes: &Spokes| spokes.spoke(1).netns.name().to_owned();
    let name = netns(&spokes);
    let theirs = |spokes: &Spokes| -> Result<Vec<String>> {
        let spoke = spokes.spoke(1);
        let mut all = Vec::new();
        for direction in DIRECTIONS {
            all.extend(clsact::filters(&spoke.netns, "lan0", direction)?);
        }
        all.retain(|line| !line.contains(" mgre_"));
        Ok(all)
    };
    let before = theirs(&spokes)?;
    assert_eq!(before.len(), 6, "{name}: {before:#?}");
    let order: Vec<String> = clsact::filters(&spokes.spoke(1).netns, "lan0", "ingress")?;
    let place = |mark: &str| order.iter().position(|line| line.contains(mark));
    assert!(place("pref 3 ") < place(" mgre_port") && place(" mgre_port") < place("pref 11 "), "{order:#?}");
    assert!(traffic::reaches(&spokes.spoke(1).host, &spokes.spoke(2).host_ip())?);

    let daemon = &mut spokes.spoke_mut(1).daemon;
    daemon.kill()?;
    daemon.start_again()?;
    assert!(traffic::reaches(&spokes.spoke(1).host, &spokes.spoke(2).host_ip())?);
    assert_eq!(theirs(&spokes)?, before);
    let one = spokes.spoke(1);
    one.daemon.mgre(&["detach"])?;
    assert_eq!(theirs(&spokes)?, before, "detach leaves them");
    assert!(clsact::own(&one.netns, "lan0")?.is_empty());
    assert!(clsact::has_qdisc(&one.netns, "lan0")?, "the qdisc was there before");
    assert!(!clsact::has_qdisc(&one.netns, "wan0")?, "and this one was not");
    Ok(())
}

#[test]
fn a_qdisc_of_ours_stays_while_others_use_it() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = spokes(Tc::Clsact)?;
    let one = spokes.spoke(1);
    add_filter(&one.netns, "lan0", "egress", "7")?;
    one.daemon.mgre(&["detach"])?;
    assert!(!clsact::has_qdisc(&one.netns, "wan0")?);
    assert_eq!(clsact::filters(&one.netns, "lan0", "egress")?.len(), 1);
    assert!(clsact::own(&one.netns, "lan0")?.is_empty());
    Ok(())
}

#[test]
fn two_instances_share_an_interface() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = spokes(Tc::Clsact)?;
    let one = spokes.spoke(1);
    one.netns.ip("addr add 10.0.1.77/24 dev wan0")?;
    let options = Options { instance: "second".to_owned(), tc: Some(Tc::Clsact), ..Options::default() };
    let mut second = Daemon::start_in(&one.netns, options, one.daemon.path())?;
    second.mgre(&["underlay", "add", "wan0", "--local", "10.0.1.77"])?;
    let names = |spokes: &Spokes| -> Result<Vec<bool>> {
        let own = clsact::own(&spokes.spoke(1).netns, "wan0")?;
        let has =
            |instance: &str| own.iter().any(|line| line.contains(&format!("mgre_underlay:{instance} ")));
        Ok(vec![has("default"), has("second")])
    };
    assert_eq!(names(&spokes)?, [true, true]);
    let arrivals = arrivals_during(&mut spokes, |spokes| {
        second.kill()?;
        second.start_again()?;
        let first = &mut spokes.spoke_mut(1).daemon;
        first.kill()?;
        first.start_again()?;
        Ok(())
    })?;
    assert_eq!((arrivals.lost, arrivals.repeated), (0, 0), "{arrivals:?}");
    assert_eq!(names(&spokes)?, [true, true]);
    // The one that made the qdisc goes first, and the other one takes it along.
    let one = spokes.spoke(1);
    one.daemon.mgre(&["detach"])?;
    assert_eq!(names(&spokes)?, [false, true]);
    assert!(clsact::has_qdisc(&one.netns, "wan0")?);
    second.mgre(&["detach"])?;
    assert!(!clsact::has_qdisc(&one.netns, "wan0")?);
    let left = one.daemon.bpffs().join("mgre");
    assert!(!left.exists(), "{} is left", left.display());
    Ok(())
}

#[test]
fn an_ingress_qdisc_serves_for_what_is_received() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let layout = Layout { configure: false, tc: Some(Tc::Clsact), ..Layout::new(1, Underlay::Switched) };
    let spokes = layout.build()?;
    let one = spokes.spoke(1);
    one.netns.run(&["tc", "qdisc", "add", "dev", "lan0", "ingress"])?;
    one.daemon.mgre(&["segment", "add", SEGMENT, "--key", "7"])?;
    one.daemon.mgre(&["port", "add", SEGMENT, "lan0"])?;
    let filters = clsact::filters(&one.netns, "lan0", "ingress")?;
    assert!(filters.len() == 1 && filters[0].contains("mgre_port:default"), "{filters:?}");
    one.daemon.mgre(&["detach"])?;
    assert!(clsact::filters(&one.netns, "lan0", "ingress")?.is_empty());
    assert!(one.netns.run(&["tc", "qdisc", "show", "dev", "lan0"])?.contains("qdisc ingress"));
    Ok(())
}
