//! ARP and ND are answered by the spoke where it knows the answer, and nowhere else.

use std::{net::Ipv4Addr, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use mgre_tests::{
    capture::{self, Capture, Frame},
    gre::Gre,
    metrics::Metrics,
    netns::Netns,
    packet::{BROADCAST, Mac, announcement, frame, mac_text},
    skip::skipped,
    spoke::Spoke,
    topology::{SEGMENT, Spokes, Underlay},
    traffic,
    vlan::Tagging,
    wait,
};
use serde_json::Value;

/// How long a frame that must not come is waited for.
const QUIET: Duration = Duration::from_millis(300);
/// The same claim is reported no sooner than this again.
const AGAIN: Duration = Duration::from_millis(250);

/// Spokes that suppress ARP and ND.
fn suppressing(spokes: u8) -> Result<Spokes> {
    let spokes = Spokes::new(spokes, Underlay::Routed)?;
    for spoke in spokes.iter() {
        spoke.daemon.mgre(&["segment", "set", SEGMENT, "--suppress-neighbors"])?;
    }
    Ok(spokes)
}

/// What a spoke knows of an address.
fn known(spoke: &Spoke, address: &str) -> Result<Option<Value>> {
    Ok(spoke.daemon.list(&["neigh", "show"])?.into_iter().find(|entry| entry["address"] == address))
}

/// Waits until a spoke knows who has an address, and at which peer or port.
fn wait_known(spoke: &Spoke, address: &str, mac: Mac, kind: &str, place: &str) -> Result<()> {
    let what = format!("spoke {} has {address} with {} at {place}", spoke.number, mac_text(mac));
    let mac = mac_text(mac);
    wait::until(&what, wait::SOON, || {
        Ok(known(spoke, address)?.is_some_and(|entry| entry["mac"] == mac.as_str() && entry[kind] == place))
    })
    .map(|_| ())
}

/// Says something until a spoke knows it.
fn claim(host: &Netns, mac: Mac, address: Ipv4Addr, told: impl Fn() -> Result<bool>) -> Result<()> {
    let mut said = 0;
    wait::until("a claim is known", wait::SOON, || {
        // It may have come before the address of its host was known.
        if said % 15 == 0 {
            capture::send(host, "eth0", &[announcement(mac, address)])?;
        }
        said += 1;
        told()
    })
    .map(|_| ())
}

/// Whether an ARP request or a solicitation of this host is in a packet that leaves, for a host that is not
/// asked alone.
fn is_flooded_question(packet: &Frame, asker: Mac) -> bool {
    let Some(gre) = Gre::parse(&packet.bytes).filter(|_| packet.outgoing) else { return false };
    let inner = &gre.inner;
    let from_asker = inner.get(6..12) == Some(&asker[..]) && inner[0] & 1 != 0;
    let arp = inner.get(12..14) == Some(&[8, 6][..]) && inner.get(20..22) == Some(&[0, 1][..]);
    // A neighbour solicitation with a sender's address; one without looks for duplicates.
    let nd = inner.get(12..14) == Some(&[0x86, 0xdd][..])
        && inner.get(54) == Some(&135)
        && inner.get(22..38) != Some(&[0; 16][..]);
    from_asker && (arp || nd)
}

/// The host forgets whom it knows.
fn forget(host: &Netns) -> Result<()> {
    host.ip("neigh flush all")
}

fn counter(spoke: &Spoke, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    let labels = [&[("segment", SEGMENT)], labels].concat();
    Ok(Metrics::over_socket(&spoke.daemon.socket())?.get(name, &labels).unwrap_or(f64::NAN))
}

#[test]
fn who_is_known_is_not_asked_for_on_the_underlay() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = suppressing(3)?;
    {
        let (one, two) = (spokes.spoke(1), spokes.spoke(2));
        for address in [two.host_ip(), two.host_ipv6()] {
            assert!(traffic::reaches(&one.host, &address)?);
            wait_known(one, &address, two.host_mac(), "peer", "spoke2")?;
        }
        wait_known(one, &one.host_ip(), one.host_mac(), "port", "lan0")?;
        // Its own host and the other, and both addresses of that.
        assert!(counter(one, "mgre_neighbor_entries", &[])? >= 3.0);
        asks_without_a_flood(one, two)?;
        assert!(counter(one, "mgre_neighbor_replies_total", &[("protocol", "arp")])? >= 1.0);
        assert!(counter(one, "mgre_neighbor_replies_total", &[("protocol", "nd")])? >= 1.0);
        let table = one.daemon.mgre(&["neigh", "show", "--segment", SEGMENT])?;
        assert!(table.starts_with("SEGMENT  ADDRESS"), "{table}");
        assert_ne!(one.daemon.outcome(&["neigh", "show", "--segment", "nowhere"])?.code, Some(0));
    }
    // Without a daemon, too; and the next one knows what this one knew.
    spokes.spoke_mut(1).daemon.kill()?;
    asks_without_a_flood(spokes.spoke(1), spokes.spoke(2))?;
    spokes.spoke_mut(1).daemon.start_again()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    for address in [two.host_ip(), two.host_ipv6()] {
        let entry = known(one, &address)?;
        assert_eq!(entry.map(|entry| entry["peer"].clone()), Some("spoke2".into()), "{address}");
    }
    asks_without_a_flood(one, two)?;

    // Switched off, all of it is as it was.
    one.daemon.mgre(&["segment", "set", SEGMENT, "--suppress-neighbors", "off"])?;
    assert_eq!(one.daemon.list(&["neigh", "show"])?, Vec::<Value>::new());
    let wan = Capture::start(&one.netns, "wan0")?;
    forget(&one.host)?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    wan.wait_for("the question is flooded", wait::SOON, |packet| {
        is_flooded_question(packet, one.host_mac())
    })?;
    Ok(())
}

/// The host behind the one looks for the other anew.
fn asks_without_a_flood(one: &Spoke, two: &Spoke) -> Result<()> {
    let wan = Capture::start(&one.netns, "wan0")?;
    let host = Capture::start(&one.host, "eth0")?;
    for address in [two.host_ip(), two.host_ipv6()] {
        forget(&one.host)?;
        ensure!(traffic::reaches(&one.host, &address)?, "{address} is out of reach");
    }
    let asked = |kind: [u8; 2]| host.count(|packet| packet.outgoing && packet.bytes[12..14] == kind);
    ensure!(asked([8, 6]) > 0 && asked([0x86, 0xdd]) > 0, "the host asked nobody");
    let flooded = wan.count(|packet| is_flooded_question(packet, one.host_mac()));
    ensure!(flooded == 0, "{flooded} questions were flooded");
    Ok(())
}

#[test]
fn an_address_moves_to_another_mac_address_and_to_another_spoke() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = suppressing(3)?;
    let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    let (address, new) = (two.host_ip(), [2, 0, 0, 0, 2, 0x77]);
    assert!(traffic::reaches(&one.host, &address)?);
    wait_known(one, &address, two.host_mac(), "peer", "spoke2")?;

    // The host gets another card, and says so.
    two.host.ip(&format!("link set eth0 address {}", mac_text(new)))?;
    let knows =
        |mac: Mac| Ok(known(one, &address)?.is_some_and(|entry| entry["mac"] == mac_text(mac).as_str()));
    claim(&two.host, new, two.host_ipv4(), || knows(new))?;
    wait_known(one, &address, new, "peer", "spoke2")?;
    forget(&one.host)?;
    assert!(traffic::reaches(&one.host, &address)?);

    // Another host gets the address.
    two.host.ip(&format!("addr del {address}/24 dev eth0"))?;
    three.host.ip(&format!("addr add {address}/24 dev eth0"))?;
    claim(&three.host, three.host_mac(), two.host_ipv4(), || knows(three.host_mac()))?;
    wait_known(one, &address, three.host_mac(), "peer", "spoke3")?;
    forget(&one.host)?;
    assert!(traffic::reaches(&one.host, &address)?);

    // A machine moves with all that it has: only its place changes.
    let (machine, guest) = ([2, 0, 0, 0, 9, 0x55], Ipv4Addr::new(10, 77, 0, 55));
    let before = two.add_host("vm0", machine)?;
    before.ip(&format!("addr add {guest}/24 dev eth0"))?;
    two.daemon.mgre(&["port", "add", SEGMENT, "vm0"])?;
    claim(&before, machine, guest, || Ok(known(one, &guest.to_string())?.is_some()))?;
    wait_known(one, &guest.to_string(), machine, "peer", "spoke2")?;
    drop(before);
    let after = three.add_host("vm0", machine)?;
    after.ip(&format!("addr add {guest}/24 dev eth0"))?;
    three.daemon.mgre(&["port", "add", SEGMENT, "vm0"])?;
    claim(&after, machine, guest, || {
        Ok(known(one, &guest.to_string())?.is_some_and(|entry| entry["peer"] == "spoke3"))
    })?;
    forget(&one.host)?;
    assert!(traffic::reaches(&one.host, &guest.to_string())?);
    Ok(())
}

#[test]
fn only_the_owner_answers_probes_and_hears_announcements() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = suppressing(3)?;
    let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    for address in [two.host_ip(), two.host_ipv6()] {
        assert!(traffic::reaches(&one.host, &address)?);
        wait_known(one, &address, two.host_mac(), "peer", "spoke2")?;
    }
    // RFC 5227 2.1.1: is this address free? As `arping -D` asks.
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    let mut probe = [&fixed[..], &one.host_mac(), &[0; 4], &[0; 6], &two.host_ipv4().octets()[..]].concat();
    probe.resize(46, 0);
    let probe = frame(BROADCAST, one.host_mac(), 0x0806, &probe);
    let (at_one, at_two) = (Capture::start(&one.host, "eth0")?, Capture::start(&two.host, "eth0")?);
    capture::send(&one.host, "eth0", &[&probe])?;
    at_two.wait_arrival("the probe arrives at the owner", &probe)?;
    at_one.wait_for("the owner defends his address", wait::SOON, |packet| {
        !packet.outgoing
            && packet.bytes[12..14] == [8, 6]
            && packet.bytes[20..22] == [0, 2]
            && packet.bytes[28..32] == two.host_ipv4().octets()
    })?;
    // RFC 5227 3: an announcement is for all.
    let at_three = Capture::start(&three.host, "eth0")?;
    let announced = announcement(one.host_mac(), one.host_ipv4());
    capture::send(&one.host, "eth0", &[&announced])?;
    for (capture, number) in [(&at_two, 2), (&at_three, 3)] {
        capture.wait_arrival(&format!("the announcement arrives at host {number}"), &announced)?;
    }
    sleep(wait::quiet(QUIET));
    assert_eq!(at_three.arrived(&announced), 1);

    // RFC 4862 5.4: a host finds out by itself that another one has its address.
    one.host.sysctl("ipv6/conf/eth0/accept_dad", "1")?;
    one.host.ip(&format!("addr add {}/64 dev eth0", two.host_ipv6()))?;
    let failed = || Ok(one.host.run(&["ip", "-6", "addr", "show", "dev", "eth0"])?.contains("dadfailed"));
    wait::until("the kernel finds the duplicate", wait::SOON, failed)?;
    // It defends it before all, and so spoke 3 knows: who was there first has it.
    wait_known(three, &two.host_ipv6(), two.host_mac(), "peer", "spoke2")?;
    Ok(())
}

#[test]
fn nobody_answers_for_two_hosts_with_one_address() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = suppressing(3)?;
    let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    let address = Ipv4Addr::new(10, 77, 0, 200);
    let is_duplicate = || {
        Ok(known(three, &address.to_string())?.is_some_and(|entry| {
            entry["flags"].as_array().is_some_and(|flags| flags.contains(&"duplicate".into()))
        }))
    };
    wait::until("the duplicate is found", wait::SOON * 2, || {
        for spoke in [one, two] {
            capture::send(&spoke.host, "eth0", &[announcement(spoke.host_mac(), address)])?;
            sleep(AGAIN);
        }
        is_duplicate()
    })?;
    assert!(counter(three, "mgre_neighbor_duplicates_total", &[])? >= 1.0);
    assert!(three.daemon.log().contains("two hosts have one address"));

    // Both hear the question.
    let hosts = [Capture::start(&one.host, "eth0")?, Capture::start(&two.host, "eth0")?];
    let octets = three.host_ipv4().octets();
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    let mut question = [&fixed[..], &three.host_mac(), &octets, &[0; 6], &address.octets()].concat();
    question.resize(46, 0);
    let question = frame(BROADCAST, three.host_mac(), 0x0806, &question);
    capture::send(&three.host, "eth0", &[&question])?;
    for host in &hosts {
        host.wait_arrival("the question arrives", &question)?;
    }
    Ok(())
}

/// A peer that says that it has a million addresses gets its share of the table, and nobody else loses by it.
#[test]
fn a_peer_that_invents_addresses_has_its_share_and_no_more() -> Result<()> {
    const SHARE: usize = 4096;
    if skipped() {
        return Ok(());
    }
    let spokes = suppressing(3)?;
    let (one, three) = (spokes.spoke(1), spokes.spoke(3));
    assert!(traffic::reaches(&one.host, &three.host_ip())?);
    wait_known(one, &three.host_ip(), three.host_mac(), "peer", "spoke3")?;

    let outer = spokes.outer(2, 1);
    let packets: Vec<Vec<u8>> = (0..10_000_u32)
        .map(|number| {
            let [_, a, b, c] = number.to_be_bytes();
            let host = (number / 50) as u8;
            outer.frame(&announcement([2, 0, 0x66, 0, 0, host], Ipv4Addr::new(11, a, b, c)))
        })
        .collect::<Result<_>>()?;
    let invented = || -> Result<usize> {
        let entries = one.daemon.list(&["neigh", "show"])?;
        Ok(entries.iter().filter(|entry| entry["peer"] == "spoke2").count())
    };
    wait::until("the peer has its share", 6 * wait::SOON, || {
        spokes.send_to(1, &packets)?;
        let count = invented()?;
        ensure!(count <= SHARE, "{count} invented addresses");
        Ok(count == SHARE)
    })?;
    spokes.send_to(1, &packets)?;

    // The others have theirs, and may have new ones.
    wait_known(one, &three.host_ip(), three.host_mac(), "peer", "spoke3")?;
    let new = Ipv4Addr::new(10, 77, 0, 222);
    claim(&three.host, three.host_mac(), new, || Ok(known(one, &new.to_string())?.is_some()))?;
    forget(&one.host)?;
    assert!(traffic::reaches(&one.host, &three.host_ip())?);
    assert!(invented()? <= SHARE);
    Ok(())
}

/// An interface of the host gets its reply into its receive path, a port by VLAN with its tag.
#[test]
fn other_kinds_of_ports_are_answered_too() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = suppressing(2)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let (made, guest_mac) = ([2, 0, 0, 0, 1, 0x61], [2, 0, 0, 0, 1, 0x62]);
    let create = ["port", "create", SEGMENT, "ov0", "--address", "10.77.0.201/24", "--mac", &mac_text(made)];
    one.daemon.mgre(&create)?;
    one.netns.sysctl("ipv6/conf/ov0/disable_ipv6", "0")?;
    one.netns.ip("addr add fd77::201/64 dev ov0 nodad")?;
    let guest = one.add_host("lan1", guest_mac)?;
    one.daemon.mgre(&["port", "add", SEGMENT, "lan1", "--vlan", "7"])?;
    let _tagging = Tagging::new(&guest, "eth0", &[(0x8100, 7)])?;
    guest.ip("addr add 10.77.0.77/24 dev eth0\naddr add fd77::77/64 dev eth0 nodad")?;

    for (netns, interface, mac) in [(&one.netns, "ov0", made), (&guest, "eth0", guest_mac)] {
        for address in [two.host_ip(), two.host_ipv6()] {
            assert!(traffic::reaches(netns, &address)?, "{address} from {interface}");
            wait_known(one, &address, two.host_mac(), "peer", "spoke2")?;
        }
        let wan = Capture::start(&one.netns, "wan0")?;
        let replies = |protocol| counter(one, "mgre_neighbor_replies_total", &[("protocol", protocol)]);
        for (protocol, address) in [("arp", two.host_ip()), ("nd", two.host_ipv6())] {
            let before = replies(protocol)?;
            netns.ip(&format!("neigh flush dev {interface}"))?;
            assert!(traffic::reaches(netns, &address)?, "{address} from {interface}");
            assert!(replies(protocol)? > before, "{protocol} from {interface}");
        }
        assert_eq!(wan.count(|packet| is_flooded_question(packet, mac)), 0, "from {interface}");
    }
    // The interface that the daemon made is answered for as well.
    assert!(traffic::reaches(&two.host, "10.77.0.201")?);
    wait_known(two, "10.77.0.201", made, "peer", "spoke1")?;
    asks_for(two, "10.77.0.201")
}

/// A host asks anew, and its spoke answers.
fn asks_for(spoke: &Spoke, address: &str) -> Result<()> {
    let wan = Capture::start(&spoke.netns, "wan0")?;
    forget(&spoke.host)?;
    ensure!(traffic::reaches(&spoke.host, address)?, "{address} is out of reach");
    let flooded = wan.count(|packet| is_flooded_question(packet, spoke.host_mac()));
    ensure!(flooded == 0, "{flooded} questions were flooded");
    Ok(())
}
