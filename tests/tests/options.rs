//! What a peer can be told to do otherwise: checksums, sequence numbers, TOS, ECN, DF.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::{self, Capture},
    gre::{GRE_CHECKSUM_PRESENT, GRE_KEY_PRESENT, GRE_SEQUENCE_PRESENT, Gre, Outer},
    packet::{self, BROADCAST, Datagram, UNKNOWN, marked},
    skip::skipped,
    topology::{Family, Layout, SEGMENT, Spokes, Underlay},
    traffic, wait,
};

/// Frames that need finished checksums or numbers go a longer way.
const TCP_LEAST: f64 = 10e6;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn build(family: Family, options: &'static [&'static str]) -> Result<Spokes> {
    Layout { family, options, ..Layout::new(2, Underlay::Switched) }.build()
}

/// Every packet that left a spoke's core end, of a peer with these options: its flags are these, each checksum is right
/// and each frame inside is whole and finished.
fn check_wire(at_core: Capture, flags: u16) -> Result<Vec<Gre>> {
    let frames = at_core.stop();
    let mut packets = Vec::new();
    for frame in frames.iter().filter(|frame| !frame.outgoing) {
        let gre = Gre::read(&frame.bytes)?;
        assert_eq!(gre.flags, flags, "{gre:?}");
        assert!(gre.checksum_ok && gre.gre_checksum_ok != Some(false), "{gre:?}");
        assert!(frame.bytes.len() <= 1514, "{} bytes", frame.bytes.len());
        assert!(packet::checksums_ok(&gre.inner).unwrap_or(true), "{:02x?}", gre.inner);
        packets.push(gre);
    }
    assert!(!packets.is_empty());
    Ok(packets)
}

/// Pings, a broadcast and TCP both ways, between hosts with all their offloads.
fn check_traffic(spokes: &Spokes) -> Result<()> {
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    for address in [two.host_ip(), two.host_ipv6()] {
        assert!(traffic::reaches(&one.host, &address)?, "{address}");
    }
    let at_two = Capture::start(&two.host, "eth0")?;
    for frame in [
        marked(BROADCAST, one.host_mac(), "to all"),
        marked(two.host_mac(), one.host_mac(), "to one"),
        packet::frame(two.host_mac(), one.host_mac(), 0x88b5, &vec![0xa5; spokes.layout.mtu() as usize]),
    ] {
        capture::send(&one.host, "eth0", &[&frame])?;
        at_two.wait_arrival("a frame", &frame)?;
        assert_eq!(at_two.arrived(&frame), 1);
    }
    drop(at_two);
    let there_and_back =
        [(two.host_ip(), &["-b", "50M"][..]), (two.host_ipv6(), &["-b", "50M", "--reverse"])];
    for (address, arguments) in there_and_back {
        traffic::iperf3_at_least(TCP_LEAST, (&one.host, &two.host), &address, 1, arguments)
            .with_context(|| format!("{address} {arguments:?}"))?;
    }
    for reason in ["checksum", "malformed", "internal", "headroom"] {
        assert_eq!((one.drops(reason)?, two.drops(reason)?), (0, 0), "{reason}");
    }
    // Where two CPUs send, one packet may overtake another, and the one that is late is old.
    for spoke in [one, two] {
        let received: u64 = spoke.peers_sum("rx_packets")?;
        let old = spoke.drops("sequence_old")?;
        assert!(old * 2 < received, "{old} of {received}");
    }
    Ok(())
}

fn option_everywhere(options: &'static [&'static str], flags: u16) -> Result<()> {
    for family in FAMILIES {
        let spokes = build(family, options)?;
        let one = spokes.spoke(1);
        assert_eq!(one.peer("spoke2")?["mtu"], spokes.layout.mtu());
        let at_core = Capture::start_where(&spokes.core, "s1", |frame| Gre::parse(frame).is_some())?;
        check_traffic(&spokes)?;
        let packets = check_wire(at_core, flags)?;
        if flags & GRE_SEQUENCE_PRESENT != 0 {
            // Numbers without a gap, each once. Two CPUs may send in another order than they counted.
            let numbers: BTreeSet<u32> = packets.iter().filter_map(|gre| gre.sequence).collect();
            let span = numbers.last().zip(numbers.first()).map(|(last, first)| (last - first) as usize);
            assert_eq!((numbers.len(), span), (packets.len(), Some(packets.len() - 1)));
        }
    }
    Ok(())
}

#[test]
fn packets_with_checksums() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    option_everywhere(&["--csum"], GRE_CHECKSUM_PRESENT | GRE_KEY_PRESENT)
}

#[test]
fn packets_with_sequence_numbers() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    option_everywhere(&["--seq"], GRE_SEQUENCE_PRESENT | GRE_KEY_PRESENT)
}

#[test]
fn packets_with_both() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let flags = GRE_CHECKSUM_PRESENT | GRE_SEQUENCE_PRESENT | GRE_KEY_PRESENT;
    option_everywhere(&["--csum", "--seq"], flags)
}

#[test]
fn a_wrong_checksum_is_dropped_whatever_the_peer_was_told() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for (family, options) in [(Family::V4, &[][..]), (Family::V6, &[]), (Family::V4, &["--csum"])] {
        let spokes = build(family, options)?;
        let two = spokes.spoke(2);
        let at_two = Capture::start(&two.host, "eth0")?;
        // Of odd and of even length, and one that a card's buffer does not hold in its head.
        for length in [46, 47, 1200, 1401] {
            let inner = packet::frame(BROADCAST, UNKNOWN, 0x88b5, &vec![length as u8; length]);
            let good = Outer { checksum: true, ..spokes.outer(1, 2) }.frame(&inner)?;
            let mut bad = good.clone();
            if let Some(last) = bad.last_mut() {
                *last ^= 1;
            }
            let before = two.drops("checksum")?;
            spokes.send_to(2, &[&bad])?;
            two.wait_drops("checksum", before + 1)?;
            assert_eq!(two.fdb(UNKNOWN)?, None, "nothing is learned from it");
            spokes.send_to(2, &[&good])?;
            at_two.wait_arrival("a frame with a checksum", &inner)?;
            assert_eq!((at_two.arrived(&inner), two.drops("checksum")?), (1, before + 1));
            two.daemon.mgre(&["fdb", "flush"])?;
        }
    }
    Ok(())
}

#[test]
fn the_first_packet_has_number_0() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(Family::V4, &["--seq"])?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let remote = spokes.layout.remote(1, 2).to_string();
    // The same peer, as new as on the first day (RFC 2890 2.2).
    for _ in 0..2 {
        one.daemon.mgre(&["peer", "del", "spoke2"])?;
        let at_wan = Capture::start(&one.netns, "wan0")?;
        one.daemon.mgre(&["peer", "add", "spoke2", &remote, "--segment", SEGMENT, "--seq"])?;
        one.wait_up()?;
        let frames: Vec<_> = (0..10)
            .map(|number| marked(two.host_mac(), one.host_mac(), &format!("number {number}")))
            .collect();
        capture::send(&one.host, "eth0", &frames)?;
        wait::until("all on the wire", wait::SOON, || Ok(!at_wan.carrying(true, &frames[9]).is_empty()))?;
        let sent = at_wan.packets().into_iter().filter(|(frame, _)| frame.outgoing);
        let numbers: Vec<_> = sent.filter_map(|(_, gre)| gre.sequence).collect();
        assert_eq!(numbers, (0..numbers.len() as u32).collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn old_sequence_numbers_are_dropped() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in FAMILIES {
        let spokes = build(family, &[])?;
        let two = spokes.spoke(2);
        two.daemon.mgre(&["peer", "set", "spoke1", "--seq"])?;
        let at_two = Capture::start(&two.host, "eth0")?;
        // The number, and whether it is new (RFC 2890 2.2); the other peer sends its own traffic without numbers.
        let numbers = [
            (Some(0), true),
            (Some(1), true),
            (Some(1), false),
            (Some(0), false),
            (Some(10), true),
            (Some(9), false),
            (None, true),
            (Some(0x7fff_ffff), true),
            (Some(0xffff_fff0), true),
            (Some(0xffff_ffff), true),
            (Some(2), true),
            (Some(0xffff_ffff), false),
        ];
        for (step, (sequence, is_new)) in numbers.into_iter().enumerate() {
            let inner = marked(BROADCAST, UNKNOWN, &format!("step {step}, {sequence:?}"));
            let before = two.drops("sequence_old")?;
            spokes.send_to(2, &[Outer { sequence, ..spokes.outer(1, 2) }.frame(&inner)?])?;
            if is_new {
                at_two.wait_arrival(&format!("step {step}, {sequence:?}"), &inner)?;
                assert_eq!(two.drops("sequence_old")?, before, "step {step}");
            } else {
                two.wait_drops("sequence_old", before + 1)?;
                assert_eq!(at_two.arrived(&inner), 0, "step {step}");
            }
        }
        // Who was not told to look at them does not.
        two.daemon.mgre(&["peer", "set", "spoke1", "--seq=false"])?;
        let inner = marked(BROADCAST, UNKNOWN, "an old one");
        spokes.send_to(2, &[Outer { sequence: Some(0), ..spokes.outer(1, 2) }.frame(&inner)?])?;
        at_two.wait_arrival("an old number that nobody looks at", &inner)?;
    }
    Ok(())
}

/// DSCP and ECN of outer packets that carry a datagram with these.
fn outer_tos(spokes: &Spokes, v4: bool, tos: u8) -> Result<u8> {
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let datagram = Datagram { tos, ..Datagram::new(one.host_end(v4), two.host_end(v4)) };
    let frame = datagram.frame()?;
    let at_wan = Capture::start(&one.netns, "wan0")?;
    capture::send(&one.host, "eth0", &[&frame])?;
    let packet = at_wan.wait_for("the datagram on the wire", wait::SOON, |seen| {
        seen.outgoing && Gre::parse(&seen.bytes).is_some_and(|gre| gre.inner == frame)
    })?;
    Ok(Gre::read(&packet.bytes)?.tos)
}

/// The inner DSCP and ECN after a packet with these outside and inside; none if it is dropped for what is in ECN.
fn inner_tos(spokes: &Spokes, v4: bool, outside: u8, inside: u8) -> Result<Option<u8>> {
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let mut datagram = Datagram { tos: inside, ..Datagram::new(one.host_end(v4), two.host_end(v4)) };
    // What tells this one from all others.
    datagram.ports = (5000 + u16::from(outside), 6000 + u16::from(inside));
    let at_two = Capture::start(&two.host, "eth0")?;
    let before = two.drops("ecn")?;
    let outer = Outer { tos: outside, ..spokes.outer(1, 2) };
    spokes.send_to(2, &[outer.frame(&datagram.frame()?)?])?;
    let mut arrived = None;
    wait::until("the datagram arrives or is dropped", wait::SOON, || {
        for seen in at_two.frames().into_iter().filter(|seen| !seen.outgoing) {
            let Some(tos) = packet::tos(&seen.bytes) else { continue };
            if seen.bytes == (Datagram { tos, ..datagram.clone() }).frame()? {
                arrived = Some(tos);
            }
        }
        Ok(arrived.is_some() || two.drops("ecn")? == before + 1)
    })
    .with_context(|| format!("{outside:#x} outside, {inside:#x} inside, IPv4 {v4}"))
    .with_context(|| two.daemon.mgre(&["stats", "--drops"]).unwrap_or_default())
    .with_context(|| {
        let seen: Vec<_> = at_two.frames().into_iter().map(|frame| frame.bytes).collect();
        format!("{:02x?} came, and {:02x?} was sent", seen, datagram.frame())
    })?;
    Ok(arrived)
}

#[test]
fn dscp_is_fixed_or_inherited() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in FAMILIES {
        let spokes = build(family, &["--tos", "0xb8"])?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        assert!(traffic::reaches(&one.host, &two.host_ip())?);
        for v4 in [true, false] {
            // The pipe model (RFC 2983 3): neither outside nor inside changes the other.
            assert_eq!(outer_tos(&spokes, v4, 0x28)?, 0xb8);
            assert_eq!(inner_tos(&spokes, v4, 0x48, 0x28)?, Some(0x28));
        }
        one.daemon.mgre(&["peer", "set", "spoke2", "--tos", "inherit"])?;
        two.daemon.mgre(&["peer", "set", "spoke1", "--tos", "inherit"])?;
        for v4 in [true, false] {
            // The uniform model.
            assert_eq!(outer_tos(&spokes, v4, 0x28)?, 0x28);
            assert_eq!(inner_tos(&spokes, v4, 0x48, 0x28)?, Some(0x48));
            assert_eq!(inner_tos(&spokes, v4, 0x49, 0x2a)?, Some(0x49));
        }
        // What is not IP has none.
        let at_wan = Capture::start(&one.netns, "wan0")?;
        let frame = marked(two.host_mac(), one.host_mac(), "not IP");
        capture::send(&one.host, "eth0", &[&frame])?;
        wait::until("the frame on the wire", wait::SOON, || Ok(!at_wan.carrying(true, &frame).is_empty()))?;
        assert!(at_wan.carrying(true, &frame).iter().all(|gre| gre.tos == 0));
    }
    Ok(())
}

/// RFC 6040 4.1 and 4.2. Not-ECT 0, ECT(1) 1, ECT(0) 2, CE 3.
#[test]
fn congestion_marks_go_in_and_out() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    // By what is inside and what is outside: what is left inside.
    const TABLE: [[Option<u8>; 4]; 4] = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for family in FAMILIES {
        let spokes = build(family, &["--tos", "0xb8"])?;
        assert!(traffic::reaches(&spokes.spoke(1).host, &spokes.spoke(2).host_ip())?);
        for v4 in [true, false] {
            for (inside, row) in (0..4_u8).zip(TABLE) {
                assert_eq!(outer_tos(&spokes, v4, 0x28 | inside)?, 0xb8 | inside, "encapsulation");
                for (outside, left) in (0..4_u8).zip(row) {
                    let tos = inner_tos(&spokes, v4, 0xb8 | outside, 0x28 | inside)?;
                    let wanted = left.map(|left| 0x28 | left);
                    assert_eq!(tos, wanted, "{inside} inside, {outside} outside, {family:?}, IPv4 {v4}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn do_not_fragment_is_set_or_not_or_inherited() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(Family::V4, &[])?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    for (df, without, with) in [("set", true, true), ("unset", false, false), ("inherit", false, true)] {
        one.daemon.mgre(&["peer", "set", "spoke2", "--df", df])?;
        for (dont_fragment, wanted) in [(false, without), (true, with)] {
            let datagram = Datagram::new(one.host_end(true), two.host_end(true));
            let frame = Datagram { dont_fragment, ..datagram }.frame()?;
            let at_wan = Capture::start(&one.netns, "wan0")?;
            capture::send(&one.host, "eth0", &[&frame; 20])?;
            wait::until("all on the wire", wait::SOON, || Ok(at_wan.carrying(true, &frame).len() == 20))?;
            let packets = at_wan.carrying(true, &frame);
            assert!(packets.iter().all(|gre| gre.dont_fragment == wanted && gre.checksum_ok), "{df}");
            // Who may be cut must be told from others (RFC 6864 4).
            let ids: BTreeSet<u16> = packets.iter().map(|gre| gre.identification).collect();
            assert!(wanted || ids.len() == 20, "{df}: {ids:?}");
        }
    }
    // IPv6 says by itself that nobody cuts it.
    let frame = Datagram::new(one.host_end(false), two.host_end(false)).frame()?;
    let at_wan = Capture::start(&one.netns, "wan0")?;
    capture::send(&one.host, "eth0", &[&frame])?;
    wait::until("IPv6 on the wire", wait::SOON, || Ok(!at_wan.carrying(true, &frame).is_empty()))?;
    assert!(at_wan.carrying(true, &frame).iter().all(|gre| gre.dont_fragment));
    Ok(())
}
