//! The tables of a datapath that runs, to be looked at and to be damaged.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::{
    maps::{Array, Map, MapData, MapInfo},
    programs::{
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use mgre_common::SCHEMA_VERSION;
use mgre_user::datapath::shared::{Shared, SharedArray};

use crate::daemon::Daemon;

/// A table, as the programs see it that a daemon has attached.
///
/// # Errors
/// Nothing is attached, or no program uses a table of that name, or it holds something else.
pub fn open<T: Shared>(daemon: &Daemon, name: &str) -> Result<SharedArray<T>> {
    for pin in pins(daemon)? {
        for id in programs(&pin).with_context(|| pin.display().to_string())? {
            let program = loaded_programs().flatten().find(|program| program.id() == id);
            for map in program.context("no program")?.map_ids()?.unwrap_or_default() {
                if MapInfo::from_id(map)?.name_as_str() == Some(name) {
                    return SharedArray::map(&MapData::from_id(map)?);
                }
            }
        }
    }
    anyhow::bail!("no attached program has a table {name}")
}

/// The programs of a pin: the one of a link, or those that others go on in.
fn programs(pin: &Path) -> Result<Vec<u32>> {
    let name = pin.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !name.starts_with("calls-") {
        return Ok(vec![FdLink::from(PinnedLink::from_pin(pin)?).info()?.program_id()]);
    }
    // Read from outside, an entry of a program array is the program's id.
    let entries = Array::<_, u32>::try_from(Map::Array(MapData::from_pin(pin)?))?;
    Ok((0..entries.len()).filter_map(|index| entries.get(&index, 0).ok()).collect())
}

/// Where a daemon has pinned its links, and the programs that others go on in.
fn pins(daemon: &Daemon) -> Result<Vec<PathBuf>> {
    let version = daemon.bpffs().join("mgre").join(format!("v{SCHEMA_VERSION}"));
    let mut pins = Vec::new();
    for instance in fs::read_dir(&version).with_context(|| version.display().to_string())? {
        for pin in fs::read_dir(instance?.path().join("links"))? {
            let pin = pin?;
            // Tables are pinned there as well.
            if !pin.file_name().to_string_lossy().starts_with("map-") {
                pins.push(pin.path());
            }
        }
    }
    Ok(pins)
}
