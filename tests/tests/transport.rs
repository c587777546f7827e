//! TCP and UDP through the overlay, and what the wire shows of them.

use std::net::UdpSocket;

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::Capture,
    packet::{self, GRE_KEY_PRESENT, Gre, TRANSPARENT_ETHERNET},
    skip::skipped,
    topology::{KEY, Spokes, Underlay},
    traffic, wait,
};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

/// Far below what any machine does, far above what goes through where offloads do not work together.
const TCP_LEAST: f64 = 100e6;

#[test]
fn tcp_both_ways_with_offloads_and_without() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    for offloads in ["on", "off"] {
        for spoke in [one, two] {
            let words = ["ethtool", "-K", "eth0", "tso", offloads, "gso", offloads, "gro", offloads];
            spoke.host.run(&words)?;
        }
        for (what, arguments) in [("there", &[][..]), ("back", &["--reverse"][..])] {
            traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &two.host_ip(), 1, arguments)
                .with_context(|| format!("{what}, offloads {offloads}"))?;
        }
    }
    // No checksum offload at all: the frames enter with their checksums.
    for spoke in [one, two] {
        spoke.host.run(&["ethtool", "-K", "eth0", "tx", "off"])?;
    }
    traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &two.host_ip(), 1, &[])
        .context("no checksum offload")?;
    for reason in ["too_big", "headroom", "checksum", "internal"] {
        assert_eq!((one.drops(reason)?, two.drops(reason)?), (0, 0), "{reason}");
    }
    Ok(())
}

#[test]
fn tcp_over_ipv6_and_udp() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &two.host_ipv6(), 1, &[])
        .context("TCP over IPv6")?;
    // With datagrams of the MTU, and with ones that are cut into fragments.
    for length in ["1400", "8000"] {
        // A busy machine sends less, and its sockets overflow; a path that does not work loses far more.
        let arguments = ["-u", "-b", "20M", "-l", length];
        let udp = traffic::iperf3_at_least(8e6, (&one.host, &two.host), &two.host_ip(), 1, &arguments)?;
        assert!(udp.lost_percent < 50.0, "{} % lost of datagrams of {length}", udp.lost_percent);
    }
    Ok(())
}

#[test]
fn outer_headers_are_as_specified() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let at_wan = Capture::start(&one.netns, "wan0")?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    assert!(traffic::reaches(&one.host, &two.host_ipv6())?);
    let (mut there, mut back) = (0, 0);
    for packet in at_wan.stop() {
        // An IPv4 packet of another protocol, or no IPv4 at all, is not ours.
        let Some(gre) = Gre::parse(&packet.bytes) else { continue };
        let endpoints = [1, 2].map(|number| spokes.layout.endpoint(number));
        if packet.outgoing {
            there += 1;
            assert_eq!([gre.source, gre.destination], endpoints);
            assert_eq!((gre.outer_source, gre.outer_destination), (one.wan_mac(), one.core_mac()));
            assert_eq!(gre.ttl, 64);
        } else {
            back += 1;
            assert_eq!([gre.destination, gre.source], endpoints);
            assert_eq!(gre.ttl, 63, "one router on the way");
        }
        assert!(gre.checksum_ok && gre.dont_fragment, "{gre:?}");
        assert_eq!((gre.flags, gre.protocol, gre.key), (GRE_KEY_PRESENT, TRANSPARENT_ETHERNET, Some(KEY)));
        assert_eq!(usize::from(gre.total_length), 20 + 8 + gre.inner.len());
        assert_eq!(packet.bytes.len(), 14 + usize::from(gre.total_length));
        assert_eq!(gre.tos, 0);
    }
    assert!(there >= 4 && back >= 4, "{there} there and {back} back");

    two.daemon.mgre(&["peer", "set", "spoke1", "--ttl", "9", "--tos", "0xb8", "--df", "unset"])?;
    let at_wan = Capture::start(&two.netns, "wan0")?;
    assert!(traffic::reaches(&two.host, &one.host_ip())?);
    let sent: Vec<_> = at_wan
        .stop()
        .iter()
        .filter(|packet| packet.outgoing)
        .filter_map(|packet| Gre::parse(&packet.bytes))
        .collect();
    assert!(!sent.is_empty());
    for gre in sent {
        assert_eq!((gre.ttl, gre.tos, gre.dont_fragment, gre.checksum_ok), (9, 0xb8, false, true));
    }
    Ok(())
}

#[test]
fn superframes_are_cut_to_fit_where_the_underlay_takes_none() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let plain = ["ethtool", "-K", "wan0", "tso", "off", "gso", "off", "tx", "off"];
    one.netns.run(&plain)?;
    let at_core = Capture::start_where(&spokes.core, "s1", |frame| Gre::parse(frame).is_some())?;
    let arguments = ["--bitrate", "200M"];
    traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &two.host_ip(), 1, &arguments)?;
    let packets = at_core.stop();
    let mut full = 0;
    for packet in packets.iter().filter(|packet| !packet.outgoing) {
        let gre = Gre::read(&packet.bytes)?;
        assert!(packet.bytes.len() <= 1514, "{} bytes on the wire", packet.bytes.len());
        assert_eq!(usize::from(gre.total_length), packet.bytes.len() - 14);
        assert!(gre.checksum_ok, "{gre:?}");
        assert!(packet::checksums_ok(&gre.inner).context("the inner frame")?, "{:02x?}", gre.inner);
        full += usize::from(packet.bytes.len() == 1514);
    }
    assert!(full > 5_000, "{full} full packets for 12 MB and more");
    Ok(())
}

#[test]
fn datagrams_in_superframes_arrive_one_by_one() -> Result<()> {
    const DATAGRAM: usize = 1200;
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    // With superframes on the underlay, and cut before it.
    for offloads in ["on", "off"] {
        one.netns.run(&["ethtool", "-K", "wan0", "tso", offloads, "gso", offloads, "tx", offloads])?;
        let receiver = two.host.enter(|| UdpSocket::bind((two.host_ipv4(), 7000)))??;
        receiver.set_read_timeout(Some(wait::patient(wait::SOON)))?;
        let sender = one.host.enter(|| UdpSocket::bind((one.host_ipv4(), 0)))??;
        setsockopt(&sender, UdpGsoSegment, &(DATAGRAM as i32)).context("UDP_SEGMENT")?;
        // Ten of them and a short one.
        let data: Vec<u8> = (0..10 * DATAGRAM + 100).map(|index| (index % 251) as u8).collect();
        assert_eq!(sender.send_to(&data, (two.host_ipv4(), 7000))?, data.len());
        let mut arrived = Vec::new();
        let mut buffer = [0; 65_536];
        while arrived.len() < data.len() {
            let length = receiver.recv(&mut buffer).with_context(|| {
                format!("offloads {offloads}: {} bytes of {} arrived", arrived.len(), data.len())
            })?;
            assert!(length == DATAGRAM || length == 100, "a datagram of {length} bytes");
            arrived.extend_from_slice(&buffer[..length]);
        }
        assert!(arrived == data, "offloads {offloads}: not what was sent");
    }
    Ok(())
}
