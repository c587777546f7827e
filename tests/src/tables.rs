//! The tables of a datapath that runs, to be looked at and to be damaged.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use aya::{
    maps::{MapData, MapInfo},
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
        let link = FdLink::from(PinnedLink::from_pin(&pin).with_context(|| pin.display().to_string())?);
        let id = link.info()?.program_id();
        let program = loaded_programs().flatten().find(|program| program.id() == id);
        for map in program.context("no program")?.map_ids()?.unwrap_or_default() {
            if MapInfo::from_id(map)?.name_as_str() == Some(name) {
                return SharedArray::map(&MapData::from_id(map)?);
            }
        }
    }
    anyhow::bail!("no attached program has a table {name}")
}

/// Where a daemon has pinned its links.
fn pins(daemon: &Daemon) -> Result<Vec<PathBuf>> {
    let version = daemon.bpffs().join("mgre").join(format!("v{SCHEMA_VERSION}"));
    let mut pins = Vec::new();
    for instance in fs::read_dir(&version).with_context(|| version.display().to_string())? {
        for pin in fs::read_dir(instance?.path().join("links"))? {
            pins.push(pin?.path());
        }
    }
    Ok(pins)
}
