//! Frames go where they should, and nowhere else.

use std::{thread::sleep, time::Duration};

use anyhow::Result;
use mgre_tests::{
    capture::{self, Capture, Frame},
    conservation,
    metrics::Metrics,
    netns::Netns,
    packet::{self, BROADCAST, Gre, MULTICAST, Mac, UNKNOWN, mac_text, marked},
    skip::skipped,
    topology::{KEY, SEGMENT, Spokes, Underlay},
    traffic, wait,
};

/// How long a frame that must not come is waited for.
const QUIET: Duration = Duration::from_millis(200);

/// How often exactly this frame came in.
fn arrived(capture: &Capture, frame: &[u8]) -> usize {
    capture.arrived(frame)
}

/// Whether a packet of the underlay carries this frame.
fn carries(packet: &Frame, frame: &[u8]) -> bool {
    Gre::parse(&packet.bytes).is_some_and(|gre| gre.inner == frame)
}

/// Waits until the frame has come.
fn wait_arrival(capture: &Capture, frame: &[u8], whom: &str) -> Result<()> {
    capture.wait_arrival(&format!("a frame arrives at {whom}"), frame)
}

#[test]
fn every_host_reaches_every_other() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Routed)?;
    for from in spokes.iter() {
        for to in spokes.iter() {
            assert!(traffic::reaches(&from.host, &to.host_ip())?, "{} to {}", from.number, to.number);
            assert!(traffic::reaches(&from.host, &to.host_ipv6())?, "{} to {}, IPv6", from.number, to.number);
        }
    }
    conservation::check(&spokes)
}

#[test]
fn known_unicast_goes_to_its_spoke_alone() -> Result<()> {
    const FRAMES: usize = 200;
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Switched)?;
    let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    one.wait_fdb_peer(two.host_mac(), "spoke2")?;
    two.wait_fdb_port(two.host_mac(), "lan0")?;

    let at_two = Capture::start(&two.host, "eth0")?;
    let at_wan = Capture::start(&one.netns, "wan0")?;
    let bystander = Capture::start(&three.netns, "wan0")?;
    let frame = marked(two.host_mac(), one.host_mac(), "for host 2 alone");
    capture::send(&one.host, "eth0", &vec![&frame; FRAMES])?;
    let all = || arrived(&at_two, &frame) == FRAMES;
    wait::until("all frames arrive", wait::SOON, || Ok(all()))?;
    sleep(wait::quiet(QUIET));

    assert_eq!(arrived(&at_two, &frame), FRAMES);
    assert_eq!(at_wan.count(|packet| carries(packet, &frame)), FRAMES);
    assert_eq!(bystander.count(|packet| carries(packet, &frame)), 0);
    for packet in bystander.stop() {
        let stray = Gre::parse(&packet.bytes).filter(Gre::is_to_station);
        assert_eq!(stray.and_then(|gre| gre.inner_destination()).map(mac_text), None, "at spoke 3");
    }
    conservation::check(&spokes)
}

#[test]
fn flooded_frames_reach_each_peer_exactly_once() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(4, Underlay::Routed)?;
    let one = spokes.spoke(1);
    let hosts = spokes.iter().map(|spoke| Capture::start(&spoke.host, "eth0")).collect::<Result<Vec<_>>>()?;
    let wans = spokes.iter().map(|spoke| Capture::start(&spoke.netns, "wan0")).collect::<Result<Vec<_>>>()?;
    let frames = [BROADCAST, MULTICAST, UNKNOWN].map(|to| marked(to, one.host_mac(), "to all"));
    capture::send(&one.host, "eth0", &frames)?;
    for (capture, number) in hosts.iter().zip(1_u8..).skip(1) {
        for frame in &frames {
            wait_arrival(capture, frame, &format!("host {number}"))?;
        }
    }
    sleep(wait::quiet(QUIET));

    for frame in &frames {
        let to = mac_text([frame[0], frame[1], frame[2], frame[3], frame[4], frame[5]]);
        assert_eq!(arrived(&hosts[0], frame), 0, "{to} comes back to its sender");
        assert_eq!(wans[0].count(|packet| packet.outgoing && carries(packet, frame)), 3, "{to}, copies");
        assert_eq!(wans[0].count(|packet| !packet.outgoing && carries(packet, frame)), 0, "{to} comes back");
        for index in 1..4 {
            let number = index + 1;
            assert_eq!(arrived(&hosts[index], frame), 1, "{to} at host {number}");
            let received = wans[index].count(|packet| !packet.outgoing && carries(packet, frame));
            let sent_on = wans[index].count(|packet| packet.outgoing && carries(packet, frame));
            assert_eq!((received, sent_on), (1, 0), "{to} at the underlay of spoke {number}");
        }
    }
    let metrics = Metrics::over_socket(&one.daemon.socket())?;
    let copies = metrics.get("mgre_flood_copies_total", &[("segment", SEGMENT)]);
    assert!(copies >= Some(9.0), "three copies of three frames: {copies:?}");
    conservation::check(&spokes)
}

#[test]
fn ports_of_one_spoke_switch_among_themselves() -> Result<()> {
    const OTHER: Mac = [0x02, 0, 0, 0, 1, 0x21];
    const THIRD: Mac = [0x02, 0, 0, 0, 1, 0x22];
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let other = one.add_host("lan1", OTHER)?;
    let third = one.add_host("lan2", THIRD)?;
    one.daemon.mgre(&["port", "add", SEGMENT, "lan1"])?;
    one.daemon.mgre(&["port", "add", SEGMENT, "lan2"])?;

    let captures = [
        ("host 1", Capture::start(&one.host, "eth0")?),
        ("host 2", Capture::start(&two.host, "eth0")?),
        ("the third", Capture::start(&third, "eth0")?),
    ];
    let at_other = Capture::start(&other, "eth0")?;
    let to_all = marked(BROADCAST, OTHER, "to all");
    capture::send(&other, "eth0", &[&to_all])?;
    for (whom, capture) in &captures {
        wait_arrival(capture, &to_all, whom)?;
    }
    capture::send(&third, "eth0", &[marked(BROADCAST, THIRD, "here I am")])?;
    one.wait_fdb_port(OTHER, "lan1")?;
    one.wait_fdb_port(THIRD, "lan2")?;

    let to_third = marked(THIRD, OTHER, "to the third alone");
    capture::send(&other, "eth0", &[&to_third])?;
    wait_arrival(&captures[2].1, &to_third, "the third")?;
    sleep(wait::quiet(QUIET));
    for (whom, capture) in &captures {
        assert_eq!(arrived(capture, &to_all), 1, "{whom}");
        assert_eq!(arrived(capture, &to_third), usize::from(*whom == "the third"), "{whom}");
    }
    assert_eq!(arrived(&at_other, &to_all), 0, "it came back");
    conservation::check(&spokes)
}

#[test]
fn segments_stay_apart_and_may_hold_the_same_address() -> Result<()> {
    const TWIN: Mac = [0x02, 0, 0, 0, 0xaa, 0xaa];
    const BLUE_KEY: u32 = 0xffff_ffff;
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    // TWIN is in one segment at spoke 1, and in the other at spoke 2.
    let blue: Vec<Netns> = [one, two]
        .into_iter()
        .map(|spoke| {
            let host = spoke.add_host("blue0", [0x02, 0, 0, 0, spoke.number, 0x31])?;
            let other = if spoke.number == 1 { "spoke2" } else { "spoke1" };
            spoke.daemon.mgre(&["segment", "add", "blue", "--key", &BLUE_KEY.to_string()])?;
            spoke.daemon.mgre(&["port", "add", "blue", "blue0"])?;
            spoke.daemon.mgre(&["peer", "set", other, "--segment", SEGMENT, "blue"])?;
            Ok(host)
        })
        .collect::<Result<_>>()?;
    spokes.wait_up()?;

    let at_lan = Capture::start(&two.host, "eth0")?;
    let at_blue = Capture::start(&blue[1], "eth0")?;
    let at_wan = Capture::start(&one.netns, "wan0")?;
    let in_lan = marked(BROADCAST, TWIN, "in lan");
    let in_blue = marked(BROADCAST, [0x02, 0, 0, 0, 1, 0x31], "in blue");
    let twin_in_blue = marked(BROADCAST, TWIN, "in blue from spoke 2");
    capture::send(&one.host, "eth0", &[&in_lan])?;
    capture::send(&blue[0], "eth0", &[&in_blue])?;
    capture::send(&blue[1], "eth0", &[&twin_in_blue])?;
    wait_arrival(&at_lan, &in_lan, "host 2")?;
    wait_arrival(&at_blue, &in_blue, "the blue host")?;
    sleep(wait::quiet(QUIET));
    assert_eq!(
        (arrived(&at_lan, &in_blue), arrived(&at_blue, &in_lan)),
        (0, 0),
        "a frame changed its segment"
    );

    for (frame, key) in [(&in_lan, KEY), (&in_blue, BLUE_KEY), (&twin_in_blue, BLUE_KEY)] {
        let packet = at_wan.wait_for("the frame on the wire", wait::SOON, |packet| carries(packet, frame))?;
        assert_eq!(Gre::read(&packet.bytes)?.key, Some(key));
    }
    let twins: Vec<_> = one
        .daemon
        .list(&["fdb", "show"])?
        .into_iter()
        .filter(|entry| entry["mac"] == mac_text(TWIN).as_str())
        .map(|entry| (entry["segment"].clone(), entry["port"].clone(), entry["peer"].clone()))
        .collect();
    assert_eq!(twins.len(), 2, "{twins:?}");
    assert!(twins.contains(&("blue".into(), serde_json::Value::Null, "spoke2".into())), "{twins:?}");
    assert!(twins.contains(&(SEGMENT.into(), "lan0".into(), serde_json::Value::Null)), "{twins:?}");
    Ok(())
}

#[test]
fn a_host_that_moves_is_followed() -> Result<()> {
    const ROAMER: Mac = [0x02, 0, 0, 0, 0xaa, 0x01];
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Routed)?;
    let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    let address = "10.77.0.100".parse()?;
    let roamer = one.add_host("vm0", ROAMER)?;
    one.daemon.mgre(&["port", "add", SEGMENT, "vm0"])?;
    roamer.ip("addr add 10.77.0.100/24 dev eth0")?;
    traffic::wait_reachable(&two.host, "10.77.0.100", wait::SOON)?;
    two.wait_fdb_peer(ROAMER, "spoke1")?;
    one.wait_fdb_port(ROAMER, "vm0")?;

    // Its machine leaves the one spoke and shows up at another.
    one.netns.ip("link del vm0")?;
    three.attach(&roamer, "vm0", ROAMER)?;
    three.daemon.mgre(&["port", "add", SEGMENT, "vm0"])?;
    roamer.ip("addr add 10.77.0.100/24 dev eth0")?;
    wait::until("the link is up", wait::SOON, || {
        Ok(three.netns.run(&["ip", "link", "show", "vm0"])?.contains("state UP"))
    })?;
    capture::send(&roamer, "eth0", &[packet::announcement(ROAMER, address)])?;
    let took = traffic::wait_reachable(&two.host, "10.77.0.100", wait::SOON)?;
    assert!(took < wait::patient(Duration::from_secs(3)), "reachable after {took:?}");
    assert!(traffic::reaches(&one.host, "10.77.0.100")?);
    two.wait_fdb_peer(ROAMER, "spoke3")?;
    one.wait_fdb_peer(ROAMER, "spoke3")?;
    three.wait_fdb_port(ROAMER, "vm0")?;
    let moves =
        Metrics::over_socket(&two.daemon.socket())?.get("mgre_fdb_moves_total", &[("segment", SEGMENT)]);
    assert_eq!(moves, Some(1.0));
    // The old spoke still has a port of that name, which is gone.
    let ports = one.daemon.list(&["port", "show"])?;
    let gone = ports.iter().find(|port| port["interface"] == "vm0");
    assert_eq!(gone.map(|port| port["state"].clone()), Some("missing".into()));
    Ok(())
}
