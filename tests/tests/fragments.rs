//! Outer packets that are cut on their way, or have options: the kernel's to put together, and ours after that.

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::{self, Capture},
    gre::{Gre, Outer, v6},
    packet::{self, BROADCAST, Datagram, UNKNOWN, marked},
    skip::skipped,
    topology::{Family, Layout, Spoke, Spokes, Underlay},
    traffic, wait,
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn build(family: Family, options: &'static [&'static str]) -> Result<Spokes> {
    Layout { family, options, ..Layout::new(2, Underlay::Switched) }.build()
}

/// What a spoke says of itself, for an error.
fn told(spoke: &Spoke) -> String {
    let say = |words: &[&str]| spoke.daemon.mgre(words).unwrap_or_else(|error| error.to_string());
    format!("{}{}", say(&["stats", "--drops"]), say(&["status"]))
}

/// A long frame to all, told from others by a number.
fn long(number: u8) -> Vec<u8> {
    let payload: Vec<u8> = (0..1400).map(|index: u32| (index % 251) as u8 ^ number).collect();
    packet::frame(BROADCAST, UNKNOWN, packet::ETHERTYPE_EXPERIMENT, &payload)
}

#[test]
fn a_peer_that_fragments_still_works() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in FAMILIES {
        for encapsulation in [&[][..], &["--encap", "gre-udp"]] {
            let spokes = build(family, encapsulation)?;
            let two = spokes.spoke(2);
            let at_two = Capture::start(&two.host, "eth0")?;
            let udp = (!encapsulation.is_empty()).then_some(50_000);
            for number in 0..4_u8 {
                let frame = long(number);
                let identification = 100 + u16::from(number);
                let outer = Outer { identification, udp, checksum: number & 1 != 0, ..spokes.outer(1, 2) };
                let mut fragments = outer.fragments(&frame, 480)?;
                // They may come in any order.
                if number & 2 != 0 {
                    fragments.reverse();
                }
                let before = two.drops("outer_fragment")?;
                spokes.send_to(2, &fragments)?;
                at_two.wait_arrival("what was put together", &frame).with_context(|| {
                    format!("{family:?} {encapsulation:?}, number {number}\n{}", told(two))
                })?;
                assert_eq!(at_two.arrived(&frame), 1);
                two.wait_drops("outer_fragment", before + fragments.len() as u64)?;
            }
            two.wait_fdb_peer(UNKNOWN, "spoke1")?;
        }
    }
    Ok(())
}

#[test]
fn options_of_ip_change_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(Family::V4, &[])?;
    let two = spokes.spoke(2);
    let at_two = Capture::start(&two.host, "eth0")?;
    // No operation four times, and router alert (RFC 2113).
    for (text, options) in [("nothing", vec![1, 1, 1, 1]), ("router alert", vec![148, 4, 0, 0])] {
        let frame = marked(BROADCAST, UNKNOWN, text);
        spokes.send_to(2, &[Outer { options, ..spokes.outer(1, 2) }.frame(&frame)?])?;
        at_two.wait_arrival(text, &frame)?;
        assert_eq!(at_two.arrived(&frame), 1);
    }
    Ok(())
}

#[test]
fn what_is_put_together_is_judged_as_any_packet() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in FAMILIES {
        let spokes = build(family, &[])?;
        let two = spokes.spoke(2);
        let at_two = Capture::start(&two.host, "eth0")?;
        let peer = spokes.outer(1, 2);
        let stranger = if family == Family::V4 { [10, 0, 0, 200].into() } else { v6(0, 200) };
        let frame = long(1);
        let bad = [
            Outer { source: stranger, identification: 1, ..peer.clone() },
            Outer { key: Some(99), identification: 2, ..peer.clone() },
            Outer { flags: 0x4000, identification: 3, ..peer.clone() },
            Outer { flags: 0x0002, identification: 4, ..peer.clone() },
        ];
        for outer in &bad {
            spokes.send_to(2, &outer.fragments(&frame, 480)?)?;
        }
        // One whose checksum is wrong, and one of which a part is missing.
        let mut wrong = Outer { checksum: true, identification: 5, ..peer.clone() }.fragments(&frame, 480)?;
        if let Some(last) = wrong.last_mut().and_then(|fragment| fragment.last_mut()) {
            *last ^= 1;
        }
        spokes.send_to(2, &wrong)?;
        let half = Outer { identification: 6, ..peer.clone() }.fragments(&frame, 480)?;
        spokes.send_to(2, &half[1..])?;
        // What comes after them comes through: so they were looked at.
        let good = long(2);
        spokes.send_to(2, &Outer { identification: 7, ..peer }.fragments(&good, 480)?)?;
        at_two.wait_arrival("a good one", &good).with_context(|| format!("{family:?}\n{}", told(two)))?;
        assert_eq!(at_two.arrived(&frame), 0);
    }
    Ok(())
}

/// Who may be cut outside is, where a frame does not fit.
#[test]
fn frames_that_do_not_fit_may_be_cut() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for options in [&["--df", "unset"][..], &["--df", "unset", "--encap", "gre-udp"]] {
        let spokes = build(Family::V4, options)?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        assert!(traffic::reaches(&one.host, &two.host_ip())?);
        one.host.ip("link set eth0 mtu 1500")?;
        two.host.ip("link set eth0 mtu 1500")?;
        let at_two = Capture::start(&two.host, "eth0")?;
        let at_core = Capture::start(&spokes.core, "s1")?;
        let experiment =
            packet::frame(two.host_mac(), one.host_mac(), packet::ETHERTYPE_EXPERIMENT, &[0x5a; 1500]);
        let datagram =
            Datagram { length: 1500, ..Datagram::new(one.host_end(true), two.host_end(true)) }.frame()?;
        for (what, frame) in [("an experiment", experiment), ("a datagram that may be cut", datagram)] {
            capture::send(&one.host, "eth0", &[&frame])?;
            at_two
                .wait_arrival(what, &frame)
                .with_context(|| format!("{options:?}\n{}\n{}", told(one), told(two)))?;
            assert_eq!(at_two.arrived(&frame), 1);
        }
        let sent = at_core.frames();
        assert!(sent.iter().all(|frame| frame.bytes.len() <= 1514));
        // Fragments of IPv4 that are not the last one say so.
        let cut = |bytes: &[u8]| bytes.starts_with(&spokes.spoke(2).wan_mac()) && bytes[20] & 0x20 != 0;
        assert!(sent.iter().any(|frame| !frame.outgoing && cut(&frame.bytes)), "nothing was cut");
        assert_eq!(one.drops("too_big")?, 0);
        // Both ways, and what the hosts put together themselves.
        let arguments = ["-M", "dont", "-c", "3", "-i", "0.1", "-W", "5", "-s", "1472", &two.host_ip()];
        assert!(traffic::ping(&one.host, &arguments)?.all_came_back());
    }
    Ok(())
}

#[test]
fn who_says_that_nothing_may_be_cut_is_obeyed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(Family::V4, &[])?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    one.host.ip("link set eth0 mtu 1500")?;
    let at_core = Capture::start(&spokes.core, "s1")?;
    let frame = packet::frame(two.host_mac(), one.host_mac(), packet::ETHERTYPE_EXPERIMENT, &[0x5a; 1500]);
    capture::send(&one.host, "eth0", &[&frame])?;
    one.wait_drops("too_big", 1)?;
    // By the frame itself, where the peer is told to do as that says.
    one.daemon.mgre(&["peer", "set", "spoke2", "--df", "inherit"])?;
    let datagram = Datagram { length: 1500, ..Datagram::new(one.host_end(true), two.host_end(true)) };
    let at_two = Capture::start(&two.host, "eth0")?;
    two.host.ip("link set eth0 mtu 1500")?;
    let may = datagram.frame()?;
    let may_not = Datagram { dont_fragment: true, ..datagram }.frame()?;
    capture::send(&one.host, "eth0", &[&may_not])?;
    one.wait_drops("too_big", 2)?;
    capture::send(&one.host, "eth0", &[&may])?;
    at_two.wait_arrival("the one that may", &may)?;
    assert_eq!((at_two.arrived(&may_not), one.drops("too_big")?), (0, 2));
    assert!(at_core.frames().iter().all(|frame| frame.bytes.len() <= 1514));
    Ok(())
}

/// A link must carry 1280 bytes of IPv6, whatever is below it (RFC 7676 3.2, RFC 8200 5).
#[test]
fn ipv6_of_1280_bytes_always_passes() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in FAMILIES {
        let spokes = build(family, &[])?;
        for number in [1, 2] {
            spokes.narrow(number, 1300)?;
        }
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        wait::until("the MTU is less", wait::SOON, || {
            Ok(one.peer("spoke2")?["mtu"] == spokes.layout.mtu() - 200
                && two.peer("spoke1")?["mtu"] == spokes.layout.mtu() - 200)
        })?;
        assert!(traffic::reaches(&one.host, &two.host_ipv6())?);
        let at_core = Capture::start(&spokes.core, "s1")?;
        let passes = traffic::fits(&one.host, &two.host_ipv6(), 1280)?;
        assert!(passes, "{family:?}\n{}\n{}", told(one), told(two));
        assert!(at_core.frames().iter().all(|frame| frame.bytes.len() <= 1314));
        let whole =
            |frame: &capture::Frame| Gre::parse(&frame.bytes).is_some_and(|gre| gre.inner.len() >= 1294);
        assert_eq!(at_core.count(whole), 0, "it was not cut");
        // One more byte does not, and who sends it is told.
        assert!(!traffic::fits(&one.host, &two.host_ipv6(), 1281)?);
    }
    Ok(())
}
