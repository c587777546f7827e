//! What a daemon takes over from the one before it.
//!
//! The programs that an earlier daemon left attached go on forwarding, by tables
//! that only they hold. Before this daemon's programs are swapped in, it copies
//! what was learned and counted out of those tables. Ids are saved with the state,
//! so they mean the same.

use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use aya::maps::{MapData, MapInfo};
use aya::programs::loaded_programs;
use mgre_common::counters::{Drops, SegmentTraffic, Traffic};
use mgre_common::fdb::{Bucket, FdbKey};
use mgre_common::map_name;
use mgre_common::table::{Clock, Sequence};

use super::attach::Remains;
use super::calls;
use super::fdb::{Entry, slot_entry};
use super::handed;
use super::shared::{Shared, SharedArray};
use super::tallies::Tallies;

/// The tables of an earlier daemon.
#[derive(Debug)]
pub struct Predecessor {
    fdb: SharedArray<Bucket>,
    clock: SharedArray<Clock>,
    pub(super) traffic: SharedArray<Traffic>,
    pub(super) drops: SharedArray<Drops>,
    pub(super) segment_traffic: SharedArray<SegmentTraffic>,
}

impl Predecessor {
    /// Finds them through the programs that are still attached; none if there are none.
    ///
    /// # Errors
    /// There are programs, but they cannot be looked at.
    pub fn find(remains: &Remains) -> Result<Option<Self>> {
        if remains.programs.is_empty() {
            return Ok(None);
        }
        let maps = Maps::of(remains)?;
        Ok(Some(Self {
            fdb: open_as(maps.need(map_name::FDB)?)?,
            clock: open_as(maps.need(map_name::CLOCK)?)?,
            traffic: open_as(maps.need(map_name::TRAFFIC)?)?,
            drops: open_as(maps.need(map_name::DROPS)?)?,
            segment_traffic: open_as(maps.need(map_name::SEGMENT_TRAFFIC)?)?,
        }))
    }

    /// Its clock.
    pub fn now(&self) -> u32 {
        self.clock.get(0).map_or(0, |clock| clock.seconds.load(Ordering::Relaxed))
    }

    /// What it had learned.
    pub fn learned(&self) -> impl Iterator<Item = Entry> {
        (0..self.fdb.len())
            .filter_map(|index| self.fdb.get(index))
            .flat_map(|bucket| &bucket.slots)
            .filter(|slot| !slot.holds(FdbKey::EMPTY))
            .map(slot_entry)
            .filter(|entry| entry.seen.is_some() && !entry.target.is_none())
    }
}

/// More packets than are sent between the copy of a sequence number and the swap of the programs.
/// Numbers may be left out, but none may be used again: the peer would take it for an old one.
const SENT_MEANWHILE: u64 = 1 << 20;
/// The same for IPv4 identifications, of which there are 65,536.
const IDS_MEANWHILE: u64 = 1 << (Sequence::IDS_SHIFT + 14);

/// The sequence numbers of an earlier daemon, if a program of its knows of them.
///
/// # Errors
/// There are programs, but they cannot be looked at.
pub(super) fn sequences(remains: &Remains) -> Result<Option<SharedArray<Sequence>>> {
    // Programs for XDP leave numbered packets to others.
    find_map(remains, map_name::SEQUENCES)?.map(open_as).transpose()
}

/// What an earlier daemon counted itself, if it did. No program knows of that map: it is found by its pin alone.
///
/// # Errors
/// There is one, but it cannot be looked at.
pub(super) fn tallies(remains: &Remains) -> Result<Option<Tallies>> {
    let map = handed::open(&remains.pins, map_name::TALLIES)?;
    Ok(map.map(open_as).transpose()?.map(Tallies::new))
}

/// A map of an earlier daemon, if a program of its knows of it.
///
/// # Errors
/// There are programs, but they cannot be looked at.
pub(super) fn find_map(remains: &Remains, name: &str) -> Result<Option<MapData>> {
    if remains.programs.is_empty() {
        return Ok(None);
    }
    Maps::of(remains)?.open(name)
}

/// The maps of an earlier daemon: those of its programs that are attached, and of the programs that those go on in.
/// Where the kernel does not tell them, for want of CAP_SYS_ADMIN, those that it pinned.
struct Maps<'a> {
    found: Vec<MapInfo>,
    pins: &'a Path,
}

impl<'a> Maps<'a> {
    fn of(remains: &'a Remains) -> Result<Self> {
        let mut maps = Self { found: Vec::new(), pins: &remains.pins };
        for program in &remains.programs {
            maps.add_those_of(program.program)?;
        }
        let arrays =
            maps.found.iter().filter(|map| map.name_as_str() == Some(map_name::CALLS)).map(MapInfo::id);
        for array in arrays.collect::<Vec<_>>() {
            for program in calls::programs_in(array)? {
                maps.add_those_of(program)?;
            }
        }
        Ok(maps)
    }

    fn add_those_of(&mut self, program: u32) -> Result<()> {
        let mut loaded = loaded_programs().flatten();
        // One that is attached may be detached at any time.
        let Some(program) = loaded.find(|loaded| loaded.id() == program) else { return Ok(()) };
        for id in program.map_ids()?.context("the kernel does not say which maps a program uses")? {
            if !self.found.iter().any(|map| map.id() == id) {
                self.found.push(MapInfo::from_id(id)?);
            }
        }
        Ok(())
    }

    fn open(&self, name: &str) -> Result<Option<MapData>> {
        match self.found.iter().find(|map| map.name_as_str() == Some(name)) {
            Some(map) => Ok(Some(MapData::from_id(map.id())?)),
            None if self.found.is_empty() => handed::open(self.pins, name),
            None => Ok(None),
        }
    }

    fn need(&self, name: &str) -> Result<MapData> {
        self.open(name)?.with_context(|| {
            format!("the attached programs have no map {name}, or finding it takes CAP_SYS_ADMIN")
        })
    }
}

/// Goes on with the sequence numbers of an adjacency.
pub(super) fn inherit_sequence(from: &Sequence, to: &Sequence) {
    let sent = from.sent.load(Ordering::Relaxed);
    // The first number of all is zero (RFC 2890 2.2).
    let numbers = if sent as u32 == 0 { 0 } else { SENT_MEANWHILE };
    to.sent.store(sent.wrapping_add(numbers).wrapping_add(IDS_MEANWHILE), Ordering::Relaxed);
    to.received.store(from.received.load(Ordering::Relaxed), Ordering::Relaxed);
}

fn open_as<T: Shared>(data: MapData) -> Result<SharedArray<T>> {
    let array = SharedArray::map(&data)?;
    ensure!(!array.is_empty(), "an empty table");
    Ok(array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sequence_number_is_used_twice() {
        let (old, new) = (Sequence::default(), Sequence::default());
        inherit_sequence(&old, &new);
        assert_eq!(new.sent.load(Ordering::Relaxed), IDS_MEANWHILE, "the first number of all");
        old.sent.store(7, Ordering::Relaxed);
        old.received.store(5 << 32 | 9, Ordering::Relaxed);
        inherit_sequence(&old, &new);
        assert_eq!(new.sent.load(Ordering::Relaxed), 7 + SENT_MEANWHILE + IDS_MEANWHILE);
        assert_eq!(new.received.load(Ordering::Relaxed), 5 << 32 | 9);
    }
}
