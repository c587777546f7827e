//! The FDB as the API lists it.
//!
//! The engine copies the entries, and what names them, in milliseconds; a list of a
//! million views takes a second to make and to sort, so that is done elsewhere.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use mgre_common::fdb::FdbKey;
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

use super::engine::Engine;
use crate::api::messages::{FdbFilter, FdbFlag, FdbView, Place, Problem};
use crate::datapath::fdb::Entry;

/// Entries, and what it takes to name them.
pub(super) struct Listing {
    entries: Vec<Entry>,
    segments: HashMap<u16, String>,
    places: HashMap<Target, (Place, Option<IpAddr>)>,
    local: HashSet<FdbKey>,
    now: u32,
}

impl Engine {
    /// The entries that a filter picks.
    pub(super) fn list_fdb(&self, filter: &FdbFilter) -> Result<Listing, Problem> {
        let picked = self.picked(filter)?;
        Ok(self.listing(self.datapath.fdb.iter().filter(picked).collect()))
    }

    /// The entry of an address, if there is one.
    pub(super) fn list_fdb_entry(&self, segment: &str, mac: MacAddr) -> Result<Vec<FdbView>, Problem> {
        let key = FdbKey::new(self.segment_id(segment)?, mac);
        Ok(self.listing(self.datapath.fdb.find(key).into_iter().collect()).views())
    }

    fn listing(&self, entries: Vec<Entry>) -> Listing {
        let mut segments = HashMap::new();
        let mut places = HashMap::new();
        for segment in self.state.segments.values().map(|segment| segment.id) {
            segments.extend(self.index.segment(segment).map(|name| (segment, name.to_owned())));
        }
        for target in entries.iter().map(|entry| entry.target) {
            if !places.contains_key(&target)
                && let Some(place) = self.index.place(target)
            {
                let outcome = place.peer.as_ref().and_then(|peer| self.compiled.peers.get(peer.as_str()));
                let endpoint = outcome.and_then(|outcome| outcome.endpoint);
                places.insert(target, (place, endpoint));
            }
        }
        let local = self.plan.fixed.iter().filter(|(_, fixed)| fixed.local).map(|(key, _)| *key).collect();
        Listing { entries, segments, places, local, now: self.datapath.now() }
    }
}

impl Listing {
    /// The entries by segment and address, without those whose names are gone.
    pub(super) fn views(self) -> Vec<FdbView> {
        let mut views: Vec<FdbView> = self.entries.iter().filter_map(|entry| self.view(entry)).collect();
        views.sort_unstable_by(|a, b| (&a.segment, a.mac).cmp(&(&b.segment, b.mac)));
        views
    }

    fn view(&self, entry: &Entry) -> Option<FdbView> {
        let segment = self.segments.get(&entry.key.segment())?;
        let (place, endpoint) = self.places.get(&entry.target)?.clone();
        let flag = match entry.seen {
            Some(_) => FdbFlag::Learned,
            None if self.local.contains(&entry.key) => FdbFlag::Local,
            None => FdbFlag::Static,
        };
        Some(FdbView {
            segment: segment.clone(),
            mac: entry.key.mac(),
            peer: place.peer,
            port: place.port,
            endpoint,
            flags: [flag].into_iter().chain(entry.held.then_some(FdbFlag::Held)).collect(),
            age_seconds: entry.seen.map(|seen| u64::from(self.now.saturating_sub(seen))),
        })
    }
}
