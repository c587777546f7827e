//! Looks after what is attached: programs that somebody else takes off are put back, and that is said.

use std::collections::BTreeSet;

use anyhow::Result;

use super::engine::Engine;
use super::observe::Stale;

/// How often links are looked at, in seconds: nobody tells of one that holds its program no more.
const LOOK_SECONDS: u32 = 5;

impl Engine {
    /// Looks now and then whether programs are where they were attached.
    pub(super) fn look_after_programs(&mut self, now: u32) {
        if !now.is_multiple_of(LOOK_SECONDS) {
            return;
        }
        let mended = self.datapath.mend_links(&self.plan.attachments, &BTreeSet::new());
        self.say_mended("program", mended);
        // What XDP runs, interfaces tell.
        let xdp: Vec<u32> = self.datapath.xdp_interfaces().collect();
        if !xdp.is_empty() {
            self.stale.some_links.extend(&xdp);
            self.stale.programs.extend(xdp);
            self.catch_up_soon();
        }
    }

    /// Puts back what somebody else removed, as far as was just looked at.
    pub(super) fn mend(&mut self, stale: &Stale) {
        if stale.all_filters || !stale.filters.is_empty() {
            let some = (!stale.all_filters).then_some(&stale.filters);
            let mended = self.datapath.mend(some);
            self.say_mended("filter", mended);
        }
        let has_none = |ifindex: &u32| {
            let link = self.observed.links.get(ifindex);
            stale.programs.contains(ifindex) && link.is_some_and(|link| link.xdp_program.is_none())
        };
        let lost: BTreeSet<u32> = self.datapath.xdp_interfaces().filter(has_none).collect();
        if !lost.is_empty() {
            let mended = self.datapath.mend_links(&self.plan.attachments, &lost);
            self.say_mended("program", mended);
        }
    }

    fn say_mended(&mut self, what: &str, mended: Result<Vec<u32>>) {
        match mended {
            Ok(mended) => {
                for ifindex in mended {
                    let name = self.observed.links.get(&ifindex).map_or("?", |link| &link.name);
                    tracing::warn!("somebody removed mgre's {what} from {name}: it is back");
                }
            }
            Err(error) => {
                tracing::error!("{error:#}; trying again");
                self.try_again();
            }
        }
    }
}
