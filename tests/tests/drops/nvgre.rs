//! Frames that NVGRE does not carry.

use anyhow::Result;
use mgre_common::reason::{Direction, DropReason};
use mgre_tests::{
    capture,
    gre::Outer,
    netns::Netns,
    packet::{BROADCAST, Mac, mac_text, marked, tagged},
    skip::skipped,
    topology::{SEGMENT, Spokes},
};

use crate::case::{self, Case, FRAMES, Of, SENDER, TARGET, here, mgre, outer, run, send};

/// A segment of NVGRE, and its virtual subnet id.
const VIRTUAL: &str = "virtual";
const VSID: u32 = 0x5000;
/// The host in it.
const HOST: Mac = [0x02, 0, 0, 0, 2, 0x21];

pub(crate) const CASES: &[Case] = &[
    Case {
        reason: DropReason::InnerTag,
        what: "a tag in NVGRE",
        whose: Of::PeerIn("spoke1", VIRTUAL),
        direction: Direction::Receive,
        provoke: |spokes| {
            let packet = Outer { key: Some(VSID << 8), ..outer(spokes) };
            send(spokes, &[packet.frame(&tagged(&frame(), 7))?])
        },
    },
    Case {
        reason: DropReason::ReservedBits,
        what: "a sequence number in NVGRE",
        whose: Of::PeerIn("spoke1", VIRTUAL),
        direction: Direction::Receive,
        provoke: |spokes| {
            let packet = Outer { key: Some(VSID << 8), sequence: Some(1), ..outer(spokes) };
            send(spokes, &[packet.frame(&frame())?])
        },
    },
    Case {
        reason: DropReason::InnerTag,
        what: "a frame with a tag, for a peer of NVGRE",
        whose: Of::PeerIn("spoke1", VIRTUAL),
        direction: Direction::Transmit,
        provoke: |spokes| {
            let host = virtual_host(spokes)?;
            let mac = mac_text(TARGET);
            mgre(spokes, &["fdb", "add", VIRTUAL, &mac, "--peer", "spoke1"])?;
            let frames = [TARGET, BROADCAST].map(|to| tagged(&marked(to, HOST, "tagged"), 7));
            for frame in &frames {
                capture::send(&host, "eth0", &vec![frame; FRAMES as usize])?;
            }
            case::settle(spokes)?;
            Ok(FRAMES * frames.len() as u64)
        },
    },
];

fn frame() -> Vec<u8> {
    marked(BROADCAST, SENDER, "dropped")
}

/// A host in the segment of NVGRE.
fn virtual_host(spokes: &Spokes) -> Result<Netns> {
    let host = here(spokes).add_host("lan1", HOST)?;
    host.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
    mgre(spokes, &["port", "add", VIRTUAL, "lan1"])?;
    Ok(host)
}

#[test]
fn frames_that_nvgre_does_not_carry() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = case::build()?;
    mgre(&spokes, &["segment", "add", VIRTUAL, "--vsid", &VSID.to_string()])?;
    mgre(&spokes, &["peer", "set", "spoke1", "--segment", SEGMENT, VIRTUAL])?;
    spokes.wait_up()?;
    run(&spokes, CASES)
}
