//! An underlay of IPv6, and one of both families: as good as IPv4.

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::{self, Capture},
    gre::{GRE_KEY_PRESENT, Gre, Outer, TRANSPARENT_ETHERNET, v6},
    packet::{self, BROADCAST, Datagram, MULTICAST, UNKNOWN, marked},
    skip::{skipped, skipped_without_redirects},
    topology::{Family, KEY, Layout, SEGMENT, Spokes, Underlay},
    traffic, wait,
};

/// Far below what any machine does, far above what goes through where offloads do not work together.
const TCP_LEAST: f64 = 50e6;

fn build(spokes: u8, underlay: Underlay, family: Family) -> Result<Spokes> {
    Layout { family, ..Layout::new(spokes, underlay) }.build()
}

fn all_reach_each_other(spokes: &Spokes) -> Result<()> {
    for from in spokes.iter() {
        for to in spokes.iter().filter(|to| to.number != from.number) {
            for address in [to.host_ip(), to.host_ipv6()] {
                assert!(traffic::reaches(&from.host, &address)?, "{} to {address}", from.number);
            }
        }
    }
    Ok(())
}

/// Frames to all, to some and to nobody known come once to each other host, each in one packet for each peer.
fn floods_reach_each_once(spokes: &Spokes) -> Result<()> {
    let one = spokes.spoke(1);
    let hosts = spokes.iter().map(|spoke| Capture::start(&spoke.host, "eth0")).collect::<Result<Vec<_>>>()?;
    let at_wan = Capture::start(&one.netns, "wan0")?;
    for to in [BROADCAST, MULTICAST, UNKNOWN] {
        let frame = marked(to, one.host_mac(), "to all");
        capture::send(&one.host, "eth0", &[&frame])?;
        for host in &hosts[1..] {
            host.wait_arrival("a flooded frame", &frame)?;
        }
        let counts: Vec<usize> = hosts.iter().map(|host| host.arrived(&frame)).collect();
        assert_eq!(counts, [0, 1, 1]);
        let mut sent: Vec<_> =
            at_wan.carrying(true, &frame).into_iter().map(|gre| (gre.source, gre.destination)).collect();
        sent.sort();
        let mut wanted: Vec<_> =
            [2, 3].map(|other| (spokes.layout.remote(other, 1), spokes.layout.remote(1, other))).to_vec();
        wanted.sort();
        assert_eq!(sent, wanted);
    }
    Ok(())
}

#[test]
fn every_host_reaches_every_other() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for underlay in [Underlay::Switched, Underlay::Routed] {
        let spokes = build(3, underlay, Family::V6)?;
        all_reach_each_other(&spokes)?;
        floods_reach_each_once(&spokes)?;
        for spoke in spokes.iter() {
            assert_eq!(spoke.drops("unknown_endpoint")? + spoke.drops("internal")?, 0);
        }
    }
    Ok(())
}

#[test]
fn a_segment_may_have_peers_of_both_families() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for underlay in [Underlay::Switched, Underlay::Routed] {
        let spokes = build(3, underlay, Family::Mixed)?;
        let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
        all_reach_each_other(&spokes)?;
        floods_reach_each_once(&spokes)?;
        assert_eq!((&one.peer("spoke2")?["mtu"], &one.peer("spoke3")?["mtu"]), (&1458.into(), &1438.into()));
        // One row for each of an interface's two addresses.
        let locals: Vec<_> = one.daemon.list(&["underlay", "show"])?;
        assert_eq!(locals.len(), 2, "{locals:?}");
        for to in [two, three] {
            traffic::iperf3_at_least(TCP_LEAST, (&one.host, &to.host), &to.host_ip(), 1, &[])?;
        }
        // Superframes that are flooded, to one peer over IPv4 and to the other over IPv6.
        one.daemon.mgre(&["fdb", "flush"])?;
        traffic::iperf3_at_least(TCP_LEAST, (&three.host, &one.host), &one.host_ip(), 1, &[])?;
    }
    Ok(())
}

#[test]
fn outer_headers_are_as_specified() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(2, Underlay::Routed, Family::V6)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert_eq!(one.peer("spoke2")?["mtu"], 1438);
    one.daemon.mgre(&["peer", "set", "spoke2", "--ttl", "9", "--tos", "0xb8"])?;
    let at_wan = Capture::start(&one.netns, "wan0")?;
    for address in [two.host_ip(), two.host_ipv6()] {
        assert!(traffic::reaches(&one.host, &address)?);
    }
    let (mut there, mut back) = (0, 0);
    for (frame, gre) in at_wan.packets() {
        let ends = [spokes.layout.endpoint(1), spokes.layout.endpoint(2)];
        if frame.outgoing {
            there += 1;
            assert_eq!(([gre.source, gre.destination], gre.ttl, gre.tos), (ends, 9, 0xb8));
            assert_eq!((gre.outer_source, gre.outer_destination), (one.wan_mac(), one.core_mac()));
        } else {
            back += 1;
            assert_eq!(([gre.destination, gre.source], gre.ttl, gre.tos), (ends, 63, 0));
        }
        assert_eq!((gre.flags, gre.protocol, gre.key), (GRE_KEY_PRESENT, TRANSPARENT_ETHERNET, Some(KEY)));
        assert_eq!(usize::from(gre.total_length), 40 + 8 + gre.inner.len());
        assert_eq!(frame.bytes.len(), 14 + usize::from(gre.total_length));
        // Version 6 and a flow label: what the label says is up to us, and nothing of the class is lost in it.
        assert_eq!(frame.bytes[14] >> 4, 6);
    }
    assert!(there >= 4 && back >= 4, "{there} there and {back} back");
    Ok(())
}

#[test]
fn tcp_with_offloads_and_without() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(2, Underlay::Switched, Family::V6)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    for offloads in ["on", "off"] {
        for spoke in [one, two] {
            let words = ["ethtool", "-K", "eth0", "tso", offloads, "gso", offloads, "gro", offloads];
            spoke.host.run(&words)?;
        }
        for address in [two.host_ip(), two.host_ipv6()] {
            for arguments in [&[][..], &["--reverse"]] {
                traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &address, 1, arguments)
                    .with_context(|| format!("{address} {arguments:?}, offloads {offloads}"))?;
            }
        }
    }
    for reason in ["too_big", "headroom", "checksum", "malformed", "internal"] {
        assert_eq!((one.drops(reason)?, two.drops(reason)?), (0, 0), "{reason}");
    }
    Ok(())
}

#[test]
fn superframes_are_cut_to_fit() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(2, Underlay::Switched, Family::V6)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    one.netns.run(&["ethtool", "-K", "wan0", "tso", "off", "gso", "off", "tx", "off"])?;
    for address in [two.host_ip(), two.host_ipv6()] {
        let at_core = Capture::start_where(&spokes.core, "s1", |frame| Gre::parse(frame).is_some())?;
        let arguments = ["--bitrate", "100M"];
        traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &address, 1, &arguments)?;
        let mut full = 0;
        for frame in at_core.stop().iter().filter(|frame| !frame.outgoing) {
            let gre = Gre::read(&frame.bytes)?;
            assert!(frame.bytes.len() <= 1514, "{} bytes on the wire", frame.bytes.len());
            assert_eq!(usize::from(gre.total_length), frame.bytes.len() - 14);
            assert!(packet::checksums_ok(&gre.inner)?, "{:02x?}", gre.inner);
            full += usize::from(frame.bytes.len() == 1514);
        }
        assert!(full > 1_000, "{full} full packets to {address}");
    }
    Ok(())
}

#[test]
fn frames_of_every_type_arrive_unchanged() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(2, Underlay::Switched, Family::V6)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let (from, to) = (one.host_mac(), two.host_mac());
    let bytes: Vec<u8> = (0..1438).map(|index: u32| (index % 251) as u8).collect();
    let v4 = Datagram { length: 400, ..Datagram::new(one.host_end(true), two.host_end(true)) }.frame()?;
    let v6 = Datagram { length: 1438, ..Datagram::new(one.host_end(false), two.host_end(false)) }.frame()?;
    let frames = [
        ("ARP", packet::announcement(from, one.host_ipv4())),
        ("the largest", packet::frame(to, from, packet::ETHERTYPE_EXPERIMENT, &bytes)),
        ("the shortest", packet::frame(to, from, packet::ETHERTYPE_EXPERIMENT, &bytes[..46])),
        ("MPLS", packet::frame(to, from, 0x8847, &bytes[..99])),
        ("IPv4", v4.clone()),
        ("IPv6", v6),
        ("802.1Q", packet::tagged(&v4, 100)),
        ("IPv4 that is none", packet::frame(to, from, 0x0800, &bytes[..60])),
        ("IPv6 that is none", packet::frame(to, from, 0x86dd, &bytes[..60])),
    ];
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    let at_two = Capture::start(&two.host, "eth0")?;
    for (what, frame) in &frames {
        capture::send(&one.host, "eth0", &[frame])?;
        at_two.wait_arrival(what, frame)?;
    }
    let too_long = packet::frame(to, from, packet::ETHERTYPE_EXPERIMENT, &[bytes, vec![0]].concat());
    one.host.ip("link set eth0 mtu 1500")?;
    capture::send(&one.host, "eth0", &[&too_long])?;
    one.wait_drops("too_big", 1)
}

#[test]
fn strangers_are_not_let_in() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(2, Underlay::Switched, Family::V6)?;
    let two = spokes.spoke(2);
    let peer = spokes.outer(1, 2);
    let with = |change: &dyn Fn(&mut Outer)| {
        let mut outer = peer.clone();
        change(&mut outer);
        outer
    };
    let inner = marked(BROADCAST, UNKNOWN, "from a stranger");
    let cases = [
        ("unknown_endpoint", with(&|outer| outer.source = v6(0, 200))),
        ("key_mismatch", with(&|outer| outer.key = Some(KEY + 1))),
        ("key_mismatch", with(&|outer| outer.key = None)),
        ("bad_version", with(&|outer| outer.flags = 2)),
        ("routing_present", with(&|outer| outer.flags = 0x4000)),
        ("reserved_bits", with(&|outer| outer.flags = 0x0400)),
        ("unknown_protocol", with(&|outer| outer.protocol = 0x8847)),
    ];
    let at_two = Capture::start(&two.host, "eth0")?;
    for (reason, outer) in &cases {
        let before = two.drops(reason)?;
        spokes.send_to(2, &[outer.frame(&inner)?])?;
        two.wait_drops(reason, before + 1)?;
    }
    let before = two.drops("malformed")?;
    spokes.send_to(2, &[peer.frame(&inner[..13])?])?;
    two.wait_drops("malformed", before + 1)?;
    assert_eq!(at_two.arrived(&inner), 0);
    assert_eq!(two.fdb(UNKNOWN)?, None, "nothing is learned from them");
    // The same in proper form, and with bits that are to be ignored (RFC 2784 2.3).
    for outer in [peer.clone(), with(&|outer| outer.flags = 0x03f8), with(&|outer| outer.sequence = Some(9))]
    {
        let before = at_two.arrived(&inner);
        spokes.send_to(2, &[outer.frame(&inner)?])?;
        wait::until("the frame arrives", wait::SOON, || Ok(at_two.arrived(&inner) == before + 1))?;
    }
    Ok(())
}

#[test]
fn the_underlay_may_change() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(2, Underlay::Routed, Family::V6)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    one.netns.ip("link set wan0 mtu 1400")?;
    wait::until("the peer's MTU is less", wait::SOON, || Ok(one.peer("spoke2")?["mtu"] == 1338))?;
    one.netns.ip("link set wan0 mtu 1500")?;
    wait::until("the peer's MTU is more", wait::SOON, || Ok(one.peer("spoke2")?["mtu"] == 1438))?;
    // The router gets another MAC address, and says so.
    spokes.core.sysctl("ipv6/conf/s1/ndisc_notify", "1")?;
    spokes.core.ip("link set s1 address 02:00:00:00:01:fd")?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    // It goes away and comes back.
    spokes.core.ip("link set s1 down")?;
    wait::until("the peer is not up", wait::SOON, || Ok(one.peer("spoke2")?["state"] != "up"))?;
    spokes.core.ip("link set s1 up\naddr replace fd00:0:0:1::fe/64 dev s1 nodad")?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    one.wait_up()
}

#[test]
fn families_come_and_go() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(2, Underlay::Switched, Family::Mixed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let refused = one.daemon.outcome(&["peer", "add", "x", "fe80::1", "--segment", SEGMENT])?;
    assert_eq!((refused.code, refused.stderr.lines().count()), (Some(1), 1), "{refused:?}");
    assert!(refused.stderr.contains("link-local"), "{refused:?}");
    let local = spokes.layout.locals(1)[1].to_string();
    one.daemon.mgre(&["underlay", "del", "wan0", "--local", &local, "--force"])?;
    assert_eq!(one.peer("spoke2")?["state"], "down", "no underlay of its family");
    assert_eq!(one.daemon.list(&["underlay", "show"])?.len(), 1);
    assert!(traffic::cut_off(&one.host, &two.host_ip())?);
    one.daemon.mgre(&["underlay", "add", "wan0", "--local", &local])?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    let text = one.daemon.mgre(&["export"])?;
    assert!(text.contains(&local) && text.contains("10.0.0.1"), "{text}");
    Ok(())
}

#[test]
fn known_unicast_takes_the_short_way() -> Result<()> {
    const PINGS: u64 = 50;
    if skipped_without_redirects() {
        return Ok(());
    }
    let spokes = build(2, Underlay::Switched, Family::V6)?;
    for spoke in spokes.iter() {
        spoke.host.run(&["ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off", "gro", "on"])?;
        spokes.core.run(&["ethtool", "-K", &format!("s{}", spoke.number), "tx", "off", "gro", "on"])?;
        let local = spokes.layout.endpoint(spoke.number).to_string();
        for arguments in [
            &["underlay", "del", "wan0", "--force"] as &[&str],
            &["underlay", "add", "wan0", "--local", &local, "--mode", "native"],
            &["port", "del", "lan0"],
            &["port", "add", SEGMENT, "lan0", "--mode", "native"],
        ] {
            spoke.daemon.mgre(arguments)?;
        }
    }
    spokes.wait_up()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    wait::until("frames take the short way to the port", wait::SOON, || {
        let before = two.netns.xdp_redirected("wan0")?;
        traffic::reaches(&one.host, &two.host_ip())?;
        Ok(two.netns.xdp_redirected("wan0")? > before)
    })?;
    let before = (one.netns.xdp_redirected("lan0")?, two.netns.xdp_redirected("wan0")?);
    let count = PINGS.to_string();
    let pings = traffic::ping(&one.host, &["-q", "-c", &count, "-i", "0.01", "-W", "5", &two.host_ip()])?;
    assert!(pings.all_came_back(), "{pings:?}");
    assert!(one.netns.xdp_redirected("lan0")? >= before.0 + PINGS);
    assert!(two.netns.xdp_redirected("wan0")? >= before.1 + PINGS);
    traffic::iperf3_at_least(1e6, (&one.host, &two.host), &two.host_ip(), 1, &[])?;
    Ok(())
}
