//! TC filters and qdiscs of an interface, as tc(8) shows them.

use anyhow::Result;

use crate::netns::Netns;

/// Both directions, as tc(8) calls them.
pub const DIRECTIONS: [&str; 2] = ["ingress", "egress"];

/// The filters of a direction, a line for each, in the order in which frames meet them.
///
/// # Errors
/// There is no such interface.
pub fn filters(netns: &Netns, interface: &str, direction: &str) -> Result<Vec<String>> {
    let text = netns.run(&["tc", "filter", "show", "dev", interface, direction])?;
    let lines = text.lines().filter(|line| line.contains(" handle ") || line.contains(" fh "));
    Ok(lines.map(str::to_owned).collect())
}

/// mgre's filters, in both directions.
///
/// # Errors
/// There is no such interface.
pub fn own(netns: &Netns, interface: &str) -> Result<Vec<String>> {
    let mut own = Vec::new();
    for direction in DIRECTIONS {
        own.extend(filters(netns, interface, direction)?.into_iter().filter(|line| line.contains(" mgre_")));
    }
    Ok(own)
}

/// Whether the interface has a clsact qdisc.
///
/// # Errors
/// There is no such interface.
pub fn has_qdisc(netns: &Netns, interface: &str) -> Result<bool> {
    Ok(netns.run(&["tc", "qdisc", "show", "dev", interface])?.contains("qdisc clsact"))
}
