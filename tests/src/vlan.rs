//! Hosts whose frames have VLAN tags, also where the kernel has no VLAN interfaces.

use anyhow::Result;

use crate::{
    bench::{
        assemble,
        bpf::{Hook, Kind, Link, Program},
    },
    netns::Netns,
};

/// A tag: its protocol (802.1Q is 0x8100, 802.1ad 0x88a8), and priority and VLAN.
pub type Tag = (u16, u16);

/// What leaves an interface has tags while this lives, and what comes in with them has them no more. The kernel keeps
/// the outer one beside the frame, as it does for VLAN interfaces; superframes have theirs too.
#[derive(Debug)]
pub struct Tagging {
    _links: [Link; 2],
}

impl Tagging {
    /// Begins, with these tags, the outer one last.
    ///
    /// # Errors
    /// There is no such interface, no tag, or the kernel refuses.
    pub fn new(netns: &Netns, interface: &str, tags: &[Tag]) -> Result<Self> {
        let outer = tags.last().map_or(0, |tag| tag.1);
        let attach =
            |program: Vec<u64>, hook| Program::load(Kind::Classifier, &program)?.attach(hook, interface);
        netns.enter(|| {
            let push = attach(assemble::push_vlans(tags), Hook::TcxEgress)?;
            let pop = attach(assemble::pop_vlans(outer, tags.len()), Hook::TcxIngress)?;
            Ok(Self { _links: [push, pop] })
        })?
    }
}
