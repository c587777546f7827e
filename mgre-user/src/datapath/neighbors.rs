//! Writes the table of neighbours.

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use mgre_common::map_name;
use mgre_common::neighbor::{NeighborKey, NeighborRecord};

use super::attach::Remains;
use super::handover;

/// The table.
#[derive(Debug)]
pub struct NeighborTable(HashMap<MapData, NeighborKey, NeighborRecord>);

impl NeighborTable {
    /// Over the map.
    pub const fn new(map: HashMap<MapData, NeighborKey, NeighborRecord>) -> Self {
        Self(map)
    }

    /// That of an earlier daemon, if its programs have one.
    ///
    /// # Errors
    /// There are programs, but they cannot be looked at.
    pub fn left_behind(remains: &Remains) -> Result<Option<Self>> {
        handover::find_map(remains, map_name::NEIGHBORS)?
            .map(|data| Ok(Self(HashMap::try_from(Map::HashMap(data))?)))
            .transpose()
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// The kernel has no room for it.
    pub fn set(&mut self, key: &NeighborKey, record: NeighborRecord) -> Result<()> {
        self.0.insert(key, record, 0).context("cannot write a neighbour")
    }

    /// Removes an entry, if it is there.
    pub fn remove(&mut self, key: &NeighborKey) {
        // It is gone then, whatever the reason.
        if let Err(error) = self.0.remove(key) {
            tracing::debug!(?key, %error, "cannot remove a neighbour");
        }
    }

    /// An entry.
    pub fn get(&self, key: &NeighborKey) -> Option<NeighborRecord> {
        self.0.get(key, 0).ok()
    }

    /// All entries, as far as they can be read.
    pub fn iter(&self) -> impl Iterator<Item = (NeighborKey, NeighborRecord)> {
        self.0.iter().filter_map(Result::ok)
    }
}
