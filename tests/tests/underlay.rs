//! The underlay changes, and traffic follows.

use std::{
    net::Ipv4Addr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use mgre_tests::{
    capture::{self, Capture},
    netns::{self, Netns},
    packet::{self, Gre, marked},
    skip::skipped,
    topology::{Layout, SEGMENT, Spokes, Underlay},
    traffic::{self, Background},
    wait,
};

/// How long traffic may be away. It takes a tenth of that, where the machine does nothing else.
const RECOVERY: Duration = Duration::from_secs(2);
/// Seconds between echo requests that run through a change.
const INTERVAL: &str = "0.01";
/// Runs echo requests from host 1 to host 2 through a change, and says for how long replies were missing.
fn outage(spokes: &Spokes, change: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let (from, to) = (&spokes.spoke(1).host, spokes.spoke(2).host_ip());
    traffic::wait_reachable(from, &to, wait::SOON)?;
    let start = Instant::now();
    let pings = Background::ping(from, &["-i", INTERVAL, "-W", "1", &to])?;
    sleep(Duration::from_millis(300));
    change()?;
    sleep(wait::patient(RECOVERY) + Duration::from_millis(500));
    // Traffic is back, not only sent.
    assert!(traffic::reaches(from, &to)?, "no traffic after the change");
    let pings = pings.interrupt()?;
    // A busy machine sends fewer than it should.
    assert!(pings.sent > 20, "{pings:?}");
    Ok(start.elapsed() * (pings.sent - pings.received) / pings.sent)
}

#[test]
fn a_router_that_changes_its_mac_address_is_followed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    // As one does that takes over another's address.
    spokes.core.sysctl("ipv4/conf/s1/arp_notify", "1")?;
    let at_wan = Capture::start(&spokes.spoke(1).netns, "wan0")?;
    let outage = outage(&spokes, || spokes.core.ip("link set s1 address 02:00:00:00:01:fd"))?;
    assert!(outage < wait::patient(RECOVERY), "no traffic for {outage:?}");
    let last =
        at_wan.stop().into_iter().rev().find(|packet| packet.outgoing && Gre::parse(&packet.bytes).is_some());
    let to = last.and_then(|packet| packet.bytes.first_chunk().copied());
    assert_eq!(to, Some([2, 0, 0, 0, 1, 0xfd]));
    Ok(())
}

#[test]
fn our_own_mac_address_may_change() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let one = spokes.spoke(1);
    one.netns.sysctl("ipv4/conf/wan0/arp_notify", "1")?;
    let at_wan = Capture::start(&one.netns, "wan0")?;
    let outage = outage(&spokes, || one.netns.ip("link set wan0 address 02:00:00:00:01:aa"))?;
    assert!(outage < wait::patient(RECOVERY), "no traffic for {outage:?}");
    let last =
        at_wan.stop().into_iter().rev().find(|packet| packet.outgoing && Gre::parse(&packet.bytes).is_some());
    let source = last.and_then(|packet| Gre::parse(&packet.bytes)).map(|gre| gre.outer_source);
    assert_eq!(source, Some([2, 0, 0, 0, 1, 0xaa]));
    Ok(())
}

#[test]
fn a_cable_that_was_pulled_may_be_plugged_in_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let one = spokes.spoke(1);
    assert!(traffic::reaches(&one.host, &spokes.spoke(2).host_ip())?);
    spokes.core.ip("link set s1 down")?;
    wait::until("the peer is not up", wait::SOON, || Ok(one.peer("spoke2")?["state"] != "up"))?;
    assert!(one.peer("spoke2")?["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    spokes.core.ip("link set s1 up")?;
    traffic::wait_reachable(&one.host, &spokes.spoke(2).host_ip(), wait::SOON)?;
    one.wait_up()
}

/// A router between the underlay's own addresses and the one of spoke 2 that lies behind it.
fn router(core: &Netns, number: u8) -> Result<Netns> {
    let router = Netns::new(&format!("router{number}"))?;
    netns::ip(&format!(
        "link add wan0 netns {} address 02:00:00:00:f{number}:01 type veth peer name r{number} netns {}",
        router.name(),
        core.name()
    ))?;
    core.ip(&format!("link set r{number} master br0 up"))?;
    router.sysctl("ipv4/ip_forward", "1")?;
    router.sysctl("ipv4/conf/all/send_redirects", "0")?;
    router.sysctl("ipv4/conf/default/send_redirects", "0")?;
    router.sysctl("ipv4/conf/wan0/send_redirects", "0")?;
    router.ip(&format!(
        "addr add 10.0.0.1{number}/24 dev wan0\nlink set wan0 up\nroute add 10.9.9.2 via 10.0.0.2"
    ))?;
    Ok(router)
}

#[test]
fn a_route_that_changes_its_gateway_is_followed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let layout = Layout { configure: false, ..Layout::new(2, Underlay::Switched) };
    let spokes = layout.build()?;
    let routers = [router(&spokes.core, 1)?, router(&spokes.core, 2)?];
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    two.netns.ip("addr add 10.9.9.2/32 dev wan0")?;
    one.netns.ip("route add 10.9.9.2 via 10.0.0.11")?;
    for (spoke, local, remote) in [(one, "10.0.0.1", "10.9.9.2"), (two, "10.9.9.2", "10.0.0.1")] {
        let other = if spoke.number == 1 { "spoke2" } else { "spoke1" };
        spoke.daemon.mgre(&["underlay", "add", "wan0", "--local", local])?;
        spoke.daemon.mgre(&["segment", "add", SEGMENT, "--key", "7"])?;
        spoke.daemon.mgre(&["port", "add", SEGMENT, "lan0"])?;
        spoke.daemon.mgre(&["peer", "add", other, remote, "--segment", SEGMENT])?;
    }
    spokes.wait_up()?;
    let at_wan = Capture::start(&one.netns, "wan0")?;
    let outage = outage(&spokes, || one.netns.ip("route replace 10.9.9.2 via 10.0.0.12"))?;
    assert!(outage < wait::patient(RECOVERY), "no traffic for {outage:?}");
    // Both were used, and the second one last.
    let gateways: Vec<u8> = at_wan
        .stop()
        .into_iter()
        .filter(|packet| packet.outgoing)
        .filter_map(|packet| Gre::parse(&packet.bytes))
        .map(|gre| gre.outer_destination[4])
        .collect();
    assert_eq!((gateways.first(), gateways.last()), (Some(&0xf1), Some(&0xf2)));
    assert!(gateways.is_sorted(), "the route went back and forth");
    drop(routers);
    Ok(())
}

#[test]
fn a_peer_whose_next_hop_does_not_answer_is_unresolved() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    one.daemon.mgre(&["peer", "add", "silent", "10.0.0.99", "--segment", SEGMENT])?;
    one.daemon.mgre(&["peer", "add", "nowhere", "192.0.2.1", "--segment", SEGMENT])?;
    for (name, reason) in [("silent", "10.0.0.99 does not answer on wan0"), ("nowhere", "no route")] {
        wait::until(reason, wait::SOON, || {
            let peer = one.peer(name)?;
            Ok(peer["state"] == "unresolved" && peer["reason"] == reason)
        })?;
    }
    let frame = marked(packet::BROADCAST, one.host_mac(), "to all");
    let at_two = Capture::start(&two.host, "eth0")?;
    let before = one.drops("no_next_hop")?;
    capture::send(&one.host, "eth0", &[&frame])?;
    // The others have it all the same.
    at_two.wait_for("the frame", wait::SOON, |seen| seen.bytes == frame)?;
    // Other frames of the host, IPv6's for instance, may count too.
    assert!(one.drops("no_next_hop")? >= before + 2, "one for each of the two");
    let rows = one.daemon.list(&["stats", "--drops"])?;
    assert!(rows.iter().any(|row| row["peer"] == "silent" && row["reason"] == "no_next_hop"), "{rows:?}");

    // It comes up.
    let late = Netns::new("late")?;
    netns::ip(&format!(
        "link add wan0 netns {} type veth peer name late netns {}",
        late.name(),
        spokes.core.name()
    ))?;
    spokes.core.ip("link set late master br0 up")?;
    late.ip(&format!("addr add {}/24 dev wan0\nlink set wan0 up", Ipv4Addr::new(10, 0, 0, 99)))?;
    wait::until("the peer is up", wait::SOON, || Ok(one.peer("silent")?["state"] == "up"))?;
    Ok(())
}

#[test]
fn strangers_on_the_underlay_are_not_let_in() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Switched)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    let inner = marked(packet::BROADCAST, packet::UNKNOWN, "from a stranger");
    let gre = |source: Ipv4Addr, header: &[u8], inner: &[u8]| -> Result<Vec<u8>> {
        // Not by `Outer`, which makes proper ones only.
        let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0xee, 1], two.wan_mac()).ipv4(
            source.octets(),
            [10, 0, 0, 2],
            64,
        );
        let mut frame = Vec::new();
        builder.write(
            &mut frame,
            etherparse::IpNumber(packet::IP_PROTOCOL_GRE),
            &[header, inner].concat(),
        )?;
        Ok(frame)
    };
    let peer = Ipv4Addr::new(10, 0, 0, 1);
    let stranger = Ipv4Addr::new(10, 0, 0, 200);
    let key = [0, 0, 0, 7];
    let keyed = [&[0x20, 0, 0x65, 0x58][..], &key].concat();
    let with_key = |start: [u8; 4]| [&start[..], &key].concat();
    let mut damaged = gre(peer, &keyed, &inner)?;
    // A bit of the IPv4 header's TTL.
    damaged[22] ^= 1;
    // More fragments follow; the checksum is less by as much (RFC 1624).
    let mut fragment = gre(peer, &keyed, &inner)?;
    fragment[20] |= 0x20;
    let sum = u16::from_be_bytes([fragment[24], fragment[25]]);
    let (sum, borrow) = sum.overflowing_sub(0x2000);
    fragment[24..26].copy_from_slice(&(sum - u16::from(borrow)).to_be_bytes());
    let cases = [
        ("unknown_endpoint", gre(stranger, &keyed, &inner)?),
        ("key_mismatch", gre(peer, &[0x20, 0, 0x65, 0x58, 0, 0, 0, 8], &inner)?),
        ("key_mismatch", gre(peer, &[0, 0, 0x65, 0x58], &inner)?),
        ("bad_version", gre(peer, &with_key([0x20, 0x02, 0x65, 0x58]), &inner)?),
        ("routing_present", gre(peer, &with_key([0x60, 0, 0x65, 0x58]), &inner)?),
        ("reserved_bits", gre(peer, &with_key([0x24, 0, 0x65, 0x58]), &inner)?),
        ("unknown_protocol", gre(peer, &with_key([0x20, 0, 0x88, 0x47]), &inner)?),
        ("malformed", gre(peer, &keyed, &inner[..13])?),
        ("malformed", gre(peer, &[0x20, 0, 0x65, 0x58], &[])?),
        ("checksum", damaged),
        ("outer_fragment", fragment),
    ];
    let at_two = Capture::start(&two.host, "eth0")?;
    for (reason, frame) in &cases {
        let before = two.drops(reason)?;
        // From the core, whose bridge sends it the way of the destination.
        capture::send(&spokes.core, "s2", &[frame])?;
        wait::until(reason, wait::SOON, || Ok(two.drops(reason)? == before + 1))?;
    }
    assert_eq!(at_two.count(|seen| seen.bytes == inner), 0);
    assert_eq!(two.fdb(packet::UNKNOWN)?, None, "nothing is learned from them");
    // The same in proper form does pass.
    let sequence = [&with_key([0x30, 0, 0x65, 0x58])[..], &[0, 0, 0, 1]].concat();
    for (number, header) in [&keyed, &sequence].into_iter().enumerate() {
        capture::send(&spokes.core, "s2", &[gre(peer, header, &inner)?])?;
        let all = || at_two.count(|seen| seen.bytes == inner) == number + 1;
        wait::until("the frame arrives", wait::SOON, || Ok(all()))?;
    }
    // What is for another address is none of our business.
    let mut foreign = gre(stranger, &keyed, &inner)?;
    foreign[33] = 3;
    let sum = u16::from_be_bytes([foreign[24], foreign[25]]);
    foreign[24..26].copy_from_slice(&(sum - 1).to_be_bytes());
    let before = two.drops("unknown_endpoint")?;
    capture::send(&spokes.core, "s2", &[&foreign])?;
    sleep(Duration::from_millis(200));
    assert_eq!(two.drops("unknown_endpoint")?, before);
    Ok(())
}
