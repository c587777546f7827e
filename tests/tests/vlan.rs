//! VLAN tags: inside they are left alone, and a port may take one of them for a segment of its own.

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::{self, Capture},
    gre::{Gre, Outer},
    packet::{self, BROADCAST, marked},
    skip::skipped,
    topology::{Family, Layout, SEGMENT, Spoke, Spokes, Underlay},
    traffic, wait,
};

const TCP_LEAST: f64 = 50e6;

fn build(family: Family) -> Result<Spokes> {
    Layout { family, ..Layout::new(2, Underlay::Switched) }.build()
}

/// A VLAN interface of a host, with an address in a network of its own.
fn vlan(spoke: &Spoke, parent: &str, name: &str, kind: &str, mtu: u32, network: u8) -> Result<()> {
    spoke.host.ip(&format!(
        "link add link {parent} name {name} mtu {mtu} type vlan {kind}\n\
         addr add 10.{network}.0.{}/24 dev {name}\nlink set {name} up",
        spoke.number
    ))
}

#[test]
fn tags_inside_go_through_untouched() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in [Family::V4, Family::V6] {
        let spokes = build(family)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        let mtu = spokes.layout.mtu();
        for spoke in [one, two] {
            vlan(spoke, "eth0", "q", "proto 802.1Q id 100", mtu - 4, 81)?;
            vlan(spoke, "eth0", "ad", "proto 802.1ad id 200", mtu - 4, 82)?;
            vlan(spoke, "ad", "both", "proto 802.1Q id 300", mtu - 8, 83)?;
        }
        for (network, tags) in [
            (81, &[0x81, 0x00, 0x00, 100][..]),
            (82, &[0x88, 0xa8, 0x00, 200]),
            (83, &[0x88, 0xa8, 0x00, 200, 0x81, 0x00, 0x01, 0x2c]),
        ] {
            let address = format!("10.{network}.0.2");
            let at_wan = Capture::start(&one.netns, "wan0")?;
            assert!(traffic::reaches(&one.host, &address)?, "{address}");
            // Nothing of it is lost, neither in the frames that are flooded (ARP) nor in those to one host (ICMP).
            let inner: Vec<_> = at_wan.packets().into_iter().map(|(_, gre)| gre.inner).collect();
            let tagged = inner.iter().filter(|frame| frame[12..].starts_with(tags)).count();
            assert!(tagged >= 4, "{tagged} of {} to {address}", inner.len());
            drop(at_wan);
            for arguments in [&[][..], &["--reverse"]] {
                traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &address, 1, arguments)
                    .with_context(|| format!("{address} {arguments:?}, {family:?}"))?;
            }
        }
        for reason in ["too_big", "headroom", "malformed", "internal"] {
            assert_eq!((one.drops(reason)?, two.drops(reason)?), (0, 0), "{reason}");
        }
    }
    Ok(())
}

/// Two spokes with three segments. The first spoke's host is in all of them by one cable: in one without a tag, in two by
/// VLAN. The other spoke has a port of its own for each.
fn trunk(family: Family) -> Result<Spokes> {
    let spokes = build(family)?;
    for (spoke, other) in [(spokes.spoke(1), "spoke2"), (spokes.spoke(2), "spoke1")] {
        spoke.daemon.mgre(&["segment", "add", "red", "--key", "10"])?;
        spoke.daemon.mgre(&["segment", "add", "blue", "--key", "20"])?;
        spoke.daemon.mgre(&["peer", "set", other, "--segment", SEGMENT, "red", "blue"])?;
    }
    let one = spokes.spoke(1);
    one.daemon.mgre(&["port", "add", "red", "lan0", "--vlan", "10"])?;
    one.daemon.mgre(&["port", "add", "blue", "lan0", "--vlan", "20"])?;
    vlan(one, "eth0", "red", "id 10", spokes.layout.mtu(), 91)?;
    vlan(one, "eth0", "blue", "id 20", spokes.layout.mtu(), 92)?;
    spokes.wait_up()?;
    Ok(spokes)
}

#[test]
fn a_tag_of_a_port_is_a_segment() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in [Family::V4, Family::V6] {
        let spokes = trunk(family)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        let red = two.add_host("red0", [2, 0, 0, 0, 2, 0x31])?;
        let blue = two.add_host("blue0", [2, 0, 0, 0, 2, 0x32])?;
        two.daemon.mgre(&["port", "add", "red", "red0"])?;
        two.daemon.mgre(&["port", "add", "blue", "blue0"])?;
        let mtu = spokes.layout.mtu();
        red.ip(&format!("link set eth0 mtu {mtu}\naddr add 10.91.0.2/24 dev eth0"))?;
        blue.ip(&format!("link set eth0 mtu {mtu}\naddr add 10.92.0.2/24 dev eth0"))?;

        let at_wan = Capture::start(&one.netns, "wan0")?;
        for address in ["10.91.0.2", "10.92.0.2", &two.host_ip()] {
            assert!(traffic::reaches(&one.host, address)?, "{address}");
        }
        assert!(traffic::reaches(&red, "10.91.0.1")? && traffic::reaches(&blue, "10.92.0.1")?);
        // The tag ends at the port.
        assert!(at_wan.packets().iter().all(|(_, gre)| gre.inner[12..14] != [0x81, 0x00]));
        drop(at_wan);
        for (host, address) in [(&red, "10.91.0.2"), (&blue, "10.92.0.2"), (&two.host, &two.host_ip())] {
            for arguments in [&[][..], &["--reverse"]] {
                traffic::iperf3_at_least(TCP_LEAST, (&one.host, host), address, 1, arguments)
                    .with_context(|| format!("{address} {arguments:?}, {family:?}"))?;
            }
        }
        let ports: Vec<_> = one
            .daemon
            .list(&["fdb", "show", "--segment", "red"])?
            .into_iter()
            .filter(|entry| entry["mac"] == "02:00:00:00:01:10")
            .map(|entry| entry["port"].clone())
            .collect();
        assert_eq!(ports, ["lan0.10"]);
        for reason in ["too_big", "headroom", "malformed", "internal"] {
            assert_eq!((one.drops(reason)?, two.drops(reason)?), (0, 0), "{reason}");
        }
    }
    Ok(())
}

#[test]
fn segments_of_one_cable_stay_apart() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = trunk(Family::V4)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let at_one = Capture::start(&one.host, "eth0")?;
    let at_two = Capture::start(&two.host, "eth0")?;
    let at_wan = Capture::start(&one.netns, "wan0")?;
    let frame = |text: &str| marked(BROADCAST, one.host_mac(), text);
    for (text, vlan, key) in [("plain", None, 7), ("in red", Some(10), 10), ("in blue", Some(20), 20)] {
        let inner = frame(text);
        let sent = vlan.map_or_else(|| inner.clone(), |vlan| packet::tagged(&inner, vlan));
        capture::send(&one.host, "eth0", &[&sent])?;
        let packet = at_wan.wait_for(text, wait::SOON, |seen| {
            Gre::parse(&seen.bytes).is_some_and(|gre| gre.inner == inner)
        })?;
        assert_eq!(Gre::read(&packet.bytes)?.key, Some(key));
        assert_eq!(at_wan.carrying(true, &inner).len(), 1);
    }
    // Only what is in its segment came to the other host, and nothing came back or crossed over at the first.
    at_two.wait_arrival("the plain one", &frame("plain"))?;
    assert_eq!((at_two.arrived(&frame("in red")), at_two.arrived(&frame("in blue"))), (0, 0));
    assert_eq!(at_one.count(|seen| !seen.outgoing && seen.bytes.ends_with(&frame("in red")[14..])), 0);
    // What comes for a port by VLAN has its tag.
    let to_red = marked(BROADCAST, [2, 0, 0, 0, 2, 0x31], "from afar");
    let outer = Outer { key: Some(10), ..spokes.outer(2, 1) };
    spokes.send_to(1, &[outer.frame(&to_red)?])?;
    at_one.wait_arrival("a frame with the tag of its port", &packet::tagged(&to_red, 10))?;
    assert_eq!(at_one.arrived(&to_red), 0);

    // A port by VLAN goes alone.
    one.daemon.mgre(&["port", "del", "lan0.10"])?;
    let ports = one.daemon.list(&["port", "show"])?;
    assert_eq!(ports.len(), 2, "{ports:?}");
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    let gone = marked(BROADCAST, [2, 0, 0, 0, 2, 0x31], "too late");
    let outer = Outer { key: Some(10), ..spokes.outer(2, 1) };
    spokes.send_to(1, &[outer.frame(&gone)?])?;
    let blue = Outer { key: Some(20), ..spokes.outer(2, 1) };
    spokes.send_to(1, &[blue.frame(&gone)?])?;
    at_one.wait_arrival("the other port by VLAN", &packet::tagged(&gone, 20))?;
    assert_eq!(at_one.arrived(&packet::tagged(&gone, 10)), 0);
    Ok(())
}

#[test]
fn what_cannot_be_is_refused() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = trunk(Family::V4)?;
    let daemon = &spokes.spoke(1).daemon;
    let before = daemon.mgre(&["export"])?;
    let cases: [(&[&str], &str); 4] = [
        (&["port", "add", "blue", "lan0", "--vlan", "10"], "lan0.10"),
        (&["port", "add", "red", "wan0", "--vlan", "10"], "underlay"),
        (&["port", "add", "red", "lan0", "--vlan", "0"], "4094"),
        (&["port", "add", "red", "lan0", "--vlan", "4095"], "4094"),
    ];
    for (words, says) in cases {
        let refused = daemon.outcome(words)?;
        assert!(matches!(refused.code, Some(1 | 2)), "{words:?}: {refused:?}");
        assert!(refused.stderr.contains(says), "{words:?}: {refused:?}");
        assert_eq!(daemon.mgre(&["export"])?, before, "{words:?} changes something");
    }
    assert!(before.contains("vlan = 10"), "{before}");
    Ok(())
}
