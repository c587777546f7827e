//! VLAN tags: inside they are left alone, and a port may take one of them for a segment of its own.

use anyhow::{Context as _, Result, anyhow};
use mgre_tests::{
    capture::{self, Capture},
    gre::{Gre, Outer},
    netns::{self, Netns},
    packet::{self, BROADCAST, mac_text, marked},
    skip::skipped,
    topology::{Family, Layout, SEGMENT, Spokes, Underlay},
    traffic,
    vlan::{Tag, Tagging},
    wait,
};

const TCP_LEAST: f64 = 50e6;

fn build(family: Family) -> Result<Spokes> {
    Layout { family, ..Layout::new(2, Underlay::Switched) }.build()
}

#[test]
fn tags_inside_go_through_untouched() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in [Family::V4, Family::V6] {
        let spokes = build(family)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        for spoke in [one, two] {
            // Room for the tags, by the routes: a veth takes frames with one tag more than its MTU, and none with two.
            let mtu = spokes.layout.mtu() - 8;
            spoke.host.ip(&format!(
                "route replace 10.77.0.0/24 dev eth0 mtu {mtu}\nroute change fd77::/64 dev eth0 proto kernel metric 256 mtu {mtu}"
            ))?;
        }
        let tags: [(&[Tag], &[u8]); 3] = [
            (&[(0x8100, 0x6064)], &[0x81, 0x00, 0x60, 0x64]),
            (&[(0x88a8, 200)], &[0x88, 0xa8, 0x00, 200]),
            (&[(0x8100, 300), (0x88a8, 200)], &[0x88, 0xa8, 0x00, 200, 0x81, 0x00, 0x01, 0x2c]),
        ];
        for (tags, bytes) in tags {
            let _tagging = [Tagging::new(&one.host, "eth0", tags)?, Tagging::new(&two.host, "eth0", tags)?];
            one.host.ip("neigh flush all")?;
            let at_wan = Capture::start(&one.netns, "wan0")?;
            assert!(traffic::reaches(&one.host, &two.host_ip())?, "{tags:?}");
            // Nothing of it is lost, neither in the frames that are flooded (ARP) nor in those to one host (ICMP).
            let inner: Vec<_> = at_wan.packets().into_iter().map(|(_, gre)| gre.inner).collect();
            let tagged = inner.iter().filter(|frame| frame[12..].starts_with(bytes)).count();
            assert!(tagged >= 4, "{tagged} of {} with {tags:?}", inner.len());
            drop(at_wan);
            for (address, arguments) in [(two.host_ip(), &[][..]), (two.host_ipv6(), &["--reverse"])] {
                traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &address, 1, arguments)
                    .with_context(|| format!("{tags:?}, {address} {arguments:?}, {family:?}"))?;
            }
        }
        for reason in ["too_big", "headroom", "malformed", "internal"] {
            assert_eq!((one.drops(reason)?, two.drops(reason)?), (0, 0), "{reason}");
        }
    }
    Ok(())
}

/// Two spokes with three segments. The first spoke has one port for all of them: one without a tag, two by VLAN. The
/// other spoke has a port of its own for each.
struct Trunk {
    spokes: Spokes,
    /// Behind the other spoke, in the segments red and blue.
    far: [Netns; 2],
    /// Behind the first spoke's one port, beside its host: frames of these two have tags.
    near: [Netns; 2],
    _tagging: [Tagging; 2],
}

const VLANS: [(&str, u16); 2] = [("red", 10), ("blue", 20)];

impl Trunk {
    fn new(family: Family) -> Result<Self> {
        let spokes = build(family)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        for (spoke, other) in [(one, "spoke2"), (two, "spoke1")] {
            for (segment, vlan) in VLANS {
                spoke.daemon.mgre(&["segment", "add", segment, "--key", &vlan.to_string()])?;
            }
            spoke.daemon.mgre(&["peer", "set", other, "--segment", SEGMENT, "red", "blue"])?;
        }
        // The first spoke's host becomes a switch with two more hosts at it.
        one.host.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        one.host.ip(
            "addr flush dev eth0\nlink add br0 address 02:00:00:00:01:10 type bridge mcast_snooping 0\nlink set eth0 master br0\n\
             addr add 10.77.0.1/24 dev br0\nlink set br0 up",
        )?;
        let (mut far, mut near, mut tagging) = (Vec::new(), Vec::new(), Vec::new());
        for (segment, vlan) in VLANS {
            let set = |host: &Netns, number: u8| {
                let mtu = spokes.layout.mtu();
                host.ip(&format!("link set eth0 mtu {mtu}\naddr add 10.{vlan}.0.{number}/24 dev eth0"))
            };
            one.daemon.mgre(&["port", "add", segment, "lan0", "--vlan", &vlan.to_string()])?;
            let mac = |number| [2, 0, 0, 0, number, 0x30 + vlan as u8];
            let host = Netns::new(&format!("near-{segment}"))?;
            netns::ip(&format!(
                "link add {segment} netns {} type veth peer name eth0 address {} netns {}",
                one.host.name(),
                mac_text(mac(1)),
                host.name()
            ))?;
            one.host.ip(&format!("link set {segment} master br0 up"))?;
            // Before it says its first word.
            tagging.push(Tagging::new(&host, "eth0", &[(0x8100, vlan)])?);
            host.ip("link set eth0 up")?;
            set(&host, 1)?;
            near.push(host);

            let host = two.add_host(segment, mac(2))?;
            two.daemon.mgre(&["port", "add", segment, segment])?;
            set(&host, 2)?;
            far.push(host);
        }
        spokes.wait_up()?;
        let pair = |hosts: Vec<Netns>| <[Netns; 2]>::try_from(hosts).map_err(|_| anyhow!("not two hosts"));
        let tagging = <[Tagging; 2]>::try_from(tagging).map_err(|_| anyhow!("not two"))?;
        Ok(Self { far: pair(far)?, near: pair(near)?, _tagging: tagging, spokes })
    }
}

#[test]
fn a_tag_of_a_port_is_a_segment() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in [Family::V4, Family::V6] {
        let trunk = Trunk::new(family)?;
        let (one, two) = (trunk.spokes.spoke(1), trunk.spokes.spoke(2));
        let at_wan = Capture::start(&one.netns, "wan0")?;
        let ways = [
            (&one.host, &two.host, two.host_ip()),
            (&trunk.near[0], &trunk.far[0], "10.10.0.2".to_owned()),
            (&trunk.near[1], &trunk.far[1], "10.20.0.2".to_owned()),
        ];
        for (from, _, address) in &ways {
            assert!(traffic::reaches(from, address)?, "{address}");
        }
        // The tag ends at the port.
        assert!(at_wan.packets().iter().all(|(_, gre)| gre.inner[12..14] != [0x81, 0x00]));
        drop(at_wan);
        for (from, to, address) in &ways {
            for arguments in [&[][..], &["--reverse"]] {
                traffic::iperf3_at_least(TCP_LEAST, (from, to), address, 1, arguments)
                    .with_context(|| format!("{address} {arguments:?}, {family:?}"))?;
            }
        }
        one.wait_fdb_port([2, 0, 0, 0, 1, 0x30 + 10], "lan0.10")?;
        one.wait_fdb_port([2, 0, 0, 0, 1, 0x30 + 20], "lan0.20")?;
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
    let trunk = Trunk::new(Family::V4)?;
    let spokes = &trunk.spokes;
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
    let trunk = Trunk::new(Family::V4)?;
    let daemon = &trunk.spokes.spoke(1).daemon;
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
