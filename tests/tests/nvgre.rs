//! NVGRE (RFC 7637): GRE with a virtual subnet id and a flow id.

use std::collections::BTreeSet;

use anyhow::Result;
use mgre_tests::{
    capture::{self, Capture},
    gre::{GRE_KEY_PRESENT, Gre, Outer, TRANSPARENT_ETHERNET},
    packet::{self, BROADCAST, Datagram, MULTICAST, UNKNOWN, marked},
    skip::skipped,
    topology::{Family, Layout, SEGMENT, Spokes, Underlay},
    traffic,
    vlan::Tagging,
    wait,
};

const VSID: u32 = 0x0012_3456;
const TCP_LEAST: f64 = 50e6;

fn build(spokes: u8, family: Family) -> Result<Spokes> {
    Layout { family, vsid: Some(VSID), ..Layout::new(spokes, Underlay::Switched) }.build()
}

#[test]
fn hosts_reach_each_other_and_headers_are_as_specified() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in [Family::V4, Family::Mixed] {
        let spokes = build(3, family)?;
        let one = spokes.spoke(1);
        let at_wan = Capture::start(&one.netns, "wan0")?;
        for to in [2, 3] {
            for address in [spokes.spoke(to).host_ip(), spokes.spoke(to).host_ipv6()] {
                assert!(traffic::reaches(&one.host, &address)?, "{address}");
            }
        }
        let packets = at_wan.packets();
        assert!(packets.len() >= 8, "{}", packets.len());
        for (_, gre) in packets {
            // K alone: no checksum and no sequence number (3.2).
            assert_eq!((gre.flags, gre.protocol), (GRE_KEY_PRESENT, TRANSPARENT_ETHERNET), "{gre:?}");
            assert_eq!(gre.key.map(|key| key >> 8), Some(VSID), "{gre:?}");
        }
        drop(at_wan);
        let three = spokes.spoke(3);
        traffic::iperf3_at_least(TCP_LEAST, (&one.host, &three.host), &three.host_ip(), 1, &[])?;
        let segment = &one.daemon.list(&["segment", "show"])?[0];
        assert_eq!((&segment["vsid"], &segment["key"]), (&VSID.into(), &().into()), "{segment}");
    }
    Ok(())
}

#[test]
fn frames_for_many_go_to_each_peer() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(3, Family::V4)?;
    let one = spokes.spoke(1);
    let hosts =
        [Capture::start(&spokes.spoke(2).host, "eth0")?, Capture::start(&spokes.spoke(3).host, "eth0")?];
    let at_wan = Capture::start(&one.netns, "wan0")?;
    for to in [BROADCAST, MULTICAST, UNKNOWN] {
        let frame = marked(to, one.host_mac(), "to many");
        capture::send(&one.host, "eth0", &[&frame])?;
        for host in &hosts {
            host.wait_arrival("a flooded frame", &frame)?;
            assert_eq!(host.arrived(&frame), 1);
        }
        assert_eq!(at_wan.carrying(true, &frame).len(), 2);
    }
    Ok(())
}

/// The flow ids of packets that carry these frames.
fn flow_ids(spokes: &Spokes, frames: &[Vec<u8>]) -> Result<Vec<u8>> {
    let one = spokes.spoke(1);
    let at_wan = Capture::start(&one.netns, "wan0")?;
    capture::send(&one.host, "eth0", frames)?;
    let seen = || -> Vec<Gre> {
        let sent = at_wan.packets().into_iter().filter(|(frame, _)| frame.outgoing);
        sent.map(|(_, gre)| gre).filter(|gre| frames.contains(&gre.inner)).collect()
    };
    wait::until("all on the wire", wait::SOON, || Ok(seen().len() == frames.len()))?;
    Ok(seen().into_iter().filter_map(|gre| gre.key.map(|key| key as u8)).collect())
}

#[test]
fn a_flow_has_one_flow_id_and_flows_have_many() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(2, Family::V4)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    for v4 in [true, false] {
        let datagram = Datagram::new(one.host_end(v4), two.host_end(v4));
        let same = vec![datagram.frame()?; 10];
        let ids: BTreeSet<u8> = flow_ids(&spokes, &same)?.into_iter().collect();
        assert_eq!(ids.len(), 1, "{ids:?}");
        let frame = |port: u16| Datagram { ports: (port, 53), ..datagram.clone() }.frame();
        let many = (2000..2064).map(frame).collect::<Result<Vec<_>>>()?;
        let ids: BTreeSet<u8> = flow_ids(&spokes, &many)?.into_iter().collect();
        // 64 flows and 256 ids: 56 of them in the mean.
        assert!(ids.len() > 32, "{ids:?}");
    }
    Ok(())
}

#[test]
fn any_flow_id_is_taken_and_no_other_subnet() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for family in [Family::V4, Family::V6] {
        let spokes = build(2, family)?;
        let two = spokes.spoke(2);
        let at_two = Capture::start(&two.host, "eth0")?;
        for flow in [0, 1, 0x5a, 0xff] {
            let inner = marked(BROADCAST, UNKNOWN, &format!("flow {flow}"));
            let outer = Outer { key: Some(VSID << 8 | flow), ..spokes.outer(1, 2) };
            spokes.send_to(2, &[outer.frame(&inner)?])?;
            at_two.wait_arrival("a packet of another make", &inner)?;
        }
        let inner = marked(BROADCAST, UNKNOWN, "of another subnet");
        let before = two.drops("key_mismatch")?;
        for key in [Some((VSID + 1) << 8), Some(VSID), None] {
            spokes.send_to(2, &[Outer { key, ..spokes.outer(1, 2) }.frame(&inner)?])?;
        }
        two.wait_drops("key_mismatch", before + 3)?;
        assert_eq!(at_two.arrived(&inner), 0);
    }
    Ok(())
}

/// RFC 7637 3.2: the inner frame has no 802.1Q tag, and one that has is dropped.
#[test]
fn a_tag_inside_is_refused() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(2, Family::V4)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    let at_two = Capture::start(&two.host, "eth0")?;
    let tagged = |to| packet::tagged(&marked(to, one.host_mac(), "with a tag"), 100);
    for frame in [tagged(two.host_mac()), tagged(BROADCAST)] {
        let before = one.drops("inner_tag")?;
        capture::send(&one.host, "eth0", &[&frame])?;
        one.wait_drops("inner_tag", before + 1)?;
        let before = two.drops("inner_tag")?;
        spokes.send_to(2, &[spokes.outer(1, 2).frame(&frame)?])?;
        two.wait_drops("inner_tag", before + 1)?;
        assert_eq!(at_two.arrived(&frame), 0);
    }
    // One that the kernel keeps beside the frame.
    let _tagging = Tagging::new(&one.host, "eth0", &[(0x8100, 100)])?;
    let before = one.drops("inner_tag")?;
    capture::send(&one.host, "eth0", &[marked(two.host_mac(), one.host_mac(), "with a tag")])?;
    wait::until("it is counted", wait::SOON, || Ok(one.drops("inner_tag")? > before)).map(|_| ())
}

#[test]
fn what_cannot_be_is_refused() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = build(2, Family::V4)?;
    let daemon = &spokes.spoke(1).daemon;
    let before = daemon.mgre(&["export"])?;
    let vsid = VSID.to_string();
    let plain = (VSID << 8 | 9).to_string();
    let cases: [(&[&str], &str); 8] = [
        (&["segment", "add", "x", "--vsid", "0"], "VSID"),
        (&["segment", "add", "x", "--vsid", "4095"], "VSID"),
        (&["segment", "add", "x", "--vsid", "16777215"], "VSID"),
        (&["segment", "add", "x", "--vsid", "16777216"], "VSID"),
        (&["segment", "add", "x", "--vsid", &vsid], SEGMENT),
        (&["segment", "add", "x", "--key", &plain], SEGMENT),
        (&["peer", "set", "spoke2", "--csum"], "NVGRE"),
        (&["peer", "set", "spoke2", "--seq"], "NVGRE"),
    ];
    for (words, says) in cases {
        let refused = daemon.outcome(words)?;
        assert!(matches!(refused.code, Some(1 | 2)), "{words:?}: {refused:?}");
        assert!(refused.stderr.contains(says), "{words:?}: {refused:?}");
        assert_eq!(daemon.mgre(&["export"])?, before, "{words:?} changes something");
    }
    let both = daemon.outcome(&["segment", "add", "x", "--vsid", "5000", "--key", "7"])?;
    assert!(matches!(both.code, Some(1 | 2)), "{both:?}");
    daemon.mgre(&["segment", "add", "x", "--vsid", "4096"])?;
    daemon.mgre(&["segment", "add", "y", "--vsid", "16777214"])?;
    Ok(())
}
