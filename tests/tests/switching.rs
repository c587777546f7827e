//! Frames go where they should, and nowhere else.

use anyhow::Result;
use mgre_tests::{skip::skipped, topology::{Spokes, Underlay}, traffic};

#[test]
fn every_host_reaches_every_other() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Routed)?;
    for from in spokes.iter() {
        for to in spokes.iter() {
            assert!(traffic::reaches(&from.host, &to.host_ip())?, "{} to {}", from.number, to.number);
            assert!(traffic::reaches(&from.host, &to.host_ipv6())?, "{} to {} by IPv6", from.number, to.number);
        }
    }
    Ok(())
}
