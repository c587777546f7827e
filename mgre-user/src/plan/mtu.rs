//! What fits into a segment.

use imbl::ordmap::DiffItem;
use mgre_common::table::Template;
use mgre_common::template::{DontFragment, Encapsulation, Outer, Tos, overlay_mtu};
use mgre_common::wire::ETHERNET_LEN;

use super::compile::count;
use super::{AdjacencyRecord, Compiled, Observed};
use crate::model::{Mtu, Segment, State, Underlay};

/// The MTU of an underlay that is not known (yet).
const USUAL_MTU: u32 = 1500;

impl AdjacencyRecord {
    /// The largest inner packet, without its Ethernet header, in bytes; none while there is no way to the peer.
    pub fn mtu(&self) -> Option<u32> {
        let Template { ifindex, max_frame, .. } = self.template;
        (ifindex != 0).then(|| max_frame.saturating_sub(ETHERNET_LEN as u32))
    }
}

impl Compiled {
    /// The MTU of interfaces in a segment: what it was told, or what fits whichever peer of the
    /// segment it is for. `state` may be ahead of what was compiled.
    pub fn segment_mtu(&self, state: &State, observed: &Observed, segment: &Segment) -> u32 {
        match segment.mtu {
            Mtu::Fixed(mtu) => mtu,
            Mtu::Auto => self.least_mtu(segment.id).unwrap_or_else(|| usual_mtu(state, observed, segment)),
        }
    }

    /// The least MTU of the adjacencies of a segment to which there is a way.
    fn least_mtu(&self, segment: u16) -> Option<u32> {
        let ((id, mtu), _) = self.mtus.range((segment, 0)..).next()?;
        (*id == segment).then_some(*mtu)
    }

    /// Brings the counts of MTUs up to date.
    pub(super) fn count_mtus(&mut self, old: &Self) {
        let mut one = |record: &AdjacencyRecord, more| {
            if let Some(mtu) = record.mtu() {
                count(&mut self.mtus, (record.segment, mtu), more);
            }
        };
        for item in old.plan.adjacencies.diff(&self.plan.adjacencies) {
            match item {
                DiffItem::Add(_, new) => one(new, true),
                DiffItem::Remove(_, old) => one(old, false),
                DiffItem::Update { old: (_, old), new: (_, new) } => {
                    one(old, false);
                    one(new, true);
                }
            }
        }
    }
}

/// What the smallest underlay leaves behind the shortest outer headers.
fn usual_mtu(state: &State, observed: &Observed, segment: &Segment) -> u32 {
    let left = |(name, underlay): (&String, &Underlay)| {
        let mtu = observed.link(name)?.mtu;
        underlay.locals.iter().map(|local| overlay_mtu(mtu, shortest(segment, local).overhead())).min()
    };
    let any = [0; 4].into();
    let usual = || overlay_mtu(USUAL_MTU, shortest(segment, any).overhead());
    state.underlays.iter().filter_map(left).min().unwrap_or_else(usual)
}

/// The outer header of a peer that was given no options.
fn shortest(segment: &Segment, local: std::net::IpAddr) -> Outer {
    Outer {
        source: local,
        destination: local,
        ttl: 0,
        tos: Tos::Fixed(0),
        dont_fragment: DontFragment::Set,
        key: segment.wire_key(),
        checksum: false,
        sequence: false,
        encapsulation: Encapsulation::Gre,
    }
}
