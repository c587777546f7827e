//! Frames arrive as they were sent: of every type, up to the MTU, in GRE with a key and without.

use anyhow::Result;
use mgre_tests::{
    capture::{self, Capture, Frame},
    packet::{self, BROADCAST, Gre, MULTICAST, Mac},
    skip::skipped,
    topology::{KEY, Layout, SEGMENT, Spokes, Underlay},
    traffic, wait,
};

#[test]
fn frames_of_every_type_arrive_unchanged() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let (from, to) = (one.host_mac(), two.host_mac());
    let lldp_group: Mac = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
    let bytes: Vec<u8> = (0..1400).map(|index: u32| (index % 251) as u8).collect();
    let udp = packet::udp((from, one.host_ipv4()), (to, two.host_ipv4()), &bytes[..333])?;
    let mut bad_udp = udp.clone();
    bad_udp[40] ^= 0x55;
    let mut double = packet::tagged(&packet::tagged(&udp, 200), 100);
    double[12..14].copy_from_slice(&0x88a8_u16.to_be_bytes());
    let frames: Vec<(&str, Vec<u8>)> = vec![
        ("an experiment", packet::frame(to, from, packet::ETHERTYPE_EXPERIMENT, &bytes[..47])),
        (
            "an experiment to all",
            packet::frame(BROADCAST, from, packet::ETHERTYPE_EXPERIMENT, &bytes[..1400]),
        ),
        ("ARP", packet::announcement(from, one.host_ipv4())),
        ("LLDP", packet::frame(lldp_group, from, 0x88cc, &bytes[..120])),
        ("MPLS", packet::frame(to, from, 0x8847, &bytes[..99])),
        ("a length instead of a type (IEEE 802.3)", packet::frame(to, from, 64, &bytes[..64])),
        ("UDP", udp.clone()),
        ("UDP with a wrong checksum", bad_udp),
        ("802.1Q", packet::tagged(&udp, 100)),
        ("802.1Q with priority", packet::tagged(&udp, 0xe064)),
        ("802.1Q to all", packet::tagged(&packet::frame(BROADCAST, from, 0x0806, &bytes[..46]), 100)),
        ("802.1Q, an experiment", packet::tagged(&packet::frame(to, from, 0x88b5, &bytes[..801]), 4094)),
        ("802.1ad", double),
        ("IPv4 that is none", packet::frame(to, from, 0x0800, &bytes[..60])),
        ("IPv6 that is none", packet::frame(to, from, 0x86dd, &bytes[..60])),
        ("the largest", packet::frame(to, from, 0x88b5, &vec![0xa5; 1458])),
    ];
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    let at_two = Capture::start(&two.host, "eth0")?;
    for (what, frame) in &frames {
        capture::send(&one.host, "eth0", &[frame])?;
        let same = |seen: &Frame| !seen.outgoing && seen.bytes == *frame;
        if at_two.wait_for(what, wait::SOON, same).is_err() {
            let seen: Vec<_> = at_two.stop().into_iter().map(|seen| seen.bytes).collect();
            panic!(
                "{what} did not arrive as it was\n{frame:02x?}\n{seen:02x?}\n{}",
                one.daemon.mgre(&["stats", "--drops"])?
            );
        }
    }
    // A group address as a source is nobody's.
    let invalid = packet::frame(to, MULTICAST, 0x88b5, &bytes[..60]);
    capture::send(&one.host, "eth0", &[&invalid])?;
    wait::until("it is counted", wait::SOON, || Ok(one.drops("source_mac_invalid")? == 1))?;
    assert_eq!(at_two.count(|seen| seen.bytes == invalid), 0);
    Ok(())
}

#[test]
fn packets_up_to_the_mtu_pass_and_no_others() -> Result<()> {
    for key in [Some(KEY), None] {
        if skipped() {
            return Ok(());
        }
        let layout = Layout { key, ..Layout::new(2, Underlay::Switched) };
        let mtu = layout.mtu();
        let spokes = layout.build()?;
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        assert_eq!(one.peer("spoke2")?["mtu"], mtu, "key {key:?}");
        let fits = |packet: u32| traffic::fits(&one.host, &two.host_ip(), packet);
        assert!(traffic::reaches(&one.host, &two.host_ip())?);
        assert!(fits(mtu)?, "an MTU-sized packet, key {key:?}");
        assert_eq!(one.drops("too_big")?, 0);
        // The host thinks that more fits.
        one.host.ip("link set eth0 mtu 1500")?;
        assert!(fits(mtu)?);
        assert!(!fits(mtu + 1)?, "one byte more, key {key:?}");
        assert_eq!(one.drops("too_big")?, 1);
        one.host.ip(&format!("link set eth0 mtu {mtu}"))?;
        let fragments = ["-M", "dont", "-c", "2", "-i", "0.1", "-W", "5", "-s", "4000", &two.host_ip()];
        assert!(traffic::ping(&one.host, &fragments)?.all_came_back(), "fragments inside, key {key:?}");
    }
    Ok(())
}

#[test]
fn gre_without_a_key_works() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Layout { key: None, ..Layout::new(3, Underlay::Routed) }.build()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let at_wan = Capture::start(&one.netns, "wan0")?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    assert!(traffic::reaches(&one.host, &spokes.spoke(3).host_ip())?);
    let packets: Vec<_> = at_wan.stop().iter().filter_map(|packet| Gre::parse(&packet.bytes)).collect();
    assert!(!packets.is_empty());
    for gre in packets {
        assert_eq!((gre.flags, gre.key, gre.protocol), (0, None, packet::TRANSPARENT_ETHERNET));
    }
    // The same with a key that nobody has.
    let keyed =
        |spoke: &mgre_tests::topology::Spoke| spoke.daemon.mgre(&["segment", "set", SEGMENT, "--key", "0"]);
    keyed(one)?;
    assert!(traffic::cut_off(&one.host, &two.host_ip())?, "key 0 is not the same as none");
    assert!(two.drops("key_mismatch")? > 0);
    keyed(two)?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    Ok(())
}
