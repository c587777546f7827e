//! From peer to peer through a hub, and no round trips for ever.

use std::{net::IpAddr, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::{self, Capture},
    conservation::Books,
    packet::{BROADCAST, UNKNOWN, mac_text, marked},
    skip::{skipped, skipped_without_redirects},
    topology::{Family, Layout, SEGMENT, Spokes, Underlay},
    traffic, wait,
};

/// How long a frame that must not come is waited for.
const QUIET: Duration = Duration::from_millis(300);

/// Three spokes of which the first is the hub, and the only one that the others know.
fn star(hub: bool, family: Family) -> Result<Spokes> {
    let spokes = Layout { family, ..Layout::new(3, Underlay::Switched) }.build()?;
    spokes.spoke(2).daemon.mgre(&["peer", "del", "spoke3"])?;
    spokes.spoke(3).daemon.mgre(&["peer", "del", "spoke2"])?;
    if hub {
        spokes.spoke(1).daemon.mgre(&["segment", "set", SEGMENT, "--hub"])?;
    }
    Ok(spokes)
}

/// Hops that packets on a wire which carry this frame have left, and where they come from.
fn seen(capture: &Capture, frame: &[u8]) -> Vec<(u8, IpAddr)> {
    let carrying = capture.packets().into_iter().map(|(_, gre)| gre).filter(|gre| gre.inner == frame);
    carrying.map(|gre| (gre.ttl, gre.source)).collect()
}

#[test]
fn spokes_reach_each_other_through_the_hub_alone() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    // Over both families, it knows one spoke by IPv4 and the other by IPv6.
    for family in [Family::V4, Family::V6, Family::Mixed] {
        through_the_hub(&star(false, family)?).with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

fn through_the_hub(spokes: &Spokes) -> Result<()> {
    let books = Books::open(spokes)?;
    let (hub, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    assert!(traffic::reaches(&two.host, &hub.host_ip())? && traffic::reaches(&three.host, &hub.host_ip())?);
    assert!(traffic::cut_off(&two.host, &three.host_ip())?, "split horizon");

    hub.daemon.mgre(&["segment", "set", SEGMENT, "--hub"])?;
    assert_eq!(hub.daemon.list(&["segment", "show"])?[0]["hub"], true);
    assert!(hub.daemon.mgre(&["export"])?.contains("hub = true"));
    for (from, to) in [(two, three), (three, two), (two, hub), (hub, three)] {
        for address in [to.host_ip(), to.host_ipv6()] {
            assert!(traffic::reaches(&from.host, &address)?, "{} to {address}", from.number);
        }
    }
    // Superframes go on as they came.
    for address in [three.host_ip(), three.host_ipv6()] {
        traffic::iperf3_at_least(5e7, (&two.host, &three.host), &address, 1, &[])?;
    }

    let at_three = Capture::start(&three.netns, "wan0")?;
    let frame = marked(three.host_mac(), two.host_mac(), "from spoke to spoke");
    capture::send(&two.host, "eth0", &[&frame])?;
    wait::until("the frame comes out of the hub", wait::SOON, || Ok(!seen(&at_three, &frame).is_empty()))?;
    // One hop less than the spoke gave it, and the hub's own address.
    assert_eq!(seen(&at_three, &frame), [(63, spokes.layout.remote(3, 1))]);

    hub.daemon.mgre(&["segment", "set", SEGMENT, "--hub=false"])?;
    let before = hub.drops("no_target")?;
    assert!(traffic::cut_off(&two.host, &three.host_ip())?, "a hub no more");
    assert!(hub.drops("no_target")? > before);
    // Superframes from IPv6 to IPv4 are cut on the way.
    if spokes.layout.family == Family::Mixed { Ok(()) } else { books.check(spokes) }
}

#[test]
fn a_hub_floods_to_all_but_the_sender() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = star(true, Family::V4)?;
    let (hub, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    let captures = [
        Capture::start(&hub.host, "eth0")?,
        Capture::start(&two.host, "eth0")?,
        Capture::start(&three.host, "eth0")?,
    ];
    let at_wan = Capture::start(&three.netns, "wan0")?;
    for (text, destination) in [("to all", BROADCAST), ("to nobody known", UNKNOWN)] {
        let frame = marked(destination, two.host_mac(), text);
        capture::send(&two.host, "eth0", &[&frame])?;
        let arrived = |capture: &Capture| capture.count(|seen| !seen.outgoing && seen.bytes == frame);
        wait::until(text, wait::SOON, || Ok(arrived(&captures[0]) > 0 && arrived(&captures[2]) > 0))?;
        sleep(wait::quiet(QUIET));
        assert_eq!(captures.each_ref().map(arrived), [1, 0, 1], "{text}");
        assert_eq!(seen(&at_wan, &frame), [(32, spokes.layout.endpoint(1))], "{text}");
    }
    Ok(())
}

#[test]
fn xdp_takes_known_unicast_from_spoke_to_spoke() -> Result<()> {
    const PINGS: u64 = 50;
    if skipped_without_redirects() {
        return Ok(());
    }
    let spokes = star(true, Family::V4)?;
    let (hub, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    for spoke in spokes.iter() {
        spoke.host.run(&["ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off"])?;
        spokes.core.run(&["ethtool", "-K", &format!("s{}", spoke.number), "tx", "off", "gro", "on"])?;
    }
    hub.daemon.mgre(&["underlay", "del", "wan0", "--force"])?;
    hub.daemon.mgre(&["underlay", "add", "wan0", "--local", "10.0.0.1", "--mode", "native"])?;
    hub.wait_up()?;
    wait::until("frames take the short way through the hub", wait::SOON, || {
        let before = hub.netns.xdp_redirected("wan0")?;
        traffic::reaches(&two.host, &three.host_ip())?;
        Ok(hub.netns.xdp_redirected("wan0")? > before)
    })?;
    let peer = |name: &str| -> Result<(u64, u64)> {
        let peer = hub.peer(name)?;
        let number = |key: &str| peer[key].as_u64().unwrap_or_default();
        Ok((number("rx_packets"), number("tx_packets")))
    };
    let before = (peer("spoke2")?, peer("spoke3")?, hub.netns.xdp_redirected("wan0")?);
    let count = PINGS.to_string();
    let pings = traffic::ping(&two.host, &["-q", "-c", &count, "-i", "0.01", "-W", "5", &three.host_ip()])?;
    assert!(pings.all_came_back(), "{pings:?}");
    let after = (peer("spoke2")?, peer("spoke3")?, hub.netns.xdp_redirected("wan0")?);
    assert!(after.2 - before.2 >= 2 * PINGS, "{before:?} {after:?}");
    // Each ping and each answer came in once and went out once, and little else.
    for (was, is) in
        [(before.0.0, after.0.0), (before.0.1, after.0.1), (before.1.0, after.1.0), (before.1.1, after.1.1)]
    {
        assert!((PINGS..PINGS + 10).contains(&(is - was)), "{before:?} {after:?}");
    }
    traffic::iperf3_at_least(1e7, (&two.host, &three.host), &three.host_ip(), 1, &[])?;
    Ok(())
}

/// Each peer's packets are as it was told, whatever those of the other one are.
#[test]
fn peers_of_a_hub_may_have_options_of_their_own() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = star(true, Family::Mixed)?;
    let (hub, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    let all: [&[&str]; 3] =
        [&["--csum"], &["--csum", "--seq"], &["--csum=false", "--seq=false", "--encap", "gre-udp"]];
    for options in all {
        hub.daemon.mgre(&[&["peer", "set", "spoke2"], options].concat())?;
        two.daemon.mgre(&[&["peer", "set", "spoke1"], options].concat())?;
        let reach = || -> Result<()> {
            for (from, to) in [(two, three), (three, two), (two, hub)] {
                assert!(traffic::reaches(&from.host, &to.host_ip())?, "{} to {}", from.number, to.number);
            }
            traffic::iperf3_at_least(1e7, (&two.host, &three.host), &three.host_ip(), 1, &[])?;
            traffic::iperf3_at_least(1e7, (&two.host, &three.host), &three.host_ip(), 1, &["--reverse"])?;
            Ok(())
        };
        reach().with_context(|| format!("{options:?}"))?;
        for spoke in spokes.iter() {
            for reason in ["checksum", "malformed", "internal", "headroom"] {
                assert_eq!(spoke.drops(reason)?, 0, "{reason} at spoke {}, {options:?}", spoke.number);
            }
        }
    }
    Ok(())
}

/// Three hubs, each of which believes that an address is behind the next one: a frame for it
/// goes round until its hops are used up, and that is counted.
#[test]
fn hubs_that_send_a_frame_round_end() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Switched)?;
    let address = mac_text(UNKNOWN);
    for hub in spokes.iter() {
        let next = format!("spoke{}", hub.number % 3 + 1);
        hub.daemon.mgre(&["segment", "set", SEGMENT, "--hub"])?;
        hub.daemon.mgre(&["fdb", "add", SEGMENT, &address, "--peer", &next])?;
    }
    let at_wan = Capture::start(&spokes.spoke(2).netns, "wan0")?;
    let frame = marked(UNKNOWN, spokes.spoke(1).host_mac(), "round and round");
    capture::send(&spokes.spoke(1).host, "eth0", &[&frame])?;
    let expired = || spokes.iter().map(|hub| hub.drops("ttl_expired")).sum::<Result<u64>>();
    wait::until("its hops are used up", wait::SOON, || Ok(expired()? > 0))?;
    sleep(wait::quiet(QUIET));
    assert_eq!(expired()?, 1);
    // It passed here every third time, coming and going.
    let passed = seen(&at_wan, &frame);
    let hops: Vec<u8> = passed.iter().map(|(hops, _)| *hops).collect();
    assert_eq!((hops.first(), hops.last()), (Some(&64), Some(&1)), "{hops:?}");
    assert_eq!(hops.len(), 22 + 21, "{hops:?}");
    Ok(())
}

/// Three hubs that all know each other: every copy makes another one, with half its hops.
#[test]
fn a_ring_of_hubs_ends() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Switched)?;
    for spoke in spokes.iter() {
        spoke.daemon.mgre(&["segment", "set", SEGMENT, "--hub"])?;
    }
    let at_wan = Capture::start(&spokes.spoke(3).netns, "wan0")?;
    let frame = marked(BROADCAST, spokes.spoke(1).host_mac(), "round and round");
    capture::send(&spokes.spoke(1).host, "eth0", &[&frame])?;
    wait::until("a hub has it", wait::SOON, || Ok(!seen(&at_wan, &frame).is_empty()))?;
    sleep(wait::quiet(QUIET));
    let mut hops: Vec<u8> = seen(&at_wan, &frame).into_iter().map(|(hops, _)| hops).collect();
    hops.sort_unstable();
    hops.dedup();
    assert_eq!(hops.last(), Some(&64));
    assert!(hops.iter().all(|hops| hops.is_power_of_two()), "{hops:?}");
    // Six generations, two packets each, seen coming and going.
    let all = seen(&at_wan, &frame).len();
    assert!(all <= 16, "{all} packets");
    sleep(wait::quiet(QUIET));
    assert_eq!(seen(&at_wan, &frame).len(), all, "it has not ended");
    Ok(())
}
