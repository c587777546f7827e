//! Packets that are refused for what is outside.

use std::net::IpAddr;

use anyhow::Result;
use mgre_common::reason::{Direction, DropReason};
use mgre_tests::{
    gre::Outer,
    packet::{BROADCAST, marked},
    skip::skipped,
    topology::{KEY, Spokes},
    wait,
};

use crate::case::{self, Case, FRAMES, HERE, Of, SENDER, outer, run, send};

/// Cases whose counter is nobody's.
const fn nobody(reason: DropReason, what: &'static str, provoke: fn(&Spokes) -> Result<u64>) -> Case {
    Case { reason, what, whose: Of::Nobody, direction: Direction::Receive, provoke }
}

pub(crate) const CASES: &[Case] = &[
    nobody(DropReason::Malformed, "an inner frame without a whole Ethernet header", |spokes| {
        send(spokes, &[outer(spokes).frame(&[0xff; 13])?])
    }),
    nobody(DropReason::Malformed, "a packet longer than what there is of it", |spokes| {
        let mut packet = outer(spokes).frame(&inner())?;
        packet.truncate(packet.len() - 1);
        send(spokes, &[packet])
    }),
    nobody(DropReason::Malformed, "a UDP length that is not that of the packet", |spokes| {
        let mut packet = Outer { udp: Some(50_000), ..outer(spokes) }.frame(&inner())?;
        packet[UDP_LENGTH_AT] ^= 1;
        send(spokes, &[packet])
    }),
    nobody(DropReason::BadVersion, "GRE versions 2 and 7", |spokes| {
        send(spokes, &[with_flags(spokes, 2)?, with_flags(spokes, 7)?])
    }),
    nobody(DropReason::RoutingPresent, "the routing bit", |spokes| {
        send(spokes, &[with_flags(spokes, 0x4000)?])
    }),
    nobody(DropReason::ReservedBits, "bits 4 and 5", |spokes| {
        send(spokes, &[with_flags(spokes, 0x0800)?, with_flags(spokes, 0x0400)?])
    }),
    nobody(DropReason::Checksum, "a wrong IPv4 header checksum", |spokes| {
        let mut packet = outer(spokes).frame(&inner())?;
        packet[IPV4_CHECKSUM_AT] ^= 1;
        send(spokes, &[packet])
    }),
    nobody(DropReason::UnknownProtocol, "IPv4 right inside GRE", |spokes| {
        send(spokes, &[Outer { protocol: 0x0800, ..outer(spokes) }.frame(&inner())?])
    }),
    nobody(DropReason::UnknownEndpoint, "a source address that is nobody's", |spokes| {
        send(spokes, &[Outer { source: STRANGER, ..outer(spokes) }.frame(&inner())?])
    }),
    nobody(DropReason::KeyMismatch, "another key, key 0, and no key", |spokes| {
        let keys = [Some(KEY + 1), Some(0), None];
        let packet = |key| Outer { key, ..outer(spokes) }.frame(&inner());
        send(spokes, &keys.into_iter().map(packet).collect::<Result<Vec<_>>>()?)
    }),
    nobody(DropReason::OuterFragment, "fragments, which the kernel gets", |spokes| {
        let mut sent = 0;
        for identification in 1..=FRAMES as u16 {
            let packet = Outer { identification, ..outer(spokes) };
            let fragments = packet.fragments(&[&inner()[..], &[0; 900]].concat(), 400)?;
            spokes.send_to(2, &fragments)?;
            sent += fragments.len() as u64;
        }
        Ok(sent)
    }),
    nobody(DropReason::ForeignGre, "what is no peer's, where the kernel is to have it", |spokes| {
        let underlay = |verdict| {
            spokes.spoke(HERE).daemon.mgre(&["underlay", "set", "wan0", "--foreign-gre", verdict]).map(drop)
        };
        underlay("pass")?;
        let sent = send(spokes, &[Outer { source: STRANGER, ..outer(spokes) }.frame(&inner())?])?;
        wait::until("the kernel has them", wait::SOON, || {
            Ok(spokes.spoke(HERE).drops(DropReason::ForeignGre.name())? == sent)
        })?;
        underlay("drop")?;
        Ok(sent)
    }),
];

/// Where the second byte of the IPv4 header's checksum is, and of UDP's length behind it.
const IPV4_CHECKSUM_AT: usize = 14 + 11;
const UDP_LENGTH_AT: usize = 14 + 20 + 5;
/// An address of the underlay that no peer has.
const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 99));

fn inner() -> Vec<u8> {
    marked(BROADCAST, SENDER, "refused")
}

fn with_flags(spokes: &Spokes, flags: u16) -> Result<Vec<u8>> {
    Outer { flags, ..outer(spokes) }.frame(&inner())
}

#[test]
fn packets_refused_for_what_is_outside() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    run(&case::build()?, CASES)
}

/// XDP drops what belongs to nobody before there is a socket buffer, and counts it as well.
#[test]
fn packets_refused_by_xdp() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = case::build()?;
    let two = spokes.spoke(2);
    two.daemon.mgre(&["underlay", "del", "wan0", "--force"])?;
    two.daemon.mgre(&["underlay", "add", "wan0", "--local", "10.0.0.2", "--mode", "native"])?;
    two.wait_up()?;
    run(&spokes, CASES)
}
