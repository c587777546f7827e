//! ICMP errors about outer packets: those that could be true lower an MTU, and no others.

use std::net::IpAddr;

use anyhow::Result;
use mgre_tests::{
    gre::{Outer, v6},
    icmp::too_big,
    packet::Mac,
    skip::skipped,
    topology::{Family, KEY, Layout, Spokes, Underlay},
    wait,
};

/// Who is on the way from the first spoke.
fn router(spokes: &Spokes) -> (Mac, IpAddr) {
    let address = if spokes.layout.family == Family::V4 { [10, 0, 1, 254].into() } else { v6(1, 0xfe) };
    (spokes.spoke(1).core_mac(), address)
}

/// A packet as the first spoke sends it, from its outer IP header on.
fn sent(spokes: &Spokes) -> Outer {
    let outer = spokes.outer(1, 2);
    Outer { dont_fragment: true, ..outer }
}

fn quote(outer: &Outer, bytes: usize) -> Result<Vec<u8>> {
    Ok(outer.frame(&[0xa5; 1450])?[14..][..bytes].to_vec())
}

#[test]
fn only_what_could_be_true_is_believed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for (family, options, udp) in [
        (Family::V4, &[][..], None),
        (Family::V6, &[], None),
        (Family::V4, &["--csum"], None),
        (Family::V4, &["--encap", "gre-udp"], Some(50_000)),
        (Family::V6, &["--encap", "gre-udp"], Some(50_000)),
    ] {
        let spokes = Layout { family, options, ..Layout::new(2, Underlay::Routed) }.build()?;
        let one = spokes.spoke(1);
        let usual = spokes.layout.mtu();
        let us = (one.wan_mac(), spokes.layout.endpoint(1));
        let sent = Outer { udp, checksum: options.contains(&"--csum"), ..sent(&spokes) };
        let stranger = if family == Family::V4 { [10, 0, 2, 77].into() } else { v6(2, 77) };
        let good = quote(&sent, 128)?;
        let mut other_protocol = good.clone();
        other_protocol[if family == Family::V4 { 9 } else { 6 }] = 6;
        let quoting = |outer: Outer| quote(&outer, 128);
        let forged = [
            (1300, other_protocol),
            (1300, quoting(Outer { source: stranger, ..sent.clone() })?),
            (1300, quoting(Outer { destination: stranger, ..sent.clone() })?),
            (1300, quoting(Outer { key: Some(KEY + 1), ..sent.clone() })?),
            (1300, quoting(Outer { key: None, ..sent.clone() })?),
            (1300, quoting(Outer { protocol: 0x0800, ..sent.clone() })?),
            (1300, quoting(Outer { flags: 1, ..sent.clone() })?),
            // Less than any link has, more than this one has, and too little to tell anything from.
            (if family == Family::V4 { 68 } else { 1000 }, good.clone()),
            (9000, good.clone()),
            (1300, good[..if family == Family::V4 { 20 } else { 40 }].to_vec()),
        ];
        for (mtu, quote) in &forged {
            spokes.send_to(1, &[too_big(router(&spokes), us, *mtu, quote)?])?;
        }
        let mut damaged = too_big(router(&spokes), us, 1300, &good)?;
        if let Some(last) = damaged.last_mut() {
            *last ^= 1;
        }
        spokes.send_to(1, &[damaged])?;
        // One that could be true comes after them. It says more than they do, and is believed only if they were not.
        spokes.send_to(1, &[too_big(router(&spokes), us, 1400, &good)?])?;
        wait::until("what is true is believed", wait::SOON, || Ok(one.peer("spoke2")?["mtu"] != usual))?;
        assert_eq!(one.peer("spoke2")?["mtu"], usual - 100, "{family:?} {options:?}");
        // And it goes no further up by what anybody says.
        spokes.send_to(1, &[too_big(router(&spokes), us, 1450, &good)?])?;
        spokes.send_to(1, &[too_big(router(&spokes), us, 1390, &good)?])?;
        wait::until("less is believed too", wait::SOON, || Ok(one.peer("spoke2")?["mtu"] == usual - 110))?;
    }
    Ok(())
}

/// An old router tells no MTU; then the next one that links commonly have counts (RFC 1191 5).
#[test]
fn a_router_may_not_say_how_much_fits() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Layout::new(2, Underlay::Routed).build()?;
    let one = spokes.spoke(1);
    let us = (one.wan_mac(), spokes.layout.endpoint(1));
    // What was too big had 1478 bytes.
    let quote = quote(&sent(&spokes), 128)?;
    spokes.send_to(1, &[too_big(router(&spokes), us, 0, &quote)?])?;
    wait::until("the MTU is less", wait::SOON, || {
        let mtu = one.peer("spoke2")?["mtu"].as_u64().unwrap_or(0);
        Ok((500..1478 - 42).contains(&mtu))
    })?;
    Ok(())
}
