//! Packets that are too big: who sends them is told, and who tells us is believed, if it can be true.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use etherparse::{SlicedPacket, TcpOptionElement, TransportSlice};
use mgre_tests::{
    capture::{self, Capture},
    gre::Gre,
    icmp::TooBig,
    netns::{self, Netns},
    packet::{self, BROADCAST, Datagram, mac_text},
    skip::skipped,
    topology::{Family, Layout, SEGMENT, Spoke, Spokes, Underlay},
    traffic, wait,
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// What gets through where nobody stalls, though much is sent twice at first.
const TCP_LEAST: f64 = 5e6;

/// Two spokes whose hosts know of each other, and think that 1500 bytes fit.
fn build(family: Family, underlay: Underlay) -> Result<Spokes> {
    let spokes = Layout { family, ..Layout::new(2, underlay) }.build()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    for address in [two.host_ip(), two.host_ipv6()] {
        assert!(traffic::reaches(&one.host, &address)?, "{address}");
    }
    for spoke in [one, two] {
        spoke.host.ip("link set eth0 mtu 1500")?;
    }
    Ok(spokes)
}

/// A datagram from the first host to the second one that nobody may cut.
fn datagram(spokes: &Spokes, v4: bool, length: usize) -> Datagram {
    let ends = (spokes.spoke(1).host_end(v4), spokes.spoke(2).host_end(v4));
    Datagram { length, dont_fragment: true, ..Datagram::new(ends.0, ends.1) }
}

/// The message that comes in and quotes this packet.
fn wait_told(capture: &Capture, packet: &[u8]) -> Result<(Vec<u8>, TooBig)> {
    let about = |frame: &capture::Frame| {
        !frame.outgoing
            && TooBig::parse(&frame.bytes)
                .is_some_and(|told| told.quote.len() >= 28 && packet.starts_with(&told.quote))
    };
    let frame = capture.wait_for("who sent it is told", wait::SOON, about)?;
    Ok((frame.bytes.clone(), TooBig::parse(&frame.bytes).context("it is one")?))
}

#[test]
fn who_sends_too_much_is_told() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in FAMILIES {
        let spokes = build(family, Underlay::Switched)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        let mtu = spokes.layout.mtu();
        for v4 in [true, false] {
            let at_one = Capture::start(&one.host, "eth0")?;
            let before = one.drops("too_big")?;
            let frame = datagram(&spokes, v4, mtu as usize + 1).frame()?;
            capture::send(&one.host, "eth0", &[&frame])?;
            let (_, told) = wait_told(&at_one, &frame[14..])?;
            // As if the packet's receiver said it, which the sender can reach and who belongs where the packet went.
            assert_eq!((told.source_mac, told.destination_mac), (two.host_mac(), one.host_mac()));
            assert_eq!((told.source, told.destination), (two.host_address(v4), one.host_address(v4)));
            assert!(told.mtu == mtu && told.checksums_ok, "{told:?}");
            // RFC 1812 4.3.2.3 and RFC 4443 3.2: as much of it as fits.
            let most = if v4 { 576 } else { 1280 };
            assert!((most - 8..=most).contains(&told.total_length), "{} bytes", told.total_length);
            one.wait_drops("too_big", before + 1)?;
            // Hosts do what they are told.
            let address = two.host_address(v4).to_string();
            assert!(!traffic::fits(&one.host, &address, mtu + 1)?);
            wait::until("the host has learned", wait::SOON, || {
                traffic::fits(&one.host, &address, mtu + 1)?;
                Ok(one.host.run(&["ip", "route", "get", &address])?.contains(&format!("mtu {mtu}")))
            })?;
            assert!(traffic::fits(&one.host, &address, mtu)?);
        }
    }
    Ok(())
}

#[test]
fn nobody_is_told_who_must_not_be() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(Family::V4, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let usual = datagram(&spokes, true, 1490);
    let all = (BROADCAST, IpAddr::from([10, 77, 0, 255]));
    let group = ([0x01, 0, 0x5e, 1, 2, 3], IpAddr::from([239, 1, 2, 3]));
    let with = |source, destination| Datagram { source, destination, ..usual.clone() }.frame();
    // Any fragment but the first one; IPv4's checksum is less by as much.
    let mut fragment = usual.frame()?;
    fragment[21] = 100;
    let sum = u16::from_be_bytes([fragment[24], fragment[25]]);
    let (sum, borrow) = sum.overflowing_sub(100);
    fragment[24..26].copy_from_slice(&(sum - u16::from(borrow)).to_be_bytes());
    // A message about another packet.
    let error = mgre_tests::icmp::too_big(one.host_end(true), two.host_end(true), 576, &[0x45; 1450])?;
    let frames = [
        ("to all", with(one.host_end(true), all)?),
        ("to a group", with(one.host_end(true), group)?),
        ("from nobody", with((one.host_mac(), [0, 0, 0, 0].into()), two.host_end(true))?),
        ("from a group", with((one.host_mac(), group.1), two.host_end(true))?),
        ("a fragment", fragment),
        ("a message itself", error),
    ];
    let at_one = Capture::start(&one.host, "eth0")?;
    for (what, frame) in &frames {
        let before = one.drops("too_big")?;
        capture::send(&one.host, "eth0", &[frame])?;
        one.wait_drops("too_big", before + 1).with_context(|| (*what).to_owned())?;
    }
    // The one after them is told, and so they were looked at.
    let frame = usual.frame()?;
    capture::send(&one.host, "eth0", &[&frame])?;
    wait_told(&at_one, &frame[14..])?;
    let told = at_one.count(|frame| !frame.outgoing && TooBig::parse(&frame.bytes).is_some());
    assert_eq!(told, 1);
    Ok(())
}

#[test]
fn who_goes_on_is_not_told_each_time() -> Result<()> {
    const FRAMES: usize = 2000;
    if skipped() {
        return Ok(());
    }
    let spokes = build(Family::V4, Underlay::Switched)?;
    let one = spokes.spoke(1);
    let at_one = Capture::start_where(&one.host, "eth0", |frame| TooBig::parse(frame).is_some())?;
    let frame = datagram(&spokes, true, 1490).frame()?;
    capture::send(&one.host, "eth0", &vec![&frame; FRAMES])?;
    one.wait_drops("too_big", FRAMES as u64)?;
    wait_told(&at_one, &frame[14..])?;
    let told = at_one.frames().len();
    assert!((1..FRAMES / 2).contains(&told), "told {told} times");
    Ok(())
}

#[test]
fn a_sender_with_a_tag_is_told_with_its_tag() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(Family::V4, Underlay::Switched)?;
    let one = spokes.spoke(1);
    let mtu = spokes.layout.mtu();
    let at_one = Capture::start(&one.host, "eth0")?;
    one.host.ip("link set eth0 mtu 1504")?;
    one.netns.ip("link set lan0 mtu 1504")?;
    for v4 in [true, false] {
        let plain = datagram(&spokes, v4, 1480).frame()?;
        let tagged = packet::tagged(&plain, 0x6064);
        capture::send(&one.host, "eth0", &[&tagged])?;
        let (bytes, told) = wait_told(&at_one, &plain[14..])?;
        assert_eq!(bytes[12..16], tagged[12..16]);
        // The tag takes some of the room.
        assert!(told.mtu == mtu - 4 && told.checksums_ok, "{told:?}");
    }
    Ok(())
}

/// TCP both ways, over both families, between hosts that think that more fits.
fn check_tcp(from: &Netns, to: &Netns, addresses: &[String]) -> Result<()> {
    for address in addresses {
        for arguments in [&[][..], &["--reverse"]] {
            traffic::iperf3_at_least(TCP_LEAST, (from, to), address, 2, arguments)
                .with_context(|| format!("{address} {arguments:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn tcp_of_hosts_that_think_more_fits() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in FAMILIES {
        let spokes = build(family, Underlay::Switched)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        // Superframes are cut before the wire.
        for spoke in [one, two] {
            spoke.netns.run(&["ethtool", "-K", "wan0", "tso", "off", "gso", "off", "tx", "off"])?;
        }
        let at_core = Capture::start_where(&spokes.core, "s1", |frame| Gre::parse(frame).is_some())?;
        check_tcp(&one.host, &two.host, &[two.host_ip(), two.host_ipv6()])?;
        assert!(one.drops("too_big")? > 0);
        for frame in at_core.stop() {
            assert!(frame.bytes.len() <= 1514, "{} bytes on the wire", frame.bytes.len());
        }
    }
    Ok(())
}

/// A host behind something of its own that leads to a new port of a spoke: a bridge, or the host that is there already.
fn beyond(spoke: &Spoke, middle: &Netns) -> Result<Netns> {
    let host = Netns::new("beyond")?;
    netns::ip(&format!(
        "link add far0 netns {} type veth peer name eth0 address {} netns {}",
        middle.name(),
        mac_text([2, 0, 0, 0, spoke.number, 0x41]),
        host.name()
    ))?;
    middle.ip("link set far0 up")?;
    host.ip("link set eth0 up")?;
    Ok(host)
}

#[test]
fn a_sender_behind_a_bridge_is_told() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in FAMILIES {
        let spokes = build(family, Underlay::Routed)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        let bridge = Netns::new("bridge")?;
        bridge.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        one.attach(&bridge, "lan1", [2, 0, 0, 0, 1, 0x40])?;
        let host = beyond(one, &bridge)?;
        bridge.ip("link add br0 type bridge mcast_snooping 0\nlink set eth0 mtu 1500 master br0\n\
             link set far0 master br0\nlink set br0 up")?;
        host.ip("addr add 10.77.0.50/24 dev eth0\naddr add fd77::50/64 dev eth0 nodad")?;
        one.daemon.mgre(&["port", "add", SEGMENT, "lan1"])?;
        for address in [two.host_ip(), two.host_ipv6()] {
            assert!(traffic::reaches(&host, &address)?, "{address}");
        }
        check_tcp(&host, &two.host, &[two.host_ip(), two.host_ipv6()])?;
    }
    Ok(())
}

#[test]
fn a_sender_behind_a_router_is_told() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in FAMILIES {
        let spokes = build(family, Underlay::Routed)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        let host = beyond(one, &one.host)?;
        one.host.sysctl("ipv4/ip_forward", "1")?;
        one.host.sysctl("ipv6/conf/all/forwarding", "1")?;
        one.host.ip("addr add 10.78.0.1/24 dev far0\naddr add fd78::1/64 dev far0 nodad")?;
        host.ip("addr add 10.78.0.50/24 dev eth0\naddr add fd78::50/64 dev eth0 nodad\n\
             route add default via 10.78.0.1\nroute add default via fd78::1")?;
        two.host.ip("route add 10.78.0.0/24 via 10.77.0.1\nroute add fd78::/64 via fd77::1")?;
        for address in [two.host_ip(), two.host_ipv6()] {
            assert!(traffic::reaches(&host, &address)?, "{address}");
        }
        check_tcp(&host, &two.host, &[two.host_ip(), two.host_ipv6()])?;
    }
    Ok(())
}

/// A link in the middle of the underlay carries less than those at its ends.
#[test]
fn tcp_through_a_narrow_middle_does_not_stall() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in FAMILIES {
        for link in [1300, 1400] {
            let spokes = Layout { family, ..Layout::new(2, Underlay::Routed) }.build()?;
            let (one, two) = (spokes.spoke(1), spokes.spoke(2));
            // The last link. The spoke at its other end knows of it; the far one has to be told by the core.
            spokes.narrow(2, link)?;
            let mtu = spokes.layout.mtu() - (1500 - link);
            wait::until("the near end knows", wait::SOON, || Ok(two.peer("spoke1")?["mtu"] == mtu))?;
            assert_eq!(one.peer("spoke2")?["mtu"], spokes.layout.mtu(), "the far one does not");
            check_tcp(&one.host, &two.host, &[two.host_ip()])?;
            wait::until("the far end has learned", wait::SOON, || Ok(one.peer("spoke2")?["mtu"] == mtu))?;
            // Where less than IPv6's least fits, packets of that size are cut outside.
            check_tcp(&one.host, &two.host, &[two.host_ipv6()])?;
        }
    }
    Ok(())
}

#[test]
fn auto_follows_the_route() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for (family, gateway) in [(Family::V4, "10.0.1.254"), (Family::V6, "fd00:0:0:1::fe")] {
        let spokes = Layout { family, ..Layout::new(2, Underlay::Routed) }.build()?;
        let one = spokes.spoke(1);
        let usual = spokes.layout.mtu();
        let route =
            |options: &str| one.netns.ip(&format!("route replace default via {gateway} dev wan0 {options}"));
        route("mtu 1400")?;
        wait::until("the route's MTU counts", wait::SOON, || Ok(one.peer("spoke2")?["mtu"] == usual - 100))?;
        route("")?;
        wait::until("and the interface's", wait::SOON, || Ok(one.peer("spoke2")?["mtu"] == usual))?;
    }
    Ok(())
}

/// The maximum segment size that the first TCP segment of a kind asks for, seen on its way in.
fn segment_size(capture: &Capture, answer: bool) -> Result<u16> {
    let read = |frame: &capture::Frame| {
        if frame.outgoing {
            return None;
        }
        let packet = SlicedPacket::from_ethernet(&frame.bytes).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
        if !tcp.syn() || tcp.ack() != answer {
            return None;
        }
        tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(size)) => Some(size),
            _ => None,
        })
    };
    let frame =
        capture.wait_for("a segment that opens a connection", wait::SOON, |frame| read(frame).is_some())?;
    read(&frame).context("it asks for a size")
}

/// One spoke that clamps is enough for both directions, whether checksums are finished or not.
#[test]
fn a_spoke_lowers_the_maximum_segment_size() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(Family::V4, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let mtu = u16::try_from(spokes.layout.mtu())?;
    for (clamps, offload) in [(false, "on"), (true, "on"), (true, "off")] {
        one.daemon.mgre(&["segment", "set", SEGMENT, &format!("--clamp-mss={clamps}")])?;
        for spoke in [one, two] {
            spoke.host.run(&["ethtool", "-K", "eth0", "tx", offload])?;
        }
        for v4 in [true, false] {
            let captures = [Capture::start(&two.host, "eth0")?, Capture::start(&one.host, "eth0")?];
            traffic::iperf3(&one.host, &two.host, &two.host_address(v4).to_string(), 1, &["-b", "1M"])?;
            let headers = if v4 { 40 } else { 60 };
            let wanted = if clamps { mtu } else { 1500 } - headers;
            for (capture, answer) in captures.iter().zip([false, true]) {
                assert_eq!(
                    segment_size(capture, answer)?,
                    wanted,
                    "clamps {clamps}, offload {offload}, answer {answer}"
                );
            }
        }
    }
    Ok(())
}
