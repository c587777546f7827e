//! Where an instance's links are pinned: `mgre/vSCHEMA/INSTANCE/links` in the bpf file system.
//!
//! A daemon of another schema kept its pins in a directory of its own. Its programs are replaced as an earlier daemon's
//! of the same schema are, but nothing is taken out of its tables, which look different.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::calls::is_calls;
use crate::plan::Hook;

impl Hook {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Underlay => "underlay",
            Self::Port => "port",
            Self::HostPort => "host-port",
            Self::XdpUnderlay => "xdp-underlay",
            Self::XdpPort => "xdp-port",
            Self::Slow => "slow",
        }
    }
}

/// What a link's pin is called.
pub(super) fn name(ifindex: u32, hook: Hook) -> String {
    format!("{ifindex}-{}", hook.name())
}

fn parse(name: &str) -> Option<(u32, Hook)> {
    let (ifindex, hook) = name.split_once('-')?;
    let hook = Hook::ALL.into_iter().find(|candidate| candidate.name() == hook)?;
    Some((ifindex.parse().ok()?, hook))
}

/// The links that are pinned in a directory.
///
/// # Errors
/// The directory cannot be read.
pub(super) fn pinned_in(directory: &Path) -> Result<Vec<(u32, Hook)>> {
    let names = entries(directory)?.into_iter();
    Ok(names.filter_map(|path| parse(path.file_name()?.to_str()?)).collect())
}

/// The directories in which daemons of the same instance and of other schemas left something.
///
/// # Errors
/// A directory cannot be read.
pub(super) fn elsewhere(directory: &Path) -> Result<Vec<PathBuf>> {
    let Some(instance) = directory.parent() else { return Ok(Vec::new()) };
    let (Some(name), Some(schema)) = (instance.file_name(), instance.parent()) else { return Ok(Vec::new()) };
    let Some(base) = schema.parent() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for other in entries(base)?.into_iter().filter(|other| other != schema) {
        let links = other.join(name).join("links");
        if !entries(&links)?.is_empty() {
            found.push(links);
        }
    }
    Ok(found)
}

/// A pin with a link's name in one of those.
///
/// # Errors
/// A directory cannot be read.
pub(super) fn elsewhere_named(directory: &Path, ifindex: u32, hook: Hook) -> Result<Option<PathBuf>> {
    let named = elsewhere(directory)?.into_iter().map(|other| other.join(name(ifindex, hook)));
    Ok(named.into_iter().find(|pin| pin.exists()))
}

/// Removes all pins in a directory, and the directory. Says whether there were any.
///
/// # Errors
/// A pin or a directory cannot be removed.
pub(super) fn remove_all(links: &Path) -> Result<bool> {
    let pins = entries(links)?;
    // Links come before the programs that theirs go on in.
    let (calls, others): (Vec<_>, Vec<_>) = pins.iter().partition(|pin| is_calls(pin));
    others.into_iter().chain(calls).try_for_each(|pin| remove_file(pin))?;
    remove_directories(links)?;
    Ok(!pins.is_empty())
}

/// What is in a directory; nothing if there is none.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", directory.display())),
    };
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Removes a pin directory and those above it that are then empty, up to mgre's own.
pub(super) fn remove_directories(directory: &Path) -> Result<()> {
    let mut directory = directory;
    // links, the instance, the schema version, mgre.
    for _ in 0..4 {
        match fs::remove_dir(directory) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
            }
        }
        let Some(parent) = directory.parent() else { return Ok(()) };
        directory = parent;
    }
    Ok(())
}

/// Removes a file, if it is there.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_names() {
        for hook in Hook::ALL {
            assert_eq!(parse(&name(7, hook)), Some((7, hook)));
        }
        assert_eq!(parse("7-xdp-else"), None);
        assert_eq!(parse("seven-port"), None);
    }
}
