//! GRE in UDP (RFC 8086): for NAT, and for whoever spreads flows by their ports.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::{self, Capture},
    gre::{GRE_UDP_PORT, Gre, Outer},
    packet::{self, BROADCAST, Datagram, UNKNOWN, marked},
    skip::skipped,
    topology::{Family, Layout, Spokes, Underlay},
    traffic, wait,
};

const TCP_LEAST: f64 = 50e6;
/// Source ports that carry entropy (RFC 8086 3.2.1).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;

fn build(spokes: u8, underlay: Underlay, family: Family) -> Result<Spokes> {
    Layout { family, options: &["--encap", "gre-udp"], ..Layout::new(spokes, underlay) }.build()
}

#[test]
fn hosts_reach_each_other_and_headers_are_as_specified() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in [Family::V4, Family::V6, Family::Mixed] {
        let spokes = build(3, Underlay::Routed, family)?;
        let one = spokes.spoke(1);
        assert_eq!(one.peer("spoke3")?["mtu"], spokes.layout.mtu());
        // Where packets come in, so that whoever finishes checksums has done so.
        let at_three = Capture::start(&spokes.spoke(3).netns, "wan0")?;
        for to in [2, 3] {
            for address in [spokes.spoke(to).host_ip(), spokes.spoke(to).host_ipv6()] {
                assert!(traffic::reaches(&one.host, &address)?, "{address}");
            }
        }
        let frame = marked(BROADCAST, one.host_mac(), "to all");
        let at_two = Capture::start(&spokes.spoke(2).host, "eth0")?;
        capture::send(&one.host, "eth0", &[&frame])?;
        at_two.wait_arrival("a flooded frame", &frame)?;
        wait::until("and at the other", wait::SOON, || Ok(at_three.carrying(false, &frame).len() == 1))?;

        let packets: Vec<Gre> =
            at_three.packets().into_iter().filter(|(frame, _)| !frame.outgoing).map(|(_, gre)| gre).collect();
        assert!(packets.len() >= 4, "{}", packets.len());
        for gre in packets {
            let udp = gre.udp.with_context(|| format!("not in UDP: {gre:?}"))?;
            assert_eq!(udp.destination_port, GRE_UDP_PORT);
            assert!(EPHEMERAL.contains(&udp.source_port), "{udp:?}");
            assert!(udp.checksum_ok || !udp.has_checksum, "{udp:?}");
            assert!(gre.checksum_ok && gre.ttl == 63, "{gre:?}");
        }
    }
    Ok(())
}

#[test]
fn tcp_with_offloads_and_without() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in [Family::V4, Family::V6] {
        let spokes = build(2, Underlay::Switched, family)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        for offloads in ["on", "off"] {
            for spoke in [one, two] {
                let words = ["ethtool", "-K", "eth0", "tso", offloads, "gso", offloads, "gro", offloads];
                spoke.host.run(&words)?;
            }
            for (address, arguments) in [(two.host_ip(), &[][..]), (two.host_ipv6(), &["--reverse"])] {
                traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &address, 1, arguments)
                    .with_context(|| format!("{address} {arguments:?}, offloads {offloads}, {family:?}"))?;
            }
        }
        // Cut before the wire: each packet fits, and is right.
        one.netns.run(&["ethtool", "-K", "wan0", "tso", "off", "gso", "off", "tx", "off"])?;
        let at_core = Capture::start_where(&spokes.core, "s1", |frame| Gre::parse(frame).is_some())?;
        let arguments = ["--bitrate", "100M"];
        traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &two.host_ip(), 1, &arguments)?;
        for frame in at_core.stop().iter().filter(|frame| !frame.outgoing) {
            let gre = Gre::read(&frame.bytes)?;
            assert!(frame.bytes.len() <= 1514, "{} bytes on the wire", frame.bytes.len());
            assert!(gre.udp.is_some_and(|udp| udp.checksum_ok || !udp.has_checksum), "{gre:?}");
            assert!(packet::checksums_ok(&gre.inner)?, "{:02x?}", gre.inner);
        }
        for reason in ["too_big", "headroom", "checksum", "malformed", "internal"] {
            assert_eq!((one.drops(reason)?, two.drops(reason)?), (0, 0), "{reason}");
        }
    }
    Ok(())
}

/// The source ports of packets that carry these frames.
fn ports(spokes: &Spokes, frames: &[Vec<u8>]) -> Result<BTreeSet<u16>> {
    let one = spokes.spoke(1);
    let at_wan = Capture::start(&one.netns, "wan0")?;
    capture::send(&one.host, "eth0", frames)?;
    let seen = || -> Vec<Gre> {
        let sent = at_wan.packets().into_iter().filter(|(frame, _)| frame.outgoing);
        sent.map(|(_, gre)| gre).filter(|gre| frames.contains(&gre.inner)).collect()
    };
    wait::until("all on the wire", wait::SOON, || Ok(seen().len() == frames.len()))?;
    Ok(seen().into_iter().filter_map(|gre| gre.udp).map(|udp| udp.source_port).collect())
}

#[test]
fn a_flow_has_one_source_port_and_flows_have_many() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in [Family::V4, Family::V6] {
        let spokes = build(2, Underlay::Switched, family)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        assert!(traffic::reaches(&one.host, &two.host_ip())?);
        for v4 in [true, false] {
            let datagram = Datagram::new(one.host_end(v4), two.host_end(v4));
            let same = ports(&spokes, &vec![datagram.frame()?; 10])?;
            assert_eq!(same.len(), 1, "{same:?}");
            let frame = |port: u16| Datagram { ports: (port, 53), ..datagram.clone() }.frame();
            let many = ports(&spokes, &(2000..2064).map(frame).collect::<Result<Vec<_>>>()?)?;
            assert!(many.len() > 48, "{many:?}");
            assert!(many.iter().all(|port| EPHEMERAL.contains(port)), "{many:?}");
        }
    }
    Ok(())
}

#[test]
fn packets_of_another_make_are_taken() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in [Family::V4, Family::V6] {
        let spokes = build(2, Underlay::Switched, family)?;
        let two = spokes.spoke(2);
        let at_two = Capture::start(&two.host, "eth0")?;
        // A NAT on the way makes any port of it.
        for (number, port) in [1, 1024, 4754, 49_152, 65_535].into_iter().enumerate() {
            let inner = marked(BROADCAST, UNKNOWN, &format!("from port {port}"));
            let sequence = Some(number as u32);
            let outer = Outer { udp: Some(port), checksum: true, sequence, ..spokes.outer(1, 2) };
            spokes.send_to(2, &[outer.frame(&inner)?])?;
            at_two.wait_arrival("a packet of another make", &inner)?;
        }
        // The wrong key, and what is not for us.
        let inner = marked(BROADCAST, UNKNOWN, "from a stranger");
        let outer = Outer { udp: Some(50_000), ..spokes.outer(1, 2) };
        let before = two.drops("key_mismatch")?;
        spokes.send_to(2, &[Outer { key: Some(99), ..outer.clone() }.frame(&inner)?])?;
        two.wait_drops("key_mismatch", before + 1)?;
        let before = two.drops("malformed")?;
        spokes.send_to(2, &[outer.frame(&inner[..13])?])?;
        two.wait_drops("malformed", before + 1)?;
        assert_eq!(at_two.arrived(&inner), 0);
    }
    Ok(())
}
