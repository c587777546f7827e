//! The tables that the next daemon goes on from, pinned beside the links.
//!
//! A map can be found by the number that an attached program gives, which takes CAP_SYS_ADMIN. A pin can be opened by
//! whoever may read the file.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::{Map, MapData, MapError};
use mgre_common::map_name;

use super::pins::{entries, remove_file};

/// Pins are called so, and as their map.
const PIN_PREFIX: &str = "map-";

/// Which tables these are.
const NAMES: [&str; 8] = [
    map_name::FDB,
    map_name::CLOCK,
    map_name::TRAFFIC,
    map_name::DROPS,
    map_name::SEGMENT_TRAFFIC,
    map_name::SEQUENCES,
    map_name::NEIGHBORS,
    map_name::TALLIES,
];

/// A daemon's own.
#[derive(Debug)]
pub struct Handed(Vec<(&'static str, MapData)>);

impl Handed {
    /// Those of loaded programs, which keep theirs.
    ///
    /// # Errors
    /// The object lacks one.
    pub(super) fn of(programs: &Ebpf) -> Result<Self> {
        let open = |name: &'static str| {
            let data = match programs.map(name) {
                Some(Map::Array(data) | Map::HashMap(data)) => data,
                _ => bail!("the eBPF object has no map {name}"),
            };
            Ok((name, MapData::from_fd(data.fd().as_fd().try_clone_to_owned()?)?))
        };
        Ok(Self(NAMES.into_iter().map(open).collect::<Result<_>>()?))
    }

    /// Pins them in a directory, in place of those of the daemon before. Its programs must not be attached any more.
    ///
    /// # Errors
    /// One cannot be pinned.
    pub(super) fn pin(&self, directory: &Path) -> Result<()> {
        for (name, map) in &self.0 {
            let (pin, new) = (pin(directory, name), pin(directory, &format!("{name}-new")));
            remove_file(&new)?;
            map.pin(&new).with_context(|| format!("cannot pin {}", new.display()))?;
            fs::rename(&new, &pin).with_context(|| format!("cannot pin {}", pin.display()))?;
        }
        Ok(())
    }
}

fn pin(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{PIN_PREFIX}{name}"))
}

/// A table of an earlier daemon, if it is pinned.
///
/// # Errors
/// It is, but cannot be opened.
pub(super) fn open(directory: &Path, name: &str) -> Result<Option<MapData>> {
    let pin = pin(directory, name);
    let data = match MapData::from_pin(&pin) {
        Ok(data) => data,
        Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", pin.display())),
    };
    // Somebody may have put something else there.
    match data.info()?.name_as_str() {
        Some(found) if found == name => Ok(Some(data)),
        _ => bail!("{} is another map", pin.display()),
    }
}

/// Removes the pins in a directory.
///
/// # Errors
/// One cannot be removed.
pub(super) fn remove(directory: &Path) -> Result<()> {
    let is_ours = |pin: &PathBuf| {
        pin.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PIN_PREFIX))
    };
    entries(directory)?.iter().filter(|pin| is_ours(pin)).try_for_each(|pin| remove_file(pin))
}
